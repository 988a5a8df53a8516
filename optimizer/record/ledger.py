"""What was asked and answered, in which order? A run's durable record: one writer, any number of readers."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, Try
from optimizer.driver import Items, Question
from optimizer.errors import LedgerBusy, RunError
from optimizer.record import schema
from optimizer.record.folders import ELSEWHERE, found
from optimizer.record.schema import READ, VERSION
from optimizer.record.sqlite import BUSY, SQLite, locked
from optimizer.record.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
SEEN = ("calibration", "train")  # splits that a driver learns from
SPLITS = (*SEEN, "heldout")


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

    def __init__(self, path: Path, store: Store) -> None:
        self.path = path
        self._db = store
        self._event = self._last_event()

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any], server: str | None = None) -> Ledger:
        """A new ledger; `meta` is JSON-able. Raises RunError where there is one already.

        With `server`, the URL of a PostgreSQL database, the record lies there, and a small file beside `path` says so.
        """
        if found(path):
            raise RunError(f"{path} exists already; resume it, or give the run another name")
        rows = {key: json.dumps(value) for key, value in {"version": VERSION, **meta}.items()}
        if server is None:
            return cls(path, SQLite.create(path, rows))
        from optimizer.record.postgres import Postgres

        return cls(path, Postgres.create(path.with_suffix(ELSEWHERE), server, rows))

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Ledger:
        """An existing ledger. Raises RunError where there is none, or one of a version that cannot be read.

        One of an earlier version is read as it is; opened for writing, it becomes one of this version first. Raises
        LedgerBusy where somebody else keeps it locked.
        """
        if not found(path):
            raise RunError(f"no ledger at {path}; name a run's folder, such as runs/NAME")
        try:
            ledger = cls(path, _store(path, readonly))
            version = ledger.meta("version")
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            if hasattr(error, "exit_code"):
                raise
            if locked(error):
                raise LedgerBusy(BUSY.format(path)) from error
            raise RunError(f"{path} is not a ledger of mergeopt ({error}); restore it from a copy") from error
        if version not in READ:
            raise RunError(
                f"{path} is a ledger of version {version}, this program reads {READ[0]} to {VERSION}; update mergeopt"
            )
        if version != VERSION and readonly:
            schema.stand_in(ledger._db)
        elif version != VERSION:
            ledger._write(lambda: schema.upgrade(ledger._db, version))
        return ledger

    @classmethod
    def remove(cls, path: Path) -> None:
        """Forget the ledger that `path` names, on its server too. Nothing happens where there is none."""
        if path.with_suffix(ELSEWHERE).is_file():
            from optimizer.record.postgres import Postgres

            Postgres.remove(path.with_suffix(ELSEWHERE))
        path.unlink(missing_ok=True)

    def close(self) -> None:
        self._db.close()

    @property
    def started(self) -> bool:
        """Whether anything was asked."""
        return self._last_event() >= 0

    def check(self) -> list[str]:
        """What is wrong with how the record is stored, a line each, as far as its database can tell."""
        return self._db.check()

    def copy(self, path: Path) -> None:
        """The record as it is at one moment, as a new file of SQLite's at `path`, wherever it lies."""
        self._db.copy(path)

    def snapshot(self) -> AbstractContextManager[None]:
        """While this is open, all that is read is of one moment, whatever is written meanwhile."""
        return self._db.snapshot()

    def meta(self, key: str, *otherwise: Any) -> Any:
        """What is kept under this key, or `otherwise`; raises KeyError where there is neither."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        if row is None:
            if otherwise:
                return otherwise[0]
            raise KeyError(key)
        try:
            return json.loads(row[0])
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{self.path}: {key!r} there is not JSON ({error}); restore it from a copy") from error

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON-able value under a key, in place of what was kept there."""
        keep = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._write(lambda: self._db.execute(keep, (key, json.dumps(value))))

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
        self._write(lambda: self._db.executemany("INSERT INTO questions VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows))
        self._event = event

    def answered(self, answers: Sequence[Answer]) -> list[Answer]:
        """Record answers in this order and commit them; returns those that are new.

        The same answer again is ignored; a different one to an answered question is refused and logged, the first kept.
        """

        def record() -> list[Answer]:
            new: list[Answer] = []
            for answer in answers:
                if self._known(answer):
                    continue
                self._insert(answer, self._event + 1 + len(new))
                new.append(answer)
            return new

        new = self._write(record)
        self._event += len(new)
        return new

    def tried(self, number: int, split: str, tries: Sequence[Try], first: int) -> None:
        """Record attempts at a question that gave no answer, the `first`-th and on, and commit them.

        Those that are recorded already stay: a commit whose reply was lost is made again.
        """
        self._write(lambda: self._insert_tries((number, split), tries, first))

    def forget_failures(self) -> int:
        """Have what no driver heard of be pending again where a failure may not come again; says how many these are.

        These are references, and what was asked on held-out items. The failure becomes one of the question's attempts.
        """

        def forget() -> int:
            rows = self._db.execute(
                "SELECT number, split, worker, kind, reason FROM answers WHERE number < 0 OR split = 'heldout'"
            ).fetchall()
            failed = [(row[:2], Try(*row[2:])) for row in rows if row[3] and Failure(*row[3:]).passing]
            for key, told in failed:
                self._db.execute("DELETE FROM answers WHERE number = ? AND split = ?", key)
                (before,) = self._one("SELECT count(*) FROM tries WHERE number = ? AND split = ?", *key)
                self._insert_tries(key, [told], before + 1)
            return len(failed)

        return self._write(forget)

    def tries(self, split: str = "calibration") -> dict[int, list[Try]]:
        """The attempts that gave no answer, by question, in their order."""
        found: dict[int, list[Try]] = {}
        rows = self._db.execute(
            "SELECT number, worker, kind, reason FROM tries WHERE split = ? ORDER BY number, attempt", (split,)
        )
        for number, *said in rows:
            found.setdefault(number, []).append(Try(*said))
        return found

    def history(self) -> Iterator[Ask | Tell]:
        """Asks and tells of the driver in the order they happened: neither held-out items nor references."""
        answers = {a.number: a for split in SEEN for a in self.answers(split)}
        asks: dict[int, tuple[int, list[Question]]] = {}
        for event, requested, question in sorted(
            (row for split in SEEN for row in self._questions(split)), key=lambda row: (row[0], row[2].number)
        ):
            asks.setdefault(event, (requested, []))[1].append(question)
        told = "SELECT event, number FROM answers WHERE split != 'heldout' AND number >= 0"
        tells = dict(self._db.execute(told).fetchall())
        for event in sorted(asks.keys() | tells.keys()):
            if event in asks:
                yield Ask(asks[event][0], tuple(asks[event][1]))
            else:
                yield Tell(answers[tells[event]])

    def questions(self, split: str = "calibration", references: bool = False) -> list[Question]:
        """Everything asked on a split, of candidates or of references, in the order asked."""
        return [question for _, _, question in self._questions(split, references)]

    def answers(self, split: str = "calibration", references: bool = False) -> list[Answer]:
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
        copies = dict(self._db.execute("SELECT number, of FROM copies WHERE split = ?", (split,)).fetchall())
        found = self._db.execute(
            "SELECT number, kind, reason, seconds, worker, attempts FROM answers"
            " WHERE split = ? AND (number < 0) = ? ORDER BY event",
            (split, references),
        )
        return [
            Answer(
                *(n, split, measures.get(n, {}), {}, None if kind is None else Failure(kind, reason)),
                *(seconds, worker, attempts, gradients.get(n)),
                of=copies.get(n),
            )
            for n, kind, reason, seconds, worker, attempts in found
        ]

    def item_values(self, number: int, split: str) -> dict[str, np.ndarray]:
        """Per-item values of one candidate, float32 `(n,)` by qualified metric."""
        copy = self._one("SELECT of FROM copies WHERE number = ? AND split = ?", number, split)
        rows = self._db.execute(
            "SELECT metric, data FROM item_values WHERE number = ? AND split = ?", (copy[0] if copy else number, split)
        ).fetchall()
        return {metric: np.frombuffer(data, dtype="<f4") for metric, data in rows}

    def recipes(self) -> dict[int, str]:
        """Recipe hash by question, of candidates and gradients; of a reference its model's content hash."""
        return dict(self._db.execute("SELECT number, recipe FROM questions WHERE split != 'heldout'").fetchall())

    def times(self, split: str = "calibration") -> list[tuple[int, float]]:
        """(candidate, wall-clock time of its answer in seconds since the epoch), for display only."""
        return self._db.execute(
            "SELECT number, at FROM answers WHERE split = ? AND number >= 0 ORDER BY event", (split,)
        ).fetchall()

    def unanswered(self) -> list[Question]:
        """All that was asked and has no answer yet, on whatever items, and of references."""
        return [q for references in (True, False) for q in self.pending(*SPLITS, references=references)]

    def pending(self, *splits: str, references: bool = False) -> list[Question]:
        """What was asked on these splits (those that a driver learns from) and has no answer yet, by number."""
        found: list[Question] = []
        for split in splits or SEEN:
            done = {n for (n,) in self._db.execute("SELECT number FROM answers WHERE split = ?", (split,))}
            found += [q for q in self.questions(split, references) if q.number not in done]
        return sorted(found, key=lambda q: abs(q.number))

    def _questions(self, split: str, references: bool = False) -> Iterator[tuple[int, int, Question]]:
        rows = self._db.execute(
            "SELECT event, requested, number, point, wants, stage, batch, draw FROM questions"
            " WHERE split = ? AND (number < 0) = ? ORDER BY event, abs(number)",
            (split, references),
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
        (before,) = self._one("SELECT count(*) FROM tries WHERE number = ? AND split = ?", *key)
        self._insert_tries(key, answer.tries, before + 1)
        self._db.executemany(
            "INSERT INTO measures VALUES (?,?,?,?,?,?)",
            [(*key, metric, m.value, m.stderr, m.count) for metric, m in answer.measures.items()],
        )
        if answer.of is not None:
            self._db.execute("INSERT INTO copies VALUES (?,?,?)", (*key, answer.of))
        if answer.gradient is not None:
            kept = (*key, len(answer.gradient), _bytes(answer.gradient))
            self._db.execute("INSERT INTO gradients VALUES (?,?,?,?)", kept)
        self._db.executemany(
            "INSERT INTO item_values VALUES (?,?,?,?)",
            [(*key, metric, np.asarray(v, dtype="<f4").tobytes()) for metric, v in answer.per_item.items()],
        )

    def _insert_tries(self, key: tuple[int, str], tries: Sequence[Try], first: int) -> None:
        self._db.executemany(
            "INSERT INTO tries VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            [(*key, i, t.worker, t.kind, t.reason, time.time()) for i, t in enumerate(tries, first)],
        )

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self._db.execute(sql, parameters).fetchone()

    def _last_event(self) -> int:
        row = self._one("SELECT max(event) FROM (SELECT event FROM questions UNION ALL SELECT event FROM answers) AS e")
        return -1 if row[0] is None else int(row[0])

    def _write(self, work: Callable[[], T]) -> T:
        """What `work` returns, once it is on the disk; this process alone writes, so a later event can only be its."""
        return self._db.write(work, lambda: self._last_event() > self._event)


def _bytes(point: np.ndarray) -> bytes:
    return np.ascontiguousarray(point, dtype="<f8").tobytes()


def _store(path: Path, readonly: bool) -> Store:
    elsewhere = path.with_suffix(ELSEWHERE)
    if not elsewhere.is_file():
        return SQLite.open(path, readonly)
    from optimizer.record.postgres import Postgres

    return Postgres.open(elsewhere, readonly)
