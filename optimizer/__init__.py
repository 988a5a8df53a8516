"""Which next, where does it run, and what happened? Names are loaded when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.jobs.job import Job
    from optimizer.record.results import Results
    from optimizer.run import Run

__all__ = ["Job", "Results", "Run"]

_HOMES = {"Job": "optimizer.jobs.job", "Results": "optimizer.record.results", "Run": "optimizer.run"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'optimizer' has no attribute {name!r}")
