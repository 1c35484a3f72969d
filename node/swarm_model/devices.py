"""The device that a span is meant for: what it has free, and that it is the one meant where several are there.

Called before loading, by the node and by span.py.
"""

import psutil
import torch

from swarm_model.memory_limits import free_in_group_bytes


def available_bytes(device: torch.device) -> int:
    """Return what is free on a device now; of this machine's memory, what this process may take of it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, allowed = int(psutil.virtual_memory().available), free_in_group_bytes()
    return free if allowed is None else min(free, allowed)


def make_current(device: torch.device) -> None:
    """Have this thread's kernels and recordings go to a device, where one of several was asked for."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
