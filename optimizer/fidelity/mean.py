"""What does the sample alone say? Its mean, and the error of a draw without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from optimizer.fidelity.estimator import Array, Estimate, Seen, checked_known, checked_seen

NORMAL = 1.959963984540054  # of a normal distribution 95 % lie within so many standard deviations
ROUNDING = 1e-12  # of results: what differs by less does not differ
PRIOR = 1.0  # so many items of the sample the variance of known candidates counts for


class Mean:
    """The sample mean, weighted if there are weights.

    `stderr^2 = (1 - n/N) s^2 / n`, for weights with Kish's `1 / sum w^2` for n, and times Student's quantile over the
    normal one. s^2 is the sample variance; the mean variance of known candidates (of what is 0 or 1, with
    one more of 1/4) counts for one item more, so that few items that happen to be alike are not taken for certain.
    """

    summary: ClassVar[str] = "the mean of what was seen, which asks nothing of other candidates"

    def __init__(self, known: ArrayLike, experts: Sequence[int] = ()) -> None:
        self._known, _ = checked_known(known, experts)

    def estimate(self, items: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
        """See `Estimator`."""
        return plain(checked_seen(items, values, weights, self._known.shape[1]), self._known)


def plain(seen: Seen, known: Array, note: str = "") -> Estimate:
    """What `Mean` says; the reason for asking it instead of another goes into the note."""
    if seen.whole:
        return Estimate(seen.mean, 0.0)
    usual = usual_variance(known, seen.values)
    freedom = len(seen.items) - 1 + (0.0 if usual is None else PRIOR)
    if freedom == 0:
        return Estimate(seen.mean, math.inf, note)
    variance = float(mean_variance(seen, seen.values[None], usual)[0])
    return stated(seen.mean, math.sqrt(variance) * widening(freedom), seen, is_binary(seen.values), note)


def too_few(seen: Seen, known: Array) -> Estimate:
    """What `Mean` says where there are not two known candidates, and that."""
    return plain(seen, known, f"{len(known)} candidates are known on all items, and 2 are needed: the sample mean")


def mean_variance(seen: Seen, values: Array, usual: float | None) -> Array:
    """The variance `(B,)` of the weighted mean of results `(B, n)` on the items that were seen."""
    squares = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    prior = 0.0 if usual is None else PRIOR
    variance = (squares + prior * (usual or 0.0)) / (values.shape[1] - 1 + prior)
    return np.asarray((1 - seen.share) * variance * float(np.sum(seen.weights**2)))


def usual_variance(known: Array, values: Array) -> float | None:
    """The variance over items of candidates like this, if anything is known of it.

    Of what is 0 or 1, one more candidate counts that is right half the time: all right is not for certain.
    """
    if is_binary(values) and is_binary(known):
        return (float(known.var(axis=1).sum()) + 0.25) / (len(known) + 1)
    return float(known.var(axis=1).mean()) if len(known) else None


def stated(value: float, stderr: float, seen: Seen, binary: bool, note: str = "") -> Estimate:
    """The estimate; where all results are 0 or 1, within what unseen items can make of it, and no further off."""
    if not binary or not is_binary(seen.values):
        return Estimate(value, stderr, note)
    low = float(seen.values.sum()) / seen.of
    high = low + 1 - seen.share
    inside = min(max(value, low), high)
    return Estimate(inside, min(stderr, max(inside - low, high - inside) / NORMAL), note)


def is_binary(values: Array) -> bool:
    """Whether all are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def spread(known: Array) -> float:
    """The standard deviation of all results; 1 where they are alike but for rounding."""
    found = float(known.std()) if known.size else 0.0
    return found if found > ROUNDING * float(np.abs(known).max(initial=0.0)) else 1.0


def widening(freedom: float) -> float:
    """Student's 97.5 % quantile over the normal one: what an error is worth whose size was learned from few."""
    return float(stdtrit(freedom, 0.975)) / NORMAL
