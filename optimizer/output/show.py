"""How is a run told in a terminal? Tables of the values that `plain` has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optimizer.output import certain, fronts, hints
from optimizer.output.plain import by_objective, listed, method_of
from optimizer.output.terminal import Terminal
from optimizer.record.results import Candidate, Results

if TYPE_CHECKING:
    from searchspaces import Recipe

BEST_SHOWN = 15


def print_status(found: Mapping[str, Any], process: str | None = None, resume: str | None = None) -> None:
    """What `status` gives as a short table.

    `process` is what a cluster says of the run's process there, and `resume` the command that goes on with it there.
    """
    resume = resume or hints.command("resume", Path(found["folder"]))
    table = Table(show_header=False, box=None)
    of = found["copy_of"]
    where = f"there '{of['resume']}'" if of else f"'{resume}'"
    state = "finished" if found["finished"] else f"not finished: {where} goes on"
    if found["running"]:
        state = f"running: {found['running']}"
    elif found["driver_done"] and 0 < found["steps"] <= found["gradients"]:
        state += f"; its {found['steps']} steps are done"
    elif found["driver_done"]:
        state += "; its driver has nothing left to ask" + (" that is new" if found["repeated"] else "")
    elif found["reached"]:
        state += f"; {found['reached']}"
    table.add_row("run", f"{escape(found['name'])} ({escape(state)})")
    if of:
        table.add_row(
            "copy", f"of {escape(of['name'])} {escape(of['address'] or of['folder'])}, as of {escape(of['at'])}"
        )
    if process:
        table.add_row("process", escape(process))
    table.add_row(
        "candidates",
        f"{found['answered']} of {found['evaluations']} at most, {found['failed']} failed, "
        f"{found['in_flight']} in flight"
        + (f"; {found['repeated']} more were known already" if found["repeated"] else ""),
    )
    if found["fidelity"]:
        table.add_row("fidelity", _fidelity(found["fidelity"]))
    if found["references"]["models"]:
        models = found["references"]
        failed = f", {models['failed']} failed" if models["failed"] else ""
        table.add_row("references", f"{models['scored']} of {models['models']} models of the pool as they are{failed}")
    if found["steps"]:
        table.add_row("steps", f"{found['gradients']} of {found['steps']} at most")
    table.add_row("front", f"{found['front']} candidates, {found['heldout']} candidates scored on held-out items")
    table.add_row("hypervolume", _hypervolume(found))
    if found["per_minute"]:
        table.add_row("rate", f"{found['per_minute']:.1f} candidates a minute")
    if found["best"]:
        best = found["best"]
        scores = "  ".join(f"{escape(k)} {v:.3f}" for k, v in best.items() if k not in ("candidate", "label"))
        anchor = "" if best["label"] == str(best["candidate"]) else f" ({escape(best['label'])})"
        table.add_row("best mean", f"candidate {best['candidate']}{anchor}: {scores}")
    if found["constraints"]:
        met = f"{found['feasible']} of {found['answered'] - found['failed']} candidates meet"
        table.add_row("constraints", f"{met} {escape(', '.join(found['constraints']))}")
    if found["verdict"]:
        table.add_row("", escape(found["verdict"]))
    Terminal().print(table)


def _hypervolume(found: Mapping[str, Any]) -> str:
    """How much the front dominates, beside what needs no search and what no anchor reaches."""
    about = "" if found["hypervolume_exact"] else "about "
    said = f"{about}{found['hypervolume']:.3f}"
    if (anchors := found["hypervolume_anchors"]) is None:
        return f"{said} (in units of the range of the candidates: there are no anchors)"
    return f"{said} (the anchors alone {anchors:.3f}; 1: the anchors' best of each at once)"


def _fidelity(found: Mapping[str, Any]) -> str:
    """What it saved to score candidates on some items, in words."""
    parts = [f"{found['partly']} candidates were told from some items, {found['whole']} scored on all"]
    if found["time"] is not None:
        parts.append(f"in {found['time']:.2f} of the time that all on all would take")
    if found["checked"]:
        parts.append(f"{found['within']} of {found['checked']} estimates held on all items (95 in 100 should)")
    return "; ".join(parts)


def print_front(results: Results, everything: bool = False, by_confidence: bool = False) -> None:
    """The front as a table: calibration over held-out scores, with standard errors; the best unless `everything`.

    The best are those of least mean, or those likeliest to be on the front in truth.
    """
    found = listed(results, by_confidence)
    if not found:
        Terminal().print("no candidate has been scored yet")
        return
    on_front = {c.number for c in results.on_front} or {found[0].number}  # or the nearest to the constraints
    count = len(on_front) if everything else min(BEST_SHOWN, len(on_front))
    alike = {} if everything else _alike(results, found[: len(on_front)])
    apart = [c for c in found[: len(on_front)] if c.number not in alike or alike[c.number]]
    best = [c for i, c in enumerate(apart) if i < count or (c.is_anchor and _plain_anchor(c))]
    anchors = [c for c in found[len(on_front) :] if everything or _plain_anchor(c)]
    console = Terminal()
    sure = results.confidence
    lines: list[fronts.Line] = []
    objectives = [o.name for o in results.objectives]
    for c in (*best, *anchors, *results.compared):
        name = escape(c.label if not c.is_anchor else f"{c.label} ({c.number})")
        name += f" (+{len(more)} alike)" if (more := alike.get(c.number)) else ""
        name += " (nearest)" if c is results.nearest else ""
        name += "" if c.is_anchor else _method(results, c)
        style = None if c.number in on_front else "dim"
        odds = [certain.probability(p.get(c.number), "") if sure.seen else None for p in (sure.seen, sure.unseen)]
        splits = (("calibration", c.measures, odds[0]), ("held-out", c.heldout, odds[1]))
        lines += fronts.lines_of(name, objectives, splits, style)
    first = "surest first" if by_confidence else "best mean first"
    title = f"{escape(results.name)}: {len(results.on_front)} candidates on the front, {first}"
    tables, exact = fronts.tables(title, objectives, lines, console.width)
    for table in tables:
        console.print(table)
    certain.print_lines(console, results)
    if results.verdict:
        console.print(escape(results.verdict), highlight=False)
    if found and not any(c.heldout for c in found):
        console.print(_unseen(results), highlight=False)
    notes = ["calibration: the items that chose these merges; held-out: items the search never saw."]
    if sure.seen:
        notes.append("sure: how probable it is that no other candidate dominates it in truth.")
    if anchors:
        less = ", or that violate a constraint" if results.feasible.constraints else ""
        notes.append(f"Dim: anchors that others dominate{less}.")
    if results.compared:
        notes.append("Last: models of the pool as they are, which are no candidates.")
    failed = [c for c in results.references.values() if c.failure is not None]
    notes += [f"{escape(c.label)} could not be scored: {escape(str(c.failure))}." for c in failed]
    if not exact:
        notes.append("A wider terminal shows standard errors, --json always has them.")
    if hidden := len(found) - len(best) - len(anchors):
        notes.append(f"{hidden} more with '{escape(hints.front(results.folder))}'.")
    console.print(" ".join(notes), style="dim", highlight=False)


def _method(results: Results, c: Candidate) -> str:
    """Of several methods a candidate's, behind its name; anchors have theirs in the label, but for shared ones."""
    method = method_of(results, c)
    return "" if method is None else f" ({escape(method)})"


