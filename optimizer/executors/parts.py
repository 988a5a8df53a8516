"""How do several workers share one gradient? By tasks and minibatches, in parts that no number of workers changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from evaluators.evaluator import Measure
from optimizer.answer import Answer
from optimizer.driver import Question
from optimizer.executors.executor import Around, Executor

SPLIT = {"gradient", "gradients", "grams"}
"""What can be summed over parts: of tasks and minibatches, or of tensors. A sum of cosines is no cosine of a sum, and
sizes are soon found."""


def shares(
    tasks: int,  # T
    part: tuple[int, int],  # i of n
) -> list[tuple[int, int, int]]:
    """What part i of n computes: (task, share j of s of its minibatch), a function of T and n alone.

    A task's minibatch is cut only where there are more parts than tasks.
    """
    index, count = part
    each = -(-count // tasks)  # shares a task
    units = [(task, j, each) for task in range(tasks) for j in range(each)]
    low, high = (len(units) * k // count for k in (index, index + 1))
    return units[low:high]


class Parts(Around):
    """An executor that cuts every gradient question in `parts`, runs those on another, and sums what comes back.

    Parts are added in their order, in float64: the sum is the same to the bit whatever ran where, and finished when.
    Where one part fails, the question has failed, for that reason, and those that wait for a worker are withdrawn.
    """

    def __init__(self, inner: Executor, parts: int) -> None:
        super().__init__(inner)
        self._parts = parts
        self._waiting: dict[int, dict[int, Answer]] = {}  # question -> its parts that are in

    def submit(self, question: Question) -> None:
        if question.wants not in SPLIT or self._parts == 1:
            self._inner.submit(question)
            return
        self._waiting[question.number] = {}
        for i in range(self._parts):
            self._inner.submit(replace(question, part=(i, self._parts)))

    def collect(self, timeout: float) -> list[Answer]:
        whole = (self._add(answer) for answer in self._inner.collect(timeout))
        return [answer for answer in whole if answer is not None]

    def withdraw(self, number: int) -> None:
        self._waiting.pop(number, None)
        super().withdraw(number)

    def close(self) -> None:
        self._waiting.clear()
        super().close()

    def _add(self, answer: Answer) -> Answer | None:
        """The whole answer, once its last part is in, or its first has failed."""
        if answer.part[1] == 1:
            return answer
        found = self._waiting.get(answer.number)
        if found is None:  # a part of a question that has failed already
            return None
        found[answer.part[0]] = answer
        if answer.failure is None and len(found) < answer.part[1]:
            return None
        del self._waiting[answer.number]
        if answer.failure is None:
            return _sum([found[i] for i in sorted(found)])
        self._inner.withdraw(answer.number)  # the others would be computed for nobody
        return replace(answer, part=(0, 1))


def _sum(answers: Sequence[Answer]) -> Answer:
    """One answer from all parts of a question, in their order."""
    gradient = None
    measures: dict[str, Measure] = {}
    for answer in answers:
        assert answer.gradient is not None  # a part without one has failed
        gradient = answer.gradient if gradient is None else gradient + answer.gradient
        for name, m in answer.measures.items():
            measures[name] = _added(measures[name], m) if name in measures else m
    return replace(
        answers[0],
        measures=measures,
        gradient=gradient,
        seconds=sum(a.seconds for a in answers),
        worker=", ".join(dict.fromkeys(a.worker for a in answers)),
        attempts=max(a.attempts for a in answers),
        tries=[t for a in answers for t in a.tries],
        part=(0, 1),
    )


def _added(a: Measure, b: Measure) -> Measure:
    """The measure of two shares of a task's minibatch, whose items are not the same: their errors add in squares."""
    stderr = None if a.stderr is None or b.stderr is None else math.hypot(a.stderr, b.stderr)
    return Measure(a.value + b.value, stderr, a.count + b.count)
