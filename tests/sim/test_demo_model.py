"""The committed checkpoints are what they claim to be, and the script that made them still makes such ones."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from swarm_sim.demo_model import demo_model_path, draft_model_path
from swarm_sim.demo_model.corpus import TextTooShort, TrainingText, as_chat, held_out_rows, split
from swarm_sim.demo_model.fit import Recipe
from swarm_sim.demo_model.model import LLAMA_SHAPES, Size, new_llama, residual_dropout
from swarm_sim.demo_model.tokenizer import CHAT, END
from swarm_sim.demo_model.train import main

DIRECTORIES = {"llama": demo_model_path(), "draft": draft_model_path()}
VOCABULARY = 2048

# From the last tenth of the training text, which was held out: The Tempest, act 1, scene 2.
HELD_OUT_EXCERPT = """\
PROSPERO:
Now the condition.
The King of Naples, being an enemy
To me inveterate, hearkens my brother's suit;
Which was, that he, in lieu o' the premises
Of homage and I know not how much tribute,
Should presently extirpate me and mine
Out of the dukedom and confer fair Milan
With all the honours on my brother: whereon,
A treacherous army levied, one midnight
Fated to the purpose did Antonio open
The gates of Milan, and, i' the dead of darkness,
The ministers for the purpose hurried thence
Me and thy crying self.

MIRANDA:
Alack, for pity!
I, not remembering how I cried out then,
Will cry it o'er again: it is a hint
That wrings mine eyes to't.

