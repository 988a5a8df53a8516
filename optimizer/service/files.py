"""Which files does a browser get? The page's own, and Plotly, compressed once."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from functools import cache, lru_cache
from importlib.resources import files as resources
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from optimizer.service.refusals import Refused
from optimizer.views.bundle import PAGE, bundled

KINDS = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}

router = APIRouter(include_in_schema=False)


@router.get("/plotly.js")
def plotly(request: Request) -> Response:
    """Plotly's script, of the Python package."""
    packed, tag = _plotly()
    return _answer(request, packed, tag, KINDS[".js"], packed=True)


@router.get("/page.js")
def script(request: Request) -> Response:
    """The page's modules as one: what they import in turn would be asked for in turn."""
    text, tag = _script(tuple(sorted((n, p.stat().st_mtime_ns) for n, p in _page().items() if p.suffix == ".js")))
    return _answer(request, text, tag, KINDS[".js"])


@router.get("/")
def index(request: Request) -> Response:
    return page(request, "index.html")


@router.get("/{name:path}")
def page(request: Request, name: str) -> Response:
    """One of the page's files, by its name below the page's folder."""
    path = _page().get(name)
    if path is None:
        raise Refused(404, "no such page")
    text = path.read_bytes()
    kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _answer(request, text, _digest(text), kind)


def _page() -> dict[str, Path]:
    """The page's files by the names that are asked for: nothing else can be."""
    return {p.relative_to(PAGE).as_posix(): p for p in PAGE.rglob("*") if p.is_file() and not p.is_symlink()}


def _answer(request: Request, body: bytes, tag: str, kind: str, packed: bool = False) -> Response:
    """The bytes, or that the browser has them already."""
    # asked again each time, and not sent again: a file changes with the program
    headers = {"etag": f'"{tag}"', "cache-control": "no-cache", "vary": "accept-encoding"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if packed and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(body, media_type=kind, headers={**headers, "content-encoding": "gzip"})
    return Response(gzip.decompress(body) if packed else body, media_type=kind, headers=headers)


@cache
def _plotly() -> tuple[bytes, str]:
    """Plotly's script, gzipped, and a digest of it; without importing the package, which takes a second."""
    script = (resources("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return gzip.compress(script, 6, mtime=0), _digest(script)


@lru_cache(maxsize=1)
def _script(written: tuple[tuple[str, int], ...]) -> tuple[bytes, str]:
    """The page's modules as one, and a digest of it: made anew where a file was `written` since, (name, ns)."""
    text = bundled("main.js").encode()
    return text, _digest(text)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]
