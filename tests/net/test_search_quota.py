"""How many searches for what may not exist run at once."""

import pytest

from swarm_net.links import PeerId
from swarm_net.search_quota import SearchQuota
from swarm_net.session_errors import Busy


def test_searches_are_counted_for_each_peer_and_in_all() -> None:
    quota = SearchQuota(of_a_peer=2, in_all=3)
    one, two, three = PeerId("one"), PeerId("two"), PeerId("three")
    for peer in (one, one, two):
        quota.begin(peer)
    with pytest.raises(Busy, match="this peer"):
        quota.begin(one)
    with pytest.raises(Busy, match="3 revisions"):
        quota.begin(three)
    quota.end(one)
    quota.begin(three)