PROSPERO:
Hear a little further
And then I'll bring thee to the present business
Which now's upon's; without the which this story
Were most impertinent.
"""
# Nats a token. Both models reach 4.5 on this passage, harder than the average one of their cards; token frequencies
# alone give 6.1.
HIGHEST_LOSS = 5.0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, LlamaForCausalLM]:
    return {
        name: AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        for name, directory in DIRECTORIES.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


def test_the_package_knows_its_checkpoints_without_importing_torch() -> None:
    program = (
        "import sys, swarm_sim.demo_model as demo\n"
        "assert (demo.demo_model_path() / 'config.json').is_file() and demo.draft_model_path().is_dir()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_both_checkpoints_together_stay_small_enough_to_commit() -> None:
    sizes = [file.stat().st_size for directory in DIRECTORIES.values() for file in directory.iterdir()]
    assert sum(sizes) < 22_000_000


@pytest.mark.parametrize(
    ("name", "blocks", "hidden", "parameters_m"), [("llama", 12, 256, (8.5, 9.5)), ("draft", 2, 160, (0.5, 1.5))]
)
def test_a_checkpoint_has_the_shape_it_should(
    models: dict[str, LlamaForCausalLM], name: str, blocks: int, hidden: int, parameters_m: tuple[float, float]
) -> None:
    config = models[name].config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (blocks, hidden, VOCABULARY)
    assert config.max_position_embeddings >= 1024
    assert parameters_m[0] < models[name].num_parameters() / 1e6 < parameters_m[1]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_every_saved_tensor_is_bf16(name: str) -> None:
    with safe_open(DIRECTORIES[name] / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("name", DIRECTORIES)
def test_the_model_card_says_what_the_model_is(name: str) -> None:
    card = (DIRECTORIES[name] / "README.md").read_text(encoding="utf-8")
    for fact in ("license: apache-2.0", "SHA-256", "steps", "held-out loss", "nats per token", "public domain"):
        assert fact in card


def test_the_draft_has_the_models_tokenizer_byte_for_byte() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (draft_model_path() / file).read_bytes() == (demo_model_path() / file).read_bytes()


def test_the_tokenizer_knows_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())


@given(text=st.text() | st.binary().map(lambda noise: noise.decode("utf-8", "replace")))
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_chat_messages_become_speeches() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    chat = [
        {"role": "system", "content": "Peace, ho!"},
        {"role": "user", "content": "Wherefore art thou? "},
        {"role": "assistant", "content": "Call me but love."},
        {"role": "user", "content": "Ay me!"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    play = "DUKE VINCENTIO:\nPeace, ho!\n\nJULIET:\nWherefore art thou?\n\nROMEO:\nCall me but love.\n\nJULIET:\nAy me!"
    assert rendered == as_chat(play) + "ROMEO:\n"
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == CHAT
    assert ids.count(tokenizer.eos_token_id) == len(chat)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_checkpoint_predicts_text_it_never_saw(
    models: dict[str, LlamaForCausalLM], tokenizer: Tokenizer, name: str
) -> None:
    ids = torch.tensor([tokenizer.encode(HELD_OUT_EXCERPT).ids])
    with torch.inference_mode():
        logits = models[name](input_ids=ids).logits
    assert functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item() < HIGHEST_LOSS


def test_greedy_text_is_a_speech_and_does_not_loop(models: dict[str, LlamaForCausalLM], tokenizer: Tokenizer) -> None:
    prompt = torch.tensor([tokenizer.encode("ROMEO:").ids])
    ids = models["llama"].generate(prompt, max_new_tokens=64, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert len(ids) == 64
    assert len(set(ids)) > 24
    assert tokenizer.decode(ids).startswith("\n")


PLAY = "\n\n".join(
    f"CITIZEN {number}:\nSpeak of {number * 7} things, and of {number % 5} kings." for number in range(99)
)


def train_tiny(play: str, directory: Path, *options: str) -> list[dict[str, object]]:
    text = directory / "play.txt"
    text.write_text(play, encoding="utf-8")
    app = typer.Typer()
    app.command()(main)
    arguments = ["--text", str(text), "--out", str(directory), "--size", "tiny", "--steps", "3", "--draft-steps", "2"]
    result = CliRunner().invoke(
        app, [*arguments, "--vocabulary", "300", "--window", "16", "--threads", "1", "--json", *options]
    )
    if result.exit_code:
        raise ValueError(result.output)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_script_makes_checkpoints_that_load_and_the_seed_decides_them(tmp_path: Path) -> None:
    runs = {"first": "1", "again": "1", "other": "2"}
    for name, seed in runs.items():
        (tmp_path / name).mkdir()
        events = train_tiny(PLAY, tmp_path / name, "--seed", seed)
        assert [event["event"] for event in events].count("step") == 3 + 2
        assert [event["event"] for event in events].count("saved") == 2
    for model in ("llama", "draft"):
        first, again, other = [(tmp_path / name / model / "model.safetensors").read_bytes() for name in runs]
        assert first == again != other
        checkpoint = tmp_path / "first" / model
        prompt = AutoTokenizer.from_pretrained(checkpoint)("CITIZEN", return_tensors="pt")
        assert AutoModelForCausalLM.from_pretrained(checkpoint)(**prompt).logits.isfinite().all()


def test_the_script_refuses_a_text_shorter_than_its_window(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer text"):
        train_tiny(PLAY, tmp_path, "--window", "1000")


@given(speeches=st.lists(st.sampled_from(["A:\nAy.", "BO:\nNo, no.\nNever.", "C:\nO!"]), min_size=20))
def test_the_split_loses_nothing_and_cuts_between_speeches(speeches: list[str]) -> None:
    play = "\n\n".join(speeches)
    seen, unseen = split(play)
    assert seen + unseen == play
    assert seen.endswith("\n\n")
    assert 0 < len(unseen) < len(play) / 2


def encode_letters(text: str) -> list[int]:
    """One token a letter, END and CHAT one token each."""
    letters = text.replace(END, "\0").replace(CHAT, "\1")
    return [ord(letter) for letter in letters]


@given(seed=st.integers(0, 2**32), window=st.integers(1, 60))
def test_a_batch_holds_pieces_of_the_text_and_chats_from_a_speech_on(seed: int, window: int) -> None:
    text = TrainingText.encode(PLAY, encode_letters, window)
    batch = text.batch(8, torch.Generator().manual_seed(seed))
    assert batch.shape == (8, window + 1)
    for row in batch.tolist():
        letters = "".join(map(chr, row))
        if letters.startswith("\1"):
            assert letters[1 : 1 + len("CITIZEN")] == "CITIZEN"[:window]
            assert letters.replace("\1", "").replace("\0", "\n\n").rstrip("\n") in PLAY
        else:
            assert letters in PLAY


@given(tokens=st.lists(st.integers(0, 99)), window=st.integers(1, 20))
def test_held_out_rows_predict_each_token_once(tokens: list[int], window: int) -> None:
    if len(tokens) <= window:
        with pytest.raises(TextTooShort):
            held_out_rows(tokens, window)
        return
    rows = held_out_rows(tokens, window)
    predicted = rows[:, 1:].flatten().tolist()
    assert predicted == tokens[1 : 1 + len(predicted)]
    assert len(tokens) - 1 - len(predicted) < window
    assert rows[:, :-1].flatten().tolist() == tokens[: len(predicted)]


@given(steps=st.integers(1, 5000))
def test_the_learning_rate_rises_then_falls(steps: int) -> None:
    recipe = Recipe(steps=steps, learning_rate=1.0, dropout=0.0)
    shares = [recipe.learning_rate_share(step) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    top = shares.index(max(shares))
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)


def test_dropout_touches_training_alone_and_leaves_a_plain_llama() -> None:
    model = new_llama(LLAMA_SHAPES[Size.TINY], vocabulary=300, end_token=0)
    names = list(model.state_dict())
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        plain = model.eval()(input_ids=ids).logits
        with residual_dropout(model, 0.5):
            assert torch.equal(model.eval()(input_ids=ids).logits, plain)
            assert not torch.allclose(model.train()(input_ids=ids).logits, plain)
        assert torch.equal(model.train()(input_ids=ids).logits, plain)
    assert list(model.state_dict()) == names
