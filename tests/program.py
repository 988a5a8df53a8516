"""The program in the tests' own process: its command line, and servers that it may speak to."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from optimizer.commands import cli


def mergeopt(*arguments: str | Path) -> int:
    """Run a command; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["mergeopt", *map(str, arguments)])
        cli.main()
    return int(ended.value.code or 0)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], host: str = "127.0.0.1") -> Iterator[int]:
    """A server of HTTP while this is open; its port."""
    server = http.server.ThreadingHTTPServer((host, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *said: object) -> None: ...


class Said(NamedTuple):
    """What a command ended with, and what it printed."""

    code: int
    out: str
    err: str


Program = Callable[..., Said]  # of its arguments


def program(capsys: pytest.CaptureFixture[str]) -> Program:
    """`mergeopt`, and what it printed."""
    return lambda *arguments: Said(mergeopt(*arguments), *capsys.readouterr())
