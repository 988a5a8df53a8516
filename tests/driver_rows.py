"""Which drivers owe the driver's contract? All of the table, alone and composed, and what tests play with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.driver import FOREIGN, Driver, Outcome, Point, Question, Trained, at, snapped
from optimizer.drivers import DRIVERS
from optimizer.drivers.anchors import Anchored
from optimizer.drivers.scalarised import How, Scalarised


@dataclass(frozen=True, eq=False)
class Box:
    """A domain: bounds that differ from coordinate to coordinate."""

    low: Point
    high: Point
    start: Point
    shape: tuple[int, int]
    further: tuple[Literal["real", "integer", "choice"], ...] = ()  # kinds of the coordinates that follow the block

    @property
    def kinds(self) -> tuple[Literal["real", "integer", "choice"], ...]:
        return (*(["real"] * (len(self.low) - len(self.further))), *self.further)  # type: ignore[return-value]

    @property
    def names(self) -> tuple[str, ...]:
        block = [f"g{g}.e{k}" for g in range(self.shape[0]) for k in range(self.shape[1])]
        return (*block, *(f"{kind} {i}" for i, kind in enumerate(self.further)))

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"layer {g // 2}" for g in range(self.shape[0]))

    @property
    def base(self) -> Point | None:
        return np.zeros_like(self.low)

    @property
    def uniform(self) -> Point:
        return np.full_like(self.low, 1 / self.shape[1])

    @property
    def vertices(self) -> NDArray[np.float64] | None:
        return None if self.further else np.tile(np.eye(self.shape[1]), self.shape[0])


def box(groups: int = 3, experts: int = 2) -> Box:
    """A domain of read-only arrays, like those that a ledger or a space hands out."""
    dim = groups * experts
    low, high = np.linspace(-0.5, 0.0, dim), np.linspace(1.0, 1.7, dim)
    return Box(frozen(low), frozen(high), frozen(low + 0.3 * (high - low)), (groups, experts))


def mixed() -> Box:
    """Coefficients, and behind them a number, an integer, and two choices."""
    low, high = np.array([*[-0.5] * 4, 0.1, -2, 0, 0]), np.array([*[1.5] * 4, 0.9, 5, 3, 1])
    start = np.array([*[0.3] * 4, 0.5, 0, 0, 0])
    return Box(frozen(low), frozen(high), frozen(start), (2, 2), ("real", "integer", "choice", "choice"))


def sparse(groups: int = 2, experts: int = 2) -> Box:
    """Coefficients that may be negative, and behind them a sparsity for each expert and a choice."""
    low, high = [*[-1.0] * (groups * experts), *[0.1] * experts, 0], [*[1.0] * (groups * experts + experts), 2]
    start = np.array([*[0.3] * (groups * experts), *[1.0] * experts, 0])
    return Box(frozen(low), frozen(high), frozen(start), (groups, experts), (*["real"] * experts, "choice"))  # type: ignore[arg-type]


DOMAINS: dict[str, Callable[[], Box]] = {"": box, "experts": box, "options": sparse}
"""By what a driver needs, a domain that has it."""


def frozen(array: ArrayLike) -> NDArray[np.float64]:
    array = np.array(array, dtype=np.float64)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Row:
    """One driver under test: how it is made, the number of objectives, and whether it asks for gradients, and ends.

    A driver that ends by itself draws nothing at random (the minibatches of gradients are the run's), and may wait.
    """

    make: Callable[[Box, int], Driver]
    objectives: int
    gradients: bool = False
    ends: bool = False
    domain: Callable[[], Box] = box


QUICK: dict[str, dict[str, object]] = {"gp": {"startup": 110}}
"""Options of drivers that think for seconds: rows ask them what is common to studies, and their own tests the rest."""


def alone(name: str, objectives: int, trained: bool = True, **options: object) -> Row:
    def make(domain: Box, seed: int) -> Driver:
        kind = DRIVERS[name].load()
        driver = kind(domain, objectives, seed, kind.Options.model_validate(options or QUICK.get(name, {})))
        if trained and isinstance(driver, Trained):
            driver.trained_on(objectives)
        return driver

    entry, walks = DRIVERS[name], trained and bool(DRIVERS[name].loss)
    return Row(make, objectives, walks, entry.ends or (walks and not entry.optional), DOMAINS[entry.needs])


def anchored(inner: Row) -> Row:
    def make(domain: Box, seed: int) -> Driver:
        return Anchored(domain, corners(domain), inner.make(domain, seed), seed)

    return replace(inner, make=make)


def scalarised(inner: Row, objectives: int, how: How = "sum") -> Row:
    def make(domain: Box, seed: int) -> Driver:
        return Scalarised(domain, objectives, seed, lambda s: inner.make(domain, s), how=how)

    return replace(inner, make=make, objectives=objectives)


def corners(domain: Box) -> list[tuple[str, Point]]:
    """Anchors, two of them at one point."""
    middle = snapped(domain, (domain.low + domain.high) / 2)
    return [("low", domain.low), ("high", domain.high), ("middle", middle), ("half", middle.copy())]


SCORES = [name for name, entry in DRIVERS.items() if not entry.asks_gradients(None)]
ANYWHERE = [name for name in SCORES if not DRIVERS[name].needs]
PLAIN = [name for name in SCORES if not DRIVERS[name].optional]
ROWS: dict[str, Row] = {
    **{name: alone(name, 1) for name in DRIVERS},
    **{f"{name}, by scores": alone(name, 1, trained=False) for name, entry in DRIVERS.items() if entry.optional},
    **{f"{name}, 3 objectives": alone(name, 3) for name, entry in DRIVERS.items() if entry.objectives == "any"},
    **{f"anchored {name}": anchored(alone(name, 1)) for name in DRIVERS},
    **{f"anchored scalarised {name}, 2": anchored(scalarised(alone(name, 1), 2)) for name in PLAIN},
    **{f"scalarised {name}, 3": scalarised(alone(name, 1), 3) for name in PLAIN},
    **{f"{name}, mixed": replace(alone(name, 1, trained=False), domain=mixed) for name in ANYWHERE},
    "auto, mixed, by gradients": replace(alone("auto", 2), domain=mixed),
    "anchored auto, mixed, by gradients": anchored(replace(alone("auto", 2), domain=mixed)),
    "nsga2, small": alone("nsga2", 2, population=4),
    "nsga3, small": alone("nsga3", 3, population=4),
    "nsga2, small, mixed": replace(alone("nsga2", 2, population=4), domain=mixed),
    "map, where it errs": alone("map", 2, sampling="errors", samples=6),
    "map, five experts": replace(alone("map", 2, samples=6), domain=lambda: box(2, 5)),
    "tchebycheff cma, 3": scalarised(alone("cma", 1), 3, "tchebycheff"),
    **{
        f"anchored scalarised {name}, 2, mixed": replace(anchored(scalarised(alone(name, 1), 2)), domain=mixed)
        for name in ANYWHERE
        if name in PLAIN
    },
}

Event = tuple[int, list[Question]] | Outcome  # an ask with what it returned, or a tell of one outcome


def losses(domain: Box, point: Point, objectives: int) -> NDArray[np.float64]:
    """Squared distances to `objectives` targets inside the domain, in units of its range; a wrong choice is 1 away."""
    unit = (point - domain.low) / (domain.high - domain.low)
    apart = np.array([unit - 0.25 - 0.2 * j for j in range(objectives)])
    for i in np.flatnonzero(np.array(domain.kinds) == "choice"):
        apart[:, i] = point[i] != (domain.high[i] + 1) // 2
    return np.mean(apart**2, axis=1)


def answer(domain: Box, question: Question, objectives: int, failure: str | None = None) -> Outcome:
    question = replace(question, point=frozen(question.point))
    if question.wants != "scores":
        return _differentiated(domain, question, objectives, failure)
    value = losses(domain, question.point, objectives) if failure is None else np.full(objectives, 9.0)
    return Outcome(question, frozen(value), frozen(np.full(objectives, 0.01)), failure=failure)


def slopes(domain: Box, point: Point, objectives: int) -> NDArray[np.float64]:
    """The derivatives of `losses`, `(objectives, dim)`."""
    spread = domain.high - domain.low
    unit = (point - domain.low) / spread
    return np.array([2 * (unit - 0.25 - 0.2 * j) / len(point) / spread for j in range(objectives)])


def _differentiated(domain: Box, question: Question, objectives: int, failure: str | None) -> Outcome:
    if failure is not None:
        return Outcome(question, frozen(np.zeros(0)), frozen(np.zeros(0)), failure=failure)
    value, slope = losses(domain, question.point, objectives), slopes(domain, question.point, objectives)
    if question.wants == "sizes":
        return Outcome(question, frozen(np.zeros(0)), frozen(np.zeros(0)), frozen(1.0 + np.abs(domain.low))[np.newaxis])
    if question.wants == "grams":
        return Outcome(question, frozen(np.zeros(0)), frozen(np.zeros(0)), frozen(grams(domain)))
    rows = slope if question.wants == "gradients" else slope.mean(axis=0, keepdims=True)
    return Outcome(question, frozen(value), frozen(np.zeros(objectives)), frozen(rows))


def grams(domain: Box) -> NDArray[np.float64]:
    """Of task vectors of 100 entries a group that are nearly orthogonal, `(experts + 2, dim)`."""
    groups, experts = domain.shape
    products = np.eye(experts) + 0.01 * np.add.outer(np.arange(experts), np.arange(experts))
    block = np.vstack([products, np.full((1, experts), 0.1), np.full((1, experts), 100.0)])
    return np.hstack([np.tile(block, groups), np.zeros((experts + 2, len(domain.low) - groups * experts))])


def foreign(domain: Box, seed: int, objectives: int) -> Outcome:
    point = at(domain, np.random.default_rng(seed).random(len(domain.low)))
    return answer(domain, Question(FOREIGN, point), objectives)


def replayed(driver: Driver, events: Sequence[Event]) -> Driver:
    """The driver after a recorded history, replayed as a resumed run replays it."""
    for event in events:
        if isinstance(event, Outcome):
            driver.tell([event])
        else:
            n, questions = event
            driver.replay(n, [replace(q, point=frozen(q.point)) for q in questions])
    return driver


def searched(driver: Driver, domain: Box, objectives: int, evaluations: int, workers: int = 4) -> list[Event]:
    """A plain asynchronous search: keeps `workers` questions on their way, and answers the second oldest first."""
    events: list[Event] = []
    waiting: list[Question] = []
    asked = 0
    while asked < evaluations or waiting:
        room = min(workers - len(waiting), evaluations - asked)
        questions = driver.ask(room) if room else []
        if questions:
            events.append((room, questions))
        asked += len(questions)
        waiting += questions
        if not waiting:
            assert driver.done, "it waits for answers though nothing is on its way"
            break
        question = waiting.pop(1 if len(waiting) > 1 else 0)
        outcome = answer(domain, question, objectives, failure="broken" if question.number % 11 == 5 else None)
        driver.tell([outcome])
        events.append(outcome)
    return events


def asked(events: Sequence[Event]) -> list[Question]:
    return [question for event in events if not isinstance(event, Outcome) for question in event[1]]


def signature(questions: Sequence[Question]) -> list[tuple[int, bytes, str, str]]:
    """Everything of the questions, to the bit."""
    return [(q.number, q.point.tobytes(), q.wants, q.stage) for q in questions]


def digests(evaluations: int) -> dict[str, str]:
    """A hash of all questions of a search, by row."""
    found = {}
    for name, row in ROWS.items():
        events = searched(row.make(row.domain(), 7), row.domain(), row.objectives, evaluations)
        found[name] = hashlib.sha256(repr(signature(asked(events))).encode()).hexdigest()
    return found
