"""What was made once on this host? Folders in the user's cache: whole, or not there, and held while they are used."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash
from filelock import FileLock
from pydantic import TypeAdapter

from searchspaces.cache import holds, limit
from searchspaces.errors import CacheError, CacheFull
from searchspaces.models import shards

log = logging.getLogger(__name__)

FILES = "files.json"
"""In every folder: its other files' sizes and xxh3 sums by name. Written last, so that what is torn is seen."""

_Files = TypeAdapter(dict[str, tuple[int, str]])
_Stamps = dict[str, tuple[int, int, int]]  # by file: inode, size, time of change

_checked: dict[Path, _Stamps] = {}  # what this process has read whole, and found as it was written


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
        damaged = _is_there(home)
        with FileLock(home.with_suffix(".lock")):
            # what another process has just made is read by nobody who waits: they would read it one after another
            if not _is_there(home) or (damaged and not whole(home, tell=True)):
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


def whole(home: Path, tell: bool = False) -> bool:
    """Whether a folder is there with all of its files, each as it was written.

    The bytes are read, and held against their sums, when a process first asks, and where a file is another since;
    `tell` logs where they differ.
    """
    try:
        said, found = _listed(home)
        if _checked.get(home) != found:
            if bad := [name for name, (_, sum_) in said.items() if file_sum(home / name) != sum_]:
                if tell:
                    log.warning("%s is not as it was written, and made again: look at that disk", home / bad[0])
                return False
            _checked[home] = found
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        if tell:
            log.warning("%s cannot be read (%s), and is made again: look at that disk", home, error)
        return False
    return True


def _is_there(home: Path) -> bool:
    """Whether all of a folder's files are there, by their sizes."""
    try:
        _listed(home)
    except (OSError, ValueError):
        return False
    return True


def _listed(home: Path) -> tuple[dict[str, tuple[int, str]], _Stamps]:
    """Sizes and sums that a folder says its files have, and what they are. Raises ValueError where sizes differ."""
    said = _Files.validate_json((home / FILES).read_bytes())
    found = _stamps(home, said)
    if not said or any(found[name][1] != size for name, (size, _) in said.items()):
        raise ValueError(f"{home} is not whole")
    return said, found


def _stamps(home: Path, names: Iterable[str]) -> _Stamps:
    stats = {name: (home / name).stat() for name in names}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def file_sum(file: Path) -> str:
    """Of a file's bytes: several times as fast as a disk reads them."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


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
        found = _stamps(partial, sorted(f.name for f in partial.iterdir() if f.is_file()))
        said = {name: (size, file_sum(partial / name)) for name, (_, size, _) in found.items()}
        shards.write_text(partial / FILES, _Files.dump_json(said).decode())
        shards.sync_folder(partial)
        partial.rename(home)
        _checked[home] = found
        shards.sync_folder(home.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refused(what: str, error: OSError) -> CacheError:
    kind = CacheFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else CacheError
    return kind(f"{what}: {error}; make room there, or set XDG_CACHE_HOME to another disk")
