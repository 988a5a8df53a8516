"""Where does a ledger lie? What its record needs of a database, and the one it has by itself: a file of SQLite's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from optimizer.connection import WAIT_SECONDS, begin, connect, faults
from optimizer.tables import SCHEMA

T = TypeVar("T")
PATIENCE_SECONDS = WAIT_SECONDS  # how long a ledger that is locked, or out of reach, is waited for


class Rows(Protocol):
    """What a query found."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Store(Protocol):
    """The tables of one run. SQL is written once, for SQLite: parameters are `?`, types those of `tables.SCHEMA`."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows: ...

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> object: ...

    def write(self, work: Callable[[], T], landed: Callable[[], bool]) -> T:
        """What `work` returns, once the one transaction that it ran in is on the disk.

        Where a connection is lost on the way, `work` runs again when it is back, unless `landed` says that the commit
        had arrived. Raises DiskFull, LedgerBusy (locked or out of reach for `PATIENCE_SECONDS`), RunError.
        """
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """While this is open, all that is read is of one moment; nobody is blocked."""
        ...

    def check(self) -> list[str]:
        """What the database finds wrong with its own files, a line each; at most five."""
        ...

    def copy(self, path: Path) -> None:
        """What is there at one moment, as a new SQLite file; nobody is blocked."""
        ...

    def close(self) -> None: ...


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
