"""What do losses and their gradients tell of points not asked yet? A Gaussian process that has seen both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

DENSE = 2000  # unknowns up to which the system is solved as it stands
ITERATIONS = 150
PRECISION = 1e-9  # of the residual's squared norm
NOISE = 1e-5  # added to the variances of losses, which is 1, and of slopes, which is that over the length squared
PER_LENGTH, SHORTEST = 10, 2.0  # the length scale is sqrt(dim / 10), at least 2, before it is known better
FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4)  # of it, that are tried
NOISES = (0.01, 0.1, 0.3, 1.0, 3.0)  # beyond that, in those variances, that are tried


@dataclass(frozen=True)
class _Kept:
    """What a derivative needs of the covariances with the answers, each `(n, known)` or `(m, n, known)`."""

    first: Array
    second: Array
    across: Array


class Slopes:
    """m processes of Gaussian covariance over the unit cube, conditioned on losses and on all of their slopes.

    With known points x_j, `f(x) = sum_j a_j k(x, x_j) + b_j . d k(x, x_j) / d x_j`, and (a, b) solve the system of all
    losses and slopes, of size known (1 + dim). Where that is large it is by conjugate gradients: a product with the
    matrix costs O(known^2 dim), and the matrix is never formed (de Roos, Gessner & Hennig 2021, arXiv:2102.07542).

    How much of an answer is told by no other is learned beside the length scale: the errors of few items (`noisy`), and
    what is too rough for the covariance.
    """

    def __init__(self, dim: int, noisy: bool = False) -> None:
        self._noisy, self.noise = noisy, 0.0
        self._first = max(SHORTEST, math.sqrt(dim / PER_LENGTH))
        self.length = self._first

    @property
    def length(self) -> float:
        """The length scale, of the unit cube."""
        return float(1 / math.sqrt(self._weight))

    @length.setter
    def length(self, length: float) -> None:
        self._weight = 1 / length**2

    def fit(
        self,
        units: Array,  # (known, dim)
        losses: Array,  # (known, m)
        slopes: Array,  # (known, m, dim)
    ) -> float:
        """Take the length scale by which the first answers foretell the slopes of the last quarter best.

        And with it the best noise, where answers are noisy, or where without it none foretells better than no model.
        Returns the share of these squared slopes that is not foretold.
        """
        kept = len(units) - max(1, len(units) // 4)
        true, first = slopes[kept:], (units[:kept], losses[:kept], slopes[:kept])
        size = (true**2).sum(axis=2) + 1e-30  # (n, m)

        def off(length: float, noise: float) -> Array:
            self.length, self.noise = length, noise
            self.condition(*first)
            return np.asarray(((self.slopes(units[kept:]) - true) ** 2).sum(axis=2))

        lengths = [factor * self._first for factor in FACTORS]
        found = [off(length, 0.0) for length in lengths]
        best = int(np.argmin([(f / size).mean() for f in found]))
        chosen = lengths[best], 0.0
        left = {(length, 0.0): _left(f, size) for length, f in zip(lengths, found, strict=True)}
        if self._noisy or (len(true) > 1 and min(left.values()) >= 1):
            left |= {(length, noise): _left(off(length, noise), size) for length in lengths for noise in NOISES}
            chosen = min(left, key=lambda tried: left[tried])
        self.length, self.noise = chosen
        return left[chosen]

    def slopes(
        self,
        units: Array,  # (n, dim)
    ) -> Array:
        """Expected slopes, `(n, m, dim)`."""
        losses, kept = self(units)
        each = np.eye(losses.shape[1])
        return np.stack([self.pull(units, kept, np.tile(row, (len(units), 1))) for row in each], axis=1)

    def condition(
        self,
        units: Array,  # (known, dim)
        losses: Array,  # (known, m)
        slopes: Array,  # (known, m, dim)
    ) -> None:
        """Learn from these answers, and forget all others."""
        self._known, self._mean = units, losses.mean(axis=0)
        self._scale = np.maximum(np.maximum(losses.std(axis=0), np.abs(slopes).max(axis=(0, 2))), 1e-12)
        solve = self._exactly if losses.size * (1 + units.shape[1]) <= DENSE * losses.shape[1] else self._nearly
        self._value, self._slope = solve((losses - self._mean) / self._scale, slopes / self._scale[:, None])
        self._offset = np.einsum("jn,jmn->mj", units, self._slope)

    def __call__(
        self,
        units: Array,  # (n, dim)
    ) -> tuple[Array, _Kept]:
        """Expected losses `(n, m)`, and what `pull` needs."""
        k, first, second = self._covariances(units)
        across = self._weight * (np.einsum("in,jmn->mij", units, self._slope, optimize=True) - self._offset[:, None])
        losses = k @ self._value - 2 * np.einsum("ij,mij->im", first, across)
        return self._mean + self._scale * losses, _Kept(first, second, across)

    def pull(
        self,
        units: Array,  # (n, dim)
        kept: _Kept,
        weights: Array,  # (n, m)
    ) -> Array:
        """The derivative `(n, dim)` of each point's `weights @ losses`."""
        weighed = weights * self._scale  # (n, m)
        turned = 2 * kept.first * (weighed @ self._value.T) - 4 * kept.second * np.einsum(
            "im,mij->ij", weighed, kept.across
        )
        straight = np.einsum("ij,im,jmn->in", kept.first, weighed, self._slope, optimize=True)
        away = units * turned.sum(axis=1, keepdims=True) - turned @ self._known
        return np.asarray(self._weight * (away - 2 * straight))

    @property
    def _variances(self) -> tuple[float, float]:
        """What errors add to the variance of losses, and of slopes."""
        return NOISE + self.noise, NOISE + self.noise * self._weight

    def _covariances(self, units: Array) -> tuple[Array, Array, Array]:
        """k, and its first and second derivative with respect to squared lengths, each `(n, known)`."""
        squares = (units**2).sum(axis=1)[:, None] + (self._known**2).sum(axis=1) - 2 * units @ self._known.T
        k = np.exp(-0.5 * self._weight * np.maximum(squares, 0.0))
        return k, -0.5 * k, 0.25 * k

    def _exactly(self, losses: Array, slopes: Array) -> tuple[Array, Array]:
        """The coefficients a `(known, m)` and b `(known, m, dim)`, by Cholesky's factors."""
        (count, dim), weight = self._known.shape, self._weight
        k, first, second = self._covariances(self._known)
        apart = weight * (self._known[:, None] - self._known)  # (known, known, dim)
        cross = (-2 * first[:, :, None] * apart).reshape(count, count * dim)
        slopes_too = -4 * np.einsum("ij,ijp,ijq->ipjq", second, apart, apart, optimize=True)
        slopes_too += -2 * weight * np.einsum("ij,pq->ipjq", first, np.eye(dim))
        matrix = np.block([[k, cross], [cross.T, slopes_too.reshape(count * dim, count * dim)]])
        of_losses, of_slopes = self._variances
        matrix[np.diag_indices(len(matrix))] += np.repeat([of_losses, of_slopes], [count, count * dim])
        rows = np.vstack([losses, np.moveaxis(slopes, 1, 2).reshape(count * dim, -1)])
        found = cho_solve(cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), rows)
        return found[:count], np.moveaxis(found[count:].reshape(count, dim, -1), 1, 2)

    def _nearly(self, losses: Array, slopes: Array) -> tuple[Array, Array]:
        """The coefficients a `(known, m)` and b `(known, m, dim)`, by conjugate gradients for all m at once."""
        points, weight = self._known, self._weight
        k, first, second = self._covariances(points)
        of_losses, of_slopes = self._variances

        def product(a: Array, b: Array) -> tuple[Array, Array]:
            across = np.einsum("in,jmn->mij", points, b, optimize=True) - np.einsum("jn,jmn->mj", points, b)[:, None]
            across *= weight
            turned = 2 * first * a.T[:, None, :] - 4 * second * across  # (m, known, known)
            away = turned.sum(axis=2).T[:, :, None] * points[:, None, :] - np.moveaxis(turned @ points, 0, 1)
            straight = np.einsum("ij,jmn->imn", first, b, optimize=True)
            values = k @ a - 2 * np.einsum("ij,mij->im", first, across)
            return values + of_losses * a, weight * (away - 2 * straight) + of_slopes * b

        def inner(a: Array, b: Array, c: Array, d: Array) -> Array:
            return np.asarray((a * c).sum(axis=0) + (b * d).sum(axis=(0, 2)))

        scale = 1 + of_losses, weight + of_slopes  # the matrix's diagonal
        value, slope = np.zeros_like(losses), np.zeros_like(slopes)
        left, left_slope = losses.copy(), slopes.copy()
        to, to_slope = left / scale[0], left_slope / scale[1]
        size = first_size = inner(left, left_slope, to, to_slope)
        for _ in range(ITERATIONS):
            out, out_slope = product(to, to_slope)
            step = size / np.maximum(inner(to, to_slope, out, out_slope), 1e-300)
            value += step * to
            slope += step[None, :, None] * to_slope
            left -= step * out
            left_slope -= step[None, :, None] * out_slope
            scaled, scaled_slope = left / scale[0], left_slope / scale[1]
            new = inner(left, left_slope, scaled, scaled_slope)
            if (new < PRECISION * first_size).all():
                break
            turn, size = new / np.maximum(size, 1e-300), new
            to, to_slope = scaled + turn * to, scaled_slope + turn[None, :, None] * to_slope
        return value, slope


def _left(off: Array, size: Array) -> float:
    """The share of answers' squared slopes `(n, m)` that is not foretold, all tasks together, of the average answer."""
    return float((off.sum(axis=1) / size.sum(axis=1)).mean())
