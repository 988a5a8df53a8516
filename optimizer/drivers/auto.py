"""Where next, when nothing is known of a search? Where models of what came back promise the front most."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import (
    FOREIGN,
    Domain,
    DriverError,
    Items,
    Outcome,
    Question,
    Wants,
    at,
    checked_losses,
    exact,
    random_stream,
    unit_of,
)
from optimizer.drivers.gaussian.levels import Levels
from optimizer.drivers.gaussian.trace import Trace
from optimizer.drivers.shared.criterion import is_anchor, promising
from optimizer.drivers.shared.scale import Scale
from optimizer.drivers.shared.unasked import unasked

Array = NDArray[np.float64]

TURN = 3  # after the gradients one question in so many follows the scores, the others what gradients foretell
FAILURES = 3  # gradients in a row that fail: scores alone from then on
NEAR = 1e-9  # of a bound's range: a point so little outside is inside but for rounding


@dataclass(frozen=True)
class _State:
    """All that the next questions depend on: how much had been asked and told, and what was on its way."""

    number: int = 0
    steps: int = 0  # gradients at most
    asked: int = 0  # gradients
    answers: int = 0
    gradients: int = 0
    scores: tuple[Array, ...] = ()  # points on their way
    slopes: tuple[Array, ...] = ()
    unboxed: tuple[Array, ...] = ()  # points that were scored before there was a box

    def after(self, question: Question, unit: Array) -> _State:
        """Once this has been asked too."""
        if question.wants == "scores":
            return replace(self, number=self.number + 1, scores=(*self.scores, unit))
        return replace(self, number=self.number + 1, asked=self.asked + 1, slopes=(*self.slopes, unit))


class Auto:
    """Asks where the hypervolume of the front is expected to grow most, coarse moves of the model first.

    By scores: one Gaussian process an objective, over means of the coefficients of ever finer parts of the model
    (`drivers.gaussian.levels`). Where gradients are asked (`gradients` in the job's driver entry): first a model of
    all tasks' training losses and slopes traces the front of those (`drivers.gaussian.trace`), from the base and the
    most promising anchor on, for `steps` gradients, and every `every`-th question scores what it foretells; then two
    questions in three do, and the third follows the scores. The box in which volume counts is that of the anchors, from
    their best losses to the base's, or without anchors that of the first answers (`Scale.boxed`). Where three gradients
    in a row fail, scores are all there is.

    Coordinates that are no coefficient (the method, where several are listed) have no slopes. Gradients are asked at
    what these are at the most promising anchor, and foretell candidates there; the others stay what every third
    question may find.

    While answers are on their way, the next questions are thought out beside them: they are then a function of what
    had been told when the last were asked. A replay notes what was asked, and computes nothing.
    """

    class Options(BaseModel):
        """Of the gradients, where the job asks for any."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        asks: ClassVar[Wants] = "gradients"
        steps: int = Field(
            60,
            ge=1,
            description="Gradients at most, where driver.gradients is said; one takes about as long as three"
            " candidates, and budget.evaluations does not count it.",
        )
        batch: int = Field(0, ge=0, description="Items of each task in a gradient; more are surer and slower. 0: all.")
        every: int = Field(
            4,
            ge=2,
            description="One question in so many scores a candidate while gradients are asked; less scores more.",
        )

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._m, self._seed, self._options = domain, objectives, seed, options
        self._tasks = 0  # of which a gradient has a loss each
        self._failures = 0  # of gradients, in a row
        self._block = domain.shape[0] * domain.shape[1]  # coefficients, which gradients are by
        self._levels, self._trace = Levels(domain, objectives), Trace(self._block, options.batch > 0)
        self._best = domain.start  # the most promising anchor; gradients are asked at its other coordinates
        self._state = _State()
        self._scores: dict[int, Array] = {}  # points on their way
        self._slopes: dict[int, Array] = {}
        self._places: dict[int, int] = {}  # of those on their way: how fine they were asked (`Levels.place`)
        self._unboxed: list[Outcome] = []  # kept until the box is fixed
        self._box: Scale | None = None
        self._then: tuple[_State, int] | None = None  # as the last questions had been asked, and how many those were
        self._ahead: _Ahead | None = None

    def trained_on(self, tasks: int) -> None:
        """Gradients there will be, each of so many losses."""
        self._state, self._tasks = replace(self._state, steps=self._options.steps), tasks

    def ask(self, n: int) -> list[Question]:
        """n questions, or none while the first gradient is awaited."""
        if n < 1:
            return []
        ahead = None if self._ahead is None else self._ahead.questions()  # waited for: it works on the same models
        self._fix_box()
        questions: list[Question] = []
        if self._then is not None and (self._scores or self._slopes):
            questions = (self._planned(*self._then) if ahead is None else ahead)[:n]
            for question in questions:
                self._take(question, self._then[0].answers)
        for question in self._planned(self._state, n - len(questions)):
            self._take(question, self._state.answers)
            questions.append(question)
        if questions:
            self._then, self._ahead = (self._state, len(questions)), None
            if len(self._scores) + len(self._slopes) > 1:  # else the next are asked when nothing is on its way
                self._ahead = _Ahead(self, *self._then)
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Counts what was asked. Raises DriverError where numbers do not follow."""
        self._fix_box()
        before = self._then if self._scores or self._slopes else None
        for i, question in enumerate(questions):
            if question.number != self._state.number:
                raise DriverError(
                    f"auto: the recorded question {question.number} follows {self._state.number - 1}; resume with the "
                    "job file and the version that the run began with, or start a new run"
                )
            thought_out = self._state if before is None or i >= before[1] else before[0]
            self._take(question, thought_out.answers)
        if self._ahead is not None:
            self._ahead.questions()  # it works on the same models
        if questions:
            self._then, self._ahead = (self._state, len(questions)), None

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from answers in this order, foreign ones too. Raises DriverError on a NaN, or what was not asked."""
        for outcome in outcomes:
            number = outcome.question.number
            if number in self._scores or number == FOREIGN:
                self._learn(outcome)
                self._scores.pop(number, None)
            elif number in self._slopes:
                self._follow(outcome)
            else:
                raise unasked("auto", number)
        self._state = replace(
            self._state,
            answers=self._levels.count,
            gradients=self._trace.count,
            scores=tuple(self._scores.values()),
            slopes=tuple(self._slopes.values()),
            unboxed=tuple(unit_of(self._domain, o.question.point) for o in self._unboxed),
        )

    def _planned(self, state: _State, n: int) -> list[Question]:
        """The next questions at a state, at most n."""
        questions: list[Question] = []
        while len(questions) < n and (question := self._next(state)) is not None:
            questions.append(question)
            state = state.after(question, unit_of(self._domain, question.point))
        return questions

    def _next(self, state: _State) -> Question | None:
        """The next question at a state; a function of that, and of what had been told by then."""
        stream, options = random_stream(self._seed, "auto", state.number), self._options
        walking = state.asked < state.steps
        base = self._domain.start if self._domain.base is None else self._domain.base
        useless = np.array_equal(self._best[: self._block], base[: self._block])  # no anchor promises anything
        if walking and not state.gradients:
            if state.slopes:
                return None
            second = self._domain.start if useless else self._best
            return self._gradient(state, second if state.asked else base)
        if walking and state.asked == 1 and not useless:
            return self._gradient(state, self._best)
        if walking and state.number % options.every:
            pending = [unit[: self._block] for unit in state.slopes]
            unit = self._whole(self._trace.propose(state.gradients, pending, stream))
            return self._gradient(state, at(self._domain, unit))
        if state.gradients and (walking or state.number % TURN):
            there = self._beside([*self._levels.units[: state.answers], *state.unboxed, *state.scores])
            unit = self._whole(self._trace.cover(state.gradients, there, stream))
            return self._score(state, unit, "foretold by gradients")
        if state.answers + len(state.scores) < self._levels.needed or not state.answers:
            return self._score(state, self._evenly(stream), "design: one coefficient an expert")
        number = self._scouting(state.number)
        unit = self._levels.propose(state.answers, number, state.scores, stream)
        return self._score(state, unit, f"level {self._levels.level(state.answers, number)}")

    def _evenly(self, stream: np.random.Generator) -> Array:
        """A point drawn evenly among those with one coefficient an expert, whatever the group."""
        groups, experts = self._domain.shape
        further = len(self._domain.low) - groups * experts
        return np.concatenate([np.tile(stream.random(experts), groups), stream.random(further)])

    def _whole(self, unit: Array) -> Array:
        """The unit point `(dim,)` of coefficients, with the other coordinates that gradients are asked at."""
        return np.concatenate([unit, unit_of(self._domain, self._best)[self._block :]])

    def _beside(self, units: Sequence[Array]) -> list[Array]:
        """The coefficients of those points that differ in nothing else from where gradients are asked."""
        held = unit_of(self._domain, self._best)[self._block :]
        return [unit[: self._block] for unit in units if np.array_equal(unit[self._block :], held)]

    def _score(self, state: _State, unit: Array, stage: str) -> Question:
        return Question(state.number, at(self._domain, unit), stage=f"auto: {stage}")

    def _gradient(self, state: _State, point: Array) -> Question:
        point = np.concatenate([point[: self._block], self._best[self._block :]])
        point = np.clip(point, self._domain.low, self._domain.high)
        items = Items("train", self._options.batch, state.asked)
        return Question(state.number, point, "gradients", items, f"auto: gradient {state.asked}")

    def _take(self, question: Question, answers: int) -> None:
        """Note a question, which was thought out when there were so many answers."""
        unit = unit_of(self._domain, question.point)
        (self._scores if question.wants == "scores" else self._slopes)[question.number] = unit
        number = self._scouting(question.number)
        if number is not None and question.wants == "scores":
            self._places[number] = self._levels.place(answers, number)
        self._state = self._state.after(question, unit)

    def _fix_box(self) -> None:
        """By the anchors, which have been told by now; without any, by the first answers, once there are enough."""
        if self._box is not None:
            return
        anchors = [o for o in self._unboxed if is_anchor(o)]
        if not anchors and len(self._unboxed) < self._levels.needed:
            return
        told = anchors or [o for o in self._unboxed if o.failure is None]
        base = self._domain.base
        useless = [o.losses for o in anchors if base is not None and np.array_equal(o.question.point, base)]
        self._box = Scale.boxed([o.losses for o in told], useless[0] if useless else None, self._m)
        there = [o for o in anchors if exact(self._domain, o.question.point, NEAR)]
        if there:
            self._best = promising(there, self._box)
        unboxed, self._unboxed = self._unboxed, []
        for outcome in unboxed:
            self._learn(outcome)
        self._state = replace(self._state, answers=self._levels.count, unboxed=())

    def _learn(self, outcome: Outcome) -> None:
        losses = None if outcome.failure is not None else checked_losses(outcome, self._m)
        if self._box is None:
            self._unboxed.append(outcome)
            if outcome.question.number != FOREIGN:  # else anchors may follow
                self._fix_box()
            return
        losses = None if losses is None else self._box.units(losses)
        place = self._places.pop(outcome.question.number, None)
        if exact(self._domain, outcome.question.point, NEAR):
            unit = unit_of(self._domain, outcome.question.point)
            told = outcome.share < 1 and losses is not None  # NaN: of a violation, whose penalty has no error
            errors = np.nan_to_num(outcome.stderr / self._box.span) if told else None
            self._levels.learn(unit, losses, place, errors)

    def _scouting(self, number: int) -> int | None:
        """The number of a question that may be a scout; with gradients, which are fine from the start, none is."""
        return None if self._tasks or number == FOREIGN else number

    def _follow(self, outcome: Outcome) -> None:
        self._failures = 0 if outcome.failure is None else self._failures + 1
        if self._failures == FAILURES:
            self._state = replace(self._state, steps=0)
        if outcome.failure is None:
            losses, slopes, tasks = outcome.losses, outcome.gradient, self._tasks
            if losses.shape != (tasks,) or slopes is None or slopes.shape != (tasks, len(self._domain.low)):
                raise DriverError(f"auto: expected {tasks} losses with their gradients, got {losses.shape} of them")
            if not (np.isfinite(losses).all() and np.isfinite(slopes).all()):
                raise DriverError(
                    f"expected finite losses and slopes of question {outcome.question.number}; report it as failed"
                )
            unit = self._slopes[outcome.question.number][: self._block]
            slopes = slopes * (self._domain.high - self._domain.low)
            self._trace.learn(unit, losses, slopes[:, : self._block])
        del self._slopes[outcome.question.number]


class _Ahead:
    """The next questions, thought out while answers are on their way."""

    def __init__(self, driver: Auto, state: _State, n: int) -> None:
        self._found: list[Question] | BaseException = []

        def think() -> None:
            try:
                self._found = driver._planned(state, n)
            except BaseException as error:
                self._found = error

        # a daemon: a run that ends does not wait for what it will not ask
        self._thread = threading.Thread(target=think, name="auto", daemon=True)
        self._thread.start()

    def questions(self) -> list[Question]:
        """What was thought out; waits for it."""
        self._thread.join()
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found
