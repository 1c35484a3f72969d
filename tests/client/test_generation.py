"""Sessions on scripted nodes over memory links: what a caller gets when all goes well."""

import asyncio
import gc
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel
from swarm_client.errors import (
    BadChat,
    BadModelDirectory,
    EmptyPrompt,
    InvalidParameter,
    ModelClosed,
    NoBootstrap,
    NoChatTemplate,
    NoTokenizer,
    PromptTooLong,
    TokenOutsideVocabulary,
)
from swarm_client.tokenizer import Tokenizer
from swarm_net.errors import AmbiguousModel, BadManifest, NoRoute, NoSuchModel, PeerUnreachable
from swarm_net.messages import Cancel, Open, Step
from tests.client import tiny_tokenizers
from tests.client.fake_swarm import (
    EOS,
    MAX_POSITION,
    FakeModel,
    FakeSwarm,
    Script,
    continuation,
    fake_swarm,
    make_model,
    until,
)

TOKENIZER = Tokenizer(tiny_tokenizers.byte_level())
PROMPT = [5, 6, 7]


def connect(swarm: FakeSwarm, tmp_path: Path, name: str = "fake"):  # type: ignore[no-untyped-def]
    return AsyncRemoteModel.connect(name, swarm.bootstrap, cache_dir=tmp_path / "cache", world=swarm.world())


@pytest.mark.parametrize("spans", [[(0, 8)], [(0, 4), (4, 8)], [(0, 3), (3, 5), (5, 8)]])
async def test_generates_over_any_split(model: FakeModel, tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    async with fake_swarm(model, *spans) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=20)
        wanted = continuation(PROMPT, 20, model.vocabulary)
        assert found.token_ids == wanted
        assert found.text == TOKENIZER.decode(wanted)
        assert found.finish_reason == "length"
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 20)
        assert [(hop.start, hop.end) for hop in found.route] == spans
        assert found.seed is None
        assert found.retries == ()
        assert [hop.compute_ms for hop in found.timings.hops] == [3.0, 4.0, 5.0][: len(spans)]
        assert found.timings.time_to_first_token_s >= 0
        assert found.logprobs is None
        for node in swarm.nodes:
            await asyncio.wait_for(node.cancelled.wait(), 5)
            assert node.sessions == {}


async def test_the_steps_of_a_session(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        await remote.generate(PROMPT, max_new_tokens=3)
        heard = swarm.nodes[0].heard
        opening = next(message for message in heard if isinstance(message, Open))
        assert opening.max_tokens == 6
        steps = [message for message in heard if isinstance(message, Step)]
        assert [(s.kind, s.position, s.count, s.sample) for s in steps] == [
            ("prefill", 0, 3, True),
            ("decode", 3, 1, True),
            ("decode", 4, 1, True),
        ]
        assert [s.frame for s in steps] == [1, 2, 3]


async def test_text_chat_and_ids_are_the_same_prompt(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        text = "<user>hello\n<assistant>"
        by_text = await remote.generate(text, max_new_tokens=5)
        by_chat = await remote.generate([{"role": "user", "content": "hello"}], max_new_tokens=5)
        by_ids = await remote.generate(TOKENIZER.encode(text), max_new_tokens=5)
        assert by_text.token_ids == by_chat.token_ids == by_ids.token_ids


async def test_a_list_of_prompts_runs_at_once(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 4), (4, 8)) as swarm, connect(swarm, tmp_path) as remote:
        prompts = [[5, n] for n in range(20)]
        found = await remote.generate(prompts, max_new_tokens=7)
        assert [one.token_ids for one in found] == [continuation(ids, 7, model.vocabulary) for ids in prompts]


async def test_one_bad_prompt_of_a_list_sends_nothing(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(TokenOutsideVocabulary):
            await remote.generate([[5], [model.vocabulary]], max_new_tokens=2)
        assert swarm.nodes[0].count(Open) == 0


async def test_a_stream_is_the_generation_piece_by_piece(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        stream = remote.stream("ROMEO:", max_new_tokens=40, logprobs=2)
        assert stream.generation is None
        tokens = [token async for token in stream]
        whole = stream.generation
        assert whole is not None
        assert [token.id for token in tokens] == whole.token_ids
        assert "".join(token.text for token in tokens) == whole.text == TOKENIZER.decode(whole.token_ids)
        assert [token.finish_reason for token in tokens] == [None] * 39 + ["length"]
        assert whole.logprobs == [token.logprob for token in tokens] == [-token.id / 1000 for token in tokens]
        assert all(len(token.top_logprobs) == 2 for token in tokens)


async def test_ends_at_the_end_of_sequence(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8), scripts=[Script(eos_after=4)]) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=20)
        assert found.finish_reason == "eos"
        assert found.token_ids == [*continuation(PROMPT, 4, model.vocabulary), EOS]
        assert found.text == TOKENIZER.decode(found.token_ids)


async def test_ends_at_a_stop_string_across_tokens(model: FakeModel, tmp_path: Path) -> None:
    ids = TOKENIZER.encode("soft light ") + TOKENIZER.encode("thr") + TOKENIZER.encode("ough yonder")
    script = Script(tokens=ids + [9] * 20)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=20, stop=["through", "never"])
        assert (found.text, found.finish_reason) == ("soft light ", "stop")
        assert len(found.token_ids) < len(ids)


