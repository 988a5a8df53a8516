"""On how many items is a candidate scored? On few at first; on more, rung by rung, while it promises something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from evaluators.metrics import mean
from optimizer.answer import Answer, Told
from optimizer.driver import ANCHOR, WHOLE, Items, Question
from optimizer.executors.executor import Around, Executor
from optimizer.rungs.ladder import Ladder, Places, combined


@dataclass
class _Climb:
    """A candidate on its way: what it was asked, its answers so far with the places of their items, and estimates."""

    question: Question
    parts: list[tuple[Places, Answer]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


class Rungs(Around):
    """An executor that has candidates scored block by block on another, and makes one answer of their blocks.

    Anchors, models as they are, held-out scores and gradients go through as they are; so does everything before enough
    is known (`Ladder.ready`). No item is scored twice, unless an evaluator has a metric that is no mean over items:
    then what goes up to the last rung is scored there on all items at once.
    """

    def __init__(self, inner: Executor, ladder: Ladder) -> None:
        super().__init__(inner)
        self._ladder = ladder
        self._climbs: dict[int, _Climb] = {}
        self._draining = False

    def submit(self, question: Question) -> None:
        whole = question.number >= WHOLE or question.stage.startswith(ANCHOR)
        if whole or not question.is_candidate or not self._ladder.ready:
            self._inner.submit(question)
            return
        climb = self._climbs[question.number] = _Climb(question)
        self._ask(climb)

    def collect(self, timeout: float) -> list[Answer]:
        found = (self._add(answer) for answer in self._inner.collect(timeout))
        return [answer for answer in found if answer is not None]

    def drain(self) -> None:
        self._draining = True
        super().drain()

    def close(self) -> None:
        self._climbs.clear()
        super().close()

    def _ask(self, climb: _Climb) -> None:
        """Have a climb's next block scored."""
        places = self._ladder.block(climb.question.number, len(climb.parts))
        last = len(climb.parts) == len(self._ladder.plan.rungs)
        if last and not self._ladder.whole_by_parts(list(climb.parts[0][1].measures)):
            places = ()
        self._inner.submit(replace(climb.question, items=Items(places=places)))
        climb.parts.append((places, _NOTHING))

    def _add(self, answer: Answer) -> Answer | None:
        """The candidate's answer, once it is known; None while it goes on, or where the search is to end first."""
        climb = self._climbs.get(answer.number) if answer.split == "calibration" else None
        if climb is None:
            return answer
        climb.parts[-1] = (climb.parts[-1][0], answer)
        if answer.failure is not None or len(climb.parts) > len(self._ladder.plan.rungs):
            return self._ended(climb)
        items = self._items(climb)
        told = self._ladder.told(items)
        if told is None:  # a block without a result that a metric says anything of
            del self._climbs[answer.number]
            self._inner.submit(climb.question)
            return None
        climb.told.append(told)
        if not self._ladder.goes_on(len(climb.parts) - 1, told, items):
            return self._ended(climb)
        if not self._draining:
            self._ask(climb)
        return None

    def _items(self, climb: _Climb) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Places and results of what was scored so far, by metric."""
        rows = combined(self._ladder.sizes, [(places, a.per_item) for places, a in climb.parts])
        seen = {name: np.flatnonzero(~np.isnan(row)) for name, row in rows.items()}
        return {name: (seen[name], rows[name][seen[name]].astype(np.float64)) for name in rows}

    def _ended(self, climb: _Climb) -> Answer:
        del self._climbs[climb.question.number]
        answers = [a for _, a in climb.parts]
        last = answers[-1]
        found = replace(
            last,
            seconds=sum(a.seconds for a in answers),
            worker=", ".join(dict.fromkeys(a.worker for a in answers)),
            attempts=max(a.attempts for a in answers),
            tries=[t for a in answers for t in a.tries],
            told=climb.told,
        )
        if last.failure is not None or climb.parts[-1][0] == ():  # scored on all items at once
            return found
        items = combined(self._ladder.sizes, [(places, a.per_item) for places, a in climb.parts])
        if len(climb.parts) > len(self._ladder.plan.rungs):
            return replace(found, measures={name: mean(row) for name, row in items.items()}, per_item=items)
        return replace(found, measures=_estimated(climb.told[-1], items), per_item=items, share=climb.told[-1].share)


_NOTHING = Answer(-1, "calibration")  # in the place of a block's answer that is not there yet


def _estimated(told: Told, items: Mapping[str, NDArray[np.float32]]) -> dict[str, Measure]:
    """The measures of a candidate that was scored on some items: estimates, of so many items seen."""
    counts = {name: int((~np.isnan(row)).sum()) for name, row in items.items()}
    return {name: Measure(value, stderr, counts[name]) for name, (value, stderr) in told.measures.items()}
