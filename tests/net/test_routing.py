"""Routes against brute force: complete, cheapest, and never through who must not be in them."""

from collections.abc import Iterator
from itertools import combinations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_net.errors import NoRoute
from swarm_net.links import PeerId
from swarm_net.messages import Load, ModelId
from swarm_net.records import Record, missing_blocks
from swarm_net.routing import UNKNOWN_RTT_S, Route, hop_s, route

MODEL = ModelId(name="m", revision="r" * 64)
BLOCKS = 6


def node(peer: str, start: int, end: int, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "sequence": 1,
        "published_ns": 0,
        "expires_ns": 1,
        "peer": peer,
        "model": MODEL,
        "num_blocks": BLOCKS,
        "start": start,
        "end": end,
        "dtype": "float32",
        "decode_tokens_per_s": 20.0,
        "max_context": 4096,
        "load": Load(kv_tokens_free=4096, kv_tokens=4096),
    }
    return Record(**{**fields, **changes})


@st.composite
def nodes(draw: st.DrawFn, max_nodes: int = 6) -> list[Record]:
    made = []
    for number in range(draw(st.integers(0, max_nodes))):
        start = draw(st.integers(0, BLOCKS - 1))
        end = draw(st.integers(start + 1, BLOCKS))
        digest = draw(st.sampled_from((b"", b"", b"genuine!", b"genuine!", b"altered!")))
        made.append(
            node(
                f"p{number}",
                start,
                end,
                decode_tokens_per_s=draw(st.sampled_from((0.0, 5.0, 20.0, 80.0, 500.0))),
                load=Load(busy=draw(st.sampled_from((0.0, 0.5, 0.95, 1.0))), kv_tokens_free=4096),
                block_digests=digest * (end - start),
            )
        )
    return made


def brute_force(records: list[Record], used: tuple[Record, ...] = (), start: int = 0) -> Iterator[float]:
    """Yield the cost of every consistent route, leaving and entering spans anywhere."""
    if start == BLOCKS:
        yield 0.0
        return
    for record in records:
        if record.start <= start < record.end and record not in used and not any(disagree(record, u) for u in used):
            for end in range(start + 1, record.end + 1):
                for rest in brute_force(records, (*used, record), end):
                    yield hop_s(record, end - start) + rest


def disagree(one: Record, other: Record) -> bool:
    common = range(max(one.start, other.start), min(one.end, other.end))
    return any(one.digest_of(b) and other.digest_of(b) and one.digest_of(b) != other.digest_of(b) for b in common)


def check(found: Route) -> None:
    assert [hop.start for hop in found.hops] == [0, *(hop.end for hop in found.hops[:-1])]
    assert found.hops[-1].end == BLOCKS
    assert all(hop.record.start <= hop.start < hop.end <= hop.record.end for hop in found.hops)
    assert len(set(found.peers)) == len(found.peers)
    assert not any(disagree(a.record, b.record) for a, b in combinations(found.hops, 2))


def attempt(records: list[Record], **options: Any) -> Route | NoRoute:
    try:
        return route(records, MODEL, num_blocks=BLOCKS, **options)
    except NoRoute as error:
        return error


@settings(max_examples=300, deadline=None)
@given(nodes(), st.integers(0, 9))
def test_the_route_is_the_cheapest_consistent_one(records: list[Record], seed: int) -> None:
    costs = list(brute_force(records))
    missing = missing_blocks(records, BLOCKS)
    found = attempt(records, rng=Random(seed))
    if isinstance(found, NoRoute):
        assert not costs
        assert found.missing == missing
        assert missing or found.disputed
    else:
        check(found)
        assert found.token_s == pytest.approx(min(costs), abs=1e-7)


@settings(deadline=None)
@given(nodes(), st.sets(st.sampled_from([f"p{number}" for number in range(6)])))
def test_excluded_nodes_are_never_in_it(records: list[Record], banned: set[str]) -> None:
    exclude = frozenset(map(PeerId, banned))
    found = attempt(records, rng=Random(0), exclude=exclude)
    if isinstance(found, NoRoute):
        missing = missing_blocks([record for record in records if record.peer not in banned], BLOCKS)
        assert found.missing == missing
    else:
        assert not exclude & set(found.peers)


