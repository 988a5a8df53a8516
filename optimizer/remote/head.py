"""Where can a cluster be tried? A Ray head of this host alone: on loopback, with a token, and ended by its process."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from optimizer.errors import ClusterError
from optimizer.record.files import write_new
from optimizer.record.owner import began
from optimizer.remote import asking

LOOPBACK = "127.0.0.1"
START_SECONDS, END_SECONDS = 120.0, 15.0
_children: dict[int, subprocess.Popen[bytes]] = {}  # heads that this process started itself


@dataclass(frozen=True)
class Head:
    """A head that `up` started: its job API, its process, and when that began (a process id alone may be reused)."""

    url: str
    pid: int
    began: float
    files: str  # Ray's own: sockets, logs, packages


def folder() -> Path:
    """Where the head's record, token and log are kept, for this user alone."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mergeopt" / "cluster"


def token_file() -> Path:
    return folder() / "token"


def running() -> Head | None:
    """The head that `up` started, if it still runs."""
    try:
        found = Head(**json.loads((folder() / "head.json").read_text()))
        return found if began(found.pid) == found.began else None
    except (OSError, ValueError, TypeError, psutil.Error):
        return None


def endpoint() -> tuple[str, str]:
    """Address and token of the head that runs. Raises ClusterError where none does."""
    found = running()
    if found is None:
        raise ClusterError("no cluster of this host is running; 'mergeopt cluster up' starts one")
    return found.url, token_file().read_text()


def up(port: int = 8265, cpus: int | None = None, gpus: int | None = None) -> Head:
    """Start a head that listens on loopback alone and asks everybody for a token; returns when its job API answers.

    The token's file can be read by its owner alone. Raises ClusterError where one runs, or is just being started or
    ended, or where it does not start.
    """
    with _alone():
        return _started(port, cpus, gpus)


def _started(port: int, cpus: int | None, gpus: int | None) -> Head:
    if (found := running()) is not None:
        raise ClusterError(f"a cluster is running at {found.url}; 'mergeopt cluster down' ends it")
    if not _is_free(port):
        raise ClusterError(f"port {port} of this host is taken; name another with --port")
    home = folder()
    write_new(token_file(), secrets.token_hex(32), mode=0o600)  # nobody else can read it, at no moment
    log = home / "head.log"
    # of its own, for this user alone, and short: in Ray's usual folder a job finds whichever head was started there
    # last, and a socket's path has at most 107 characters
    files = tempfile.mkdtemp(prefix="mergeopt-")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                *_arguments(port, cpus, gpus),
                f"--temp-dir={files}",
            ],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives this command, and its terminal's Ctrl-C
            cwd=home,
        )
    _children[process.pid] = process  # kept: Python warns of a child that is let go while it runs
    made = Head(f"http://{LOOPBACK}:{port}", process.pid, began(process.pid), files)
    try:
        write_new(home / "head.json", json.dumps(asdict(made)))
        _await(made, process, log)
    except BaseException:
        _end(made)  # itself, whatever the record says
        _forget()
        raise
    return made


def down() -> bool:
    """End the head that `up` started, and nothing else of Ray on this host; says whether there was one.

    Raises ClusterError where one is just being started or ended.
    """
    if not folder().is_dir():
        return False
    with _alone():
        if (found := running()) is not None:
            _end(found)
        _forget()  # not before it is gone: without its token nobody could
        return found is not None


@contextmanager
def _alone() -> Iterator[None]:
    """While this is open, no other process of this user starts or ends a head."""
    home = folder()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    try:
        with FileLock(home / "lock", timeout=0):
            yield
    except Timeout as error:
        raise ClusterError("a cluster of this host is just being started or ended; try again in a minute") from error


def _forget() -> None:
    (folder() / "head.json").unlink(missing_ok=True)
    token_file().unlink(missing_ok=True)


def _end(found: Head) -> None:
    """End a head, with all that it started."""
    try:
        process = psutil.Process(found.pid)
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)  # it ends what it started
    except psutil.NoSuchProcess:
        family = []
    _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    if (child := _children.pop(found.pid, None)) is not None:
        child.wait()
    shutil.rmtree(found.files, ignore_errors=True)


def _arguments(port: int, cpus: int | None, gpus: int | None) -> list[str]:
    many = [f"--num-{kind}={count}" for kind, count in (("cpus", cpus), ("gpus", gpus)) if count is not None]
    return [
        *("--head", "--block", "--disable-usage-stats", "--log-color=false", *many),
        *(f"--node-ip-address={LOOPBACK}", "--port=0", "--dashboard-agent-listen-port=0"),
        # any that are free: Ray's own choices would collide with another head's, and with the job API's
        *("--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={_free_port()}"),
        *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={port}"),
    ]


def _environment() -> dict[str, str]:
    """The user's, in which `python` is this one, and Ray asks for our token."""
    return {
        **{name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray take loopback for its own address too
    }


def _await(made: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    headers = asking.bearer(token_file().read_text())
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        code, _ = asking.version(made.url, headers)
        if code == 200 and process.poll() is None:  # else it is somebody else who answers
            return
        if code > 200:
            raise ClusterError(f"{made.url} answers, but not as Ray does: with status {code}; see {log}")
        time.sleep(0.3)
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise ClusterError(
        f"the cluster did not start: {said[-1] if said else 'Ray said nothing'}; all it said is in {log}, and the "
        "job API needs Ray whole: pip install 'mergeopt[cluster]'"
    )


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((LOOPBACK, 0))
        return int(trial.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
