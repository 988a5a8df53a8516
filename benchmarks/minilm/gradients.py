"""How far do coefficients learned by gradient go? Every gradient driver on the harder MiniLM pool, on unseen items.

    python benchmarks/minilm/build.py --out benchmarks/data/minilm-hard --steps 350 --lr 4e-4
    python benchmarks/minilm/irrelevant.py                     (for the rows with irrelevant experts)
    python benchmarks/minilm/gradients.py --rows global adamerging supervised --seeds 0 1 2

A seed decides which calibration items gradients see, which decide when to stop, and the minibatches. The candidate that
is best on those that decide is scored on the 400 held-out items of each task. Printed are the mean accuracy over tasks,
averaged over seeds, its standard error over seeds, and that of the items. What --out has is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
TASKS = ("bbc", "spam", "movie", "foods", "tweets", "wordnet", "langid")

PLAIN = {"global": "global", "task arithmetic 0.3": "global 0.3"}  # rows without a search: the best anchor called so
# which metrics on unseen calibration items decide: with labels, or without
LABELS, EXPERTS = ("accuracy", "cross_entropy"), ("kl",)
ADAM = {"steps": 75, "every": 5, "patience": 6, "batch": 16, "lr": 0.02}
WIDE = {"bounds": [-0.5, 1.5]}
HARD = {"start": "space", "step": 0.29}  # the authors' start, their merge of all experts, and their factor
BOTH = {"loss": {"cross_entropy": 1.0, "kl": 1.0}}
ROWS: dict[str, tuple[tuple[str, ...], str, dict[str, Any], dict[str, Any]]] = {
    # name: metrics that decide, granularity, the driver's entry, the space's other keys
    "adamerging": (LABELS, "tensor", {"name": "adamerging", **ADAM}, {}),
    "adamerging task-wise": (LABELS, "model", {"name": "adamerging", **ADAM}, {}),
    "adamerging per block": (LABELS, "layer", {"name": "adamerging", **ADAM}, {}),
    "adamerging++": (LABELS, "tensor", {"name": "adamerging", **ADAM}, {"method": "ties_once"}),
    "supervised": (LABELS, "tensor", {"name": "supervised", **ADAM}, WIDE),
    "alignment": (EXPERTS, "tensor", {"name": "supervised", **ADAM, "gradients": {"loss": "kl"}}, {}),
    "cross-entropy + alignment": (LABELS, "tensor", {"name": "supervised", **ADAM, "gradients": BOTH}, WIDE),
    "alignment on TIES": (
        EXPERTS,
        "tensor",
        {"name": "supervised", **ADAM, "gradients": {"loss": "kl"}},
        {"method": "ties_once"},
    ),
    "expert merging": (EXPERTS, "tensor", {"name": "expert_merging", **ADAM, "lr": 0.05}, {}),
    "frank-wolfe": (LABELS, "tensor", {"name": "frank_wolfe", **HARD}, {}),
    "frank-wolfe per tensor": (LABELS, "tensor", {"name": "frank_wolfe", **HARD, "scope": "group"}, {}),
    "frank-wolfe cosine": (LABELS, "tensor", {"name": "frank_wolfe", **HARD, "rule": "cosine"}, {}),
    "frank-wolfe soft": (
        LABELS,
        "tensor",
        {"name": "frank_wolfe_soft", **ADAM, "rounds": 3, "inner": 25, "steps": 78, "bounds": "project"},
        WIDE,
    ),
}


def main() -> None:
    """Run what is asked for, two searches side by side, and print the table."""
    parser = argparse.ArgumentParser(description="Gradient drivers on the harder MiniLM pool, on held-out items.")
    parser.add_argument("--pool", type=Path, default=DATA / "minilm-hard")
    parser.add_argument("--irrelevant", type=Path, help="a folder of further experts to add to the pool")
    parser.add_argument("--out", type=Path, default=DATA / "gradients")
    parser.add_argument("--rows", nargs="+", choices=(*PLAIN, *ROWS), default=(*PLAIN, *ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--set", nargs="+", default=(), metavar="KEY=VALUE", help="driver options, over all rows")
    parser.add_argument("--jobs", type=int, default=2, help="searches side by side, one thread each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    changes = {key: json.loads(value) for key, _, value in (text.partition("=") for text in options.set)}
    wanted = [(row, seed) for seed in options.seeds for row in options.rows if seed == options.seeds[0] or row in ROWS]
    print(f"{'':28} {'held-out':>8} {'over seeds':>10} {'of items':>8} {'chosen at':>9} {'seconds':>8}")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = [
            (row, workers.submit(one, row, seed, options.pool, options.irrelevant, options.out, changes))
            for row, seed in wanted
        ]
        found: dict[str, list[dict[str, Any]]] = {}
        for row, future in running:
            found.setdefault(row, []).append(future.result())
            if len(found[row]) == (len(options.seeds) if row in ROWS else 1):
                _print(row, found[row])


def one(
    row: str, seed: int, pool: Path, irrelevant: Path | None, out: Path, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """One search and its best candidate on held-out items: mean accuracy, its standard error, and by task."""

    label = PLAIN.get(row, "")
    return searched(f"{row} {seed}", describe(row, seed, pool, irrelevant, changes), out, label)


def searched(
    what: str, description: dict[str, Any], out: Path, label: str = "", unlimited: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A job's search, and its best candidate (among those that its stage calls so) on held-out items.

    `unlimited` is the job with all items, where the search has a limit on them.
    """
    from optimizer import Job, Run

    name = what.replace(" ", "-").replace("+", "p")
    done = out / f"{name}.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    out.mkdir(parents=True, exist_ok=True)
    job = Job.parse(description | {"name": name}, out.parent)
    began = time.monotonic()
    run = Run(out / name) if (out / name).is_dir() else Run.create(job, out)
    run.search(heldout=False)
    results = run.results()
    order = [results.candidates[n] for n in results.front.by_mean()]
    best = next(c for c in order if label in c.stage)
    whole = run.job if unlimited is None else Job.parse(unlimited | {"name": name}, out.parent)
    found = {"stage": best.stage, **unseen(whole, best.point), "seconds": time.monotonic() - began}
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def unseen(job: Any, point: Any = None) -> dict[str, Any]:
    """A point's accuracy on held-out items, by default the start's: mean, its standard error, and by task."""
    from optimizer.driver import Items, Question
    from optimizer.executors.worker import Worker, specification

    worker = Worker(specification(job, False), "benchmark")
    point = worker.space.domain.start if point is None else point
    answer = worker.answer(Question(0, point, items=Items("heldout")))
    if answer.failure is not None:
        raise SystemExit(f"{job.name}: fails on held-out items: {answer.failure}")
    accuracy = [answer.measures[f"{task}.accuracy"] for task in TASKS]
    return {
        "mean": sum(m.value for m in accuracy) / len(accuracy),
        "stderr": math.sqrt(sum((m.stderr or 0.0) ** 2 for m in accuracy)) / len(accuracy),
        "tasks": {task: m.value for task, m in zip(TASKS, accuracy, strict=True)},
    }


