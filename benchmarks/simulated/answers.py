"""What do simulated merges answer, item by item? Tables (candidates, items) of one metric, in the order of a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.simulated.merge import Array, Merge
from benchmarks.simulated.networks import Calibration, networks

CHILDREN = 4  # that each best point has before a narrower round
FIRST = 0.3  # the spread of the first round's steps


@dataclass(frozen=True, eq=False)
class Answers:
    """Results of a search's candidates: the experts first, then merges as they came."""

    known: Array  # (candidates, items)
    experts: tuple[int, ...]  # rows


def tested(experts: int, candidates: int, items: int, seed: int, dims: int = 2) -> Answers:
    """Right and wrong answers drawn from a logistic model: `P(right) = sigmoid(a_i . theta - b_i)`.

    A merge's ability is a convex mix of the experts', and a little of its own.
    """
    rng = np.random.default_rng(seed)
    slopes = np.abs(rng.normal(1.0, 0.5, size=(items, dims)))
    hardness = rng.normal(0.0, 1.5, size=items)
    alone = rng.normal(size=(experts, dims))
    mixes = np.vstack([np.eye(experts), rng.dirichlet(np.ones(experts), size=candidates - experts)])
    abilities = mixes @ alone + 0.5 + 0.2 * rng.normal(size=(candidates, dims))
    right = 1 / (1 + np.exp(hardness - abilities @ slopes.T))
    return Answers((rng.random(right.shape) < right).astype(np.float64), tuple(range(experts)))


def squared(merge: Merge, outputs: Array, targets: Array) -> Array:
    """Squared errors `(n,)`."""
    return np.asarray(np.mean((outputs - targets) ** 2, axis=-1))


def right(merge: Merge, outputs: Array, targets: Array) -> Array:
    """Whether the largest output is the target's, `(n,)`."""
    return np.asarray((outputs.argmax(axis=-1) == targets.argmax(axis=-1)).astype(np.float64))


def merged(
    metric: Callable[[Merge, Array, Array], Array],
    experts: int,
    candidates: int,
    items: int,
    seed: int,
    searched: bool = False,
) -> Answers:
    """A metric of merged small networks (`networks`) on one task's items.

    Coefficients are drawn from [0, 1], or `searched`: drawn for a third of the candidates, then steps from the best.
    """
    rng = np.random.default_rng(seed + 99)
    merge = networks(experts, 6, seed, items=items, width=12, inputs=8)
    tasks = merge.tasks
    assert isinstance(tasks, Calibration)
    groups, width = merge.shape[0], len(tasks.network.head)
    points = [np.tile(row, (groups, 1)) for row in np.eye(experts)]
    rows: list[Array] = []
    while len(rows) < candidates:
        if len(rows) >= experts:
            late = len(rows) / candidates
            points.append(rng.random((groups, experts)))
            if searched and late > 1 / 3:
                sign = -1 if metric is right else 1
                best = np.argsort([sign * row.mean() for row in rows])[:CHILDREN]
                parent = points[int(rng.choice(best))]
                points[-1] = np.clip(parent + FIRST * (1 - late) * rng.normal(size=parent.shape), 0, 1)
        weights = merge.base + (points[len(rows)][:, None] @ merge.deltas)[:, 0]
        outputs = tasks.network.outputs(weights.reshape(-1, width, width), tasks.inputs[0])
        rows.append(metric(merge, outputs, tasks.targets[0]))
    return Answers(np.array(rows), tuple(range(experts)))


# name -> a table of `candidates` candidates and `items` items, by seed
ANSWERS: dict[str, Callable[[int, int, int], Answers]] = {
    "irt": lambda candidates, items, seed: tested(3, candidates, items, seed),
    "right": lambda candidates, items, seed: merged(right, 3, candidates, items, seed),
    "right/search": lambda candidates, items, seed: merged(right, 3, candidates, items, seed, searched=True),
    "loss": lambda candidates, items, seed: merged(squared, 3, candidates, items, seed),
    "loss/search": lambda candidates, items, seed: merged(squared, 3, candidates, items, seed, searched=True),
}
