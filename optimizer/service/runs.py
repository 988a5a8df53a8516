"""Which runs are there, and what was read of them? Each is read once, and then as it grows."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from pathlib import Path

from optimizer.errors import OptimizerError
from optimizer.record.confidence import MOST_SURE
from optimizer.record.folders import ELSEWHERE, LEDGER, found
from optimizer.record.owner import owner
from optimizer.record.results import Results
from optimizer.service.refusals import Refused, said
from optimizer.views.run_values import Summary
from optimizer.views.summary import summary
from optimizer.wording import shown

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as jobs have it
OWN = ".service"  # of the runs' folder: what the service itself writes
KEPT = 24  # runs whose candidates stay in memory: those that were asked for last
SETTLED_SECONDS = 2.0  # a file that was written to less long ago may have been again, in the same tick of its clock
SURE_DRIVEN = 150  # candidates of a front that is counted while the run goes on, whose driver would feel those seconds
RECENT_SECONDS = 30.0
SLICE_SECONDS = 0.25  # in which the front's growth is measured at a time while the run goes on
BUSY = 40.0  # times as long as counting took, nothing is counted again while the run goes on
Files = tuple[tuple[int, int] | None, ...]


class Reader:
    """One run's folder, for any number of threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used = time.monotonic()
        self._lock = threading.RLock()
        self._results: Results | None = None
        self._now: Results | None = None
        self._files: Files = ()
        self._reads = 0
        self._line: tuple[int, Summary | None] = (0, None)  # as it was told after so many reads
        self._sure: dict[int, float] = {}
        self.unseen: dict[int, float] = {}  # by held-out items how likely they are to be on the front, as last counted
        self._counted: Results | None = None  # what is or was gone through last
        self._left = False  # whether anything was put off until nobody drives the run
        self._news = False
        self._partly = False  # whether the front's growth is known at some places only
        self._counting: Future[None] | None = None
        self._growing: Future[None] | None = None
        self._rounds = 0
        self._rest = 0.0  # until when nothing is counted again

    @property
    def name(self) -> str:
        return self.folder.name

    def now(self) -> Results:
        """The results as they are now, which nothing changes. Raises Refused where they cannot be read."""
        with self._lock:
            self.used = time.monotonic()
            files = _files(self.folder)
            if self._now is None or not self._known(files):
                self._now, self._files = self._read(), files
                self._reads += 1
            return self._now

    def line(self) -> Summary:
        """The run in a line, of which nothing is read again that is known. Raises Refused as `now` does."""
        reads, line = self._line
        if line is None or reads != self._reads or not self._known(_files(self.folder)):
            line = self._told()
        if (owner(self.folder) is None) != (line.status in ("finished", "stopped")):
            line = self._told()
        return line

    def _told(self) -> Summary:
        """The run in a line, anew. Of threads that tell it at once the one that has read last is believed."""
        with self._lock:
            found, reads = self.now(), self._reads
        line = summary(found)
        if reads >= self._line[0]:
            self._line = reads, line
        return line

    def sure(self, pool: Executor, seconds: float = 0.0) -> dict[int, float]:
        """By candidate of the front how likely it is to be there in truth, as it was counted last.

        It is counted again in `pool` where the front has changed, for a fraction of the time; `seconds` is how long to
        wait for that.
        """
        found = self.now()
        counting = self._counting
        if found is not self._counted or self._left:
            rested = (found is not self._counted or self._partly) and time.monotonic() > self._rest
            self._left = not (self._idle and (rested or not self._goes_on(found)))
            if not self._left:
                self._counted = found
                counting = self._counting = pool.submit(_said, self._count, found)
                self._growing = pool.submit(_said, self._grow, found)
        if counting is not None and len(found.front.nondominated) <= MOST_SURE:
            wait([counting], seconds)
        return self._sure

    def rounds(self) -> int:
        """How often there has been more to tell of the same candidates, or what was put off could be counted."""
        found = self._now
        if self._left and self._idle and found is not None and not self._goes_on(found):
            self._left, self._counted = False, None
            self._rounds += 1
        return self._rounds

    def forget(self) -> None:
        """Keep little in memory; the run is read anew when it is asked for whole."""
        with self._lock:
            self._results = self._now = None
            self._sure, self.unseen, self._counted = {}, {}, None

    @property
    def _idle(self) -> bool:
        return all(work is None or work.done() for work in (self._counting, self._growing))

    def _count(self, found: Results) -> None:
        begun, before = time.monotonic(), self._sure
        try:
            front = found.front.nondominated
            later = self._goes_on(found) and SURE_DRIVEN < len(front) <= MOST_SURE
            if later or len(front) > MOST_SURE:
                on_front = set(front)
                self._sure = {n: p for n, p in before.items() if n in on_front}  # as it was counted last
                self.unseen = {n: p for n, p in self.unseen.items() if n in on_front}
            else:
                self._sure = found.confidence.seen
                self.unseen = found.confidence.unseen
        except (OptimizerError, OSError):
            later, self._sure, self.unseen = False, {}, {}
        self._left = later or found is not self._now
        self._news = any(before.get(n) != p for n, p in self._sure.items())
        self._rests(begun)

    def _goes_on(self, found: Results) -> bool:
        """Whether somebody drives the run, or did a moment ago."""
        recent = bool(found.times) and time.time() - found.times[-1][1] < RECENT_SECONDS
        return recent or owner(self.folder) is not None

    def _grow(self, found: Results) -> None:
        begun, before = time.monotonic(), len(found.growth.places)
        self._partly = not found.growth.measured(SLICE_SECONDS if self._goes_on(found) else math.inf)
        self._left = self._left or self._partly
        self._line = self._line[0], None
        self._rounds += self._news or len(found.growth.places) > before
        self._rests(begun)

    def _rests(self, begun: float) -> None:
        now = time.monotonic()
        self._rest = max(self._rest, now + BUSY * (now - begun))

    def _known(self, files: Files) -> bool:
        """Whether nothing was written since these files were read; of a ledger that lies elsewhere nobody knows."""
        return files == self._files and files[0] is not None and _settled(files)

    def _read(self) -> Results:
        try:
            if self._results is None:
                self._results = Results(self.folder)
            elif not self._results.refresh() and self._now is not None:
                return self._now
            return self._results.still()
        except BaseException as error:
            self._results = self._now = None  # of what was read by half
            if isinstance(error, OptimizerError | OSError):
                raise Refused(409, said(error)) from error
            raise


