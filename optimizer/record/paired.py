"""How sure are we that one candidate is better than another? Differences over the items that both were scored on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import random_stream

Array = NDArray[np.float64]

DRAWS = 2000  # a sampled probability is off by 0.011 at most (one standard error)
CHUNK = 250  # draws at a time, to bound memory
RIVALS = 100  # of one candidate: those that may be likeliest to dominate it
NEGLIGIBLE = 1e-4  # a rival that can dominate with no more probability is left out
ROUNDING = 1e-6  # items are kept as float32: their mean is the metric's to so much of the largest


@dataclass(frozen=True, eq=False)
class Sample:
    """One metric of one candidate, as a loss.

    `stderr` is NaN where it is not known. `items` are the losses of single items, float64 `(n,)`, NaN for one that the
    metric says nothing of; None where they were not kept. `mean` says whether the metric is the mean of them.
    """

    value: float
    stderr: float
    items: Array | None = None
    mean: bool = False

    @classmethod
    def of(
        cls,
        sign: float,
        value: float,
        stderr: float | None,
        items: NDArray[np.float32] | None,  # (n,)
    ) -> Sample:
        """Of a measure in natural units. Whether the metric is a mean is found by comparing, not by its name."""
        error = np.nan if stderr is None else stderr
        if items is None or not np.isfinite(items).any():
            return cls(sign * value, error)
        losses = np.where(np.isfinite(items), sign * items.astype(np.float64), np.nan)
        near = abs(np.nanmean(losses) - sign * value) <= ROUNDING * np.nanmax(np.abs(losses))
        return cls(sign * value, error, losses, bool(near))

    def shares_items(self, other: Sample) -> bool:
        """Whether both have values of the same items."""
        if self.items is None or other.items is None or self.items.shape != other.items.shape:
            return False
        return np.array_equal(np.isnan(self.items), np.isnan(other.items))


@dataclass(frozen=True)
class Difference:
    """A loss less another's, its standard error (NaN: not known), and on how many items it is the smaller, or not.

    `paired` says whether the error is that of differences item by item.
    """

    value: float
    stderr: float
    paired: bool
    wins: int | None = None
    losses: int | None = None
    ties: int | None = None


def difference(a: Sample, b: Sample) -> Difference:
    """a - b. Where both are means over the same n items, d_i = a_i - b_i: `stderr = sqrt(var(d) / n)`, n - 1 in var.

    Else `sqrt(stderr_a^2 + stderr_b^2)`, as if the items were others: too large where the candidates agree on which
    items are hard. Wins and losses are counted wherever items are kept, whatever the metric makes of them.
    """
    value, unpaired = a.value - b.value, float(np.hypot(a.stderr, b.stderr))
    if a.items is None or b.items is None or not a.shares_items(b):
        return Difference(value, unpaired, False)
    d = (a.items - b.items)[~np.isnan(a.items)]
    counts = int((d < 0).sum()), int((d > 0).sum()), int((d == 0).sum())
    if not (a.mean and b.mean):
        return Difference(value, unpaired, False, *counts)
    return Difference(value, float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else np.nan, True, *counts)


def mean_stderr(samples: Sequence[Sample]) -> float:
    """The standard error of the mean of several candidates' losses, which share their items.

    That of the items' means over candidates; where the metric is no mean of items the mean of the standard errors,
    which is the most that it can be.
    """
    first = samples[0]
    rows = [s.items for s in samples if s.items is not None and s.mean and s.shares_items(first)]
    if len(rows) == len(samples):
        items = np.mean(rows, axis=0)
        known = items[~np.isnan(items)]
        return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return float(np.mean([s.stderr for s in samples]))


class Joint:
    """The true losses of k candidates on m objectives, as their items tell of them.

    They are normal around the measured losses (a flat prior), with the covariance of means over the items that they
    share: candidates by candidates, and objectives by objectives where `owners`, the evaluator of each objective, is
    the same. Objectives of different evaluators, over different items, are independent. A loss that is no mean of
    kept items is independent of all others, with the standard error that was measured; what has the same loss, error
    and items is one and the same. Nothing is `known` where a standard error is not.
    """

    def __init__(self, samples: Sequence[Sequence[Sample]], owners: Sequence[str]) -> None:
        self.values = np.array([[s.value for s in row] for row in samples], dtype=np.float64)  # (k, m)
        self._owners = tuple(owners)
        self._columns = [_Column([row[j] for row in samples]) for j in range(len(self._owners))]

    @property
    def known(self) -> bool:
        return all(np.isfinite(c.values).all() and np.isfinite(c.own).all() for c in self._columns)

    @cached_property
    def bound(self) -> Array:
        """By `[a, b]` the most that the probability can be that a dominates b, `(k, k)`.

        Of one evaluator's objectives the least P(a_j <= b_j), however they go together; of several evaluators, which
        are independent, the product. It is the probability itself where each objective has an evaluator of its own.
        Equal candidates dominate each other with 0.
        """
        from scipy.special import ndtr

        least: dict[str, Array] = {}
        equal = np.ones((len(self.values),) * 2, dtype=bool)
        for owner, column in zip(self._owners, self._columns, strict=True):
            d, error = column.differences()
            with np.errstate(divide="ignore", invalid="ignore"):
                below = np.where(error > 0, ndtr(-d / error), d <= 0)
            least[owner] = np.minimum(least.get(owner, np.ones(())), below)
            equal &= (error == 0) & (d == 0)
        return np.where(equal, 0.0, np.prod(list(least.values()), axis=0))

    def dominates(self, a: int, b: int) -> float:
        """The probability that a dominates b; sampled, with a fixed seed, where an evaluator has several objectives."""
        if len(set(self._owners)) == len(self._owners):
            return float(self.bound[a, b])
        if not self.bound[a, b]:
            return 0.0
        return float(np.mean(np.concatenate([(t[:, a] <= t[:, b]).all(axis=0) for t in self._draws()])))

    def nondominated(self, of: Sequence[int]) -> Array:
        """For each of these candidates the probability that no other dominates it, sampled with a fixed seed.

        Rivals are the `RIVALS` others of the largest `bound`, and those with `NEGLIGIBLE` or less are none: what is
        left out makes the result too large by at most the sum of their bounds.
        """
        rivals = []
        for f in of:
            order = np.argsort(-self.bound[:, f], kind="stable")[:RIVALS]
            rivals.append(order[(self.bound[order, f] > NEGLIGIBLE) & (order != f)])
        count = np.zeros(len(of))
        for truth in self._draws():
            for i, f in enumerate(of):
                below = truth[0, rivals[i]] <= truth[0, f]  # (rivals, draws); equal candidates are no rivals
                for losses in truth[1:]:
                    below &= losses[rivals[i]] <= losses[f]
                count[i] += (~below.any(axis=0)).sum()
        return np.asarray(count / DRAWS)

    def _draws(self) -> Iterator[Array]:
        """True losses `(m, k, draws)`, the same at every call; a function of the items and the owners' names alone."""
        shared = {owner: random_stream(0, "items", owner) for owner in self._owners}
        own = [random_stream(0, "loss", j) for j in range(len(self._owners))]
        sizes = {o: max(c.size for c, p in zip(self._columns, self._owners, strict=True) if p == o) for o in shared}
        for start in range(0, DRAWS, CHUNK):
            many = min(CHUNK, DRAWS - start)
            items = {owner: stream.standard_normal((many, sizes[owner])) for owner, stream in shared.items()}
            columns = [
                column.draws(items[owner], stream.standard_normal((many, column.distinct)))
                for column, owner, stream in zip(self._columns, self._owners, own, strict=True)
            ]
            yield np.stack(columns)


