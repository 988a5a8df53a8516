"""How much disk will a run's folder need? Bytes of its ledger, from the job; refused before the start where short."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import DiskFull
from optimizer.jobs.assemble import most_steps
from optimizer.jobs.job import Job

if TYPE_CHECKING:
    from optimizer.jobs.problem import Problem

RESERVE = 4_000_000  # SQLite's write-ahead log (2 MB), splits, the report
FACTOR = 1.2  # of what is needed must be free
PAGE = 8192  # bytes: what does not fit beside others in a page has pages of its own
ROW = 120  # bytes of a row's numbers and names


def needed(job: Job, problem: Problem, dim: int, left: int) -> int:
    """Bytes that `left` candidates, each scored on held-out items too, and the driver's gradients take at most."""
    metrics = {e.name: len(e.metrics) for e in problem.evaluators}
    candidate = 0
    for split in ("calibration", "heldout"):
        candidate += 2 * ROW + _blob(8 * dim) + ROW * sum(metrics.values())
        for e in problem.evaluators:
            candidate += metrics[e.name] * (ROW + _blob(4 * len(getattr(e.splits, split))))
    rows = len(problem.training.tasks) if problem.training else 0
    gradient = 3 * ROW + _blob(8 * dim) + _blob(8 * dim * rows) + ROW * rows
    return RESERVE + left * candidate + most_steps(job) * gradient


def check(folder: Path, bytes_needed: int) -> None:
    """Raises DiskFull where the disk of a folder has less than 1.2 times these bytes free."""
    free = shutil.disk_usage(folder).free
    if free < FACTOR * bytes_needed:
        raise DiskFull(
            f"{folder}: the run may need {bytes_needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there; free "
            f"{(FACTOR * bytes_needed - free) / 1e6:.1f} MB more, or keep runs on another disk (--runs)"
        )


def standing(path: Path) -> Path:
    """The path itself where it is there, else the nearest folder above it that is."""
    for there in (path, *path.parents):
        with contextlib.suppress(OSError):  # it is still to be made, or can be no path
            there.stat()
            return there
    return Path("/")


def _blob(count: int) -> int:
    return count + ROW if count < PAGE // 4 else -(-count // PAGE) * PAGE
