"""Do workers ever wait? Simulated workers with heavy-tailed evaluation times, driven by the real loop and ledger.

Workers are threads that sleep: log-normal times (sigma 1: the mean is 1.65 medians, one in a hundred takes ten), a
function of the question's number alone. Busy time is what the workers slept over what they could have, from the first
question to the last submission. Bound: 95 %. Beside it, the same times with a barrier per generation of all workers,
and how long the loop is in the driver for a candidate (ask and tell; what it thinks beside the loop is not in that,
what the loop waits for it is).

    python benchmarks/busy.py                                                        # CMA-ES, 64 workers
    OMP_NUM_THREADS=1 python benchmarks/busy.py --driver auto --workers 8 --median 1.2 --candidates 1000 --groups 50
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from overhead import search
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Driver, Outcome, Question, random_stream
from optimizer.record.ledger import Ledger
from searchspaces import CoefficientSpace

EXPERTS = ("a", "b")


def seconds(median: float, number: int) -> float:
    """What a worker takes for the question of this number."""
    return float(median * np.exp(random_stream(0, "time", number).normal()))


class Timed:
    """A driver, and how long the loop was in each of its asks and tells."""

    def __init__(self, inner: Driver) -> None:
        self._inner, self.seconds = inner, list[float]()

    @property
    def done(self) -> bool:
        return self._inner.done

    def ask(self, n: int) -> list[Question]:
        began = time.perf_counter()
        questions = self._inner.ask(n)
        self.seconds.append(time.perf_counter() - began)
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        self._inner.replay(n, questions)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        began = time.perf_counter()
        self._inner.tell(outcomes)
        self.seconds.append(time.perf_counter() - began)


class Sleepers:
    """Threads, each a worker that answers after its question's time."""

    busy = True

    def __init__(self, workers: int, median: float) -> None:
        self.slots = self.ready = workers
        self._median = median
        self.questions: queue.Queue[Question | None] = queue.Queue()
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.spans: list[tuple[float, float]] = []
        self.first = self.last = 0.0
        self._bowl = Bowl("{}", "sleeper")

    def start(self) -> None:
        for _ in range(self.slots):
            threading.Thread(target=self._work, daemon=True).start()

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
        for _ in range(self.slots):
            self.questions.put(None)

    def withdraw(self, number: int) -> None: ...
    def drain(self) -> None: ...

    def _work(self) -> None:
        while (question := self.questions.get()) is not None:
            began = time.perf_counter()
            time.sleep(seconds(self._median, question.number))
            # only what falls before the last submission counts: afterwards there is nothing left to give out
            self.spans.append((began, time.perf_counter()))
            self.answers.put(self._bowl.answer(question))


def main() -> None:
    """One search, and how busy its workers were."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--candidates", type=int, default=3000)
    arguments.add_argument("--driver", default="cma")
    arguments.add_argument("--workers", type=int, default=64)
    arguments.add_argument("--median", type=float, default=0.6, help="seconds of an evaluation")
    arguments.add_argument("--groups", type=int, default=24, help="of two coefficients each")
    chosen = arguments.parse_args()
    tensors = [f"layers.{i}.w" for i in range(chosen.groups)]
    space = CoefficientSpace(tensors=tensors, experts=EXPERTS, granularity="layer")
    executor = Sleepers(chosen.workers, chosen.median)
    timed: list[Timed] = []

    def wrapped(driver: Driver) -> Driver:
        timed.append(Timed(driver))
        return timed[0]

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.db", {})
        # held-out items are not what is measured
        search(space, chosen.driver, executor, ledger, chosen.candidates, wrap=wrapped).run(heldout=False)
        executor.close()
    span = executor.last - executor.first
    slept = sum(min(end, executor.last) - began for began, end in executor.spans if began < executor.last)
    busy = slept / (chosen.workers * span)
    times = np.array([seconds(chosen.median, i) for i in range(chosen.candidates // chosen.workers * chosen.workers)])
    times = times.reshape(-1, chosen.workers)
    barrier = times.sum() / (chosen.workers * times.max(axis=1).sum())
    print(f"driver {chosen.driver}, {len(space.domain.names)} coefficients, {chosen.candidates} candidates, ", end="")
    print(f"{chosen.workers} workers, {span:.0f} s")
    print(f"busy {100 * busy:.1f} %   bound 95 %   {'PASS' if busy >= 0.95 else 'FAIL'}")
    print(f"with a barrier per generation of {chosen.workers} (computed): {100 * barrier:.1f} %")
    spent = 1e3 * np.array(timed[0].seconds)
    each, late = spent.sum() / chosen.candidates, spent[-len(spent) // 10 :].sum() / (chosen.candidates / 10)
    print(f"in ask and tell {each:.2f} ms a candidate, of the last tenth {late:.2f}; the longest {spent.max():.0f} ms")


if __name__ == "__main__":
    main()
