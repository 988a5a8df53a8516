"""Which driver finds a front with the fewest evaluations? Every driver of the table, on simulated merges.

The problems (`benchmarks/simulated/`) behave as layer-wise merges do, and answer in a millisecond or so; drivers,
anchors and preferences are a job's own. Told is the hypervolume of all that a search has seen, in percent of that of a
front found with far more evaluations: the mean over seeds and its standard error, after so many evaluations. A gradient
counts as three, and what it shows of the objectives counts as seen. Beside it, how long a driver thinks (ask and tell)
for an answer: the mean and the longest, in milliseconds, and for all of a search, in seconds. Objectives and training
losses are the same, of all items: nothing here overfits.

    OMP_NUM_THREADS=1 python benchmarks/search.py --problems mlp24 mlp96 --out searches.json --plot searches.html

`--out` keeps what is done; a later call computes what is missing there. Begin a new file after a driver has changed.
`--drivers cma cma/wide --options '{"cma/wide": {"sigma0": 0.4}}'` compares options; what follows the stroke is a name
of your own, but for `auto/gradients`: `auto` in a job that says of what gradients are. `--problem-from module:function`
adds a problem of yours (`benchmarks/simulated/problems.py: loaded`). With `--luck 1` gradients have errors as large as
they are (`simulated/searches.py: Luck`): those of few items, `{"auto/gradients": {"batch": 20}}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.simulated.merge import Problem
from benchmarks.simulated.problems import PROBLEMS, loaded
from benchmarks.simulated.searches import GRADIENTS, Found, options_of, search
from optimizer.driver import DriverError
from optimizer.drivers import find, table

FORMAT = "mergeopt searches 1"
Cells = dict[str, Found]  # by `key`
KEPT = TypeAdapter(Cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is missing, and print a table for each problem. The exit code is 2 where arguments do not fit."""
    chosen = parsed(arguments)
    try:
        problems = [*chosen.problems, *chosen.problem_from]
        if not problems:
            raise ValueError("--problems: expected one or more, or --problem-from; name one")
        writable("--out", chosen.out)
        writable("--plot", chosen.plot)
        options = checked_options(chosen.options, chosen.drivers)
        for entry in chosen.problem_from:
            problem(entry)  # refused now rather than after the others
        cells = read(chosen.out) if chosen.out else {}
        refused = compute(cells, problems, options, chosen)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in problems:
        print("\n".join(markdown(name, options, cells, chosen)))
    for label, reason in refused.items():
        print(f"Not compared: {label} ({reason}).")
    if chosen.plot:
        plot(problems, options, cells, chosen)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS), metavar="NAME")
    parser.add_argument("--problem-from", nargs="+", default=[], metavar="MODULE:FUNCTION")
    every = [label for name, entry in table().items() for label in (name, *([f"{name}/gradients"] * entry.optional))]
    parser.add_argument("--drivers", nargs="+", default=every, metavar="NAME[/VARIANT]")
    parser.add_argument("--options", default="{}", metavar="JSON", help="of drivers, by the names in --drivers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=positive, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--workers", type=positive, default=1, help="questions in flight before the next tell")
    parser.add_argument("--luck", type=share, default=0.0, help="errors of slopes, over their size")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.html")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number from 1. Raises ArgumentTypeError on others."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def writable(flag: str, path: Path | None) -> None:
    """Raises ValueError where no file of this name can be written: before anything is searched."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{flag} {path}: expected a file, and it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: expected a file in a folder that is there; make the folder, or name another")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"{flag} {path}: expected a file that may be written, and it may not; name another")


def share(text: str) -> float:
    """A number from 0. Raises ArgumentTypeError on others."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return found


def checked_options(text: str, drivers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each driver, by the names given. Raises ValueError or DriverError on what does not fit."""
    names = {label: label.partition("/")[0] for label in drivers}
    for name in names.values():
        find(name)
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: expected JSON, got {text!r}: {error}; mend it") from error
    if not isinstance(options, dict) or not all(isinstance(row, dict) for row in options.values()):
        raise ValueError(f"--options: expected an object of objects, got {text!r}; write {{DRIVER: {{OPTION: VALUE}}}}")
    if others := sorted(set(options) - set(drivers)):
        raise ValueError(f"--options: {', '.join(others)} is not among --drivers ({', '.join(drivers)}); add it there")
    for label, name in names.items():
        options_of(name, options.get(label, {}))
    return {
        label: {**({GRADIENTS: True} if label.endswith("/gradients") else {}), **options.get(label, {})}
        for label in drivers
    }


@cache
def problem(name: str) -> Problem:
    """The problem of this name, made once. Raises ValueError on one that cannot be had."""
    return PROBLEMS[name].make() if name in PROBLEMS else loaded(name)


def key(problem: str, driver: str, options: Mapping[str, Any], seed: int, workers: int, luck: float = 0.0) -> str:
    """What a search is known by; `driver` may have a variant's name, which changes nothing."""
    return json.dumps(
        [problem, driver.partition("/")[0], dict(options), seed, workers, *([luck] if luck else [])], sort_keys=True
    )


def compute(
    cells: Cells, problems: Sequence[str], options: Mapping[str, Mapping[str, Any]], chosen: argparse.Namespace
) -> dict[str, str]:
    """Search what is missing among `cells`, and keep each search at once. Returns what was refused, and why."""
    budget, refused = max(chosen.budgets), dict[str, str]()
    for name in problems:
        for label, given in options.items():
            for seed in chosen.seeds:
                which = key(name, label, given, seed, chosen.workers, chosen.luck)
                if which in cells and (cells[which].cost >= budget or cells[which].ended):
                    continue
                try:
                    searched = label.partition("/")[0]
                    cell = search(problem(name), searched, seed, budget, given, chosen.workers, chosen.luck)
                except DriverError as error:
                    refused[f"{label} on {name}"] = str(error)
                    break
                cells[which] = cell
                print(f"{name} {label} seed {seed}: {cell.seconds:.1f} s of ask and tell", file=sys.stderr, flush=True)
                if chosen.out:
                    write(chosen.out, cells)
    return refused


def read(path: Path) -> Cells:
    """The searches of a file; none where there is no file. Raises ValueError on a file of something else."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        return KEPT.validate_python(data["cells"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        why = repr(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r:.80}"
        raise ValueError(
            f"--out {path}: expected a file of this benchmark ({FORMAT}), and {why}; name another"
        ) from error


def write(path: Path, cells: Cells) -> None:
    """Replace the file, whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps({"format": FORMAT, "cells": {which: asdict(cell) for which, cell in cells.items()}}))
    part.replace(path)


