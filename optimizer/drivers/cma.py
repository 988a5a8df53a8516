"""Where next, when a Gaussian learns from ranks? CMA-ES (Hansen 2016, arXiv:1604.00772) by pycma, without a barrier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import (
    FOREIGN,
    Domain,
    DriverError,
    Outcome,
    Point,
    Question,
    at,
    checked_losses,
    exact,
    random_stream,
    steps,
    unit_of,
)
from optimizer.drivers.shared.unasked import unasked

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that matplotlib, which pycma plots with, is not there
    import cma

COMPARED = 16  # coordinates of a replayed question that are held against the record
SEPARABLE_ABOVE = 100  # dimensions; a full covariance matrix costs O(dim^2) a sample, and far more samples to learn
MAX_POPULATION = 16  # times the first one: restarts double the population up to here
LEAST_STEP = 0.25  # standard deviation of an integer, in units of its step: one in twenty samples leaves its middle
RATE = 0.2  # at which a choice's odds follow the better half of a generation
STRAY = 10  # one in so many samples (or in as many as there are choices) draws a choice evenly, whatever its odds
NEAR = 1e-9  # of a bound's range: a point so little outside is inside but for rounding


@dataclass(frozen=True)
class _Sample:
    """A question on its way: its genotype (unbounded), and the restart and generation of the Gaussian that drew it."""

    genotype: NDArray[np.float64]  # (size,)
    codes: NDArray[np.int64]  # of the choices
    restart: int
    generation: int


class CMAES:
    """CMA-ES for one objective; with a diagonal covariance (sep-CMA-ES, Ros & Hansen 2008) above 100 dimensions.

    The domain is scaled to the unit cube, and pycma's smooth bound transformation x = B(y) maps all of R^dim into it.
    Samples y ~ N(m, sigma^2 C) are drawn from the newest Gaussian whenever one is asked for; the first `popsize`
    answers to come back, in the order told, are a generation, whichever Gaussian drew them. An answer to an older
    Gaussian is clipped in Mahalanobis length as pycma does with injected solutions (Hansen 2011, arXiv:1110.4181).
    The mean starts at the best foreign answer told before the first ask, else at `domain.start`. When pycma would stop,
    it restarts at the best answer of all, with twice the population; answers to before a restart count for that best.
    Failures rank last. Replay draws again, and refuses questions that differ from what it draws.

    An integer is the part of [0, 1] that its coordinate falls into; what is told back is where it fell, and its
    standard deviation is kept from falling far below one step (Hansen 2011, inria-00629689). A choice has no place in
    a Gaussian: each has odds of its own, drawn from independently, that follow the values in the better half of each
    generation, weighted as the mean is (the categorical part of CatCMA, Hamano et al. 2024, arXiv:2405.09962, at a
    constant rate).
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        sigma0: float = Field(
            0.2,
            gt=0,
            le=1,
            description="The first standard deviation, as a part of each bound's range; larger looks further at first.",
        )
        popsize: int | None = Field(
            None,
            ge=4,
            description="Candidates of a generation; more look wider, and learn more slowly. Default: 4 + floor(3 ln"
            " dim).",
        )

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        if objectives != 1:
            raise DriverError(
                f"driver.name: cma takes one objective, got {objectives}; search over preference weights, or take tpe"
            )
        self._domain, self._seed, self._sigma0 = domain, seed, options.sigma0
        self._steps = steps(domain)
        choice = np.array([kind == "choice" for kind in domain.kinds])
        self._choices, self._rest = np.flatnonzero(choice), np.flatnonzero(~choice)
        # pycma does not do one dimension: a second one rides along, which no answer depends on
        self._size = max(len(self._rest), 2)
        self._popsize = options.popsize or 4 + math.floor(3 * math.log(max(len(domain.low), 2)))
        self._bounds = cma.BoundTransform([[0.0] * self._size, [1.0] * self._size])
        # where all is real, a few coordinates say whether a record is ours, in a third of the time
        self._compared = None if self._steps.any() else min(self._size, COMPARED)
        compared = self._compared or 1
        self._first_bounds = cma.BoundTransform([[0.0] * compared, [1.0] * compared])
        self._first_popsize = self._popsize
        self._odds: list[NDArray[np.float64]] = []  # of each choice's values
        self._strategy: Any = None  # made at the first ask, once the warm start is known
        self._restart = 0
        self._ready: list[NDArray[np.float64]] = []  # drawn from the newest Gaussian, and not asked yet
        self._number = 0
        self._pending: dict[int, _Sample] = {}
        self._returned: list[tuple[_Sample, float | None]] = []  # None: failed
        self._best: tuple[float, Point] | None = None
        self._worst = 0.0

    def ask(self, n: int) -> list[Question]:
        """n samples of the Gaussian as it is now."""
        return [self._draw() for _ in range(n)]

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Draws again. Raises DriverError where a question is not what it draws (by its first coordinates)."""
        for question in questions:
            number, sample = self._next()
            # other versions or another history show in every coordinate, and another domain is refused before: the run
            # holds its job against the ledger
            point = self._point(sample, self._compared)
            recorded = question.point[: self._compared]
            if number != question.number or not np.array_equal(point, recorded):
                raise DriverError(
                    f"cma: the recorded question {question.number} is not the one that its history leads to"
                    f" (expected number {number}, largest difference"
                    f" {np.abs(point - recorded).max():.3g}); resume with the job file, the versions of"
                    " numpy and pycma and the kind of processor that the run began with, or start a new run"
                )

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from answers in this order; foreign ones count until the first ask. Raises DriverError on a NaN."""
        for outcome in outcomes:
            loss = None if outcome.failure is not None else float(checked_losses(outcome, 1)[0])
            number = outcome.question.number
            if number == FOREIGN:
                if self._strategy is None and exact(self._domain, outcome.question.point, NEAR):
                    self._note(loss, outcome.question.point)
                continue
            if number not in self._pending:
                raise unasked("cma", number)
            self._note(loss, outcome.question.point)
            sample = self._pending.pop(number)
            if sample.restart == self._restart:
                self._returned.append((sample, loss))
            if len(self._returned) == self._popsize:
                self._learn()

    def _draw(self) -> Question:
        number, sample = self._next()
        stage = f"cma: generation {sample.generation}, restart {self._restart}"
        return Question(number, self._point(sample), stage=stage)

    def _next(self) -> tuple[int, _Sample]:
        """The next sample, and its question's number."""
        if self._strategy is None:
            self._begin()
        if not self._ready:
            self._ready = list(self._strategy.ask())
        genotype, generation = self._ready.pop(0).copy(), int(self._strategy.countiter)
        number, self._number = self._number, self._number + 1
        self._pending[number] = sample = _Sample(genotype, self._codes(number), self._restart, generation)
        return number, sample

    def _codes(self, number: int) -> NDArray[np.int64]:
        """A value of each choice, by its odds."""
        if not len(self._choices):
            return np.zeros(0, dtype=np.int64)
        drawn, stray = random_stream(self._seed, "cma: choices", number).random((2, len(self._choices)))
        evenly = stray < 1 / max(STRAY, len(self._choices))
        codes = [
            int(u * len(odds)) if even else min(int(np.searchsorted(np.cumsum(odds), u, side="right")), len(odds) - 1)
            for u, even, odds in zip(drawn, evenly, self._odds, strict=True)
        ]
        return np.array(codes, dtype=np.int64)

    def _learn(self) -> None:
        """One generation of pycma: m, sigma and C from the ranks of what has returned."""
        returned, self._returned = self._returned, []
        age = int(self._strategy.countiter)
        stale = [i for i, (sample, _) in enumerate(returned) if sample.generation < age]
        losses = [self._worst if loss is None else loss for _, loss in returned]
        self._follow([sample.codes for sample, _ in returned], losses)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._strategy.tell([sample.genotype for sample, _ in returned], losses, check_points=stale or None)
            if self._strategy.stop():
                self._restart += 1
                self._popsize = min(2 * self._popsize, MAX_POPULATION * self._first_popsize)
                self._begin()
            else:
                self._ready = list(self._strategy.ask())  # pycma wants an ask between two tells

    def _follow(self, codes: Sequence[NDArray[np.int64]], losses: Sequence[float]) -> None:
        """Move each choice's odds towards the better half of a generation, the best most."""
        if not len(self._choices):
            return
        better = np.argsort(losses, kind="stable")[: max(len(losses) // 2, 1)]
        weights = math.log(len(better) + 0.5) - np.log(np.arange(1, len(better) + 1))
        for i, odds in enumerate(self._odds):
            found = np.bincount([codes[j][i] for j in better], weights / weights.sum(), len(odds))
            self._odds[i] = (1 - RATE) * odds + RATE * found

    def _begin(self) -> None:
        """A fresh Gaussian around the best point known; a choice's odds are half that point's, half even."""
        point = self._domain.start if self._best is None else self._best[1]
        counts = self._steps[self._choices].astype(np.int64)
        chosen = np.rint(point[self._choices]).astype(np.int64)
        self._odds = [0.5 * (np.arange(n) == c) + 0.5 / n for n, c in zip(counts, chosen, strict=True)]
        options = {
            "popsize": self._popsize,
            "CMA_diagonal": self._size > SEPARABLE_ABOVE,
            "CMA_mirrors": 0,  # mirrored samples need both halves in one generation, which nobody promises here
            "randn": _normal(random_stream(self._seed, "cma", self._restart)),
            "seed": math.nan,  # never numpy's global generator
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        if self._steps[self._rest].any():
            counts = np.pad(self._steps[self._rest], (0, self._size - len(self._rest)))
            options["minstd"] = np.divide(LEAST_STEP, counts, out=np.zeros(self._size), where=counts > 1)
        with warnings.catch_warnings():  # the constructor also edits the warning filters
            warnings.simplefilter("ignore")
            self._strategy = cma.CMAEvolutionStrategy(self._genotype(point), self._sigma0, options)
            self._ready = list(self._strategy.ask())

    def _point(self, sample: _Sample, first: int | None = None) -> Point:
        """The point of a sample, or, where all coordinates are real, its first ones."""
        if first is not None:
            low, high = self._domain.low[:first], self._domain.high[:first]
            unit = self._first_bounds.transform(sample.genotype[:first])[: len(low)]
            return np.asarray(np.clip(low + unit * (high - low), low, high), dtype=np.float64)
        unit = np.empty(len(self._domain.low))
        unit[self._rest] = self._bounds.transform(sample.genotype)[: len(self._rest)]
        unit[self._choices] = (sample.codes + 0.5) / self._steps[self._choices]
        return at(self._domain, unit)

    def _genotype(self, point: Point) -> NDArray[np.float64]:
        unit = np.full(self._size, 0.5)
        unit[: len(self._rest)] = unit_of(self._domain, point)[self._rest]
        return np.asarray(self._bounds.inverse(unit), dtype=np.float64)

    def _note(self, loss: float | None, point: Point) -> None:
        """Keep the best answer, and the worst loss, which a failure ranks with."""
        if loss is None:
            return
        seen = self._best is not None
        self._worst = max(self._worst, loss) if seen else loss
        if self._best is None or loss < self._best[0]:
            self._best = (loss, np.array(point, dtype=np.float64))


def _normal(generator: np.random.Generator) -> Callable[..., NDArray[np.float64]]:
    """`randn` of a generator of our own: N(0, 1), of the shape asked for."""
    return lambda *shape: generator.standard_normal(shape)