def _unseen(results: Results) -> str:
    """That nothing has been scored on held-out items, and how that is had."""
    missing = "Nothing has been scored on held-out items yet"
    if results.driven_by:
        return f"{missing}: that comes when the search is over."
    goes_on, now = (
        escape(hints.command("resume", results.folder, *more))
        for more in ((), (f"--evaluations={max(1, len(results.scored))}",))
    )
    return f"{missing}: '{goes_on}' goes on, and does it at the end; '{now}' does it now, and ends the search."


def _alike(results: Results, found: list[Candidate]) -> dict[int, list[int]]:
    """Candidates of the same calibration scores: the first of each such lot -> the others, and each of those -> none.

    Anchors stand for themselves.
    """
    lots: dict[tuple[float, ...], list[int]] = {}
    for c in found:
        if not c.is_anchor:
            lots.setdefault(tuple(by_objective(results, c.measures).values()), []).append(c.number)
    several = [lot for lot in lots.values() if len(lot) > 1]
    return {**{n: [] for lot in several for n in lot[1:]}, **{lot[0]: lot[1:] for lot in several}}


def print_candidate(results: Results, chosen: Candidate) -> None:
    """Scores, then method, options and coefficients, of one candidate."""
    console = Terminal()
    who = f"candidate {chosen.number}{_method(results, chosen)}"
    about = f"{who}   asked as {escape(chosen.stage)}   recipe {chosen.recipe}"
    if chosen.is_reference:
        about = f"{escape(chosen.label)}, as it is: no candidate   weights {chosen.recipe}"
    console.print(about, highlight=False)
    if chosen.of is not None:
        console.print(f"the same recipe as candidate {chosen.of}, whose scores these are", highlight=False)
    if chosen.failure is not None:
        console.print(f"failed: {escape(str(chosen.failure))}", highlight=False)
    if chosen.share < 1:
        console.print(
            f"scored on {chosen.share:.0%} of the calibration items: its scores are estimates, and it is on no front",
            highlight=False,
        )
    for text in certain.constraints(results, chosen):
        console.print(escape(text), highlight=False)
    for number, t in enumerate(chosen.tries, 1):
        where = f" on {t.worker}" if t.worker else ""
        console.print(f"attempt {number}{escape(where)}: {t.kind}: {escape(t.reason)}", highlight=False)
    scores = Table("metric", "calibration", "held-out", "items")
    for name, m in chosen.measures.items():
        unseen = chosen.heldout.get(name)
        counts = f"{m.count}" + (f" / {unseen.count}" if unseen else "")
        scores.add_row(escape(name), certain.text(m), certain.text(unseen) if unseen else "", counts)
    console.print(scores)
    if not chosen.is_reference:
        _print_recipe(console, results.recipe(chosen))


