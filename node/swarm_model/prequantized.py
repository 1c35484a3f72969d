"""Checkpoints that are quantized already: which scheme, whether it can be loaded here, and in what form.

transformers' quantizers do the work, for a span as for a whole model. Schemes whose kernels this device lacks are
expanded to the computing dtype while they are read, where the library offers that; the others compute in their own
format, or are refused with the package or device that is missing. Owns no weights. Called by skeleton.py, and before
loading by the node and span.py, to size a span.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import QuantizationUnavailable

PACKAGES: Final = {  # that transformers wants for a scheme
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "fp8": ("accelerate",),
    "mxfp8": ("accelerate",),
    "mxfp4": (),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("accelerate", "gptqmodel"),
}
EXPANDABLE: Final = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
NATIVE_ON_CUDA: Final = ("fp8", "mxfp8", "mxfp4")
SKIPPED: Final = {"bitsandbytes": "llm_int8_skip_modules"}  # else modules_to_not_convert


@dataclass(frozen=True)
class Plan:
    """How a quantized checkpoint is loaded."""

    scheme: str  # such as "bitsandbytes-nf4"
    method: str  # as transformers names it
    config: dict[str, Any]  # what transformers is to take for the checkpoint's quantization_config
    expanded: bool  # to the computing dtype

    @property
    def label(self) -> str:
        """What the numeric class says of it."""
        return f"{self.scheme}-expanded" if self.expanded else self.scheme

    def without(self, modules: list[str]) -> "Plan":
        """Name the modules that are not quantized, so that a span does not have to guess them from what it has."""
        config = {**self.config, SKIPPED.get(self.method, "modules_to_not_convert"): sorted(modules)}
        return Plan(self.scheme, self.method, config, self.expanded)


def plan_of(checkpoint: Checkpoint, device: torch.device) -> Plan | None:
    """Say how a checkpoint is to be loaded on a device; None if it is not quantized. Raises QuantizationUnavailable."""
    stored = checkpoint.quantization
    if stored is None:
        return None
    method = str(stored.get("quant_method") or "bitsandbytes")
    scheme = method
    if method == "bitsandbytes":
        four_bits = bool(stored.get("load_in_4bit"))
        scheme = f"bitsandbytes-{stored.get('bnb_4bit_quant_type', 'fp4') if four_bits else 'int8'}"
    if method not in PACKAGES:
        raise QuantizationUnavailable(scheme, "this scheme was never tried with spans", ())
    missing = [name for name in PACKAGES[method] if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise QuantizationUnavailable(scheme, f"{' and '.join(missing)} not installed", PACKAGES[method])
    config = dict(stored)
    if method in EXPANDABLE and not (device.type == "cuda" and method in NATIVE_ON_CUDA):
        config["dequantize"] = True
    quantizer = quantizer_of(Plan(scheme, method, config, expanded=False), device)
    return Plan(scheme, method, config, bool(getattr(quantizer.quantization_config, "dequantize", False)))


def quantizer_of(plan: Plan, device: torch.device) -> Any:
    """Make the library's quantizer of a plan. Raises QuantizationUnavailable if it cannot work here."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(dict(plan.config), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except ImportError as error:
        raise QuantizationUnavailable(plan.scheme, _first_line(error), PACKAGES[plan.method]) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise QuantizationUnavailable(plan.scheme, _first_line(error), ()) from error
    return quantizer


def expands(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether quantized weights take their full size once they are loaded. Raises QuantizationUnavailable."""
    plan = plan_of(checkpoint, device)
    return plan is not None and plan.expanded


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
