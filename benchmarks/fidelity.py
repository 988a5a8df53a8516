"""How far off are candidates that are told from some of all items? Every estimator, on every choice of items.

Known grows as in a search: an estimator is made of the first m candidates, and tells the next ones from n of N items.
Told is the root mean square error over those, divided by that of the plain mean of as many items drawn at random; and
after the stroke in how many of 100 cases the truth lay within 1.96 of the standard errors that were stated.

    OMP_NUM_THREADS=1 python benchmarks/fidelity.py                            # simulated merges, some minutes
    OMP_NUM_THREADS=1 python benchmarks/fidelity.py runs/first --counts 20 50  # a run's per-item results, by metric

Candidates of one run share its items: draws of items are many (`--draws`), searches only one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.simulated.answers import ANSWERS, Answers
from benchmarks.simulated.merge import Array
from optimizer.errors import OptimizerError
from optimizer.fidelity import CHOICES, ESTIMATORS, Choice
from optimizer.record.results import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each metric. The exit code is 2 where there is nothing to tell from."""
    chosen = parsed(arguments)
    try:
        tables = of_run(chosen.run) if chosen.run else simulated(chosen.simulated, chosen.items, chosen.seeds)
    except OptimizerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, table in tables.items():
        print("\n".join(markdown(name, table, chosen)), flush=True)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder; without one, simulated merges")
    parser.add_argument("--simulated", nargs="+", default=list(ANSWERS), choices=list(ANSWERS), metavar="KIND")
    parser.add_argument("--items", type=positive, default=400, help="of simulated merges")
    parser.add_argument("--seeds", type=positive, default=6, help="simulated merges of a kind")
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), choices=list(ESTIMATORS), metavar="NAME")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES), metavar="NAME")
    parser.add_argument("--known", type=positive, nargs="+", default=[8, 20, 60], metavar="M")
    parser.add_argument("--counts", type=positive, nargs="+", default=[10, 30, 100], metavar="N")
    parser.add_argument("--ahead", type=positive, default=20, help="candidates after the known that are told")
    parser.add_argument("--draws", type=positive, default=4, help="of items, by seeds of a choice")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def simulated(kinds: Sequence[str], items: int, seeds: int) -> dict[str, list[Answers]]:
    """Tables of each kind."""
    return {kind: [ANSWERS[kind](100, items, seed) for seed in range(seeds)] for kind in kinds}


def of_run(folder: Path) -> dict[str, list[Answers]]:
    """A run's calibration results by metric: models as they are first, then candidates in the order told.

    A recipe that was scored before is left out, and so is a metric that has no per-item values.
    """
    results = Results(folder)
    rows = [c for c in [*results.references.values(), *results.scored] if c.failure is None]
    values = results.items([c.number for c in rows], "calibration")
    found = {}
    for metric in sorted({name for kept in values.values() for name in kept}):
        own = [c for c in rows if metric in values[c.number] and np.isfinite(values[c.number][metric]).all()]
        width = max((len(values[c.number][metric]) for c in own), default=0)
        own = [c for c in own if len(values[c.number][metric]) == width]
        experts = tuple(i for i, c in enumerate(own) if c.label.startswith("expert"))
        found[metric] = [Answers(np.array([values[c.number][metric] for c in own], dtype=np.float64), experts)]
    if not found:
        raise OptimizerError(
            f"{folder}: expected per-item results of candidates, found none; name a run that kept some"
        )
    return found


def markdown(name: str, tables: list[Answers], chosen: argparse.Namespace) -> Iterator[str]:
    """A table's lines: a row for each choice and estimator, a column for each m and n."""
    wide, long = tables[0].known.shape[1], min(len(table.known) for table in tables)
    cells = [(m, n) for m in chosen.known for n in chosen.counts if m < long and n < wide]
    yield f"\n{name}: {len(tables)} of {long} candidates, {wide} items; m known, n items seen\n"
    yield "| choice | estimator | " + " | ".join(f"m {m}, n {n}" for m, n in cells) + " | ms |"
    yield "|---|---|" + "---|" * (len(cells) + 1)
    drawn = {(m, n): picked(tables, "random", m, n, chosen.draws) for m, n in cells}
    plain = {at: rms(told(tables, "mean", *at, drawn[at], chosen.ahead)[0]) for at in cells}
    for choice in chosen.choices:
        picks = {(m, n): picked(tables, choice, m, n, chosen.draws) for m, n in cells}
        for estimator in chosen.estimators:
            texts, begun, asked = [], time.perf_counter(), 0
            for at in cells:
                off, stated = told(tables, estimator, *at, picks[at], chosen.ahead)
                within = 100 * float((np.abs(off) <= 1.96 * stated).mean())
                texts.append(f"{rms(off) / max(plain[at], 1e-300):.2f} / {within:.0f}")
                asked += len(off)
            took = 1e3 * (time.perf_counter() - begun) / max(asked, 1)
            yield f"| {choice} | `{estimator}` | " + " | ".join(texts) + f" | {took:.1f} |"


def picked(tables: list[Answers], choice: str, known: int, count: int, draws: int) -> list[list[Choice]]:
    """Choices of `count` items for each table, by its first candidates."""
    return [
        [CHOICES[choice](table.known[:known], count, 1000 * seed + draw) for draw in range(draws)]
        for seed, table in enumerate(tables)
    ]


def told(
    tables: list[Answers], estimator: str, known: int, count: int, picks: list[list[Choice]], ahead: int
) -> tuple[Array, Array]:
    """Errors, and the standard errors that were stated, for the candidates after the known."""
    found = []
    for table, own in zip(tables, picks, strict=True):
        made = ESTIMATORS[estimator](table.known[:known], [row for row in table.experts if row < known])
        for choice in own:
            items, weights = choice.items(count), choice.weights(count)
            for row in table.known[known : known + ahead]:
                said = made.estimate(items, row[items], weights)
                found.append((said.value - row.mean(), said.stderr))
    off, stated = np.array(found).T
    return off, stated


def rms(off: Array) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(off**2)))


if __name__ == "__main__":
    sys.exit(main())
