"""What was asked and answered, in which order? A run's durable record: one writer, any number of readers."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from optimizer.answer import Answer, Failure, Try
from optimizer.driver import Question
from optimizer.errors import LedgerBusy, RunError
from optimizer.record import rows, schema
from optimizer.record.folders import ELSEWHERE, found
from optimizer.record.schema import READ, VERSION
from optimizer.record.sqlite import BUSY, SQLite, locked
from optimizer.record.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
SEEN = ("calibration", "train")  # splits that a driver learns from
SPLITS = (*SEEN, "heldout")


@dataclass(frozen=True)
class Mark:
    """What was told up to a place in the order of asks and tells: another one there means that it was taken back."""

    event: int = -1
    answers: int = 0
    times: int = 0  # of the answers, added up, in milliseconds


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

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any], server: str | None = None) -> Ledger:
        """A new ledger; `meta` is JSON-able. Raises RunError where there is one already.

        With `server`, the URL of a PostgreSQL database, the record lies there, and a small file beside `path` says so.
        """
        if found(path):
            raise RunError(f"{path} exists already; resume it, or give the run another name")
        said = {key: json.dumps(value) for key, value in {"version": VERSION, **meta}.items()}
        if server is None:
            return cls(path, SQLite.create(path, said))
        from optimizer.record.postgres import Postgres

        return cls(path, Postgres.create(path.with_suffix(ELSEWHERE), server, said))

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Ledger:
        """An existing ledger. Raises RunError where there is none, or one of a version that cannot be read.

        One of an earlier version is read as it is; opened for writing, it becomes one of this version first. Raises
        LedgerBusy where somebody else keeps it locked.
        """
        if not found(path):
            raise RunError(f"no ledger at {path}; name a run's folder, such as runs/NAME")
        try:
            store = _store(path, readonly)
            try:
                return cls._current(path, store, readonly)
            except BaseException:
                store.close()
                raise
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            if hasattr(error, "exit_code"):
                raise
            if locked(error):
                raise LedgerBusy(BUSY.format(path)) from error
            raise RunError(f"{path} is not a ledger of mergeopt ({error}); restore it from a copy") from error

    @classmethod
    def _current(cls, path: Path, store: Store, readonly: bool) -> Ledger:
        """The ledger that a store holds, as one of this version."""
        ledger = cls(path, store)
        version = ledger.meta("version")
        if version not in READ:
            raise RunError(
                f"{path} is a ledger of version {version}, this program reads {READ[0]} to {VERSION}; update mergeopt"
            )
        if version != VERSION and readonly:
            schema.stand_in(store, version)
        elif version != VERSION:
            ledger._write(lambda: schema.upgrade(store, version))
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
        self._write(lambda: self._db.execute(schema.KEEP_META, (key, json.dumps(value))))

    def asked(self, requested: int, questions: Sequence[Question], recipes: Sequence[str]) -> None:
        """Record one ask of the driver (or, with requested 0, questions that no driver asked) and commit it."""
        event = self._event + 1
        self._write(lambda: rows.insert_questions(self._db, event, requested, questions, recipes))
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
                rows.insert_answer(self._db, answer, self._event + 1 + len(new))
                new.append(answer)
            return new

        new = self._write(record)
        self._event += len(new)
        return new

    def tried(self, number: int, split: str, tries: Sequence[Try], first: int) -> None:
        """Record attempts at a question that gave no answer, the `first`-th and on, and commit them.

        Those that are recorded already stay: a commit whose reply was lost is made again.
        """
        self._write(lambda: rows.insert_tries(self._db, (number, split), tries, first))

    def asked_again(self, questions: Sequence[Question], recipes: Sequence[str]) -> None:
        """Record candidates that a user asks again, and have pending again what no driver heard of: in one commit.

        The latter are references, and what was asked on held-out items, where a failure may not come again. It becomes
        one of the question's attempts.
        """
        event = self._event + bool(questions)

        def again() -> None:
            rows.insert_questions(self._db, event, 0, questions, recipes)
            found = self._db.execute(
                "SELECT number, split, worker, kind, reason FROM answers WHERE number < 0 OR split = 'heldout'"
            ).fetchall()
            failed = [(row[:2], Try(*row[2:])) for row in found if row[3] and Failure(*row[3:]).passing]
            for key, told in failed:
                self._db.execute("DELETE FROM answers WHERE number = ? AND split = ?", key)
                rows.insert_tries(self._db, key, [told])

        self._write(again)
        self._event = event

    def tries(self, split: str = "calibration") -> dict[int, list[Try]]:
        """The attempts that gave no answer, by question, in their order."""
        found: dict[int, list[Try]] = {}
        kept = self._db.execute(
            "SELECT number, worker, kind, reason FROM tries WHERE split = ? ORDER BY number, attempt", (split,)
        )
        for number, *said in kept:
            found.setdefault(number, []).append(Try(*said))
        return found

    def history(self) -> Iterator[Ask | Tell]:
        """Asks and tells of the driver in the order they happened: neither held-out items nor references."""
        answers = {a.number: a for split in SEEN for a in self.answers(split)}
        asks: dict[int, tuple[int, list[Question]]] = {}
        for event, requested, question in sorted(
            (row for split in SEEN for row in rows.questions(self._db, split)), key=lambda row: (row[0], row[2].number)
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
        return [question for _, _, question in rows.questions(self._db, split, references)]

    def asked_of(self, first: int, last: int) -> dict[int, tuple[Question, str]]:
        """What was asked on calibration items, and its recipe's hash, by number: those from a first to a last."""
        return rows.numbered(self._db, first, last)

    def answers(self, split: str = "calibration", references: bool = False, after: int = -1) -> list[Answer]:
        """Everything answered on a split, in the order told, without per-item values: after a place in it."""
        return rows.answers(self._db, split, references, after)

    def mark(self, event: int | None = None) -> Mark:
        """What has been told up to a place in the order of asks and tells, by default that of the last answer."""
        if event is None:
            (last,) = self._one("SELECT max(event) FROM answers")
            event = -1 if last is None else int(last)
        sums = "SELECT count(*), sum(CAST(at * 1000 AS BIGINT)) FROM answers WHERE event <= ?"
        count, times = self._one(sums, event)
        return Mark(event, count, int(times or 0))

    def places(self, split: str, after: int = -1) -> dict[int, int]:
        """Place in the order of asks and tells of each answer on a split, by question: after a place in it."""
        told = "SELECT number, event FROM answers WHERE split = ? AND event > ?"
        return dict(self._db.execute(told, (split, after)).fetchall())

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many candidates have been asked and answered, by split."""
        asked, answered = (
            dict(self._db.execute(f"SELECT split, count(*) FROM {kind} WHERE number >= 0 GROUP BY split").fetchall())
            for kind in ("questions", "answers")
        )
        return {split: (asked.get(split, 0), answered.get(split, 0)) for split in SPLITS}

    def item_values(self, number: int, split: str) -> dict[str, np.ndarray]:
        """Per-item values of one candidate, float32 `(n,)` by qualified metric."""
        copy = self._one("SELECT of FROM copies WHERE number = ? AND split = ?", number, split)
        kept = self._db.execute(
            "SELECT metric, data FROM item_values WHERE number = ? AND split = ?", (copy[0] if copy else number, split)
        )
        return {metric: np.frombuffer(data, dtype="<f4") for metric, data in kept.fetchall()}

    def recipes(self) -> dict[int, str]:
        """Recipe hash by question, of candidates and gradients; of a reference its model's content hash."""
        return dict(self._db.execute("SELECT number, recipe FROM questions WHERE split != 'heldout'").fetchall())

    def times(self, split: str = "calibration", after: int = -1) -> list[tuple[int, float]]:
        """(candidate, wall-clock time of its answer in seconds since the epoch), for display only."""
        return self._db.execute(
            "SELECT number, at FROM answers WHERE split = ? AND number >= 0 AND event > ? ORDER BY event",
            (split, after),
        ).fetchall()

    def unanswered(self) -> list[Question]:
        """All that was asked and has no answer yet, on whatever items, and of references."""
        return [q for references in (True, False) for q in self.pending(*SPLITS, references=references)]

    def pending(self, *splits: str, references: bool = False) -> list[Question]:
        """What was asked on these splits (those that a driver learns from) and not answered yet, in the order asked."""
        found: list[tuple[int, int, Question]] = []
        for split in splits or SEEN:
            done = {n for (n,) in self._db.execute("SELECT number FROM answers WHERE split = ?", (split,))}
            asked = rows.questions(self._db, split, references)
            found += [(event, abs(q.number), q) for event, _, q in asked if q.number not in done]
        return [q for _, _, q in sorted(found, key=lambda row: row[:2])]

    def _known(self, answer: Answer) -> bool:
        first = rows.answer(self._db, answer.number, answer.split)
        if first is not None and not first.agrees(answer):
            log.warning("candidate %d was answered twice and differently; the first answer is kept", answer.number)
        return first is not None

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self._db.execute(sql, parameters).fetchone()

    @cached_property
    def _event(self) -> int:
        """The last place so far, as the one writer knows it; who only reads does without."""
        return self._last_event()

    def _last_event(self) -> int:
        row = self._one("SELECT max(event) FROM (SELECT event FROM questions UNION ALL SELECT event FROM answers) AS e")
        return -1 if row[0] is None else int(row[0])

    def _write(self, work: Callable[[], T]) -> T:
        """What `work` returns, once it is on the disk; this process alone writes, so a later event can only be its."""
        return self._db.write(work, lambda: self._last_event() > self._event)


def _store(path: Path, readonly: bool) -> Store:
    elsewhere = path.with_suffix(ELSEWHERE)
    if not elsewhere.is_file():
        return SQLite.open(path, readonly)
    from optimizer.record.postgres import Postgres

    return Postgres.open(elsewhere, readonly)
