"""How far does `auto` go in 200 evaluations, a gradient counted as three? On the harder MiniLM pool, on unseen items.

    python benchmarks/minilm/build.py --out benchmarks/data/minilm-hard --steps 350 --lr 4e-4
    python benchmarks/minilm/auto.py --seeds 0 1 2

Seven objectives, on task vectors whose interference was removed (TSV-M). `scores`: a coefficient for every block and
expert, by the calibration items' cross-entropies; `gradients`: one for every tensor and expert, 45 gradients of the
distance from the experts' logits, without labels, and 65 candidates; `few`: the same, but each gradient of ten items a
task, not of all 150. Searches merge and score in bfloat16 (three times as fast on a CPU that multiplies in it). The
candidate that is best in the mean is scored on the 400 held-out items of each task, in float32. Printed is the mean
accuracy over tasks, averaged over seeds, and its standard error over seeds; the items alone have one of .0065. With
--fronts whole fronts are scored on these items, in bfloat16: printed too are their volume on calibration and on
held-out items, each in the anchors' box there, and the seconds of all evaluations. What --out has is not computed
again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.minilm import gradients, methods
from benchmarks.rungs import unseen

GRADIENTS, EACH = 45, 3  # asked, and evaluations that each counts as
DTYPE = "bfloat16"  # of searches
FEW = 10  # items of each task in a gradient of the way `few`
BUDGET = 200


def main() -> None:
    """Run what is asked for, two searches side by side, and print a line for each way."""
    parser = argparse.ArgumentParser(description="The driver auto on the harder MiniLM pool, on held-out items.")
    parser.add_argument("--pool", type=Path, default=gradients.DATA / "minilm-hard")
    parser.add_argument("--out", type=Path, default=gradients.DATA / "auto")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--items", type=int, default=200, help="calibration items a task, where scores decide alone")
    parser.add_argument("--fronts", action="store_true", help="score whole fronts on held-out items too")
    parser.add_argument("--jobs", type=int, default=2, help="searches side by side, one thread each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = {
            way: [
                workers.submit(one, way, s, options.items, options.fronts, options.pool, options.out)
                for s in options.seeds
            ]
            for way in options.ways
        }
        for way, futures in running.items():
            found = [future.result() for future in futures]
            fronts = [f"{name} {_told([f['front'][name] for f in found])}" for name in found[0].get("front", {})]
            print(f"{way:10} {methods.cell(found)}  {', '.join(fronts)}", flush=True)


def one(way: str, seed: int, items: int, fronts: bool, pool: Path, out: Path) -> dict[str, Any]:
    """One search, and its best candidate on held-out items; with `fronts`, its front too."""
    whole = WAYS[way](seed, pool)
    job = whole | {"models": whole["models"] | {"dtype": DTYPE}}
    name = f"{way} {DTYPE} {seed}"
    if way == "scores":
        job, name = methods.limited(job, items), f"{way} {DTYPE} {items} {seed}"
    found = gradients.searched(name, job, out, unlimited=whole)
    return found | ({"front": _front(out / name.replace(" ", "-"))} if fronts else {})


def _front(folder: Path) -> dict[str, float]:
    """Volume on calibration items, on held-out items, and seconds of evaluations: of the search in this folder."""
    from optimizer import Run
    from optimizer.record.ledger import Ledger, Tell

    done = folder.with_suffix(".front.json")
    if done.is_file():
        return dict(json.loads(done.read_text()))
    run = Run(folder)
    run.search(heldout=True)
    results = run.results()
    told = [event.answer for event in Ledger.open(folder / "ledger.db").history() if isinstance(event, Tell)]
    seconds = sum(answer.seconds for answer in told)
    found = {"volume": results.front.hypervolume, "unseen": unseen(results), "seconds": seconds}
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _told(values: list[float]) -> str:
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


def by_scores(seed: int, pool: Path) -> dict[str, Any]:
    """A coefficient for every block and expert."""
    space = {"method": "tsv_m", "granularity": "layer", "bounds": [0.0, 2.0]}
    return _job(seed, pool, space, "cross_entropy", {"name": "auto"}, BUDGET)


def by_gradients(seed: int, pool: Path) -> dict[str, Any]:
    """A coefficient for every tensor and expert."""
    space = {"method": "tsv_m", "granularity": "tensor", "bounds": [-0.5, 2.0]}
    driver = {"name": "auto", "steps": GRADIENTS, "gradients": {"loss": "kl"}}
    return _job(seed, pool, space, "kl", driver, BUDGET - EACH * GRADIENTS)


def by_few(seed: int, pool: Path) -> dict[str, Any]:
    """The same, with few items in each gradient."""
    job = by_gradients(seed, pool)
    return job | {"driver": job["driver"] | {"batch": FEW}}


WAYS = {"scores": by_scores, "gradients": by_gradients, "few": by_few}


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
