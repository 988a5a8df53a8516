"""Is a front as good where candidates are scored on few items first, and how much sooner is it there?

    python benchmarks/rungs.py job.yaml --rungs 20 --keep 0.1 --seeds 0 1 2
    python benchmarks/rungs.py --seeds 0 1 2 3 4                  # the demo's digits: four tasks, a tiny ViT
    python benchmarks/rungs.py benchmarks/minilm/hard.yaml --metric accuracy          # see benchmarks/minilm/README.md

The job is searched with and without rungs, for each seed, in --out, where what is done is not done again. Printed are
the means over seeds and their standard errors of:

- volume: the hypervolume of the final front, of candidates scored on all calibration items, in the anchors' box;
- best: of the candidate that is best in the mean on calibration items, the mean over objectives on held-out items, or
  over evaluators of --metric;
- items: the share of the items of all candidates that was scored;
- time: the seconds that candidates took in workers, over those without rungs; anchors are among them;
- held: the share of estimates that came within 1.96 standard errors of what all items said later.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

DATA = Path(__file__).parent / "data" / "rungs"
DEMO = 120  # evaluations on the demo's digits


def main() -> None:
    """Run what is missing, and print a line a way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path, nargs="?", help="a job file; by default that of the demo, made here")
    parser.add_argument("--rungs", type=int, nargs="+", default=[20])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1])
    parser.add_argument("--final", type=float, default=0.1)
    parser.add_argument("--rules", nargs="+", default=["halving"])
    parser.add_argument("--estimates", nargs="+", default=["paired"])
    parser.add_argument("--choose", nargs="+", default=["turns"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", default="", help="of every evaluator: what is told of the best")
    parser.add_argument("--evaluations", type=int, help="candidates; by default the job's")
    parser.add_argument("--jobs", type=int, default=2, help="searches side by side, one thread each")
    parser.add_argument("--out", type=Path, default=DATA)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    job = options.job or _demo(options.out)
    ways: list[dict[str, Any] | None] = [None]
    for estimate in options.estimates:
        for choose in options.choose:
            said = {"rungs": options.rungs, "estimate": estimate, "choose": choose, "final": options.final}
            if "halving" in options.rules:
                ways += [{**said, "rule": "halving", "keep": keep} for keep in options.keep]
            if "racing" in options.rules:
                ways.append({**said, "rule": "racing"})
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = [
            [
                workers.submit(one, job, way, seed, options.evaluations, options.metric, options.out)
                for seed in options.seeds
            ]
            for way in ways
        ]
        plain = [future.result() for future in running[0]]
        print(f"{'':4}{'volume':>17} {'best':>17} {'items':>17} {'time':>17} {'held':>9}")
        for way, futures in zip(ways, running, strict=True):
            _print(way, [future.result() for future in futures], plain)


def one(
    job: Path, way: dict[str, Any] | None, seed: int, evaluations: int | None, metric: str, out: Path
) -> dict[str, float]:
    """One search, and what is printed of it."""
    from optimizer import Job, Run
    from optimizer.driver import Items, Question
    from optimizer.executors.worker import Worker, specification
    from optimizer.record.saved import saved

    said = "whole" if way is None else "-".join(str(v) for v in way.values()).replace(" ", "")
    name = f"{job.stem}-{said}-{seed}".replace("[", "").replace("]", "").replace(",", "_")
    done = out / f"{name}.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    told = Job.load(job)
    plain: dict[str, Any] = {**told.model_dump(mode="json"), "name": name, "seed": seed, "fidelity": way}
    plain["executor"] |= {"kind": "inline"}
    plain["budget"] |= {"evaluations": evaluations or plain["budget"]["evaluations"]}
    run = Run(out / name) if (out / name).is_dir() else Run.create(Job.parse(plain, job.parent), out)
    run.search(heldout=False)
    results = run.results()
    best = results.pick("best")
    answer = Worker(specification(run.job, False), "held").answer(Question(0, best.point, items=Items("heldout")))
    names = [f"{e.name}.{metric}" for e in told.evaluators] if metric else [o.name for o in results.objectives]
    sums = saved(results.scored, results.objectives)
    found = {
        "volume": results.front.hypervolume,
        "best": sum(answer.measures[name].value for name in names) / len(names),
        "items": sum(c.share for c in results.scored) / len(results.scored),
        "seconds": sum(c.seconds for c in results.scored),
        "checked": 0 if sums is None else sums.checked,
        "within": 0 if sums is None else sums.within,
        "whole": len(results.front.numbers),
    }
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _demo(out: Path) -> Path:
    from optimizer.jobs import demo

    folder = out / "digits"
    if not (folder / "job.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        demo.prepare(folder, DEMO, lambda what: print(what, file=sys.stderr))
    return folder / "job.yaml"


def _print(way: dict[str, Any] | None, found: Sequence[dict[str, float]], plain: Sequence[dict[str, float]]) -> None:
    ratios = [f["seconds"] / p["seconds"] for f, p in zip(found, plain, strict=True)]
    checked, within = sum(f["checked"] for f in found), sum(f["within"] for f in found)
    said = "all items" if way is None else " ".join(f"{k} {v}" for k, v in way.items())
    held = f"{within / checked:10.3f}" if checked else f"{'':10}"
    columns = [[f[name] for f in found] for name in ("volume", "best", "items")]
    print(said + "\n    " + " ".join(map(_mean, [*columns, ratios])) + held)


def _mean(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
    return f"{mean:7.4f} +- {spread:.4f}"


if __name__ == "__main__":
    main()
