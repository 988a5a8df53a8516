"""How far off are estimates in truth? Known candidates are left out, and what is stated of them is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from optimizer.fidelity.estimator import Array, Indices, Seen
from optimizer.fidelity.mean import widening

CALIBRATED = 32  # candidates that are left out at most, the last ones
MERGES = 4  # so many others, and experts are not left out: those that come are merges too
PRIOR = 2.0  # candidates that count as having been as far off as stated
ROUNDING = 1e-18
SETS = 8  # of items, that are kept
Made = TypeVar("Made")


def left_out(candidates: int, experts: Sequence[int]) -> Indices:
    """The rows to leave out, rising."""
    rows = np.arange(candidates)
    merges = np.setdiff1d(rows, experts)
    return (merges if len(merges) >= MERGES else rows)[-CALIBRATED:]


def factor(ratios: Array, weights: Array | None = None) -> float:
    """By what to multiply stated errors: of `(k,)` squared errors over the variances that were stated before.

    The root mean square of error over stated error, times Student's quantile over the normal one: what the 95 %
    quantile of a normal distribution is whose width is learned from few. (The 95 % quantile of the ratios themselves,
    split conformal prediction, is infinite for k < 39.) Weights, of 1 at most, say how much each is like the candidate;
    they count for `(sum w)^2 / sum w^2`.
    """
    counts = np.ones(len(ratios)) if weights is None else weights
    total = float(counts.sum())
    effective = total**2 / max(float(counts @ counts), 1e-300)
    return math.sqrt((PRIOR + float(counts @ ratios)) / (PRIOR + total)) * widening(PRIOR + effective)


def ratio(errors: Array, variances: Array, unit: float) -> Array:
    """Squared errors over variances, `(k,)`; what is small by the variance `unit` of results is rounding."""
    return errors**2 / (variances + ROUNDING * unit)


class PerItems(Generic[Made]):
    """What follows from a set of items and their weights alone: made once, kept for the last few sets."""

    def __init__(self, make: Callable[[Seen], Made]) -> None:
        self._make = make
        self._made: dict[tuple[bytes, bytes], Made] = {}

    def __call__(self, seen: Seen) -> Made:
        key = seen.items.tobytes(), seen.weights.tobytes()
        found = self._made.pop(key) if key in self._made else self._make(seen)
        self._made[key] = found  # the last used is the last to go
        if len(self._made) > SETS:
            del self._made[next(iter(self._made))]
        return found
