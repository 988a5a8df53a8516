"""How does a driver walk downhill? One loop: gradients, scores on items they never see, and a stop in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import (
    FOREIGN,
    Domain,
    DriverError,
    Items,
    Outcome,
    Point,
    Question,
    Wants,
    checked_losses,
)
from optimizer.drivers.shared.criterion import Criterion, is_anchor
from optimizer.drivers.shared.sequence import OneByOne
from optimizer.drivers.shared.unasked import unasked

Lr = Annotated[
    float,
    Field(
        gt=0,
        description="The learning rate of Adam: about how far one step moves each coefficient (or, of `bounds:"
        " sigmoid`, the number behind it); larger is faster, and overshoots sooner.",
    ),
]
Steps = Annotated[
    int, Field(ge=1, description="Steps at most, each of one gradient; budget.evaluations does not count them.")
]
Batch = Annotated[
    int,
    Field(ge=0, description="Items of each task in a gradient, others in each; more are surer and slower. 0: all."),
]
Every = Annotated[
    int,
    Field(ge=1, description="Steps between two scores; less finds the best step more finely, for more evaluations."),
]
Patience = Annotated[
    int | None,
    Field(
        ge=1,
        description="Scores in a row that are no better than the best before, after which a walk ends, or goes on to"
        " its next stage where it has one; null: never.",
    ),
]
Start = Annotated[
    Literal["space", "best", "base", "average"],
    Field(
        description="Where it begins: at that of space.start (`space`), the `best` anchor, the `base`, or the"
        " `average` of the experts."
    ),
]
"""The options of walks, whose defaults differ."""
FAILURES = 3  # in a row, after which a walk ends
LASTING = ("nonfinite", "error")  # failures that would come again


class Options(BaseModel):
    """What every walk has; `lr`, which of them follow Adam."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    asks: ClassVar[Wants] = "gradient"
    """What most of its steps ask for."""
    steps: Steps = 500
    batch: Batch = 16
    every: Every = 10
    patience: Patience = 5
    start: Start = "space"


class Rule(Protocol):
    """One way to go down: where the next gradient is wanted, and what is made of it."""

    @property
    def point(self) -> Point:
        """Where the walk is, inside the domain."""
        ...

    @property
    def wants(self) -> Wants: ...

    @property
    def whole(self) -> bool:
        """True where that is wanted on all training items, not on a minibatch."""
        ...

    @property
    def done(self) -> bool:
        """True when the rule has nowhere to go."""
        ...

    def update(self, outcome: Outcome) -> Point:
        """Go on from what was wanted at `point`. Returns where that led, which is what is scored.

        It is where the next gradient is wanted too, unless the rule then turns elsewhere.
        """
        ...

    def turn(self) -> bool:
        """Scores get no better: go on to the next stage. False where there is none, and the walk ends."""
        ...

    def back(self) -> None:
        """What was wanted at `point` has failed: return to where it last did not, and take smaller steps."""
        ...


def coefficients_alone(name: str, domain: Domain) -> None:
    """Raise DriverError for a domain with coordinates that are no coefficients."""
    if further := domain.names[domain.shape[0] * domain.shape[1] :]:
        raise DriverError(
            f"{name} walks down the slope of coefficients alone, and {further[0]!r} has none; fix it (space.options, "
            "space.method), or take a driver that asks for scores (cma, tpe)"
        )


