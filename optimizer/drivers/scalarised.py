"""How does a driver of one objective search trade-offs? One such driver per preference, asked in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import (
    FOREIGN,
    Domain,
    Driver,
    DriverError,
    Outcome,
    Question,
    checked_losses,
    preference,
    random_stream,
    renumbered,
)
from optimizer.drivers.shared.scale import Scale
from optimizer.drivers.shared.unasked import unasked

OF_MODELS = ("sizes", "grams")
"""What is wanted of models alone, and of no objective."""

MAX_EMPHASES = 6  # preferences besides the uniform one: each takes its share of the evaluations
RHO = 0.05  # of the sum in an augmented Tchebycheff distance: how much what is not worst counts

How = Literal["sum", "tchebycheff"]


class Scalarised:
    """W single-objective drivers, asked in turn; driver w is told one loss.

    With z_j = (loss_j - ideal_j) / (nadir_j - ideal_j), that is

    - `sum`: sum_j w_j z_j. Its minima lie on the convex parts of the front.
    - `tchebycheff`: max_j w_j z_j + 0.05 sum_j w_j z_j, the augmented Tchebycheff distance from the ideal (Steuer &
      Choo 1983), whose minima lie where the front is not convex too. Its derivatives are those of the objective that is
      worst there, and of the sum.

    `ideal` and `nadir` are the best and worst losses among the foreign answers told before the first ask (the anchors),
    and stay as they are from then on; without any they are 0 and 1. Question number i belongs to driver i mod W, which
    is told of its own answers alone, and of foreign ones weighted its own way.

    `make_inner(seed)` makes one driver of one objective; each is given a seed of its own. `weights`: rows of m
    non-negative numbers with a positive sum, scaled to sum 1; `default_weights(m)` where None. Raises DriverError on
    weights that do not fit.
    """

    def __init__(
        self,
        domain: Domain,
        objectives: int,  # m
        seed: int,
        make_inner: Callable[[int], Driver],
        weights: Sequence[Sequence[float]] | None = None,  # (W, m)
        how: How = "sum",
    ) -> None:
        self._objectives, self._dim, self._how = objectives, len(domain.low), how
        self._weights = default_weights(objectives) if weights is None else _checked(weights, objectives)
        seeds = [int(random_stream(seed, "preference", i).integers(2**63)) for i in range(len(self._weights))]
        self._inner = [make_inner(s) for s in seeds]
        self._number = 0
        self._foreign: list[Outcome] = []  # kept until the scale is fixed
        self._scale: Scale | None = None

    @property
    def done(self) -> bool:
        """True when a driver is: the others are not asked beyond their share."""
        return any(inner.done for inner in self._inner)

    def ask(self, n: int) -> list[Question]:
        """The drivers in turn, one question each; ends early where the driver whose turn it is waits for answers."""
        if n > 0:
            self._fix_scale()
        questions: list[Question] = []
        for _ in range(n):
            which = self._number % len(self._inner)
            asked = self._inner[which].ask(1)
            if not asked:
                break
            stage = f"preference {_text(self._weights[which])}: {asked[0].stage}"
            questions.append(replace(asked[0], number=self._number, stage=stage))
            self._number += 1
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Each driver replays its own questions."""
        self._fix_scale()
        for question in questions:
            which, number = self._number % len(self._inner), self._number // len(self._inner)
            self._inner[which].replay(1, [renumbered(question, number)])
            self._number += 1

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Weigh each answer for who asked, a foreign one for all. Raises DriverError on a NaN or a wrong shape."""
        for outcome in outcomes:
            if outcome.failure is None and outcome.question.wants not in OF_MODELS:
                checked_losses(outcome, self._objectives)
            wanted = (self._objectives, self._dim)
            if (
                outcome.question.wants not in OF_MODELS
                and outcome.gradient is not None
                and outcome.gradient.shape != wanted
            ):
                raise DriverError(
                    f"expected a gradient of shape {wanted}, one row per objective, got {outcome.gradient.shape}"
                )
            number = outcome.question.number
            if number >= self._number or number < FOREIGN:
                raise unasked("preferences", number)
            if number != FOREIGN and outcome.question.wants in OF_MODELS:
                which, inner_number = number % len(self._inner), number // len(self._inner)
                self._inner[which].tell([replace(outcome, question=renumbered(outcome.question, inner_number))])
                continue
            if number != FOREIGN:
                which, inner_number = number % len(self._inner), number // len(self._inner)
                self._inner[which].tell([self._weighed(outcome, self._weights[which], inner_number)])
            elif self._scale is None:
                self._foreign.append(outcome)
            else:
                self._tell_all(outcome)

    def _fix_scale(self) -> None:
        if self._scale is not None:
            return
        known = [outcome.losses for outcome in self._foreign if outcome.failure is None]
        self._scale = Scale.ranging(known, self._objectives)
        for outcome in self._foreign:
            self._tell_all(outcome)
        self._foreign = []

    def _tell_all(self, outcome: Outcome) -> None:
        for inner, weights in zip(self._inner, self._weights, strict=True):
            inner.tell([self._weighed(outcome, weights, FOREIGN)])

    def _weighed(self, outcome: Outcome, weights: NDArray[np.float64], number: int) -> Outcome:
        """The outcome as a driver of one objective sees it: one loss, and by the chain rule its derivative."""
        assert self._scale is not None  # nothing is weighed before the first ask
        factors = weights / self._scale.span  # (m,)
        apart = outcome.losses - self._scale.ideal
        loss, slopes = factors @ apart, factors
        if self._how == "tchebycheff":
            worst = int(np.argmax(factors * apart))
            loss = factors[worst] * apart[worst] + RHO * loss
            slopes = RHO * factors
            slopes[worst] += factors[worst]
        return Outcome(
            question=renumbered(outcome.question, number),
            losses=np.array([loss]),
            stderr=np.array([np.sqrt(np.sum((slopes * outcome.stderr) ** 2))]),  # objectives taken as independent
            gradient=None if outcome.gradient is None else (slopes @ outcome.gradient)[np.newaxis],
            failure=outcome.failure,
            share=outcome.share,
        )


def default_weights(objectives: int) -> NDArray[np.float64]:
    """Preferences `(W, m)` that spread over the simplex, the uniform one first; W is 5 to 7.

    The others put half of the weight on one objective, or on one of six blocks of objectives, and share the other half
    evenly. Two objectives have two stronger emphases besides; three have one on each pair.
    """
    uniform = np.full(objectives, 1.0 / objectives)
    if objectives == 1:
        return uniform[np.newaxis]
    blocks = [list(map(int, b)) for b in np.array_split(np.arange(objectives), min(objectives, MAX_EMPHASES))]
    emphases = [(block, 0.5) for block in blocks]
    if objectives == 2:
        emphases += [([0], 0.85), ([1], 0.85)]
    if objectives == 3:
        emphases += [([0, 1], 0.75), ([1, 2], 0.75), ([2, 0], 0.75)]
    rows = [uniform]
    for block, part in emphases:
        row = (1 - part) * uniform
        row[block] += part / len(block)
        rows.append(row)
    return np.array(rows)


def _checked(given: Sequence[Sequence[float]], objectives: int) -> NDArray[np.float64]:
    if not len(given):
        raise DriverError("driver.preferences: the list is empty; give one weight per objective, or leave the key out")
    return np.array([preference("driver.preferences", row, "objective", objectives) for row in given])


def _text(weights: NDArray[np.float64]) -> str:
    return "/".join(f"{w:.2g}" for w in weights)
