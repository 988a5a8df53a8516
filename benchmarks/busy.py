"""Do workers ever wait? 64 simulated workers with heavy-tailed evaluation times, driven by the real loop and ledger.

Workers are threads that sleep: log-normal times (median 0.6 s, sigma 1: the mean is 1 s, one in a hundred takes 6 s), a
function of the question's number alone. Busy time is what the workers slept over what they could have, from the first
question to the last submission. Bound: 95 %. Beside it, the same times with a barrier per generation of 64.

    python benchmarks/busy.py [--candidates 3000] [--driver cma]
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from overhead import search
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Question, random_stream
from optimizer.record.ledger import Ledger
from searchspaces import CoefficientSpace

WORKERS = 64


def seconds(number: int) -> float:
    return float(0.6 * np.exp(random_stream(0, "time", number).normal()))


class Sleepers:
    """64 threads, each a worker that answers after its question's time."""

    slots, ready, busy = WORKERS, WORKERS, True

    def __init__(self) -> None:
        self.questions: queue.Queue[Question | None] = queue.Queue()
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.spans: list[tuple[float, float]] = []
        self.first = self.last = 0.0
        self._bowl = Bowl("{}", "sleeper")

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def submit(self, question: Question) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.questions.put(question)

    def collect(self, timeout: float) -> list[Answer]:
        try:
            found = [self.answers.get(timeout=timeout)]
        except queue.Empty:
            return []
        while not self.answers.empty():
            found.append(self.answers.get_nowait())
        return found

    def close(self) -> None:
        for _ in range(WORKERS):
            self.questions.put(None)

    def _work(self) -> None:
        while (question := self.questions.get()) is not None:
            began = time.perf_counter()
            time.sleep(seconds(question.number))
            # only what falls before the last submission counts: afterwards there is nothing left to give out
            self.spans.append((began, time.perf_counter()))
            self.answers.put(self._bowl.answer(question))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--candidates", type=int, default=3000)
    arguments.add_argument("--driver", default="cma")
    chosen = arguments.parse_args()
    space = CoefficientSpace(tensors=[f"layers.{i}.w" for i in range(24)], experts=["a", "b"], granularity="layer")
    executor = Sleepers()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.db", {})
        # held-out items are not what is measured
        search(space, chosen.driver, executor, ledger, chosen.candidates).run(heldout=False)
        executor.close()
    span = executor.last - executor.first
    slept = sum(min(end, executor.last) - began for began, end in executor.spans if began < executor.last)
    busy = slept / (WORKERS * span)
    times = np.array([seconds(i) for i in range(chosen.candidates // WORKERS * WORKERS)]).reshape(-1, WORKERS)
    barrier = times.sum() / (WORKERS * times.max(axis=1).sum())
    print(f"driver {chosen.driver}, {chosen.candidates} candidates, {WORKERS} workers, {span:.0f} s")
    print(f"busy {100 * busy:.1f} %   bound 95 %   {'PASS' if busy >= 0.95 else 'FAIL'}")
    print(f"with a barrier per generation of {WORKERS} (computed): {100 * barrier:.1f} %")


if __name__ == "__main__":
    main()
