"""How is the service started, and what opens it? A port, and a token that only its user can read."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optimizer.errors import JobError
from optimizer.record.files import write_new
from optimizer.service.settings import Settings


def token_file(port: int) -> Path:
    """Where the token of the service on a port of this host is, for this user alone."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mergeopt" / "service" / f"{port}.token"


@contextmanager
def token(port: int) -> Iterator[str]:
    """A new token, in its file while this is open."""
    made, path = secrets.token_urlsafe(32), token_file(port)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    write_new(path, made, mode=0o600)  # nobody else can read it, at no moment
    try:
        yield made
    finally:
        path.unlink(missing_ok=True)


def serve(
    runs: Path, host: str, port: int, names: tuple[str, ...], allow_code: bool, say: Callable[[str], None]
) -> None:
    """Serve until a signal ends it. Raises JobError where the port is taken, or a package is missing."""
    try:
        import uvicorn

        from optimizer.service.app import build
    except ImportError as error:
        raise JobError(f"'mergeopt serve' needs {error.name}; pip install 'mergeopt[serve]'") from error
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        with token(port) as opens:
            settings = Settings(runs.absolute(), host, port, opens, names, allow_code)
            say(f"mergeopt at {settings.url}/#token={opens}\nwhoever has this address may start and stop runs here")
            app = build(settings)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=3,
            )
            server = uvicorn.Server(config)
            app.state.watch.over = lambda: server.should_exit
            server.run([listener])


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)  # whoever comes before all is loaded waits
        except OSError as error:
            raise JobError(f"cannot listen on port {port} of {host}: {error.strerror}; name another --port") from error
        yield listener
