"""What was asked and answered, in which order? A run's durable record: SQLite, one writer, any number of readers."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.evaluator import Measure
from optimizer import tables
from optimizer.answer import Answer, Failure
from optimizer.driver import Items, Question
from optimizer.errors import DiskFull, LedgerBusy, RunError
from optimizer.tables import BEFORE, SCHEMA, VERSION

log = logging.getLogger(__name__)

SEEN = ("calibration", "train")  # splits that a driver learns from


@dataclass(frozen=True)
class Ask:
    """The driver was asked for `requested` questions, and these are what it asked."""

    requested: int
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Tell:
    """The driver was told this answer."""

    answer: Answer


class Ledger:
    """The record of one run.

    An answer counts once `answered` has returned: its row is on the disk. Order is kept, so that replaying `history`
    into a fresh driver gives the state the run was in.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        row = self._one("SELECT max(event) FROM (SELECT event FROM questions UNION ALL SELECT event FROM answers)")
        self._event = -1 if row[0] is None else int(row[0])

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any]) -> Ledger:
        """A new ledger; `meta` is JSON-able. Raises RunError where there is one already."""
        if path.exists():
            raise RunError(f"{path} exists already; resume it, or give the run another name")
        connection = _connect(path, "rwc")
        with _faults(path):
            connection.executescript(f"PRAGMA page_size=8192; PRAGMA journal_mode=WAL; BEGIN; {SCHEMA}")
            rows = [("version", json.dumps(VERSION)), *((k, json.dumps(v)) for k, v in meta.items())]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            connection.execute("COMMIT")
        return cls(path, connection)

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Ledger:
        """An existing ledger. Raises RunError where there is none, or one of a version that cannot be read.

        One of version 2 is read as it is; opened for writing, it becomes one of this version first.
        """
        if not path.is_file():
            raise RunError(f"no ledger at {path}; name a run's folder, such as runs/NAME")
        try:
            # a folder that cannot be written to cannot hold SQLite's lock files: then nobody writes, and none is needed
            frozen = (
                readonly and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
            )
            ledger = cls(path, _connect(path, "ro&immutable=1" if frozen else "ro" if readonly else "rw"))
            version = ledger.meta("version")
        except (sqlite3.DatabaseError, KeyError) as error:
            raise RunError(f"{path} is not a ledger of mergeopt ({error}); restore it from a copy") from error
        if version not in (BEFORE, VERSION):
            raise RunError(
                f"{path} is a ledger of version {version}, this program reads {BEFORE} and {VERSION}; update mergeopt"
            )
        if version == BEFORE and not readonly:
            with ledger._transaction():
                tables.upgrade(ledger._db)
        return ledger

    def close(self) -> None:
        self._db.close()

    def meta(self, key: str) -> Any:
        """What `create` was given under this key."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Replace what is kept under a key that `create` was given."""
        with self._transaction():
            self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (json.dumps(value), key))

    def asked(self, requested: int, questions: Sequence[Question], recipes: Sequence[str]) -> None:
        """Record one ask of the driver (or, with requested 0, questions that no driver asked) and commit it."""
        event = self._event + 1
        now = time.time()
        rows = [
            (
                *(q.number, q.items.split, event, requested, _bytes(q.point), q.wants, q.stage, recipe, now),
                *(q.items.batch, q.items.draw),
            )
            for q, recipe in zip(questions, recipes, strict=True)
        ]
        with self._transaction():
            self._db.executemany("INSERT INTO questions VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
        self._event = event

    def answered(self, answers: Sequence[Answer]) -> list[Answer]:
        """Record answers in this order and commit them; returns those that are new.

        The same answer again is ignored; a different one to an answered question is refused and logged, the first kept.
        """
        new: list[Answer] = []
        with self._transaction():
            for answer in answers:
                if self._known(answer):
                    continue
                self._insert(answer, self._event + 1 + len(new))
                new.append(answer)
        self._event += len(new)
        return new

    def history(self) -> Iterator[Ask | Tell]:
        """Asks and tells of the driver in the order they happened: all but what was asked on held-out items."""
        answers = {a.number: a for split in SEEN for a in self.answers(split)}
        asks: dict[int, tuple[int, list[Question]]] = {}
        for event, requested, question in sorted(
            (row for split in SEEN for row in self._questions(split)), key=lambda row: (row[0], row[2].number)
        ):
            asks.setdefault(event, (requested, []))[1].append(question)
        tells = dict(self._db.execute("SELECT event, number FROM answers WHERE split != 'heldout'").fetchall())
        for event in sorted(asks.keys() | tells.keys()):
            if event in asks:
                yield Ask(asks[event][0], tuple(asks[event][1]))
            else:
                yield Tell(answers[tells[event]])

    def questions(self, split: str = "calibration") -> list[Question]:
        """Everything asked on a split, in the order asked."""
        return [question for _, _, question in self._questions(split)]

    def answers(self, split: str = "calibration") -> list[Answer]:
        """Everything answered on a split, in the order told, without per-item values (see `item_values`)."""
        measures: dict[int, dict[str, Measure]] = {}
        rows = self._db.execute("SELECT number, metric, value, stderr, count FROM measures WHERE split = ?", (split,))
        for number, metric, value, stderr, count in rows:
            measures.setdefault(number, {})[metric] = Measure(value, stderr, count)
        gradients = {
            number: np.frombuffer(data, dtype="<f8").reshape(rows, -1)
            for number, rows, data in self._db.execute(
                "SELECT number, rows, data FROM gradients WHERE split = ?", (split,)
            )
        }
        found = self._db.execute(
            "SELECT number, kind, reason, seconds, worker, attempts FROM answers WHERE split = ? ORDER BY event",
            (split,),
        )
        return [
            Answer(
                *(n, split, measures.get(n, {}), {}, None if kind is None else Failure(kind, reason)),
                *(seconds, worker, attempts, gradients.get(n)),
            )
            for n, kind, reason, seconds, worker, attempts in found
        ]

    def item_values(self, number: int, split: str) -> dict[str, np.ndarray]:
        """Per-item values of one candidate, float32 `(n,)` by qualified metric."""
        rows = self._db.execute(
            "SELECT metric, data FROM item_values WHERE number = ? AND split = ?", (number, split)
        ).fetchall()
        return {metric: np.frombuffer(data, dtype="<f4") for metric, data in rows}

    def recipes(self) -> dict[int, str]:
        """Recipe hash by candidate: what was scored on calibration items."""
        return dict(self._db.execute("SELECT number, recipe FROM questions WHERE split = 'calibration'").fetchall())

    def times(self, split: str = "calibration") -> list[tuple[int, float]]:
        """(candidate, wall-clock time of its answer in seconds since the epoch), for display only."""
        return self._db.execute("SELECT number, at FROM answers WHERE split = ? ORDER BY event", (split,)).fetchall()

    def pending(self, *splits: str) -> list[Question]:
        """What was asked on these splits (those that a driver learns from) and has no answer yet, by number."""
        found: list[Question] = []
        for split in splits or SEEN:
            done = {n for (n,) in self._db.execute("SELECT number FROM answers WHERE split = ?", (split,))}
            found += [q for q in self.questions(split) if q.number not in done]
        return sorted(found, key=lambda q: q.number)

    def _questions(self, split: str) -> Iterator[tuple[int, int, Question]]:
        rows = self._db.execute(
            "SELECT event, requested, number, point, wants, stage, batch, draw FROM questions"
            " WHERE split = ? ORDER BY event, number",
            (split,),
        )
        for event, requested, number, point, wants, stage, batch, draw in rows:
            items = Items(split, batch, draw)  # type: ignore[arg-type]
            yield event, requested, Question(number, np.frombuffer(point, dtype="<f8"), wants, items, stage)

    def _known(self, answer: Answer) -> bool:
        key = (answer.number, answer.split)
        row = self._one("SELECT kind, reason FROM answers WHERE number = ? AND split = ?", *key)
        if row is None:
            return False
        measures = {
            metric: Measure(value, stderr, count)
            for metric, value, stderr, count in self._db.execute(
                "SELECT metric, value, stderr, count FROM measures WHERE number = ? AND split = ?", key
            )
        }
        kept = self._one("SELECT rows, data FROM gradients WHERE number = ? AND split = ?", *key)
        gradient = None if kept is None else np.frombuffer(kept[1], dtype="<f8").reshape(kept[0], -1)
        first = Answer(*key, measures, failure=None if row[0] is None else Failure(*row), gradient=gradient)
        if not first.agrees(answer):
            log.warning("candidate %d was answered twice and differently; the first answer is kept", answer.number)
        return True

    def _insert(self, answer: Answer, event: int) -> None:
        key = (answer.number, answer.split)
        kind, reason = (answer.failure.kind, answer.failure.reason) if answer.failure else (None, None)
        row = (*key, event, kind, reason, answer.seconds, answer.worker, answer.attempts, time.time())
        self._db.execute("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?)", row)
        self._db.executemany(
            "INSERT INTO measures VALUES (?,?,?,?,?,?)",
            [(*key, metric, m.value, m.stderr, m.count) for metric, m in answer.measures.items()],
        )
        if answer.gradient is not None:
            kept = (*key, len(answer.gradient), _bytes(answer.gradient))
            self._db.execute("INSERT INTO gradients VALUES (?,?,?,?)", kept)
        self._db.executemany(
            "INSERT INTO item_values VALUES (?,?,?,?)",
            [(*key, metric, np.asarray(v, dtype="<f4").tobytes()) for metric, v in answer.per_item.items()],
        )

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self._db.execute(sql, parameters).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _faults(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _bytes(point: np.ndarray) -> bytes:
    return np.ascontiguousarray(point, dtype="<f8").tobytes()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with _faults(path):
        # isolation_level None: transactions are ours alone, begun and committed where the code says so
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """SQLite's complaints about the machine, in our words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise DiskFull(
                f"no room left on the disk of {path}; free some and resume: nothing answered is lost"
            ) from error
        if "locked" in text or "busy" in text:
            raise LedgerBusy(f"{path} was locked by another process for 30 s; close it there and resume") from error
        raise RunError(f"cannot use the ledger {path}: {text}") from error
