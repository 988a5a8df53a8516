"""How do merges behave whose formula is known? Quadratics in merged weights that couple layers, bent, with a ripple."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.simulated.merge import Array, Merge


@dataclass(frozen=True, eq=False)
class Coupled:
    """Task t costs `log(1 + exp(3 q - 2)) / 3`, with `q = r + 0.3 r^2 + 0.02 mean sin(6 c + phase_t)` of its distance
    `r = |M_t (w - optimum_t)|^2 / |M_t optimum_t|^2` in merged weights w.
    """

    metrics: Array  # (T, G * P, G * P), M
    optima: Array  # (T, G * P)
    phases: Array  # (T, G, K)

    def losses(self, weights: Array, coefficients: Array) -> Array:
        _, distances = self._apart(weights)
        return np.asarray(np.logaddexp(0.0, 3 * self._bent(distances, coefficients) - 2) / 3)

    def slopes(self, weights: Array, coefficients: Array) -> tuple[Array, Array, Array]:
        apart, distances = self._apart(weights)
        bent = self._bent(distances, coefficients)
        outer = np.exp(3 * bent - 2 - np.logaddexp(0.0, 3 * bent - 2))  # d loss / dq, a sigmoid
        inner = 2 * (1 + 0.6 * distances) / self._units
        by_weights = (outer * inner)[:, None] * (apart[:, None] @ self.metrics)[:, 0]
        ripple = 0.12 * np.cos(6 * coefficients + self.phases) / coefficients.size
        losses = np.logaddexp(0.0, 3 * bent - 2) / 3
        return losses, by_weights.reshape(-1, *weights.shape), outer[:, None, None] * ripple

    def _apart(self, weights: Array) -> tuple[Array, Array]:
        """`M_t (w - optimum_t)`, `(T, G * P)`, and r `(T,)`."""
        apart = (self.metrics @ (weights.ravel() - self.optima)[:, :, None])[:, :, 0]
        return apart, (apart**2).sum(axis=1) / self._units

    def _bent(self, distances: Array, coefficients: Array) -> Array:
        ripple = 0.02 * np.sin(6 * coefficients + self.phases).mean(axis=(1, 2))
        return np.asarray(distances + 0.3 * distances**2 + ripple)

    @cached_property
    def _units(self) -> Array:
        return np.asarray(((self.metrics @ self.optima[:, :, None]) ** 2).sum(axis=(1, 2)))


def analytic(experts: int, layers: int, seed: int, size: int = 6) -> Merge:
    """Task vectors with a common part, and for each task a metric: how much each layer counts, and neighbours coupled.

    The base is 0. A task's optimum is near its expert, and not on it.
    """
    rng = np.random.default_rng(seed)
    block = layers * size
    deltas = rng.normal(size=(experts, layers, size)) + 0.4 * rng.normal(size=(1, layers, size))
    importance = np.exp(rng.normal(size=(experts, layers)) * 0.9)
    couplings = 0.35 * rng.normal(size=(experts, layers - 1, size, size)) / np.sqrt(size)
    metrics = np.tile(np.eye(block), (experts, 1, 1))
    for g in range(layers - 1):
        metrics[:, g * size : (g + 1) * size, (g + 1) * size : (g + 2) * size] += couplings[:, g]
    metrics *= np.sqrt(importance).repeat(size, axis=1)[:, None]
    optima = 0.9 * deltas.reshape(experts, block) + 0.15 * deltas.mean(axis=0).reshape(block)
    phases = rng.uniform(0, 6.28, size=(experts, experts, layers)).swapaxes(1, 2).copy()
    return Merge(np.zeros((layers, size)), deltas.swapaxes(0, 1).copy(), Coupled(metrics, optima, phases))