def seen(cell: Found, costs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The hypervolume after each of these costs."""
    at = np.array([cost for cost, _ in cell.curve], dtype=np.int64)
    values = np.array([0.0, *(value for _, value in cell.curve)])
    return np.asarray(values[np.searchsorted(at, costs, side="right")])


def compared(
    name: str, options: Mapping[str, Mapping[str, Any]], cells: Cells, chosen: argparse.Namespace
) -> Iterator[tuple[str, list[Found]]]:
    """Of each driver that was not refused its searches of a problem, one a seed."""
    for label, given in options.items():
        found = [cells.get(key(name, label, given, seed, chosen.workers, chosen.luck)) for seed in chosen.seeds]
        if searches := [cell for cell in found if cell is not None]:
            yield label, searches


def reference(name: str) -> float:
    """The hypervolume that is 100 %; that of the unit box where there is no better one."""
    return PROBLEMS[name].hypervolume if name in PROBLEMS else 1.0


def markdown(
    name: str, options: Mapping[str, Mapping[str, Any]], cells: Cells, chosen: argparse.Namespace
) -> list[str]:
    """The lines of a problem's table, the best driver first."""
    budgets = np.array(sorted(set(chosen.budgets)))
    groups, experts = problem(name).shape
    rows: list[tuple[float, str]] = []
    for label, searches in compared(name, options, cells, chosen):
        values = 100 * np.array([seen(cell, budgets) for cell in searches]) / reference(name)  # (seeds, budgets)
        mean = values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(len(mean), np.nan)
        ended = [cell.cost for cell in searches if cell.ended]
        each = 1e3 * np.mean([cell.seconds / max(cell.questions, 1) for cell in searches])
        columns = [f"{m:.1f} ± {e:.1f}" if np.isfinite(e) else f"{m:.1f}" for m, e in zip(mean, error, strict=True)]
        columns += [f"{np.mean(ended):,.0f}" if ended else "", f"{each:.2f}"]
        columns += [f"{1e3 * max(c.worst for c in searches):.0f}", f"{np.mean([c.seconds for c in searches]):.1f}"]
        rows.append((float(mean[-1]), f"| {label} | {' | '.join(columns)} |"))
    rows.sort(key=lambda row: -row[0])
    workers = f", {chosen.workers} in flight" if chosen.workers > 1 else ""
    workers += f", luck {chosen.luck:g}" if chosen.luck else ""
    head = " | ".join(f"{budget:,}" for budget in budgets)
    return [
        f"### {name}: {groups} groups x {experts} experts; % of hypervolume {reference(name):g}, "
        f"{len(chosen.seeds)} seeds{workers}",
        "",
        f"| driver | {head} | ended at | ask + tell, ms | longest, ms | in all, s |",
        "|---" * (len(budgets) + 5) + "|",
        *(row for _, row in rows),
        "",
    ]


def plot(
    problems: Sequence[str], options: Mapping[str, Mapping[str, Any]], cells: Cells, chosen: argparse.Namespace
) -> None:
    """A page of its own: hypervolume against cost, a panel a problem and a line a driver."""
    from plotly.colors import qualitative
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots

    figure: Figure = make_subplots(rows=len(problems), subplot_titles=problems, vertical_spacing=0.3 / len(problems))
    costs = np.arange(1, max(chosen.budgets) + 1)
    colours = {label: qualitative.Dark24[i % 24] for i, label in enumerate(options)}
    shown: set[str] = set()
    for row, name in enumerate(problems, start=1):
        for label, searches in compared(name, options, cells, chosen):
            mean = 100 * np.mean([seen(cell, costs) for cell in searches], axis=0) / reference(name)
            line = {"color": colours[label], "shape": "hv"}
            first = label not in shown
            shown.add(label)
            figure.add_scatter(
                x=costs,
                y=mean,
                mode="lines",
                name=label,
                line=line,
                legendgroup=label,
                showlegend=first,
                row=row,
                col=1,
            )
        figure.update_xaxes(title="evaluations (a gradient: 3)", type="log", row=row, col=1)
        figure.update_yaxes(title="% of reference", row=row, col=1)
    figure.update_layout(height=480 * len(problems), title="Hypervolume against evaluations", hovermode="x unified")
    figure.write_html(chosen.plot, include_plotlyjs=True)


if __name__ == "__main__":
    sys.exit(main())
