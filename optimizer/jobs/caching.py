"""How much of the cache will a job need, and is there room for it? Told from headers, before anything is made."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from optimizer.jobs.job import Job
from optimizer.jobs.needs import gb
from optimizer.jobs.room import standing
from optimizer.training.gathering import kind_of
from searchspaces import CoefficientSpace, Pool
from searchspaces.cache import limit, once
from searchspaces.facts.asked import combinations, room


@dataclass(frozen=True)
class CacheNeeds:
    """Bytes. What the cache holds already is among the needs too, and may be what is needed."""

    kinds: dict[str, int]  # needed, by kind
    held: int  # of any kind, by whichever job
    most: int  # its limit
    free: int  # on the disk of the cache
    folder: Path
    combinations: int  # of methods and values of options, each with processed task vectors of its own

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    @property
    def refusal(self) -> str | None:
        """Why the disk has no room, even if all else in the cache went, and what to do; None where it has."""
        if self.total <= self.free + self.held:
            return None
        fewer = ", or list fewer values or methods" if self.combinations > 1 else ""
        return (
            f"the cache at {self.folder} needs {gb(self.total)} ({self.said}), where {gb(self.free)} are free and "
            f"{gb(self.held)} are its own already: free some, set XDG_CACHE_HOME to another disk{fewer}"
        )

    @property
    def warning(self) -> str | None:
        """That the limit is less than what the job uses at once; None where it is not."""
        if self.total <= self.most:
            return None
        return (
            f"the cache will hold {gb(self.total)} while this job runs, more than its limit of {gb(self.most)}: what "
            f"is in use stays, and all else leaves; set {limit.LIMIT} to {math.ceil(self.total / 1e9)} or more to "
            "keep both"
        )

    @property
    def said(self) -> str:
        """The kinds, the largest first."""
        found = sorted(self.kinds.items(), key=lambda kind: -kind[1])
        return ", ".join(f"{_name(name, self.combinations)} {gb(size)}" for name, size in found)

    @classmethod
    def of(cls, job: Job, pool: Pool, space: CoefficientSpace) -> CacheNeeds:
        """Of a job whose pool and space are open, and of this host. Raises PoolError for a limit that is none."""
        folder = limit.root()
        return cls(
            _kinds(job, pool, space),
            sum(limit.sizes().values()),
            limit.limit(),
            shutil.disk_usage(standing(folder)).free,
            folder,
            len(combinations(space)),
        )


def check_writable(job: Job, pool: Pool, space: CoefficientSpace) -> None:
    """Raises CacheError where workers of this host could not write there what the job will need.

    Those of a cluster that the job names run elsewhere.
    """
    if job.executor.kind == "inline" or job.executor.address == "local":
        for kind in _kinds(job, pool, space):
            once.writable(kind)


def _name(kind: str, combinations: int) -> str:
    return f"{kind} task vectors for {combinations} combinations" if kind == "processed" and combinations > 1 else kind


def _kinds(job: Job, pool: Pool, space: CoefficientSpace) -> dict[str, int]:
    return {**_statistics(job, pool), **room(pool, space)}


def _statistics(job: Job, pool: Pool) -> dict[str, int]:
    """At most: of Grams, as if every matrix were a linear layer's."""
    wanted = {kind_of(method) for method in job.space.methods} - {""}
    each = {
        "gram": sum(4 * t.shape[-1] ** 2 for t in pool.merged if len(t.shape) == 2),
        "fisher": sum(4 * t.numel for t in pool.merged),
    }
    size = sum(each.get(kind, 0) for kind in wanted) * len(pool.names)
    return {"statistics": size} if size else {}
