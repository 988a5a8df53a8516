"""What did all candidates score? As columns, for the page and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.errors import JobError
from optimizer.record.candidate import Candidate
from optimizer.record.results import Results
from optimizer.views.candidate_values import Candidates
from optimizer.views.rounding import ERRORS, VALUES, Column, rounded
from optimizer.wording import shown

REASON = 300  # characters of why one failed; its own answer has all


@dataclass(frozen=True)
class Wanted:
    """Which candidates, in which order. `since`: those of which anything was told after that event."""

    since: int = -1
    front: bool = False
    stage: str | None = None
    failed: bool | None = None
    order: str = "number"
    limit: int | None = None
    offset: int = 0


def columns(results: Results, wanted: Wanted, sure: Mapping[int, float]) -> Candidates:
    """The candidates that are wanted. Raises JobError for an order that there is not."""
    rank = {n: i for i, n in enumerate(results.front.by_mean())}
    front = set(results.front.nondominated)
    found = _chosen(results, wanted, front, rank)
    rows = found[wanted.offset :][: wanted.limit]
    met = set(results.front.feasible)
    stages = list(dict.fromkeys(_stage(c) for c in rows))
    place = {stage: i for i, stage in enumerate(stages)}
    names = [o.name for o in results.objectives]
    seen, unseen = [c.measures for c in rows], [c.heldout for c in rows]
    return Candidates(
        event=results.event,
        total=len(found),
        numbers=[c.number for c in rows],
        labels={c.number: c.label for c in rows if c.is_anchor},
        stage=[place[_stage(c)] for c in rows],
        stages=stages,
        recipe=[c.recipe[:12] for c in rows],
        values=_values(seen, names),
        stderr=_errors(seen, names),
        heldout=_values(unseen, names),
        heldout_stderr=_errors(unseen, names),
        front=[c.number in front for c in rows],
        anchor=[c.is_anchor for c in rows],
        feasible=[c.number in met for c in rows],
        failed=[c.failure is not None for c in rows],
        share=[float(f"{c.share:.4g}") for c in rows],
        reasons={c.number: shown(str(c.failure), REASON) for c in rows if c.failure is not None},
        rank=[rank.get(c.number, -1) for c in rows],
        sure=[None if (p := sure.get(c.number)) is None else round(p, 3) for c in rows],
        seconds=[float(f"{c.seconds:.4g}") for c in rows],
        now=list(results.front.nondominated),
        ranks=rank if wanted.since >= 0 else None,
        sures={n: round(p, 3) for n, p in sure.items()} if wanted.since >= 0 else None,
    )


def points(rows: Sequence[Candidate], places: Sequence[int]) -> list[list[float]]:
    """Coordinates of candidates, a list a coordinate."""
    if not rows:
        return [[] for _ in places]
    matrix = np.array([c.point for c in rows])[:, list(places)]  # (n, k)
    return [[x or 0.0 for x in rounded(column)] for column in matrix.T]


def chosen(results: Results, wanted: Wanted) -> list[Candidate]:
    """The candidates that are wanted, in their order. Raises JobError for an order that there is not."""
    rank = {n: i for i, n in enumerate(results.front.by_mean())}
    return _chosen(results, wanted, set(results.front.nondominated), rank)[wanted.offset :][: wanted.limit]


def _chosen(results: Results, wanted: Wanted, front: set[int], rank: Mapping[int, int]) -> list[Candidate]:
    found = [
        c
        for c in results.candidates.values()
        if c.event > wanted.since
        and (not wanted.front or c.number in front)
        and wanted.stage in (None, _stage(c), c.stage)
        and wanted.failed in (None, c.failure is not None)
    ]
    if wanted.order == "number":
        return sorted(found, key=lambda c: c.number)
    if wanted.order == "mean":
        return sorted(found, key=lambda c: (rank.get(c.number, len(rank)), c.number))
    if wanted.order not in results.goals:
        raise JobError(f"order: expected mean, number or a metric of the run, got {wanted.order!r}")
    sign = results.objective(wanted.order).sign
    return sorted(found, key=lambda c: _by(c.measures.get(wanted.order), sign, c.number))


def _by(m: Measure | None, sign: float, number: int) -> tuple[float, int]:
    return (np.inf if m is None else sign * m.value, number)


def _stage(c: Candidate) -> str:
    return "anchors" if c.is_anchor else c.stage


def _values(rows: Sequence[Mapping[str, Measure]], names: Sequence[str]) -> list[Column]:
    return [rounded(_array([m[name].value if m else np.nan for m in rows]), VALUES) for name in names]


def _errors(rows: Sequence[Mapping[str, Measure]], names: Sequence[str]) -> list[Column]:
    found = ([m[name].stderr if m else None for m in rows] for name in names)
    return [rounded(_array([np.nan if e is None else e for e in column]), ERRORS) for column in found]


def _array(numbers: Sequence[float]) -> NDArray[np.float64]:
    return np.array(numbers, dtype=np.float64)
