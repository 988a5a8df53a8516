"""How is a run told in JSON? Plain values, in natural units; their tables are `show`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.evaluator import Measure
from optimizer.conditions import Condition
from optimizer.driver import Split
from optimizer.errors import JobError
from optimizer.record.copied import copied
from optimizer.record.results import Candidate, Results
from optimizer.record.saved import saved

if TYPE_CHECKING:
    from searchspaces import Recipe


def status(results: Results) -> dict[str, Any]:
    """How far the run is. Rates are over the answers of this run's ledger, pauses included.

    `finished`: nothing is left to do. `driver_done`: the driver has nothing more to ask, which few runs come to.
    """
    answered, times = len(results.scored), [at for _, at in results.times]
    minutes = (times[-1] - times[0]) / 60 if len(times) > 1 else 0.0
    best = results.pick("best") if results.front.feasible else None
    held = sum(1 for c in results.scored if c.heldout)
    compared = results.references.values()
    return {
        "name": results.name,
        "folder": str(results.folder),
        "evaluations": results.evaluations,
        "answered": answered,
        "repeated": results.repeated,
        "failed": len(results.failures),
        "in_flight": results.asked - results.told,
        "front": len(results.on_front) if best else 0,
        "heldout": held,
        "hypervolume": results.front.hypervolume,
        "hypervolume_exact": results.front.exact,
        "hypervolume_anchors": results.front.anchors_hypervolume,
        "epsilon": results.front.epsilon,
        "knee": results.front.knee(),
        "curse": curse(results),
        "fidelity": None if (found := saved(results.scored, results.objectives)) is None else asdict(found),
        "per_minute": (answered - 1) / minutes if minutes else None,
        "best": None
        if best is None
        else {"candidate": best.number, "label": best.label, **by_objective(results, best.measures)},
        "references": {
            "models": results.references_asked,
            "scored": sum(1 for c in compared if c.failure is None),
            "failed": sum(1 for c in compared if c.failure is not None),
        },
        "constraints": [str(c) for c in results.feasible.constraints],
        "feasible": len(results.front.feasible),
        "nearest": None if results.nearest is None else results.nearest.number,
        "unbeaten": None if results.unbeaten is None else results.unbeaten.label,
        "verdict": results.verdict,
        "gradients": results.gradients,
        "steps": results.steps,
        "driver_done": results.done,
        "running": results.driven_by,
        "spent": results.spent,
        "reached": results.reached,
        "parent": results.parent,
        "copy_of": None if (of := copied(results.folder)) is None else {**vars(of), "resume": of.resume},
        "finished": results.finished,
    }


def front(results: Results, by_confidence: bool = False) -> list[dict[str, Any]]:
    """The front, best mean first, the anchors that it dominates, then base and experts as they are (no candidates).

    `nondominated` is the probability that in truth no other candidate dominates it, by the items of either split.
    """
    on_front = set(results.front.nondominated)
    return [_row(results, c, c.number in on_front) for c in (*listed(results, by_confidence), *results.compared)]


def compared(results: Results, a: Candidate, b: Candidate) -> dict[str, Any]:
    """One candidate against another: by split and objective `a` less `b` in natural units, and on how many items.

    `wins` are the items on which a is the better. None where one of them has no scores on a split. `share` of the
    calibration items: below 1 a candidate's scores are estimates.
    """
    return {
        "a": {**_row(results, a, a.number in results.front.nondominated), "share": a.share},
        "b": {**_row(results, b, b.number in results.front.nondominated), "share": b.share},
        **differences(results, a, b),
    }


def differences(results: Results, a: Candidate, b: Candidate) -> dict[str, Any]:
    """That of the two alone, by split: how sure the whole front is takes longer to tell."""

    def told(split: Split) -> dict[str, Any] | None:
        found = results.confidence.compared(a, b, split)
        if found is None:
            return None
        rows = {
            o.name: {
                "value": o.sign * d.value + 0.0,  # no -0
                "stderr": _known(d.stderr),
                "better": None if d.value == 0 else "a" if d.value < 0 else "b",
                "paired": d.paired,
                **{"wins": d.wins, "losses": d.losses, "ties": d.ties},
            }
            for o, d in ((o, found.differences[o.name]) for o in results.objectives)
        }
        return {"objectives": rows, "a_dominates_b": found.dominates, "b_dominates_a": found.dominated}

    return {"calibration": told("calibration"), "heldout": told("heldout")}


def against(results: Results, other: Results) -> dict[str, Any]:
    """How far this front falls short of another run's, in the box of this one. Raises JobError where they differ."""
    if results.objectives != other.objectives:
        theirs = ", ".join(f"{o.name} ({o.goal})" for o in other.objectives)
        raise JobError(
            f"{other.folder} trades off {theirs}, {results.folder} other objectives; name a run of the same ones"
        )
    if not results.on_front or not other.on_front:
        empty = results if not results.on_front else other
        raise JobError(f"{empty.folder}: its front is empty; run or resume the search first")
    losses = [[o.sign * c.measures[o.name].value for o in other.objectives] for c in other.on_front]
    igd_plus, epsilon = results.front.against(np.array(losses))
    return {"against": other.name, "candidates": len(losses), "igd_plus": igd_plus, "epsilon": epsilon}


def preferred(results: Results, chosen: Candidate, where: Sequence[Condition]) -> dict[str, Any]:
    """A candidate, and of each condition its scores and the probability that it holds in truth."""

    def told(condition: Condition, m: Measure | None) -> dict[str, Any] | None:
        return None if m is None else {**_measure(m), "holds": holds(condition, m)}

    return {
        **_row(results, chosen, chosen.number in results.front.nondominated),
        "where": [
            {
                "condition": str(condition),
                "calibration": told(condition, chosen.measures[condition.name]),
                "heldout": told(condition, chosen.heldout.get(condition.name)),
            }
            for condition in where
        ],
    }


