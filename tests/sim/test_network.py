"""The wide-area model: distances, serialization, lanes, jitter."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.messages import Lane
from swarm_sim.errors import BadOption
from swarm_sim.network import FRAME_OVERHEAD_BYTES, Place, WideArea
from swarm_sim.regions import NAMES, Regions

MBIT = 1e6


def two_peers(*, jitter: float = 0.0, uplink_bps: float = 8 * MBIT, downlink_bps: float = 80 * MBIT) -> WideArea:
    network = WideArea(Regions(2), random.Random(1), jitter=jitter)
    network.add("a", Place(0, 0.001, uplink_bps, downlink_bps))
    network.add("b", Place(1, 0.002, uplink_bps, downlink_bps))
    return network


def test_an_empty_line_costs_distance_and_bytes() -> None:
    network = two_peers()
    assert network.distance_s("a", "b") == pytest.approx(0.043)
    size_bytes = 1_000_000 - FRAME_OVERHEAD_BYTES
    assert network.delay_s(5.0, "a", "b", "decode", size_bytes) == pytest.approx(0.043 + 1.0)
    assert (network.frames, network.bytes) == (1, 1_000_000)


def test_distances_are_symmetric_and_least_at_home() -> None:
    regions = Regions(len(NAMES))
    for a in range(len(NAMES)):
        for b in range(len(NAMES)):
            assert regions.one_way_s(a, b) == regions.one_way_s(b, a)
            assert regions.one_way_s(a, a) <= regions.one_way_s(a, b)


@pytest.mark.parametrize("count", [0, len(NAMES) + 1])
def test_there_are_only_so_many_regions(count: int) -> None:
    with pytest.raises(BadOption, match="--regions"):
        Regions(count)


def test_frames_of_one_lane_queue_on_the_uplink() -> None:
    network = two_peers()
    size_bytes = 500_000 - FRAME_OVERHEAD_BYTES
    delays = [network.delay_s(0.0, "a", "b", "bulk", size_bytes) for _ in range(3)]
    assert delays == pytest.approx([0.543, 1.043, 1.543])
    assert network.delay_s(10.0, "a", "b", "bulk", size_bytes) == pytest.approx(0.543)


def test_a_decode_frame_never_waits_behind_bulk_and_takes_its_bandwidth() -> None:
    network = two_peers()
    network.delay_s(0.0, "a", "b", "bulk", 10_000_000)
    before_s = network.delay_s(0.0, "a", "b", "bulk", 0)
    assert network.delay_s(0.0, "a", "b", "decode", 1000) < 0.05
    assert network.delay_s(0.0, "a", "b", "bulk", 0) > before_s + 0.001


def test_many_senders_share_the_downlink_of_one() -> None:
    network = WideArea(Regions(1), random.Random(1), jitter=0.0)
    network.add("hub", Place(0, 0.0, 8 * MBIT, 8 * MBIT))
    for number in range(10):
        network.add(f"leaf {number}", Place(0, 0.0, 800 * MBIT, 800 * MBIT))
    size_bytes = 100_000 - FRAME_OVERHEAD_BYTES
    delays = [network.delay_s(0.0, f"leaf {number}", "hub", "bulk", size_bytes) for number in range(10)]
    assert delays == pytest.approx([0.005 + 0.1 * (number + 1) for number in range(10)])


def test_a_peer_that_comes_back_has_empty_lines() -> None:
    network = two_peers()
    network.delay_s(0.0, "a", "b", "bulk", 50_000_000)
    network.add("a", Place(0, 0.001, 8 * MBIT, 80 * MBIT))
    network.add("b", Place(1, 0.002, 8 * MBIT, 80 * MBIT))
    assert network.delay_s(0.0, "a", "b", "bulk", 0) < 0.05


def test_jitter_is_seeded_and_only_ever_adds() -> None:
    first, second = two_peers(jitter=0.2), two_peers(jitter=0.2)
    delays = [first.delay_s(float(second_), "a", "b", "decode", 0) for second_ in range(200)]
    assert delays == [second.delay_s(float(second_), "a", "b", "decode", 0) for second_ in range(200)]
    assert min(delays) >= 0.043
    assert 0.1 < sum(delays) / len(delays) / 0.043 - 1.0 < 0.3
    assert len(set(delays)) > 190


sends = st.lists(
    st.tuples(
        st.floats(0, 0.5),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["decode", "bulk"]),
        st.integers(0, 2_000_000),
    )
)


@given(sends)
def test_no_line_ever_carries_more_than_it_can(history: list[tuple[float, str, str, Lane, int]]) -> None:
    """Whatever is sent: nothing arrives sooner than its distance, or than all of its lane's bytes before it allow."""
    network = WideArea(Regions(3), random.Random(0))
    for region, peer in enumerate("abc"):
        network.add(peer, Place(region, 0.001, 10 * MBIT, 20 * MBIT))
    now_s, sent = 0.0, []
    for pause_s, source, target, lane, size_bytes in history:
        now_s += pause_s
        delay_s = network.delay_s(now_s, source, target, lane, size_bytes)
        sent.append((now_s, source, lane, size_bytes))
        assert delay_s >= network.distance_s(source, target)
        for start_s, *_ in sent:
            sent_bytes = sum(b for at_s, peer, on, b in sent if at_s >= start_s and peer == source and on == lane)
            assert start_s + sent_bytes * 8 / (10 * MBIT) <= now_s + delay_s + 1e-9


def test_drawn_places_are_seeded() -> None:
    rng, again = random.Random(3), random.Random(3)
    assert [Place.draw(1, rng) for _ in range(5)] == [Place.draw(1, again) for _ in range(5)]
