from typing import Any

import pytest

from swarm_client.errors import EmptyPrompt, InvalidParameter
from swarm_client.prompts import ChatPrompt, IdsPrompt, TextPrompt, read_prompt, read_prompts

HELLO = {"role": "user", "content": "hello"}


def test_one_prompt_of_each_kind() -> None:
    assert read_prompts("ROMEO:") == TextPrompt("ROMEO:")
    assert read_prompts([1, 2, 3]) == IdsPrompt((1, 2, 3))
    assert read_prompts((1,)) == IdsPrompt((1,))
    assert read_prompts([HELLO]) == ChatPrompt((HELLO,))


def test_several_prompts() -> None:
    assert read_prompts(["a", "b"]) == [TextPrompt("a"), TextPrompt("b")]
    assert read_prompts([[1], [2, 3]]) == [IdsPrompt((1,)), IdsPrompt((2, 3))]
    assert read_prompts([[HELLO], [HELLO, HELLO]]) == [ChatPrompt((HELLO,)), ChatPrompt((HELLO, HELLO))]
    assert read_prompts(["a", [1], [HELLO]]) == [TextPrompt("a"), IdsPrompt((1,)), ChatPrompt((HELLO,))]


@pytest.mark.parametrize("prompt", ["", [], (), [""], ["a", ""], [[1], []]])
def test_nothing_to_continue(prompt: Any) -> None:
    with pytest.raises(EmptyPrompt):
        read_prompts(prompt)


@pytest.mark.parametrize("prompt", [None, 5, 1.5, b"abc", [1, "a"], [1, None], [True], [1.0], [HELLO, 1], ["a", 1], {}])
def test_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(InvalidParameter):
        read_prompts(prompt)


def test_a_stream_takes_one() -> None:
    with pytest.raises(InvalidParameter):
        read_prompt(["a", "b"])  # type: ignore[list-item]
