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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from optimizer.errors import ClusterError

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
        return found if psutil.Process(found.pid).create_time() == found.began else None
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

    The token's file can be read by its owner alone. Raises ClusterError where one runs, or where it does not start.
    """
    if (found := running()) is not None:
        raise ClusterError(f"a cluster is running at {found.url}; 'mergeopt cluster down' ends it")
    if not _is_free(port):
        raise ClusterError(f"port {port} of this host is taken; name another with --port")
    home = folder()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    _write_secret(token_file(), secrets.token_hex(32))
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
    made = Head(f"http://{LOOPBACK}:{port}", process.pid, psutil.Process(process.pid).create_time(), files)
    (home / "head.json").write_text(json.dumps(asdict(made)))
    try:
        _await(made, process, log)
    except BaseException:
        down()
        raise
    return made


def down() -> bool:
    """End the head that `up` started, and nothing else of Ray on this host; says whether there was one."""
    found = running()
    (folder() / "head.json").unlink(missing_ok=True)
    token_file().unlink(missing_ok=True)
    if found is None:
        return False
    process = psutil.Process(found.pid)
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)  # it ends what it started
    _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
    for left in alive:
        left.kill()
    if (child := _children.pop(found.pid, None)) is not None:
        child.wait()
    shutil.rmtree(found.files, ignore_errors=True)
    return True


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
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    asked = Request(f"{made.url}/api/version", headers={"Authorization": f"Bearer {token_file().read_text()}"})
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urlopen(asked, timeout=5):
                pass
            break
        except HTTPError as error:
            raise ClusterError(f"{made.url} answers, but not as Ray does: {error}; see {log}") from error
        except OSError:
            time.sleep(0.3)
    if process.poll() is not None or time.monotonic() >= end:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ClusterError(
            f"the cluster did not start: {said[-1] if said else 'Ray said nothing'}; all it said is in {log}, and the "
            "job API needs Ray whole: pip install 'mergeopt[cluster]'"
        )


def _write_secret(path: Path, text: str) -> None:
    """A file that nobody else can read, at no moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


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
