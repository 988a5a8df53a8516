"""Who dominates whom? The non-dominated of some points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
BLOCK = 256  # rows compared at a time


def nondominated(losses: Losses) -> NDArray[np.bool_]:
    """Which rows of `(n, m)` no other row is better than or as good as in every loss; of equal rows, the first."""
    order = np.lexsort(losses.T[::-1])  # whoever dominates a row stands before it
    found = np.zeros(len(losses), dtype=bool)
    kept = np.empty((0, losses.shape[1]))
    for begin in range(0, len(order), BLOCK):
        some = order[begin : begin + BLOCK]
        some = some[~_as_good(kept, losses[some]).any(axis=0)]
        first = ~np.triu(_as_good(losses[some], losses[some]), 1).any(axis=0)
        found[some[first]] = True
        kept = np.concatenate([kept, losses[some[first]]])
    return found


def layers(losses: Losses, count: int) -> NDArray[np.int64]:
    """Rows of `(n, m)` front by front, the best first, until there are `count` of them or no more."""
    left, chosen = np.arange(len(losses)), np.empty(0, dtype=np.int64)
    while len(left) and len(chosen) < count:
        best = nondominated(losses[left])
        chosen, left = np.concatenate([chosen, left[best]]), left[~best]
    return chosen[:count]


def _as_good(some: Losses, others: Losses) -> NDArray[np.bool_]:
    """Whether row i of `(a, m)` is as good everywhere as row j of `(b, m)`, `(a, b)`; column by column is fastest."""
    found = np.ones((len(some), len(others)), dtype=bool)
    for left, right in zip(some.T, others.T, strict=True):
        found &= left[:, None] <= right[None]
    return found
