"""How good is a candidate on all items, told from some of them? What an estimator says, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

BROKEN = 30.0  # times the median distance from the median result


class FidelityError(ValueError):
    """Results, items or a choice that do not fit: what was expected, what arrived, what to do."""


@dataclass(frozen=True)
class Estimate:
    """The mean over all items, told from some of them: |value - truth| <= 1.96 stderr for 95 % of candidates.

    `stderr` is 0 where all items were seen, and infinite where nothing is known of it. `note` says why another
    estimator spoke than the one asked, in a sentence; it is empty where that one did.
    """

    value: float
    stderr: float
    note: str = ""


class Estimator(Protocol):
    """Tells a candidate's mean of one metric over N items from n of them, given results of other candidates on all.

    It is made of `known` `(R, N)`, the results of R candidates, and `experts`, the rows that are the experts as they
    are; both may be empty, but N is at least 1. Rows that came later stand further down: the last ones tell most of
    the next. It is deterministic, and what it was asked before changes no answer. What is learned of a set of items is
    kept for the next candidate that was scored on them: the first answer for a set takes longer.
    Raises FidelityError on what is not finite, has another shape, or is out of range.
    """

    summary: ClassVar[str]  # in one sentence, for users

    def __init__(self, known: ArrayLike, experts: Sequence[int] = ()) -> None: ...

    def estimate(
        self,
        items: ArrayLike,  # (n,) int, of 0 to N - 1, each once, in any order
        values: ArrayLike,  # (n,), the candidate's results on these
        weights: ArrayLike | None = None,  # (n,), how much of all items each stands for; None: all alike
    ) -> Estimate:
        """The mean over all N items. With n = N it is exact, whatever the weights."""
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """A candidate's results, checked, in the order of items: estimates do not depend on the caller's."""

    items: Indices  # (n,), rising
    values: Array  # (n,)
    weights: Array  # (n,), of sum 1
    of: int  # N

    @property
    def whole(self) -> bool:
        """Whether all items were seen."""
        return len(self.items) == self.of

    @property
    def share(self) -> float:
        """n / N."""
        return len(self.items) / self.of

    @property
    def mean(self) -> float:
        """The weighted mean; of all items the plain one."""
        return float(self.values.mean()) if self.whole else float(self.weights @ self.values)


def checked_known(known: ArrayLike, experts: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """`known` as float64 `(R, N)`, and the experts' rows. Raises FidelityError."""
    found = np.asarray(known, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] < 1:
        raise FidelityError(f"known results: expected (candidates, items), got shape {found.shape}; give one row each")
    _finite(found, "known results")
    for row in experts:
        if not 0 <= row < len(found):
            raise FidelityError(f"experts: expected rows of 0 to {len(found) - 1}, got {row}; name rows of known")
    return found, tuple(dict.fromkeys(int(row) for row in experts))


def comparable(known: Array, experts: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """The candidates, and the experts among them, without those that are broken: whose results dwarf all others'."""
    sizes = np.sqrt(((known - np.median(known)) ** 2).mean(axis=1)) if len(known) else np.zeros(0)
    most = BROKEN * float(np.median(sizes)) if len(known) else 0.0
    rows = np.flatnonzero((sizes <= most) | (most == 0))
    return known[rows], tuple(int(np.searchsorted(rows, row)) for row in experts if row in rows)


def checked_seen(items: ArrayLike, values: ArrayLike, weights: ArrayLike | None, of: int) -> Seen:
    """What was seen of a candidate on some of `of` items. Raises FidelityError."""
    rows, results = np.asarray(items), np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
        raise FidelityError(f"items: expected (n,) whole numbers, n >= 1, got {rows.dtype} {rows.shape}; name some")
    if rows.min() < 0 or rows.max() >= of:
        raise FidelityError(f"items: expected 0 to {of - 1}, got {rows.min()} to {rows.max()}; name columns of known")
    order = np.argsort(rows, kind="stable")
    if (np.diff(rows[order]) == 0).any():
        raise FidelityError(f"items: expected each once, got {len(rows)} with repeats; name each item once")
    if results.shape != rows.shape:
        raise FidelityError(f"values: expected one an item, {rows.shape}, got {results.shape}; give as many as items")
    _finite(results, "values")
    stands = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    if stands.shape != rows.shape or not np.isfinite(stands).all() or (stands < 0).any() or stands.sum() <= 0:
        raise FidelityError(f"weights: expected {rows.shape} of 0 or more, got {stands!r:.100}; give one an item")
    return Seen(rows[order].astype(np.int64), results[order], stands[order] / stands.sum(), of)


def _finite(found: Array, what: str) -> None:
    if not np.isfinite(found).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise FidelityError(
            f"{what}: expected finite numbers, got {found[place]} at {place}; leave such candidates out"
        )
