"""Where the rows of a packed step are written, against the page tables they came from."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_model.pages import PageTable
from swarm_model.step import Step
from swarm_model.transfers import Transfers

HOST = Transfers(torch.device("cpu"))
PAGE = 4


@st.composite
def chunks(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Pages of one session in any order, how many tokens it holds, and how many of these are new."""
    pages = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True))
    tokens = draw(st.integers((len(pages) - 1) * PAGE + 1, len(pages) * PAGE))
    return pages, tokens, draw(st.integers(1, tokens))


def table_of(pages: list[int], tokens: int) -> PageTable:
    breaks = sum(after != before + 1 for before, after in pairwise(pages))
    return PageTable(pages, tokens, breaks)


def slots_written(step: Step) -> list[int]:
    if step.first_slot is not None:
        return list(range(step.first_slot, step.first_slot + step.tokens))
    found: list[int] = step.slots.tolist()
    return found


@given(chunks())
def test_rows_are_written_into_their_sessions_pages_and_no_others(chunk: tuple[list[int], int, int]) -> None:
    pages, tokens, new = chunk
    step = Step([table_of(pages, tokens)], [new], PAGE, torch.float32, HOST)
    places = [page * PAGE + place for page in pages for place in range(PAGE)]
    assert slots_written(step) == places[tokens - new : tokens]


def test_pages_that_only_begin_and_end_like_a_row_are_none() -> None:
    step = Step([table_of([5, 9, 7], 12)], [12], PAGE, torch.float32, HOST)
    assert step.first_slot is None


def test_pages_in_a_row_are_written_in_place() -> None:
    step = Step([table_of([9, 3, 4], 12)], [8], PAGE, torch.float32, HOST)
    assert step.first_slot == 3 * PAGE
