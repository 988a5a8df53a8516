"""What is asked before any search? The anchors: base, experts, averages. Then another driver starts from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import qmc

from optimizer.driver import (
    ANCHOR,
    FOREIGN,
    Domain,
    Driver,
    DriverError,
    Outcome,
    Point,
    Question,
    random_stream,
    renumbered,
)
from optimizer.drivers.shared.unasked import unasked

FILL = "fill: one coefficient per expert"


class Anchored:
    """Asks the anchors first, and then `inner`, which is told the anchors' answers as foreign ones.

    While anchors are on their way and more is asked, it asks fill questions: a Sobol sequence over one coefficient per
    expert, the same in every group, with all that is no coefficient at its start. Their answers too go to `inner` as
    foreign. Where the domain has no such block, `inner` is asked without waiting. Anchors at the same point are asked
    once, under all their labels.

    `anchors`: pairs of a label and a point of shape `(dim,)`. Raises DriverError on one that does not fit, or is not
    finite.
    """

    def __init__(self, domain: Domain, anchors: Sequence[tuple[str, Point]], inner: Driver, seed: int) -> None:
        self._domain, self._inner = domain, inner
        self._anchors = _distinct(anchors, len(domain.low))
        groups, experts = domain.shape
        self._fill: qmc.Sobol | None = None
        if 0 < groups * experts <= len(domain.low) and experts <= qmc.Sobol.MAXDIM:
            self._fill = qmc.Sobol(experts, scramble=True, bits=32, rng=random_stream(seed, "fill"))
        self._filled = 0
        self._number = 0
        self._inner_number = 0
        self._waiting: set[int] = set(range(len(self._anchors)))  # anchors without an answer, asked or not
        self._ours: set[int] = set()  # anchors and fill on their way
        self._theirs: dict[int, int] = {}  # question on its way -> number within `inner`
        self._answers: list[Outcome] = []  # foreign to `inner`, kept until all anchors are in

    @property
    def done(self) -> bool:
        """True when `inner` is, and the anchors have been asked."""
        return self._number >= len(self._anchors) and self._inner.done

    @property
    def anchors(self) -> dict[int, str]:
        """The labels of the anchors by question number."""
        return {i: label for i, (label, _) in enumerate(self._anchors)}

    def ask(self, n: int) -> list[Question]:
        """Anchors, then fill while they are on their way, then what `inner` asks."""
        first = self._anchors[self._number : self._number + max(n, 0)]
        questions = [self._own(Question(-1, point.copy(), stage=ANCHOR + label)) for label, point in first]
        rest = n - len(questions)
        if rest < 1:
            return questions
        if self._waiting and self._fill is not None:
            return questions + [self._own(Question(-1, self._next_fill(self._fill), stage=FILL)) for _ in range(rest)]
        return questions + [self._pass_on(question) for question in self._inner.ask(rest)]

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Takes anchors and fill as recorded, and has `inner` replay the rest. Raises DriverError on other anchors."""
        first = self._anchors[self._number : self._number + max(n, 0)]
        if len(questions) < len(first):
            raise DriverError(
                f"expected {len(first)} anchors, the record has {len(questions)} questions; start a new run"
            )
        for (label, point), question in zip(first, questions, strict=False):
            if not np.array_equal(point, question.point):
                raise DriverError(
                    f"the recorded question {question.number} is not the anchor {label!r};"
                    " resume with the job file that the run began with, or start a new run"
                )
            self._own(question)
        rest = questions[len(first) :]
        if not rest:
            return
        if self._waiting and self._fill is not None:
            for question in rest:
                self._own(question)
            self._filled += len(rest)
            return
        # a driver numbers its questions on from the last: that is how `inner` numbered these
        inner = [renumbered(question, self._inner_number + i) for i, question in enumerate(rest)]
        self._inner.replay(n - len(first), inner)
        for question in inner:
            self._pass_on(question)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Pass answers on: those of `inner` as its own, all others as foreign, once all anchors are in."""
        for outcome in outcomes:
            number = outcome.question.number
            if number in self._theirs:
                self._inner.tell([_as(outcome, self._theirs.pop(number))])
            elif number in self._ours:
                self._ours.remove(number)
                self._waiting.discard(number)
                self._foreign(_as(outcome, FOREIGN))
            elif number == FOREIGN:
                self._foreign(outcome)
            else:
                raise unasked("anchors", number)

    def _foreign(self, outcome: Outcome) -> None:
        self._answers.append(outcome)
        if not self._waiting or self._fill is None:
            self._inner.tell(self._answers)
            self._answers = []

    def _own(self, question: Question) -> Question:
        number, self._number = self._number, self._number + 1
        self._ours.add(number)
        return renumbered(question, number)

    def _pass_on(self, question: Question) -> Question:
        number, self._number = self._number, self._number + 1
        self._theirs[number] = question.number
        self._inner_number = question.number + 1
        return renumbered(question, number)

    def _next_fill(self, sequence: qmc.Sobol) -> Point:
        if behind := self._filled - sequence.num_generated:
            sequence.fast_forward(behind)
        self._filled += 1
        unit = np.tile(sequence.random(1)[0], self._domain.shape[0])  # (groups * experts,)
        low, high = self._domain.low[: len(unit)], self._domain.high[: len(unit)]
        return np.concatenate([np.minimum(low + unit * (high - low), high), self._domain.start[len(unit) :]])


def _as(outcome: Outcome, number: int) -> Outcome:
    """The outcome of the same question under another number."""
    return replace(outcome, question=renumbered(outcome.question, number))


def _distinct(anchors: Sequence[tuple[str, Point]], dim: int) -> list[tuple[str, Point]]:
    """Each point once, in the order given, under the labels of all anchors that are there."""
    labels: dict[bytes, list[str]] = {}
    points: dict[bytes, Point] = {}
    for label, given in anchors:
        point = np.array(given, dtype=np.float64) + 0.0  # a copy, whose zeros are all positive
        if point.shape != (dim,) or not np.isfinite(point).all():
            raise DriverError(
                f"the anchor {label!r} has shape {point.shape} or is not finite; expected finite numbers of ({dim},)"
            )
        key = point.tobytes()
        points[key] = point
        labels.setdefault(key, []).append(label)
    return [(", ".join(labels[key]), point) for key, point in points.items()]
