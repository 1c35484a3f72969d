"""The range of transformers releases whose modelling code we drive, checked before any of it is imported.

Tried: 5.23.0. The loader and the attention interface that spans rest on have the form used here since 5.17.
"""

from importlib.metadata import version
from typing import Final

from swarm_model.errors import WrongTransformers

WANTED: Final = ">=5.17,<6"


def require_transformers() -> None:
    """Raise WrongTransformers unless the installed release is in the range that was tried."""
    found = version("transformers")
    major, minor = (int(part) for part in found.split(".")[:2])
    if not (5, 17) <= (major, minor) < (6, 0):
        raise WrongTransformers(found, WANTED)


require_transformers()
