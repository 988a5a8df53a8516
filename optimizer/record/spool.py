"""Where do answers wait that the ledger could not take? A file of lines beside it, replayed at the next start."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, FailureKind, Told, Try
from optimizer.driver import Question
from optimizer.errors import RunError
from optimizer.record import files

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 28  # of a line: scores of every item of one answer are a few MB
MOST_TORN = 100  # a kill tears one


class Spool:
    """Answers on the disk, one JSON object a line. None has counted yet: that is the ledger's to say."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, answers: Sequence[Answer]) -> None:
        """Append answers, and sync them to the disk."""
        if not answers:
            return
        with files.opened(self.path, append=True) as file:
            file.writelines(json.dumps(_plain(answer)).encode() + b"\n" for answer in answers)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[Answer]:
        """The answers that wait, in their order; a line that was torn by a kill is left out, and logged.

        One line at a time is in memory. Raises RunError for what is no spool: a link, no file, nothing but torn lines.
        """
        torn = 0
        for number, line in enumerate(self._lines(), 1):
            try:
                found = _answer(json.loads(line))
            except Exception as error:  # somebody may have written anything into it
                log.warning("%s: line %d is torn (%s); that question is asked again", self.path, number, error)
                torn += 1
                if torn > MOST_TORN:
                    break
            else:
                yield found
        if torn > MOST_TORN:
            raise RunError(f"{self.path}: over {MOST_TORN} lines are no answers; move it away: they are asked again")

    def _lines(self) -> Iterator[bytes]:
        try:
            file = files.opened(self.path)
        except FileNotFoundError:
            return
        with file:
            while line := file.readline(MOST_BYTES + 1):
                if len(line) > MOST_BYTES:
                    raise RunError(f"{self.path}: a line of over {MOST_BYTES} bytes is no answer; move the file away")
                yield line.rstrip(b"\r\n")

    def fitting(self, unanswered: Sequence[Question], metrics: Sequence[str]) -> list[Answer]:
        """Those of the answers that wait which these questions are after; others are of another ledger, and logged.

        Scores have all of `metrics`, and gradients are of the point: what is not would stop every replay.
        """
        asked: dict[tuple[int, str], Question] = {(q.number, q.items.split): q for q in unanswered}
        found = []
        for answer in self.read():
            question = asked.get((answer.number, answer.split))
            if question is not None and _fits(answer, question, metrics):
                found.append(answer)
            else:
                log.warning(
                    "%s: nobody waits for this answer to question %d (%s); it is left out",
                    *(self.path, answer.number, answer.split),
                )
        return found

    def clear(self) -> None:
        """Forget them: the ledger has them now."""
        self.path.unlink(missing_ok=True)


def _fits(answer: Answer, question: Question, metrics: Sequence[str]) -> bool:
    if answer.failure is not None:
        return True
    if question.wants == "scores":
        return all(name in answer.measures for name in metrics)
    return answer.gradient is not None and answer.gradient.shape[1] == len(question.point)


def _plain(a: Answer) -> dict[str, Any]:
    gradient = None if a.gradient is None else [len(a.gradient), _text(np.asarray(a.gradient, dtype="<f8"))]
    return {
        "number": a.number,
        "split": a.split,
        "measures": {name: [m.value, m.stderr, m.count] for name, m in a.measures.items()},
        "per_item": {name: _text(np.asarray(values, dtype="<f4")) for name, values in a.per_item.items()},
        "failure": None if a.failure is None else [a.failure.kind, a.failure.reason],
        "seconds": a.seconds,
        "worker": a.worker,
        "attempts": a.attempts,
        "gradient": gradient,
        "part": a.part,
        "tries": [asdict(t) for t in a.tries],
        "of": a.of,
        "share": a.share,
        "told": [[t.share, dict(t.measures)] for t in a.told],
    }


def _answer(said: dict[str, Any]) -> Answer:
    gradient = None
    if said["gradient"] is not None:
        rows, text = said["gradient"]
        gradient = np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(rows, -1)
    measures = {name: Measure(*values) for name, values in said["measures"].items()}
    values = [
        *(v for m in measures.values() for v in (m.value, m.stderr or 0.0)),
        *([] if gradient is None else gradient),
    ]
    if not all(np.isfinite(v).all() for v in values):
        raise ValueError("a value is not finite")
    return Answer(
        said["number"],
        said["split"],
        measures,
        {name: np.frombuffer(base64.b64decode(text), dtype="<f4") for name, text in said["per_item"].items()},
        None if said["failure"] is None else _failure(*said["failure"]),
        said["seconds"],
        said["worker"],
        said["attempts"],
        gradient,
        tuple(said.get("part", (0, 1))),
        [Try(**t) for t in said["tries"]],
        said.get("of"),
        float(said.get("share", 1.0)),
        [Told(share, {n: (v, e) for n, (v, e) in found.items()}) for share, found in said.get("told", ())],
    )


def _failure(kind: FailureKind, reason: str) -> Failure:
    if kind not in get_args(FailureKind):
        raise ValueError(f"{kind!r} is no kind of failure")
    return Failure(kind, reason)


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
