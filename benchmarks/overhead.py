"""What does a candidate cost beside its evaluation? 10,000 through Ray in 1,000 dimensions; then the ledger replayed.

The evaluator returns at once, so all that is left is ours: ask, decode, hash, ship, commit, tell, front. Bound: 10 ms a
candidate; the ledger of 10,000 opens and replays in 3 s or less.

    python benchmarks/overhead.py [--candidates 10000] [--driver sobol] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])

from optimizer.answer import Answer  # noqa: E402
from optimizer.driver import Driver  # noqa: E402
from optimizer.drivers import find  # noqa: E402
from optimizer.drivers.anchors import Anchored  # noqa: E402
from optimizer.drivers.scalarised import Scalarised  # noqa: E402
from optimizer.executors.cluster import RayExecutor  # noqa: E402
from optimizer.executors.executor import Executor  # noqa: E402
from optimizer.objectives import Objective  # noqa: E402
from optimizer.record.ledger import Ledger  # noqa: E402
from optimizer.searching.search import Search  # noqa: E402
from searchspaces import CoefficientSpace  # noqa: E402

GROUPS, EXPERTS = 250, 4
OBJECTIVES = (Objective("task0.accuracy", "max"), Objective("task1.accuracy", "max"))


def search(
    space: CoefficientSpace,
    name: str,
    executor: Executor,
    ledger: Ledger,
    count: int,
    on_answer: Callable[[Search, Any], None] = lambda search, answer: None,
    wrap: Callable[[Driver], Driver] = lambda driver: driver,
) -> Search:
    """A search of two objectives as a run makes it: anchors first, preferences for a driver of one objective."""
    entry = find(name)
    kind = entry.load()
    inner: Driver
    if entry.objectives == "one":
        inner = Scalarised(space.domain, 2, 0, lambda seed: kind(space.domain, 1, seed, kind.Options()))
    else:
        inner = kind(space.domain, 2, 0, kind.Options())
    driver = wrap(Anchored(space.domain, space.anchors(), inner, 0))
    return Search(driver, executor, ledger, OBJECTIVES, count, lambda point: space.decode(point).hash, on_answer)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--candidates", type=int, default=10_000)
    arguments.add_argument("--driver", default="sobol")
    arguments.add_argument("--workers", type=int, default=2)
    chosen = arguments.parse_args()
    space = CoefficientSpace(
        tensors=[f"model.layers.{i}.weight" for i in range(GROUPS)],
        experts=[f"e{k}" for k in range(EXPERTS)],
        granularity="tensor",
    )
    spec = json.dumps({"targets": [0.25, 0.75]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        ledger = Ledger.create(path, {})
        executor = RayExecutor("simulated:Bowl", spec, chosen.workers, cpus=0.5)
        begun: list[float] = []

        def note(search: Search, answer: Answer) -> None:
            begun.append(time.perf_counter())

        running = search(space, chosen.driver, executor, ledger, chosen.candidates, note)
        running.run()
        executor.close()
        ledger.close()
        each = (begun[chosen.candidates - 1] - begun[0]) / (chosen.candidates - 1)
        started = time.perf_counter()
        again = search(space, chosen.driver, _Idle(), Ledger.open(path), chosen.candidates)
        again.replay()
        replay = time.perf_counter() - started
        size = path.stat().st_size
    assert again.answered == chosen.candidates and again.front.nondominated == running.front.nondominated
    dims, count = len(space.domain.names), chosen.candidates
    print(f"driver {chosen.driver}, {dims} dimensions, {count} candidates, {chosen.workers} workers")
    print(f"per candidate  {1e3 * each:7.2f} ms   bound 10 ms   {'PASS' if each <= 0.010 else 'FAIL'}")
    print(f"replay         {replay:7.2f} s    bound  3 s    {'PASS' if replay <= 3 else 'FAIL'}")
    print(f"ledger         {size / 1e6:7.0f} MB")


class _Idle:
    """An executor that is never used: a replay asks nobody."""

    slots, ready, busy = 1, 1, False

    def start(self) -> None: ...
    def submit(self, question: object) -> None: ...
    def collect(self, timeout: float) -> list[Answer]:
        return []

    def withdraw(self, number: int) -> None: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...


if __name__ == "__main__":
    main()
