"""Which way, and how far? Adam, and Adam on coefficients that have bounds, ties and penalties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optimizer.driver import Domain, Outcome, Point, Wants

Bounds = Annotated[
    Literal["clamp", "project", "sigmoid"],
    Field(
        description="How coefficients stay inside space.bounds: `clamp` moves freely and asks at the nearest point"
        " inside (what has left has no gradient), `project` goes back to the bound, `sigmoid` moves numbers of which"
        " they are sigmoids between the bounds."
    ),
]


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1): `step` gives the update for a gradient of the same shape."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    count: int = 0
    mean: NDArray[np.float64] | float = 0.0  # of gradients
    square: NDArray[np.float64] | float = 0.0  # of their squares

    def step(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        self.count += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient**2
        mean = self.mean / (1 - self.beta1**self.count)
        square = self.square / (1 - self.beta2**self.count)
        return np.asarray(-self.lr * mean / (np.sqrt(square) + self.eps))


class AdamRule:
    """Adam on the coefficients.

    `bounds`: `clamp` moves freely, asks at the nearest point of the box, and a coordinate outside has no gradient;
    `project` stays in the box; `sigmoid` moves a, where c = low + (high - low) sigmoid(a). `direction(outcome)` is the
    gradient `(dim,)` of what is minimised, the only row unless said; `penalty(point)` is added to it. Coordinates with
    the same number in `ties` (dim,) move as one; those where `free` (dim,) is false stay. `good` is where a gradient
    was last had, if that is not `start`.
    """

    wants: Wants = "gradient"
    whole = False
    done = False

    def __init__(
        self,
        domain: Domain,
        start: Point,
        lr: float,
        bounds: Bounds = "project",
        direction: Callable[[Outcome], NDArray[np.float64]] | None = None,
        penalty: Callable[[Point], NDArray[np.float64]] | None = None,
        ties: NDArray[np.int64] | None = None,
        free: NDArray[np.bool_] | None = None,
        good: Point | None = None,
    ) -> None:
        self._low, self._high, self._bounds = domain.low, domain.high, bounds
        self._span = domain.high - domain.low
        self._direction, self._penalty = direction, penalty
        self._ties = np.arange(len(start)) if ties is None else ties
        self._first = np.unique(self._ties, return_index=True)[1]  # of each tie, a coordinate that stands for it
        self._free = np.ones(len(start), dtype=bool) if free is None else free
        self._adam = Adam(lr)
        self._held = start[self._first][self._ties] if len(self._first) < len(start) else np.array(start)
        self._latent = self._into(self._held)
        self._good = self._latent.copy() if good is None else self._into(good)

    @property
    def point(self) -> Point:
        return self._at(self._latent)

    @property
    def good(self) -> Point:
        """Where a gradient was last had."""
        return self._at(self._good)

    def update(self, outcome: Outcome) -> Point:
        assert outcome.gradient is not None
        point = self.point
        slope = outcome.gradient[0] if self._direction is None else self._direction(outcome)
        if self._penalty is not None:
            slope = slope + self._penalty(point)
        slope = np.where(self._free, slope * self._inner(point), 0.0)
        step = self._adam.step(np.bincount(self._ties, slope).astype(np.float64))[self._ties]
        self._good = self._latent.copy()
        self._latent = self._latent + np.where(self._free, step, 0.0)
        if self._bounds == "project":
            self._latent = np.clip(self._latent, self._low, self._high)
        return self.point

    def turn(self) -> bool:
        return False

    def back(self) -> None:
        self._latent = self._good.copy()
        self._adam = Adam(self._adam.lr / 2)

    def _at(self, latent: NDArray[np.float64]) -> Point:
        if self._bounds == "sigmoid":
            return np.where(self._free, self._low + self._span * _sigmoid(latent), self._held)
        return np.clip(latent, self._low, self._high)

    def _inner(self, point: Point) -> NDArray[np.float64] | float:
        """d point / d latent."""
        if self._bounds == "sigmoid":
            unit = self._unit(point)
            return np.asarray(self._span * unit * (1 - unit))
        if self._bounds == "clamp":
            return np.asarray((self._latent >= self._low) & (self._latent <= self._high), dtype=np.float64)
        return 1.0

    def _into(self, start: Point) -> NDArray[np.float64]:
        if self._bounds != "sigmoid":
            return start.copy()
        # on a bound the sigmoid has no slope left: begin a little inside
        unit = np.clip(self._unit(start), 0.01, 0.99)
        return np.asarray(np.log(unit / (1 - unit)))

    def _unit(self, point: Point) -> NDArray[np.float64]:
        """Where in its bounds each coordinate lies; those whose bounds meet lie at 0."""
        return np.asarray((point - self._low) / np.where(self._span > 0, self._span, 1.0))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
