"""Does a run survive everything at once? 300 candidates on a Ray cluster of simulated nodes, while a killer ends a
random worker, node or the driver every few seconds; then every question and answer is compared with an undisturbed run.

The evaluator is a sleep and a sum, a function of the point alone. The undisturbed run is made in this process. With
`--driver cma` there must be one worker: with more, which question comes next depends on which answer came first, killer
or none. For the same reason there are no anchors with more than one. A strike comes a random time (mean `--every`
seconds) after the one before it, and not before an answer has come since: a machine on which a start takes longer than
that would never get anywhere.

Bound: not one difference. Exit code 1 where there is one.

    python benchmarks/soak.py [--seeds 20] [--candidates 300] [--every 4] [--workers 4] [--nodes 2] [--driver sobol]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))

from simulated import Bowl

from optimizer.driver import Driver
from optimizer.drivers import find
from optimizer.drivers.anchors import Anchored
from optimizer.drivers.scalarised import Scalarised
from optimizer.executors.executor import Executor, Inline
from optimizer.objectives import Objective
from optimizer.record.ledger import Ledger
from optimizer.record.spool import Spool
from optimizer.searching.search import Search
from searchspaces import CoefficientSpace

os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])  # for the workers
OBJECTIVES = (Objective("task0.accuracy", "max"), Objective("task1.accuracy", "max"))
STALLED_SECONDS = 600  # without an answer


def driver(name: str, space: CoefficientSpace, seed: int, anchors: bool) -> Driver:
    """The named driver for two objectives, as a job would make it."""
    entry = find(name)
    kind = entry.load()
    inner: Any
    if entry.objectives == "one":
        inner = Scalarised(space.domain, 2, seed, lambda s: kind(space.domain, 1, s, kind.Options()))
    else:
        inner = kind(space.domain, 2, seed, kind.Options())
    # what fills a wait between anchors and driver depends on who is waited for
    return Anchored(space.domain, space.anchors(), inner, seed) if anchors else inner


def drive(folder: Path, options: argparse.Namespace, seed: int, executor: Executor) -> Search:
    """Make or resume the search of a folder, and go on to its end."""
    path = folder / "ledger.db"
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {})
    space = CoefficientSpace(["a.0.w", "a.1.w", "a.2.w"], ("one", "two"), granularity="tensor")
    search = Search(
        *(driver(options.driver, space, seed, options.workers == 1), executor, ledger, OBJECTIVES, options.candidates),
        lambda point: space.decode(point).hash,
        spool=Spool(folder / "spool.jsonl"),
    )
    search.run()
    ledger.close()
    return search


def on_ray(options: argparse.Namespace) -> Executor:
    from optimizer.executors.cluster import RayExecutor

    spec = json.dumps({"seconds": options.seconds})
    return RayExecutor(Bowl.TARGET, spec, options.workers, cpus=1, address=options.address)


def content(folder: Path) -> dict[str, Any]:
    """What the ledger says, by question: points, scores, failures. No times, no workers."""
    ledger = Ledger.open(folder / "ledger.db", readonly=True)
    found: dict[str, Any] = {}
    for split in ("calibration", "heldout"):
        for q in ledger.questions(split):
            found[f"question {q.number} {split}"] = (q.point.tobytes(), q.wants, q.stage)
        for a in ledger.answers(split):
            found[f"answer {a.number} {split}"] = (dict(a.measures), a.failure)
            if a.failure is None:
                values = ledger.item_values(a.number, split)
                found[f"items {a.number} {split}"] = {name: v.tobytes() for name, v in values.items()}
    ledger.close()
    return found


def count(folder: Path) -> int:
    try:
        with sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True) as raw:
            return int(raw.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


class Killer:
    """Ends a random worker, node or the driver."""

    def __init__(self, cluster: Any, options: argparse.Namespace, seed: int) -> None:
        self.random, self.options, self.cluster = random.Random(seed), options, cluster
        self.struck: Counter[str] = Counter()
        share = -(-options.workers // options.nodes)
        self.nodes = [cluster.add_node(num_cpus=share) for _ in range(options.nodes)]
        self.share = share

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        what = self.random.choice(["worker", "worker", "node", "driver"])
        if what == "driver":
            process.kill()
            process.wait()
        elif what == "node":
            self.cluster.remove_node(self.nodes.pop(self.random.randrange(len(self.nodes))), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=self.share))
        else:
            there = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
            if not there:
                return
            os.kill(self.random.choice(there).pid, signal.SIGKILL)
        self.struck[what] += 1


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "_Remote" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def disturbed(folder: Path, options: argparse.Namespace, seed: int) -> tuple[Counter[str], float]:
    """Run to the end under the killer; what was struck, and how long it took."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        killer = Killer(cluster, options, seed)
        command = [sys.executable, __file__, "--drive", str(folder), "--address", cluster.address, "--seed", str(seed)]
        for name in ("candidates", "workers", "driver", "seconds"):
            command += [f"--{name}", str(getattr(options, name))]
        start = last = time.monotonic()
        before, next_strike = 0, killer.random.expovariate(1 / options.every)
        log = (folder / "driver.log").open("ab")  # what Ray says of nodes and workers that are gone
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while (code := process.poll()) != 0:
            if code is not None:  # killed, or it gave up because its workers kept dying: both are resumed
                killer.struck[f"ended with {code}"] += 1
                process = subprocess.Popen(command, stdout=log, stderr=log)
            time.sleep(0.1)
            answered, now = count(folder), time.monotonic()
            if answered > before and now - last > next_strike:
                killer.strike(process)
                before, last, next_strike = answered, now, killer.random.expovariate(1 / options.every)
            elif now - last > STALLED_SECONDS:
                process.kill()
                said = (folder / "driver.log").read_text(errors="replace")[-4000:]
                raise RuntimeError(f"no answer for {STALLED_SECONDS} s after {dict(killer.struck)}:\n{said}")
        return killer.struck, time.monotonic() - start
    finally:
        cluster.shutdown()


