"""What do scores tell of points not asked yet? A Gaussian process for each objective, its length scales learned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, get_lapack_funcs, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

COARSE, FINE = np.log(1.0), np.log(0.6)  # centres of the priors of log(1 / length^2)
WIDTH = 1.5  # standard deviation of that prior, and of the log variance's
NOISE = (np.log(1e-4), 2.0)  # centre and standard deviation of the prior of the log noise
ITERATIONS = 20
JITTER = 1e-7


class Process:
    """m processes of zero mean and Matern-5/2 covariance over features; each learns one length scale a kind of feature.

    Losses are standardised. Answers have errors of their own, normal and independent, beside the noise that is learned:
    0 of what is exact. Hyperparameters maximise the posterior (likelihood times log-normal priors), by L-BFGS.
    `kinds` `(features,)` numbers the features that share a length scale; `coarse` says of each kind which prior it has.
    """

    def __init__(self, kinds: NDArray[np.int64], coarse: NDArray[np.bool_], objectives: int) -> None:
        self._kinds, self._coarse, self._m = kinds, coarse, objectives
        centre = np.where(coarse, COARSE, FINE)
        self._theta = [np.concatenate([centre, [0.0, NOISE[0]]]) for _ in range(objectives)]
        self._first = self._theta[0].copy()

    def fit(
        self,
        features: Array,  # (n, features)
        losses: Array,  # (n, m)
        errors: Array,  # (n, m)
    ) -> None:
        """Learn the length scales, variances and noises anew."""
        scale = _spread(losses)
        standard, variances = (losses - losses.mean(axis=0)) / scale, (errors / scale) ** 2
        distances = np.array([_squares(features[:, self._kinds == i]) for i in range(len(self._coarse))])
        bounds = [(-9.0, 4.0)] * len(self._coarse) + [(-3.0, 6.0), (-14.0, 0.0)]
        for j in range(self._m):
            found = minimize(
                self._energy,
                self._first,
                (distances, standard[:, j], variances[:, j]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": ITERATIONS},
            )
            self._theta[j] = found.x

    def condition(
        self,
        features: Array,  # (n, features)
        losses: Array,  # (n, m)
        errors: Array,  # (n, m)
    ) -> Array:
        """Learn from these answers, and forget all others; hyperparameters stay.

        What is expected at their points, `(n, m)`: the answers without their noise.
        """
        self._known, self._mean, self._scale = features, losses.mean(axis=0), _spread(losses)
        self._weights, self._variance, self._factor, self._answer = [], [], [], []
        standard, smoothed = (losses - self._mean) / self._scale, losses.copy()
        variances = (errors / self._scale) ** 2
        for j, theta in enumerate(self._theta):
            weights = np.exp(theta[:-2])[self._kinds]
            variance = float(np.exp(theta[-2]))
            covariance = variance * _matern(_distances(features, features, weights))[0]
            noise = np.exp(theta[-1]) + JITTER + variances[:, j]
            covariance[np.diag_indices(len(features))] += noise
            factor = cholesky(covariance, lower=True, check_finite=False)
            self._weights.append(weights)
            self._variance.append(variance)
            self._factor.append(factor)
            self._answer.append(cho_solve((factor, True), standard[:, j], check_finite=False))
            smoothed[:, j] -= self._scale[j] * noise * self._answer[j]  # K a = (K + S) a - S a
        return smoothed

    def __call__(
        self,
        features: Array,  # (n, features)
    ) -> tuple[Array, list[Array]]:
        """Expected losses `(n, m)`, and what `pull` needs to differentiate them."""
        found = [self._covariances(features, j) for j in range(self._m)]
        means = [self._mean[j] + self._scale[j] * (k @ self._answer[j]) for j, (k, _) in enumerate(found)]
        return np.stack(means, axis=1), [slope for _, slope in found]

    def pull(
        self,
        features: Array,  # (n, features)
        kept: list[Array],
        weights: Array,  # (n, m)
    ) -> Array:
        """The derivative `(n, features)` of each point's `weights @ losses`."""
        total = np.zeros_like(features)
        for j, slope in enumerate(kept):
            pushed = slope * (weights[:, j, None] * self._scale[j] * self._answer[j])  # (n, known)
            total += self._weights[j] * (features * pushed.sum(axis=1, keepdims=True) - pushed @ self._known)
        return total

    def deviation(
        self,
        features: Array,  # (n, features)
    ) -> Array:
        """Standard deviations of the expected losses, `(n, m)`."""
        columns = []
        for j in range(self._m):
            covariance = self._covariances(features, j)[0]
            solved = solve_triangular(self._factor[j], covariance.T, lower=True, check_finite=False)
            variance = np.maximum(self._variance[j] - (solved**2).sum(axis=0), 1e-10)
            columns.append(self._scale[j] * np.sqrt(variance))
        return np.stack(columns, axis=1)

    def _covariances(self, features: Array, j: int) -> tuple[Array, Array]:
        """With the answers: k, and 2 dk / d r^2, each `(n, known)`."""
        k, slope = _matern(_distances(features, self._known, self._weights[j]))
        return self._variance[j] * k, 2 * self._variance[j] * slope

    def _energy(self, theta: Array, distances: Array, losses: Array, variances: Array) -> tuple[float, Array]:
        """Minus the log posterior of hyperparameters, and its derivative."""
        count, kinds = len(losses), len(self._coarse)
        scales, variance, noise = np.exp(theta[:kinds]), np.exp(theta[-2]), np.exp(theta[-1])
        k, slope = _matern(np.tensordot(scales, distances, 1))
        covariance = variance * k
        covariance[np.diag_indices(count)] += noise + JITTER + variances
        factor, info = get_lapack_funcs("potrf", (covariance,))(covariance, lower=True)
        if info:
            return 1e9, np.zeros_like(theta)
        answer = cho_solve((factor, True), losses, check_finite=False)
        inverse = cho_solve((factor, True), np.eye(count), check_finite=False)
        outer = np.outer(answer, answer) - inverse
        pushed = -0.5 * variance * outer * slope
        slopes = np.concatenate(
            [
                np.tensordot(distances, pushed, 2) * scales,
                [-0.5 * variance * (outer * k).sum(), -0.5 * noise * np.trace(outer)],
            ]
        )
        off = theta - self._first
        width = np.concatenate([np.full(kinds + 1, WIDTH), [NOISE[1]]])
        energy = 0.5 * losses @ answer + np.log(np.diag(factor)).sum() + 0.5 * ((off / width) ** 2).sum()
        return float(energy), slopes + off / width**2


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern-5/2 of squared distances in lengths, and its derivative with respect to them."""
    r = np.sqrt(5.0 * squares + 1e-12)
    decay = np.exp(-r)
    return (1 + r + r * r / 3) * decay, -(5 / 6) * (1 + r) * decay


def _distances(a: Array, b: Array, weights: Array) -> Array:
    root = np.sqrt(weights)
    a, b = a * root, b * root
    return np.asarray(np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0))


def _squares(features: Array) -> Array:
    return _distances(features, features, np.ones(features.shape[1]))


def _spread(losses: Array) -> Array:
    return np.asarray(losses.std(axis=0) + 1e-9)