def _said(work: Callable[[Results], None], found: Results) -> None:
    """Work whose end nobody asks for: what goes wrong is in the log."""
    try:
        work(found)
    except Exception:
        log.exception("run %s cannot be counted", shown(found.folder.name, 200))


class Shelf:
    """All runs of a folder, by name."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs.absolute()
        self.own = self.runs / OWN
        self._lock = threading.Lock()
        self._readers: dict[str, Reader] = {}

    def names(self) -> list[str]:
        """The runs that there are. What is hidden is half made, or the service's own."""
        try:
            there = sorted(p for p in self.runs.iterdir() if not p.name.startswith("."))
        except OSError:
            return []
        return [p.name for p in there if found(p / LEDGER)]

    def folder(self, name: str) -> Path:
        """Where a run of this name lies, or would. Raises Refused for a name that none has, and for a link outside."""
        if not NAME.fullmatch(name):
            raise Refused(404, "no run has such a name: letters, digits, '.', '_' and '-', at most 64, no '.' first")
        folder = self.runs / name
        if folder.resolve() != self.runs.resolve() / name:
            raise Refused(404, f"{name} is a link, and the service follows none out of its folder")
        return folder

    def reader(self, name: str) -> Reader:
        """A run's reader. Raises Refused where there is none."""
        folder = self.folder(name)
        if not found(folder / LEDGER):
            raise Refused(404, f"no run {name!r} here; GET /api/runs lists them")
        if any((folder / LEDGER).with_suffix(ending).is_symlink() for ending in (Path(LEDGER).suffix, ELSEWHERE)):
            raise Refused(404, f"the ledger of {name} is a link, and the service follows none out of its folder")
        with self._lock:
            reader = self._readers.setdefault(name, Reader(folder))
            others = sorted((r for r in self._readers.values() if r is not reader), key=lambda r: -r.used)
        for idle in others[KEPT:]:
            idle.forget()
        return reader

    def line(self, name: str) -> Summary:
        """A run in a line. Raises Refused where there is none, or it cannot be read."""
        return self.reader(name).line()

    def results(self, name: str) -> Results:
        """A run's results, as they are now. Raises Refused where they cannot be read."""
        return self.reader(name).now()


def _files(folder: Path) -> Files:
    """When a ledger's files were written to last, and how large they are; None for a file that is not there."""
    told: list[tuple[int, int] | None] = []
    for name in (LEDGER, f"{LEDGER}-wal", Path(LEDGER).with_suffix(ELSEWHERE).name):
        try:
            said = (folder / name).stat()
            told.append((said.st_mtime_ns, said.st_size))
        except OSError:
            told.append(None)
    return tuple(told)


def _settled(files: Files) -> bool:
    """Whether none of them was written to just now."""
    latest = max((file[0] for file in files if file is not None), default=0)
    return time.time_ns() - latest > SETTLED_SECONDS * 1e9
