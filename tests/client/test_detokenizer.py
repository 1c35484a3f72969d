import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_client.detokenizer import REPLACEMENT, Detokenizer, NoText, WindowDetokenizer
from swarm_client.tokenizer import Tokenizer
from swarm_net.errors import Malformed
from tests.client import tiny_tokenizers

BYTE_LEVEL = Tokenizer(tiny_tokenizers.byte_level())
BYTE_FALLBACK = Tokenizer(tiny_tokenizers.byte_fallback())


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(st.lists(st.integers(0, BYTE_LEVEL.vocabulary + 5), max_size=80))
def test_byte_level_pieces_are_the_whole_text_for_any_ids(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL.detokenizer(), ids)) == BYTE_LEVEL.decode(ids)


@given(st.text(max_size=60))
def test_byte_level_pieces_never_hold_half_a_character(text: str) -> None:
    shown = pieces(BYTE_LEVEL.detokenizer(), BYTE_LEVEL.encode(text))
    assert "".join(shown) == text
    assert all(REPLACEMENT not in piece for piece in shown) or REPLACEMENT in text


@given(st.lists(st.integers(0, BYTE_LEVEL.vocabulary - 1), max_size=40))
def test_a_window_agrees_with_bytes_where_the_text_is_valid(ids: list[int]) -> None:
    whole = BYTE_LEVEL.decode(ids)
    if REPLACEMENT not in whole:
        assert "".join(pieces(WindowDetokenizer(BYTE_LEVEL.decode), ids)) == whole


@given(st.text(max_size=40))
def test_byte_fallback_pieces_are_the_whole_text(text: str) -> None:
    ids = BYTE_FALLBACK.encode(text)
    whole = BYTE_FALLBACK.decode(ids)
    if REPLACEMENT not in whole:
        assert "".join(pieces(BYTE_FALLBACK.detokenizer(), ids)) == whole


@given(st.lists(st.integers(0, BYTE_FALLBACK.vocabulary - 1), max_size=60))
def test_byte_fallback_of_any_ids_shows_the_same_valid_characters(ids: list[int]) -> None:
    whole = BYTE_FALLBACK.decode(ids)
    shown = "".join(pieces(BYTE_FALLBACK.detokenizer(), ids))
    if REPLACEMENT not in whole:
        assert shown == whole


def test_a_window_stays_small() -> None:
    seen: list[int] = []

    def decode(ids: list[int]) -> str:
        seen.append(len(ids))
        return BYTE_FALLBACK.decode(ids)

    detokenizer = WindowDetokenizer(decode)
    letter, special, half = BYTE_FALLBACK.encode("a")[-1], 1, 3 + 0xE4
    for token in [letter] * 50 + [special] * 50 + [half] * 50 + [letter] * 50:
        detokenizer.push(token)
    assert max(seen) <= 24


def test_leading_spaces_and_specials() -> None:
    ids = BYTE_FALLBACK.encode("the cat")
    assert "".join(pieces(BYTE_FALLBACK.detokenizer(), [1, *ids, 2])) == "the cat"


def test_without_a_tokenizer_there_is_no_text() -> None:
    assert pieces(NoText(), [1, 2, 3]) == ["", "", "", ""]


def test_a_tokenizer_that_is_none_is_refused() -> None:
    for content in (b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}'):
        with pytest.raises(Malformed):
            Tokenizer(content)
