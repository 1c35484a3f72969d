"""Train the demo model and its draft from a text file: `python -m swarm_sim.demo_model.train --text FILE --out DIR`.

Owns the recipes and the command. One model goes this way: text (`corpus.py`, `tokenizer.py`), an untrained Llama
(`model.py`), the loop (`fit.py`), a checkpoint (`card.py`). Two CPU cores take about half an hour for both models.
"""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from swarm_sim.demo_model.card import Facts, describe_data, save_checkpoint
from swarm_sim.demo_model.corpus import TextTooShort, TrainingText, held_out_rows, split
from swarm_sim.demo_model.fit import Objective, Recipe, agreement, evaluate, fit, imitation_loss, next_token_loss
from swarm_sim.demo_model.model import CONTEXT_TOKENS, DRAFT_SHAPES, LLAMA_SHAPES, Size, new_llama
from swarm_sim.demo_model.report import Report, reporting
from swarm_sim.demo_model.tokenizer import SMALLEST_VOCABULARY, train_tokenizer

LLAMA_RECIPE = Recipe(steps=2000, learning_rate=1.5e-3, dropout=0.2)
DRAFT_RECIPE = Recipe(steps=3000, learning_rate=4e-3, dropout=0.0)

SAMPLE_PROMPT = "ROMEO:"
SAMPLE_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Material:
    """What both models learn from and are measured on."""

    description: str
    tokenizer: PreTrainedTokenizerFast
    training: TrainingText
    held_out: Tensor  # [rows, window + 1]
    held_out_tokens_per_byte: float


def read_material(file: Path, title: str, vocabulary: int, window: int) -> Material:
    """Read a text, hold out its last tenth and learn the tokenizer from the rest. Raises TextTooShort."""
    seen, unseen = split(file.read_text(encoding="utf-8"))
    tokenizer = train_tokenizer(seen, vocabulary, CONTEXT_TOKENS)
    encode = functools.partial(tokenizer.encode, verbose=False)  # else it warns that a whole play exceeds the context
    held_out = encode(unseen)
    return Material(
        description=describe_data(file, title),
        tokenizer=tokenizer,
        training=TrainingText.encode(seen, encode, window),
        held_out=held_out_rows(held_out, window),
        held_out_tokens_per_byte=len(held_out) / len(unseen.encode()),
    )


def train_and_save(
    directory: Path,
    model: LlamaForCausalLM,
    material: Material,
    recipe: Recipe,
    seed: int,
    report: Report,
    teacher: LlamaForCausalLM | None = None,
) -> None:
    """Fit a model, to its teacher where it has one, and save it; it keeps the weights as saved, in float32."""
    objective: Objective = functools.partial(imitation_loss, teacher) if teacher else next_token_loss
    report.started(directory.name, model.num_parameters(), recipe.steps)
    generator = torch.Generator().manual_seed(seed)
    best_step = fit(model, objective, material.training, material.held_out, recipe, generator, report)

    model.to(torch.bfloat16).float()  # what is measured, and taught to the draft, is what is saved
    measured = evaluate(model, material.held_out, recipe.rows)
    facts = Facts(
        parameters=model.num_parameters(),
        data=material.description,
        objective="the distribution of the model that it drafts for" if teacher else "the next token",
        best_step=best_step,
        settings=f"{recipe}; seed {seed}, torch {torch.__version__}",
        window_tokens=recipe.window,
        held_out_loss=measured.loss,
        held_out_bits_per_byte=measured.loss / math.log(2) * material.held_out_tokens_per_byte,
        near_tie_share=measured.near_tie_share,
        agreement=agreement(model, teacher, material.held_out, recipe.rows) if teacher else None,
    )
    save_checkpoint(directory, model, material.tokenizer, facts)
    report.saved(directory, facts, _sample(model, material.tokenizer))


def _sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    prompt = tokenizer(SAMPLE_PROMPT, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
    return str(tokenizer.decode(ids[0]))


def main(
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="UTF-8 text to learn: best, plays.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Gets the checkpoints llama/ and draft/.")],
    title: Annotated[str, typer.Option(help="The text's name and licence, for the model cards.")] = "A text",
    size: Annotated[Size, typer.Option(help="tiny: models of seconds, to try the script.")] = Size.DEMO,
    vocabulary: Annotated[int, typer.Option(min=SMALLEST_VOCABULARY, help="Entries of the tokenizer.")] = 2048,
    window: Annotated[int, typer.Option(min=8, max=CONTEXT_TOKENS, help="Tokens of context.")] = LLAMA_RECIPE.window,
    steps: Annotated[int, typer.Option(min=1, help="At most; it stops early on held-out text.")] = LLAMA_RECIPE.steps,
    draft_steps: Annotated[int, typer.Option(min=1, help="At most, for the draft.")] = DRAFT_RECIPE.steps,
    seed: Annotated[int, typer.Option(help="Decides initial weights, dropout and batches.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Train the demo model and its draft from a text file."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        material = read_material(text, title, vocabulary, window)
    except TextTooShort as refusal:
        raise typer.BadParameter(str(refusal)) from refusal

    end = material.tokenizer.eos_token_id
    llama = new_llama(LLAMA_SHAPES[size], vocabulary, end)
    draft = new_llama(DRAFT_SHAPES[size], vocabulary, end)
    llama_recipe = replace(LLAMA_RECIPE, steps=steps, window=window)
    draft_recipe = replace(DRAFT_RECIPE, steps=draft_steps, window=window)
    with reporting(as_json) as report:
        train_and_save(out / "llama", llama, material, llama_recipe, seed, report)
        train_and_save(out / "draft", draft, material, draft_recipe, seed, report, teacher=llama)


if __name__ == "__main__":
    typer.run(main)
