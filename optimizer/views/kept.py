"""What travels in a report? What a service answers to the views of one run, as far as a file can hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import Split
from optimizer.record.candidate import Candidate
from optimizer.record.confidence import MOST_SURE
from optimizer.record.results import Results
from optimizer.views import fronts, one, summary, table
from optimizer.views.candidate_values import Coordinates
from optimizer.views.importance import importance, most_important
from optimizer.views.rounding import rounded

DETAILED = 400  # candidates whose coefficients travel: the front, the anchors, then the latest
ITEM_VALUES = 100_000  # of single items that travel: as far as it goes, in the order of `_itemised`
AT_ONCE = 50  # candidates whose items are read together
COORDINATES = 8  # of all candidates, the most important: as many as the page draws
WEIGHED = 600  # coordinates times objectives up to which it is told what matters for each objective
APART = {"groups", "experts", "point", "point_names"}  # of a candidate's answer: the same for all, or drawn nowhere
ITEM_DIGITS = 8  # so that a mean of items is the score that is that mean, as near as record/paired.py asks
CURVE_SECONDS = 20.0  # the hypervolume of many objectives takes long: the curve then has fewer places


def kept(results: Results) -> dict[str, Any]:
    """Plain values for the page's `kept.js`, objectives in natural units; NaN and infinity are None."""
    results.growth.measured(CURVE_SECONDS)  # first: the summary tells what each stage gained
    few = len(results.front.nondominated) <= MOST_SURE
    sure = results.confidence.seen if few and results.front.nondominated else {}
    unseen = results.confidence.unseen if sure else {}
    told = summary.run(results).model_dump()
    told.update(status="finished" if results.finished else "so far", eta_seconds=None, name=results.name)
    named = [c for c in _detailed(results) if not c.is_reference]
    return {
        "run": told,
        "candidates": table.columns(results, table.Wanted(), sure).model_dump(),
        "curve": fronts.curve(results).model_dump(),
        "coordinates": _coordinates(results).model_dump(),
        "importance": _importance(results),
        "details": {c.number: _detail(results, c, sure, unseen) for c in named},
        "models": {c.label: _detail(results, c, sure, unseen) for c in results.references.values()},
        "items": _items(results, {c.number for c in named}),
    }


def _detail(results: Results, c: Candidate, sure: dict[int, float], unseen: dict[int, float]) -> dict[str, Any]:
    return one.candidate(results, c, sure, unseen).model_dump(exclude=APART)


def _detailed(results: Results) -> list[Candidate]:
    """The candidates that are whole in the report, the most wanted first."""
    answered = list(results.candidates.values())
    anchors = [c for c in answered if c.is_anchor]
    wanted = {c.number: c for c in (*results.on_front, *anchors, *reversed(answered))}
    return list(wanted.values())[:DETAILED]


def _coordinates(results: Results) -> Coordinates:
    names = most_important(results, COORDINATES)
    there = {name: i for i, name in enumerate(results.domain.names)}
    rows = table.chosen(results, table.Wanted())
    columns = table.points(rows, [there[name] for name in names])
    return Coordinates(event=results.event, numbers=[c.number for c in rows], names=names, columns=columns)


def _importance(results: Results) -> dict[str, list[dict[str, Any]]]:
    """By objective, and of their mean under the empty name."""
    found = {"": importance(results)}
    if len(results.domain.names) * len(results.objectives) <= WEIGHED:
        found |= {o.name: importance(results, o.name) for o in results.objectives}
    return {name: [i.model_dump() for i in rows] for name, rows in found.items()}


def _itemised(results: Results) -> list[Candidate]:
    """Whose items travel, what is compared most first: best, uniform, the front, models as they are, other anchors."""
    best = [results.candidates[n] for n in results.front.by_mean()[:1]]
    anchors = [c for c in results.scored if c.is_anchor and c.failure is None]
    uniform = [c for c in anchors if c.label == "uniform"]
    return list({c.number: c for c in (*best, *uniform, *results.on_front, *results.compared, *anchors)}.values())


def _items(results: Results, detailed: set[int]) -> dict[str, dict[str, dict[int | str, list[float | None]]]]:
    """Per-item values by split, objective, and number or label: of each candidate those of both splits, or none."""
    rows = [c for c in _itemised(results) if c.is_reference or c.number in detailed]
    found: dict[str, dict[str, dict[int | str, list[float | None]]]] = {}
    room = ITEM_VALUES
    for begin in range(0, len(rows), AT_ONCE):
        some = rows[begin:][:AT_ONCE]
        there = {split: _read(results, some, split) for split in one.SPLITS}
        for i, c in enumerate(some):
            kept = [(split, name, values) for split in there for name, values in there[split][i].items()]
            room -= sum(len(values) for _, _, values in kept)
            if room < 0:
                return found
            for split, name, values in kept:
                of = found.setdefault(split, {}).setdefault(name, {})
                of[c.label if c.is_reference else c.number] = rounded(np.asarray(values, np.float64), ITEM_DIGITS)
    return found


def _read(results: Results, some: list[Candidate], split: Split) -> list[dict[str, NDArray[np.float32]]]:
    """Each one's kept values by objective, of what was scored for it."""
    numbers = [c.of if split == "heldout" and c.of is not None else c.number for c in some]
    there = results.items(numbers, split)
    return [{o.name: there[n][o.name] for o in results.objectives if o.name in there[n]} for n in numbers]
