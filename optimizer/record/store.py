"""What does a ledger's record need of a database? SQL for SQLite, one writer, and commits that are on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 30.0  # how long a ledger that is locked, or out of reach, is waited for


class Rows(Protocol):
    """What a query found."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Store(Protocol):
    """The tables of one run. SQL is written once, for SQLite: parameters are `?`, types those of `schema.SCHEMA`."""

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
