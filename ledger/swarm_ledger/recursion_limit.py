"""Keeps Python's limit of recursion while Ethereum's libraries are imported.

py_ecc and py-evm, which they bring, raise it a hundredfold: whatever recurses for ever after that (a stranger's chat
template, for one) would end the process and not the call. Nothing here recurses so deeply on purpose.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_recursion_limit() -> Iterator[None]:
    """Import inside; the limit is then what it was."""
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
