"""The choice of the next token from one row of logits.

token = argmax over i of filter(logits / T)_i + Gumbel(seed, position, i): an exact sample of the filtered distribution
(the Gumbel-max trick, Gumbel 1954), which depends on seed and position alone. Before the filters come the mask of a
grammar, the biases of single tokens and the penalties; the filters are transformers', in its order:
temperature, top-k, top-p, min-p. Ties go to the smaller token id. Log-probabilities are those of the model itself,
before all of these. Called by verify.py with rows in float32 on the CPU.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swarm_model.errors import LogitsNotFinite
from swarm_model.gumbel import MAX_GUMBEL, gumbel, hash_exceeding, noise_hashes
from swarm_model.sampling_params import Sampling

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

SEED_CANDIDATES: Final = 64  # noise of this many of the likeliest tokens sets the mark that others must reach


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token, and if they were asked for its log-probability, and the likeliest tokens with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits: Logits,
    sampling: Sampling,
    position: int,
    history: npt.NDArray[Any] | None = None,
    mask: bytes | None = None,
) -> Sampled:
    """Choose the token that will stand at `position`.

    `logits` is `[vocabulary]` and is not changed; `history` holds all ids so far, for penalties; `mask` has a bit for
    each token that may be chosen, from the lowest bit of the first byte on. Raises LogitsNotFinite.
    """
    if not isfinite(logits.max()):  # one pass finds NaN too: it is greater than everything to numpy
        raise LogitsNotFinite()
    scores = _adjusted(logits, sampling, np.empty(0, np.int32) if history is None else history, mask)
    token = int(scores.argmax()) if sampling.greedy else _draw(scores, sampling, position)
    logprob = logprob_of(logits, token) if sampling.logprobs or sampling.top_logprobs else None
    return Sampled(token, logprob, top_logprobs(logits, sampling.top_logprobs))


def logprob_of(logits: Logits, token: int) -> float:
    return float(logits[token]) - _log_normalizer(logits)


def top_logprobs(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """Give the `count` likeliest tokens with their log-probabilities, likeliest first."""
    if count == 0:
        return ()
    normalizer = _log_normalizer(logits)
    tokens = _greatest(logits, count)
    ranked = tokens[np.argsort(-logits[tokens], kind="stable")]
    return tuple((int(token), float(logits[token]) - normalizer) for token in ranked)


def _log_normalizer(logits: Logits) -> float:
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def _adjusted(logits: Logits, sampling: Sampling, history: npt.NDArray[Any], mask: bytes | None) -> Logits:
    """Apply the mask, the biases and the penalties; returns `logits` itself where there are none."""
    scores, answer = logits, history[sampling.prompt_tokens :]
    if mask is not None:
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little")  # [vocabulary]
        scores = np.where(bits, scores, np.float32(-np.inf))
        if scores.max() == -np.inf:
            raise LogitsNotFinite()  # not for any token that may be chosen
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        scores = scores.copy()
        np.add.at(scores, list(tokens), np.array(biases, np.float32))
    if sampling.repetition_penalty != 1.0 and len(history) > 0:
        scores = _penalized(scores, history, sampling.repetition_penalty)
    if (sampling.frequency_penalty or sampling.presence_penalty) and len(answer) > 0:
        seen, counts = np.unique(answer, return_counts=True)
        scores = scores.copy()
        scores[seen] -= counts.astype(np.float32) * sampling.frequency_penalty + sampling.presence_penalty
    return scores


def _penalized(logits: Logits, history: npt.NDArray[Any], penalty: float) -> Logits:
    """Push the tokens that were there already away from the choice (Keskar et al. 2019, section 4.1)."""
    scores = logits.copy()
    seen = np.unique(history)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _draw(scores: Logits, sampling: Sampling, position: int) -> int:
    """Filter the scores at their temperature and draw one token."""
    kept, weights = _filtered(scores, sampling)
    if len(kept) == 1:
        return int(kept[0])
    hashes = noise_hashes(sampling.seed, position, kept)
    leaders = _greatest(weights, SEED_CANDIDATES)
    mark = float((weights[leaders] + gumbel(hashes[leaders])).max())
    # Of the others only those can win whose noise makes up for the distance: found without a logarithm
    hopeful = np.flatnonzero(
        (hashes >= np.uint64(hash_exceeding(mark - float(weights.max())))) & (weights >= mark - MAX_GUMBEL)
    )
    totals = weights[hopeful] + gumbel(hashes[hopeful])
    best = np.flatnonzero(totals == totals.max())
    return int(kept[hopeful[best]].min())


def _filtered(scores: Logits, sampling: Sampling) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Apply temperature, top-k, top-p and min-p. Returns the surviving tokens in any order, and their scaled scores."""
    kept: Ids = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        threshold = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        kept = np.flatnonzero(scores >= threshold)  # ties at the threshold stay, as in transformers
    weights = scores[kept].astype(np.float64) / sampling.temperature
    if sampling.top_p < 1.0:
        nucleus = _nucleus(weights, sampling.top_p)
        kept, weights = kept[nucleus], weights[nucleus]
    if sampling.min_p > 0.0:
        # p_i < min_p * p_max, with logarithms: independent of the normalizer
        likely = weights >= weights.max() + np.log(sampling.min_p)
        kept, weights = kept[likely], weights[likely]
    return kept, weights


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> Ids:
    """Find the fewest likeliest tokens whose probabilities sum to `top_p` (Holtzman et al. 2020, section 3.1)."""
    probabilities = np.exp(np.sort(weights)[::-1] - weights.max())
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities  # what the likelier tokens already sum to
    return _greatest(weights, max(int(np.count_nonzero(before < top_p)), 1))


def _greatest(weights: npt.NDArray[np.floating[Any]], count: int) -> Ids:
    """Give the indices of the `count` greatest weights, of equal ones the first, in no particular order."""
    if count >= len(weights):
        return np.arange(len(weights))
    threshold = np.partition(weights, -count)[-count]
    above = np.flatnonzero(weights > threshold)
    return np.concatenate([above, np.flatnonzero(weights == threshold)[: count - len(above)]])
