"""Stop strings in a text that arrives in pieces; pure.

Owns what may be shown already: a tail that could be the beginning of a stop string is held back until it is decided.
Called by `continuation.py`, once a token.
"""


class StopFinder:
    """Lets text through up to the first stop string.

    Invariant: what was let through, and what is held back behind it, is all text so far; nothing let through belongs to
    a stop string, nor ever will.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._prefixes = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Return what may be shown now; after a stop string was found, nothing."""
        if not self._stops:
            return piece
        if self.found or not piece:
            return ""
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found = True
            self._held = ""
            return text[: min(starts)]
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._prefixes:
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text

    def flush(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held
