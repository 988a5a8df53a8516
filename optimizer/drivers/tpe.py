"""Where next, when good and bad points each have a density? TPE (Bergstra 2011, arXiv:2304.11127) by Optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import (
    FOREIGN,
    Domain,
    DriverError,
    Outcome,
    Point,
    Question,
    checked_losses,
    exact,
    random_stream,
)

STRAY = 10  # one in so many questions (or in as many as there are choices) draws a choice evenly


class _Sampler(TPESampler):  # type: ignore[misc]  # optuna's types are not followed
    """A TPE sampler that is told its search space: to infer it, Optuna reads all trials at each ask.

    Now and then it draws a choice evenly: where one joint density is searched for its best ratio, a value that its
    first few trials made look bad is never proposed again.
    """

    def __init__(self, space: dict[str, BaseDistribution], options: TPE.Options, seed: int) -> None:
        super().__init__(
            n_startup_trials=options.startup,
            n_ei_candidates=options.candidates,
            multivariate=options.multivariate,
            constant_liar=True,
            seed=seed,
        )
        self._space = space if options.multivariate else {}
        self._choices = {n: d.choices for n, d in space.items() if isinstance(d, CategoricalDistribution)}
        self._stray = np.random.Generator(np.random.PCG64(seed))

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        found: dict[str, Any] = super().sample_relative(study, trial, search_space)
        for name in (name for name in self._choices if name in found):  # in the order of the space
            found[name] = self._drawn(name, found[name])
        return found

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        found = super().sample_independent(study, trial, name, distribution)
        return self._drawn(name, found) if name in self._choices else found

    def _drawn(self, name: str, proposed: int) -> int:
        """What was proposed of a choice, or one of its values, all alike."""
        stray, which = self._stray.random(2)
        if stray >= 1 / max(STRAY, len(self._choices)):
            return proposed
        return int(self._choices[name][int(which * len(self._choices[name]))])


class TPE:
    """Optuna's TPE for one objective or several (MOTPE), over a study in memory.

    A sampler is a function of (seed, question number) and of the trials so far: a replay adds the recorded questions as
    running trials and computes nothing. Questions without an answer yet repel new ones (constant liar). Foreign answers
    at points of the domain are trials like any other. A failure is told as the worst loss seen, objective by objective;
    until something has succeeded it stays a running trial.
    """

    class Options(BaseModel):
        """`startup`: answers before the densities are used; `candidates`: samples per ask of which the best is asked;
        `multivariate`: one joint density in place of one per coefficient, which is also several times faster."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        startup: int = Field(10, ge=1)
        candidates: int = Field(24, ge=1)
        multivariate: bool = True

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._objectives, self._seed, self._options = domain, objectives, seed, options
        # a coordinate whose bounds meet is no parameter
        self._free = [int(i) for i in np.flatnonzero(domain.high > domain.low)]
        self._space = {f"x{i}": _distribution(domain, i) for i in self._free}
        with _quiet():
            self._study = optuna.create_study(directions=["minimize"] * objectives)
        self._trials = 0
        self._number = 0
        self._pending: dict[int, int] = {}  # question -> trial
        self._failed: list[int] = []  # trials that failed before anything had succeeded
        self._worst: np.ndarray | None = None  # (m,)

    def ask(self, n: int) -> list[Question]:
        """n questions, each drawn with the ones before it running."""
        questions = []
        with _quiet():
            for _ in range(n):
                seed = int(random_stream(self._seed, "tpe", self._number).integers(2**32))
                self._study.sampler = _Sampler(self._space, self._options, seed)
                trial = self._study.ask(fixed_distributions=self._space)
                point = self._domain.low.copy()
                point[self._free] = [trial.params[name] for name in self._space]
                questions.append(Question(self._count(), point, stage="tpe"))
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Add the questions as running trials."""
        with _quiet():
            for question in questions:
                self._add(question.point, TrialState.RUNNING, None)
                self._count()

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from answers. Raises DriverError on a loss that is not finite."""
        with _quiet():
            for outcome in outcomes:
                self._learn(outcome)

    def _learn(self, outcome: Outcome) -> None:
        losses = None if outcome.failure is not None else checked_losses(outcome, self._objectives)
        number, point = outcome.question.number, outcome.question.point
        if number == FOREIGN:
            if losses is not None and exact(self._domain, point):
                self._add(point, TrialState.COMPLETE, losses.tolist())
                self._trials += 1
                self._succeeded(losses)
            return
        if number not in self._pending:
            raise DriverError(f"tpe: told of question {number}, which it has not asked, or was told of before")
        trial = self._pending.pop(number)
        if losses is not None:
            self._study.tell(trial, losses.tolist())
            self._succeeded(losses)
        elif self._worst is not None:
            self._study.tell(trial, self._worst.tolist())
        else:
            self._failed.append(trial)

    def _succeeded(self, losses: np.ndarray) -> None:
        self._worst = losses.copy() if self._worst is None else np.maximum(self._worst, losses)
        for trial in self._failed:
            self._study.tell(trial, self._worst.tolist())
        self._failed = []

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


def _distribution(domain: Domain, i: int) -> BaseDistribution:
    """Where coordinate i may go, as Optuna says it."""
    low, high, kind = float(domain.low[i]), float(domain.high[i]), domain.kinds[i]
    if kind == "real":
        return FloatDistribution(low, high)
    whole = range(math.ceil(low), math.floor(high) + 1)
    return CategoricalDistribution(tuple(whole)) if kind == "choice" else IntDistribution(whole[0], whole[-1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log and warnings off, in here only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
