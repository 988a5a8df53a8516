"""How do questions and answers lie in a ledger's tables? As rows, of which the same values come back to the bit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, Told, Try
from optimizer.driver import Items, Question
from optimizer.record.store import Store

Key = tuple[int, str]  # number and split


def insert_questions(
    store: Store, event: int, requested: int, questions: Sequence[Question], recipes: Sequence[str]
) -> None:
    """What was asked at one place in the order of asks and tells."""
    now = time.time()
    rows = [
        (
            *(q.number, q.items.split, event, requested, _bytes(q.point), q.wants, q.stage, recipe, now),
            *(q.items.batch, q.items.draw),
        )
        for q, recipe in zip(questions, recipes, strict=True)
    ]
    store.executemany("INSERT INTO questions VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)


def questions(store: Store, split: str, references: bool = False) -> Iterator[tuple[int, int, Question]]:
    """Place, how many were wanted there, and question, of candidates or of references, in the order asked."""
    rows = store.execute(
        "SELECT event, requested, number, point, wants, stage, batch, draw FROM questions"
        " WHERE split = ? AND (number < 0) = ? ORDER BY event, abs(number)",
        (split, references),
    )
    for event, requested, number, point, wants, stage, batch, draw in rows:
        items = Items(split, batch, draw)  # type: ignore[arg-type]
        yield event, requested, Question(number, np.frombuffer(point, dtype="<f8"), wants, items, stage)


def numbered(store: Store, first: int, last: int) -> dict[int, tuple[Question, str]]:
    """Questions on calibration items, and their recipes' hashes, by number: those from `first` to `last`."""
    rows = store.execute(
        "SELECT number, point, wants, stage, recipe FROM questions WHERE number BETWEEN ? AND ? AND split = ?",
        (first, last, "calibration"),
    )
    return {n: (Question(n, np.frombuffer(p, dtype="<f8"), wants, stage=stage), r) for n, p, wants, stage, r in rows}


def insert_answer(store: Store, answer: Answer, event: int) -> None:
    """An answer, at its place in the order of asks and tells; its attempts come after those that are recorded."""
    key = (answer.number, answer.split)
    kind, reason = (answer.failure.kind, answer.failure.reason) if answer.failure else (None, None)
    row = (*key, event, kind, reason, answer.seconds, answer.worker, answer.attempts, time.time())
    store.execute("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?)", row)
    insert_tries(store, key, answer.tries)
    store.executemany(
        "INSERT INTO measures VALUES (?,?,?,?,?,?)",
        [(*key, metric, m.value, m.stderr, m.count) for metric, m in answer.measures.items()],
    )
    if answer.of is not None:
        store.execute("INSERT INTO copies VALUES (?,?,?)", (*key, answer.of))
    if not answer.whole:
        store.execute("INSERT INTO shares VALUES (?,?,?)", (*key, answer.share))
    store.executemany(
        "INSERT INTO estimates VALUES (?,?,?,?,?,?)",
        [(*key, told.share, metric, *said) for told in answer.told for metric, said in told.measures.items()],
    )
    if answer.gradient is not None:
        kept = (*key, len(answer.gradient), _bytes(answer.gradient))
        store.execute("INSERT INTO gradients VALUES (?,?,?,?)", kept)
    store.executemany(
        "INSERT INTO item_values VALUES (?,?,?,?)",
        [(*key, metric, np.asarray(v, dtype="<f4").tobytes()) for metric, v in answer.per_item.items()],
    )


def insert_tries(store: Store, key: Key, tries: Sequence[Try], first: int | None = None) -> None:
    """Attempts, the `first`-th and on, or after those that are recorded; one that is recorded already stays."""
    if first is None:
        (before,) = store.execute("SELECT count(*) FROM tries WHERE number = ? AND split = ?", key).fetchone()
        first = before + 1
    store.executemany(
        "INSERT INTO tries VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
        [(*key, i, t.worker, t.kind, t.reason, time.time()) for i, t in enumerate(tries, first)],
    )


def answers(store: Store, split: str, references: bool, after: int = -1) -> list[Answer]:
    """Of candidates or of references, in the order told, without per-item values: those told after a place."""
    return _answers(store, "split = ? AND (number < 0) = ? AND event > ?", split, references, after)


def answer(store: Store, number: int, split: str) -> Answer | None:
    """The answer to one question, without per-item values; None where there is none."""
    return next(iter(_answers(store, "number = ? AND split = ?", number, split)), None)


def _answers(store: Store, where: str, *values: object) -> list[Answer]:
    # first: of what is answered meanwhile, no half is seen
    told = store.execute(
        f"SELECT number, split, kind, reason, seconds, worker, attempts FROM answers WHERE {where} ORDER BY event",
        values,
    ).fetchall()
    if not told:
        return []
    here = "WHERE split = ? AND number BETWEEN ? AND ?"
    among = (told[0][1], min(row[0] for row in told), max(row[0] for row in told))
    measures: dict[int, dict[str, Measure]] = {}
    for number, metric, *measure in store.execute(
        f"SELECT number, metric, value, stderr, count FROM measures {here}", among
    ):
        measures.setdefault(number, {})[metric] = Measure(*measure)
    gradients = {
        number: np.frombuffer(data, dtype="<f8").reshape(rows, -1)
        for number, rows, data in store.execute(f"SELECT number, rows, data FROM gradients {here}", among)
    }
    copies = dict(store.execute(f"SELECT number, of FROM copies {here}", among).fetchall())
    shares = dict(store.execute(f"SELECT number, share FROM shares {here}", among).fetchall())
    steps = _steps(store, here, among)
    return [
        Answer(
            *(n, split, measures.get(n, {}), {}, None if kind is None else Failure(kind, reason)),
            *(seconds, worker, attempts, gradients.get(n)),
            of=copies.get(n),
            share=shares.get(n, 1.0),
            told=steps.get(n, ()),
        )
        for n, split, kind, reason, seconds, worker, attempts in told
    ]


def _steps(store: Store, here: str, among: tuple[object, ...]) -> dict[int, list[Told]]:
    """What was estimated of candidates on the way, by number, in the order of shares."""
    found: dict[int, dict[float, dict[str, tuple[float, float]]]] = {}
    for number, share, metric, *said in store.execute(
        f"SELECT number, share, metric, value, stderr FROM estimates {here} ORDER BY number, share", among
    ):
        found.setdefault(number, {}).setdefault(share, {})[metric] = (said[0], said[1])
    return {n: [Told(share, measures) for share, measures in steps.items()] for n, steps in found.items()}


def _bytes(values: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()
