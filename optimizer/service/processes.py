"""Which commands were started here, and what became of them? Each is a process of its own and outlives the service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import RunError
from optimizer.record import files
from optimizer.record.folders import LEDGER
from optimizer.record.folders import found as found_run
from optimizer.record.owner import Owner, began
from optimizer.service.refusals import Refused
from optimizer.wording import shown

RECORD, LOG = "record.json", "log"
PROGRAM = (sys.executable, "-P", "-m", "optimizer")  # -P: not one of the folder that the service was started in
TAIL_BYTES = 1 << 16
MOST_BYTES = 1 << 20  # of a record

_children: dict[tuple[int, float], subprocess.Popen[bytes]] = {}  # of this process: who ended is to be waited for
_codes: dict[tuple[int, float], int] = {}  # of those that ended, by process id and when that began


@dataclass(frozen=True)
class Started:
    """A command that was started, by its folder: what it is about, its process, and all that it printed."""

    folder: Path
    about: dict[str, Any]
    process: Owner
    at: float

    @property
    def alive(self) -> bool:
        _reap()
        return self.process.alive

    @property
    def lines(self) -> list[str]:
        """The last that it printed, fit to be shown."""
        try:
            with files.opened(self.folder / LOG) as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                text = log.read(TAIL_BYTES).decode(errors="replace")
        except (OSError, RunError):
            return []
        return [shown(line) for part in text.splitlines() if (line := part.rpartition("\r")[2].rstrip())]

    @property
    def error(self) -> str | None:
        """Why it ended, where it says that something was wrong."""
        lines = self.lines
        places = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if places:
            return " ".join(lines[places[-1] :])[:2000].removeprefix("error: ")
        if any(line.startswith("Traceback ") for line in lines):
            return lines[-1]
        run = self.about.get("folder")  # of a run that is there the ledger says how it stands
        return None if lines or self.alive or run is None or found_run(Path(str(run)) / LEDGER) else self.ending

    @property
    def ending(self) -> str:
        """How it ended: by which signal or with which exit code, as far as this service knows."""
        _reap()
        return _ending(_codes.get((self.process.pid, self.process.began)))

    @property
    def written(self) -> float:
        """When it printed something last."""
        try:
            return (self.folder / LOG).stat().st_mtime
        except OSError:
            return 0.0

    def end(self, seconds: float = 0.0) -> None:
        """Ask it to end, as Ctrl-C does, and wait for that so long at most."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.05)


def start(folder: Path, about: dict[str, Any], command: Sequence[str]) -> Started:
    """Start `mergeopt` with these arguments; what it prints goes to the folder's log, at its end."""
    _said(command)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with files.opened(folder / LOG, append=True) as log:
        child = subprocess.Popen(
            [*PROGRAM, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives the service, and its terminal's Ctrl-C
        )
    owner = Owner(socket.gethostname(), child.pid, time.strftime("%Y-%m-%d %H:%M:%S"), began(child.pid))
    _children[owner.pid, owner.began] = child
    made = Started(folder, about, owner, time.time())
    said = {"about": about, "process": asdict(owner), "at": made.at}
    files.write_new(folder / RECORD, json.dumps(said), mode=0o600)
    return made


def _reap() -> None:
    """Wait for children that have ended: the system keeps each until then."""
    for key, child in list(_children.items()):
        if (code := child.poll()) is not None:
            _codes[key] = code
            _children.pop(key, None)


def found(folder: Path) -> Started | None:
    """What was started in a folder last; None where nothing was, or what is there is none of ours."""
    try:
        said = json.loads(files.read(folder / RECORD, MOST_BYTES))
        process = said["process"]
        owner = Owner(str(process["host"]), int(process["pid"]), str(process["since"]), float(process["began"]))
        return Started(folder, dict(said["about"]), owner, float(said["at"]))
    except (OSError, RunError, ValueError, LookupError, TypeError, RecursionError):
        return None


def answer(command: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """What `mergeopt` says to these arguments within so many seconds: exit code, what it prints, and its error."""
    _said(command)
    try:
        done = subprocess.run(
            [*PROGRAM, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"it took longer than {seconds:.0f} s"
    lines = done.stderr.decode(errors="replace").splitlines()
    return done.returncode, done.stdout.decode(errors="replace"), shown(_reason(lines, done.returncode))


def _reason(lines: Sequence[str], code: int) -> str:
    """Why a command was refused: our error, or the usage error that Typer draws a box around; else what it said last.

    A command that was killed has said nothing of it.
    """
    if said := [i for i, line in enumerate(lines) if line.startswith("error: ")]:
        return "\n".join(lines[said[-1] :]).removeprefix("error: ")
    if boxed := [line.strip("│ ") for line in lines if line.startswith("│")]:
        return " ".join(boxed)
    return _ending(code) if code < 0 else "\n".join(lines[-1:])


def _ending(code: int | None) -> str:
    """How a process ended that said nothing of it; below 0 by a signal, None where that is not known."""
    if code is None:
        return "its process ended without a word, as one does that is killed"
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", by 'kill -9' or because the host had no memory left" if -code == signal.SIGKILL else ""
    return f"its process was killed ({name}{hint})"


def _said(command: Sequence[str]) -> None:
    """Raises Refused for an argument that no program can be given."""
    if any("\0" in text for text in command):
        raise Refused(422, "a text here has a NUL in it, which no path and no name has; leave it out")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for files that a command is given, for this user alone."""
    return tempfile.TemporaryDirectory(prefix="mergeopt-")
