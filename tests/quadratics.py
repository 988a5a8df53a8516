"""What do tests of gradient drivers walk on? Tasks with quadratic losses, whose optima are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from driver_rows import Box, frozen
from numpy.typing import NDArray

from optimizer.driver import Driver, Outcome, Question
from optimizer.drivers import find

Array = NDArray[np.float64]


def domain(groups: int = 2, experts: int = 2, low: float = 0.0, high: float = 1.0, start: float = 0.3) -> Box:
    dim = groups * experts
    return Box(*(frozen(np.full(dim, value)) for value in (low, high, start)), (groups, experts))


def made(name: str, where: Box, objectives: int = 1, **options: Any) -> Driver:
    kind = find(name).load()
    return kind(where, objectives, 0, kind.Options.model_validate(options))


@dataclass
class Toy:
    """Tasks with losses `sum_i curvature_ti (c_i - target_ti)^2 / 2 + floor`, which are the objectives too."""

    targets: Array  # (T, dim)
    curvatures: Array | float = 1.0
    floor: float = 0.0
    cosines: Array | None = None  # (dim,)
    sizes: Array | None = None  # (dim,)
    grams: Array | None = None  # (K + 2, dim)
    fails: Callable[[Question], str | None] = field(default=lambda question: None)

    def losses(self, point: Array) -> Array:
        return np.asarray((self.curvatures * (point - self.targets) ** 2).sum(axis=1) / 2 + self.floor)

    def answer(self, question: Question) -> Outcome:
        point = question.point
        losses, zeros = self.losses(point), np.zeros(len(self.targets))
        if failure := self.fails(question):
            scores = question.wants == "scores"
            return Outcome(question, np.full(len(losses) if scores else 0, 9.0), zeros, failure=failure)
        if question.wants == "scores":
            return Outcome(question, losses, zeros)
        if question.wants == "sizes":
            assert self.sizes is not None
            return Outcome(question, np.zeros(0), np.zeros(0), self.sizes[None])
        if question.wants == "grams":
            assert self.grams is not None
            return Outcome(question, np.zeros(0), np.zeros(0), self.grams)
        rows = self.curvatures * (point - self.targets)
        if question.wants == "cosines":
            assert self.cosines is not None
            return Outcome(question, losses, zeros, self.cosines[None])
        return Outcome(question, losses, zeros, rows if question.wants == "gradients" else rows.mean(axis=0)[None])


def walked(
    driver: Driver, toy: Toy, workers: int = 1, pick: Callable[[Sequence[Question]], int] = lambda waiting: 0
) -> list[Outcome]:
    """All answers until the driver is done, `pick` saying which of those on their way comes next."""
    told: list[Outcome] = []
    waiting: list[Question] = []
    while True:
        waiting += driver.ask(workers - len(waiting))
        if not waiting:
            assert driver.done
            return told
        outcome = toy.answer(waiting.pop(pick(waiting)))
        driver.tell([outcome])
        told.append(outcome)


def scored(told: Sequence[Outcome]) -> Array:
    """Points whose scores were asked, in the order of their questions, `(n, dim)`."""
    outcomes = sorted((o for o in told if o.question.wants == "scores"), key=lambda o: o.question.number)
    return np.array([o.question.point for o in outcomes])


def stepped(told: Sequence[Outcome]) -> Array:
    """Points at which gradients were asked, `(n, dim)`."""
    return np.array([o.question.point for o in told if o.question.wants != "scores"])