def promise(c: Candidate, where: Sequence[Condition]) -> float | None:
    """How probable a candidate's held-out scores make the least probable condition; None without such scores.

    Where an error is not known, 1 or 0: as measured.
    """
    met = [(w, m) for w in where if (m := c.heldout.get(w.name)) is not None]
    return min((w.chance(m.value, m.stderr or 0.0) for w, m in met), default=None)


def surest_to_hold(results: Results, where: Sequence[Condition]) -> tuple[Candidate, float] | None:
    """Of those that meet all conditions on calibration items the one of the best `promise`, if that is 0.5 or more."""
    found = []
    for c in (results.candidates[n] for n in results.front.feasible):
        met = all(w.missed(c.measures[w.name].value) == 0 for w in where)
        if met and (p := promise(c, where)) is not None and p >= 0.5:
            found.append((c, p))
    return max(found, key=lambda one: one[1], default=None)


def holds(condition: Condition, m: Measure) -> float | None:
    """The probability that the true score meets a condition: normal around the measured one; None: error not known."""
    return None if m.stderr is None else condition.chance(m.value, m.stderr)


def curse(results: Results) -> list[dict[str, Any]]:
    """Calibration minus held-out by objective, the mean over the front, in natural units; empty without held-out."""
    return [{"objective": g.name, "value": g.value, "stderr": g.stderr} for g in results.confidence.curse]


def candidate(results: Results, chosen: Candidate) -> dict[str, Any]:
    """Everything about one candidate, every metric and option included, and coefficients, or where groups come from."""
    return {
        **_named(chosen),
        "same_as": chosen.of,
        "constraints": []
        if chosen.failure is not None
        else [_constrained(c, chosen) for c in results.feasible.constraints],
        "failure": None if chosen.failure is None else str(chosen.failure),
        "share": chosen.share,
        "told": [{"share": t.share, **{k: [*v] for k, v in t.measures.items()}} for t in chosen.told],
        "seconds": chosen.seconds,
        "attempts": chosen.attempts,
        "worker": chosen.worker,
        "tries": [vars(t) for t in chosen.tries],
        "calibration": {k: _measure(m) for k, m in chosen.measures.items()},
        "heldout": {k: _measure(m) for k, m in chosen.heldout.items()},
        **({} if chosen.is_reference else _said_of(results.recipe(chosen))),
    }


def _constrained(condition: Condition, chosen: Candidate) -> dict[str, Any]:
    """A constraint, by how much a candidate misses it on calibration items, and on held-out ones where known."""
    unseen = chosen.heldout.get(condition.name)
    return {
        "condition": str(condition),
        "missed_by": condition.missed(chosen.measures[condition.name].value),
        "missed_by_heldout": None if unseen is None else condition.missed(unseen.value),
    }


def _said_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe is: of a method that takes each group from one model, which; else coefficients."""
    found = {"method": recipe.method, "options": recipe.plain_options}
    if recipe.picked is not None:
        return {**found, "models": recipe.picked}
    rows = zip(recipe.groups, recipe.coefficients, strict=True)
    return {**found, "coefficients": {g: dict(zip(recipe.experts, map(float, row), strict=True)) for g, row in rows}}


def listed(results: Results, by_confidence: bool = False) -> list[Candidate]:
    """The front, the best mean or the surest first, then the anchors that are not on it.

    Where none meets the constraints, the nearest to that is in the front's place.
    """
    if not results.front.numbers:
        return []
    front = results.on_front
    if by_confidence:
        sure = results.confidence.seen
        front = sorted(front, key=lambda c: -sure.get(c.number, 0.0))
    if results.nearest is not None:
        front = [results.nearest]
    numbers = {c.number for c in front}
    anchors = [c for c in results.scored if c.is_anchor and c.failure is None and c.number not in numbers]
    return [*front, *anchors]


def _named(c: Candidate) -> dict[str, Any]:
    return {
        "candidate": None if c.is_reference else c.number,
        "label": c.label,
        "stage": c.stage,
        "recipe": c.recipe,
    }


def _row(results: Results, c: Candidate, on_front: bool) -> dict[str, Any]:
    return {
        **_named(c),
        "reference": c.is_reference,
        "method": method_of(results, c),
        "front": on_front,
        "feasible": results.feasible.meets(c.measures),
        "knee": on_front and c.number == results.front.knee(),
        "nondominated": {
            "calibration": results.confidence.seen.get(c.number) if on_front else None,
            "heldout": results.confidence.unseen.get(c.number) if on_front else None,
        },
        "calibration": {o.name: _measure(c.measures[o.name]) for o in results.objectives},
        "heldout": {o.name: _measure(c.heldout[o.name]) for o in results.objectives} if c.heldout else None,
    }


def method_of(results: Results, c: Candidate) -> str | None:
    """Of several methods, the one that a candidate is of; None where the space has one, and of references."""
    several = not isinstance(results.space.get("method", ""), str) and len(results.space["method"]) > 1
    return results.recipe(c).method if several and not c.is_reference else None


def by_objective(results: Results, measures: Mapping[str, Measure]) -> dict[str, float]:
    """The objectives' values, in their order."""
    return {o.name: measures[o.name].value for o in results.objectives}


def _known(number: float) -> float | None:
    return number if isfinite(number) else None


def _measure(m: Measure) -> dict[str, float | int | None]:
    return {"value": m.value, "stderr": m.stderr, "count": m.count}
