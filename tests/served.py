"""A service as a person has it: on a port of this host, over real sockets, with its token."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

TOKEN = "the-token-of-a-test"
PATIENCE_SECONDS = 240.0  # a process of its own first loads torch, on a machine that may be busy


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait until something holds; what it is then."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Served:
    """Where it listens, and what opens it."""

    url: str
    runs: Path
    app: Any

    def ask(self, path: str, method: str = "GET", token: str | None = None, **how: Any) -> requests.Response:
        """One request; with TOKEN for who may write."""
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **how.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=60, allow_redirects=False, **how)

    def told(self, path: str, **how: Any) -> Any:
        """What a request answers that goes well."""
        answer = self.ask(path, **how)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def done(self, path: str, **body: Any) -> Any:
        """What a request does that may."""
        return self.told(path, method="POST", token=TOKEN, json=body)


@contextmanager
def serving(runs: Path, host: str = "127.0.0.1", **how: Any) -> Iterator[Served]:
    """The service of these runs while this is open; skips where its packages are not installed."""
    uvicorn = pytest.importorskip("uvicorn", reason="the service needs the extra 'serve'")
    pytest.importorskip("fastapi", reason="the service needs the extra 'serve'")
    from optimizer.service.app import build
    from optimizer.service.settings import Settings

    with socket.socket() as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        app = build(Settings(runs.absolute(), host, port, TOKEN, **how))
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        app.state.watch.over = lambda: server.should_exit
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Served(f"http://127.0.0.1:{port}", runs, app)
        finally:
            until(lambda: not any(_alive(runs)), "what was started here ends")
            server.should_exit = True
            thread.join()


def _alive(runs: Path) -> Iterator[bool]:
    """Of each search and each export that a service of these runs started, whether it still goes on, or was not
    waited for: threads of a process that has ended may take a moment more."""
    from optimizer.service import processes

    folders = [record.parent for record in (runs / ".service").rglob(processes.RECORD)]
    found = (one for folder in folders if (one := processes.found(folder)) is not None)
    return (one.alive or psutil.pid_exists(one.process.pid) for one in found)
