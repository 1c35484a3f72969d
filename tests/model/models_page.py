"""Writes docs/models.md: `python -m tests.model.models_page`. What it says of a family, a test named there shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.model.configurations import REFUSALS, configurations

PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"
EXACT: Final = "tests/model/test_families.py::test_three_spans_give_what_transformers_gives"
REFUSED: Final = "tests/model/test_refused_families.py::test_a_family_that_would_be_computed_wrong_is_refused"
HEAD: Final = """# Which models can be served

Written by `python -m tests.model.models_page` from the configurations that the tests run; a test fails when it is out
of date.

A span finds out by itself, while it is loaded, how a model can be served: nothing below is looked up in a table. It is
tried with ragged chunks of two sessions on random inputs against what transformers computes in one piece, and takes the
first of these ways that gives the same numbers:

- **paged**: keys and values (of DeepSeek's attention, its compressed latent) in pages, all sessions of a step at once.
- **recurrent**: mixers with a running state go session by session through their own part of each block, everything else
  as in paged mode. A session can go back within its last step alone, and prefixes are not shared.
- **session**: transformers' own cache, one session after the other. Exact, but several sessions gain nothing from one
  another, and prefixes are not shared.

If none does, the model is refused with what went wrong in each. A family that is not listed may well work, and if it is
not refused, it is exact on the inputs of the self-test.

Each line is a tiny random checkpoint of that family, cut into three spans, with three sessions in ragged chunks that
are cut back and sent again, in float32, compared with plain transformers: equal greedy ids, and log-probabilities that
differ by less than {tolerance:.0e} of the largest logit ({recurrent:.0e} in recurrent mode, where a sequence is added
up in another order than token by token).

## Served: {paged} configurations paged, {running} recurrent, {session} session by session

| family | switches | mode | shown by `{exact}` |
|---|---|---|---|
"""
REFUSALS_HEAD: Final = """
## Refused

| family | switches | because | shown by `{refused}` |
|---|---|---|---|
"""


def page() -> str:
    """Give the page's text."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    served = list(configurations())
    modes = [configuration.mode for configuration in served]
    tolerances = {configuration.mode: configuration.tolerance for configuration in served}
    yield HEAD.format(
        paged=modes.count("paged"),
        running=modes.count("recurrent"),
        session=modes.count("session"),
        tolerance=tolerances["paged"],
        recurrent=tolerances["recurrent"],
        exact=EXACT,
    )
    for one in served:
        yield f"| {one.family} | {one.note} | {one.mode} | `[{one.name}]` |\n"
    yield REFUSALS_HEAD.format(refused=REFUSED)
    for refusal in REFUSALS:
        yield f"| {refusal.family} | {refusal.note} | {refusal.because} | `[{refusal.name}]` |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