def test_it_enters_a_span_in_its_middle_and_leaves_one_early() -> None:
    slow, fast = node("slow", 0, 5, decode_tokens_per_s=1.0), node("fast", 2, 6, decode_tokens_per_s=100.0)
    found = route([slow, fast], MODEL, num_blocks=BLOCKS, rng=Random(0))
    assert [(hop.peer, hop.start, hop.end) for hop in found.hops] == [("slow", 0, 2), ("fast", 2, 6)]
    fast, slow = node("fast", 0, 5, decode_tokens_per_s=100.0), node("slow", 2, 6, decode_tokens_per_s=1.0)
    found = route([slow, fast], MODEL, num_blocks=BLOCKS, rng=Random(0))
    assert [(hop.peer, hop.start, hop.end) for hop in found.hops] == [("fast", 0, 5), ("slow", 5, 6)]


def test_no_node_stands_twice_in_it() -> None:
    # Cheapest without that rule: around(0:2), inner(2:4), around(4:6).
    around, inner = node("around", 0, 6, decode_tokens_per_s=0.1), node("inner", 2, 4, decode_tokens_per_s=1000.0)
    check(route([around, inner], MODEL, num_blocks=BLOCKS, rng=Random(0)))


def test_only_online_nodes_of_the_same_weights_count() -> None:
    other = ModelId(name="m", revision="s" * 64)
    with pytest.raises(NoRoute) as caught:
        route(
            [
                node("a", 0, 2),
                node("b", 2, 3, state="joining"),
                node("c", 3, 4, state="draining"),
                node("d", 2, 4, model=other),
                node("e", 4, 6, num_blocks=7),
                node("f", 5, 6),
            ],
            MODEL,
            num_blocks=BLOCKS,
            rng=Random(0),
        )
    assert caught.value.missing == ((2, 5),)


def test_nodes_with_other_weights_of_a_block_never_meet() -> None:
    genuine = node("a", 0, 4, block_digests=b"genuine!" * 4)
    altered = node("b", 3, 6, block_digests=b"altered!" * 3, decode_tokens_per_s=900.0)
    with pytest.raises(NoRoute) as caught:
        route([genuine, altered], MODEL, num_blocks=BLOCKS, rng=Random(0))
    assert (caught.value.missing, caught.value.disputed) == ((), ((3, 4),))
    assert "different weights of blocks 3:4" in str(caught.value)
    honest = node("c", 3, 6, block_digests=b"genuine!" * 3, decode_tokens_per_s=1.0)
    found = route([genuine, altered, honest], MODEL, num_blocks=BLOCKS, rng=Random(0))
    assert found.peers == ("a", "c")


def test_numeric_classes_are_mixed_only_where_none_covers_the_model() -> None:
    exact = [node("a", 0, 3), node("b", 3, 6)]
    fast = [node("c", 0, 3, dtype="bfloat16", decode_tokens_per_s=900.0)]
    assert route(exact + fast, MODEL, num_blocks=BLOCKS, rng=Random(0)).peers == ("a", "b")
    assert route(exact[1:] + fast, MODEL, num_blocks=BLOCKS, rng=Random(0)).peers == ("c", "b")
    whole = [*fast, node("d", 3, 6, dtype="bfloat16", decode_tokens_per_s=900.0)]
    assert route(exact + whole, MODEL, num_blocks=BLOCKS, rng=Random(0)).peers == ("c", "d")
    preferred = route(exact + whole, MODEL, num_blocks=BLOCKS, rng=Random(0), prefer_numeric_class="float32")
    assert preferred.numeric_classes == {"float32"}
    fallen_back = route(whole, MODEL, num_blocks=BLOCKS, rng=Random(0), prefer_numeric_class="float32")
    assert fallen_back.numeric_classes == {"bfloat16"}


