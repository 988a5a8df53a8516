"""How does a candidate leave as a checkpoint, and how far is it? By `mergeopt export`, in a process of its own."""

from __future__ import annotations

import re
import secrets
import threading
from pathlib import Path
from typing import Literal

from optimizer.errors import OptimizerError
from optimizer.record.candidate import Candidate
from optimizer.record.results import Results
from optimizer.service import processes
from optimizer.service.answers import Export
from optimizer.service.processes import Started
from optimizer.service.refusals import Refused
from optimizer.service.runs import NAME, Shelf
from optimizer.service.settings import Settings
from optimizer.views.summary import job_of

ID = re.compile(r"[0-9a-f]{16}")
MOST_AT_ONCE, MOST_KEPT = 4, 500
READ, WRITTEN, SCORED = 0.05, 0.6, 0.95  # how far it is when it begins to write, to score, and to be done


class Exporter:
    """Starts exports, and knows those that were started."""

    def __init__(self, settings: Settings, shelf: Shelf) -> None:
        self._settings, self._shelf = settings, shelf
        self._own = shelf.own / "exports"
        self._lock = threading.Lock()  # two of one name at once are looked at one after the other

    def start(self, run: str, results: Results, chosen: Candidate, name: str | None) -> str:
        """Write a candidate under the run's exports, load it again and score it; the export's id.

        Raises Refused where it has no scores, or where there is something of that name.
        """
        if chosen.failure is not None:
            raise Refused(409, f"candidate {chosen.number} failed ({chosen.failure}); choose one that was scored")
        if chosen.is_reference:
            raise Refused(409, f"{chosen.label} is a model of the pool as it is, and no merge; copy its own folder")
        if name is not None and not NAME.fullmatch(name):
            raise Refused(422, "name: expected letters, digits, '.', '_' and '-', at most 64, no '.' first")
        home = results.folder / "exports"
        if home.resolve() != self._shelf.runs.resolve() / run / "exports":
            raise Refused(409, f"{run}/exports is a link, and the service follows none out of its folder")
        target = home / (name or re.sub(r"[^A-Za-z0-9._-]+", "-", chosen.label).lstrip("._-")[:64])
        with self._lock:
            return self._start(run, results, chosen, target)

    def _start(self, run: str, results: Results, chosen: Candidate, target: Path) -> str:
        started = self._started()
        going = [one for one in started if one.alive]
        if target.exists() or any(one.about.get("path") == str(target) for one in going):
            raise Refused(409, f"{run} has an export {target.name!r} already; name this one otherwise")
        if len(going) >= MOST_AT_ONCE:
            raise Refused(409, f"{MOST_AT_ONCE} exports are under way; wait for one of them")
        for one in started:  # what failed under that name is not done when this one is
            if one.about.get("path") == str(target):
                (one.folder / processes.RECORD).unlink(missing_ok=True)
        made = secrets.token_hex(8)
        about = {"run": run, "candidate": chosen.label, "path": str(target), "bytes": _size(results)}
        code = ["--allow-code"] if self._settings.allow_code else []
        command = ["export", f"--out={target}", f"--runs={self._shelf.runs}", *code, "--", run, str(chosen.number)]
        processes.start(self._own / made, about, command)
        return made

    def all(self) -> list[Export]:
        """Every export that was started here, the latest first."""
        return [_told(one) for one in sorted(self._started(), key=lambda s: -s.at)[:MOST_KEPT]]

    def one(self, name: str) -> Export:
        """One of them. Raises Refused where there is none."""
        found = processes.found(self._own / name) if ID.fullmatch(name) else None
        if found is None:
            raise Refused(404, f"no export {name!r} was started here")
        return _told(found)

    def _started(self) -> list[Started]:
        there = self._own.iterdir() if self._own.is_dir() else iter(())
        return [one for p in there if ID.fullmatch(p.name) and (one := processes.found(p)) is not None]


def _told(one: Started) -> Export:
    path = Path(str(one.about.get("path", "")))
    alive = one.alive  # before the folder is looked for, which gets its name in one step, at the end
    state: Literal["running", "done", "failed"] = "done" if path.is_dir() else "running" if alive else "failed"
    progress, step = (1.0, "done") if state == "done" else _progress(one, path)
    failed = state == "failed"
    return Export(
        id=one.folder.name,
        run=str(one.about.get("run", "")),
        candidate=str(one.about.get("candidate", "")),
        state=state,
        progress=progress,
        step="failed" if failed else step,
        path=str(path) if state == "done" else None,
        error=(one.error or ": ".join([one.ending, *one.lines[-1:]])) if failed else None,
        rescored=state == "done",
    )


def _progress(one: Started, path: Path) -> tuple[float, str]:
    """How far it is, by the bytes of the folder that it writes before that gets its name."""
    partial = path.with_name(f".{path.name}.{one.process.pid}")
    try:
        sizes = {p.name: p.stat().st_size for p in partial.iterdir() if p.is_file()}
    except OSError:
        return 0.0, "reading models and items"
    if "README.md" in sizes:
        return SCORED, "giving it its name"
    if "recipe.yaml" in sizes:
        return WRITTEN, "loading it again, and scoring it"
    written = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    whole = max(int(one.about.get("bytes") or 0), written, 1)
    return round(READ + (WRITTEN - READ) * written / whole, 3), "writing weights"


def _size(results: Results) -> int:
    """About how many bytes a merge has: those of the base's weights, where they lie in a folder of this host."""
    try:
        job = job_of(results.folder)
        return sum(p.stat().st_size for p in job.path(job.models.base).glob("*.safetensors"))
    except (OptimizerError, OSError, ValueError):
        return 0
