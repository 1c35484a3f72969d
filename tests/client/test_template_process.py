"""A chat template in a process of its own: the same texts, and an end to whatever does not end."""

import contextlib
import threading

import psutil
import pytest

from swarm_client.errors import BadChat
from swarm_client.template_process import TemplateProcess

MESSAGES = [{"role": "user", "content": "hi ☃"}, {"role": "assistant", "content": "<b>\n</b>"}]
SOURCE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
TEXT = "<s>[user: hi ☃][assistant: <b>\n</b>]"
ROUNDS = "".join("{% for " + name + " in range(99999) %}" for name in "abcd") + "{% endfor %}" * 4


def template(source: str) -> TemplateProcess:
    return TemplateProcess(source, {"bos_token": "<s>"})


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_it_renders_what_the_template_says_again_and_again() -> None:
    process, before = template(SOURCE), children()
    assert [process.render(MESSAGES) for _ in range(3)] == [TEXT] * 3
    assert len(children() - before) == 1
    with pytest.raises(BadChat, match="without role"):
        process.render([{"content": "x"}])
    large = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(process.render(large)) > 3_000_000
    process.close()
    assert not children() - before
    assert process.render(MESSAGES) == TEXT, "it can be used again"
    process.close()


def test_chats_from_several_threads_do_not_mix() -> None:
    process = template("{{ messages[0].content }}")
    texts: dict[int, str] = {}

    def render(number: int) -> None:
        texts[number] = process.render([{"role": "user", "content": str(number)}])

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: str(number) for number in range(8)}
    process.close()


def test_a_refusal_says_why_and_ends_nothing() -> None:
    source = "{% if messages | length > 2 %}{{ raise_exception('two at most') }}{% endif %}" + SOURCE
    process = template(source)
    with pytest.raises(BadChat, match="two at most"):
        process.render([*MESSAGES, MESSAGES[0]])
    assert process.render(MESSAGES) == TEXT
    process.close()
    with pytest.raises(BadChat):
        template("{% for %}")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (ROUNDS, "does not end"),
        ("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", None),
        ("{{ 'x' * 100000000000 }}", None),
        ("{{ messages | tojson(indent=2000000000) }}", None),
    ],
)
def test_what_takes_for_ever_or_all_memory_is_ended(harm: str, says: str) -> None:
    before = children()
    process = template("{% if messages | length == 1 %}" + harm + "{% endif %}" + SOURCE)
    assert process.render(MESSAGES) == TEXT
    with pytest.raises(BadChat, match=says):
        process.render(MESSAGES[:1])
    with contextlib.suppress(BadChat):
        assert process.render(MESSAGES) == TEXT
    process.close()
    assert not children() - before