def _print_recipe(console: Console, recipe: Recipe) -> None:
    """Method, options, and coefficients by group and expert, or the model that each group comes from."""
    plain = {name: value for name, value in recipe.options.items() if not isinstance(value, np.ndarray)}
    said = "".join(f"   {name} {_said(value)}" for name, value in plain.items())
    console.print(f"method {escape(recipe.method)}{escape(said)}", highlight=False)
    by_group = {n: v[:, 0] for n, v in recipe.options.items() if isinstance(v, np.ndarray) and v.shape[1] == 1}
    cells = [[f"{c:.3f}" for c in row] for row in recipe.coefficients]
    heads = recipe.experts
    if recipe.picked is not None:
        cells, heads = [[escape(name)] for name in recipe.picked.values()], ("comes from",)
    table = Table("group", *map(escape, heads), *map(escape, by_group))
    for g, (group, row) in enumerate(zip(recipe.groups, cells, strict=True)):
        table.add_row(escape(group), *row, *(_said(float(v[g])) for v in by_group.values()))
    console.print(table)
    for name in (n for n in recipe.options if n not in plain and n not in by_group):
        console.print(_option_table(recipe, name))


def _option_table(recipe: Recipe, name: str) -> Table:
    """An option by expert, or by group and expert where it differs by group too."""
    values = np.asarray(recipe.options[name])
    same = (values == values[0]).all()
    table = Table(escape(name), *map(escape, recipe.experts))
    for group, row in zip(("every group",) if same else recipe.groups, values, strict=False):
        table.add_row(escape(group), *(_said(float(v)) for v in row))
    return table


def _said(value: object) -> str:
    """An option's value as a job says it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain_anchor(c: Candidate) -> bool:
    """An anchor that is a model of the pool or their average, and no step of a sweep."""
    return any(not label.startswith("global") for label in c.label.split(", "))
