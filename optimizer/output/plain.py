"""How is a run told in JSON? Plain values, in natural units; their tables are `show`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluators.evaluator import Measure
from optimizer.record.copied import copied
from optimizer.record.results import Candidate, Results

if TYPE_CHECKING:
    from searchspaces import Recipe


def status(results: Results) -> dict[str, Any]:
    """How far the run is. Rates are over the answers of this run's ledger, pauses included.

    `finished`: nothing is left to do. `driver_done`: the driver has nothing more to ask, which few runs come to.
    """
    answered, times = len(results.scored), [at for _, at in results.times]
    minutes = (times[-1] - times[0]) / 60 if len(times) > 1 else 0.0
    best = results.pick("best") if len(results.failures) < answered else None
    held = sum(1 for c in results.scored if c.heldout)
    compared = results.references.values()
    missing = results.references_asked - sum(1 for c in compared if c.failure or c.heldout)
    return {
        "name": results.name,
        "folder": str(results.folder),
        "evaluations": results.evaluations,
        "answered": answered,
        "repeated": results.repeated,
        "failed": len(results.failures),
        "in_flight": results.asked - len(results.candidates),
        "front": len(results.on_front) if best else 0,
        "heldout": held,
        "hypervolume": results.front.hypervolume,
        "hypervolume_exact": results.front.exact,
        "epsilon": results.front.epsilon,
        "per_minute": (answered - 1) / minutes if minutes else None,
        "best": None
        if best is None
        else {"candidate": best.number, "label": best.label, **by_objective(results, best.measures)},
        "references": {
            "models": results.references_asked,
            "scored": sum(1 for c in compared if c.failure is None),
            "failed": sum(1 for c in compared if c.failure is not None),
        },
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
        "finished": (results.done or results.reached is not None or answered >= results.evaluations)
        and results.heldout_answered >= results.heldout_asked > 0
        and missing <= 0,
    }


def front(results: Results) -> list[dict[str, Any]]:
    """The front, best mean first, the anchors that it dominates, then base and experts as they are (no candidates)."""
    on_front = set(results.front.nondominated)
    return [_row(results, c, c.number in on_front) for c in (*listed(results), *results.compared)]


def candidate(results: Results, chosen: Candidate) -> dict[str, Any]:
    """Everything about one candidate, every metric and option included, and coefficients, or where groups come from."""
    return {
        **_named(chosen),
        "same_as": chosen.of,
        "failure": None if chosen.failure is None else str(chosen.failure),
        "seconds": chosen.seconds,
        "attempts": chosen.attempts,
        "worker": chosen.worker,
        "tries": [vars(t) for t in chosen.tries],
        "calibration": {k: _measure(m) for k, m in chosen.measures.items()},
        "heldout": {k: _measure(m) for k, m in chosen.heldout.items()},
        **({} if chosen.is_reference else _said_of(results.recipe(chosen))),
    }


def _said_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe is: of a method that takes each group from one model, which; else coefficients."""
    found = {"method": recipe.method, "options": recipe.plain_options}
    if recipe.picked is not None:
        return {**found, "models": recipe.picked}
    rows = zip(recipe.groups, recipe.coefficients, strict=True)
    return {**found, "coefficients": {g: dict(zip(recipe.experts, map(float, row), strict=True)) for g, row in rows}}


def listed(results: Results) -> list[Candidate]:
    """The front, then the anchors that are not on it."""
    if len(results.failures) == len(results.scored):
        return []
    front = results.on_front
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
        "front": on_front,
        "calibration": {o.name: _measure(c.measures[o.name]) for o in results.objectives},
        "heldout": {o.name: _measure(c.heldout[o.name]) for o in results.objectives} if c.heldout else None,
    }


def by_objective(results: Results, measures: Mapping[str, Measure]) -> dict[str, float]:
    """The objectives' values, in their order."""
    return {o.name: measures[o.name].value for o in results.objectives}


def _measure(m: Measure) -> dict[str, float | int | None]:
    return {"value": m.value, "stderr": m.stderr, "count": m.count}
