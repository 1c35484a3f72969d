"""The noise behind sampling: Gumbel(seed, position, token), the same on every machine, split, batch and retry.

A pure function of its three keys: SplitMix64 (Steele, Lea, Flood 2014) keyed by seed and position and counted by token
id, so that the noise of any token can be had alone. Integer steps only until the last two logarithms, hence no
dependence on thread counts, devices or the order of evaluation. Called by sampler.py.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

MASK: Final = (1 << 64) - 1
GOLDEN: Final = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2^64 / golden ratio, odd
MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
MAX_GUMBEL: Final = 36.8  # of 52 uniform bits, -log(-log(1 - 2^-53)) = 36.74 is the largest


def noise_hashes(seed: int, position: int, tokens: npt.NDArray[np.integer]) -> Hashes:
    """Hash (seed, position, token) for each token id. Returns uniform 64-bit integers, `[tokens]`."""
    stream = _mix(_mix(seed & MASK) ^ ((position * GOLDEN) & MASK))
    state = tokens.astype(np.uint64)
    state += np.uint64(1)
    state *= np.uint64(GOLDEN)
    state += np.uint64(stream)
    state ^= state >> np.uint64(30)
    state *= np.uint64(MULTIPLIERS[0])
    state ^= state >> np.uint64(27)
    state *= np.uint64(MULTIPLIERS[1])
    state ^= state >> np.uint64(31)
    return state


def gumbel(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Turn hashes into Gumbel(0, 1) variates: -log(-log u), u the middle of one of 2^52 equal parts of (0, 1)."""
    uniform = ((hashes >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def hash_exceeding(noise: float) -> int:
    """Give a hash below which no Gumbel variate reaches `noise`: lets a caller drop tokens before any logarithm."""
    uniform = float(np.exp(-np.exp(-noise)))
    return min(max(int(uniform * 2.0**64) - (1 << 20), 0), MASK)


def _mix(state: int) -> int:
    """SplitMix64's finalizer on one Python integer."""
    state = (state + GOLDEN) & MASK
    state = ((state ^ (state >> 30)) * MULTIPLIERS[0]) & MASK
    state = ((state ^ (state >> 27)) * MULTIPLIERS[1]) & MASK
    return state ^ (state >> 31)
