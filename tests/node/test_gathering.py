"""Batches of decode steps wait for companions that are due, and for nobody else: hops with modelled machines."""

import heapq
import random
from dataclasses import dataclass, replace
from itertools import count
from statistics import mean, quantiles

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.gathering import BatchCost, Gathering
from swarm_node.scheduler import Scheduler, Slice
from tests.node.test_scheduler import work_of

GROUP = (0, 8)


@dataclass
class Line:
    """Sessions that go round through hops in a row, each step `wire_s` on its way to the next one, or a bit longer."""

    hops: int
    sessions: int
    fixed_s: float
    each_s: float
    wire_s: float
    jitter: float
    gathers: bool = True
    rounds: int = 80

    def run(self, seed: int = 0) -> tuple[float, list[int]]:
        """Return the seconds of a round, and the sizes of the batches, both over the second half of the rounds."""
        rng, numbers = random.Random(seed), count()
        schedulers = [Scheduler(gathering=Gathering() if self.gathers else None) for _ in range(self.hops)]
        running: list[tuple[list[Slice], float] | None] = [None] * self.hops
        sizes: list[int] = []
        ends: list[float] = []
        # (when, number, hop, session that arrives or None to look)
        events = [(rng.random() * self.fixed_s, next(numbers), 0, n) for n in range(self.sessions)]
        heapq.heapify(events)
        while len(ends) < self.rounds * self.sessions:
            now_s, _, hop, session = heapq.heappop(events)
            scheduler, batch = schedulers[hop], running[hop]
            if session is not None:
                step = work_of(b"%d" % session, 0, 1)
                scheduler.add(replace(step, arrived_s=now_s, hops=self.hops))
            elif batch is not None and batch[1] <= now_s:
                parts, _ = batch
                running[hop] = None
                scheduler.ran(parts, now_s - self.fixed_s - self.each_s * len(parts), now_s)
                for part in parts:
                    ends += [now_s] if hop == self.hops - 1 else []
                    at_s = now_s + self.wire_s * (1 + self.jitter * rng.random())
                    heapq.heappush(events, (at_s, next(numbers), (hop + 1) % self.hops, int(part.work.session)))
            if running[hop] is not None:
                continue
            if parts := scheduler.next(now_s):
                until_s = now_s + self.fixed_s + self.each_s * len(parts)
                running[hop] = parts, until_s
                sizes.append(len(parts))
                heapq.heappush(events, (until_s, next(numbers), hop, None))
            elif scheduler.wait_until_s is not None:
                assert scheduler.wait_until_s > now_s
                heapq.heappush(events, (scheduler.wait_until_s, next(numbers), hop, None))
        half = len(ends) // 2
        return (ends[-1] - ends[half]) / (len(ends) - 1 - half) * self.sessions, sizes[len(sizes) // 2 :]


def test_sessions_of_one_node_share_a_batch() -> None:
    line = Line(hops=1, sessions=8, fixed_s=0.01, each_s=0.0005, wire_s=0.001, jitter=0.5)
    together_s, sizes = line.run()
    apart_s, _ = replace(line, gathers=False).run()
    assert mean(sizes) > 7
    assert apart_s > 1.5 * together_s


def test_sessions_of_two_hops_fall_into_two_batches() -> None:
    line = Line(hops=2, sessions=8, fixed_s=0.01, each_s=0.0005, wire_s=0.002, jitter=0.5)
    for seed in range(10):
        together_s, sizes = line.run(seed)
        apart_s, alone = replace(line, gathers=False).run(seed)
        assert mean(sizes) > mean(alone)
        assert mean(sizes) > 3
        assert together_s < apart_s


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """From memory-bound to compute-bound machines, from one network to several continents."""
    return Line(
        hops=draw(st.integers(1, 4)),
        sessions=draw(st.integers(1, 12)),
        fixed_s=0.01,
        each_s=0.01 * draw(st.floats(0.0, 1.0)),
        wire_s=0.01 * draw(st.floats(0.01, 5.0)),
        jitter=draw(st.floats(0.0, 1.0)),
    )


@given(line=lines(), seed=st.integers(0, 1000))
def test_waiting_never_costs_much(line: Line, seed: int) -> None:
    waits_s, _ = line.run(seed)
    runs_s, _ = replace(line, gathers=False).run(seed)
    assert waits_s < 1.35 * runs_s


def test_waiting_pays_on_average() -> None:
    rng, ratios = random.Random(0), []
    for seed in range(100):
        wire_s = 0.01 * rng.choice([rng.uniform(0.01, 0.5), rng.uniform(0.01, 5.0)])
        line = Line(rng.randint(1, 4), rng.randint(1, 12), 0.01, 0.01 * rng.random() ** 3, wire_s, rng.random())
        ratios.append(line.run(seed)[0] / replace(line, gathers=False).run(seed)[0])
    assert mean(ratios) < 0.98
    assert quantiles(ratios, n=10)[0] < 0.85
    assert quantiles(ratios, n=10)[8] < 1.05


def rhythmic(sessions: int) -> Gathering:
    """Sessions that left at second 10 and are away for a second; a batch costs half of one."""
    gathering = Gathering()
    names = [b"%d" % number for number in range(sessions)]
    gathering.ran(names, GROUP, 0.0, 0.5)
    gathering.took([(name, 1.0) for name in names])
    gathering.ran(names, GROUP, 10.0, 0.5)
    return gathering


def test_one_that_does_not_come_is_not_waited_for() -> None:
    gathering = rhythmic(4)
    _, until_s = gathering.plan(10.9, [b"0"], GROUP, hops=2)
    assert until_s is not None
    assert 11.0 < until_s < 11.3
    assert gathering.plan(until_s, [b"0"], GROUP, hops=2) == (1, None)


def test_each_hop_of_a_route_gets_its_share() -> None:
    gathering = rhythmic(6)
    names = [b"%d" % number for number in range(6)]
    assert gathering.plan(10.9, names, GROUP, hops=2) == (3, None)
    assert gathering.plan(10.9, names[:3], GROUP, hops=2) == (3, None)
    assert gathering.plan(10.9, names[:2], GROUP, hops=2)[1] is not None
    assert gathering.plan(10.1, names[:2], GROUP, hops=2)[1] is None  # too long
    assert gathering.plan(10.9, names[:2], (4, 8), hops=2)[1] is None  # the others run other blocks
    assert gathering.plan(10.9, names[:2], GROUP, hops=3) == (2, None)
    for name in names[2:]:
        gathering.drop(name)
    assert gathering.plan(10.9, names[:1], GROUP, hops=2) == (1, None)


@given(fixed_s=st.floats(1e-4, 1.0), each_s=st.floats(0.0, 1.0), sizes=st.lists(st.integers(1, 64), min_size=2))
def test_the_cost_of_batches_is_learned(fixed_s: float, each_s: float, sizes: list[int]) -> None:
    cost = BatchCost()
    for size in sizes:
        cost.add(size, fixed_s + each_s * size)
    assert cost.fixed_s >= 0.0
    for size in set(sizes):
        said_s = cost.fixed_s + cost.each_s * size
        assert abs(said_s - fixed_s - each_s * size) < 0.01 * (fixed_s + each_s * max(sizes))
