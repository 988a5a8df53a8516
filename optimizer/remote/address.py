"""Which cluster does an address mean, and may anything be sent there?"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from optimizer.errors import ClusterError
from optimizer.remote import head

TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # Ray's own names


@dataclass(frozen=True)
class Endpoint:
    """Where a cluster's job API listens (`http://HOST:PORT`), and what opens it; the token is in no repr."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    @classmethod
    def of(cls, address: str) -> Endpoint:
        """Of what `--address` says. `auto` is the cluster that `mergeopt cluster up` started.

        Raises ClusterError where it is no such address, and where it is off this host and there is no token: without
        one whoever reaches that port runs commands there, and nothing tells that it is the cluster that is meant.
        """
        if address == "auto":
            return cls(*head.endpoint())
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
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        url = f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 8265)}"
        token = _token(url, _here(parts.hostname))
        if token is None and not _here(parts.hostname):
            raise ClusterError(
                f"{url} is not this host, and there is no token for it; nothing was sent. Start the cluster with "
                f"RAY_AUTH_MODE=token, and name its token's file in {TOKEN_FILE} here; or forward its port over ssh"
            )
        return cls(url, token)


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


def _token(url: str, here: bool) -> str | None:
    """The token for this address: what Ray's variables say, else of this host that of our own head, or Ray's file.

    Ray's file is made for clusters of this host by itself: it is given to nobody else unless a variable names it.
    """
    if said := os.environ.get(TOKEN, "").strip():
        return said
    if os.environ.get(TOKEN_FILE):
        return _read(token_file())
    if not here:
        return None
    if (own := head.running()) is not None and own.url == url:
        return _read(head.token_file())
    return _read(token_file()) if token_file().is_file() else None


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
