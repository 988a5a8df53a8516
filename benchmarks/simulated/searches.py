"""What has a driver found after so many evaluations, and how long did it think? One search of a problem, in process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import moocore
import numpy as np
from pydantic import ValidationError

from benchmarks.simulated.merge import Array, Problem, Smooth
from benchmarks.simulated.problems import domain
from optimizer.driver import Driver, DriverError, Outcome, Point, Question, Trained, Wants
from optimizer.drivers import find
from optimizer.drivers.anchors import Anchored
from optimizer.drivers.scalarised import Scalarised
from optimizer.drivers.walks import descent
from searchspaces.domain import Domain

COST: dict[Wants, int] = {"scores": 1, "gradient": 3, "gradients": 3, "cosines": 3, "sizes": 0, "grams": 0}
"""Evaluations that a question counts as: a backward pass is worth two forward ones; the last two run no items."""

GRADIENTS = "gradients"


@dataclass
class Found:
    """What a search has found. `curve`: the cost at which the hypervolume rose, and what to; it is 0 before."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    cost: int = 0
    questions: int = 0  # answered
    seconds: float = 0.0  # of all asks and tells
    worst: float = 0.0  # seconds of the longest tell and of the asks up to the next one
    ended: bool = False  # the driver had nothing left to ask


class Front:
    """The hypervolume up to (1, ..., 1) of all losses shown."""

    def __init__(self, objectives: int) -> None:
        self._losses = np.empty((0, objectives))
        self.hypervolume = 0.0

    def show(self, losses: Array) -> bool:
        """Whether these losses `(m,)` made it larger."""
        if (losses >= 1).any() or (self._losses <= losses).all(axis=1).any():
            return False
        kept = ~(losses <= self._losses).all(axis=1)
        self._losses = np.vstack([self._losses[kept], losses])
        self.hypervolume = float(moocore.hypervolume(self._losses, ref=np.ones(len(losses))))
        return True


class Luck:
    """What few items add to losses and slopes: normal errors, each draw its own.

    Those of a task's slopes `(dim,)` are together `share` times as long as the slopes are on average at the start and
    at the average of all experts; those of a loss are a tenth of `share`.
    """

    def __init__(self, problem: Smooth, box: Domain, seed: int, share: float) -> None:
        slopes = np.array([problem.slopes(point)[1] for point in (box.start, box.uniform)])  # (2, T, dim)
        self._size = share * np.linalg.norm(slopes, axis=2).mean(axis=0) / np.sqrt(slopes.shape[2])
        self._share, self._stream = share, np.random.default_rng([seed, 1])

    def __call__(self, outcome: Outcome) -> Outcome:
        """The same answer, of few items. Raises DriverError where it is not of slopes."""
        wants, rows = outcome.question.wants, outcome.gradient
        if rows is None or wants not in ("gradient", "gradients"):
            raise DriverError(f"--luck: what few items make of {wants} is not simulated; leave the driver out")
        size = self._size if wants == "gradients" else np.array([np.linalg.norm(self._size) / len(self._size)])
        slopes = rows + size[:, None] * self._stream.standard_normal(rows.shape)
        losses = outcome.losses + 0.1 * self._share * self._stream.standard_normal(len(outcome.losses))
        return replace(outcome, losses=losses, gradient=slopes)


