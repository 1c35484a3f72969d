"""What the device that a span is meant for has free. Called before loading, by the node and by span.py."""

import psutil
import torch


def available_bytes(device: torch.device) -> int:
    """Return what is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
