"""A trained model as an ordinary Hugging Face checkpoint: bf16 safetensors, tokenizer, model card.

Owns the files of a checkpoint; called by `train.py`.
"""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LICENCE = "apache-2.0"
AGREEMENT = "share of held-out tokens for which it and the model that it drafts for choose the same"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model card tells of how a model came about and how good it is."""

    parameters: int
    data: str
    objective: str
    best_step: int
    settings: str
    window_tokens: int
    held_out_loss: float
    held_out_bits_per_byte: float
    near_tie_share: float
    agreement: float | None  # with the model that it drafts for


def describe_data(file: Path, title: str) -> str:
    """Name a text so that another person can find it and check that it is the same."""
    content = file.read_bytes()
    return f"{title} ({len(content):,} bytes, SHA-256 `{hashlib.sha256(content).hexdigest()}`)"


def save_checkpoint(directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Facts) -> None:
    """Write the checkpoint."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)  # the template belongs in tokenizer_config.json
    directory.joinpath("README.md").write_text(_card(directory.name, facts), encoding="utf-8")


def _card(name: str, facts: Facts) -> str:
    agreement = "" if facts.agreement is None else f"| {AGREEMENT} | {facts.agreement:.3f} |\n"
    return f"""---
license: {LICENCE}
library_name: transformers
pipeline_tag: text-generation
language: en
---
# {name}

A Llama of {facts.parameters / 1e6:.2f} M parameters, so small that a laptop serves, splits and checks it in seconds.
It exists to show and test a network that serves spans of models, not to be useful: it writes plays without sense.

| | |
|---|---|
| data | {facts.data} |
| objective | {facts.objective} |
| steps | {facts.best_step}, where held-out loss was lowest |
| settings | {facts.settings} |
| held-out loss | {facts.held_out_loss:.3f} nats per token, {facts.held_out_bits_per_byte:.3f} bits per byte |
| share of held-out tokens where the two best logits differ by less than 0.001 | {facts.near_tie_share:.4f} |
{agreement}
Held out is the last tenth of the text, which neither the model nor its tokenizer saw; it also chose the step to keep,
so its loss flatters the model a little. It is measured on this checkpoint's bf16 weights, computed in float32.

Limits: the context is {facts.window_tokens} tokens in training. Longer ones are accepted, up to the configured
maximum, but nothing was learned there. What it knows of the world is its data's view of it, prejudices included.

The chat template sets messages as speeches: the user is Juliet, the model Romeo. A prompt without it is a play to go
on with, as in `ROMEO:`.

Licence: the weights are under Apache-2.0. Made by `python -m swarm_sim.demo_model.train`.
"""
