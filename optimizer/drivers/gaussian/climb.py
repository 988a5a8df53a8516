"""Where does a model of the losses promise most? Many climbs at once, each along a direction of its own."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.drivers.gaussian.features import Moves

Array = NDArray[np.float64]
Kept = TypeVar("Kept")  # what a derivative needs of its losses

SHARPNESS = 20.0  # of the soft minimum over objectives, in box units
RATE, DECAY, SQUARES = 0.03, 0.8, 0.95  # of Adam
SHARE = 0.1  # of the reach: the rate where every coordinate moves by itself
FLAT = 0.02  # the least entry of a direction


class Model(Protocol[Kept]):
    """Expected losses of unit points, and the derivative of their weighted sums."""

    def __call__(self, units: Array) -> tuple[Array, Kept]:
        """Losses `(n, m)` of points `(n, dim)`, and what `pull` needs."""
        ...

    def pull(self, units: Array, kept: Kept, weights: Array) -> Array:
        """The derivative `(n, dim)` of each point's `weights @ losses`, for weights `(n, m)`."""
        ...


def climb(
    model: Model[Kept],
    starts: Array,  # (n, dim), in the unit cube
    directions: Array,  # (n, m)
    moves: Moves | None,  # None: every coordinate by itself
    reach: Array,  # (n, 1): how far a coordinate may go
    first: Array,  # (n, moves): first steps
    steps: int,
) -> Array:
    """End points `(n, dim)`: each start's climb of `min_j (1 - loss_j) / d_j`, softened, by Adam within its reach.

    Where every coordinate moves by itself, all of a start share one size of steps, so that those which matter little
    stay about where they are: moved as far as the others, they follow the luck of the items that slopes are of.

    A step goes through the tree of levels four times: moves to units and units to features, and back. Its rows are
    orthogonal, so that without the clipping between them features would follow from moves by factors alone; what is
    clipped needs all of it again. They take a seventh of the time (mlp96), so the plain form stays.
    """
    low, high = np.maximum(starts - reach, 0.0), np.minimum(starts + reach, 1.0)
    alone = moves is None
    rate = SHARE * reach if alone else RATE
    taken = first.copy()
    mean, square = np.zeros_like(taken), np.zeros_like(taken)

    def reached() -> tuple[Array, Array]:
        raw = starts + (taken if moves is None else moves(taken))
        inside = np.clip(raw, low, high)
        return inside, raw - inside

    for i in range(1, steps + 1):
        units, outside = reached()
        losses, kept = model(units)
        exponents = (losses - 1) / directions * SHARPNESS
        exponents -= exponents.max(axis=1, keepdims=True)
        share = np.exp(exponents)
        share /= share.sum(axis=1, keepdims=True)
        slope = model.pull(units, kept, share / directions) + outside  # what is outside is drawn back
        slope = slope if moves is None else moves.pull(slope)
        mean = DECAY * mean + (1 - DECAY) * slope
        size = (slope**2).mean(axis=1, keepdims=True) if alone else slope**2
        square = SQUARES * square + (1 - SQUARES) * size
        step = (mean / (1 - DECAY**i)) / (np.sqrt(square / (1 - SQUARES**i)) + 1e-12)
        taken -= rate * (1.5 - i / steps) * step
    return reached()[0]


def drawn_directions(stream: np.random.Generator, count: int, objectives: int) -> Array:
    """Directions `(count, m)` drawn evenly from the positive part of the unit sphere."""
    drawn = np.abs(stream.standard_normal((count, objectives)))
    return np.asarray(np.maximum(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), FLAT))


def compressed(losses: Array) -> Array:
    """Losses in box units, but logarithmic beyond the reference 1: how much worse than useless says little."""
    return np.where(losses > 1, 1 + np.log(np.maximum(losses, 1)), losses)


def compressed_errors(losses: Array, errors: Array) -> Array:
    """What standard errors of losses are once these are compressed: times the slope there."""
    return np.asarray(errors / np.maximum(losses, 1.0))
