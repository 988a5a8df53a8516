"""How is a run of this host stopped, from another process?"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from optimizer.errors import RunError, RunLocked
from optimizer.output import hints
from optimizer.record.folders import there
from optimizer.record.owner import LOCK, owner

AGAIN_SECONDS = 2.0  # between the signal to drain and the one to stop at once
END_SECONDS = 30.0


def drain(folder: Path) -> int:
    """Ask the process that drives a run to stop, as Ctrl-C does: what is in flight is waited for. Its process id.

    Raises RunError where nobody drives the run, or a process of another host does.
    """
    pid = _pid(folder)
    _signal(folder, pid, signal.SIGTERM)
    return pid


def cancel(folder: Path) -> int:
    """Stop the process that drives a run at once, as a second Ctrl-C does; returns when it has ended.

    What was answered is kept. Raises RunError as `drain` does, and where the process does not end.
    """
    pid = drain(folder)
    if not _free(folder, AGAIN_SECONDS):
        _signal(folder, pid, signal.SIGTERM)
    if not _free(folder, END_SECONDS):
        raise RunError(
            f"{folder}: process {pid} was told to stop at once, and still runs after {END_SECONDS:.0f} s; 'kill -9 "
            f"{pid}' ends it, and loses nothing that was answered"
        )
    return pid


def driven(folder: Path) -> bool:
    """Whether a process drives the run now. Raises RunError where there is no run."""
    there(folder)
    return owner(folder) is not None


def over(folder: Path) -> bool:
    """Whether a run is finished, and nobody drives it: there is nothing to stop, and nothing to go on with."""
    if driven(folder):
        return False
    from optimizer.output import plain
    from optimizer.record.results import Results

    return bool(plain.status(Results(folder))["finished"])


def nobody_drives(folder: Path) -> None:
    """Raises RunError where there is no run, RunLocked where a process drives it."""
    if driven(folder):
        raise RunLocked(f"{folder} is being driven already; 'mergeopt status' shows how it stands")


def _pid(folder: Path) -> int:
    """The process of this host that drives a run. Raises RunError where there is none."""
    there(folder)
    who = owner(folder)
    if who is None:
        raise RunError(f"{folder}: nobody drives this run; '{hints.command('resume', folder)}' goes on with it")
    if not who.pid:
        raise RunError(
            f"{folder}: its driver is just starting or ending; try again. If that stays so, its driver.json is no "
            f"driver's: 'fuser {folder / LOCK}' names the process"
        )
    if not who.here:
        raise RunError(f"{folder} is driven by process {who.pid} on {who.host}, which is not this host; stop it there")
    _drives(folder, who.pid)
    return who.pid


def _drives(folder: Path, pid: int) -> None:
    """Raises RunError where a process is not ours, or does not hold the run's lock: a folder may name any process."""
    lock = folder / LOCK
    try:
        process = psutil.Process(pid)
        ours = process.uids().effective == os.geteuid()
        opened = [file.path for file in process.open_files()] if ours else []
    except psutil.NoSuchProcess:
        ours, opened = True, []
    except psutil.AccessDenied:
        ours, opened = False, []
    if not ours:
        raise RunError(f"{folder}: process {pid} is another user's; they can stop it")
    if not any(Path(path).name == lock.name and _same(Path(path), lock) for path in opened):
        raise RunError(
            f"{folder}: its driver.json names process {pid}, which does not drive it, and was left alone; 'fuser "
            f"{lock}' names the process that does"
        )


def _same(path: Path, lock: Path) -> bool:
    try:
        return path.samefile(lock)
    except OSError:
        return False


def _signal(folder: Path, pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        raise RunError(f"{folder}: process {pid} is another user's; they can stop it") from None


def _free(folder: Path, seconds: float) -> bool:
    """Whether nobody drives the run, within so many seconds."""
    end = time.monotonic() + seconds
    while owner(folder) is not None:
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True
