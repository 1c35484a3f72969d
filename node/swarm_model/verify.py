"""The judgement of drafted tokens, from the logits behind each of them.

Drafts are right where they are what would have been drawn anyway: the noise is keyed by seed and position, so equality
of tokens is the whole test, greedy or sampled, and no draft changes what comes out (compare Leviathan et al. 2023,
section 2.3, which accepts by chance instead and needs the draft's probabilities). Called by span.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_model.sampler import Sampled, sample
from swarm_model.sampling_params import Sampling


def judge(
    logits: npt.NDArray[np.float32],
    drafts: Sequence[int],
    sampling: Sampling,
    position: int,
    history: npt.NDArray[Any] | None = None,
    masks: Sequence[bytes] | None = None,
) -> tuple[Sampled, ...]:
    """Draw the tokens that stand at `position` and behind it, for as long as the drafts are right.

    Row i of `logits`, `[drafts + 1, vocabulary]`, belongs to the token at `position + i`, which draft i guesses.
    `history` holds all ids so far, the drafts at its end. `masks` has one for each row, up to the first that bars its
    draft (see `sample`). Returns as many tokens as drafts were right and one more.
    """
    drawn: list[Sampled] = []
    for place, row in enumerate(logits):
        known = None if history is None else history[: len(history) - len(drafts) + place]
        mask = None if masks is None else masks[place]
        drawn.append(sample(row, sampling, position + place, known, mask))
        if place == len(drafts) or drawn[-1].token != drafts[place]:
            break
    return tuple(drawn)
