"""How do gradients of several losses trace a front? Preferences that move step by step, or one common descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import nnls

from optimizer.driver import Domain, DriverError, Outcome, Point, Wants, preference
from optimizer.drivers.walks import descent
from optimizer.drivers.walks.adam import AdamRule, Bounds
from optimizer.drivers.walks.descent import Descent

STATIONARY = 1e-6  # of the largest gradient's norm: a common direction shorter than this leads nowhere


class MGDA(Descent):
    """Adam along the common descent direction of the tasks' losses (Desideri 2012; Sener & Koltun 2018).

    That is the point of least norm in the convex hull of the tasks' gradients, each in units of its loss at the start:
    against it every loss falls, until none can fall without another's rising. (What Adam and the bounds make of that
    direction has no such guarantee: scores decide.)
    """

    class Options(descent.Options):
        """As those of `supervised`."""

        asks: ClassVar[Wants] = "gradients"
        lr: descent.Lr = 1e-2
        steps: descent.Steps = 150
        bounds: Bounds = "project"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(*("mgda", domain, objectives, options), lambda start: _Common(domain, start, options))


class _Common:
    wants: Wants = "gradients"
    whole = False

    def __init__(self, domain: Domain, start: Point, options: MGDA.Options) -> None:
        self._units = _Units()
        self._stationary = False
        self._inner = AdamRule(domain, start, options.lr, options.bounds, direction=self._direction)

    @property
    def point(self) -> Point:
        return self._inner.point

    @property
    def done(self) -> bool:
        return self._stationary

    def update(self, outcome: Outcome) -> Point:
        return self._inner.update(outcome)

    def turn(self) -> bool:
        return False

    def back(self) -> None:
        self._inner.back()

    def _direction(self, outcome: Outcome) -> NDArray[np.float64]:
        rows = self._units.scaled(outcome)
        found = np.asarray(common_weights(rows) @ rows)
        self._stationary = bool(np.linalg.norm(found) <= STATIONARY * np.linalg.norm(rows, axis=1).max())
        return found


def common_weights(
    gradients: NDArray[np.float64],  # (T, dim)
) -> NDArray[np.float64]:
    """Weights `(T,)`, non-negative with sum 1, for which `|weights @ gradients|` is least.

    It is the solution of `min |G^T x|^2 + (sum x - 1)^2, x >= 0`, scaled to sum 1: with x = s w the best s for a w of
    norm n = |G^T w| leaves n^2 / (1 + n^2), which grows with n.
    """
    scale = np.linalg.norm(gradients, axis=1).max()
    if scale == 0:
        return np.full(len(gradients), 1 / len(gradients))
    system = np.vstack([gradients.T / scale, np.ones(len(gradients))])
    found, _ = nnls(system, np.append(np.zeros(gradients.shape[1]), 1.0))
    return np.asarray(found / found.sum())


class ParetoPath(Descent):
    """Traces the front: Adam on weighted losses, whose weights move step by step, from where the last ones led.

    The first walk weighs all tasks alike, for `first` times `every` steps. From its end a path
    leads towards each task: the task's weight rises in `stops` equal steps to `emphasis`, the others share the rest,
    and each stop takes `every` steps, at whose end the point is scored. Losses are in units of their first value.
    """

    class Options(descent.Options):
        asks: ClassVar[Wants] = "gradients"
        lr: descent.Lr = 1e-2
        steps: descent.Steps = 5000
        patience: descent.Patience = None
        first: int = Field(4, ge=1, description="The steps of the first walk, in units of `every`.")
        stops: int = Field(
            3,
            ge=1,
            description="Stops of a path to an end, of `every` steps each; more lie closer together along the front.",
        )
        emphasis: float = Field(
            0.9,
            gt=0,
            le=1,
            description="A task's weight at the end of its path, of 1 in all; 1 heeds no other task there.",
        )
        ends: list[list[float]] | None = Field(
            None,
            description="The tasks' weights that paths lead to, each end a row of one number a task. Default: one for"
            " each task, by `emphasis`.",
        )
        bounds: Bounds = "project"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(*("pareto", domain, objectives, options), lambda start: _Path(domain, start, options))
        self._weights = (options.emphasis, options.ends)

    def trained_on(self, tasks: int) -> None:
        """Raises DriverError where `ends` are not of so many tasks."""
        targets(tasks, *self._weights)


class _Path:
    wants: Wants = "gradients"
    whole = False

    def __init__(self, domain: Domain, start: Point, options: ParetoPath.Options) -> None:
        self._domain, self._options = domain, options
        self._units = _Units()
        self._weights: NDArray[np.float64] | None = None  # (T,), known once the first gradients are
        self._ahead: list[tuple[NDArray[np.float64], bool]] = []  # weights, and whether from the first walk's end
        self._left = options.first * options.every  # steps of this stop
        self._centre = (start, start)  # the first walk's end, once it is there, and where it last had a gradient
        self._branched = False
        self._inner = self._walk(start, start)
        self.done = False

    @property
    def point(self) -> Point:
        return self._inner.point

    def update(self, outcome: Outcome) -> Point:
        if self._weights is None:
            ends = targets(len(outcome.losses), self._options.emphasis, self._options.ends)
            self._weights = np.full(len(outcome.losses), 1 / len(outcome.losses))
            for end in ends:
                for j in range(1, self._options.stops + 1):
                    part = j / self._options.stops
                    self._ahead.append(((1 - part) * self._weights + part * end, j == 1))
        reached = self._inner.update(outcome)
        self._left -= 1
        if self._left == 0:
            self._next_stop()
        return reached

    def turn(self) -> bool:
        return False

    def back(self) -> None:
        self._inner.back()

    def _next_stop(self) -> None:
        """On to the next stop: from where this one ended, or from the end of the first walk."""
        if not self._ahead:
            self.done = True
            return
        here = (self.point, self._inner.good)
        if not self._branched:
            self._centre, self._branched = here, True
        self._weights, anew = self._ahead.pop(0)
        self._inner = self._walk(*(self._centre if anew else here))
        self._left = self._options.every

    def _walk(self, start: Point, good: Point) -> AdamRule:
        options = self._options
        return AdamRule(self._domain, start, options.lr, options.bounds, direction=self._direction, good=good)

    def _direction(self, outcome: Outcome) -> NDArray[np.float64]:
        assert self._weights is not None
        return np.asarray(self._weights @ self._units.scaled(outcome))


def targets(
    tasks: int,  # T
    emphasis: float,
    ends: Sequence[Sequence[float]] | None,
) -> NDArray[np.float64]:
    """Where paths lead, `(paths, T)`, each row with sum 1. Raises DriverError on ends that do not fit."""
    if ends is None:
        if tasks == 1:
            return np.ones((0, 1))
        return np.full((tasks, tasks), (1 - emphasis) / (tasks - 1)) + np.eye(tasks) * (
            emphasis - (1 - emphasis) / (tasks - 1)
        )
    if not len(ends):
        raise DriverError("driver.ends: the list is empty; give one weight per task, or leave the key out")
    return np.array([preference("driver.ends", row, "task", tasks) for row in ends])


class _Units:
    """Gradients of the tasks in units of their losses at the first point: none outweighs the others by its scale.

    A loss may be next to nothing there (an expert's distance from itself): its unit is a hundredth of the largest one.
    """

    def __init__(self) -> None:
        self._scale: NDArray[np.float64] | None = None  # (T,)

    def scaled(self, outcome: Outcome) -> NDArray[np.float64]:
        """`(T, dim)`."""
        assert outcome.gradient is not None
        if self._scale is None:
            first = np.abs(outcome.losses)
            self._scale = np.maximum(first, 0.01 * first.max()) if first.max() > 0 else np.ones_like(first)
        return np.asarray(outcome.gradient / self._scale[:, None])
