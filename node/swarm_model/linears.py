"""Linear layers with weights packed once, for CPUs: oneDNN's own layout instead of a conversion at every call.

Measured (benchmarks/span.py): 1.8 to 2.3 times as fast as torch's plain linear in float32 on CPUs without Intel's MKL
kernels, 1.7 to 2.2 times in bfloat16 for decoding. Plain linears stay wherever packing is not possible or not exact.
Called by loading.py.
"""

from collections.abc import Collection, Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from swarm_model.experts import replace_experts
from swarm_model.inference_linears import InferenceLinear
from swarm_model.siblings import replace_linears

LAYOUT_ROWS: Final = 64  # of the batch that oneDNN's layout is chosen for: as quick for 1 row as one made for 1, or 256
TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest output


class PackedLinear(InferenceLinear):
    """Computes what `nn.Linear` does, on CPU; gives up the plain weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), LAYOUT_ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return output


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Try on a small layer whether this machine packs linears of a dtype, and computes what torch computes."""
    if device.type != "cpu" or dtype not in TOLERANCE or not torch._C._has_mkldnn:
        return False
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 96, dtype=dtype)
    with torch.inference_mode():
        linear.weight.copy_(torch.randn(96, 64, generator=generator))
        inputs = torch.randn(3, 64, generator=generator).to(dtype)
        try:
            packed = PackedLinear(linear)(inputs)
        except (RuntimeError, AttributeError, NotImplementedError):
            return False  # an older CPU, or a torch without these operators
        plain = F.linear(inputs, linear.weight, linear.bias)
        return bool((packed - plain).abs().max() <= TOLERANCE[dtype] * plain.abs().max())


def pack_linears(model: nn.Module, siblings: Sequence[Sequence[str]], keep: Collection[nn.Module] = ()) -> None:
    """Replace every plain `nn.Linear` of a model but those to `keep`, and the matrices of experts.

    Siblings share one product, which saves a call for each of them.
    """
    # By name: a list of the modules themselves would keep every plain weight until the last one is packed.
    plain = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not module.weight.is_meta and module not in keep
    ]
    replace_linears(model, plain, siblings, PackedLinear)
    replace_experts(model, "", lambda _: True, PackedLinear)
