"""How a model's blocks are shared out among the nodes of one machine: a pure decision.

Owns the rule and the guess of what the head weighs; `local.py` asks. A node's time per token is taken as proportional
to the weights that it reads, and the node that ends the model also reads the head.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from swarm_sim.errors import BadOption

_BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def split_evenly(num_blocks: int, nodes: int, head_blocks: float = 0.0) -> tuple[tuple[int, int], ...]:
    """Return one span a node so that the slowest has the least to do; the head counts as so many blocks.

    Raises BadOption if there are more nodes than blocks.
    """
    if not 1 <= nodes <= num_blocks:
        raise BadOption("--nodes", f"{nodes} nodes cannot share {num_blocks} blocks")
    if nodes == 1:
        return ((0, num_blocks),)

    def slowest(last: int) -> float:
        return max(-(-(num_blocks - last) // (nodes - 1)), last + head_blocks)

    last = min(range(1, num_blocks - nodes + 2), key=slowest)
    cuts = [(num_blocks - last) * node // (nodes - 1) for node in range(nodes)]
    return (*pairwise(cuts), (num_blocks - last, num_blocks))


def read_config(model: Path) -> dict[str, Any]:
    """Return a checkpoint's configuration, that of the text model where there are several; raises BadOption."""
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadOption("--model", f"{model} has no configuration that can be read: {error}") from error
    if not isinstance(config, dict):
        raise BadOption("--model", f"{model}/config.json is not an object")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def block_count(config: Mapping[str, Any]) -> int:
    """Return how many blocks a configuration names; raises BadOption."""
    for name in _BLOCK_COUNTS:
        if isinstance(count := config.get(name), int) and count > 0:
            return count
    raise BadOption("--model", "its configuration does not say how many blocks it has")


def head_weight(config: Mapping[str, Any], weight_bytes: int) -> float:
    """Return how many blocks the head weighs as much as, from the size of all weights; 0 if that cannot be told."""
    rows, width = config.get("vocab_size"), config.get("hidden_size")
    if not isinstance(rows, int) or not isinstance(width, int):
        return 0.0
    head = rows * width * _ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    tables = head if config.get("tie_word_embeddings") else 2 * head
    block = (weight_bytes - tables) / block_count(config)
    return head / block if block > 0 else 0.0


def split_checkpoint(model: Path, nodes: int) -> tuple[tuple[int, int], ...]:
    """Return one span a node for the checkpoint in a directory; raises BadOption."""
    config = read_config(model)
    weight_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return split_evenly(block_count(config), nodes, head_weight(config, weight_bytes))