async def test_a_seed_is_drawn_reported_and_repeats(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        first = await remote.generate(PROMPT, max_new_tokens=5, temperature=0.8)
        again = await remote.generate(PROMPT, max_new_tokens=5, temperature=0.8, seed=first.seed)
        other = await remote.generate(PROMPT, max_new_tokens=5, temperature=0.8)
        assert first.seed is not None
        assert first.token_ids == again.token_ids
        assert other.seed != first.seed


async def test_the_generation_config_decides_what_is_not_asked(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config={"do_sample": True, "temperature": 0.5, "eos_token_id": 9})
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        await remote.generate(PROMPT, max_new_tokens=1)
        await remote.generate(PROMPT, max_new_tokens=1, temperature=0)
        openings = [message for message in swarm.nodes[0].heard if isinstance(message, Open)]
        assert [opening.sampling.temperature for opening in openings] == [0.5, 0.0]


async def test_stale_and_repeated_results_are_ignored(model: FakeModel, tmp_path: Path) -> None:
    script = Script(duplicate=True)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=10)
        assert found.token_ids == continuation(PROMPT, 10, model.vocabulary)


# -- stopping early ----------------------------------------------------------------------------------------------------


async def test_leaving_a_stream_cancels_the_session(model: FakeModel, tmp_path: Path) -> None:
    script = Script(step_s=0.005)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        node = swarm.nodes[0]
        async with remote.stream(PROMPT, max_new_tokens=200) as stream:
            async for _ in stream:
                break
        await asyncio.wait_for(node.cancelled.wait(), 5)
        assert node.sessions == {}
        assert stream.generation is None


async def test_dropping_a_stream_cancels_the_session(model: FakeModel, tmp_path: Path) -> None:
    script = Script(step_s=0.005)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        stream = remote.stream(PROMPT, max_new_tokens=200)
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.wait_for(swarm.nodes[0].cancelled.wait(), 5)


async def test_cancelling_the_caller_cancels_the_session(model: FakeModel, tmp_path: Path) -> None:
    script = Script(step_s=0.005)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        task = asyncio.ensure_future(remote.generate([PROMPT, PROMPT], max_new_tokens=200))
        await until(lambda: swarm.nodes[0].count(Step) >= 6)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not swarm.nodes[0].sessions)
        assert swarm.nodes[0].count(Cancel) == 2


