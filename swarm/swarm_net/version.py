"""Which release this is: for `--version` of the programs and for the records of nodes."""

import importlib.metadata

PACKAGE = "swarm-inference"


def release() -> str:
    """Return the version installed."""
    return importlib.metadata.version(PACKAGE)
