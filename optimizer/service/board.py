"""How does every run stand, those included that are just being started, or never came to be one?"""

from __future__ import annotations

import logging
from pathlib import Path

from optimizer.record.folders import LEDGER, found
from optimizer.record.results import Results
from optimizer.service.processes import Started
from optimizer.service.refusals import Refused
from optimizer.service.runs import Shelf
from optimizer.service.starting import Starter
from optimizer.views.run_values import Summary
from optimizer.wording import shown

OVER = ("finished", "stopped")
log = logging.getLogger(__name__)


class Board:
    """Runs and what was started for them, a line each."""

    def __init__(self, shelf: Shelf, starter: Starter) -> None:
        self._shelf, self._starter = shelf, starter

    def names(self) -> list[str]:
        """All that has a line."""
        begun = {one.folder.name for one in self._starter.started()}
        return sorted({*self._shelf.names(), *begun})

    def line(self, name: str) -> Summary:
        """One of them. Raises Refused where there is none, or it cannot be read."""
        one = self._starter.of(name)
        if not found(self._shelf.folder(name) / LEDGER):
            if one is None:
                raise Refused(404, f"no run {name!r} here; GET /api/runs lists them")
            return _to_be(one)
        line = self._shelf.line(name)
        if one is None or line.status not in OVER:
            return line
        if one.alive:
            return line.model_copy(update={"status": "running" if line.answered else "starting"})
        if line.status == "stopped" and one.written > (line.updated or 0.0) and (error := one.error) is not None:
            return line.model_copy(update={"status": "failed", "error": error})
        return line

    def lines(self) -> list[Summary]:
        """All, the latest first; of one that cannot be read the reason."""
        lines = []
        for name in self.names():
            try:
                lines.append(self.line(name))
            except Refused as error:
                lines.append(Summary(name=shown(name, 200), status="failed", error=str(error)))
            except Exception as error:  # of one odd run: the others have their lines
                log.exception("run %s cannot be told", shown(name, 200))
                why = f"it cannot be told, see the service's log: {type(error).__name__}: {shown(str(error), 200)}"
                lines.append(Summary(name=shown(name, 200), status="failed", error=why))
        return sorted(lines, key=lambda s: -(s.updated or s.created or 0.0))

    def known(self, name: str) -> None:
        """Raises Refused where there is neither a run of this name nor anything that was started for one."""
        if not found(self._shelf.folder(name) / LEDGER) and self._starter.of(name) is None:
            raise Refused(404, f"no run {name!r} here; GET /api/runs lists them")

    def results(self, name: str) -> Results | None:
        """A run's results; None where there is no run yet. Raises Refused where they cannot be read."""
        return self._shelf.results(name) if found(self._shelf.folder(name) / LEDGER) else None

    def job(self, name: str) -> Path:
        """The file of its job. Raises Refused where there is none."""
        one = self._starter.of(name)
        if one is not None and not found(self._shelf.folder(name) / LEDGER):
            return one.folder / "job.yaml"
        return self._shelf.reader(name).folder / "job.yaml"

    def rounds(self, name: str) -> int:
        """How often what takes long was counted anew of a run."""
        return self._shelf.reader(name).rounds() if found(self._shelf.folder(name) / LEDGER) else 0


def _to_be(one: Started) -> Summary:
    """What was started, and is no run yet, or never became one."""
    line = Summary(name=one.folder.name, status="starting", created=one.at, updated=one.written or one.at)
    if one.alive:
        return line
    said = one.error or f"its process ended before there was a run: {' '.join(one.lines[-1:])}"
    return line.model_copy(update={"status": "failed", "error": said})
