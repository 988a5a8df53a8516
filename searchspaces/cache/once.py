"""What was made once on this host? Folders in the user's cache: whole, or not there, and held while they are used."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from searchspaces.cache import holds, limit
from searchspaces.errors import CacheError, CacheFull
from searchspaces.models import shards

FILES = "files.json"
"""In every folder: its other files' sizes by name. Written last, so that what is torn or cut short is seen."""


def cache(kind: str) -> Path:
    """Where folders of a kind are kept; safe to remove when no run is under way."""
    return limit.root() / kind


def made_once(home: Path, what: str, needed: int, make: Callable[[Path], None]) -> None:
    """See that the folder `home`, `cache(kind) / (32 hexadecimal digits)`, is there and whole.

    Where it is not, `make(partial)` fills it beside its place, in one process, under a lock; what was least recently
    used leaves the cache before, where that would grow beyond its limit (see `room`). The folder is this process's to
    use until it ends: no other removes it meanwhile. `what` is said in messages, in the plural; `needed` is its size in
    bytes. Raises CacheFull where the disk has no room, CacheError where it does not let us write.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        holds.hold(home)  # first: what is found there now, stays
        if whole(home):
            return
        with FileLock(home.with_suffix(".lock")):
            if not whole(home):  # or another process has just made it
                _make(home, what, needed, make)
    except OSError as error:
        raise _refused(f"{what} cannot be written to {home}", error) from error


def writable(kind: str) -> None:
    """Raises CacheFull or CacheError where nothing can be written to `cache(kind)`, which is made."""
    home = cache(kind)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"room for one byte")
    except OSError as error:
        raise _refused(f"the cache {home} cannot be written to", error) from error


def whole(home: Path) -> bool:
    """Whether a folder is there with all of its files, each of the size that it was written with."""
    try:
        said = json.loads((home / FILES).read_bytes())
        return bool(said) and all((home / name).stat().st_size == size for name, size in said.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(home: Path, what: str, needed: int, make: Callable[[Path], None]) -> None:
    partial = home.with_name(f".{home.name}.partial")
    for torn in (partial, home):  # of a process that was killed, or damaged since
        limit.remove(torn)
    limit.make_room(needed, home.parent)
    free = shutil.disk_usage(home.parent).free
    if free < needed:
        raise CacheFull(
            f"{home.parent}: {free / 1e6:,.1f} MB free, {what} need {needed / 1e6:,.1f} MB; free some, or set "
            "XDG_CACHE_HOME to another disk"
        )
    partial.mkdir()
    try:
        make(partial)
        sizes = {f.name: f.stat().st_size for f in sorted(partial.iterdir()) if f.is_file()}
        shards.write_text(partial / FILES, json.dumps(sizes))
        shards.sync_folder(partial)
        partial.rename(home)
        shards.sync_folder(home.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refused(what: str, error: OSError) -> CacheError:
    kind = CacheFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else CacheError
    return kind(f"{what}: {error}; make room there, or set XDG_CACHE_HOME to another disk")
