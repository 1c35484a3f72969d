"""Who has to give when links hold too much: pure counting."""

from dataclasses import dataclass

from swarm_net.holdings import HoldingCaps, Holdings
from swarm_net.links import PeerId


@dataclass(eq=False)
class Held:
    """A link that holds what a test says."""

    peer: PeerId
    held_bytes: int = 0
    in_use: bool = False

    def give_way(self) -> None:
        raise AssertionError("who notes ends it, not the counting")


def joined(holdings: Holdings, *peers: str) -> list[Held]:
    links = [Held(PeerId(peer)) for peer in peers]
    for link in links:
        holdings.join(link)
    return links


def note(holdings: Holdings, link: Held, held_bytes: int) -> object:
    link.held_bytes = held_bytes
    return holdings.note(link)


def test_a_peer_that_holds_too_much_loses_its_largest_link_and_others_none() -> None:
    holdings = Holdings(HoldingCaps(bytes_per_peer=100, total_bytes=1000))
    one, two, other = joined(holdings, "greedy", "greedy", "other")
    assert note(holdings, other, 100) is None
    assert note(holdings, one, 60) is None
    assert note(holdings, two, 40) is None
    assert note(holdings, two, 50) is one


def test_where_all_hold_too_much_the_peer_that_holds_most_gives_way() -> None:
    holdings = Holdings(HoldingCaps(bytes_per_peer=100, total_bytes=200))
    one, two, large, small = joined(holdings, "many", "many", "large", "small")
    for link, held_bytes in ((one, 40), (two, 50), (large, 80)):
        assert note(holdings, link, held_bytes) is None
    assert note(holdings, small, 31) is two


def test_what_has_left_meanwhile_does_not_count() -> None:
    holdings = Holdings(HoldingCaps(bytes_per_peer=100, total_bytes=100))
    one, two = joined(holdings, "one", "two")
    assert note(holdings, one, 90) is None
    one.held_bytes = 0
    assert note(holdings, two, 90) is None
    holdings.leave(two)
    assert note(holdings, one, 90) is None


def test_links_and_sessions_are_counted_by_peer() -> None:
    holdings = Holdings(HoldingCaps(links_per_peer=2))
    one, _, other = joined(holdings, "peer", "peer", "other")
    assert not holdings.has_room(one.peer)
    assert holdings.has_room(other.peer)
    assert not holdings.has_session(one.peer)
    one.in_use = True
    assert holdings.has_session(one.peer)
    assert not holdings.has_session(other.peer)
    holdings.leave(one)
    assert holdings.has_room(one.peer)
    assert not holdings.has_session(one.peer)
