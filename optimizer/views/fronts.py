"""Which merge of a front suits some wishes best, and which run's front is the better?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.conditions import Condition
from optimizer.errors import JobError, RunError
from optimizer.objectives import losses
from optimizer.output.plain import by_objective
from optimizer.record.results import Results
from optimizer.views.rounding import ERRORS, Column, rounded
from optimizer.views.run_values import Against, Curve, Front, Fronts, Objective, Picked
from optimizer.views.summary import calibration

MOST_RUNS = 12
CURVE_SECONDS = 0.2  # the hypervolume of many objectives takes longer: what is missing is filled in later


def curve(results: Results) -> Curve:
    """Hypervolume and epsilon over the candidates answered, at as many places as are known by now."""
    results.growth.measured(CURVE_SECONDS)
    places = results.growth.places
    stages = list(dict.fromkeys(p.stage for p in places))
    number = {stage: i for i, stage in enumerate(stages)}
    return Curve(
        answered=[p.answered for p in places],
        hypervolume=[_short(p.front.measured[0]) for p in places],
        epsilon=[_short(p.front.measured[1]) for p in places],
        stage=[number[p.stage] for p in places],
        stages=stages,
    )


def picked(results: Results, weights: dict[str, float], where: Sequence[Condition]) -> Picked:
    """Of the front the candidate of least loss, each objective in units of the anchors' range and worth its weight.

    Without weights all are worth the same. Raises RunError where none of the front meets the conditions,
    JobError for weights or conditions of what there is not.
    """
    names = [o.name for o in results.objectives]
    for name in (*weights, *(c.name for c in where)):
        if name not in results.goals or (name in weights and name not in names):
            raise JobError(f"no objective {name!r} in this run; there are: {', '.join(names)}")
    met = [c for c in results.on_front if not any(w.missed(c.measures[w.name].value) for w in where)]
    if not met:
        wanted = ", ".join(map(str, where)) or "the constraints"
        raise RunError(f"no candidate of the front meets {wanted}; ask for less")
    worth = np.array([weights.get(n, 0.0) if weights else 1.0 for n in names])
    if not (worth >= 0).all() or not np.isfinite(worth).all() or not worth.max() > 0:
        raise JobError("weights: expected numbers from 0, one of them above it")
    worth = worth / worth.max()  # numbers of any size may be given
    ideal, span = results.front.ideal, results.front.span
    assert ideal is not None and span is not None  # there is a front
    scaled = (np.array([losses(results.objectives, c.measures)[0] for c in met]) - ideal) / span
    score = scaled @ (worth / worth.sum())
    best = met[int(score.argmin())]
    values = by_objective(results, best.measures)
    return Picked(number=best.number, label=best.label, values=values, score=float(score.min()), meeting=len(met))


def compared(found: Sequence[Results]) -> Fronts:
    """The fronts of several runs, and how far each falls short of each other in its own units.

    Raises RunError where they trade off other objectives, or were scored on other items: their numbers say nothing of
    one another.
    """
    first = found[0]
    for other in found[1:]:
        _comparable(first, other)
    return Fronts(
        objectives=[Objective(name=o.name, goal=o.goal) for o in first.objectives],
        runs=[_front(one, [o for o in found if o is not one]) for one in found],
    )


def _comparable(one: Results, other: Results) -> None:
    names = f"{one.folder.name} and {other.folder.name}"
    if one.objectives != other.objectives:
        theirs = [", ".join(f"{o.name} ({o.goal})" for o in r.objectives) for r in (one, other)]
        raise RunError(f"{names} trade off other objectives: {theirs[0]}; {theirs[1]}")
    mine, yours = calibration(one), calibration(other)
    known = sorted({*mine, *yours}, key=len, reverse=True)
    for name in sorted({next((k for k in known if o.name.startswith(f"{k}.")), o.name) for o in one.objectives}):
        if name not in mine or name not in yours:
            raise RunError(f"{names}: one of them does not say which items {name} was scored on")
        if mine[name] != yours[name]:
            raise RunError(
                f"{names} were scored on other items of {name} ({mine[name].items} and {yours[name].items}, digests "
                f"{mine[name].digest} and {yours[name].digest}), or in another way: their scores cannot be compared",
            )


def _front(results: Results, others: Sequence[Results]) -> Front:
    rows = results.on_front

    def column(split: str, place: int, what: str) -> Column:
        name = results.objectives[place].name
        measures = [(c.heldout if split == "heldout" else c.measures).get(name) for c in rows]
        kept = [None if m is None else getattr(m, what) for m in measures]
        values = np.array([np.nan if v is None else v for v in kept], dtype=np.float64)
        return rounded(values) if what == "value" else rounded(values, ERRORS)

    places = range(len(results.objectives))
    return Front(
        name=results.folder.name,
        numbers=[c.number for c in rows],
        labels=[c.label for c in rows],
        values=[column("calibration", i, "value") for i in places],
        stderr=[column("calibration", i, "stderr") for i in places],
        heldout=[column("heldout", i, "value") for i in places],
        heldout_stderr=[column("heldout", i, "stderr") for i in places],
        hypervolume=_short(results.front.hypervolume),
        answered=len(results.scored),
        against={o.folder.name: _against(results, o) for o in others if rows and o.on_front},
    )


def _against(results: Results, other: Results) -> Against:
    theirs = np.array([losses(other.objectives, c.measures)[0] for c in other.on_front])
    igd_plus, epsilon = results.front.against(theirs)
    return Against(igd_plus=_short(igd_plus), epsilon=_short(epsilon))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