class _Column:
    """One objective of k candidates: d distinct losses, deviations of the n items that they share, own errors."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        place: dict[object, int] = {}
        rows: list[Sample] = []
        which = []
        for s in samples:
            key = (s.value, s.stderr, s.mean, None if s.items is None else s.items.tobytes())
            if key not in place:
                place[key] = len(rows)
                rows.append(s)
            which.append(place[key])
        self.which = np.array(which, dtype=np.int64)  # (k,)
        self.distinct = len(rows)
        self.values = np.array([s.value for s in rows])  # (d,)
        first = next((s for s in rows if s.items is not None and s.mean), None)
        self.size = 0 if first is None or first.items is None else len(first.items)
        self.own = np.array([s.stderr for s in rows])  # (d,)
        self.deviations = np.zeros((len(rows), self.size))  # (d, n); their squares sum to the squared standard error
        for i, s in enumerate(rows):
            if first is not None and s.items is not None and s.mean and s.shares_items(first):
                n = int((~np.isnan(s.items)).sum())
                if n > 1:
                    self.own[i] = 0.0
                    self.deviations[i] = np.nan_to_num(s.items - np.nanmean(s.items)) / np.sqrt(n * (n - 1))

    def differences(self) -> tuple[Array, Array]:
        """All differences `[a, b]` of candidates, and their standard errors; both `(k, k)`."""
        covariance = self.deviations @ self.deviations.T + np.diag(self.own**2)
        variance = np.diag(covariance)
        squared = np.maximum(variance[:, None] + variance - 2 * covariance, 0.0)
        np.fill_diagonal(squared, 0.0)
        where = np.ix_(self.which, self.which)
        return (self.values[:, None] - self.values)[where], np.sqrt(squared)[where]

    def draws(self, items: Array, own: Array) -> Array:
        """Losses `(k, draws)` of standard normal numbers, one an item and one a distinct loss."""
        found = self.deviations @ items[:, : self.size].T + (self.values + own * self.own).T
        return np.asarray(found[self.which])
