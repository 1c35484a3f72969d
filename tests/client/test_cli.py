"""The program, against scripted nodes over TCP."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from swarm_client.__main__ import app
from swarm_client.show import for_terminal
from swarm_client.tokenizer import Tokenizer
from swarm_net.messages import Open, Step
from swarm_net.session_errors import KVFull
from tests.client import tiny_tokenizers
from tests.client.fake_swarm import FakeModel, FakeSwarm, Script, continuation, fake_swarm_in_thread

TOKENIZER = Tokenizer(tiny_tokenizers.byte_level())


@pytest.fixture
def swarm(model: FakeModel, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSwarm]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with fake_swarm_in_thread(model, (0, 4), (4, 8)) as running:
        monkeypatch.setenv("SWARM_BOOTSTRAP", f" {running.bootstrap[0]}, ")
        monkeypatch.setenv("SWARM_MODEL", "fake")
        yield running


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def run_json(*arguments: str, stdin: str | None = None, code: int = 0) -> Any:
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_generate_prints_json(swarm: FakeSwarm) -> None:
    found = run_json("generate", "ROMEO:", "--max-new-tokens", "12", "--temperature", "0", "--logprobs")
    ids = continuation(TOKENIZER.encode("ROMEO:"), 12, swarm.model.vocabulary)
    assert found["token_ids"] == ids
    assert found["text"] == TOKENIZER.decode(ids)
    assert found["finish_reason"] == "length"
    assert found["usage"] == {
        "prompt_tokens": len(TOKENIZER.encode("ROMEO:")),
        "completion_tokens": 12,
        "cached_tokens": 0,
    }
    assert found["seed"] is None
    assert found["logprobs"] == [-token / 1000 for token in ids]
    assert [(hop["peer"], hop["start"], hop["end"]) for hop in found["route"]] == [
        (swarm.nodes[0].peer, 0, 4),
        (swarm.nodes[1].peer, 4, 8),
    ]
    hops = found["timings"]["hops"]
    assert [(hop["compute_ms"], hop["queue_ms"], hop["wire_ms"]) for hop in hops] == [
        (3.0, 0.02, 0.1),
        (4.0, 0.02, 0.1),
    ]
    assert found["timings"]["time_to_first_token_s"] > 0
    assert found["timings"]["tokens_per_s"] > 0


def test_generate_streams_text(swarm: FakeSwarm) -> None:
    result = run("generate", "ROMEO:", "--max-new-tokens", "12", "--bootstrap", swarm.bootstrap[0], "--model", "fake")
    ids = continuation(TOKENIZER.encode("ROMEO:"), 12, swarm.model.vocabulary)
    assert result.exit_code == 0
    assert result.stdout == TOKENIZER.decode(ids) + "\n"
    assert "tokens/s" in result.stderr
    assert "2 hops" in result.stderr


def test_generate_takes_ids_and_standard_input(swarm: FakeSwarm) -> None:
    assert run_json("generate", "--ids", "5, 6,7", "--max-new-tokens", "3")["token_ids"] == continuation(
        [5, 6, 7], 3, swarm.model.vocabulary
    )
    piped = run_json("generate", "--max-new-tokens", "1", stdin="ROMEO:")
    assert piped["usage"]["prompt_tokens"] == len(TOKENIZER.encode("ROMEO:"))


def test_generate_passes_every_option_on(swarm: FakeSwarm) -> None:
    options = "--temperature 0.7 --top-k 5 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 11"
    found = run_json("generate", "x", "--max-new-tokens", "2", *options.split(), "--stop", "zzz", "--stop", "yyy")
    assert found["seed"] == 11
    sampling = next(message for message in swarm.nodes[0].heard if isinstance(message, Open)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.7, 5, 0.9, 0.1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.2, 11)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["generate", ""], "empty_prompt"),
        (["generate", "x", "--temperature", "-1"], "invalid_parameter"),
        (["generate", "x", "--ids", "1"], "invalid_parameter"),
        (["generate", "--ids", ""], "empty_prompt"),
        (["generate", "--ids", "1,b"], "invalid_parameter"),
        (["generate", "--ids", "99999"], "token_outside_vocabulary"),
        (["generate", "--ids", ",".join(["5"] * 300)], "prompt_too_long"),
        (["generate", "x", "--model", "other"], "no_such_model"),
        (["generate", "x", "--model", "/no/such/directory"], "bad_model_directory"),
        (["generate", "x", "--bootstrap", "nonsense"], "bad_address"),
        (["route", "--model", "other"], "no_such_model"),
        (["models", "--bootstrap", "nonsense"], None),
    ],
)
def test_errors_are_one_json_object(swarm: FakeSwarm, arguments: list[str], error: str | None) -> None:
    found = run_json(*arguments, code=1)
    assert set(found) == {"error", "message", "remedy"}
    assert error is None or found["error"] == error
    assert found["message"]
    assert found["remedy"]


def test_errors_for_people(swarm: FakeSwarm) -> None:
    swarm.nodes[1].script.refuse = KVFull(tokens_needed=20, tokens_free=4, tokens_total=100)
    result = run("generate", "ROMEO:")
    assert result.exit_code == 1
    assert "KV for 20 tokens needed, 4 of 100 free" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_without_a_bootstrap_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_BOOTSTRAP", raising=False)
    for command in (["generate", "x", "--model", "m"], ["models"], ["route", "--model", "m"]):
        assert run_json(*command, code=1)["error"] == "no_bootstrap"


def test_models(swarm: FakeSwarm) -> None:
    (found,) = run_json("models")
    assert found == {
        "name": "fake",
        "revision": swarm.model.id.revision,
        "blocks": 8,
        "nodes": 2,
        "replicas": 1,
        "missing": [],
    }
    table = run("models").stdout
    assert swarm.model.id.revision[:12] in table


def test_route(swarm: FakeSwarm) -> None:
    found = run_json("route")
    assert [(hop["peer"], hop["start"], hop["end"]) for hop in found["hops"]] == [
        (swarm.nodes[0].peer, 0, 4),
        (swarm.nodes[1].peer, 4, 8),
    ]
    assert found["hops"][0]["decode_tokens_per_s"] == 100.0
    assert swarm.nodes[0].peer in run("route").stdout


def test_chat_keeps_the_history(swarm: FakeSwarm) -> None:
    result = run("chat", "--max-new-tokens", "4", "--system", "Be brief.", "--json", stdin="hello\n\nagain\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert len(answers) == 2
    first = "<system>Be brief.\n<user>hello\n<assistant>"
    assert answers[0]["token_ids"] == continuation(TOKENIZER.encode(first), 4, swarm.model.vocabulary)
    assert answers[1]["usage"]["prompt_tokens"] > answers[0]["usage"]["prompt_tokens"]
    guessed = run(
        "chat", "--max-new-tokens", "4", "--system", "Be brief.", "--json", "--draft", "ngram", stdin="hello\n"
    )
    assert json.loads(guessed.stdout)["token_ids"] == answers[0]["token_ids"]
    assert json.loads(guessed.stdout)["drafts"]["accepted"] >= 0
    for_people = run("chat", "--max-new-tokens", "4", stdin="hello\n")
    assert for_people.exit_code == 0
    assert "tokens/s" in for_people.stderr


def test_chat_survives_an_error(swarm: FakeSwarm) -> None:
    result = run("chat", "--max-new-tokens", "2", "--json", stdin="x " * 400 + "\nhello\n")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["error"] == "prompt_too_long"
    assert second["finish_reason"] == "length"


def test_ctrl_c_stops_an_answer_and_not_the_chat(swarm: FakeSwarm, environment: dict[str, str]) -> None:
    import os
    import signal

    swarm.nodes[1].script = Script(silent_after=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "swarm_client", "chat", "--model", "fake", "--bootstrap", swarm.bootstrap[0], "--json"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        end_s = time.monotonic() + 20
        while swarm.nodes[1].count(Step) < 4:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        swarm.nodes[1].script = Script(eos_after=1)
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate("again\n", timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert json.loads(out)["finish_reason"] == "eos"


def test_a_models_text_cannot_steer_a_terminal() -> None:
    assert for_terminal("a\x1b[2Jb\tc\nd\x07é\x9b") == "a[2Jb\tc\ndé"


def test_the_program_starts_light(environment: dict[str, str]) -> None:
    """`--help` loads neither the network nor a tokenizer."""
    program = "import sys; sys.argv[1:] = ['--help']\nfrom swarm_client.__main__ import main\n"
    program += "try: main()\nexcept SystemExit: pass\n"
    program += "print([name for name in ('asyncio', 'msgspec', 'tokenizers', 'jinja2', 'cryptography', 'numpy')"
    program += " if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_needs_neither_torch_nor_transformers_nor_hivemind(
    swarm: FakeSwarm, environment: dict[str, str], tmp_path: Path
) -> None:
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'hivemind', 'huggingface_hub'):\n"
        "            raise ImportError(name + ' is not installed here')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    command = [sys.executable, "-m", "swarm_client", "generate", "ROMEO:", "--json", "--max-new-tokens", "5"]
    command += ["--model", "fake", "--bootstrap", swarm.bootstrap[0]]
    check = [sys.executable, "-c", "import torch"]
    blocked = {**environment, "PYTHONPATH": str(blocker)}
    assert subprocess.run(check, env=blocked, capture_output=True, check=False).returncode == 1
    done = subprocess.run(command, env=blocked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == continuation(TOKENIZER.encode("ROMEO:"), 5, swarm.model.vocabulary)
