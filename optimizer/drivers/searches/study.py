"""How does a sampler of Optuna become a driver? One study in memory, a fresh sampler for each question."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optimizer.driver import (
    FOREIGN,
    Domain,
    Outcome,
    Point,
    Question,
    checked_losses,
    exact,
    random_stream,
)
from optimizer.drivers.shared.unasked import unasked

Space = dict[str, BaseDistribution]


class StudyDriver(ABC):
    """A driver over a study in memory; a class of the table says with `_sampler` what asks question number i.

    A sampler is a function of (seed, question number) and of the trials so far: a replay adds the recorded questions as
    running trials and computes nothing. Foreign answers at points of the domain are trials like any other. A failure is
    told as the worst loss seen, objective by objective; until something has succeeded it stays a running trial.
    """

    name: str
    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int) -> None:
        self._domain, self._objectives, self._seed = domain, objectives, seed
        # a coordinate whose bounds meet is no parameter
        self._free = [int(i) for i in np.flatnonzero(domain.high > domain.low)]
        self._space: Space = {f"x{i}": _distribution(domain, i) for i in self._free}
        with quiet():
            self._study = optuna.create_study(directions=["minimize"] * objectives)
        self._completed: list[int] = []  # trials in the order in which they were given losses
        self._number = 0
        self._pending: dict[int, int] = {}  # question -> trial, in the order asked
        self._trials = 0
        self._failed: list[int] = []  # trials that failed before anything had succeeded
        self._worst: NDArray[np.float64] | None = None  # (m,)

    def ask(self, n: int) -> list[Question]:
        """n questions, each drawn with the ones before it running."""
        questions = []
        with quiet():
            for _ in range(n):
                study, stage = self._seen(), self._stage()
                study.sampler = self._sampler(self._drawn(self._number))
                trial = study.ask(fixed_distributions=self._space)
                point = self._domain.low.copy()
                point[self._free] = [trial.params[name] for name in self._space]
                if study is not self._study:
                    self._add(point, TrialState.RUNNING, None)
                questions.append(Question(self._count(), point, stage=stage))
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Add the questions as running trials."""
        with quiet():
            for question in questions:
                self._add(question.point, TrialState.RUNNING, None)
                self._count()

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from answers. Raises DriverError on a loss that is not finite."""
        with quiet():
            for outcome in outcomes:
                self._learn(outcome)

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """What makes the next trial, with this seed."""

    def _stage(self) -> str:
        """What the next question says of itself."""
        return self.name

    def _seen(self) -> optuna.Study:
        """The study that the next sampler looks at: all trials, unless a class makes a smaller one of them."""
        return self._study

    def _drawn(self, *key: str | int) -> int:
        """A seed that is a function of the run's, of the driver's name and of a key."""
        return int(random_stream(self._seed, self.name, *key).integers(2**32))

    def _frozen(self) -> list[FrozenTrial]:
        """All trials by their number, not copied."""
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return found

    def _learn(self, outcome: Outcome) -> None:
        losses = None if outcome.failure is not None else checked_losses(outcome, self._objectives)
        number, point = outcome.question.number, outcome.question.point
        if number == FOREIGN:
            if losses is not None and exact(self._domain, point):
                self._add(point, TrialState.COMPLETE, losses.tolist())
                self._completed.append(self._trials)
                self._trials += 1
                self._succeeded(losses)
            return
        if number not in self._pending:
            raise unasked(self.name, number)
        trial = self._pending.pop(number)
        if losses is not None:
            self._complete(trial, losses)
            self._succeeded(losses)
        elif self._worst is not None:
            self._complete(trial, self._worst)
        else:
            self._failed.append(trial)

    def _succeeded(self, losses: NDArray[np.float64]) -> None:
        self._worst = worst = losses.copy() if self._worst is None else np.maximum(self._worst, losses)
        for trial in self._failed:
            self._complete(trial, worst)
        self._failed = []

    def _complete(self, trial: int, losses: NDArray[np.float64]) -> None:
        self._study.tell(trial, losses.tolist())
        self._completed.append(trial)

    def _count(self) -> int:
        """Number the question whose trial has just been made."""
        number, self._number = self._number, self._number + 1
        self._pending[number] = self._trials
        self._trials += 1
        return number

    def _add(self, point: Point, state: TrialState, values: list[float] | None) -> None:
        params = {
            name: float(point[i]) if self._domain.kinds[i] == "real" else int(point[i])
            for name, i in zip(self._space, self._free, strict=True)
        }
        trial = optuna.trial.create_trial(state=state, params=params, distributions=self._space, values=values)
        self._study.add_trial(trial)


class ToldItsSpace:
    """For a sampler that is told its search space: to infer it, Optuna reads all trials at each ask."""

    space: Space

    def infer_relative_search_space(self, study: Any, trial: Any) -> Space:
        return self.space


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's log and warnings off, in here only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(domain: Domain, i: int) -> BaseDistribution:
    """Where coordinate i may go, as Optuna says it."""
    low, high, kind = float(domain.low[i]), float(domain.high[i]), domain.kinds[i]
    if kind == "real":
        return FloatDistribution(low, high)
    whole = range(math.ceil(low), math.floor(high) + 1)
    return CategoricalDistribution(tuple(whole)) if kind == "choice" else IntDistribution(whole[0], whole[-1])
