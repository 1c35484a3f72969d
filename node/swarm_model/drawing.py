"""The end of a step on the last span: from the logits behind some of its rows to tokens.

Owns what is asked for (`SampleRequest`) and where it is done: verify.py and sampler.py do it on the host; what asks for
the likeliest token and nothing else is decided where the logits are, so that an accelerator sends a number and not a
vocabulary. Called by span.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from swarm_model.errors import ModelError
from swarm_model.sampler import Sampled
from swarm_model.sampling_params import Sampling
from swarm_model.transfers import Transfers
from swarm_model.verify import judge


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """How to choose the token behind a chunk; `history` is all ids so far, for penalties alone.

    `drafts` are the chunk's last tokens where they are guesses, `masks` what a grammar allows: see verify.py.
    """

    sampling: Sampling
    history: npt.NDArray[np.integer[Any]] | None = None
    drafts: Sequence[int] = ()
    masks: Sequence[bytes] | None = None

    @property
    def rows(self) -> int:
        """Count the rows whose logits it needs: those of the drafts and the one before them."""
        return len(self.drafts) + 1

    @property
    def is_likeliest(self) -> bool:
        """Whether the likeliest token is all that it asks for."""
        return self.masks is None and self.sampling.likeliest_alone


Drawn = tuple[Sampled, ...] | ModelError


def draw(
    logits: torch.Tensor,
    requests: Sequence[tuple[SampleRequest, int]],
    transfers: Transfers,
    *,
    on_device: bool | None = None,
) -> list[Drawn]:
    """Draw for each request, given with the position of its first token, from its rows: `[all rows, vocabulary]`.

    `on_device`: choose likeliest tokens where the logits are; by default unless that is the host.
    """
    if on_device is None:
        on_device = logits.device.type != "cpu"
    tokens: list[int] | None = None
    if on_device and any(request.is_likeliest for request, _ in requests):
        tokens = transfers.to_host(_likeliest(logits)).tolist()
    drawn: list[Drawn | None] = []
    rest: list[int] = []  # rows that the host has to see
    first = 0
    for request, _ in requests:
        own = range(first, first + request.rows)
        first += request.rows
        if tokens is not None and request.is_likeliest and min(tokens[own.start : own.stop]) >= 0:
            drawn.append(_judge_likeliest(tokens[own.start : own.stop], request.drafts))
        else:
            drawn.append(None)
            rest.extend(own)
    if not rest:
        return [done for done in drawn if done is not None]
    wanted = logits if len(rest) == len(logits) else logits[transfers.to_device(torch.tensor(rest))]
    rows, taken = transfers.to_host(wanted.float()).numpy(), 0
    for place, (request, position) in enumerate(requests):
        if drawn[place] is None:
            own_rows = rows[taken : taken + request.rows]
            taken += request.rows
            drawn[place] = _judge(own_rows, request, position)
    return [done for done in drawn if done is not None]


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Choose each row's greatest value where the rows are, of equal ones the first; -1 where a row is not finite.

    `logits` is `[rows, vocabulary]`. What comes to the host is a number a row, not a vocabulary.
    """
    vocabulary = logits.shape[1]
    best = logits.amax(dim=1, keepdim=True)
    places = torch.arange(vocabulary, device=logits.device)
    first = torch.where(logits == best, places, vocabulary).amin(dim=1)
    return torch.where(torch.isfinite(best[:, 0]), first, -1)


def _judge(rows: npt.NDArray[np.float32], request: SampleRequest, position: int) -> Drawn:
    try:
        return judge(rows, request.drafts, request.sampling, position, request.history, request.masks)
    except ModelError as error:
        return error


def _judge_likeliest(tokens: Sequence[int], drafts: Sequence[int]) -> tuple[Sampled, ...]:
    """See verify.judge."""
    right = 0
    while right < len(drafts) and tokens[right] == drafts[right]:
        right += 1
    return tuple(Sampled(token) for token in tokens[: right + 1])
