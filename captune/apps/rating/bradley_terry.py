"""Ranking from paired comparisons: the model of Bradley and Terry (Biometrika 39, 1952).

System i is preferred to system j with the probability `1 / (1 + exp(s_j - s_i))`. A tie counts as half a win for
each. Every pair that was compared gets one tie more than it had, so that a system which won or lost everything has a
finite strength in every resample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bradley_terry", "is_connected", "log_strengths"]

VIRTUAL_TIES = 1.0

_STEPS, _LONGEST_STEP, _TOLERANCE = 200, 2.0, 1e-10


def bradley_terry(wins: NDArray[np.float64], compared: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Strengths of systems, with the virtual ties.

    Args:
        wins: (..., S, S) how often the row's system was preferred to the column's, ties as halves.
        compared: (S, S) which pairs were compared at all; the same for every resample.

    Returns:
        (..., S) strengths on the log-odds scale with mean 0.
    """
    return log_strengths(wins + compared * (VIRTUAL_TIES / 2))


def is_connected(compared: NDArray[np.bool_]) -> bool:
    """Whether every system was compared with every other, be it through others; else there is no one ranking."""
    reached = np.eye(len(compared), dtype=bool) | compared | compared.T
    for _ in range(len(compared)):
        reached = reached | (reached.astype(int) @ reached.astype(int) > 0)
    return bool(reached.all())


def log_strengths(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum-likelihood strengths by Newton's method.

    Args:
        wins: (..., S, S) every pair connected by wins in both directions.

    Returns:
        (..., S) strengths on the log-odds scale with mean 0.
    """
    systems = wins.shape[-1]
    played = wins + np.swapaxes(wins, -1, -2)
    strengths = np.zeros(wins.shape[:-1])
    diagonal = np.eye(systems, dtype=bool)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (wins - played * chance).sum(axis=-1)
        weights = np.where(diagonal, 0.0, played * chance * (1 - chance))
        laplacian = np.where(diagonal, weights.sum(axis=-1, keepdims=True), -weights)
        # Strengths are known up to a constant; the ones fix it without moving what is sought.
        step = np.linalg.solve(laplacian + 1 / systems, gradient[..., None])[..., 0]
        strengths = strengths + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    centred: NDArray[np.float64] = strengths - strengths.mean(axis=-1, keepdims=True)
    return centred
