"""Which folders of the cache are in use? Each process holds what it has used until it ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from threading import RLock

LOCKS = ".in-use"
"""One file beside the kinds of folders; a folder is a byte of it, locked for reading by all who use the folder.

The system lets go of record locks when a process ends. One open file serves any number of folders.
"""

_guard = RLock()
_held: set[Path] = set()
_open: tuple[Path, int] | None = None  # the file of the cache that was last used, and its descriptor


def hold(home: Path) -> None:
    """Keep the folder `home`, there already or not, from being removed by others until this process ends.

    Waits while it is being removed. On a disk that does not lock, nothing is held, and nothing is removed either.
    """
    with _guard, contextlib.suppress(OSError):
        if home not in _held:
            fcntl.lockf(_descriptor(home), fcntl.LOCK_SH, 1, _byte(home))
            _held.add(home)
        os.utime(home)  # when it was last used; there is no such time where it is still to be made


@contextlib.contextmanager
def unused(home: Path) -> Iterator[bool]:
    """Whether nobody uses the folder `home`; where that is so, nobody starts to, inside."""
    with _guard:
        try:
            if home in _held:
                free = False
            else:
                fcntl.lockf(_descriptor(home), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(home))
                free = True
        except OSError:
            free = False
        try:
            yield free
        finally:
            if free:
                fcntl.lockf(_descriptor(home), fcntl.LOCK_UN, 1, _byte(home))


def release() -> None:
    """Let go of all folders, as at this process's end: what it has mapped of them stays readable."""
    global _open
    with _guard:
        _held.clear()
        if _open is not None:
            os.close(_open[1])
        _open = None


def _byte(home: Path) -> int:
    said = f"{home.parent.name}/{home.name}"
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], "little")


def _descriptor(home: Path) -> int:
    """Of the file of locks. A cache elsewhere, as after a change of XDG_CACHE_HOME, lets go of what was held before."""
    global _open
    path = home.parent.parent / LOCKS
    if _open is None or _open[0] != path:
        release()
        _open = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return _open[1]


def _forget() -> None:
    """In a child after a fork: its parent's locks are not its own."""
    global _guard
    _guard = RLock()  # which another of the parent's threads may have held
    _held.clear()


os.register_at_fork(after_in_child=_forget)
