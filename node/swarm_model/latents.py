"""Attention in the compressed form of a token that some families cache, without turning it into keys and values.

DeepSeek-V2's attention (MLA, arXiv 2405.04434, section 2.1) keeps a latent of each token, from which its block expands
the keys and values of all heads. Expanding is linear: a query times an expanded key is the query, taken through the
expansion backwards, times the latent; and the sum of expanded values is the expanded sum of latents. So a few rows
attend to the latents as if they were the keys and values of one head, and a step no longer expands its whole context.
Owns these two maps, read off the block's own `expand_kv`, so that no family is named. Learned by load_checks.py, which
compares what comes out with the reference; used by attention.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from swarm_model.kv_pool import KVShape

TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of the largest value


@dataclass(frozen=True, slots=True)
class Absorbed:
    """How one block's heads read latents of `rank` numbers and rotated keys of `rope`, cached side by side."""

    to_latents: torch.Tensor  # [heads, query size, rank + rope]
    to_values: torch.Tensor  # [heads, rank, value size]

    def pays(self, rows: int, tokens: int) -> bool:
        """Whether so many rows attend to so many latents with fewer products than it takes to expand these first."""
        query_size, cached = self.to_latents.shape[1:]
        rank, value_size = self.to_values.shape[1:]
        absorbing = rows * (query_size * cached + rank * value_size + tokens * (cached + rank))
        expanding = tokens * rank * (query_size - (cached - rank) + value_size)
        return absorbing < expanding + rows * tokens * (query_size + value_size)

    def query(self, query: torch.Tensor) -> torch.Tensor:
        """Take queries to what is cached: `[1, heads, rows, query size]` to `[1, heads, rows, rank + rope]`."""
        return (query[0] @ self.to_latents)[None]

    def values(self, attended: torch.Tensor) -> torch.Tensor:
        """Expand sums of latents: `[1, heads, rows, rank]` to `[1, heads, rows, value size]`."""
        return (attended[0] @ self.to_values)[None]

    @property
    def size_bytes(self) -> int:
        return self.to_latents.nbytes + self.to_values.nbytes


def absorb_all(
    modules: Iterable[nn.Module], shapes: dict[int, KVShape], dtype: torch.dtype, device: torch.device
) -> dict[int, Absorbed]:
    """Learn the maps of all attention modules that cache latents, by their layer's index."""
    found = {}
    for module in modules:
        layer: Any = getattr(module, "layer_idx", None)
        if hasattr(module, "expand_kv") and layer in shapes and shapes[layer].latent:
            absorbed = _absorb(module, shapes[layer], dtype, device)
            if absorbed is not None:
                found[layer] = absorbed
    return found


def _absorb(module: Any, shape: KVShape, dtype: torch.dtype, device: torch.device) -> Absorbed | None:
    """Read the maps off what the block expands unit vectors to; None if its expansion is not linear."""
    rank, rope = shape.key_size, shape.value_size

    def expand(latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = module.expand_kv(latents[None, None], rotated[None, None])
        return keys[0], values[0]  # [heads, tokens, size]

    units = torch.eye(rank + rope, dtype=dtype, device=device)
    keys, values = expand(units[:, :rank], units[:, rank:])
    absorbed = Absorbed(
        to_latents=keys.transpose(1, 2).contiguous(),
        to_values=values[:, :rank].contiguous(),
    )
    generator = torch.Generator().manual_seed(1)
    tried = torch.randn(4, rank + rope, generator=generator).to(device, dtype)
    expected = expand(tried[:, :rank], tried[:, rank:])
    ours = (tried @ keys, tried[:, :rank] @ absorbed.to_values)
    for wanted, given in zip(expected, ours, strict=True):
        if not float((wanted - given).abs().max()) <= TOLERANCE[dtype] * float(wanted.abs().max()):
            return None
    return absorbed
