"""How is it told in a terminal how sure a front is? The curse, the knee, comparisons, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluators.evaluator import Measure
from optimizer.conditions import Condition
from optimizer.output import plain
from optimizer.output.terminal import Terminal
from optimizer.record.confidence import Gap
from optimizer.record.results import Candidate, Results

APART = 1.96  # standard errors: less than that from 0 may be noise, 95 times in 100
SPLITS = (("calibration", "calibration"), ("heldout", "held-out"))


def print_lines(console: Console, results: Results) -> None:
    """A line on the winner's curse and one on the knee, where there is one."""
    gaps, front = results.confidence.curse, [c for c in results.on_front if c.heldout]
    if gaps:
        said = (f"{escape(g.name)} {signed(g.value, g.stderr)}{looks(g)}" for g in gaps)
        console.print(
            f"Winner's curse (calibration less held-out, mean of {len(front)} on the front): {', '.join(said)}",
            highlight=False,
        )
    number = results.front.knee()
    if number is not None:
        has = ", ".join(f"{escape(n)} {v:.3f}" for n, v in values(results, results.candidates[number]).items())
        console.print(
            f"Knee: candidate {number} ({has}), furthest below the line through the front's extremes", highlight=False
        )


def print_preferred(results: Results, chosen: Candidate, where: Sequence[Condition], metric: str | None) -> None:
    """The candidate that was asked for: its scores, and whether what was asked holds on items the search never saw."""
    console, found = Terminal(), plain.preferred(results, chosen, where)
    best = "of the best mean" if metric is None else f"best in {escape(metric)}"
    of = " of those that have on calibration items what was asked for" if where else ""
    console.print(f"{called(chosen)}: {best}{of}", highlight=False)
    if where:
        table = Table("asked for", "calibration", "holds", "held-out", "holds")
        for row in found["where"]:
            table.add_row(escape(row["condition"]), *(cell for s, _ in SPLITS for cell in _condition(row[s])))
        console.print(table)
        if (p := plain.promise(chosen, where)) is not None and p < 0.5:
            console.print(_unlikely(results, where, p), highlight=False)
    scores = Table("metric", "calibration", "held-out")
    shown = dict.fromkeys([*([metric] if metric else []), *(o.name for o in results.objectives)])
    for name in shown:
        unseen = chosen.heldout.get(name)
        scores.add_row(escape(name), text(chosen.measures[name]), text(unseen) if unseen else "")
    console.print(scores)
    notes = ["holds: the probability that the true score meets it."] if where else []
    if not chosen.heldout:
        notes.append("Held-out items score the front and the anchors alone: this candidate is neither, or not yet.")
    if notes:
        console.print(" ".join(notes), style="dim", highlight=False)


def _unlikely(results: Results, where: Sequence[Condition], p: float) -> str:
    """That what was asked for is not to be expected of a candidate, and of which it is."""
    said = f"On held-out items it probably does not hold (the probability that it does: {probability(p)})"
    if (surest := plain.surest_to_hold(results, where)) is None:
        return f"{said}; nor does any other that holds on calibration items: ask for less."
    return f"{said}; {called(surest[0])} is surest to ({probability(surest[1])})."


def constraints(results: Results, c: Candidate) -> list[str]:
    """A line for each constraint: whether a candidate, or a reference, meets it on either split's items."""
    lines = []
    for wanted in results.feasible.constraints if c.failure is None else ():
        said = []
        for measures, items in ((c.measures, "calibration"), (c.heldout, "held-out")):
            if (m := measures.get(wanted.name)) is not None:
                short = wanted.missed(m.value)
                odds = plain.holds(wanted, m)
                chance = "" if odds is None else f", holds in truth with probability {probability(odds)}"
                said.append(f"{'met' if short == 0 else f'missed by {short:.3g}'} on {items} items ({text(m)}{chance})")
        lines.append(f"constraint {wanted}: {'; '.join(said)}")
    return lines


def print_against(found: Mapping[str, Any]) -> None:
    """What `plain.against` gives."""
    name, console = escape(found["against"]), Terminal()
    console.print(f"against {name}, {found['candidates']} candidates, on the calibration items:", highlight=False)
    console.print(f"IGD+     {found['igd_plus']:.4f} (0: all that its front reaches is reached here)", highlight=False)
    console.print(
        f"epsilon {found['epsilon']:+.4f} (the least shift by which this front covers it; below 0 it does so anyway)",
        highlight=False,
    )
    console.print("In units of the range of this run's anchors.", style="dim", highlight=False)


def _condition(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", ""]
    return [text(Measure(row["value"], row["stderr"], row["count"])), probability(row["holds"])]


def values(results: Results, c: Candidate) -> dict[str, float]:
    """A candidate's objectives on the calibration items."""
    return plain.by_objective(results, c.measures)


def text(m: Measure) -> str:
    """A value and its standard error, where that is known."""
    return f"{m.value:.3f}" if m.stderr is None else f"{m.value:.3f}±{m.stderr:.3f}".replace("±0.", "±.")


def signed(value: float, stderr: float | None) -> str:
    """A difference, and its standard error where that is known."""
    return f"{value:+.3f}" + ("" if stderr is None else f"±{stderr:.3f}".replace("±0.", "±."))


def looks(gap: Gap) -> str:
    """What a gap means, whichever way its metric goes; the page says the same."""
    if gap.value and gap.stderr is not None and abs(gap.value) < APART * gap.stderr:
        return " (not told apart)"
    return " (looked better)" if gap.better > 0 else " (looked worse)" if gap.better < 0 else ""


def probability(p: float | None, unknown: str = "not known") -> str:
    """Two digits, and no certainty that two thousand draws cannot give."""
    if p is None:
        return unknown
    return "<.01" if p < 0.01 else ">.99" if p > 0.99 else f"{p:.2f}"


def called(c: Candidate) -> str:
    """A candidate, or a reference, by its number and what it is called."""
    name = escape(c.label)
    return name if c.is_reference else f"candidate {c.number}" + (f" ({name})" if c.is_anchor else "")