class Descent(OneByOne):
    """The loop: asks a gradient, updates, asks for scores after every so many steps, and stops in time.

    A walk is a function of the gradients alone, but for its end. That is decided where the next score is due, from the
    scores before, all of which are awaited there: so one worker and many walk alike. Scores are on items that gradients
    never see; their criterion is the mean of the objectives, each in units of its range among the anchors told before
    the first ask, where there are any. (What fills the time until the last anchor is in depends on the workers, and is
    ignored.)

    `begin(start)` makes the rule. Raises DriverError for a domain with coordinates that are no coefficients, where the
    starting point lies outside the bounds, and from `tell` where the very first gradient fails because something in it
    is not finite, or raises.
    """

    def __init__(
        self, name: str, domain: Domain, objectives: int, options: Options, begin: Callable[[Point], Rule]
    ) -> None:
        coefficients_alone(name, domain)
        self._name, self._domain, self._objectives, self._options = name, domain, objectives, options
        self._begin = begin
        self._rule: Rule | None = None
        self._reached = domain.start  # by the last update
        self._anchors: list[Outcome] = []
        self._criterion = Criterion.among([], objectives)
        if options.start in ("base", "average"):
            self._start()  # refused now rather than at the first ask
        self._step = 0  # updates made
        self._since = 0  # the step at which this stage of the rule began
        self._number = 0
        self._draw = 0  # gradients asked
        self._gradient: int | None = None  # the question on its way
        self._pending: dict[int, int] = {}  # score questions on their way -> step
        self._scored = -1  # the last step whose score was asked
        self._criteria: list[tuple[int, float]] = []  # of scored steps
        self._failures = 0
        self._ended = False

    def trained_on(self, tasks: int) -> None:
        """Nothing to note, but for drivers whose options are of so many tasks."""

    @property
    def done(self) -> bool:
        """True when the walk has ended and its last point has been asked."""
        return self._ended and self._scored == self._step

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Update, or note a score. Raises DriverError for what was not asked, and for a first gradient that fails."""
        for outcome in outcomes:
            number = outcome.question.number
            if number == FOREIGN:
                if self._rule is None and is_anchor(outcome):
                    self._anchors.append(outcome)
            elif number in self._pending:
                self._note(self._pending.pop(number), outcome)
            elif number == self._gradient:
                self._gradient = None
                self._learn(outcome)
            else:
                raise unasked(self._name, number)

    def _next(self) -> Question | None:
        """The question that is due now, if any; changes nothing but the decision to stop, or to turn."""
        rule = self._rule or self._started()
        if not self._ended:
            self._ended = self._step >= self._options.steps or rule.done or self._failures >= FAILURES
        at_checkpoint = self._step % self._options.every == 0
        if self._gradient is None and self._scored < self._step and (at_checkpoint or self._ended):
            stage = f"{self._name} after {self._step} steps" if self._step else f"{self._name}: start"
            return Question(self._number, self._reached.copy(), stage=stage)
        if self._ended or self._gradient is not None:
            return None
        if at_checkpoint:
            if any(step < self._step for step in self._pending.values()):
                return None
            if self._stale():
                if not rule.turn():
                    self._ended = True
                    return None
                self._since = self._step
        items = Items("train", 0 if rule.whole else self._options.batch, self._draw)
        return Question(self._number, rule.point.copy(), rule.wants, items, f"{self._name} step {self._step}")

    def _take(self, question: Question) -> None:
        self._number += 1
        if question.wants == "scores":
            self._pending[question.number] = self._scored = self._step
        else:
            self._gradient = question.number
            self._draw += 1

    def _stale(self) -> bool:
        """Whether the last `patience` scores of this stage's earlier steps were no better than the best before."""
        known = [value for step, value in sorted(self._criteria) if self._since <= step < self._step]
        patience = self._options.patience
        if patience is None or len(known) <= patience:
            return False
        return min(known[-patience:]) >= min(known[:-patience])

    def _note(self, step: int, outcome: Outcome) -> None:
        value = np.inf
        if outcome.failure is None:
            value = self._criterion(checked_losses(outcome, self._objectives))
        self._criteria.append((step, value))

    def _learn(self, outcome: Outcome) -> None:
        assert self._rule is not None  # it asked
        if outcome.failure is None:
            self._check(outcome)
            self._reached = self._rule.update(outcome)
            self._step += 1
            self._failures = 0
            return
        if self._step == 0 and outcome.failure.partition(":")[0] in LASTING:
            raise DriverError(
                f"{self._name} cannot start: at its first point there is no gradient ({outcome.failure}); lower "
                "space.start, or see what is wrong with that evaluator's items, or the loss's weights and temperature"
            )
        self._rule.back()
        self._reached = self._rule.point
        self._failures += 1

    def _check(self, outcome: Outcome) -> None:
        rows = max(1, len(outcome.losses)) if outcome.question.wants == "gradients" else 1
        found, wanted = outcome.gradient, (rows, len(self._domain.low))
        checked_losses(outcome, len(outcome.losses))
        if found is None or found.shape != wanted:
            shape = None if found is None else found.shape
            raise DriverError(f"expected {outcome.question.wants} of shape {wanted}, got {shape}")
        if not np.isfinite(found).all():
            raise DriverError(f"expected finite {outcome.question.wants}; report such an answer as failed")

    def _started(self) -> Rule:
        known = [checked_losses(o, self._objectives) for o in self._anchors]
        self._criterion = Criterion.among(known, self._objectives)
        self._rule = self._begin(self._start())
        self._reached = self._rule.point
        return self._rule

    def _start(self) -> Point:
        domain, kind = self._domain, self._options.start
        point: Point | None = domain.start
        if kind == "base":
            point = domain.base
        elif kind == "average":
            point = domain.uniform
        elif kind == "best":
            scored = [o for o in self._anchors if self._inside(o.question.point)]
            if scored:
                # the point decides between equals: who answered first depends on the workers
                best = min(scored, key=lambda o: (self._criterion(o.losses), o.question.point.tobytes()))
                point = best.question.point
        if point is None:
            raise DriverError(
                "driver.start: this space's method cannot start at the base; take start: space or average"
            )
        point = np.array(point)
        if not self._inside(point):
            raise DriverError(f"driver.start: {kind!r} lies outside space.bounds; widen them, or take start: space")
        return point

    def _inside(self, point: Point) -> bool:
        return bool((point >= self._domain.low).all() and (point <= self._domain.high).all())