async def test_after_its_end_a_model_says_so(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm:
        async with connect(swarm, tmp_path) as remote:
            pass
        with pytest.raises(ModelClosed):
            await remote.generate(PROMPT)


# -- refused before anything is sent -----------------------------------------------------------------------------------


async def test_prompts_are_checked_before_anything_is_sent(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(EmptyPrompt):
            await remote.generate("")
        with pytest.raises(PromptTooLong) as caught:
            await remote.generate([5] * (MAX_POSITION + 1))
        assert (caught.value.tokens, caught.value.limit) == (MAX_POSITION + 1, MAX_POSITION)
        for foreign in (-1, model.vocabulary):
            with pytest.raises(TokenOutsideVocabulary):
                await remote.generate([5, foreign])
        with pytest.raises(InvalidParameter):
            await remote.generate(PROMPT, temperature=-1)
        with pytest.raises(InvalidParameter):
            remote.stream(PROMPT, top_p=2)
        assert swarm.nodes[0].count(Open) == 0


async def test_the_context_bounds_the_answer(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate([5] * (MAX_POSITION - 2), max_new_tokens=100)
        assert len(found.token_ids) == 3
        assert found.finish_reason == "length"


async def test_a_model_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    make_model(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    from swarm_net.manifest import manifest_of
    from swarm_net.messages import ModelId

    manifest = manifest_of(directory, commit="0" * 40)
    model = FakeModel(directory, manifest, ModelId(name="fake", revision=manifest.revision))
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=3)
        assert found.token_ids == continuation(PROMPT, 3, model.vocabulary)
        assert found.text == ""
        for prompt in ("text", [{"role": "user", "content": "x"}]):
            with pytest.raises(NoTokenizer):
                await remote.generate(prompt)  # type: ignore[arg-type]
        with pytest.raises(NoTokenizer):
            await remote.generate(PROMPT, stop="x")


async def test_a_model_without_template_has_no_chat(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tokenizer_config={"eos_token": "<|end|>"})
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(NoChatTemplate):
            await remote.generate([{"role": "user", "content": "x"}])


async def test_a_chat_template_that_does_not_end_stops_nobody_else(tmp_path: Path) -> None:
    rounds = "".join("{% for " + name + " in range(99999) %}" for name in "abcd") + "{% endfor %}" * 4
    template = "{% if messages | length > 1 %}" + rounds + "{% endif %}<user>"
    model = make_model(tmp_path / "model", tokenizer_config={"chat_template": template})
    chat = [{"role": "user", "content": "x"}]
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        assert await remote.tokenize(chat) == tuple(TOKENIZER.encode("<user>"))
        endless = asyncio.create_task(remote.generate(chat * 2))
        for _ in range(3):
            found = await remote.generate(PROMPT, max_new_tokens=3)
            assert found.token_ids == continuation(PROMPT, 3, model.vocabulary)
        assert not endless.done()
        with pytest.raises(BadChat, match="does not end"):
            await endless


# -- finding the model -------------------------------------------------------------------------------------------------


async def test_a_second_start_fetches_no_file(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm:
        async with connect(swarm, tmp_path):
            pass
        kept = tmp_path / "cache" / model.id.revision
        assert sorted(path.name for path in kept.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
        (model.directory / "tokenizer.json").unlink()  # the node could not serve it again
        async with connect(swarm, tmp_path) as remote:
            assert (await remote.generate("ROMEO:", max_new_tokens=1)).usage.prompt_tokens > 1


async def test_a_broken_cache_is_fetched_anew(model: FakeModel, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / model.id.revision
    kept.mkdir(parents=True)
    (kept / "tokenizer.json").write_bytes(b"{}")
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        await remote.generate("ROMEO:", max_new_tokens=1)
        assert (kept / "tokenizer.json").read_bytes() == tiny_tokenizers.byte_level()


async def test_a_file_that_nobody_has_is_a_typed_error(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm:
        (model.directory / "tokenizer.json").write_bytes(b"{}")
        with pytest.raises(BadManifest):
            async with connect(swarm, tmp_path):
                pass
        assert not (tmp_path / "cache" / model.id.revision / "tokenizer.json").exists()


async def test_models_are_named_in_many_ways(model: FakeModel, tmp_path: Path) -> None:
    revision = model.id.revision
    async with fake_swarm(model, (0, 8)) as swarm:
        for name in ("fake", revision, revision[:12], f"fake@{revision[:12]}", str(model.directory)):
            async with connect(swarm, tmp_path, name) as remote:
                assert remote.model == model.id
        with pytest.raises(NoSuchModel):
            async with connect(swarm, tmp_path, "other"):
                pass


async def test_a_directory_is_told_from_others_with_its_tokenizer(model: FakeModel, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", name="other", weights="b")
    stranger = tmp_path / "stranger"
    make_model(stranger, generation_config={}, config={**_config(model), "hidden_size": 16})
    async with fake_swarm(model, (0, 8)) as swarm:
        await swarm.add((0, 8), model=other)
        with pytest.raises(NoSuchModel):
            async with connect(swarm, tmp_path, str(stranger)):
                pass
        with pytest.raises(AmbiguousModel) as caught:
            async with connect(swarm, tmp_path, str(model.directory)):
                pass
        assert set(caught.value.revisions) == {model.id.revision, other.id.revision}


def _config(model: FakeModel) -> dict[str, object]:
    import json

    return dict(json.loads((model.directory / "config.json").read_text()))


async def test_what_cannot_be_connected_to(model: FakeModel, tmp_path: Path) -> None:
    with pytest.raises(NoBootstrap):
        async with AsyncRemoteModel.connect("fake"):
            pass
    (tmp_path / "empty").mkdir()
    async with fake_swarm(model, (0, 8)) as swarm:
        for directory in (str(tmp_path / "empty"), str(tmp_path / "missing")):
            with pytest.raises(BadModelDirectory):
                async with connect(swarm, tmp_path, directory):
                    pass
        dead = swarm.bootstrap
        await swarm.nodes[0].close()
        with pytest.raises(PeerUnreachable):
            async with AsyncRemoteModel.connect("fake", dead, world=swarm.world()):
                pass


async def test_blocks_that_nobody_serves_are_named(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 3), (5, 8)) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(NoRoute) as caught:
            await remote.generate(PROMPT)
        assert caught.value.missing == ((3, 5),)
        with pytest.raises(NoRoute):
            await remote.route()
