"""What do candidates tell that were seen on all items? Their luck on these items is taken out: a control variate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from optimizer.fidelity.calibration import PerItems, factor, left_out, ratio
from optimizer.fidelity.estimator import Array, Estimate, Seen, checked_known, checked_seen, comparable
from optimizer.fidelity.mean import ROUNDING, is_binary, stated, too_few

RIDGES = 10.0 ** np.arange(-2, 3.01, 0.5)  # in units of the candidates' mean variance over items
SHARED = 5.0  # items that the mean residual variance of all candidates counts for in a candidate's own


@dataclass(frozen=True, eq=False)
class _Regression:
    """What a set of items makes of R known candidates. Q is the inverse of `X X^T + ridge (1 + 1 1^T)`."""

    centred: Array  # (R, n), X: results less each candidate's mean on these items
    gaps: Array  # (R,), d: mean on all items less that on these
    inverse: Array  # (R, R), Q
    ridge: float
    usual: float  # variance of what is left of a result
    factor: float


class Paired:
    """The sample mean, corrected by how lucky known candidates were on the same items (a regression estimator).

    `value = mean_S(y) + beta . d`, with d the known candidates' means on all items less those on S. beta is the ridge
    regression of y on the known candidates' results on S, all centred: shrinking by principal components, weak ones
    most. One more item on which all candidates score alike draws the sum of beta to 1. Leaving a known candidate out is
    closed in form: with Q the inverse of the regularised Gram matrix, its error is `-(Q d)_r / Q_rr`; the ridge is the
    one whose errors so, of means and of items, are least.

    `stderr^2 = s^2 (1/n - 1/N + d^T Q d)`, the variance of the best linear unbiased prediction, times the factor by
    which it was wrong for candidates left out.
    """

    summary: ClassVar[str] = "the sample mean less the luck that known candidates had on the same items, by regression"

    def __init__(self, known: ArrayLike, experts: Sequence[int] = ()) -> None:
        self._known, self._experts = comparable(*checked_known(known, experts))
        self._binary = is_binary(self._known)
        apart = self._known - self._known.mean(axis=1, keepdims=True)
        self._spread = apart @ apart.T / self._known.shape[1]  # (R, R), covariances over all items
        self._least = ROUNDING * float(np.abs(self._known).max(initial=0.0))  # rounding: what is less is none
        mean = float(np.trace(self._spread)) / max(len(apart), 1)
        self._unit = mean if mean > self._least**2 else 1.0
        self._at = PerItems(self._regression)

    def estimate(self, items: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
        """See `Estimator`. Weights count where the sample mean speaks instead."""
        seen = checked_seen(items, values, weights, self._known.shape[1])
        if seen.whole or len(self._known) < 2:
            return too_few(seen, self._known)
        known, n = self._at(seen), len(seen.items)
        middle = float(seen.values.mean())
        centred = seen.values - middle
        pulled = known.centred @ centred + known.ridge
        beta = known.inverse @ pulled
        squares = max(float(centred @ centred) + known.ridge - float(pulled @ beta), 0.0)
        variance = (SHARED * known.usual + squares) / (SHARED + n - 1)
        variance *= 1 / n - 1 / seen.of + float(known.gaps @ known.inverse @ known.gaps)
        stderr = known.factor * math.sqrt(variance)
        return stated(middle + float(beta @ known.gaps), stderr, seen, self._binary)

    def _regression(self, seen: Seen) -> _Regression:
        sample = self._known[:, seen.items]
        centred = sample - sample.mean(axis=1, keepdims=True)
        gaps = self._known.mean(axis=1) - sample.mean(axis=1)
        gaps[np.abs(gaps) <= self._least] = 0.0
        gram, n = centred @ centred.T, len(seen.items)
        found = [self._inverse(gram, gaps, self._unit * ridge) for ridge in RIDGES]
        luck = float((gaps**2).mean()) or 1.0
        best = int(np.argmin([means / luck + items / self._unit for _, means, items in found]))
        ridge, (inverse, _, usual) = float(self._unit * RIDGES[best]), found[best]
        lengths, pulled = np.diag(inverse), inverse @ gaps
        variances = (SHARED * usual + np.maximum(1 / lengths - ridge, 0.0)) / (SHARED + n - 1)
        variances *= 1 / n - 1 / seen.of + np.maximum(gaps @ pulled - pulled**2 / lengths, 0.0)
        out = left_out(len(gram), self._experts)
        stretch = factor(ratio((pulled / lengths)[out], variances[out], self._unit))
        return _Regression(centred, gaps, inverse, ridge, usual, stretch)

    def _inverse(self, gram: Array, gaps: Array, ridge: float) -> tuple[Array, float, float]:
        """Q, and how far off it is for candidates left out: mean squares for their means, and their results."""
        inverse = np.asarray(np.linalg.inv(gram + ridge * (np.eye(len(gram)) + 1)))
        lengths = np.diag(inverse)
        means = float((((inverse @ gaps) / lengths) ** 2).mean())
        items = float((np.einsum("ij,ij->i", inverse @ self._spread, inverse) / lengths**2).mean())
        return inverse, means, items
