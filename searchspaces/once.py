"""What was made once on this host? Folders in the user's cache: whole, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from searchspaces import shards
from searchspaces.errors import PoolError


def cache(kind: str) -> Path:
    """Where folders of a kind are kept; safe to remove when no run is under way."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mergeopt" / kind


def made_once(home: Path, what: str, needed: int, make: Callable[[Path], None]) -> None:
    """See that the folder `home` is there: `make(partial)` fills it beside its place, in one process, under a lock.

    `what` is said in messages, in the plural; `needed` is its size in bytes. Raises PoolError where the disk has no
    room, or does not let us write.
    """
    if home.is_dir():
        return
    try:
        home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(home.with_suffix(".lock")):
            if not home.is_dir():  # or another process has just made it
                _make(home, what, needed, make)
    except OSError as error:
        raise PoolError(
            f"{what} cannot be written to {home}: {error}; make room there, or set XDG_CACHE_HOME to another disk"
        ) from error


def _make(home: Path, what: str, needed: int, make: Callable[[Path], None]) -> None:
    partial = home.with_name(f".{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    free = shutil.disk_usage(home.parent).free
    if free < needed:
        raise PoolError(
            f"{home.parent}: {free / 1e9:.2f} GB free, {what} need {needed / 1e9:.2f} GB; free some, or set "
            "XDG_CACHE_HOME to another disk"
        )
    partial.mkdir()
    try:
        make(partial)
        shards.sync_folder(partial)
        partial.rename(home)
        shards.sync_folder(home.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
