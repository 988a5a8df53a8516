"""Which problems are drivers compared on? Five simulated merges, one table; others are named as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.simulated.analytic import analytic
from benchmarks.simulated.merge import Array, Problem
from benchmarks.simulated.networks import networks
from searchspaces.domain import Domain


@dataclass(frozen=True)
class Entry:
    """How a problem is made, and the hypervolume of a front of it that took far more than any search may.

    That front is what Adam over 25 to 61 preferences found, 150 to 300 steps each; the hypervolume is up to the losses
    (1, ..., 1).
    """

    make: Callable[[], Problem]
    hypervolume: float


PROBLEMS: dict[str, Entry] = {
    "mlp24": Entry(partial(networks, experts=2, layers=12, seed=1), 0.6431),
    "mlp48": Entry(partial(networks, experts=3, layers=16, seed=2), 0.2034),
    "mlp96": Entry(partial(networks, experts=3, layers=32, seed=3, items=192), 0.1651),
    "ana24": Entry(partial(analytic, experts=2, layers=12, seed=4), 0.9839),
    "ana96": Entry(partial(analytic, experts=3, layers=32, seed=5), 0.8925),
}


LEAST = -1e6  # loss: what is far below that of any merge, and whose volumes would be infinite


@dataclass(frozen=True, eq=False)
class Own:
    """A problem of the user's, of which nothing but losses is known; what its function returns is checked each time."""

    entry: str
    shape: tuple[int, int]
    losses: Callable[[Array], Sequence[float] | Array]
    count: int | None = None  # of losses, once it is known

    def objectives(self, point: Array) -> Array:
        """The losses `(m,)`. Raises ValueError where the function raises, or returns something else."""
        said = np.array2string(point, threshold=8)
        try:
            losses = np.asarray(self.losses(point.copy()), dtype=np.float64)
        except Exception as error:  # what a function of another raises is its own affair
            raise ValueError(
                f"--problem-from {self.entry}: expected losses (m,) of a point (groups * experts,), got"
                f" {type(error).__name__} at {said}: {error}; mend the function"
            ) from error
        few = losses.ndim != 1 or not len(losses) or len(losses) != (self.count or len(losses))
        if few or not (np.isfinite(losses) & (losses >= LEAST)).all():
            raise ValueError(
                f"--problem-from {self.entry}: expected {self.count or 'm'} finite losses of {LEAST:g} or more at"
                f" {said}, got {losses.tolist()!r:.200}; return these"
            )
        return losses


def loaded(entry: str) -> Own:
    """The problem that `module:function` returns as `((groups, experts), objectives)`, of whatever makes it.

    `objectives` takes a point `(groups * experts,)` of float64 in [0, 1], where coordinate `g * experts + k` is the
    coefficient of expert k in group g, and returns the losses `(m,)`: as many each time, finite, minimised, and 1 where
    a merge is worth no more than none, since hypervolumes are up to (1, ..., 1). Only drivers that ask for scores can
    search it.

    So the surrogate of a benchmark of tables or regressors is a function of some lines:

        def surrogate():
            model = joblib.load("accuracy.joblib")
            return (32, 2), lambda point: [(model.predict(point[None])[0] - BEST) / (BASE - BEST)]

    Modules are looked for in the working folder too. Raises ValueError on an entry that cannot be had, or returns
    something else.
    """
    module, _, name = entry.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # the module is the user's, and may raise whatever it likes
        raise ValueError(
            f"--problem-from {entry}: expected module:function, a function of no arguments that can be imported, got"
            f" {type(error).__name__}: {error}; name one"
        ) from error
    try:
        (groups, experts), objectives = made
        shape = (int(groups), int(experts))
        if min(shape) < 1 or not callable(objectives):
            raise ValueError("groups and experts are from 1, and objectives is a function")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"--problem-from {entry}: expected ((groups, experts), objectives), got {made!r:.200}, and {error};"
            " return these"
        ) from error
    problem = Own(entry, shape, objectives)
    return replace(problem, count=len(problem.objectives(np.full(shape[0] * shape[1], 0.3))))


def domain(problem: Problem) -> Domain:
    """The box [0, 1] of a problem's coefficients, as a space of task arithmetic shows it; groups are layers."""
    groups, experts = problem.shape
    dim = groups * experts
    real: Literal["real"] = "real"
    return Domain(
        names=tuple(f"layer {g}|expert {k}" for g in range(groups) for k in range(experts)),
        low=np.zeros(dim),
        high=np.ones(dim),
        start=np.full(dim, 0.3),
        shape=problem.shape,
        layers=tuple(f"layer {g}" for g in range(groups)),
        base=np.zeros(dim),
        uniform=np.full(dim, 1 / experts),
        vertices=np.tile(np.eye(experts), groups),
        kinds=(real,) * dim,
    )
