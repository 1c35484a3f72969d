"""Answers under a schema, an expression or a grammar, from a random model: only the mask can make them right."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm_client import Draft, Drafter
from swarm_client.draft_policy import DraftPolicy
from swarm_client.errors import InvalidParameter, NotOffered
from swarm_client.model import AsyncRemoteModel
from swarm_client.results import Generation
from swarm_net.session_errors import GrammarRefused
from swarm_node.grammars import GrammarProcesses
from tests.client import tiny_tokenizers
from tests.client.test_draft_generation import AsOften
from tests.e2e.in_process import InProcessSwarm, in_process_swarm
from tests.node.swarm import settled

pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")
pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCKS = 3
EOS = 1  # <|end|>
VOCABULARY = tiny_tokenizers.vocabulary(tiny_tokenizers.byte_level()) + 13
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}
EXPRESSION = r"[0-9]{3}-(foo|bar){1,4}\."
LIST = 'root ::= "[" item ("," item)? "]"\nitem ::= [a-c] [a-c] [a-c]'


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer, its vocabulary padded beyond the tokenizer's."""
    directory = tmp_path_factory.mktemp("structured") / "speaker"
    tokenizer = tiny_tokenizers.byte_level()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(tokenizer)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grammars(speaker: Path) -> AsyncIterator[GrammarProcesses]:
    """One compiler for all nodes: its process takes seconds to start."""
    async with GrammarProcesses(speaker / "tokenizer.json", VOCABULARY, (EOS,)) as compiler:
        yield compiler


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def swarm(speaker: Path, grammars: GrammarProcesses) -> AsyncIterator[InProcessSwarm]:
    async with in_process_swarm(speaker, (0, 2), (2, 3), grammars=grammars) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(swarm: InProcessSwarm, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncRemoteModel]:
    async with swarm.client(tmp_path_factory.mktemp("cache")) as connected:
        yield connected


