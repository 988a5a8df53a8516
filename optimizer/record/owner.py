"""Which process drives a run, if one does? Its owner holds a lock; who only looks takes none that it would notice."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from optimizer.errors import RunError, RunLocked
from optimizer.record import files
from optimizer.record.folders import LEDGER, found, there

LOCK, RECORD = "driver.lock", "driver.json"
PATIENCE_SECONDS = 1.0  # who looks from another host has the lock for microseconds, and ends nobody's start
TAKEN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
MOST_PID = 2**22  # of Linux; the least of a process that is anybody's is 2
MOST_BYTES = 4096  # of the record, which may be somebody else's


@dataclass(frozen=True)
class Owner:
    """A process that drives a run, as it wrote itself down; `pid` 0 where it is just doing so."""

    host: str = "?"
    pid: int = 0
    since: str = "?"
    began: float = 0.0  # of the process, as `began` tells it: its id alone may be another's by now

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it is a process of this host that runs."""
        try:
            same = began(self.pid) == self.began
            return self.here and same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError, OverflowError):
            return False

    def __str__(self) -> str:
        return f"process {self.pid}{'' if self.here else f' on {self.host}'} since {self.since}"


def began(pid: int) -> float:
    """When a process of this host began: the same number each time it is asked, whoever sets the clock meanwhile.

    Where there is /proc: its clock ticks since the start of the machine; else in seconds since the epoch. Raises
    psutil.Error where there is no such process.
    """
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return float(psutil.Process(pid).create_time())
    return float(said.rpartition(")")[2].split()[19])  # the 22nd field; the second, a name, may hold anything


def owner(folder: Path) -> Owner | None:
    """Who drives the run in this folder now; None for nobody. Nothing is written, and the folder may be read-only."""
    said = _read(folder)
    if said is None or said.alive:
        return said
    return said if _held(folder) else None  # of another host, killed, or just writing: the lock says


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Be the one driver of a run.

    Raises RunLocked, naming the other, where there is one; RunError where there is no run, or no more.
    """
    there(folder)
    lock, record = FileLock(folder / LOCK, timeout=PATIENCE_SECONDS, poll_interval=0.01), folder / RECORD
    gone = RunError(f"no run at {folder} any more: it has just been removed")
    try:
        lock.acquire()
    except FileNotFoundError:
        raise gone from None
    except Timeout as error:
        raise RunLocked(
            f"{folder} is being driven by {_named(folder)}; 'mergeopt status' shows how it stands"
        ) from error
    try:
        if not found(folder / LEDGER):
            _unmake(folder)
            raise gone
        files.write_new(record, json.dumps(asdict(_myself())))
        yield
    finally:
        record.unlink(missing_ok=True)
        lock.release()


def _unmake(folder: Path) -> None:
    """Remove what the lock made anew of a folder that went while it was waited for."""
    with suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()


def _myself() -> Owner:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(socket.gethostname(), os.getpid(), since, began(os.getpid()))


def _named(folder: Path) -> str:
    """Whoever has the lock; not one that was killed before it."""
    said = _read(folder)
    known = said is not None and said.pid and (said.alive or not said.here)
    if said is None or not known:
        return "a process that is just starting or ending"
    return f"process {said.pid} on {said.host} since {said.since}"


def _read(folder: Path) -> Owner | None:
    """What the folder's record says; None where there is none."""
    try:
        said = json.loads(files.read(folder / RECORD, MOST_BYTES))
        found = Owner(said["host"], said["pid"], said["since"], float(said.get("began", 0.0)))
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # just being written, or nothing of ours
        return Owner()
    texts = all(isinstance(text, str) and text.isprintable() for text in (found.host, found.since))
    return found if texts and type(found.pid) is int and 1 < found.pid <= MOST_PID else Owner()


def _held(folder: Path) -> bool:
    """Whether a process has the lock. A shared lock is no other looker's hindrance, and `owning` outwaits it."""
    try:
        file = files.opened(folder / LOCK)
    except (OSError, RunError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in TAKEN
    return False
