"""Is a candidate worth more items? What whole candidates tell of one that was scored on some, rung by rung."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from evaluators.metrics import mean
from optimizer.answer import Answer, Told
from optimizer.conditions import Condition
from optimizer.driver import ANCHOR, WHOLE, Question
from optimizer.fidelity import ESTIMATORS
from optimizer.fidelity.estimator import Estimator
from optimizer.objectives import Objective
from optimizer.record.front import Front
from optimizer.record.paired import Sample
from optimizer.rungs.order import Order
from optimizer.rungs.plan import Plan
from optimizer.rungs.rules import WINDOW, among_the_best, chosen, dominated, part, promise
from optimizer.rungs.whole import LEAST, Known, Whole, rivals

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Places = tuple[tuple[int, ...], ...]

LIKELY = 0.025  # a candidate less likely to meet the constraints stops for that

PerItem = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Thought:
    """What some items tell of a candidate: losses and their errors, both `(m,)`, and how likely constraints are met."""

    losses: Array
    errors: Array
    met: float


class Ladder:
    """The rungs of a run. Its state is a function of what it was told, in that order, so that a replay brings it back.

    `sizes` are the numbers of calibration items by evaluator, in the job's order. `values` reads per-item results of a
    question from the ledger, for answers that come without. Where an objective, or a metric of a constraint, is no mean
    over items, nothing can be told of it from some: all candidates are then scored whole, and `refusal` says why.
    """

    def __init__(
        self,
        plan: Plan,
        objectives: Sequence[Objective],
        constraints: Sequence[Condition],
        sizes: Mapping[str, int],
        seed: int,
        values: Callable[[int], PerItem],
    ) -> None:
        self.plan, self.sizes = plan, dict(sizes)
        self.refusal: str | None = None
        self._objectives, self._constraints = tuple(objectives), tuple(constraints)
        self._metrics = tuple(dict.fromkeys([o.name for o in objectives] + [c.name for c in constraints]))
        self._seed, self._values = seed, values
        self._whole, self._front = Whole(), Front(len(objectives))
        self._tried: list[list[Thought]] = [[] for _ in plan.rungs]
        self._partly: dict[int, Thought] = {}  # told from some items, by number
        self._finals = 0  # that were scored on all in the end
        self._others: set[str] = set()  # metrics that are no means over items
        self._orders: dict[str, Order] = {}  # by evaluator
        self._estimators: dict[str, Estimator] = {}

    def learn(self, question: Question, answer: Answer) -> None:
        """Take in an answer on calibration items: of a candidate, or of a model as it is."""
        if question.number >= WHOLE:
            self._finals += 1
            self._partly.pop(question.number - WHOLE, None)
        if answer.failure is not None or answer.of is not None or question.wants != "scores":
            return
        for tried, told in zip(self._tried, answer.told, strict=False):
            tried.append(self._thought(told))
        if not answer.whole:
            self._partly[answer.number] = self._thought(answer.told[-1])
        else:
            self._learn_whole(question, answer, answer.per_item or self._values(answer.number))

    def _learn_whole(self, question: Question, answer: Answer, items: PerItem) -> None:
        for name, measure in answer.measures.items():
            if name not in self._others and not _is_mean(measure, items.get(name), self.sizes[_evaluator(name)]):
                self._others.add(name)
                if name in self._metrics and self.refusal is None:
                    self.refusal = f"{name} is no mean over items, of which some could tell"
                    log.warning("fidelity: %s; every candidate is scored on all items", self.refusal)
        if self.refusal is not None:
            return
        losses = np.array([o.sign * answer.measures[o.name].value for o in self._objectives])
        anchor = question.stage.startswith(ANCHOR)
        expert = question.model not in (None, "base") or question.stage.startswith(f"{ANCHOR}expert")
        before = self._whole.fitted
        met = not any(c.missed(answer.measures[c.name].value) for c in self._constraints)
        rows = {name: items[name].astype(np.float64) for name in self._metrics}
        self._whole.add(Known(rows, losses, expert, rival=met and question.number >= 0))
        if self._whole.fitted is not before:
            self._estimators.clear()
        if question.number >= 0:
            self._front.add(question.number, losses, anchor, met)

    @property
    def ready(self) -> bool:
        """Whether enough candidates were scored on all items to tell from fewer."""
        return self.refusal is None and bool(self._whole.fitted) and bool(self._front.numbers)

    def block(self, number: int, rung: int) -> Places:
        """The places of a candidate's rung that those below have not, a row an evaluator; after the last, the rest."""
        return tuple(self._order(name).block(number, rung) for name in self.sizes)

    def _order(self, evaluator: str) -> Order:
        if evaluator not in self._orders:
            size, known = self.sizes[evaluator], partial(self._first_results, evaluator)
            self._orders[evaluator] = Order(self.plan.choose, size, self.plan.rungs, self._seed, evaluator, known)
        return self._orders[evaluator]

    def _first_results(self, evaluator: str) -> Array:
        """Results of the first `LEAST` candidates on an evaluator's items, metric by metric, `(R, N)`."""
        mine = [m for m in self._metrics if _evaluator(m) == evaluator]
        rows = [_comparable(np.array([r.items[m] for r in self._whole.rows[:LEAST]])) for m in mine]
        return np.vstack(rows) if rows else np.zeros((0, self.sizes[evaluator]))

    def whole_by_parts(self, names: Sequence[str]) -> bool:
        """Whether scores on all items follow from those on some and on the rest: all metrics are means over items."""
        return self._others.isdisjoint(names)

    def told(self, items: Mapping[str, tuple[NDArray[np.int64], Array]]) -> Told | None:
        """Estimates over all items, by metric, of results `(n,)` at places `(n,)`; None where they tell nothing."""
        found = {}
        for name in self._metrics:
            if name not in items or not len(items[name][0]):
                return None
            places, values = items[name]
            weights = self._order(_evaluator(name)).weights(places)
            e = self._estimator(name).estimate(places, values, weights)
            if not math.isfinite(e.stderr):
                return None
            found[name] = (e.value, e.stderr)
        share = sum(len(items[n][0]) for n in self._metrics) / sum(self.sizes[_evaluator(n)] for n in self._metrics)
        return Told(share, found)

    def goes_on(self, rung: int, told: Told, items: Mapping[str, tuple[NDArray[np.int64], Array]]) -> bool:
        """Whether a candidate with these results on the items up to a rung is scored on more."""
        thought = self._thought(told)
        if thought.met < LIKELY:
            return False
        if self.plan.rule == "racing":
            signs = {o.name: o.sign for o in self._objectives}
            seen = {n: (items[n][0], sign * items[n][1]) for n, sign in signs.items()}
            return dominated(seen, rivals(self._whole.rows), signs) < self.plan.sure
        tried = [*self._tried[rung][1 - WINDOW :], thought]
        met = np.array([t.met for t in tried])
        return among_the_best(met * promise(*self._in_units(tried)), self.plan.keep)

    def finalists(self, answered: int) -> list[int]:
        """The candidates that are to be scored on all items now that so many have been answered, by number.

        Those that were scored on all from the start count among the answered. Each promises most beside those before
        it; none where all that are wanted have been scored.
        """
        wanted = part(self.plan.final, answered) - self._finals
        if wanted <= 0 or not self._partly or self.refusal is not None:
            return []
        numbers = list(self._partly)
        thoughts = list(self._partly.values())
        met = np.array([t.met if t.met >= LIKELY else 0.0 for t in thoughts])
        return [numbers[i] for i in chosen(*self._in_units(thoughts), met, wanted)]

    def _in_units(self, told: Sequence[Thought]) -> tuple[Array, Array, Array]:
        """Estimates `(n, m)`, their errors, and the losses of the front `(k, m)`, in units of the anchors' box."""
        ideal, span = self._front.ideal, self._front.span
        assert ideal is not None and span is not None  # whole candidates are known
        losses, errors = np.array([t.losses for t in told]), np.array([t.errors for t in told])
        front = np.array([r.losses for r in rivals(self._whole.rows)]).reshape(-1, len(ideal))
        return (losses - ideal) / span, errors / span, (front - ideal) / span

    def _estimator(self, metric: str) -> Estimator:
        if metric not in self._estimators:
            self._estimators[metric] = ESTIMATORS[self.plan.estimate](*self._whole.table(metric))
        return self._estimators[metric]

    def _thought(self, told: Told) -> Thought:
        said = [(o.sign * told.measures[o.name][0], told.measures[o.name][1]) for o in self._objectives]
        met = [c.chance(*told.measures[c.name]) for c in self._constraints]
        return Thought(np.array([v for v, _ in said]), np.array([e for _, e in said]), math.prod(met))


