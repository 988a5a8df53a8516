"""How good is every merge method? As published, after a search, and with coefficients learned on top, on unseen items.

    python benchmarks/minilm/build.py --out benchmarks/data/minilm-hard --steps 350 --lr 4e-4
    python benchmarks/minilm/methods.py --seeds 0 1 2

Three columns for each method of the table, on the harder MiniLM pool (methods that merge one or two experts only, or
pick models, are left out):

- published: options and coefficients as the paper has them (`PUBLISHED`); no search, no seed, but for random masks.
- searched: 100 evaluations of CMA-ES over one coefficient an expert and all options that can be searched (`lambda` only
  where coefficients are divided by their sum, so that nothing else scales), on the mean cross-entropy of 40 calibration
  items a task (smoother than their accuracy, which so few tell to a point or two).
- learned, where the method is linear: 75 steps of alignment to the experts' logits (no labels), a coefficient for
  every tensor and expert, options as published, lr 0.02, from the best of a sweep of one coefficient for all.

Searches merge and score in bfloat16 (three times as fast on a CPU that multiplies in it); what they choose is scored
in float32 on held-out items. Each cell is kept in --cells, a line of JSON, and is not computed again. Printed are all
that are there, as the table in docs/methods.md: the mean accuracy over the seven tasks, 400 items each, averaged over
seeds, with its standard error over seeds where they differ; the items alone have one of .0065.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.minilm import gradients

# coefficient of every expert, and options: as published where the defaults are not
BREADCRUMBS = {"density": 0.15, "gamma": 0.006}  # what the authors' code tries first
PUBLISHED: dict[str, tuple[float, dict[str, Any]]] = {
    "task_arithmetic": (0.3, {}),
    "dare_linear": (0.3, {}),
    "della_linear": (0.3, {}),
    "breadcrumbs": (0.3, BREADCRUMBS),
    "breadcrumbs_ties": (0.3, BREADCRUMBS),
    "dare_ties": (0.3, {}),
    "consensus": (0.3, {}),
    "magmax": (0.5, {}),
    "ties_once": (0.3, {}),  # summed, as AdaMerging's authors start
    "mats": (1.0, {"initial": "task_arithmetic"}),
}


def main() -> None:
    """Run what is asked for, two searches side by side, and print the table."""
    from searchspaces import methods

    names = [n for n in methods.METHODS if of_many(n)]
    parser = argparse.ArgumentParser(description="Every merge method on the harder MiniLM pool, on held-out items.")
    parser.add_argument("--pool", type=Path, default=gradients.DATA / "minilm-hard")
    parser.add_argument("--out", type=Path, default=gradients.DATA / "methods", help="folder of the searches' runs")
    parser.add_argument("--cells", type=Path, default=Path(__file__).with_name("methods.jsonl"))
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--columns", nargs="+", choices=tuple(COLUMNS), default=tuple(COLUMNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--jobs", type=int, default=2, help="searches side by side, one thread each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = [
        (column, method, seed)
        for column in options.columns
        for seed in options.seeds
        for method in options.methods
        if has(column, method, seed)
    ]
    found = kept(options.cells)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = {workers.submit(one, *w, options.pool, options.out): w for w in wanted if w not in found}
        for future in as_completed(running):
            column, method, seed = w = running[future]
            found[w] = {"column": column, "method": method, "seed": seed, **future.result()}
            with options.cells.open("a", encoding="utf-8") as cells:
                cells.write(json.dumps(found[w]) + "\n")
            print(*w, f"{found[w]['mean']:.4f}", file=sys.stderr, flush=True)
    print("\n".join(table(list(found.values()))))


def of_many(method: str) -> bool:
    """Whether a method merges as many experts as there are, each by a coefficient."""
    from searchspaces import methods

    kind = methods.load(method)
    return (kind.experts[1] or 99) > len(gradients.TASKS) and not kind.picks


def kept(cells: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What earlier calls found, by column, method and seed."""
    lines = cells.read_text("utf-8").splitlines() if cells.is_file() else []
    found = (json.loads(line) for line in lines)
    return {(f["column"], f["method"], f["seed"]): f for f in found}


