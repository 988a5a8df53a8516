"""Are a pool's files still those that were opened? Sizes and times, asked before and after every candidate."""

from __future__ import annotations

from pathlib import Path

from searchspaces.errors import PoolError
from searchspaces.models.pool import Pool


class Stamps:
    """Size and time of change of every weight file of a pool, as they are when this is made.

    A mapped file that somebody cuts short ends the process that reads it, and one that is written over gives weights
    of two checkpoints.
    """

    def __init__(self, pool: Pool) -> None:
        self._labels = {file: c.label for c in (pool.base, *pool.opened.values()) for file in c.files}
        self._before = {file: _stamp(file) for file in self._labels}

    def check(self) -> None:
        """Raises PoolError naming the first file that was cut short, changed or removed."""
        for file, (size, time) in self._before.items():
            now, then = _stamp(file)
            if (now, then) != (size, time):
                what = f"had {size} bytes and has {now}" if now != size else "was written to"
                raise PoolError(
                    f"{self._labels[file]}: {file} {'is gone' if now < 0 else what} since it was opened; restore it "
                    "and resume: what was answered is kept"
                )


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
