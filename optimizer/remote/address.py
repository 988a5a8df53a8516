"""Which cluster does an address mean, and may anything be sent there?"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from optimizer.errors import ClusterError
from optimizer.remote import asking, head

TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # Ray's own names


@dataclass(frozen=True)
class Endpoint:
    """Where a cluster's job API listens (`http://HOST:PORT`), and what opens it; the token is in no repr.

    `token_file` is the file that the token was read from, if it was one.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = field(default=None, compare=False)

    @property
    def headers(self) -> dict[str, str]:
        return asking.bearer(self.token)

    @classmethod
    def of(cls, address: str) -> Endpoint:
        """Of what `--address` says. `auto` is the cluster that `mergeopt cluster up` started.

        Raises ClusterError where it is no such address, and where it is off this host and there is no token: without
        one whoever reaches that port runs commands there, and nothing tells that it is the cluster that is meant.
        """
        if address == "auto":
            return cls(*head.endpoint(), head.token_file())
        parts, port = split(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ClusterError(
                "--address: expected the job API of a Ray cluster, such as http://head:8265, or auto, got "
                f"{_safe(address)}"
            )
        if parts.username is not None:
            raise ClusterError(
                f"--address: a name or password in the address is refused; put the token into {TOKEN_FILE}'s file"
            )
        url = named(parts, port or (443 if parts.scheme == "https" else 8265))
        token, file = _token(url, _here(parts.hostname))
        if token is None and not _here(parts.hostname):
            raise ClusterError(
                f"{url} is not this host, and there is no token for it; nothing was sent. Start the cluster with "
                f"RAY_AUTH_MODE=token, and name its token's file in {TOKEN_FILE} here; or forward its port over ssh"
            )
        return cls(url, token, file)


def token_file() -> Path:
    """The file of this user's token: that which a variable names, else Ray's own."""
    return Path(os.environ.get(TOKEN_FILE) or Path.home() / ".ray" / "auth_token").expanduser()


def split(address: str, scheme: str = "http") -> tuple[SplitResult, int | None]:
    """The parts of an address, which has this scheme where it says none, and its port where it says one.

    Raises ClusterError for what is none: what cannot be read is not sent to a port that nobody named.
    """
    try:
        if not address.isprintable() or " " in address:  # urlsplit leaves line ends and tabs out, and goes on
            raise ValueError
        parts = urlsplit(address if "://" in address else f"{scheme}://{address}")
        if parts.port == 0 or parts.netloc.endswith(":"):
            raise ValueError
        return parts, parts.port
    except ValueError:  # whose text may have a password in it
        raise ClusterError(
            "--address: expected http://HOST:PORT, such as http://head:8265, with a port from 1 to 65535 and neither "
            f"spaces nor control characters, got {_safe(address)}"
        ) from None


def named(parts: SplitResult, port: int) -> str:
    """`SCHEME://HOST:PORT` of an address that has a host, and nothing else of it."""
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _token(url: str, here: bool) -> tuple[str | None, Path | None]:
    """The token for this address, and its file: what Ray's variables say, else of this host our own head's, or Ray's.

    Ray's file is made for clusters of this host by itself: it is given to nobody else unless a variable names it.
    """
    if said := os.environ.get(TOKEN, "").strip():
        return said, None
    file: Path | None = None
    if os.environ.get(TOKEN_FILE):
        file = token_file()
    elif here and (own := head.running()) is not None and own.url == url:
        file = head.token_file()
    elif here and token_file().is_file():
        file = token_file()
    return (None, None) if file is None else (_read(file), file)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"the token's file {path} cannot be read: {error}; mend it, or unset {TOKEN_FILE}") from None


def _here(host: str) -> bool:
    """Whether an address can only be this host: loopback, by number or as localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _safe(address: str) -> str:
    """Without what might be a password."""
    return repr(address.rpartition("@")[2].partition("?")[0])
