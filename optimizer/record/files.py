"""How is a file of a run's folder opened, which may be somebody else's? No link leads out, no pipe holds up."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import IO

from optimizer.errors import RunError

PLAIN = os.O_NONBLOCK | os.O_NOFOLLOW  # who opens a pipe, or a device, is not held up by it
MOST_BYTES = 1 << 30


def read(path: Path, most: int = MOST_BYTES, links: bool = False) -> bytes:
    """What a file holds; with `links` also where it is one.

    Raises FileNotFoundError where there is none, RunError for a link, for what is no file, and for over `most` bytes.
    """
    with opened(path, links=links) as file:
        known = os.fstat(file.fileno()).st_size
        found = file.read(most + 1) if known <= most else b""  # a file may hold more than its size says
    if max(known, len(found)) > most:
        raise RunError(f"{path} has more than {most} bytes, which none of a run has; move it away")
    return found


def opened(path: Path, append: bool = False, links: bool = False) -> IO[bytes]:
    """A plain file, to read it or, made where there is none, to write at its end. Raises as `read` does."""
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT if append else os.O_RDONLY
    try:
        number = os.open(path, how | (PLAIN & ~os.O_NOFOLLOW if links else PLAIN), 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        if (path.is_symlink() and not links) or not path.is_file():
            raise _refused(path) from error
        raise
    said = os.fstat(number)
    if not stat.S_ISREG(said.st_mode) or (append and said.st_nlink > 1):
        os.close(number)
        raise _refused(path)
    return os.fdopen(number, "ab" if append else "rb")


def write_new(path: Path, text: str, mode: int = 0o666) -> None:
    """A new file in the place of whatever is there, in one step; what a link there leads to stays as it is.

    Where that fails nothing is left half written: a full disk would stay full of it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)  # the system names no file where a disk is full
        raise


def _refused(path: Path) -> RunError:
    return RunError(f"{path} is a link, or no file at all, where a run keeps a plain file; move it away")
