import contextlib
import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_client.chat_template import ChatTemplate, find_template, special_tokens
from swarm_client.errors import BadChat

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>hi</b>"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, lambda: datetime(2026, 7, 1))


def test_renders_as_transformers_does() -> None:
    source = """{{ bos_token }}{% for message in messages %}
    {%- if message['role'] == 'system' %}[{{ message.content | trim }}]
    {%- else %}{% generation %}<{{ message.role }}>{{ message['content'] }}{{ eos_token }}{% endgeneration %}
    {%- endif %}{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""
    assert template(source).render(MESSAGES) == "<s>[Be brief.]<user><b>hi</b></s><assistant>"


def test_the_functions_of_templates() -> None:
    assert template("{{ strftime_now('%d %b %Y') }}").render(MESSAGES) == "01 Jul 2026"
    assert template("{{ messages[1].content | tojson }}").render(MESSAGES) == '"<b>hi</b>"'
    assert (
        template("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}").render(MESSAGES)
        == "x"
    )
    assert template("{% set ns = namespace(n=0) %}{% set ns.n = 2 %}{{ ns.n }}").render(MESSAGES) == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(100000000) %}x{% endfor %}",
        "{% include 'x' %}",
    ],
)
def test_what_a_template_may_not_do_is_a_typed_error(source: str) -> None:
    with pytest.raises(BadChat):
        template(source).render(MESSAGES)


def test_a_broken_template() -> None:
    with pytest.raises(BadChat):
        template("{% for %}")


@pytest.mark.parametrize("message", [{}, {"role": "user"}, {"content": "x"}, {"role": 1, "content": "x"}])
def test_messages_need_role_and_content(message: dict[str, object]) -> None:
    with pytest.raises(BadChat):
        template("x").render([message])


def test_where_templates_are_found() -> None:
    config = json.dumps({"chat_template": "C"}).encode()
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert find_template({"chat_template.jinja": b"J", "tokenizer_config.json": config}) == "J"
    assert find_template({"tokenizer_config.json": config}) == "C"
    assert find_template({"tokenizer_config.json": json.dumps({"chat_template": several}).encode()}) == "D"
    assert find_template({"tokenizer_config.json": b"{broken"}) is None
    assert find_template({}) is None


def test_special_tokens_of_both_forms() -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    assert special_tokens({"tokenizer_config.json": json.dumps(config).encode()}) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
    }


@given(st.text(alphabet="{}%# abm'.[]|()+-", max_size=40))
def test_any_source_renders_or_is_a_typed_error(source: str) -> None:
    with contextlib.suppress(BadChat):
        template(source).render(MESSAGES)
