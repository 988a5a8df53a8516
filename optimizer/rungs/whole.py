"""What is known of candidates that were scored on all items? Their per-item results, metric by metric."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FIRST, LATEST = 40, 160  # that are kept: the anchors and models as they are, and what the search is at now
LEAST = 8  # of them, before any candidate is scored on less
AGAIN = 1.2  # times as many as at the last fit call for another


@dataclass(frozen=True, eq=False)
class Known:
    """One candidate, or model as it is: its per-item results by metric, each `(N,)`, and its losses `(m,)`."""

    items: Mapping[str, Array]
    losses: Array
    expert: bool
    rival: bool  # one of the search's that violates no constraint: it may be on the front


class Whole:
    """Candidates scored on all items, in the order told; of many, the first and the latest."""

    def __init__(self) -> None:
        self._first: list[Known] = []
        self._latest: deque[Known] = deque(maxlen=LATEST)
        self.count = 0  # ever told
        self.fitted: list[Known] = []  # what estimators are fit to: a function of what was told, whenever one is asked
        self._next = LEAST

    def add(self, known: Known) -> None:
        """Take one in."""
        self.count += 1
        (self._first if len(self._first) < FIRST else self._latest).append(known)
        if self.count >= self._next:
            self.fitted, self._next = self.rows, math.ceil(AGAIN * self.count)

    @property
    def rows(self) -> list[Known]:
        return [*self._first, *self._latest]

    def table(self, metric: str) -> tuple[Array, tuple[int, ...]]:
        """Per-item results `(R, N)` of a metric, of those that estimators are fit to, and which rows are experts."""
        experts = tuple(i for i, r in enumerate(self.fitted) if r.expert)
        return np.array([r.items[metric] for r in self.fitted]), experts


def rivals(rows: Sequence[Known]) -> list[Known]:
    """The front of them."""
    from moocore import is_nondominated

    mine = [r for r in rows if r.rival]
    return (
        [r for r, keep in zip(mine, is_nondominated(np.array([r.losses for r in mine])), strict=True) if keep]
        if mine
        else []
    )
