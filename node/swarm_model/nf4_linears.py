"""Linear layers in NF4, by the library bitsandbytes: 64 weights share a scale, each is one of 16 values.

The values are the quantiles of a normal distribution (Dettmers et al., 2023, "QLoRA"). The library has kernels for CUDA
and for CPUs with AVX-512 BF16, where this is the quickest format for few sessions; on other CPUs it widens the whole
weight at every call. Called by quantization.py.
"""

import logging
from typing import Any, Final

import torch
from torch import nn

from swarm_model.inference_linears import InferenceLinear

GROUP: Final = 64  # weights that share a scale
OUTPUTS_MULTIPLE: Final = 32  # what the kernel for CPUs takes


class Nf4Linear(InferenceLinear):
    """A linear layer that the library keeps and multiplies."""

    def __init__(self, linear: nn.Linear) -> None:
        """Raises ImportError without bitsandbytes."""
        logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # it misses a download that is not needed
        from bitsandbytes.nn import Linear4bit, Params4bit

        super().__init__(linear)
        weight, dtype = linear.weight.detach(), linear.weight.dtype
        options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": False}
        with torch.inference_mode():
            layer = Linear4bit(
                self.in_features, self.out_features, bias=False, compute_dtype=dtype, device="meta", **options
            )
            layer.weight = Params4bit(weight, requires_grad=False, blocksize=GROUP, **options).to(weight.device)
            scales = layer.weight.quant_state.absmax
            scales.copy_(scales.bfloat16())  # which that kernel does: so all devices compute with the same weights
            if dtype != torch.bfloat16:
                layer.support_avx512bf16_for_cpu = False  # it rounds what it is given to bfloat16
            self.layer = layer.eval()
            self.layer(weight.new_zeros(1, self.in_features))  # brings the weight into the form of the kernel
        state = layer.weight.quant_state
        self.quick = weight.device.type != "cpu" or getattr(state, "packing_format_for_cpu", False)
        self.packed = state.absmax  # the library's parameter is counted with the others

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        outputs: torch.Tensor = self.layer(inputs)
        return outputs if self.bias is None else outputs.add_(self.bias)


def takes(linear: nn.Linear) -> bool:
    """Whether a layer's sizes fit."""
    return linear.in_features % GROUP == linear.out_features % OUTPUTS_MULTIPLE == 0
