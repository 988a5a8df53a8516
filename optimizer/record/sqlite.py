"""How does a ledger lie in a file of SQLite? Locks are waited for aloud, a full disk has its own error."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import DiskFull, LedgerBusy, RunError
from optimizer.record.schema import SCHEMA
from optimizer.record.store import PATIENCE_SECONDS

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_MILLISECONDS = 500  # SQLite's own wait, after which the user is told
BUSY = (
    f"{{}} was locked by another process for {PATIENCE_SECONDS:g} s; "
    "close it there and resume: nothing answered is lost"
)


class SQLite:
    """A ledger in one file: WAL, every commit on the disk before it returns."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        self._db = connect(path, mode)

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, str]) -> SQLite:
        """A new file with these rows of `meta`."""
        store = cls(path, "rwc")
        with faults(path):
            store._db.executescript(f"PRAGMA page_size=8192; PRAGMA journal_mode=WAL; BEGIN; {SCHEMA}")
            store._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            store._db.execute("COMMIT")
        return store

    @classmethod
    def open(cls, path: Path, readonly: bool) -> SQLite:
        """The file as it is."""
        # a folder that cannot be written to cannot hold SQLite's lock files: then nobody writes, and none is needed
        frozen = readonly and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
        return cls(path, "ro&immutable=1" if frozen else "ro" if readonly else "rw")

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> sqlite3.Cursor:
        return self._db.execute(sql, parameters)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> sqlite3.Cursor:
        return self._db.executemany(sql, rows)

    def write(self, work: Callable[[], T], landed: Callable[[], bool]) -> T:
        with faults(self.path):
            begin(self._db, self.path)
            with self._ended():
                return work()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        with self._ended():
            yield

    def check(self) -> list[str]:
        try:
            said = [line for (line,) in self.execute("PRAGMA integrity_check(5)")]
        except sqlite3.DatabaseError as error:  # too damaged to be looked through
            return [str(error)]
        return [] if said == ["ok"] else said

    def copy(self, path: Path) -> None:
        with faults(path), closing(connect(path, "rwc")) as kept:
            self._db.backup(kept)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """The transaction that was begun is committed, or rolled back."""
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return; transactions are the caller's own."""
    with faults(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=PATIENCE_SECONDS, isolation_level=None
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=256")  # pages of 8 KB: a small disk has room for the log
        return connection


def begin(connection: sqlite3.Connection, path: Path) -> None:
    """Begin to write; waits for somebody else's lock at most 30 s, and says so."""
    connection.execute(f"PRAGMA busy_timeout={POLL_MILLISECONDS}")
    end, said = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not locked(error) or time.monotonic() > end:
                raise
            if not said:
                log.warning("%s is locked by another process; waiting up to %g s for it", path, PATIENCE_SECONDS)
                said = True


def locked(error: Exception) -> bool:
    """Whether SQLite says that somebody else has a lock."""
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in ("locked", "busy"))


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """SQLite's complaints about the machine, in our words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise DiskFull(
                f"no room left on the disk of {path}; free some and resume: nothing answered is lost"
            ) from error
        if locked(error):
            raise LedgerBusy(BUSY.format(path)) from error
        raise RunError(f"cannot use the ledger {path}: {text}") from error