def search(
    problem: Problem,
    name: str,
    seed: int,
    budget: int,
    options: Mapping[str, Any] | None = None,
    workers: int = 1,
    luck: float = 0.0,
) -> Found:
    """A search with the driver of this name until its questions have cost `budget`, or it has none left.

    `workers` questions are in flight before the next tell, and are answered in the order asked. Every question costs,
    a repeated one too. What a question with a gradient shows of the objectives counts for the hypervolume, unless its
    answer has `luck`. Raises DriverError on a driver, options or a problem that do not fit.
    """
    box = domain(problem)
    count = len(problem.objectives(box.start))
    driver = made(box, name, count, seed, options or {})
    if luck and not isinstance(problem, Smooth):
        raise DriverError("--luck is of slopes, and the problem has nothing but scores; leave one of them out")
    lucky = Luck(problem, box, seed, luck) if luck and isinstance(problem, Smooth) else None
    found, front, flight = Found(), Front(count), deque[Question]()
    asked = 0  # the cost of all that were asked
    began = time.perf_counter()
    while True:
        while (room := min(workers - len(flight), budget - asked)) > 0 and (questions := driver.ask(room)):
            asked += sum(COST[question.wants] for question in questions)
            flight.extend(questions)
        spent = time.perf_counter() - began
        found.seconds, found.worst = found.seconds + spent, max(found.worst, spent)
        if not flight:
            found.ended = asked < budget
            return found
        outcome = answer(problem, box, flight.popleft())
        found.questions += 1
        found.cost += COST[outcome.question.wants]
        if lucky is not None and outcome.gradient is not None:
            outcome = lucky(outcome)
        elif len(outcome.losses) and front.show(outcome.losses):
            found.curve.append((found.cost, front.hypervolume))
        began = time.perf_counter()
        driver.tell([outcome])


def made(box: Domain, name: str, objectives: int, seed: int, options: Mapping[str, Any]) -> Driver:
    """The driver as a job makes it: anchors first, preferences for one of one objective. Raises DriverError.

    Walks take all items in each step unless told otherwise: here there are no minibatches. Drivers that need no
    gradients ask for some where their options have `gradients: true`, which is the job's to say and not theirs.
    """
    entry, chosen = find(name), options_of(name, options)
    trained = bool(options.get(GRADIENTS)) or not entry.optional
    kind = entry.load()
    inner: Driver
    if entry.objectives == "one" and objectives > 1:
        inner = Scalarised(box, objectives, seed, lambda own: kind(box, 1, own, chosen))
    else:
        inner = kind(box, objectives, seed, chosen)
    if trained and isinstance(inner, Trained):
        inner.trained_on(objectives)
    return Anchored(box, anchors(box), inner, seed)


def anchors(box: Domain) -> list[tuple[str, Point]]:
    """The base, each expert alone, the average of all, and the published coefficient of task arithmetic for all."""
    assert box.base is not None and box.vertices is not None
    experts = [(f"expert: {k}", point) for k, point in enumerate(box.vertices)]
    return [("base", box.base), *experts, ("uniform", box.uniform), ("global 0.3", np.full(len(box.low), 0.3))]


def answer(problem: Problem, box: Domain, question: Question) -> Outcome:
    """What a worker would say: the training losses are the objectives. Raises DriverError for slopes there are not."""
    point, unknown = box.checked(question.point), np.zeros(0)
    if question.wants == "scores":
        losses = problem.objectives(point)
        return Outcome(question, losses, np.full(len(losses), np.nan))
    if not isinstance(problem, Smooth):
        raise DriverError(
            f"it asks for {question.wants}, and the problem has nothing but scores; leave the driver out of --drivers"
        )
    if question.wants == "grams":
        raise DriverError("it asks for the Grams of task vectors, which are not shown here; leave it out of --drivers")
    if question.wants == "sizes":
        return Outcome(question, unknown, unknown, problem.sizes()[None])
    losses, slopes = problem.slopes(point)
    if question.wants == "gradient":
        slopes = slopes.mean(axis=0)[None]
    elif question.wants == "cosines":
        slopes = problem.cosines(point)[None]
    return Outcome(question, losses, np.full(len(losses), np.nan), slopes)


def options_of(name: str, given: Mapping[str, Any]) -> Any:
    """A driver's options, checked. Raises DriverError naming those that do not fit, and those there are."""
    kind, given = find(name).load(), {k: v for k, v in given.items() if k != GRADIENTS}
    try:
        return kind.Options.model_validate(
            {"batch": 0, **given} if issubclass(kind.Options, descent.Options) else given
        )
    except ValidationError as error:
        known = ", ".join(kind.Options.model_fields) or "none"
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise DriverError(f"--options of {name}: {wrong}; its options are: {known}") from error
