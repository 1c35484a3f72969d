from hypothesis import given
from hypothesis import strategies as st

from swarm_client.stops import StopFinder

SHORT = st.text("ab\n", max_size=4)


def first_stop(text: str, stops: tuple[str, ...]) -> int:
    """Where the first stop string begins, taking the one that is complete first; -1 if none is there."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return -1


@given(st.lists(SHORT, max_size=12), st.lists(SHORT.filter(bool), max_size=3, unique=True))
def test_shows_exactly_what_stands_before_the_first_stop(parts: list[str], stops: list[str]) -> None:
    finder = StopFinder(tuple(stops))
    shown = "".join(finder.push(part) for part in parts)
    text = "".join(parts)
    if finder.found:
        assert any(stop in text for stop in stops)
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
        assert finder.flush() == ""
    else:
        assert first_stop(text, tuple(stops)) == -1
        held = finder.flush()
        assert shown + held == text
        assert all(len(held) < len(stop) for stop in stops) or any(stop.startswith(held) for stop in stops)


@given(st.text("ab\n", max_size=30), st.lists(SHORT.filter(bool), min_size=1, max_size=3, unique=True))
def test_one_character_at_a_time_stops_at_the_first_complete_stop(text: str, stops: list[str]) -> None:
    finder = StopFinder(tuple(stops))
    shown = "".join(finder.push(character) for character in text)
    start = first_stop(text, tuple(stops))
    assert finder.found == (start >= 0)
    assert (shown if finder.found else shown + finder.flush()) == (text[:start] if start >= 0 else text)


def test_a_stop_across_tokens() -> None:
    finder = StopFinder(("\n\nROMEO",))
    assert [finder.push(piece) for piece in ("light\n", "\nJU", "x\n\nRO", "MEO: more")] == ["light", "\n\nJU", "x", ""]
    assert finder.found
    assert finder.push("more") == ""
