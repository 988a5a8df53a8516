"""What was the service started with?"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Where runs are, where it listens, and what opens it; the token is in no repr.

    `names`: under which other names this host is asked for. `allow_code`: whether jobs that are started here may run
    Python files that they name, which no request can say.
    """

    runs: Path
    host: str = "127.0.0.1"
    port: int = 8421
    token: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    allow_code: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from this host alone."""
        return self._bracketed in LOOPBACK or _loopback(self.host)

    def is_private(self, host: str) -> bool:
        """Whether who asks under this Host is on this host: not where another name leads here, by a proxy or tunnel."""
        return self.is_loopback and not self.names and re.sub(r":\d{1,5}$", "", host).lower() in LOOPBACK

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self._bracketed
        return f"http://{host}:{self.port}"

    def is_here(self, host: str) -> bool:
        """Whether a Host header names this service: a page of elsewhere whose name leads here by now asks for its own.

        Ports are not compared: a tunnel ends at another. Where it listens on every address, each number is one of its
        own: no name is behind a number that could lead elsewhere.
        """
        name = re.sub(r":\d{1,5}$", "", host).lower()
        if name in (*LOOPBACK, self._bracketed.lower(), *(n.lower() for n in self.names)):
            return True
        return self.host in ("0.0.0.0", "::") and _is_number(name.strip("[]"))

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
