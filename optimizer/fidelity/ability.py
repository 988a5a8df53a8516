"""How able is a candidate, by the items that were seen? The most probable ability, free or a mix of the experts'."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.optimize import nnls

from optimizer.fidelity.estimator import Array
from optimizer.fidelity.items import Items

ROUNDS = 8
PRIOR = 1.0  # precision of an ability, in units of known candidates'
HEAVY = 1e3  # weight of the equation that a mix sums to 1


class Abilities(Protocol):
    """Finds abilities `(B, D)` and their covariances `(B, D, D)` (Laplace), by results `(B, n)` on the items."""

    def __call__(self, items: Items, values: Array) -> tuple[Array, Array]: ...


def free(items: Items, values: Array) -> tuple[Array, Array]:
    """Any ability: maximum a posteriori, for a normal prior whose moments are those of known candidates."""
    count, dims = len(values), items.dims
    abilities, cov = np.zeros((count, dims)), np.tile(np.eye(dims) / PRIOR, (count, 1, 1))
    for _ in range(ROUNDS if items.noise is None else 2):
        square, linear = items.information(values, abilities, cov)
        cov = np.asarray(np.linalg.inv(square + PRIOR * np.eye(dims)))
        abilities = (cov @ linear[..., None])[..., 0]
    return abilities, cov


class Mixed:
    """A convex mix of abilities: `theta = sum_k lambda_k theta_k`, lambda >= 0 and of sum 1 (MERGE3).

    Its covariance is that of an ability which is free within the span of these.
    """

    def __init__(self, corners: list[Array]) -> None:
        self._corners = corners  # for each candidate (K, D), K >= 2; or one for all

    def __call__(self, items: Items, values: Array) -> tuple[Array, Array]:
        count, dims = len(values), items.dims
        corners = self._corners * count if len(self._corners) == 1 else self._corners
        spans = [np.linalg.svd(corner - corner.mean(axis=0))[2][: len(corner) - 1].T for corner in corners]
        abilities = np.array([corner.mean(axis=0) for corner in corners])
        cov = np.tile(np.eye(dims) / PRIOR, (count, 1, 1))
        for _ in range(ROUNDS if items.noise is None else 2):
            square, linear = items.information(values, abilities, cov)
            square = square + PRIOR * np.eye(dims)
            factors = np.linalg.cholesky(square)
            for b in range(count):
                abilities[b] = _nearest(factors[b], linear[b], corners[b])
                cov[b] = spans[b] @ np.linalg.solve(spans[b].T @ square[b] @ spans[b], spans[b].T)
        return abilities, cov


def _nearest(factor: Array, linear: Array, corners: Array) -> Array:
    """The mix of corners `(K, D)` of least `theta H theta / 2 - linear . theta`, with `H = factor factor^T`."""
    size = HEAVY * float(np.abs(factor).max()) * max(float(np.abs(corners).max()), 1.0)
    rows = np.vstack([factor.T @ corners.T, np.full(len(corners), size)])
    mix, _ = nnls(rows, np.append(np.linalg.solve(factor, linear), size))
    return np.asarray(mix @ corners / mix.sum())
