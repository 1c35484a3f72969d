"""Where the demo checkpoints lie, so that an installed wheel can run a real swarm without a download.

Owns the two paths. `train.py` made what lies there; `swarm-sim local`, tests and benchmarks read it. Importing this
package imports neither torch nor transformers.
"""

from importlib.resources import files
from pathlib import Path


def demo_model_path() -> Path:
    """Return the directory of the demo model: a Llama of 12 blocks and 9 M parameters that writes plays."""
    return _checkpoint("llama")


def draft_model_path() -> Path:
    """Return the directory of its draft model: 2 blocks and 1 M parameters, with the same tokenizer."""
    return _checkpoint("draft")


def _checkpoint(name: str) -> Path:
    return Path(str(files(__name__).joinpath(name)))
