"""Which earlier tokens a block attends to, read off the mask that its own modelling code asks for.

transformers describes masks as functions of (row, column). `MaskRule.of` finds out which of the rules that the paged
attention knows such a function follows, up to the longest session; `MaskProbe` asks every block of a span. So the
attention needs to know no family: what a mask says holds, and a mask that follows no known rule is refused. Called by
load_checks.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm_model.attention import Attending, StepCache
from swarm_model.kv_pool import KVShape

MASK_PROBE: Final = "swarm_mask_probe"
MaskFunction = Callable[..., torch.Tensor]  # (batch, head, row, column) -> may this row attend to this column

_UNKNOWN: Final = object()  # stands for a mask that follows no rule of ours


@dataclass(frozen=True, slots=True)
class MaskRule:
    """A causal mask; `window` counts the tokens that are seen, the token itself included, 0 means all.

    With `chunk`, tokens see their own chunk of so many tokens alone.
    """

    window: int = 0
    chunk: int = 0

    @property
    def ndim(self) -> int:
        """For modelling code that looks for masks with a dimension for heads to add biases to: ours has none."""
        return 2

    @classmethod
    def of(cls, mask: MaskFunction, longest: int) -> "MaskRule | None":
        """Name the rule that a mask follows in a session of `longest` tokens; None if it is none of ours."""
        start = _first_seen(mask, longest - 1)
        if start is None:
            return None
        rows = {longest - 1, longest - 2, start, start - 1, start - 2, longest // 2, longest // 3, 1, 0}
        rules = [cls()] if start == 0 else [cls(window=longest - start)]
        if start > 0 and (before := _first_seen(mask, start - 1)) is not None:
            rules.append(cls(chunk=start - before))
        for rule in rules:
            if all(_first_seen(mask, row) == rule.first_seen(row) for row in rows if 0 <= row < longest):
                return rule
        return None

    def first_seen(self, row: int) -> int:
        """Give the first token that the token at `row` attends to."""
        if self.chunk:
            return row // self.chunk * self.chunk
        return max(0, row - self.window + 1) if self.window else 0


def _first_seen(mask: MaskFunction, row: int) -> int | None:
    """Give the first token that a row sees; None unless it sees all from there to itself, and none behind itself."""
    zero, columns = torch.zeros((), dtype=torch.long), torch.arange(row + 2)
    allowed = torch.as_tensor(mask(zero, zero, torch.tensor(row), columns)).expand(row + 2)
    first = row + 1 - int(allowed.sum())
    expected = (columns >= first) & (columns <= row)
    return first if first <= row and bool((allowed == expected).all()) else None


class MaskProbe(StepCache):
    """Stands in for the cache while a model runs with MASK_PROBE as its attention, and notes how each block attends."""

    def __init__(self, longest: int) -> None:
        """`longest` is the most tokens that a session will hold."""
        self.attending: dict[int, Attending] = {}  # layer index -> how its attention reads the pages
        self.unclear: dict[int, str] = {}  # layer index -> why it cannot
        self.shapes: dict[int, KVShape] = {}  # layer index -> what it keeps of a token
        self._given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._longest = longest
        ALL_ATTENTION_FUNCTIONS.register(MASK_PROBE, self._attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(MASK_PROBE, self._mask)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._given[layer_idx] = keys, values
        self.shapes[layer_idx] = KVShape(keys.shape[1], keys.shape[3], values.shape[3])
        return keys, values

    def _mask(self, *_: Any, mask_function: MaskFunction, **__: Any) -> Any:
        return MaskRule.of(mask_function, self._longest) or _UNKNOWN

    def _attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
    ) -> tuple[torch.Tensor, None]:
        layer, mask = module.layer_idx, attention_mask
        given = self._given.get(layer)
        if mask is _UNKNOWN:
            self.unclear[layer] = "masks tokens in a way that is not known here"
        elif not isinstance(mask, MaskRule):
            self.unclear[layer] = "attends without a causal mask"
        elif given is None:
            self.unclear[layer] = "attends to keys and values that it does not cache itself"
        elif given[0] is key and given[1] is value:
            self.attending[layer] = Attending(mask.window, mask.chunk)
        elif _expands(module, given, (key, value)):
            self.attending[layer] = Attending(mask.window, mask.chunk, latent=True)
            self.shapes[layer] = replace(self.shapes[layer], latent=self.shapes[layer].kv_heads == 1)
        else:
            self.unclear[layer] = "attends to other keys and values than it gives to the cache"
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _expands(
    module: Any, given: tuple[torch.Tensor, torch.Tensor], attended: tuple[torch.Tensor, torch.Tensor]
) -> bool:
    """Whether a block caches a compressed latent (DeepSeek-V2, arXiv 2405.04434) and attends to what it expands to."""
    if not hasattr(module, "expand_kv"):
        return False
    return all(torch.equal(*pair) for pair in zip(module.expand_kv(*given), attended, strict=True))
