"""A PostgreSQL server for tests: made in a temporary folder, on a socket there, by a user who is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest

FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, ("/usr/local/pgsql/bin",))]
# nothing here needs to outlive the machine
SETTINGS = "-c listen_addresses= -c fsync=off -c max_connections=30 -c shared_buffers=16MB -c unix_socket_directories="


@cache
def programs() -> Path | None:
    """The folder of initdb and pg_ctl, if this machine has them."""
    there = [shutil.which("initdb")] + [str(f / "initdb") for f in FOLDERS]
    return next(
        (Path(p).resolve().parent for p in there if p and (Path(p).resolve().parent / "pg_ctl").is_file()), None
    )


class Server:
    """One server; `url` names its database, which asks nobody for a password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://mergeopt@/postgres?host={quote(str(folder))}"
        self._run("initdb", "-D", folder / "data", "-U", "mergeopt", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        self._run(
            "pg_ctl",
            "-D",
            self.folder / "data",
            "-w",
            "-l",
            self.folder / "log",
            "-o",
            SETTINGS + str(self.folder),
            "start",
        )

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", mode, "stop")

    def _run(self, program: str, *arguments: str | Path) -> None:
        home = programs()
        assert home is not None
        command = [str(home / program), *map(str, arguments)]
        if os.geteuid() == 0:  # the server refuses root
            command = ["runuser", "-u", "nobody", "--", *command]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.folder)
        assert done.returncode == 0, done.stderr


def server() -> Iterator[Server]:
    """A running server, stopped afterwards; skips where this machine has none, or the driver is not installed."""
    pytest.importorskip("psycopg", reason="a ledger on PostgreSQL needs psycopg (the extra 'postgres')")
    if programs() is None:
        pytest.skip("this machine has no PostgreSQL server (initdb, pg_ctl)")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL refuses root, and there is no runuser to be somebody else")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has at most 107 characters
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    try:
        made = Server(folder)
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
