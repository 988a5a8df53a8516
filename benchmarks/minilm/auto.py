"""How far does `auto` go in 200 evaluations, a gradient counted as three? On the harder MiniLM pool, on unseen items.

    python benchmarks/minilm/build.py --out benchmarks/data/minilm-hard --steps 350 --lr 4e-4
    python benchmarks/minilm/auto.py --seeds 0 1 2

Seven objectives, on task vectors whose interference was removed (TSV-M). `scores`: a coefficient for every block and
expert, by the calibration items' cross-entropies; `gradients`: one for every tensor and expert, 45 gradients of the
distance from the experts' logits, without labels, and 65 candidates. The candidate that is best in the mean is scored
on the 400 held-out items of each task. Printed is the mean accuracy over tasks, averaged over seeds, and its standard
error over seeds; the items alone have one of .0065. What --out has is not computed again.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.minilm import gradients, methods

GRADIENTS, EACH = 45, 3  # asked, and evaluations that each counts as
BUDGET = 200


def main() -> None:
    """Run what is asked for, two searches side by side, and print a line for each way."""
    parser = argparse.ArgumentParser(description="The driver auto on the harder MiniLM pool, on held-out items.")
    parser.add_argument("--pool", type=Path, default=gradients.DATA / "minilm-hard")
    parser.add_argument("--out", type=Path, default=gradients.DATA / "auto")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--items", type=int, default=200, help="calibration items a task, where scores decide alone")
    parser.add_argument("--jobs", type=int, default=2, help="searches side by side, one thread each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = {
            way: [workers.submit(one, way, s, options.items, options.pool, options.out) for s in options.seeds]
            for way in options.ways
        }
        for way, futures in running.items():
            print(f"{way:12} {methods.cell([future.result() for future in futures])}", flush=True)


def one(way: str, seed: int, items: int, pool: Path, out: Path) -> dict[str, Any]:
    """One search, and its best candidate on held-out items."""
    job = WAYS[way](seed, pool)
    if way == "gradients":
        return gradients.searched(f"{way} {seed}", job, out)
    return gradients.searched(f"{way} {items} {seed}", methods.limited(job, items), out, unlimited=job)


def by_scores(seed: int, pool: Path) -> dict[str, Any]:
    """A coefficient for every block and expert."""
    space = {"method": "tsv_m", "granularity": "layer", "bounds": [0.0, 2.0]}
    return _job(seed, pool, space, "cross_entropy", {"name": "auto"}, BUDGET)


def by_gradients(seed: int, pool: Path) -> dict[str, Any]:
    """A coefficient for every tensor and expert."""
    space = {"method": "tsv_m", "granularity": "tensor", "bounds": [-0.5, 2.0]}
    driver = {"name": "auto", "steps": GRADIENTS, "gradients": {"loss": "kl"}}
    return _job(seed, pool, space, "kl", driver, BUDGET - EACH * GRADIENTS)


WAYS = {"scores": by_scores, "gradients": by_gradients}


def _job(
    seed: int, pool: Path, space: dict[str, Any], metric: str, driver: dict[str, Any], evaluations: int
) -> dict[str, Any]:
    return gradients.base_job(pool, seed, metric == "kl") | {
        "space": space,
        "objectives": [f"{task}.{metric}" for task in gradients.TASKS],
        "driver": driver,
        "budget": {"evaluations": evaluations},
    }


if __name__ == "__main__":
    main()