def has(column: str, method: str, seed: int) -> bool:
    """Whether a column has a cell for a method, that depends on the seed."""
    from searchspaces import methods

    kind = methods.load(method)
    if column == "learned":
        return kind.linear
    return column == "searched" or seed == 0 or kind.random


def table(found: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, a row for each method of these cells, the best first."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for each in found:
        rows.setdefault(each["method"], {}).setdefault(each["column"], []).append(each)
    best = {method: max(_mean(cells) for cells in columns.values()) for method, columns in rows.items()}
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for method in sorted(rows, key=lambda m: (-best[m], m)):
        lines.append(f"| `{method}` | {' | '.join(cell(rows[method].get(column, [])) for column in COLUMNS)} |")
    return lines


def cell(found: list[dict[str, Any]]) -> str:
    """Mean, and standard error over seeds where they differ."""
    if not found:
        return ""
    means = [f["mean"] for f in found]
    mean, said = _mean(found), f"{_mean(found):.3f}".lstrip("0")
    if len(set(means)) == 1:
        return said
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1) / len(means))
    return f"{said} ± {spread:.3f}".replace(" 0.", " .")


def _mean(found: list[dict[str, Any]]) -> float:
    return float(sum(f["mean"] for f in found) / len(found))


def one(column: str, method: str, seed: int, pool: Path, out: Path) -> dict[str, Any]:
    """One cell for one seed: the chosen candidate on held-out items."""
    whole = COLUMNS[column](method, seed, pool)
    if column == "published":
        from optimizer import Job

        out.mkdir(parents=True, exist_ok=True)
        return {"seconds": 0.0, **gradients.unseen(Job.parse(whole, out))}
    job = whole | {"models": whole["models"] | {"dtype": "bfloat16"}}
    if column == "searched":
        job = limited(job, 40)
    return gradients.searched(f"{column} {method} {seed}", job, out, unlimited=whole)


def published(method: str, seed: int, pool: Path) -> dict[str, Any]:
    """A job whose start is the candidate."""
    coefficient, options = PUBLISHED.get(method, (1.0, {}))
    return _job(method, seed, pool, {"start": coefficient, "options": options, "granularity": "model"})


def searched(method: str, seed: int, pool: Path) -> dict[str, Any]:
    """CMA-ES from the published point."""
    from searchspaces import methods
    from searchspaces.option import Number, complete

    coefficient, options = PUBLISHED.get(method, (1.0, {}))
    kind = methods.load(method)
    scales = kind(complete(method, kind.options, options)).sweep  # else coefficients are shares, and `lambda` scales
    numbers = {
        name: "search"
        for name, spec in kind.options.items()
        if isinstance(spec, Number) and not spec.prepared and spec.search is not None
        if name != "lambda" or not scales
    }
    space = {"start": coefficient, "options": {**options, **numbers}, "granularity": "model", "bounds": [0.0, 1.5]}
    equal = [1.0] * len(gradients.TASKS)
    driver = {"name": "cma", "preferences": [equal]}
    return _job(method, seed, pool, space, "cross_entropy") | {"driver": driver, "budget": {"evaluations": 100}}


def learned(method: str, seed: int, pool: Path) -> dict[str, Any]:
    """Alignment to the experts' logits, from the best of the anchors (a sweep of one coefficient for all)."""
    options = PUBLISHED.get(method, (1.0, {}))[1]
    space = {"options": options, "granularity": "tensor", "bounds": [-0.5, 2.0]}
    driver = {"name": "supervised", **gradients.ADAM, "gradients": {"loss": "kl"}, "start": "best"}
    return _job(method, seed, pool, space, "kl") | {"driver": driver, "budget": {"evaluations": 400}}


COLUMNS = {"published": published, "searched": searched, "learned": learned}


def limited(job: dict[str, Any], items: int) -> dict[str, Any]:
    """The same job on fewer items of each task."""
    return job | {"evaluators": [e | {"limit": items} for e in job["evaluators"]]}


def _job(method: str, seed: int, pool: Path, space: dict[str, Any], metric: str = "accuracy") -> dict[str, Any]:
    return gradients.base_job(pool, seed, metric == "kl") | {
        "space": {"method": method, **space},
        "objectives": [f"{task}.{metric}" for task in gradients.TASKS],
    }


if __name__ == "__main__":
    main()
