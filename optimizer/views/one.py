"""What is there to know of one candidate, and of one against another?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evaluators.evaluator import Measure
from optimizer.driver import Split
from optimizer.errors import RunError
from optimizer.output import plain
from optimizer.record.candidate import Candidate as Scored
from optimizer.record.results import Results
from optimizer.views.candidate_values import Candidate, Compared, Measured, Pair, Tried
from optimizer.views.rounding import Column, rounded

SPLITS: tuple[Split, ...] = ("calibration", "heldout")


def candidate(results: Results, c: Scored, sure: Mapping[int, float], unseen: Mapping[int, float]) -> Candidate:
    """Everything about a candidate, or about a model as it is, which has neither point nor coefficients.

    `sure` and `unseen`: by candidate how likely it is to be on the front, by calibration and by held-out items.
    """
    groups, experts = results.axes
    recipe = None if c.is_reference else results.recipe(c)
    whole = recipe is not None and recipe.picked is None
    return Candidate(
        number=None if c.is_reference else c.number,
        label=c.label,
        stage=c.stage,
        recipe=c.recipe,
        same_as=c.of,
        groups=groups,
        experts=experts,
        coefficients=[_numbers(row) for row in np.asarray(recipe.coefficients)] if recipe and whole else None,
        picked=dict(recipe.picked) if recipe and recipe.picked is not None else None,
        settings={} if c.is_reference else results.settings(c),
        point=_numbers(c.point),
        point_names=[] if c.is_reference else list(results.domain.names),
        measures={name: _measured(m) for name, m in c.measures.items()},
        heldout={name: _measured(m) for name, m in c.heldout.items()},
        attempts=c.attempts,
        tries=[Tried(worker=t.worker, kind=t.kind, reason=t.reason) for t in c.tries],
        seconds=c.seconds,
        worker=c.worker,
        failure=None if c.failure is None else str(c.failure),
        share=c.share,
        front=c.number in results.front.nondominated,
        anchor=c.is_anchor,
        feasible=c.failure is None and results.feasible.meets(c.measures),
        sure=sure.get(c.number),
        sure_heldout=unseen.get(c.number),
    )


def pair(results: Results, a: Scored, b: Scored, sure: Mapping[int, float]) -> Pair:
    """One against the other, as `mergeopt compare` says it, and item by item. Raises RunError where one has failed."""
    for c in (a, b):
        if c.failure is not None:
            raise RunError(f"candidate {c.label} has no scores to compare: {c.failure}; name another")
    told = plain.differences(results, a, b)
    one, other = candidate(results, a, sure, {}), candidate(results, b, sure, {})
    apart: list[list[float]] | None = None
    if one.coefficients is not None and other.coefficients is not None:
        apart = [_numbers(row) for row in np.array(one.coefficients) - np.array(other.coefficients)]
    return Pair(
        a=one,
        b=other,
        calibration=None if told["calibration"] is None else Compared(**told["calibration"]),
        heldout=None if told["heldout"] is None else Compared(**told["heldout"]),
        items={split: _items(results, a, b, split) for split in SPLITS},
        coefficients=apart,
    )


def _items(results: Results, a: Scored, b: Scored, split: Split) -> dict[str, Column]:
    """Differences item by item, by metric: of those that kept values of the same items."""
    numbers = [c.of if split == "heldout" and c.of is not None else c.number for c in (a, b)]
    kept = results.items(numbers, split)
    one, other = (kept[n] for n in numbers)
    return {
        name: rounded(one[name].astype(np.float64) - other[name].astype(np.float64))
        for name in one
        if name in other and one[name].shape == other[name].shape
    }


def _measured(m: Measure) -> Measured:
    return Measured(value=m.value, stderr=m.stderr, count=m.count)


def _numbers(values: np.ndarray) -> list[float]:
    return [x or 0.0 for x in rounded(np.asarray(values, dtype=np.float64))]