def describe(row: str, seed: int, pool: Path, irrelevant: Path | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The job of a row."""
    if row in ROWS:
        decisive, granularity, driver, space = ROWS[row]
        driver = {**driver, **changes, "anchors": False}
    else:
        decisive, granularity, space, driver = ("cross_entropy",), "model", {}, {"name": "random"}
    job = base_job(pool, seed, decisive == EXPERTS)
    if irrelevant is not None:
        job["models"]["experts"] |= {folder.name: str(folder) for folder in sorted(irrelevant.glob("[!.]*"))}
    plain = len(job["models"]["experts"]) + 9  # base, experts, and averages
    return job | {
        "space": {"granularity": granularity, "bounds": [0.0, 1.0], "start": 0.1, **space},
        "objectives": [f"{task}.{metric}" for metric in decisive for task in TASKS],
        "driver": driver,
        "budget": {"evaluations": 400 if row in ROWS else plain},
    }


def base_job(pool: Path, seed: int, follows: bool) -> dict[str, Any]:
    """Models and evaluators of a job over the pool; `follows`: evaluators know the task's expert."""
    return {
        "models": {
            "base": str(pool / "base"),
            "experts": {task: str(pool / "experts" / task) for task in TASKS},
            "heads": ["classifier.*"],
            "exclude": ["embeddings.*"],
        },
        "evaluators": [_evaluator(task, pool, follows) for task in TASKS],
        "executor": {"kind": "inline"},
        "seed": seed,
    }


def _evaluator(task: str, pool: Path, follows: bool) -> dict[str, Any]:
    files = {split: str(pool / "data" / f"{task}.{split}.jsonl") for split in ("calibration", "heldout")}
    return {
        **{"kind": "classification", "name": task, "data": files, "text": "text", "label": "label"},
        **{"pooling": "mean", "normalize": True, "max_length": 32},
        **({"teacher": task} if follows else {}),
    }


def _print(row: str, found: list[dict[str, Any]]) -> None:
    means = [f["mean"] for f in found]
    mean = sum(means) / len(means)
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1) / len(means))
    stages = "/".join(f["stage"].rpartition("after ")[2].removesuffix(" steps") for f in found)
    items = sum(f["stderr"] for f in found) / len(found)
    seconds = sum(f["seconds"] for f in found) / len(found)
    print(f"{row:28} {mean:8.4f} {spread:10.4f} {items:8.4f} {stages:>9} {seconds:8.0f}", flush=True)


if __name__ == "__main__":
    main()
