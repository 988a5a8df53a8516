"""How is SQLite asked, and what do its complaints mean? Locks are waited for aloud, a full disk has its own error."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimizer.errors import DiskFull, LedgerBusy, RunError

log = logging.getLogger(__name__)

WAIT_SECONDS = 30.0  # for a ledger that somebody else has locked
POLL_MILLISECONDS = 500  # SQLite's own wait, after which the user is told
BUSY = f"{{}} was locked by another process for {WAIT_SECONDS:g} s; close it there and resume: nothing answered is lost"


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return; transactions are the caller's own."""
    with faults(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT_SECONDS, isolation_level=None
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=256")  # pages of 8 KB: a small disk has room for the log
        return connection


def begin(connection: sqlite3.Connection, path: Path) -> None:
    """Begin to write; waits for somebody else's lock at most 30 s, and says so."""
    connection.execute(f"PRAGMA busy_timeout={POLL_MILLISECONDS}")
    end, said = time.monotonic() + WAIT_SECONDS, False
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not locked(error) or time.monotonic() > end:
                raise
            if not said:
                log.warning("%s is locked by another process; waiting up to %g s for it", path, WAIT_SECONDS)
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
