"""How large may the cache grow? What was least recently used leaves it first, and what is in use never does."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from searchspaces.cache import holds
from searchspaces.errors import PoolError

MOST = 100_000_000_000  # bytes
SHARE = 0.25  # of the disk
LIMIT = "MERGEOPT_CACHE_GB"
_NAME = re.compile(r"[0-9a-f]{32}")
_TORN = re.compile(r"\.([0-9a-f]{32})\.(partial|gone)")
_LEFT = re.compile(r"\.([0-9a-f]{32})\.(partial|gone|work)")  # work is taken up again, unless all is to go


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, of which `once` knows how to make it again."""

    home: Path
    bytes: int
    used: float  # seconds since the epoch

    @property
    def kind(self) -> str:
        """What it holds: `processed`, `magnitudes`, ..."""
        return self.home.parent.name


def root() -> Path:
    """The user's cache: `~/.cache/mergeopt`, or in XDG_CACHE_HOME, where that is an absolute path."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # a path that is not absolute is none there, as the XDG specification has it
    return (home if home.is_absolute() else Path.home() / ".cache") / "mergeopt"


def limit() -> int:
    """How many bytes the folders may hold: 100 GB or a quarter of the disk, or what MERGEOPT_CACHE_GB says.

    Raises PoolError where that is no number of gigabytes.
    """
    said = os.environ.get(LIMIT)
    if not said:
        for there in (root(), *root().parents):
            with contextlib.suppress(OSError):  # it is still to be made, or can be no path
                return min(MOST, int(SHARE * shutil.disk_usage(there).total))
        return MOST
    with contextlib.suppress(ValueError):
        if 0 <= float(said) * 1e9 < math.inf:
            return int(float(said) * 1e9)
    raise PoolError(f"{LIMIT} is {said!r}, expected how many gigabytes the cache may hold, as 50; 0 keeps what is used")


def entries() -> list[Entry]:
    """The cache's folders, the least recently used first; other files there are none of ours."""
    found = []
    for home in _within("*/*"):
        if _NAME.fullmatch(home.name):
            with contextlib.suppress(OSError):  # removed meanwhile
                size = sum(f.stat().st_size for f in home.iterdir())
                found.append(Entry(home, size, home.stat().st_mtime))
    return sorted(found, key=lambda e: (e.used, e.home))


def make_room(needed: int, where: Path) -> None:
    """Remove unused folders until `needed` bytes more are within the limit, and on the disk of `where`.

    Where the disk would not hold them even so, none is removed for its sake; nor for the limit's, where they are more
    than it alone.
    """
    _clean()
    most, found = limit(), entries()
    total = sum(e.bytes for e in found)
    hopeless = shutil.disk_usage(where).free + total < needed
    beyond = 0 < most < needed  # a limit of 0 keeps nothing that is not used
    for entry in found:
        if (beyond or total + needed <= most) and (hopeless or shutil.disk_usage(where).free >= needed):
            return
        if discard(entry.home):
            total -= entry.bytes


def discard(home: Path) -> bool:
    """Remove a folder that nobody uses; says whether it is gone. One that we may not remove stays."""
    with holds.unused(home) as free, contextlib.suppress(OSError):
        if free:
            remove(home)
            return True
    return False


def sizes() -> dict[str, int]:
    """How many bytes the folders of each kind have."""
    found: dict[str, int] = {}
    for entry in entries():
        found[entry.kind] = found.get(entry.kind, 0) + entry.bytes
    return dict(sorted(found.items()))


def clear() -> dict[str, int]:
    """Remove all folders that nobody uses, and what killed processes left behind; how many bytes went, by kind.

    What stays, as `sizes` says, is in use, or not ours to remove.
    """
    gone = _clean(_LEFT)
    for entry in entries():
        if discard(entry.home):
            gone[entry.kind] = gone.get(entry.kind, 0) + entry.bytes
    return dict(sorted(gone.items()))


def remove(home: Path) -> None:
    """Remove a folder, at once for those who look for it. Its mapped files stay readable for those who have them."""
    gone = home.with_name(f".{home.name.strip('.').removesuffix('.partial')}.gone")
    if home.is_file() or home.is_symlink():  # nobody's of ours, where a folder belongs
        home.unlink()
        return
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        home.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clean(pattern: re.Pattern[str] = _TORN) -> dict[str, int]:
    """Remove what killed processes left behind; how many bytes that were, by kind."""
    found: dict[str, int] = {}
    for torn in _within("*/.*"):
        match = pattern.fullmatch(torn.name)
        if match:
            with contextlib.suppress(Timeout), FileLock(torn.with_name(f"{match[1]}.lock"), timeout=0):
                size = _bytes(torn)
                shutil.rmtree(torn, ignore_errors=True)
                found[torn.parent.name] = found.get(torn.parent.name, 0) + size
    return found


def _within(pattern: str) -> list[Path]:
    """What of the cache there is; nothing where its path can be none, as with names that are too long."""
    with contextlib.suppress(OSError):
        return list(root().glob(pattern))
    return []


def _bytes(torn: Path) -> int:
    """Of a folder's files; 0 where another process removes it just now."""
    try:
        return sum(f.stat().st_size for f in torn.rglob("*") if f.is_file())
    except OSError:
        return 0