def test_nodes_without_room_are_the_last_resort() -> None:
    full = node("full", 0, 6, decode_tokens_per_s=900.0, load=Load(kv_tokens_free=100))
    short = node("short", 0, 6, decode_tokens_per_s=900.0, max_context=100)
    roomy = node("roomy", 0, 6, decode_tokens_per_s=1.0)
    assert route([full, short, roomy], MODEL, num_blocks=BLOCKS, rng=Random(0), max_tokens=500).peers == ("roomy",)
    assert route([full], MODEL, num_blocks=BLOCKS, rng=Random(0), max_tokens=500).peers == ("full",)
    assert route([full, roomy], MODEL, num_blocks=BLOCKS, rng=Random(0), max_tokens=100).peers == ("full",)


def test_load_and_distance_count() -> None:
    idle, busy = node("idle", 0, 6), node("busy", 0, 6, load=Load(busy=0.95, kv_tokens_free=4096))
    assert route([idle, busy], MODEL, num_blocks=BLOCKS, rng=Random(0)).peers == ("idle",)
    near = {PeerId("near"): UNKNOWN_RTT_S / 2}
    for seed in range(5):
        found = route([node("far", 0, 6), node("near", 0, 6)], MODEL, num_blocks=BLOCKS, rng=Random(seed), rtt_s=near)
        assert found.peers == ("near",)


def test_of_a_nodes_records_the_newest_counts() -> None:
    old, new = node("a", 0, 6, sequence=1), node("a", 0, 3, sequence=2)
    for records in ([old, new], [new, old]):
        with pytest.raises(NoRoute) as caught:
            route(records, MODEL, num_blocks=BLOCKS, rng=Random(0))
        assert caught.value.missing == ((3, 6),)


def test_equal_routes_are_spread_by_chance_and_repeat_with_the_seed() -> None:
    twins = [node(f"{stage}{copy}", stage, stage + 2) for stage in (0, 2, 4) for copy in range(4)]
    chosen = [route(twins, MODEL, num_blocks=BLOCKS, rng=Random(seed)).peers for seed in range(200)]
    for stage in range(3):
        counts = [sum(peers[stage] == f"{2 * stage}{copy}" for peers in chosen) for copy in range(4)]
        assert min(counts) > 20
    assert chosen[3] == route(twins[::-1], MODEL, num_blocks=BLOCKS, rng=Random(3)).peers


def test_spread_shares_clients_among_nodes_that_are_about_as_good() -> None:
    rates = {"best": 40.0, "good": 36.0, "slow": 2.0}
    nodes = [node(name, 0, 6, decode_tokens_per_s=rate) for name, rate in rates.items()]
    chosen = [route(nodes, MODEL, num_blocks=BLOCKS, rng=Random(seed), spread=0.5) for seed in range(300)]
    counts = {name: sum(found.peers == (name,) for found in chosen) for name in rates}
    assert counts["good"] > 60
    assert counts["best"] > counts["good"]
    assert counts["slow"] < 15
    alone = route(nodes[:1], MODEL, num_blocks=BLOCKS, rng=Random(0))
    assert route(nodes[:1], MODEL, num_blocks=BLOCKS, rng=Random(1), spread=0.5).token_s == pytest.approx(alone.token_s)


def test_a_swarm_of_three_hundred_is_no_effort() -> None:
    rng = Random(5)
    crowd = []
    for number in range(300):
        start = rng.randrange(75)
        end = min(80, start + rng.randint(4, 24))
        rate = rng.choice((5.0, 20.0, 60.0))
        crowd.append(node(f"n{number}", start, end, num_blocks=80, decode_tokens_per_s=rate))
    crowd += [node("tail", 60, 80, num_blocks=80), node("head", 0, 20, num_blocks=80)]
    found = route(crowd, MODEL, num_blocks=80, rng=rng)
    assert found.hops[-1].end == 80
    assert len(set(found.peers)) == len(found.peers)
