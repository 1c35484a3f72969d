"""What crosses between host and device: through pinned memory, so that neither side waits for a copy to be staged.

Called by span.py. On a CPU nothing is copied.
"""

import torch


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Bring a host tensor over, in `dtype`; the host goes on at once."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from torch's cache of such memory, which knows when it is free again
    return tensor.to(device, dtype, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to the host and wait for it."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned


def likeliest(logits: torch.Tensor) -> list[int]:
    """Choose each row's greatest value where the rows are, of equal ones the first; -1 where a row is not finite.

    `logits` is `[rows, vocabulary]`. What comes to the host is a number a row, not a vocabulary.
    """
    vocabulary = logits.shape[1]
    best = logits.amax(dim=1, keepdim=True)
    places = torch.arange(vocabulary, device=logits.device)
    first = torch.where(logits == best, places, vocabulary).amin(dim=1)
    chosen = torch.where(torch.isfinite(best[:, 0]), first, -1)
    tokens: list[int] = to_host(chosen).tolist()
    return tokens
