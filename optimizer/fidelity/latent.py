"""Which items make which candidates fail? A model of few dimensions, learned from few candidates on all items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.fidelity.estimator import Array, Indices
from optimizer.fidelity.items import Items, outer, with_one

ROUNDS = 8
SHARED = 3.0  # candidates that the mean noise of all items counts for in an item's own
LEAST = 1e-6  # what variances are at least, where that of results is 1


@dataclass(frozen=True, eq=False)
class Latent:
    """The items, and the abilities of the candidates that they were learned from: of mean 0 and covariance 1."""

    items: Items
    abilities: Array  # (R, D)
    known: Array  # (R, N)

    def without(self, rows: Indices) -> Items:
        """The items as if one candidate had not been seen: a copy `(len(rows), N, ...)` for each.

        Exact but for what all candidates share: the abilities of the others, and the items' prior.
        """
        design = with_one(self.abilities[rows])
        centre, spread = self.items.predicted(self.abilities[rows])
        weight = self.items.precisions(centre, spread)
        along = (self.items.cov @ design.T).transpose(2, 0, 1)  # (rows, N, D + 1), cov x
        left = np.maximum(1 - weight * spread, 1e-3)
        residual = (self.items.pulls(self.known[rows]) - weight * centre) / left
        return Items(
            self.items.mean - along * residual[..., None],
            self.items.cov + outer(along) * (weight / left)[..., None, None],
            self.items.noise,
        )


def fitted(known: Array, dims: int, binary: bool) -> Latent:
    """The model of results `(R, N)`, 2 <= R, dims < R, by variational EM: items are integrated over, abilities are not.

    Logistic where results are right or wrong (`binary`: all are 0 or 1); linear elsewhere, in units of their spread.
    The items' prior is normal, its means and variances learned from all of them (a hierarchical 2PL): what R = 10
    candidates do not tell of an item is taken from the others, and dimensions that explain nothing shrink to 0.
    """
    middle = known.mean(axis=0)
    _, directions = np.linalg.eigh((known - middle) @ (known - middle).T)
    abilities, _ = _standard(directions[:, : -dims - 1 : -1])
    centre, spread = np.append(np.zeros(dims), 0.0 if binary else middle.mean()), np.ones(dims + 1)
    items = Items(
        np.tile(centre, (len(middle), 1)),
        np.tile(np.eye(dims + 1), (len(middle), 1, 1)),
        None if binary else np.ones(len(middle)),
    )
    for _ in range(ROUNDS):
        items = _learned(items, known, abilities, centre, spread)
        centre = items.mean.mean(axis=0)
        spread = ((items.mean - centre) ** 2).mean(axis=0) + np.einsum("nii->i", items.cov) / len(middle)
        square, linear = items.information(known, abilities, None)
        abilities, change = _standard(np.asarray(np.linalg.solve(square + np.eye(dims), linear[..., None])[..., 0]))
        items = Items(items.mean @ change, change.T @ items.cov @ change, items.noise)
        items = Items(items.mean, items.cov, _noise(items, known, abilities))
        centre, spread = centre @ change, np.maximum(np.diag(change.T @ np.diag(spread) @ change), LEAST)
    return Latent(_learned(items, known, abilities, centre, spread), abilities, known)


def _learned(items: Items, known: Array, abilities: Array, centre: Array, spread: Array) -> Items:
    """The items by all results, for abilities, and a prior of mean `centre` and variances `spread`, `(D + 1,)`."""
    design, size = with_one(abilities), len(centre)
    weight = items.precisions(*items.predicted(abilities))
    square = (weight.T @ outer(design).reshape(len(known), -1)).reshape(-1, size, size)
    cov = np.asarray(np.linalg.inv(square + np.diag(1 / spread)))
    linear = items.pulls(known).T @ design + centre / spread
    return Items((cov @ linear[..., None])[..., 0], cov, items.noise)


def _noise(items: Items, known: Array, abilities: Array) -> Array | None:
    """The variances of results around what is expected; few candidates borrow from all items."""
    if items.noise is None:
        return None
    centre, spread = items.predicted(abilities)
    squares = ((known - centre) ** 2 + spread).sum(axis=0)
    noise = (SHARED * squares.mean() / len(known) + squares) / (SHARED + len(known))
    return np.asarray(np.maximum(noise, LEAST))


def _standard(abilities: Array) -> tuple[Array, Array]:
    """Abilities of mean 0 and covariance 1, and the matrix `(D + 1, D + 1)` with `x = change x'` for x = (theta, 1)."""
    mean = abilities.mean(axis=0)
    dims = abilities.shape[1]
    cov = np.cov(abilities.T, bias=True).reshape(dims, dims)
    factor = np.linalg.cholesky(cov + 1e-9 * max(float(np.trace(cov)), 1e-300) * np.eye(dims))
    change = np.eye(dims + 1)
    change[:dims, :dims], change[:dims, dims] = factor, mean
    return np.linalg.solve(factor, (abilities - mean).T).T, change
