"""What is wrong with a run's folder? Its ledger, its driver, files cut short, inputs that changed, poison."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from optimizer.doctor.finding import Finding
from optimizer.errors import LedgerBusy, RunError
from optimizer.jobs.room import FACTOR, RESERVE
from optimizer.record import files
from optimizer.record.copied import copied
from optimizer.record.folders import LEDGER, SPOOL, found, runs_in
from optimizer.record.foreign import RESTORE
from optimizer.record.ledger import Ledger
from optimizer.record.owner import RECORD
from optimizer.record.results import Results
from optimizer.record.spool import Spool
from optimizer.run import Run
from optimizer.wording import shown

REACH = "the folder is well: see that the server can be reached, and PGPASSWORD or ~/.pgpass set"


def examine(folder: Path, allow_code: bool = False) -> Iterator[Finding]:
    """A run's folder. Models and data are hashed where their sizes or times have changed; nothing is written."""
    ledger = _ledger(folder)
    yield ledger
    if ledger.state == "wrong":
        return
    try:
        run = Run(folder)
        results = run.results()
    except (ValueError, KeyError) as error:
        yield Finding("job", "wrong", str(error), RESTORE)
        return
    if (of := copied(folder)) is not None:
        yield Finding("copy", "well", f"{of}; '{of.resume}' goes on with the run itself")
    yield _driver(folder, results)
    yield from _left_over(folder)
    yield from _spooled(folder)
    edited = run.edited()
    mend = f"restore job.yaml, or go on in a child run: mergeopt resume {folder.name} --fork NAME"
    yield Finding.of("job", not edited, "; ".join(edited) or "as the run was made with", mend)
    yield _inputs(run, allow_code)
    yield _candidates(results)
    yield _quarantined(folder, results)
    yield _room(folder)
    yield _dates(results)


def _ledger(folder: Path) -> Finding:
    path = folder / LEDGER
    if not found(path) and not (folder / "job.yaml").exists():
        runs = ", ".join(runs_in(folder.parent))
        return Finding("ledger", "wrong", f"no run at {folder}", f"name one of {folder.parent}: {shown(runs, 500)}")
    on_server = not path.is_file()
    try:
        with closing(Ledger.open(path, readonly=True)) as ledger:
            said = ledger.check()
    except LedgerBusy as error:
        return Finding("ledger", "wrong", str(error), "then ask again")
    except RunError as error:
        return Finding("ledger", "wrong", str(error), REACH if on_server else RESTORE)
    if on_server and not said:
        return Finding("ledger", "well", "on a server, which answers; the server looks after it")
    mend = f"{RESTORE}, or rescue what can be read: sqlite3 {path} .recover"
    return Finding.of("ledger", not said, "; ".join(said) or "whole", mend)


def _driver(folder: Path, results: Results) -> Finding:
    if results.driven_by:
        return Finding("driver", "well", results.driven_by)
    if (folder / RECORD).exists():
        return Finding(
            *("driver", "warning", "it was killed, or runs on another host; nothing answered is lost"),
            f"mergeopt resume {folder.name}",
        )
    return Finding("driver", "well", "none, the last one ended in order")


def _left_over(folder: Path) -> Iterator[Finding]:
    """What a killed process left half written: it is no part of the run, and takes room."""
    torn = [p for where in (folder, folder / "exports") if where.is_dir() for p in where.glob(".*")]
    torn += [p for p in folder.parent.glob(f".{folder.name}.*") if p.is_dir()]
    names = [str(p) for p in sorted(torn)]
    said, mend = ", ".join(names) or "none", f"where no export is under way: rm -r {shlex.join(names)}"
    yield Finding.of("half-written files", not torn, said, mend, "warning")
    splits = folder / "splits.json"
    try:
        json.loads(files.read(splits, links=True))
    except (OSError, ValueError, RecursionError) as error:
        yield Finding("splits", "wrong", f"{splits} cannot be read: {error}", RESTORE)


def _spooled(folder: Path) -> Iterator[Finding]:
    spool = Spool(folder / SPOOL)
    if os.path.lexists(spool.path):
        try:
            said = f"{sum(1 for _ in spool.read())} answers wait in {spool.path.name}: the ledger was locked"
        except RunError as error:
            yield Finding("spool", "wrong", str(error), RESTORE)
            return
        yield Finding("spool", "warning", said, f"mergeopt resume {folder.name} takes them in")


def _inputs(run: Run, allow_code: bool) -> Finding:
    try:
        run.open_problem(allow_code)
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not hasattr(error, "exit_code"):
            raise
        return Finding("models and data", "wrong", str(error), f"or: mergeopt resume {run.folder.name} --fork NAME")
    return Finding("models and data", "well", "those that the run was made with")


def _candidates(results: Results) -> Finding:
    failed, all_of_them = len(results.failures), len(results.candidates)
    kinds: Counter[str] = Counter(c.failure.kind for c in results.failures if c.failure is not None)
    each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    said = f"{all_of_them} answered, {failed} failed" + (f" ({each})" if failed else "")
    last = results.failures[-1] if failed else None
    mend = f"the last: {last.failure}" if last is not None else ""
    return Finding.of("candidates", 2 * failed <= all_of_them, said, mend, "warning")


def _quarantined(folder: Path, results: Results) -> Finding:
    scored = {c.recipe for c in results.scored if c.failure is None}  # of what was asked again
    failed = {c.recipe: c for c in results.failures if c.recipe not in scored}
    poison = [c for c in failed.values() if c.failure is not None and c.failure.passing]
    if not poison:
        return Finding("quarantine", "well", "empty")
    said = "; ".join(f"{c.number} ({c.attempts} attempts): {c.failure}" for c in poison[:3])
    mend = {
        "oom": "give workers more memory, or evaluators a smaller batch_size",
        "timeout": "raise executor.timeout, or give evaluators fewer items",
        "infrastructure": "see whether the system took a worker's memory (dmesg, or the container's limit), and give "
        f"it more; mergeopt show {folder.name} NUMBER has the point; score it under executor.kind: inline",
    }
    kinds = sorted({c.failure.kind for c in poison if c.failure is not None})
    said += f"; {len(poison)} in all, not asked again"
    again = f"then: mergeopt resume {folder.name} --retry-failed"
    return Finding("quarantine", "warning", said, "; ".join([*(mend[k] for k in kinds), again]))


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    least = FACTOR * RESERVE
    return Finding.of(
        "disk",
        free > least,
        f"{free / 1e9:.1f} GB free" if free > 1e9 else f"{free / 1e6:.0f} MB free",
        f"free {least / 1e6:.0f} MB at least",
    )


def _dates(results: Results) -> Finding:
    newest = max((at for _, at in results.times), default=0.0)
    well = newest <= time.time() + 60
    said = (
        "no answer is of the future" if well else "answers are dated later than now; their order does not depend on it"
    )
    return Finding.of("clock", well, said, "set this host's clock", "warning")
