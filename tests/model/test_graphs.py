"""Which decode steps are recorded, when, and what the runs for it write. Their results: test_acceleration.py."""

import pytest
import torch

from swarm_model.attention import PagedKV
from swarm_model.drivers import Part
from swarm_model.graphs import LARGEST, SIZES, DecodeGraphs, Eager, Run
from swarm_model.kernels import GatheredDecode
from swarm_model.kv_pool import KVPool, KVShape
from swarm_model.pages import PageAllocator, SessionKey
from swarm_model.step import Step
from swarm_model.transfers import Transfers

CPU, PAGE = torch.device("cpu"), 16


class Writes:
    """A span's forward that writes into its step's slots, and remembers which these were."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self.seen: list[tuple[list[int], list[int], list[int]]] = []  # slots, lengths, first pages

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        self._pool.keys[0][step.slots] = 1.0
        layout = step.layout(1)
        assert layout is not None
        self.seen.append((step.slots.tolist(), layout.lengths.tolist(), layout.pages[:, 0].tolist()))
        return inputs * 2.0


class Fails(Eager):
    """Has no memory for more recordings than some."""

    def __init__(self, most: int) -> None:
        self._left = most

    def record(self, run: Run) -> Run:
        self._left -= 1
        if self._left < 0:
            raise torch.OutOfMemoryError("out of memory")
        return super().record(run)


def graphs_of(pages: int, recorder: Eager) -> tuple[DecodeGraphs, Writes, KVPool]:
    pool = KVPool({0: KVShape(1, 2, 2)}, pages=pages + 1, page_size=PAGE, dtype=torch.float32, device=CPU)
    driver = Writes(pool)
    return (
        DecodeGraphs(driver, PagedKV(pool, {}, ""), GatheredDecode(PAGE), recorder, blocks=1, last=False),
        driver,
        pool,
    )


def decode(graphs: DecodeGraphs, tokens: list[int], pages: int) -> torch.Tensor:
    """Send a token of each of some sessions, which then hold that many."""
    allocator = PageAllocator(pages, PAGE)
    tables = [allocator.place(SessionKey(bytes([number])), 0, count) for number, count in enumerate(tokens)]
    step = Step(tables, [1] * len(tables), PAGE, torch.float32, Transfers(CPU))
    inputs = torch.arange(1.0, len(tokens) + 1)[:, None]
    return graphs.run(inputs, step, torch.arange(len(tokens)))


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (1, {(1, 1)}),
        (3, {(1, 3)}),  # a table has no more pages than there are
        (16, {(1, 16)}),
        (32, {(1, 16), (2, 16), (1, 32)}),
        (80, {(size, 16) for size in (1, 2, 4, 8)} | {(1, 64)}),
        (10000, {(size, width) for size in SIZES for width in (16, 64)}),
    ],
)
def test_sizes_are_recorded_ahead_as_far_as_the_pool_allows(pages: int, expected: set[tuple[int, int]]) -> None:
    graphs, driver, _ = graphs_of(pages, Eager())
    told: list[tuple[int, int]] = []
    graphs.record_ahead(torch.zeros(5, 1), lambda done, total: told.append((done, total)))
    assert graphs.recorded == len(expected)
    assert told == [(done, len(expected)) for done in range(len(expected) + 1)]
    assert sorted(len(slots) for slots, _, _ in driver.seen) == sorted(size for size, _ in expected)


@pytest.mark.parametrize("ahead", [True, False])
def test_runs_that_are_recorded_write_to_the_spare_page_alone(ahead: bool) -> None:
    graphs, driver, pool = graphs_of(40, Eager())
    if ahead:
        graphs.record_ahead(torch.zeros(1, 1), lambda _done, _total: None)
        assert not pool.keys[0][: 40 * PAGE].any()
    output = decode(graphs, [7, 20, 33], 40)
    *recorded, (slots, lengths, pages) = driver.seen
    assert recorded
    for spare_slots, spare_lengths, spare_pages in recorded:
        assert set(spare_slots) == {40 * PAGE}
        assert set(spare_lengths) == {1}
        assert set(spare_pages) == {40}
    assert torch.equal(output, torch.tensor([[2.0], [4.0], [6.0]]))
    assert lengths == [7, 20, 33, 1]
    assert (slots[3], pages[3]) == (40 * PAGE, 40)
    assert pool.keys[0][: 40 * PAGE].any(dim=1).any(dim=1).sum() == 3


def test_steps_of_sizes_recorded_ahead_record_nothing_more_but_wider_tables_are() -> None:
    graphs, _, _ = graphs_of(600, Eager())
    graphs.record_ahead(torch.zeros(1, 1), lambda _done, _total: None)
    ahead = graphs.recorded
    for tokens in ([1], [200], [9] * 5, [1000, 3], [40] * 30):
        decode(graphs, tokens, 600)
    assert graphs.recorded == ahead
    decode(graphs, [2000], 600)
    decode(graphs, [1500, 1], 600)
    assert graphs.recorded == ahead + 2
    decode(graphs, [9600], 600)  # the whole pool
    assert graphs.recorded == ahead + 3
    decode(graphs, [1] * (LARGEST + 1), 600)
    assert graphs.recorded == ahead + 3


@pytest.mark.parametrize("most", [0, 3])
def test_without_memory_for_recordings_steps_run_as_they_did(most: int, caplog: pytest.LogCaptureFixture) -> None:
    graphs, driver, _ = graphs_of(600, Fails(most))
    graphs.record_ahead(torch.zeros(1, 1), lambda _done, _total: None)
    assert graphs.recorded == 0
    assert [record.message for record in caplog.records] == [
        "decode steps cannot be recorded, they run one kernel after the other: out of memory"
    ]
    driver.seen.clear()
    assert torch.equal(decode(graphs, [3, 5, 8], 600), torch.tensor([[2.0], [4.0], [6.0]]))
    assert [lengths for _, lengths, _ in driver.seen] == [[3, 5, 8]]
