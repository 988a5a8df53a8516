"""Who may ask for what? Hosts by name, writes by token and from our own page, and what a browser may do with it."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from optimizer.service.bodies import Message, Receive, body_of, sent_again
from optimizer.service.refusals import Refused
from optimizer.service.settings import Settings

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READS = ("GET", "HEAD")
EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # of the empty style attributes that Plotly sets
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-hashes' {EMPTY}; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Lets a request through to the app, or answers with the reason why not."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: nothing here speaks that
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if scope["path"].startswith("/api/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._check(scope)
            body = await body_of(receive)
        except Refused as refused:
            # what was not read of it may still be on its way: the next request is another connection's
            close = {"connection": "close"} if refused.status in (408, 413) else None
            await JSONResponse({"error": str(refused)}, refused.status, close)(scope, receive, guarded)
            return
        if body is not None:
            await self._app(scope, sent_again(body, receive), guarded)

    def _check(self, scope: Scope) -> None:
        """Raises Refused where a request is not let through."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._settings.is_here(hosts[0]):
            raise Refused(
                403, "this service is not asked for by that name; open the address that 'mergeopt serve' printed"
            )
        reads = scope["method"] in READS
        allowed = scope.setdefault("state", {})["may_write"] = self._has_token(headers)
        if reads:
            if not scope["path"].startswith("/api/"):
                return
            if headers.get("sec-fetch-site") == "cross-site" and not allowed:
                raise Refused(403, "a page of elsewhere may ask for nothing here")
            if not allowed and not self._settings.is_private(hosts[0]):
                raise Refused(
                    401, "on an address that others reach, reading wants the token too: 'Authorization: Bearer ...'"
                )
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") or (origin is not None and not _same(origin, hosts[0])):
            raise Refused(403, "a page of elsewhere may change nothing here")
        if not allowed:
            raise Refused(401, "this needs the token that 'mergeopt serve' printed: 'Authorization: Bearer ...'")
        sent = headers.get("content-length", "0")
        if "transfer-encoding" in headers or sent != "0":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refused(400, "expected a body of JSON, as 'Content-Type: application/json' says")

    def _has_token(self, headers: Headers) -> bool:
        kind, _, said = headers.get("authorization", "").partition(" ")
        token = self._settings.token
        same = hmac.compare_digest(said.strip().encode(), token.encode())
        return kind.lower() == "bearer" and same and bool(token)


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is this service, under the name by which it was asked for."""
    return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