def check_schema(generation: Generation) -> None:
    assert generation.finish_reason == "eos", generation.text
    value = json.loads(generation.text)
    assert list(value) == ["name", "kind", "tags"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert value["kind"] in ("cat", "dog")
    assert 1 <= len(value["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in value["tags"])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
async def test_every_answer_is_json_under_the_schema(model: AsyncRemoteModel, temperature: float) -> None:
    several = await model.samples("Once", 8, json_schema=SCHEMA, temperature=temperature, max_new_tokens=200, seed=5)
    for generation in several:
        check_schema(generation)
    assert len({generation.text for generation in several}) == (8 if temperature else 1)


async def test_samples_under_a_schema_share_their_prompt(model: AsyncRemoteModel) -> None:
    prompt, asked = [place % 90 + 5 for place in range(150)], {"json_schema": SCHEMA, "max_new_tokens": 200}
    several = await model.samples(prompt, 4, temperature=1.0, seed=5, **asked)
    alone = [await model.generate(prompt, temperature=1.0, seed=5 + number, **asked) for number in range(4)]
    for generation in several:
        check_schema(generation)
    assert [generation.usage.cached_tokens for generation in several] == [0, 128, 128, 128]
    assert [generation.token_ids for generation in several] == [generation.token_ids for generation in alone]


async def test_an_expression_and_a_grammar(model: AsyncRemoteModel) -> None:
    for seed in range(4):
        asked = {"temperature": 1.5, "seed": seed, "max_new_tokens": 100}
        by_expression = await model.generate("Once", regex=EXPRESSION, **asked)
        assert re.fullmatch(EXPRESSION, by_expression.text)
        by_grammar = await model.generate([5, 6, 7], grammar=LIST, **asked)
        assert re.fullmatch(r"\[[a-c]{3}(,[a-c]{3})?\]", by_grammar.text)


async def test_among_other_sessions_nothing_changes(model: AsyncRemoteModel) -> None:
    asked = {"temperature": 1.0, "seed": 11, "max_new_tokens": 120}
    prompts = ["Once", [5, 6, 7], "ROMEO", [9] * 40]
    alone = [await model.generate(prompt, json_schema=SCHEMA, **asked) for prompt in prompts]
    free = await model.generate("Once", **asked)
    together = await asyncio.gather(
        model.generate(prompts, json_schema=SCHEMA, **asked),
        model.generate("Once", regex=EXPRESSION, **asked),
        model.generate("Once", **asked),
    )
    assert [generation.token_ids for generation in together[0]] == [generation.token_ids for generation in alone]
    assert re.fullmatch(EXPRESSION, together[1].text)
    assert together[2].token_ids == free.token_ids


class Guessing(Drafter):
    """Guesses what the answer is known to be, but at every so manyth place another token, most of them not allowed."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], wrong_every: int) -> None:
        self._prompt, self._answer, self._wrong_every = len(prompt), answer, wrong_every

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        done = len(ids) - self._prompt
        guesses = [*self._answer[done:], EOS, EOS, 7][: min(max_tokens, 9)]
        for place in range(len(guesses)):
            if (done + place + 1) % self._wrong_every == 0:
                guesses[place] = (guesses[place] * 7 + 3) % VOCABULARY
        return Draft(guesses)

    def policy(self) -> DraftPolicy:
        return AsOften(9)


@pytest.mark.parametrize("wrong_every", [1, 3, 1000])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 2.0, "top_p": 0.9, "frequency_penalty": 1.0, "logit_bias": {40: 3.0}, "logprobs": 2, "seed": 4},
    ],
    ids=["greedy", "sampled", "everything"],
)
async def test_guesses_under_a_grammar_change_nothing(
    model: AsyncRemoteModel, sampling: dict[str, Any], wrong_every: int
) -> None:
    asked = {"max_new_tokens": 120, **sampling}
    prompts = [[5, 6, 7], [9] * 40]
    grammars: list[dict[str, Any]] = [{"json_schema": SCHEMA}, {"regex": EXPRESSION}, {"grammar": LIST}]
    pairs = [(prompt, {**asked, **grammar}) for prompt in prompts for grammar in grammars]
    wanted = await asyncio.gather(*(model.generate(prompt, **one) for prompt, one in pairs))
    found = await asyncio.gather(
        *(
            model.generate(prompt, draft=Guessing(prompt, alone.token_ids, wrong_every), **one)
            for (prompt, one), alone in zip(pairs, wanted, strict=True)
        )
    )
    for alone, drafted in zip(wanted, found, strict=True):
        assert drafted.token_ids == alone.token_ids
        assert drafted.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert drafted.finish_reason == alone.finish_reason == "eos"
        assert drafted.drafts is not None
        assert drafted.drafts.sent > 0
        assert (drafted.drafts.accepted > 0) == (wrong_every > 1)


@pytest.mark.parametrize("drafts", [False, True])
async def test_after_a_failover_the_answer_is_the_same(
    speaker: Path, grammars: GrammarProcesses, tmp_path: Path, drafts: bool
) -> None:
    prompt = [5, 6, 7]
    asked: dict[str, Any] = {"json_schema": SCHEMA, "temperature": 1.0, "seed": 7, "max_new_tokens": 200}
    async with (
        in_process_swarm(speaker, (0, 2), (2, 3), (2, 3), grammars=grammars) as swarm,
        swarm.client(tmp_path) as model,
    ):
        undisturbed = await model.generate(prompt, **asked)
        tokens = []
        draft = Guessing(prompt, undisturbed.token_ids, 3) if drafts else None
        async with model.stream(prompt, draft=draft, **asked) as stream:
            async for token in stream:
                tokens.append(token.id)
                if len(tokens) == 4:
                    (last,) = [number for number in (1, 2) if swarm.nodes[number].load().sessions]
                    swarm.drop(last)
        assert stream.generation is not None
        assert len(stream.generation.retries) == 1
        check_schema(stream.generation)
        assert tokens == undisturbed.token_ids


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"regex": "([0-9"}, "Unclosed"),
        ({"json_schema": {"type": "nonsense"}}, "Unsupported type"),
        ({"grammar": "root ::= missing"}, "not defined"),
        ({"grammar": "root ::= " + "(" * 7000 + '"a"' + ")" * 7000}, "limit"),
    ],
)
async def test_an_invalid_grammar_is_refused_with_its_fault(
    model: AsyncRemoteModel, swarm: InProcessSwarm, asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(GrammarRefused, match=reason) as refused:
        await model.generate("Once", **asked)
    assert "/" not in refused.value.reason
    assert refused.value.remedy()
    assert (await model.generate("Once", regex="ab", max_new_tokens=9)).text == "ab"
    await settled(lambda: not any(node.table.sessions for node in swarm.nodes))


@pytest.mark.parametrize(
    "asked",
    [
        {"json_schema": "{"},
        {"json_schema": "[]"},
        {"json_schema": {"x": object()}},
        {"regex": ""},
        {"regex": "a" * 20_000},
        {"regex": "a", "grammar": LIST},
    ],
)
async def test_what_cannot_be_a_grammar_is_refused_at_the_client(
    model: AsyncRemoteModel, asked: dict[str, Any]
) -> None:
    with pytest.raises(InvalidParameter):
        await model.generate("Once", **asked)


async def test_only_a_last_hop_that_takes_grammars_is_chosen(
    speaker: Path, grammars: GrammarProcesses, tmp_path: Path
) -> None:
    async with in_process_swarm(speaker, grammars=grammars) as swarm:
        await swarm.start(0, 3, takes_grammar=False)
        async with swarm.client(tmp_path) as model:
            with pytest.raises(NotOffered, match="structured output") as refused:
                await model.generate("Once", regex="a")
            assert "swarm-inference[node,structured]" in refused.value.remedy()
        await swarm.start(2, 3)
        async with swarm.client(tmp_path) as model:
            generation = await model.generate("Once", regex="ab", max_new_tokens=5)
    assert generation.text == "ab"
    assert [(hop.peer, hop.start, hop.end) for hop in generation.route] == [
        (swarm.peers[0], 0, 2),
        (swarm.peers[1], 2, 3),
    ]