def _comparable(results: Array) -> Array:
    """Results of one metric `(R, N)` in units of their spread."""
    spread = float(results.std())
    return results / spread if spread > 0 else results


def combined(sizes: Mapping[str, int], parts: Sequence[tuple[Places, PerItem]]) -> dict[str, NDArray[np.float32]]:
    """Per-item results `(N,)` by metric, from blocks at their places; NaN where an item was in none of them."""
    names = list(sizes)
    found: dict[str, NDArray[np.float32]] = {}
    for places, items in parts:
        for metric, values in items.items():
            row = found.setdefault(metric, np.full(sizes[_evaluator(metric)], np.nan, dtype=np.float32))
            row[list(places[names.index(_evaluator(metric))])] = values
    return found


def _evaluator(metric: str) -> str:
    return metric.rpartition(".")[0]


def _is_mean(measure: Measure, items: NDArray[np.float32] | None, size: int) -> bool:
    """Whether a metric's value, and its standard error, are those of the mean of its results, one an item."""
    if items is None or items.shape != (size,) or not np.isfinite(items).all():
        return False
    same = mean(items)
    near = Sample.of(1.0, measure.value, measure.stderr, items).mean
    return near and bool(np.isclose(measure.stderr or 0.0, same.stderr or 0.0, rtol=1e-3, atol=1e-9))
