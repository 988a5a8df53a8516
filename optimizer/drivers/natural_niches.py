"""Which two merges should have a child? M2N2: niches are shared, and B is strong where A is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import (
    FOREIGN,
    Domain,
    Outcome,
    Point,
    Question,
    at,
    checked_losses,
    exact,
    random_stream,
    snapped,
)
from optimizer.drivers.shared.scale import Scale
from optimizer.drivers.shared.unasked import unasked

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Member:
    point: Point  # (dim,)
    losses: Array  # (m,)


class NaturalNiches:
    """Model Merging of Natural Niches (Abrantes et al. 2025, arXiv:2508.16204), with objectives for items.

    An archive holds the `archive` merges of the largest fitness `f_i = sum_j s_ij / z_j^alpha`, `z_j = sum_i s_ij`:
    what many can do is shared among them. s_ij is 1 for the archive's best at objective j, and 0 for its worst. A
    parent A is drawn by fitness, B by attraction `sum_j max(0, s_Bj - s_Aj) / z_j^alpha`. Their child takes
    blend(A, B; w) of the groups before a split, and blend(A, B; 1 - w) behind it, w and split drawn evenly; so do, by
    themselves, the coordinates that follow the coefficients, a choice being that of the nearer parent.

    The paper's items are those of a test set, of which a driver hears nothing, and its spherical blend is of whole
    weights. Here it is of coefficients, that is of task vectors as though these were orthogonal and of one length:
    children of two experts are longer than their average. `linear` is the average, which the blend of whole weights,
    nearly parallel, comes to.

    It begins with the experts where the space reaches them, and the starting point; foreign answers are in the archive
    too. Until two are there, averages of experts with weights drawn evenly fill the time (or points of the space).
    Failures are in no archive. Each question is a function of (seed, number) and the archive, so a replay only counts.
    """

    class Options(BaseModel):
        """The authors' `archive` and `alpha`; they `mutate` only what has not been trained before."""

        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        archive: int = Field(
            20, ge=2, description="Merges that are kept; more are more diverse, and improve more slowly."
        )
        alpha: float = Field(
            1.0,
            ge=0,
            description="How much less it counts what many of them can do; 0: no less, more favours the rare.",
        )
        blend: Literal["slerp", "linear"] = Field(
            "slerp",
            description="How two parents' coefficients are mixed: along the arc between them (`slerp`), or `linear`.",
        )
        mutate: float = Field(
            0.0,
            ge=0,
            le=1,
            description="The standard deviation of noise on a child's coefficients, as a part of each bound's range.",
        )

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._objectives, self._seed, self._options = domain, objectives, seed, options
        inside = [v for v in ([] if domain.vertices is None else domain.vertices) if exact(domain, v)]
        self._experts = np.array(inside).reshape(-1, len(domain.low))
        self._seeds: list[tuple[str, Point]] = [("an expert", v) for v in inside] + [("the start", domain.start)]
        self._archive: list[_Member] = []
        self._asked: dict[int, Point] = {}
        self._number = 0
        self._places = self._along()

    def ask(self, n: int) -> list[Question]:
        """Seeds that are not known, then children."""
        questions = []
        for _ in range(n):
            stage, point = self._next()
            questions.append(Question(self._number, point, stage=f"m2n2: {stage}"))
            self._take(questions[-1])
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Takes the questions as recorded."""
        for question in questions:
            self._take(question)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Into the archive, as long as it is fit. Raises DriverError for losses that are not finite."""
        for outcome in outcomes:
            losses = None if outcome.failure is not None else checked_losses(outcome, self._objectives)
            number, point = outcome.question.number, outcome.question.point
            if number == FOREIGN:
                if losses is not None and exact(self._domain, point):
                    self._unseed(point)
                    self._enter(_Member(point, losses))
                continue
            if self._asked.pop(number, None) is None:
                raise unasked("m2n2", number)
            if losses is not None:
                self._enter(_Member(point, losses))

    def _take(self, question: Question) -> None:
        self._asked[question.number] = question.point
        self._unseed(question.point)
        self._number = question.number + 1

    def _unseed(self, point: Point) -> None:
        """It is known, or will be: no need to ask it as a seed."""
        self._seeds = [(stage, seed) for stage, seed in self._seeds if not np.array_equal(seed, point)]

    def _next(self) -> tuple[str, Point]:
        if self._seeds:
            stage, seed = self._seeds[0]
            return stage, np.array(seed)
        draw = random_stream(self._seed, "m2n2", self._number)
        if len(self._archive) >= 2:
            return "child", self._child(draw)
        if len(self._experts) > 1:
            weights = draw.dirichlet(np.ones(len(self._experts)))
            return "an average", np.clip(weights @ self._experts, self._domain.low, self._domain.high)
        return "a point", at(self._domain, draw.random(len(self._domain.low)))

    def _enter(self, member: _Member) -> None:
        if any(np.array_equal(member.point, other.point) for other in self._archive):
            return
        self._archive.append(member)
        if len(self._archive) > self._options.archive:
            del self._archive[int(np.argmin(self._shared().sum(axis=1)))]

    def _shared(self) -> Array:
        """What each member gets of each objective, `(members, m)`: `s_ij / z_j^alpha`."""
        losses = np.array([member.losses for member in self._archive])
        scores = 1.0 - Scale.ranging(list(losses), self._objectives).units(losses)
        total = scores.sum(axis=0)
        return np.asarray(scores / np.where(total > 0, total, 1.0) ** self._options.alpha)

    def _child(self, draw: np.random.Generator) -> Point:
        shared = self._shared()
        first = _drawn(draw, shared.sum(axis=1))
        pull = np.maximum(0.0, shared - shared[first]).sum(axis=1)
        if not pull.sum() > 0:  # A is the best at everything: any other
            pull = np.ones(len(pull))
            pull[first] = 0.0
        second = _drawn(draw, pull)
        split, w = draw.random(2)
        weight = np.where(self._places < split, w, 1.0 - w)  # of B
        child = self._blend(self._archive[first].point, self._archive[second].point, weight)
        if self._options.mutate:
            child = child + self._options.mutate * self._span * draw.normal(size=len(child))
        return snapped(self._domain, np.clip(child, self._domain.low, self._domain.high))

    def _blend(self, a: Point, b: Point, weight: Array) -> Point:
        count = self._domain.shape[0] * self._domain.shape[1]
        child = (1.0 - weight) * a + weight * b
        if self._options.blend == "slerp" and count:
            child[:count] = slerp(a[:count], b[:count], weight[:count])
        choice = np.array([kind == "choice" for kind in self._domain.kinds])
        return np.where(choice, np.where(weight > 0.5, b, a), child)

    def _along(self) -> Array:
        """Where along the model each coordinate is, `(dim,)` in [0, 1): by its group, those behind by their order."""
        groups, experts = self._domain.shape
        further = len(self._domain.low) - groups * experts
        block = np.repeat(np.arange(groups) / max(groups, 1), experts)
        return np.concatenate([block, np.arange(further) / max(further, 1)])

    @property
    def _span(self) -> Array:
        """The ranges of the coefficients, and 0 for what follows them, `(dim,)`."""
        span = np.array(self._domain.high - self._domain.low)
        span[self._domain.shape[0] * self._domain.shape[1] :] = 0.0
        return span


def slerp(
    a: Array,  # (n,)
    b: Array,  # (n,)
    weight: Array,  # (n,), of b
) -> Array:
    """Each entry on its own part of the way along the arc from a to b; along the line where there is no arc."""
    sizes = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip(a @ b / sizes, -1.0, 1.0)) if sizes > 0 else 0.0
    if np.sin(angle) < 1e-6:
        return np.asarray((1.0 - weight) * a + weight * b)
    return np.asarray((np.sin((1.0 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle))


def _drawn(draw: np.random.Generator, odds: Array) -> int:
    """A place, drawn by odds `(n,)`; all alike where they are 0."""
    total = odds.sum()
    shares = odds / total if total > 0 else np.full(len(odds), 1.0 / len(odds))
    return min(int(np.searchsorted(np.cumsum(shares), draw.random(), side="right")), len(odds) - 1)
