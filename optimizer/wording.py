"""How may text of others be shown? Without control characters, without credentials, not without end."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

LONGEST = 2000  # characters of a reason that is kept
HIDDEN = "***"
# of a PostgreSQL URL; others could name files of this host, or hold passwords
PARAMETERS = frozenset(
    ("host", "port", "dbname", "user", "service", "sslmode", "sslrootcert", "target_session_attrs", "channel_binding")
)
_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/:@'\"]*):[^\s'\"]*@")
_TOKEN_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/:@'\"]{16,}@")
_PARAMETER = re.compile(
    r"([?&\s;](?:[\w-]*password|passwd|[\w-]*token|[\w-]*secret|[\w-]*signature|sig|api_?key|authorization)=)[^&\s'\"]+",
    re.I,
)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.I)


def redacted(text: str) -> str:
    """The text with passwords and tokens of URLs, of parameters and of well-known forms hidden."""
    text = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
    text = _TOKEN_IN_URL.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1 {HIDDEN}", _TOKEN.sub(HIDDEN, text))


def printable(text: str) -> str:
    """Without control characters but line ends: names from models and data may hold orders to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def in_line(text: str, most: int = 200) -> str:
    """Shown on one line, as a key is: line ends and control characters are the escapes that they are written as."""
    return shown("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), most)


def shown(text: str, most: int = LONGEST) -> str:
    """Printable, redacted, and at most `most` characters and an ellipsis."""
    text = redacted(printable(text[: 2 * most]))
    return text if len(text) <= most else f"{text[:most]}…"


def server_url(text: object) -> str:
    """A PostgreSQL URL that may be kept and shown. Raises ValueError, whose message has no password in it."""
    if not isinstance(text, str) or len(text) > 1000:
        raise ValueError("expected postgresql://USER@HOST/DATABASE")
    said = shown(text)
    try:
        parts = urlsplit(text)
        password, port = parts.password, parts.port
    except ValueError as error:
        raise ValueError(f"expected postgresql://USER@HOST/DATABASE, got {said!r}: {error}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(
            f"expected postgresql://USER@HOST/DATABASE, got {said!r}; leave it out for a file in the run's folder"
        )
    given = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if password is not None or {n for n in given if "password" in n}:
        raise ValueError(
            f"{said!r} holds a password, which every copy of the run would keep; leave it out, and set "
            "PGPASSWORD, or write ~/.pgpass or a service file"
        )
    if unknown := sorted(given - PARAMETERS):
        raise ValueError(f"{said!r}: unknown parameter {unknown[0]!r}; there are {', '.join(sorted(PARAMETERS))}")
    if parts.fragment or text != printable(text) or " " in text or (port is not None and port < 1):
        raise ValueError(f"expected postgresql://USER@HOST/DATABASE, got {said!r}")
    return text
