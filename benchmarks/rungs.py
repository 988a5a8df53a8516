"""Is a front as good where candidates are scored on few items first, and how much sooner is it there?

    python benchmarks/rungs.py job.yaml --rungs 20 --keep 0.1 --seeds 0 1 2
    python benchmarks/rungs.py --seeds 0 1 2 3 4                  # the demo's digits: four tasks, a tiny ViT
    python benchmarks/rungs.py benchmarks/minilm/hard.yaml --metric accuracy          # see benchmarks/minilm/README.md
    python benchmarks/rungs.py benchmarks/minilm/hard.yaml --emulate RUN RUN          # by recorded runs of that job

The job is searched with and without rungs, for each seed, in --out, where what is done is not done again. Printed are
the means over seeds and their standard errors of:

- volume: the hypervolume of the final front, of candidates scored on all calibration items, in the anchors' box;
- unseen, with --heldout: that of the same front and anchors by their held-out losses, what a user gets;
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
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.emulation import emulated

if TYPE_CHECKING:
    from optimizer import Results

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
    parser.add_argument("--heldout", action="store_true", help="score fronts on held-out items too")
    parser.add_argument("--evaluations", type=int, help="candidates; by default the job's")
    parser.add_argument("--emulate", type=Path, nargs="+", default=[], metavar="RUN", help="see emulation.py")
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
    out = options.out / "emulated" if options.emulate else options.out
    search = partial(one, job, out, options.evaluations, options.metric, options.heldout, options.emulate)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        running = [[workers.submit(search, way, seed) for seed in options.seeds] for way in ways]
        plain = [future.result() for future in running[0]]
        names = ["volume", *(["unseen"] if options.heldout else []), "best", "items"]
        print(f"{'':4}{' '.join(f'{name:>17}' for name in [*names, 'time'])} {'held':>9}")
        for way, futures in zip(ways, running, strict=True):
            _print(way, names, [future.result() for future in futures], plain)


def one(
    job: Path,
    out: Path,
    evaluations: int | None,
    metric: str,
    heldout: bool,
    emulate: Sequence[Path],
    way: dict[str, Any] | None,
    seed: int,
) -> dict[str, float]:
    """One search, and what is printed of it."""
    from optimizer import Job, Run
    from optimizer.driver import Items, Question
    from optimizer.executors.worker import Worker, specification
    from optimizer.record.saved import saved

    said = "whole" if way is None else "-".join(str(v) for v in way.values()).replace(" ", "")
    name = f"{job.stem}-{said}-{evaluations or 'all'}-{seed}".replace("[", "").replace("]", "").replace(",", "_")
    done = out / f"{name}.json"
    known = json.loads(done.read_text()) if done.is_file() else {}
    if known.get("of") == metric and (not heldout or "unseen" in known):
        return {key: value for key, value in known.items() if key != "of"}
    told = Job.load(job)
    plain: dict[str, Any] = {**told.model_dump(mode="json"), "name": name, "seed": seed, "fidelity": way}
    plain["executor"] |= {"kind": "inline"}
    plain["budget"] |= {"evaluations": evaluations or plain["budget"]["evaluations"]}
    run = Run(out / name) if (out / name).is_dir() else Run.create(Job.parse(plain, job.parent), out)
    with emulated(emulate) if emulate else nullcontext():
        run.search(heldout=heldout)
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
    if heldout:
        found["unseen"] = unseen(results)
    done.write_text(json.dumps({**found, "of": metric}, indent=1) + "\n")
    return found


def unseen(results: Results) -> float:
    """The hypervolume of the front by held-out losses, in the box of the anchors' held-out losses."""
    from optimizer.record.front import Front

    front = Front(len(results.objectives))
    for c in results.scored:
        if c.heldout:
            losses = np.array([o.sign * c.heldout[o.name].value for o in results.objectives])
            front.add(c.number, losses, anchor=c.is_anchor)
    return front.hypervolume


def _demo(out: Path) -> Path:
    from optimizer.jobs import demo

    folder = out / "digits"
    if not (folder / "job.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        demo.prepare(folder, DEMO, lambda what: print(what, file=sys.stderr))
    return folder / "job.yaml"


def _print(
    way: dict[str, Any] | None,
    names: Sequence[str],
    found: Sequence[dict[str, float]],
    plain: Sequence[dict[str, float]],
) -> None:
    ratios = [f["seconds"] / p["seconds"] for f, p in zip(found, plain, strict=True)]
    checked, within = sum(f["checked"] for f in found), sum(f["within"] for f in found)
    said = "all items" if way is None else " ".join(f"{k} {v}" for k, v in way.items())
    held = f"{within / checked:10.3f}" if checked else f"{'':10}"
    columns = [[f[name] for f in found] for name in names]
    print(said + "\n    " + " ".join(map(_mean, [*columns, ratios])) + held)


def _mean(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
    return f"{mean:7.4f} +- {spread:.4f}"


if __name__ == "__main__":
    main()
