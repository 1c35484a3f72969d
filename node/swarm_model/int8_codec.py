"""Activations as int8 with one float16 scale for each 64 values: the codec `int8`, half of bfloat16's bytes, with loss.

Owns its layout, the same for every hop: a token takes `ceil(hidden / 64)` scales, float16 little-endian, and then
`hidden` signed bytes; tokens follow one another, so that any run of them can be cut out. A value is its byte times the
scale of its group, off by at most half a scale, which is 1/254 of the group's largest magnitude or a rounding more.
The last group may be shorter. Each token stands for itself: chunking a prompt in other ways changes no byte.
Called by the node's executor, in its compute thread, on whatever device the activations are.
"""

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)

from swarm_model.errors import InvalidActivations

GROUP: Final = 64
_STEPS: Final = 127  # of a scale, to either side of zero
_SCALE_BYTES: Final = 2


def token_bytes(hidden: int) -> int:
    """Return the size of one token's activations."""
    return _SCALE_BYTES * _groups(hidden) + hidden


def encode(activations: torch.Tensor) -> torch.Tensor:
    """Return `[tokens, token_bytes(hidden)]` uint8 for finite activations `[tokens, hidden]` of any float type.

    Raises InvalidActivations for what is not finite or beyond 127 times the greatest float16.
    """
    tokens, hidden = activations.shape
    groups = _groups(hidden)
    values = F.pad(activations.float(), (0, groups * GROUP - hidden)).view(tokens, groups, GROUP)
    peaks = values.abs().amax(dim=2)  # [tokens, groups]
    scales = (peaks / _STEPS).half()
    if not bool(scales.isfinite().all()):
        raise InvalidActivations("activations that are not finite, or too large for the codec int8")
    # Among float16's smallest numbers rounding down would cut peaks off: the next larger one holds them.
    short = scales.float() * (_STEPS + 0.5) < peaks
    scales = torch.where(short, (scales.view(torch.int16) + 1).view(torch.float16), scales)
    inverse = torch.where(scales > 0, scales.float().reciprocal(), 0.0)
    steps = (values * inverse.unsqueeze(2)).round_().clamp_(-_STEPS, _STEPS).to(torch.int8)
    steps = steps.view(tokens, groups * GROUP)[:, :hidden]
    return torch.cat([scales.view(torch.uint8), steps.view(torch.uint8)], dim=1)


def decode(data: torch.Tensor, tokens: int, hidden: int) -> torch.Tensor:
    """Return float32 activations `[tokens, hidden]` for the uint8 bytes of so many tokens.

    Raises InvalidActivations for a wrong number of bytes and for scales that are not finite or below zero.
    """
    if tokens < 1 or data.numel() != tokens * token_bytes(hidden):
        raise InvalidActivations(f"{data.numel()} bytes for {tokens} tokens of {token_bytes(hidden)} bytes")
    groups = _groups(hidden)
    rows = data.view(tokens, token_bytes(hidden))
    # A copy: the bytes may begin anywhere, numbers of two bytes may not.
    scales = rows[:, : groups * _SCALE_BYTES].flatten().clone().view(torch.float16).view(tokens, groups).float()
    if not bool(((scales >= 0) & (scales < torch.inf)).all()):
        raise InvalidActivations("scales of the codec int8 that are not finite, or below zero")
    steps = rows[:, groups * _SCALE_BYTES :].view(torch.int8)
    steps = F.pad(steps, (0, groups * GROUP - hidden)).view(tokens, groups, GROUP)
    return (steps * scales.unsqueeze(2)).view(tokens, groups * GROUP)[:, :hidden]


def _groups(hidden: int) -> int:
    return -(-hidden // GROUP)
