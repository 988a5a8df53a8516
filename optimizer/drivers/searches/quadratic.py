"""What does a quadratic in a few coefficients make of the answers so far? Fits, what they err by, and their front."""

from __future__ import annotations

from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINEAR = 4.0  # losses count as they are up to so many medians above the best, and by their logarithm from there on
RIDGE = 1e-6  # holds what the answers do not determine near 0
POOL = 192  # coefficients tried at a time while a front is sought
KEPT = 64  # of them the parents of the next
ROUNDS = 16


def terms(
    points: Array,  # (n, r)
) -> Array:
    """1, s_i and s_i s_j of each row, `(n, (r + 1)(r + 2) / 2)`."""
    rows, columns = np.triu_indices(points.shape[1])
    found = np.concatenate([np.ones((len(points), 1)), points, points[:, rows] * points[:, columns]], axis=1)
    return np.asarray(found, dtype=np.float64)


def levelled(losses: Array) -> Array:
    """Losses `(n, m)` on a scale on which a quadratic can follow them: a monotone map of each column.

    In units of the median's distance from the best, which is 0; above `LINEAR`, logarithms. A candidate that broke a
    model has any loss, and must not bend the surface where models are good. Being monotone, it moves no front.
    """
    best = losses.min(axis=0)
    apart = losses - best
    unit = np.median(apart, axis=0)
    unit = np.where(unit > 0, unit, np.where(apart.max(axis=0) > 0, apart.max(axis=0), 1.0))
    scaled = apart / unit
    return np.asarray(np.where(scaled > LINEAR, LINEAR + np.log1p(np.maximum(scaled - LINEAR, 0.0)), scaled))


@dataclass(frozen=True, eq=False)
class Surface:
    """One quadratic a loss: `terms(s) @ weights` is what `levelled` makes of the losses at s."""

    weights: Array  # (terms, m)
    errors: Array  # (n,) what each answer differs by from what the others foretell, root of mean square over losses

    def __call__(self, points: Array) -> Array:
        """`(n, r)` -> `(n, m)`."""
        return np.asarray(terms(points) @ self.weights)


def fitted(points: Array, losses: Array) -> Surface:
    """The quadratics of least squares through losses `(n, m)` at points `(n, r)`; good answers weigh most."""
    target, design = levelled(losses), terms(points)
    importance = 1 / (1 + target.mean(axis=1, keepdims=True))  # (n, 1)
    rows = design * importance
    ridge = RIDGE * len(points) * np.eye(design.shape[1])
    solved = np.linalg.solve(rows.T @ rows + ridge, rows.T)  # (terms, n)
    weights = solved @ (target * importance)
    leverage = np.clip(np.einsum("nt,tn->n", rows, solved), 0.0, 0.999)
    left_out = (target - design @ weights) / (1 - leverage)[:, None]
    return Surface(weights, np.sqrt(np.mean(left_out**2, axis=1)))


def front(surface: Surface, low: Array, high: Array, seed: np.random.Generator) -> Array:
    """Non-dominated points of a surface in a box, `(n, r)` with n up to `KEPT`, spread over the front.

    An evolution on the surface, which costs nothing: children are mixed of two parents and moved by ever smaller steps.
    """
    count = len(low)
    points = low + seed.random((4 * POOL, count)) * (high - low)
    for i in range(ROUNDS):
        kept = _thinned(surface, points)
        pairs = seed.integers(len(kept), size=(POOL, 2))
        share = seed.random((POOL, 1))
        step = 0.3 * 0.7**i * seed.standard_normal((POOL, count)) * (seed.random((POOL, count)) < 0.6)
        children = kept[pairs[:, 0]] * share + kept[pairs[:, 1]] * (1 - share) + step * (high - low)
        points = np.concatenate([kept, np.clip(children, low, high)])
    return _thinned(surface, points)


def _thinned(surface: Surface, points: Array) -> Array:
    """The non-dominated; of many, those far apart."""
    losses = surface(points)
    best = np.flatnonzero(moocore.is_nondominated(losses))
    if len(best) <= KEPT:
        return points[best]
    values = losses[best]
    span = np.ptp(values, axis=0)
    return points[best[apart(values / np.where(span > 0, span, 1.0), KEPT)]]


def apart(points: Array, count: int) -> NDArray[np.int64]:
    """Rows of `(n, m)` that lie far from each other, greedily: the best of each column, then whatever is farthest."""
    chosen = list(dict.fromkeys(int(i) for i in points.argmin(axis=0)))[:count]
    distance = np.min([np.sum((points - points[i]) ** 2, axis=1) for i in chosen], axis=0)
    while len(chosen) < count:
        following = int(distance.argmax())
        chosen.append(following)
        distance = np.minimum(distance, np.sum((points - points[following]) ** 2, axis=1))
    return np.array(chosen)


def where_it_errs(points: Array, errors: Array, waiting: Array, pool: Array) -> int:
    """Which row of a pool `(n, r)` to ask: in the cell of the answer that errs most, as far from it as can be.

    Cross-validation and Voronoi cells (Xu et al. 2014). What is on its way, `(w, r)`, has cells too, and no error yet.
    """
    centres = np.concatenate([points, waiting])
    wrong = np.concatenate([errors, np.zeros(len(waiting))])
    distance = np.sum((pool[:, None] - centres[None]) ** 2, axis=2)  # (n, points)
    cell = distance.argmin(axis=1)
    return int(np.argmax(wrong[cell] * np.sqrt(distance[np.arange(len(pool)), cell])))
