"""The training loop: losses, schedule, early stop, evaluation.

Owns how a model is fitted; what text and which model is decided in `train.py`, which calls this.

The draft learns from the larger model instead of the text (Hinton et al. 2015): a draft is good when the larger model
agrees with it, and a whole distribution teaches more than the one token that came next.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from swarm_sim.demo_model.corpus import TrainingText
from swarm_sim.demo_model.model import residual_dropout
from swarm_sim.demo_model.report import Report

NEAR_TIE = 1e-3
SMALLEST_RATE_SHARE = 0.05

Objective = Callable[[LlamaForCausalLM, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is trained."""

    steps: int  # at most
    learning_rate: float
    dropout: float
    rows: int = 8
    window: int = 256
    weight_decay: float = 0.1
    warmup_steps: int = 100
    evaluate_every: int = 100
    patience: int = 4  # evaluations without a better one before it stops

    def learning_rate_share(self, step: int) -> float:
        """Return the share of the learning rate at a step: a linear warm-up, then a cosine to a small rest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return SMALLEST_RATE_SHARE + (1 - SMALLEST_RATE_SHARE) * (1 + math.cos(math.pi * progress)) / 2

    def __str__(self) -> str:
        return (
            f"AdamW, learning rate {self.learning_rate:g} (warm-up, cosine over {self.steps} steps), "
            f"weight decay {self.weight_decay:g}, residual dropout {self.dropout:g}, "
            f"{self.rows} windows of {self.window} tokens a step, bf16 autocast"
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model does on held-out text."""

    loss: float  # nats a token
    near_tie_share: float  # of tokens whose two best logits are closer than NEAR_TIE


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Return the cross-entropy of the text; `batch` is [rows, window + 1]."""
    return functional.cross_entropy(_logits(model, batch).flatten(0, 1), batch[:, 1:].flatten())


def imitation_loss(teacher: LlamaForCausalLM, model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Return the cross-entropy of the teacher's distribution of each next token; `batch` is [rows, window + 1]."""
    with torch.no_grad():
        wanted = _logits(teacher, batch).softmax(-1)
    return functional.cross_entropy(_logits(model, batch).flatten(0, 1), wanted.flatten(0, 1))


def fit(
    model: LlamaForCausalLM,
    objective: Objective,
    text: TrainingText,
    held_out: Tensor,  # [rows, window + 1]
    recipe: Recipe,
    generator: torch.Generator,
    report: Report,
) -> int:
    """Train a model and leave it, in evaluation mode, with the weights of its best evaluation; return that step."""
    optimizer = _adamw(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.learning_rate_share)
    best_loss, best_step, best_weights = math.inf, 0, model.state_dict()

    with residual_dropout(model, recipe.dropout):
        for step in range(1, recipe.steps + 1):
            model.train()
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(model, text.batch(recipe.rows, generator))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            report.stepped(step, loss.item())

            if step % recipe.evaluate_every == 0 or step == recipe.steps:
                held_out_loss = evaluate(model, held_out, recipe.rows).loss
                report.evaluated(step, held_out_loss)
                if held_out_loss < best_loss:
                    best_loss, best_step, best_weights = held_out_loss, step, copy.deepcopy(model.state_dict())
                elif step - best_step >= recipe.patience * recipe.evaluate_every:
                    break

    model.load_state_dict(best_weights)
    model.eval()
    return best_step


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, held_out: Tensor, rows: int) -> Evaluation:
    """Measure in float32. A window's first tokens have little context: within a long text they would do better."""
    model.eval()
    loss, near_ties, tokens = 0.0, 0, 0
    for batch in torch.split(held_out, rows):
        logits = _logits(model, batch)
        loss += functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        best, second = logits.topk(2).values.unbind(-1)
        near_ties += int((best - second < NEAR_TIE).sum())
        tokens += best.numel()
    return Evaluation(loss / tokens, near_ties / tokens)


@torch.inference_mode()
def agreement(draft: LlamaForCausalLM, larger: LlamaForCausalLM, held_out: Tensor, rows: int) -> float:
    """Return the share of held-out tokens for which both models' best choice is the same."""
    same = [
        _logits(draft, batch).argmax(-1) == _logits(larger, batch).argmax(-1) for batch in torch.split(held_out, rows)
    ]
    return torch.cat(same).float().mean().item()


def _logits(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=batch[:, :-1], use_cache=False).logits
    return logits.float()  # [rows, window, vocabulary]


def _adamw(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
