"""What do items tell of a candidate's ability, and that of the other items? Item response theory, and its mixes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from optimizer.fidelity.ability import Abilities, Mixed, free
from optimizer.fidelity.calibration import PRIOR, PerItems, factor, left_out, ratio
from optimizer.fidelity.estimator import Array, Estimate, Indices, Seen, checked_known, checked_seen, comparable
from optimizer.fidelity.items import Items
from optimizer.fidelity.latent import Latent, fitted
from optimizer.fidelity.mean import is_binary, mean_variance, plain, spread, stated, too_few, usual_variance
from optimizer.fidelity.prediction import Predicted, predicted

DIMS, LINEAR_DIMS = 3, 5  # at most; what is not needed shrinks to nothing
HALF = 0.5
WIDTH = 0.5  # of a kernel over abilities, whose spread is 1: how near a known candidate is that counts as alike
UNLIKE = 10.0  # times what is usual: three times as far off on seen items, or ten times as far from the mean ability


@dataclass(frozen=True, eq=False)
class _Trust:
    """For a set of items: the share of the sample mean in the value, and how far off known candidates' values were."""

    share: float
    abilities: Array  # (k, D), told from these items
    ratios: Array  # (k,), squared errors over stated variances

    def factor(self, ability: Array) -> float:
        """By what the error is multiplied that is stated of a candidate: of those like it, if there are any."""
        return factor(self.ratios, np.exp(-((self.abilities - ability) ** 2).mean(axis=1) / (2 * WIDTH**2)))


class Irt:
    """p-IRT of tinyBenchmarks (Maia Polo et al. 2024, arXiv:2402.14992): `P(right) = sigmoid(a_i . theta - b_i)`.

    Items are learned from the known candidates when it is made, the candidate's ability is the most probable one by
    the items seen, and `value = n/N mean_S(y) + (1 - n/N) mean of P over unseen items`. Results that are not all 0 or 1
    have a linear model, `y_i = a_i . theta - b_i + noise_i`. The stated error is the model's (`predicted`) times the
    factor by which that was wrong for known candidates, each with items learned without it.
    """

    summary: ClassVar[str] = "what was seen, and for other items what the candidate's ability predicts (p-IRT)"
    mixed: ClassVar[bool] = False  # whether the ability is a convex mix of the experts'
    share: ClassVar[float | None] = 0.0  # of the sample mean in the value; None: by what both were off

    def __init__(self, known: ArrayLike, experts: Sequence[int] = ()) -> None:
        self._known, self._experts = comparable(*checked_known(known, experts))
        self._binary = is_binary(self._known)
        self._mixes = self.mixed and len(self._experts) > 1
        self._note = "" if self._mixes or not self.mixed else "a mix needs 2 experts: any ability, as in `irt`"
        # linear results are in units of their spread, which makes no difference but for rounding
        self._centre = 0.0 if self._binary or not len(self._known) else float(self._known.mean())
        self._unit = 1.0 if self._binary else spread(self._known)
        self._latent = self._learned()
        self._usual = 0.0 if self._latent is None else usual_variance(self._latent.known, self._latent.known)
        self._at = PerItems(self._trust)

    def estimate(self, items: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
        """See `Estimator`. Weights are those of the sample mean, where it has a share."""
        seen = checked_seen(items, values, weights, self._known.shape[1])
        if self._latent is None or seen.whole:
            return too_few(seen, self._known)
        trust = self._at(seen)
        inner = replace(seen, values=(seen.values - self._centre) / self._unit)
        found = predicted(self._latent.items, self._ability(), inner, inner.values[None])
        if found.unlike[0] > UNLIKE:
            return plain(seen, self._known, "results unlike those of any known candidate: the sample mean")
        value, variance = self._blend(inner, inner.values[None], found, trust.share)
        stderr = trust.factor(found.abilities[0]) * math.sqrt(float(variance[0])) * self._unit
        return stated(float(value[0]) * self._unit + self._centre, stderr, seen, self._binary, self._note)

    def _learned(self) -> Latent | None:
        if len(self._known) < 2:
            return None
        most = DIMS if self._binary else LINEAR_DIMS
        return fitted((self._known - self._centre) / self._unit, min(most, len(self._known) - 1), self._binary)

    @cached_property
    def _without(self) -> tuple[Indices, Items]:
        """The candidates that are left out, and for each the items learned without it."""
        assert self._latent is not None
        # a search may go where an expert is: those count for candidates that are like them
        rows = np.union1d(left_out(len(self._known), self._experts), self._experts).astype(np.int64)
        return rows, self._latent.without(rows)

    def _ability(self, rows: Sequence[int] = (-1,)) -> Abilities:
        """How abilities are found, of candidates that are these known ones: an expert is no mix of itself."""
        if not self._mixes or self._latent is None:
            return free
        others = [[k for k in self._experts if k != row] for row in rows]
        return Mixed([self._latent.abilities[own] for own in others])

    def _trust(self, seen: Seen) -> _Trust:
        assert self._latent is not None
        rows, items = self._without
        known = self._latent.known[rows]
        values, truths = known[:, seen.items], known.mean(axis=1)
        found = predicted(items, self._ability([int(row) for row in rows]), seen, values)
        share = self.share
        if share is None:
            share = _share(found, truths, values @ seen.weights, mean_variance(seen, values, self._usual))
        value, variance = self._blend(seen, values, found, share)
        return _Trust(share, found.abilities, ratio(value - truths, variance, 1.0))

    def _blend(self, seen: Seen, values: Array, found: Predicted, share: float) -> tuple[Array, Array]:
        """Values and variances of what the model predicts and the weighted sample mean, mixed."""
        if share == 0:
            return found.values, found.variances
        sampled = mean_variance(seen, values, self._usual)
        value = share * (values @ seen.weights) + (1 - share) * found.values
        return value, share**2 * sampled + (1 - share) ** 2 * found.variances


class GpIrt(Irt):
    """gp-IRT of tinyBenchmarks: `share` times the weighted sample mean, the rest p-IRT.

    `share = b^2 / (b^2 + v)`: b^2 and v are the squared errors of p-IRT and of the sample mean for known candidates on
    these items, where PRIOR more count as having been as far off as stated.
    """

    summary: ClassVar[str] = "`irt` and the sample mean, each by how far off it was for known candidates (gp-IRT)"
    share: ClassVar[float | None] = None


class MpIrt(Irt):
    """mp-IRT of MERGE3 (Mencattini et al. 2025, arXiv:2502.10436): as `Irt`, with an ability that is a mix of the
    experts' abilities. The mix is convex, and the most probable one by the items seen.
    """

    summary: ClassVar[str] = "`irt` for an ability that is a convex mix of the experts' abilities (mp-IRT)"
    mixed: ClassVar[bool] = True


class GmpIrt(Irt):
    """gmp-IRT of MERGE3: half the weighted sample mean, half mp-IRT."""

    summary: ClassVar[str] = "half `mp_irt`, half the sample mean (gmp-IRT)"
    mixed: ClassVar[bool] = True
    share: ClassVar[float | None] = HALF


def _share(found: Predicted, truths: Array, means: Array, variances: Array) -> float:
    """That of the sample mean, by errors for known candidates `(k,)`."""
    bias = PRIOR * float(found.variances.mean()) + float(((found.values - truths) ** 2).sum())
    sampling = PRIOR * float(variances.mean()) + float(((means - truths) ** 2).sum())
    return bias / (bias + sampling) if bias > 0 else 0.0
