"""What does a cluster's job API say of itself? Asked of whoever was named, and of nobody in between."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 5.0  # without a byte
IN_ALL = 10.0  # seconds for the whole of an answer
MOST_BYTES = 1_000_000


def bearer(token: str | None) -> dict[str, str]:
    """The headers that show a token; none without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def version(url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of what tells Ray's version; -1 where nothing comes that is HTTP and JSON, or not within 10 s.

    No proxy of the environment is used, and no redirect is followed: a token is for the host that was named.
    """
    try:
        return within(IN_ALL, lambda: _version(url, headers))
    except TimeoutError:
        return -1, {}


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises; TimeoutError where that takes longer, whoever sends it a byte now and then.

    What is still asked then goes on in a thread of its own, and ends with this process.
    """
    said: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def wait() -> None:
        try:
            said.put((ask(), None))
        except BaseException as error:
            said.put((None, error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        found, error = said.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # what `ask` returned


def _version(url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{url}/api/version", headers=dict(headers))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Nowhere)
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            found = json.loads(answer.read(MOST_BYTES))
            return answer.status, found if isinstance(found, dict) else {}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}
    except (OSError, ValueError, http.client.HTTPException, RecursionError):
        return -1, {}


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *said: object) -> None:
        return None