def soak(options: argparse.Namespace, seed: int) -> bool:
    """One seed: whether nothing differs."""
    with tempfile.TemporaryDirectory() as home:
        calm, rough = Path(home) / "calm", Path(home) / "rough"
        calm.mkdir()
        rough.mkdir()
        front = drive(calm, options, seed, Inline(Bowl.TARGET, "{}")).front
        struck, seconds = disturbed(rough, options, seed)
        again = drive(rough, options, seed, Inline(Bowl.TARGET, "{}")).front  # nothing is left to ask: a replay
        a, b = content(calm), content(rough)
        differ = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        # with several workers answers come in another order, and the front is a set
        same = not differ and sorted(front.nondominated) == sorted(again.nondominated)
        same = same and math.isclose(front.hypervolume, again.hypervolume, rel_tol=1e-12)
        tries = Ledger.open(rough / "ledger.db", readonly=True)
        retried = sum(len(t) for split in ("calibration", "heldout") for t in tries.tries(split).values())
        tries.close()
        said = ", ".join(f"{n} {what}" for what, n in sorted(struck.items())) or "nothing"
        first = f" (the first: {differ[0]})" if differ else ""
        print(
            f"seed {seed}: {seconds:.0f} s, struck: {said}; {retried} attempts retried; {len(b)} rows, {len(differ)} "
            f"differ{first}; front of {len(again.nondominated)}: {'the same' if same else 'NOT the same'}",
            flush=True,
        )
        return same


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("seeds", 20), ("candidates", 300), ("workers", 4), ("nodes", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--every", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one candidate")
    parser.add_argument("--driver", default="sobol")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="local", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive is not None:
        executor = on_ray(options)
        drive(options.drive, options, options.seed, executor)
        executor.close()
        return
    if options.driver not in ("sobol", "random") and options.workers > 1:
        parser.error(f"--driver {options.driver} learns from the order of answers: it needs --workers 1")
    well = [soak(options, seed) for seed in range(options.seed, options.seed + options.seeds)]
    print(f"{sum(well)} of {len(well)} seeds ended as the undisturbed run did")
    raise SystemExit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
