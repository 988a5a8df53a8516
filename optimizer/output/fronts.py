"""How does a front of many objectives fit into a terminal? In as few tables, one below the other, as it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from evaluators.evaluator import Measure
from optimizer.output import certain
from optimizer.wording import printable

NAME = 20  # columns that a candidate's name has at least; a third of all, where there is not room for everything
FOLDED = 11  # columns of an objective's name, before it goes on in the next line
GAP = 2  # behind each column: its padding, and where a line would be


@dataclass(frozen=True)
class Line:
    """A line of a front's table: a candidate's scores on the items of one split."""

    name: str  # escaped; "" below the candidate's first line
    items: str
    sure: str | None  # None: not known of any
    scores: tuple[Measure, ...]  # one an objective
    style: str | None


def tables(title: str, objectives: Sequence[str], lines: Sequence[Line], width: int) -> tuple[list[Table], bool]:
    """Tables at most so wide, and whether they have standard errors.

    All objectives are in one table where there is room for them, else in several, as few as can be; errors are shown
    where that takes no further table. What all of their names have in common is said once, in the title.
    """
    heads, shared = short(objectives)
    heads = [folded(head) for head in heads]
    cells = {exact: [_cells(line.scores, exact) for line in lines] for exact in (True, False)}
    longest = max((cell_len(printable(line.name)) for line in lines), default=0)
    beside = max((cell_len(line.items) + GAP for line in lines), default=0) + GAP + 1
    beside += 4 + GAP if lines and lines[0].sure is not None else 0
    names = (max(NAME, longest), min(max(NAME, longest), width // 3))

    def parted(exact: bool, name: int) -> list[list[int]]:
        return blocks(_widths(heads, cells[exact]), width - beside - name)

    whole = [(exact, name) for exact in (True, False) for name in names if len(parted(exact, name)) == 1]
    room = all(w + GAP <= width - beside - names[1] for w in _widths(heads, cells[True]))
    fewest = room and len(parted(True, names[1])) == len(parted(False, names[1]))
    exact, name = whole[0] if whole else (fewest, names[1])
    made = [
        _table(lines, [heads[j] for j in block], [[row[j] for j in block] for row in cells[exact]], name, i == 0)
        for i, block in enumerate(parted(exact, name))
    ]
    made[0].title = title + (f"\nall scores: {escape(shared)}" if shared else "")
    return made, exact


def short(names: Sequence[str]) -> tuple[list[str], str]:
    """Heads for objectives, without what all of their names end with, or begin with; and that."""
    parts = [name.rpartition(".") for name in names]
    if len(names) > 1 and len({metric for *_, metric in parts}) == 1 and all(task for task, *_ in parts):
        return [task for task, *_ in parts], parts[0][2]
    parts = [name.partition(".") for name in names]
    if len(names) > 1 and len({task for task, *_ in parts}) == 1 and all(metric for *_, metric in parts):
        return [metric for *_, metric in parts], parts[0][0]
    return [name.replace(".", "\n", 1) for name in names], ""


def folded(head: str) -> str:
    """A head in lines of at most `FOLDED` columns, broken behind what parts words, and where there is nothing such."""
    lines: list[str] = []
    for line in printable(head).split("\n"):
        lines.append("")
        for word in re.findall(r".+?(?:[_\-./ ]+|$)", line):
            if cell_len(lines[-1] + word) > FOLDED and lines[-1]:
                lines.append("")
            lines[-1] += word
            while cell_len(lines[-1]) > FOLDED:
                cut = next(i for i in range(len(lines[-1]), 0, -1) if cell_len(lines[-1][:i]) <= FOLDED)
                lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return "\n".join(lines)


def blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns, in their order, parted so that each part fits; one that fits nowhere is alone."""
    found: list[list[int]] = [[]]
    left = room
    for j, width in enumerate(widths):
        if found[-1] and width + GAP > left:
            found.append([])
            left = room
        found[-1].append(j)
        left -= width + GAP
    return found


def _table(
    lines: Sequence[Line], heads: Sequence[str], cells: Sequence[Sequence[str]], name: int, first: bool
) -> Table:
    """One of the tables; only the first says how sure candidates are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("candidate", width=name, overflow="fold")
    table.add_column("items", no_wrap=True)
    sure = first and bool(lines) and lines[0].sure is not None
    if sure:
        table.add_column("sure", no_wrap=True, justify="right")
    for head, width in zip(heads, _widths(heads, cells), strict=True):
        table.add_column(escape(head), justify="right", overflow="fold", width=width)
    for line, row in zip(lines, cells, strict=True):
        table.add_row(line.name, line.items, *([line.sure] if sure else []), *row, style=line.style)
    return table


def _cells(scores: Sequence[Measure], exact: bool) -> list[str]:
    return [certain.text(m) if exact else f"{m.value:.3f}" for m in scores]


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Of each objective's column: that of the longest line of its head, or of its cells."""
    return [max(map(cell_len, [*head.split("\n"), *(row[j] for row in rows)])) for j, head in enumerate(heads)]


def lines_of(
    name: str,
    objectives: Sequence[str],
    splits: Sequence[tuple[str, Mapping[str, Measure], str | None]],  # items, measures, how sure
    style: str | None,
) -> list[Line]:
    """A candidate's lines: one for each split that it has scores on."""
    scored = [(items, measures, sure) for items, measures, sure in splits if measures]
    return [
        Line("" if i else name, items, sure, tuple(measures[o] for o in objectives), style)
        for i, (items, measures, sure) in enumerate(scored)
    ]
