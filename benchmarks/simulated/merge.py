"""What is a merge when there are no models? Weights of a few numbers a layer, tasks with losses, and their slopes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Problem(Protocol):
    """What a search is measured on: coefficients in [0, 1], losses to be minimised, and 1 is no better than the base.

    `shape` is `(groups, experts)`, G and K: coordinate `g * K + k` of a point `(G * K,)` is the coefficient of expert k
    in group g.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def objectives(self, point: Array) -> Array:
        """The losses of the tasks, `(T,)`."""
        ...


@runtime_checkable
class Smooth(Problem, Protocol):
    """A problem that also answers what drivers ask who walk by slopes."""

    def slopes(self, point: Array) -> tuple[Array, Array]:
        """The losses `(T,)` and their derivatives `(T, G * K)`."""
        ...

    def cosines(self, point: Array) -> Array:
        """`cos(dL/dW_g, theta_gk)` at (g, k), `(G * K,)`: L is the mean loss, theta_gk expert k's weights in g."""
        ...

    def sizes(self) -> Array:
        """The sum of magnitudes of expert k's task vector in group g at (g, k), `(G * K,)`."""
        ...


class Tasks(Protocol):
    """T tasks: what merged weights `(G, P)` cost each of them. The coefficients `(G, K)` may count by themselves."""

    def losses(self, weights: Array, coefficients: Array) -> Array:
        """`(T,)`."""
        ...

    def slopes(self, weights: Array, coefficients: Array) -> tuple[Array, Array, Array]:
        """Losses `(T,)`, their derivatives by weights `(T, G, P)`, and what coefficients add to these `(T, G, K)`."""
        ...


@dataclass(frozen=True, eq=False)
class Merge:
    """Task arithmetic, `W_g = base_g + sum_k c_gk delta_gk`. Objective t is `(loss_t - loss_t of expert t) / (loss_t of
    the base - loss_t of expert t)`: 0 for the task's own expert, 1 for the base, and below 0 for what beats the expert.

    Losses of all tasks are had in one pass. So are their slopes: the derivative of each task's loss is of its own data,
    so that all of them cost as much as that of a weighted sum.
    """

    base: Array  # (G, P)
    deltas: Array  # (G, K, P), expert k's task vector in group g
    tasks: Tasks  # as many as experts

    @property
    def shape(self) -> tuple[int, int]:
        return self.deltas.shape[0], self.deltas.shape[1]

    def objectives(self, point: Array) -> Array:
        coefficients, weights = self._merged(point)
        expert, span = self._scale
        return (self.tasks.losses(weights, coefficients) - expert) / span

    def slopes(self, point: Array) -> tuple[Array, Array]:
        losses, _, slopes = self._differentiated(point)
        return losses, slopes

    def cosines(self, point: Array) -> Array:
        _, by_weights, _ = self._differentiated(point)
        mean, experts = by_weights.mean(axis=0), self.base[:, None] + self.deltas  # (G, P), (G, K, P)
        norms = np.linalg.norm(mean, axis=1)[:, None] * np.linalg.norm(experts, axis=2)
        inner = (experts @ mean[:, :, None])[:, :, 0]
        return np.asarray(np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 0).ravel())

    def sizes(self) -> Array:
        return np.asarray(np.abs(self.deltas).sum(axis=2).ravel())

    def _differentiated(self, point: Array) -> tuple[Array, Array, Array]:
        """Objectives `(T,)`, their derivatives by weights `(T, G, P)`, and by coefficients `(T, G * K)`."""
        coefficients, weights = self._merged(point)
        expert, span = self._scale
        losses, by_weights, direct = self.tasks.slopes(weights, coefficients)
        # the chain rule, a product of small matrices for each group: (G, T, P) x (G, P, K)
        slopes = (by_weights.swapaxes(0, 1) @ self.deltas.swapaxes(1, 2)).swapaxes(0, 1) + direct
        slopes = slopes.reshape(len(span), -1) / span[:, None]
        return (losses - expert) / span, by_weights / span[:, None, None], slopes

    def _merged(self, point: Array) -> tuple[Array, Array]:
        """The coefficients `(G, K)` of a point, and the weights `(G, P)` that they make."""
        coefficients = point.reshape(self.shape)
        return coefficients, self.base + (coefficients[:, None] @ self.deltas)[:, 0]

    @cached_property
    def _scale(self) -> tuple[Array, Array]:
        """Each task's loss under its own expert, and how much more the base has; `(T,)` both."""
        groups, experts = self.shape
        rows = [np.zeros((groups, experts)), *(np.tile(row, (groups, 1)) for row in np.eye(experts))]
        base, *alone = (self.tasks.losses(self._merged(row)[1], row) for row in rows)
        own = np.diagonal(np.array(alone)).copy()
        return own, base - own
