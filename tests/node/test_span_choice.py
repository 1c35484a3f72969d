"""How much memory a node gives to sessions, before and after it knows its blocks."""

import torch

from swarm_node.span_choice import KV_BYTES, Hardware

GIB = 1 << 30


def hardware(device: str, free_gib: int) -> Hardware:
    return Hardware(torch.device(device), device, torch.bfloat16, 1, free_gib * GIB, expands=False)


def test_sessions_are_given_what_is_asked_for() -> None:
    for device in ("cpu", "cuda"):
        assert hardware(device, 10).kv_bytes(3 * GIB) == hardware(device, 10).kv_bytes(3 * GIB, 5 * GIB) == 3 * GIB


def test_a_processor_shares_its_memory_with_others() -> None:
    assert hardware("cpu", 100).kv_bytes("auto") == hardware("cpu", 100).kv_bytes("auto", 10 * GIB) == KV_BYTES


def test_a_gpu_gives_sessions_what_weights_leave() -> None:
    card = hardware("cuda", 64)
    assert card.kv_bytes("auto") == 16 * GIB
    assert card.kv_bytes("auto", 40 * GIB) == 24 * GIB
    assert card.kv_bytes("auto", 64 * GIB) == KV_BYTES  # too much: refused before loading, with the numbers
