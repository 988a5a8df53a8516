"""How does a result depend on ability? Items of a logistic or a linear model, each known only so well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.fidelity.estimator import Array, Indices


@dataclass(frozen=True, eq=False)
class Items:
    """What is known of N items: `eta_i = w_i . (theta, 1)`, w_i normal; a logit, or (`noise`) the result itself.

    With leading axes `(B, ...)` each of B candidates has items of its own: those learned without it. Abilities are
    normal, of mean `(B, D)` and covariance `(B, D, D)`.
    """

    mean: Array  # (..., N, D + 1), of the slopes a_i and the intercept -b_i
    cov: Array  # (..., N, D + 1, D + 1)
    noise: Array | None  # (N,), the variances of results around eta; None: P(right) = sigmoid(eta)

    @property
    def dims(self) -> int:
        """D."""
        return int(self.mean.shape[-1]) - 1

    def at(self, rows: Indices) -> Items:
        """Those of some items."""
        noise = None if self.noise is None else self.noise[rows]
        return Items(self.mean[..., rows, :], self.cov[..., rows, :, :], noise)

    def predicted(self, abilities: Array, cov: Array | None = None) -> tuple[Array, Array]:
        """Mean and variance of eta, `(B, N)` both."""
        design = with_one(abilities)
        seconds = outer(design)
        slopes = self.mean[..., : self.dims]
        if cov is None:
            return dotted(self.mean, design), dotted(_flat(self.cov), _flat(seconds))
        seconds[..., : self.dims, : self.dims] += cov
        own = dotted(_flat(self.cov), _flat(seconds))
        return dotted(self.mean, design), own + dotted(_flat(outer(slopes)), _flat(cov))

    def precisions(self, centre: Array, spread: Array) -> Array:
        """How much a result tells of eta, `(B, N)`, where eta is normal with this mean and variance.

        Of a logit it is the mean of a Polya-Gamma variable, `tanh(c / 2) / (2 c)` with `c^2 = E[eta^2]`: the bound of
        Jaakkola & Jordan (2000), with which each step is one of least squares (Polson, Scott & Windle 2013).
        """
        if self.noise is not None:
            return np.asarray(np.broadcast_to(1 / self.noise, centre.shape))
        half = np.sqrt(centre**2 + spread)
        half *= 0.5
        half += 1e-9
        found = np.tanh(half)
        half *= 4
        found /= half
        return np.asarray(found)

    def pulls(self, values: Array) -> Array:
        """What results `(B, N)` add to the linear term, `(B, N)`."""
        return values - 0.5 if self.noise is None else values / self.noise

    def information(self, values: Array, abilities: Array, cov: Array | None) -> tuple[Array, Array]:
        """What results tell of abilities, `(B, D, D)` and `(B, D)`: log likelihood `- theta H theta / 2 + h theta`."""
        dims, slopes = self.dims, self.mean[..., : self.dims]
        weight = self.precisions(*self.predicted(abilities, cov))
        seconds = outer(self.mean) + self.cov
        across = _summed(weight, seconds[..., :dims, dims])
        square = _summed(weight, _flat(seconds[..., :dims, :dims]))
        return square.reshape(*square.shape[:-1], dims, dims), _summed(self.pulls(values), slopes) - across


def with_one(abilities: Array) -> Array:
    """`(..., D + 1)`: a 1 behind each ability."""
    return np.concatenate([abilities, np.ones((*abilities.shape[:-1], 1))], axis=-1)


def outer(vectors: Array) -> Array:
    """`(..., D, D)`."""
    return np.asarray(vectors[..., :, None] * vectors[..., None, :])


def dotted(rows: Array, vectors: Array) -> Array:
    """`(B, N)`, each of B vectors `(B, K)` with rows `(N, K)`, or with `(B, N, K)` of its own."""
    if rows.ndim == 2:
        return np.asarray(vectors @ rows.T)
    return np.asarray((rows @ vectors[..., None])[..., 0])


def _summed(weights: Array, rows: Array) -> Array:
    """`(B, K)`, the rows `(N, K)` or `(B, N, K)` summed with weights `(B, N)`."""
    if rows.ndim == 2:
        return np.asarray(weights @ rows)
    return np.asarray((weights[:, None] @ rows)[:, 0])


def _flat(square: Array) -> Array:
    return square.reshape(*square.shape[:-2], -1)
