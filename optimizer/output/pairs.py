"""How are two candidates told apart in a terminal? Objective by objective, in a width that any terminal has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from optimizer.output import hints, plain
from optimizer.output.certain import SPLITS, called, probability, signed, text
from optimizer.output.terminal import Terminal
from optimizer.record.results import Candidate, Results

HEADS = ("A", "B", "A less B", "better", "A, B, none")


def print_compared(results: Results, a: Candidate, b: Candidate) -> None:
    """What `plain.compared` gives as a table, and who dominates whom with what probability."""
    found, console = plain.compared(results, a, b), Terminal()
    rows = {o.name: list(_rows(found, o.name, a, b)) for o in results.objectives}
    console.print(f"A: {called(a)}   B: {called(b)}", highlight=False)
    _print_rows(console, rows)
    for split, said in SPLITS:
        if (there := found[split]) is not None:
            one, other = (probability(there[k]) for k in ("a_dominates_b", "b_dominates_a"))
            console.print(f"By the {said} items A dominates B with probability {one}, B A with {other}.")
    for letter, c in (("A", a), ("B", b)):
        if c.share < 1:
            console.print(_estimated(results, letter, c), highlight=False)
    notes = ["±: one standard error, of differences item by item. A, B, none: items on which each does better."]
    if any(not d["paired"] for split, _ in SPLITS if found[split] for d in found[split]["objectives"].values()):
        whole = a.share == b.share == 1
        why = (
            "per-item values are missing, or the metric is no mean" if whole else "estimates have no items of their own"
        )
        notes.append(f"*: unpaired, as if the items were others; {why}.")
    if found["heldout"] is None and a.share == b.share == 1:
        notes.append("Held-out items score the front and the anchors alone: one of these is neither, or not yet.")
    console.print(" ".join(notes), style="dim", highlight=False)


def _rows(found: Mapping[str, Any], name: str, a: Candidate, b: Candidate) -> Iterator[tuple[str, ...]]:
    """Of an objective: the items, and what is below `HEADS`."""
    for split, said in SPLITS:
        if (there := found[split]) is not None:
            d = there["objectives"][name]
            scores = [(c.measures if split == "calibration" else c.heldout)[name] for c in (a, b)]
            counts = ", ".join(str(d[k]) for k in ("wins", "losses", "ties") if d[k] is not None)
            less = signed(d["value"], d["stderr"]) + "*" * (not d["paired"])
            yield said, *map(text, scores), less, (d["better"] or "").upper(), counts


def _print_rows(console: Console, rows: Mapping[str, list[tuple[str, ...]]]) -> None:
    """An objective's name has a line of its own; where even so a table is too wide, each figure says what it is."""
    table = Table(
        Column("", overflow="fold"),
        *(Column(head, no_wrap=True) for head in HEADS),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name, lines in rows.items():
        table.add_row(escape(name))
        for said, *cells in lines:
            table.add_row(f"  {said}", *cells)
    figures = Table(*HEADS, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for lines in rows.values():
        for _, *cells in lines:
            figures.add_row(*cells)
    if console.measure(figures).maximum + len("  held-out") + 2 <= console.width:
        console.print(table)
        return
    for name, lines in rows.items():
        console.print(escape(name), highlight=False)
        for said, *cells in lines:
            parts = [f"{head} {cell}" for head, cell in zip(HEADS, cells, strict=True) if cell]
            console.print(f"  {said}: {'; '.join(parts)}", highlight=False)


def _estimated(results: Results, letter: str, c: Candidate) -> str:
    """That a candidate's scores are no measurements, and what would make them some."""
    command = hints.command("export", results.folder, str(c.number))
    return (
        f"{letter} was scored on {c.share:.0%} of the calibration items, so its scores are estimates; "
        f"'{escape(command)}' measures it on all, calibration and held-out."
    )
