"""How much of each expert is noise, and with which sign and scale is the rest added? Evolved, expert by expert."""

from __future__ import annotations

from collections.abc import Sequence

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
    unit_of,
)
from optimizer.drivers.shared.criterion import Criterion, is_anchor
from optimizer.drivers.shared.unasked import unasked

Array = NDArray[np.float64]
PARENTS = 4  # members without which nobody has a child: who may be replaced, the best, and two that differ


class EvoMerging:
    """Evo-Merging (arXiv:2509.12951): drop each expert's noise, then scale what is left, with a sign.

    A genome has one signed scale an expert, the same in all groups, and all coordinates that follow the coefficients:
    sparsities, as a method has them that drops entries (`density` of dare_linear, della, ties, ...), and whatever else
    is searched. The evolution is ours, for it waits for nobody: differential evolution (Storn & Price 1997,
    current-to-best/1/bin) in the unit cube. Question i is about place `i mod population`: its member x moves to
    `x + F (best - x) + F (a - b)`, a coordinate at a time with probability `crossover`, and is replaced by what is no
    worse. Less is better of the mean of the objectives, each in units of its range among the anchors.

    The first of each place are drawn evenly, but for the starting point; foreign answers with the same scale in all
    groups take places before that. Failures take none. Each question is a function of (seed, number) and the answers
    before, so a replay only counts. Raises DriverError for a space without negative scales, or with fewer real
    coordinates behind the coefficients than experts.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        population: int | None = Field(
            None,
            ge=PARENTS,
            description="Members; more look wider, and learn more slowly. Default: 4 + floor(3 ln(size of a genome)),"
            " doubled.",
        )
        factor: float = Field(
            0.6, gt=0, le=2, description="F: how far a child goes along members' differences; larger leaps further."
        )
        crossover: float = Field(
            0.9, gt=0, le=1, description="The chance of each number of a child to be new, and not its parent's."
        )

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        _check(domain)
        self._domain, self._objectives, self._seed, self._options = domain, objectives, seed, options
        self._groups, self._experts = domain.shape
        size = self._experts + len(domain.low) - self._groups * self._experts
        self._population = options.population or 2 * (4 + int(3 * np.log(size)))
        self._criterion: Criterion | None = None  # fixed at the first ask
        self._anchors: list[Array] = []
        self._members: dict[int, tuple[Array, Array]] = {}  # place -> genome (size,) in the unit cube, losses (m,)
        self._foreign = 0
        self._asked: set[int] = set()
        self._number = 0

    def ask(self, n: int) -> list[Question]:
        """A child for each place in turn."""
        questions = []
        for _ in range(n):
            self._fix()
            stage, genome = self._next()
            questions.append(Question(self._number, self._point(genome), stage=f"evo_merging: {stage}"))
            self._take(questions[-1])
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Takes the questions as recorded."""
        self._fix()
        for question in questions:
            self._take(question)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Replace who is no better. Raises DriverError for losses that are not finite."""
        for outcome in outcomes:
            losses = None if outcome.failure is not None else checked_losses(outcome, self._objectives)
            number = outcome.question.number
            if number == FOREIGN:
                self._hear(outcome)
                continue
            if number not in self._asked:
                raise unasked("evo_merging", number)
            self._asked.remove(number)
            if losses is not None:
                self._enter(number % self._population, outcome.question.point, losses)

    def _hear(self, outcome: Outcome) -> None:
        if self._criterion is not None or outcome.failure is not None:
            return
        if is_anchor(outcome):
            self._anchors.append(outcome.losses)
        point = outcome.question.point
        rows = point[: self._groups * self._experts].reshape(self._domain.shape)
        # half of the places at most: what was not evolved is all of one density
        if exact(self._domain, point) and (rows == rows[0]).all() and self._foreign < self._population // 2:
            self._members[self._foreign] = (self._genome(point), outcome.losses)
            self._foreign += 1

    def _fix(self) -> None:
        if self._criterion is None:
            self._criterion = Criterion.among(self._anchors, self._objectives)

    def _take(self, question: Question) -> None:
        self._asked.add(question.number)
        self._number = question.number + 1

    def _enter(self, place: int, point: Point, losses: Array) -> None:
        assert self._criterion is not None  # it has asked
        before = self._members.get(place)
        if before is None or self._criterion(losses) <= self._criterion(before[1]):
            self._members[place] = (self._genome(point), losses)

    def _next(self) -> tuple[str, Array]:
        draw = random_stream(self._seed, "evo_merging", self._number)
        place = self._number % self._population
        if self._number == 0:
            return "the start", self._genome(self._domain.start)
        if place not in self._members or len(self._members) < PARENTS:
            return "a first one", draw.random(len(self._genome(self._domain.start)))
        return "child", self._child(draw, place)

    def _child(self, draw: np.random.Generator, place: int) -> Array:
        assert self._criterion is not None  # fixed before anything is asked
        values = {i: self._criterion(losses) for i, (_, losses) in sorted(self._members.items())}
        best = min(values, key=lambda i: (values[i], i))
        others = [i for i in values if i != place]
        a, b = draw.choice(others, size=2, replace=False).tolist()
        x, top = self._members[place][0], self._members[best][0]
        moved = x + self._options.factor * (top - x + self._members[a][0] - self._members[b][0])
        # half of the way to a bound that it would leave
        moved = np.where(moved < 0, x / 2, np.where(moved > 1, (x + 1) / 2, moved))
        new = draw.random(len(x)) < self._options.crossover
        new[draw.integers(len(x))] = True
        return np.where(new, moved, x)

    def _genome(self, point: Point) -> Array:
        """Scales of the first group, and all that follows the coefficients, in the unit cube."""
        unit = unit_of(self._domain, point)
        return np.concatenate([unit[: self._experts], unit[self._groups * self._experts :]])

    def _point(self, genome: Array) -> Point:
        scales, rest = genome[: self._experts], genome[self._experts :]
        return at(self._domain, np.concatenate([np.tile(scales, self._groups), rest]))


def _check(domain: Domain) -> None:
    groups, experts = domain.shape
    block = groups * experts
    sparsities = sum(kind == "real" for kind in domain.kinds[block:])
    if block and sparsities >= experts and (domain.low[:block] < 0).all():
        return
    raise DriverError(
        f"evo_merging evolves a signed scale and a sparsity for each of the {experts} experts: expected "
        "coefficients that may be negative, and behind them as many searched numbers at least; this space has "
        f"{int((domain.low[:block] < 0).sum())} of {block} coefficients that may be negative, and {sparsities} such "
        "numbers; say, for example, space: {method: dare_linear, bounds: [-1, 1], options: {density: {low: 0.1, "
        "high: 1, per: expert}}}"
    )
