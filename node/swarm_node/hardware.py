"""What this machine can do for a span: device, number format, threads, memory.

Owns the defaults behind `auto`. Imports torch; used by `program.py` while a node starts.
"""

import os

import psutil
import torch

from swarm_model.devices import available_bytes
from swarm_node.errors import BadSetting

MEMORY_SHARE = 0.8  # of what is free: the rest is for the system and for peaks while loading


def choose_device(setting: str) -> torch.device:
    """Return the device meant; raises BadSetting for one that is not there."""
    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting("device", setting, "--device", f"this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadSetting("device", setting, "--device", "this machine has no MPS device")
    return device


def device_name(device: torch.device) -> str:
    """Say what the hardware is called, where that is known."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def choose_dtype(setting: str, device: torch.device, checkpoint_dtype: str, *, packed: bool = False) -> torch.dtype:
    """Return the number format: as asked, else a half one wherever the device multiplies it well.

    Weights that stay `packed`, as a quantized checkpoint has them, are computed in the format that they were made for.
    """
    if setting != "auto":
        dtype: torch.dtype = getattr(torch, setting)
        return dtype
    if device.type != "cpu":
        return torch.float16 if checkpoint_dtype == "float16" else torch.bfloat16
    half = checkpoint_dtype in ("bfloat16", "float16")
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_products or (half and packed) else torch.float32


def choose_threads(setting: int, *, other_nodes: int) -> int:
    """Return how many threads compute: as asked, else this node's share of the cores that the process may use.

    Two nodes that both use all cores wait for each other at every operation: far slower than with a core each.
    """
    if setting:
        return setting
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    return max(1, cores // (1 + other_nodes))


def free_memory_bytes(device: torch.device) -> int:
    """Return what a span and its KV may take where the node chooses them."""
    return int(available_bytes(device) * MEMORY_SHARE)
