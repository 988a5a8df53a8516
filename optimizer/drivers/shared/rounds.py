"""How does a driver ask that goes by rounds? All of a round at once; the next when the last answer is in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

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
from optimizer.drivers.shared.criterion import is_anchor
from optimizer.drivers.shared.sequence import OneByOne
from optimizer.drivers.shared.unasked import unasked


@dataclass(frozen=True, eq=False)
class Wish:
    """A point, what is wanted of it, and what that is for."""

    stage: str
    point: Point  # (dim,)
    wants: Wants = "scores"

    @property
    def key(self) -> tuple[str, bytes]:
        return self.wants, (self.point + 0.0).tobytes()  # zeros all positive


Plan: TypeAlias = Generator[list[Wish], list[Outcome], None]
"""Yields the wishes of a round, and is sent an outcome for each; it ends when there is nothing more to ask."""


class Rounds(OneByOne):
    """Asks the wishes of a plan, round by round, and waits for the answers of each.

    What a round is depends on the answers before, and not on their order. What is known is not asked again: foreign
    answers told before the first ask, and its own. `begin(anchors)` makes the plan from the losses `(m,)` of the
    anchors among those. Replay is the plan again, by arithmetic.
    """

    def __init__(
        self,
        name: str,
        domain: Domain,
        objectives: int,
        begin: Callable[[list[NDArray[np.float64]]], Plan],
    ) -> None:
        self._name, self._dim, self._objectives, self._begin = name, len(domain.low), objectives, begin
        self._plan: Plan | None = None
        self._anchors: list[NDArray[np.float64]] = []
        self._known: dict[tuple[str, bytes], Outcome] = {}
        self._round: list[Wish] = []
        self._due: deque[Wish] = deque()
        self._pending: dict[int, Wish] = {}
        self._number = 0
        self._ended = False

    @property
    def done(self) -> bool:
        """True when the plan has ended."""
        return self._ended

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Note the answers. Raises DriverError for losses that are not finite, and for what was not asked."""
        for outcome in outcomes:
            number = outcome.question.number
            if number == FOREIGN:
                self._hear(outcome)
            elif number in self._pending:
                self._check(outcome)
                self._known[self._pending.pop(number).key] = outcome
                if not self._pending and not self._due:
                    self._go_on()
            else:
                raise unasked(self._name, number)

    def _hear(self, outcome: Outcome) -> None:
        self._check(outcome)
        if self._plan is None and outcome.question.wants == "scores":
            self._known[Wish("", outcome.question.point).key] = outcome
            if is_anchor(outcome):
                self._anchors.append(outcome.losses)

    def _check(self, outcome: Outcome) -> None:
        """Scores are m finite numbers, and whatever else is wanted comes as rows of finite ones."""
        if outcome.failure is not None:
            return
        if outcome.question.wants == "scores":
            checked_losses(outcome, self._objectives)
            return
        checked_losses(outcome, len(outcome.losses))
        found = outcome.gradient
        if found is None or found.ndim != 2 or found.shape[1] != self._dim or not np.isfinite(found).all():
            raise DriverError(
                f"expected finite {outcome.question.wants} of shape (rows, {self._dim}), but question "
                f"{outcome.question.number} came back otherwise; report such an answer as failed"
            )

    def _next(self) -> Question | None:
        if self._plan is None:
            self._plan = self._begin(self._anchors)
            self._start(next(self._plan))
        if not self._due:
            return None
        wish = self._due[0]
        items = Items() if wish.wants == "scores" else Items("train")
        return Question(self._number, wish.point.copy(), wish.wants, items, f"{self._name}: {wish.stage}")

    def _take(self, question: Question) -> None:
        self._pending[question.number] = self._due.popleft()
        self._number += 1

    def _start(self, wishes: list[Wish]) -> None:
        self._round = wishes
        new = {wish.key: wish for wish in reversed(wishes) if wish.key not in self._known}  # the first of equals stays
        self._due.extend(reversed(new.values()))
        if not self._due:
            self._go_on()

    def _go_on(self) -> None:
        assert self._plan is not None  # it has asked
        try:
            wishes = self._plan.send([self._known[wish.key] for wish in self._round])
        except StopIteration:
            self._ended = True
            return
        self._start(wishes)
