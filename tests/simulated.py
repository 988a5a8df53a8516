"""Workers without models: the executor's, the loop's and the benchmarks' stand-in, made from JSON as real ones are."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, training_loss
from optimizer.driver import Question
from optimizer.errors import RunError
from optimizer.executors.parts import shares


class Bowl:
    """Scores `task.accuracy` = 1 - |point - target|^2 / dim at each of `targets`; `seconds` is how long it takes.

    A worker takes `start_seconds` to make, and the first n of `deaths` (a file that counts them, n) die as they start.
    The first questions that are asked, of whichever worker, end as `troubles` has it: (a file that counts them, "kill"
    or "hang" for each). A point whose first coordinate lies above `fatal` kills its worker; above
    `hang` it never returns, asleep or (`busy`) in a C call that lets nobody else run; above `changed` the run cannot
    go on; above `bad` the candidate fails. With `eats`, (a coordinate, GB), a point above the coordinate takes so much
    memory; one below its square root, which is more, takes none with half the batch.

    Where gradients are wanted, the tasks' training losses are those squared distances, to targets that move a little
    from minibatch to minibatch and from one share of it to the next.
    """

    TARGET = "simulated:Bowl"

    def __init__(self, spec: str, name: str) -> None:
        data = json.loads(spec)
        if data.get("broken"):
            raise ValueError(f"a worker that cannot start: {data['broken']}")
        time.sleep(data.get("start_seconds", 0.0))
        log, count = data.get("deaths", ("", 0))
        if count and (not Path(log).exists() or Path(log).stat().st_size < count):
            with Path(log).open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        log, self.ends = data.get("troubles", ("", ()))
        self.log, self.name = Path(log), name
        self.targets: list[float] = data.get("targets", [0.25, 0.75])
        self.seconds: float = data.get("seconds", 0.0)
        self.fatal, self.hang, self.bad = (data.get(k, 2.0) for k in ("fatal", "hang", "bad"))
        self.eats: tuple[float, float] = data.get("eats", (2.0, 0.0))
        self.busy, self.changed = data.get("busy", False), data.get("changed", 2.0)

    def answer(self, question: Question, halved: bool = False) -> Answer:
        if question.model is not None:  # a model as it is: all of them are alike
            question = replace(question, point=np.full(1, 0.5))
        first = float(question.point[0])
        self._trouble()
        if first > self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if first > self.hang:
            pow(7, 10**10) if self.busy else time.sleep(3600)
        if first > self.changed:
            raise RunError("model 'spam' has changed")
        if first > self.eats[0] and not (halved and first < self.eats[0] ** 0.5):
            _held = [np.ones(100_000_000, dtype=np.uint8) for _ in range(int(self.eats[1] * 10))]
            time.sleep(60)
        if self.seconds:
            time.sleep(self.seconds)
        split = question.items.split
        if first > self.bad:
            failure = Failure("nonfinite", "loss is nan")
            return Answer(question.number, split, failure=failure, worker=self.name, part=question.part)
        if question.wants == "grams":
            tensors = np.arange(5.0)[question.part[0] :: question.part[1]]
            found = np.full((4, len(question.point)), np.sin(tensors).sum())
            return Answer(question.number, split, worker=self.name, gradient=found, part=question.part)
        if question.wants != "scores":
            return self._gradient(question)
        values = [1.0 - float(np.mean((question.point - t) ** 2)) for t in self.targets]
        measures = {f"task{i}.accuracy": Measure(v, 0.01, 100) for i, v in enumerate(values)}
        per_item = {k: np.full(4, m.value, dtype=np.float32) for k, m in measures.items()}
        return Answer(question.number, split, measures, per_item, seconds=self.seconds, worker=self.name)

    def _trouble(self) -> None:
        asked = self.log.stat().st_size if self.log.is_file() else 0
        if asked < len(self.ends):
            with self.log.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL) if self.ends[asked] == "kill" else time.sleep(3600)

    def _gradient(self, question: Question) -> Answer:
        one, count, dim = question.wants != "gradients", len(self.targets), len(question.point)
        gradient = np.zeros((1 if one else count, dim))
        measures: dict[str, Measure] = {}
        for task, share, of in shares(count, question.part):
            target = self.targets[task] + 0.01 * np.sin(question.items.draw + task + share)
            gradient[0 if one else task] += 2 * (question.point - target) / dim / of / (count if one else 1)
            loss = Measure(float(np.mean((question.point - target) ** 2)) / of, None, 1)
            before = measures.get(name := training_loss(f"task{task}"), Measure(0.0, None, 0))
            measures[name] = Measure(before.value + loss.value, None, before.count + 1)
        number, split = question.number, question.items.split
        return Answer(number, split, measures, worker=self.name, gradient=gradient, part=question.part)
