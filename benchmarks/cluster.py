"""What do more machines give? Three simulated nodes with four workers each, against one worker, in candidates a second.

The evaluator costs a fixed time, so that what is lost is ours: asking, committing, sending, collecting. The real loop,
ledger and driver run; Ray's nodes are processes of this host (`ray.cluster_utils`). Throughput is measured while all
workers are ready, without the start. Bound: 0.9 of linear.

    python benchmarks/cluster.py [--nodes 3] [--each 4] [--seconds 0.5] [--candidates 240]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

TESTS = str(Path(__file__).parent.parent / "tests")
sys.path.insert(0, TESTS)
os.environ["PYTHONPATH"] = os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])

from optimizer.answer import Answer  # noqa: E402
from optimizer.drivers import find  # noqa: E402
from optimizer.drivers.anchors import Anchored  # noqa: E402
from optimizer.executors.cluster import RayExecutor  # noqa: E402
from optimizer.objectives import Objective  # noqa: E402
from optimizer.record.ledger import Ledger  # noqa: E402
from optimizer.searching.search import Search  # noqa: E402
from searchspaces import CoefficientSpace  # noqa: E402


class Ready(RayExecutor):
    """One that starts when all of its workers are ready, and not the first: what they do then is measured."""

    wanted = 1

    def start(self) -> None:
        super().start()
        while self.ready < self.wanted:
            self.collect(timeout=0.5)


def throughput(address: str, workers: int, seconds: float, candidates: int) -> float:
    """Candidates a second of a whole search on so many workers, once they are ready."""
    space = CoefficientSpace(tensors=[f"layers.{i}.w" for i in range(24)], experts=["a", "b"], granularity="layer")
    kind = find("sobol").load()
    driver = Anchored(space.domain, space.anchors(), kind(space.domain, 2, 0, kind.Options()), 0)
    executor = Ready("simulated:Bowl", json.dumps({"seconds": seconds}), workers, cpus=1, address=address)
    executor.wanted = workers
    objectives = (Objective("task0.accuracy", "max"), Objective("task1.accuracy", "max"))
    times: list[float] = []

    def note(search: Search, answer: Answer) -> None:
        if executor.slots == workers:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.db", {"done": False})
        Search(driver, executor, ledger, objectives, candidates, lambda point: space.decode(point).hash, note).run(
            heldout=False
        )
        executor.close()
        ledger.close()
    # how long from each answer to the one that is `workers` later, a round: no matter whether answers come in bursts
    rounds = [later - first for first, later in zip(times, times[workers:], strict=False)]
    return workers * len(rounds) / sum(rounds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--nodes", type=int, default=3)
    arguments.add_argument("--each", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=0.5)
    arguments.add_argument("--candidates", type=int, default=240)
    chosen = arguments.parse_args()
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(chosen.nodes):
        cluster.add_node(num_cpus=chosen.each)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    workers = chosen.nodes * chosen.each
    one = throughput(cluster.address, 1, chosen.seconds, max(20, chosen.candidates // workers))
    many = throughput(cluster.address, workers, chosen.seconds, chosen.candidates)
    ray.shutdown()
    cluster.shutdown()
    share = many / one / workers
    print(f"{chosen.nodes} nodes, {workers} workers, {chosen.seconds:g} s a candidate, {chosen.candidates} candidates")
    print(f"1 worker {one:.2f}/s, {workers} workers {many:.2f}/s: {many / one:.2f} times")
    print(f"of linear {share:.3f}   bound 0.9   {'PASS' if share >= 0.9 else 'FAIL'}")


if __name__ == "__main__":
    main()
