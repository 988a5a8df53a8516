"""Which n of N items? Any, drawn by a seed, or those that stand for all by known candidates' results."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from optimizer.fidelity.estimator import Array, FidelityError, Indices, checked_known, comparable

COMPONENTS = 5  # of the known results, in which items are near each other; the rest is mostly luck
NEAR = 1e-12  # squared distances, in units of the greatest, that are none


@dataclass(frozen=True, eq=False)
class Choice:
    """Items in the order in which they were chosen: the first k of them are a choice of k."""

    order: Indices  # (n,)
    places: Array  # (N, d), where items are; d = 0: all in one place

    def items(self, count: int) -> Indices:
        """The first `count`, `(count,)`. Raises FidelityError where there are not so many."""
        if not 1 <= count <= len(self.order):
            raise FidelityError(f"items: expected 1 to {len(self.order)}, got {count}; choose as many at first")
        return self.order[:count]

    def weights(self, count: int) -> Array:
        """Which share of all items each of the first `count` stands for, `(count,)`: those that it is nearest to.

        Items that have several as near are shared among these.
        """
        apart = _squares(self.places, self.places[self.items(count)])
        nearest = apart <= apart.min(axis=1, keepdims=True) + NEAR * max(float(apart.max()), 1e-300)
        return np.asarray((nearest / nearest.sum(axis=1, keepdims=True)).sum(axis=0) / len(apart))


def random(known: ArrayLike, count: int, seed: int) -> Choice:
    """Drawn without replacement, by the seed alone; of `known` `(R, N)` only N counts."""
    wide = _width(known, count)
    return Choice(np.random.default_rng(seed).permutation(wide)[:count], np.zeros((wide, 0)))


def clusters(known: ArrayLike, count: int, seed: int) -> Choice:
    """Medoids of clusters of items on which known candidates `(R, N)` had results alike (anchor points).

    tinyBenchmarks (arXiv:2402.14992) takes k-means, whose clusters for 20 items have nothing to do with those for 40.
    Here each item is the one that lessens the sum of squared distances to the nearest chosen one most (greedy
    k-medoids; what it gains is within 1 - 1/e of the best), so that choices are nested. Distances are over the first
    principal components of the items' columns. Where no item lessens it, and where no candidate is known, items are
    drawn by the seed. Rows of several metrics may stand below each other, in units that make them comparable.
    """
    wide = _width(known, count)
    places = _placed(known)
    order = _medoids(places, count)
    rest = np.setdiff1d(np.random.default_rng(seed).permutation(wide), order, assume_unique=True)
    return Choice(np.concatenate([order, rest])[:count], places)


def herding(known: ArrayLike, count: int, seed: int) -> Choice:
    """A sample like all items, each standing for as many: kernel herding (Chen, Welling & Smola 2010, arXiv:1203.3472).

    In the same components as `clusters`, each item is the one that brings the sample's mean in the space of a Gaussian
    kernel nearest to that of all items. The kernel's squared width is the median squared distance of items. Ties are
    broken by the seed.
    """
    wide = _width(known, count)
    places = _placed(known)
    apart = _squares(places, places)
    some = apart[apart > NEAR * float(apart.max())]
    width = float(np.median(some)) if len(some) else 1.0
    kernel = np.exp(-apart / width)
    means, sums = kernel.mean(axis=1), np.zeros(wide)
    order: list[int] = []
    preferred = 1e-9 * np.random.default_rng(seed).random(wide)
    for taken in range(count):
        scores = means - sums / (taken + 1) + preferred
        scores[order] = -np.inf
        order.append(int(np.argmax(scores)))
        sums += kernel[:, order[-1]]
    return Choice(np.array(order, dtype=np.int64), np.zeros((wide, 0)))


CHOICES: dict[str, Callable[[ArrayLike, int, int], Choice]] = {
    "random": random,
    "clusters": clusters,
    "herding": herding,
}


def _placed(known: ArrayLike) -> Array:
    """Where items are, `(N, d)`: the first principal components of their columns, each candidate's mean taken out."""
    results = comparable(*checked_known(known, ()))[0]
    left, sizes, _ = np.linalg.svd((results - results.mean(axis=1, keepdims=True)).T, full_matrices=False)
    return np.asarray(left[:, :COMPONENTS] * sizes[:COMPONENTS])


def _medoids(places: Array, count: int) -> Indices:
    """The items that each lessen the sum of squared distances most, until none does. Gains only fall: a lazy greedy."""
    farthest = 4 * float((places**2).sum(axis=1).max(initial=0.0)) + 1e-300  # no two are further apart
    near = np.full(len(places), farthest)
    sums = len(places) * (places**2).sum(axis=1) + (places**2).sum() - 2 * places @ places.sum(axis=0)
    waiting = [(float(total) - len(places) * farthest, item) for item, total in enumerate(sums)]
    heapq.heapify(waiting)
    order: list[int] = []
    while waiting and len(order) < count:
        item = heapq.heappop(waiting)[1]
        own = _squares(places, places[item : item + 1])[:, 0]
        gain = float(np.maximum(near - own, 0.0).sum())
        if waiting and -gain > waiting[0][0]:
            if gain > NEAR * farthest:
                heapq.heappush(waiting, (-gain, item))
        elif gain > NEAR * farthest:
            order.append(item)
            near = np.minimum(near, own)
    return np.array(order, dtype=np.int64)


def _squares(places: Array, others: Array) -> Array:
    """Squared distances `(N, k)`, exactly 0 for the same place."""
    found = np.zeros((len(places), len(others)))
    for column in range(places.shape[1]):
        found += (places[:, column : column + 1] - others[:, column]) ** 2
    return found


def _width(known: ArrayLike, count: int) -> int:
    wide = int(checked_known(known, ())[0].shape[1])
    if not 1 <= count <= wide:
        raise FidelityError(f"a choice of items: expected 1 to {wide}, got {count}; ask for no more than there are")
    return wide
