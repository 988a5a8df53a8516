"""How is a run made, driven and read? The composition root: the one place that knows every concrete part."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from optimizer.assemble import build_driver, build_executor, most_steps
from optimizer.errors import RunError, RunLocked
from optimizer.job import Hashes, Job
from optimizer.ledger import Ledger
from optimizer.results import Candidate, Results

if TYPE_CHECKING:
    from optimizer.problem import Problem
    from optimizer.search import Search
    from searchspaces import CoefficientSpace
    from searchspaces.adapters.concatenate import OneAdapter

SPARE_BYTES = 50_000_000  # a run does not start on a disk with less room than this


class Run:
    """One search and its folder, `runs/NAME`.

    In a notebook:

        from optimizer import Job, Run
        run = Run.create(Job.load("job.yaml"))
        run.search()
        print(run.results().on_front)
        run.export("best", "exports/best")
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not (self.folder / "ledger.db").is_file():
            raise RunError(f"no run at {folder}; 'mergeopt run job.yaml' makes one under runs/")
        self.job = Job.load(self.folder / "job.yaml")

    @classmethod
    def create(
        cls,
        job: Job,
        runs: str | Path = "runs",
        allow_code: bool = False,
        progress: Callable[[str], None] = lambda what: None,
    ) -> Run:
        """Check everything, hash models and data, and make the run's folder in one step.

        Raises RunError where the folder exists; PoolError, EvaluatorError or JobError where an input does not fit.
        """
        folder = Path(runs).absolute() / job.name
        if folder.exists():
            raise RunError(
                f"{folder} exists already; 'mergeopt resume {job.name}' continues it, --name starts another beside it"
            )
        problem = _with_room(job, _open(job, allow_code))
        hashes = Hashes(models=problem.pool.hashes(progress), data=problem.data_hashes(progress))
        if job.hashes is not None:
            problem.unchanged(job.hashes)
        job = job.model_copy(update={"hashes": hashes})
        space = problem.space(hashes.models)
        build_driver(job, space, problem)  # its options are checked before anything is written,
        build_executor(job, allow_code)  # and those of the executor
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < SPARE_BYTES:
            raise RunError(f"less than {SPARE_BYTES // 10**6} MB free at {folder.parent}; free some room first")
        partial = folder.parent / f".{job.name}.{os.getpid()}"
        partial.mkdir()
        try:
            _write_run(partial, job, problem, space)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls(folder)

    def search(
        self,
        on_answer: Callable[[Search, Any], None] = lambda search, answer: None,
        on_start: Callable[[Search], None] = lambda search: None,
        evaluations: int | None = None,
        allow_code: bool = False,
        heldout: bool = True,
    ) -> Search:
        """Run, or resume, to the budget (or to `evaluations`); the front is then scored on held-out items.

        Without `heldout` that waits for another call.

        Raises RunLocked where another process drives this run, RunError where models or data have changed.
        """
        from optimizer.search import Search

        with self._lock():
            self._same_job()
            problem = _with_room(self.job, self.open_problem(allow_code))
            space = problem.space(self._hashes().models)
            ledger = Ledger.open(self.folder / "ledger.db")
            if evaluations is not None:
                ledger.set_meta("evaluations", evaluations)
            executor = build_executor(self.job, allow_code)
            search = Search(
                build_driver(self.job, space, problem),
                executor,
                ledger,
                problem.objectives,
                ledger.meta("evaluations"),
                lambda point: space.decode(point).hash,
                on_answer,
                problem.training.names if problem.training else (),
                most_steps(self.job),
            )
            try:
                on_start(search)
                search.run(heldout)
            finally:
                executor.close()
                ledger.close()
            return search

    def _same_job(self) -> None:
        """Raises RunError where job.yaml no longer says what the run was made with; budget and executor may change."""
        ledger = Ledger.open(self.folder / "ledger.db", readonly=True)
        made, now = ledger.meta("job"), _identity(self.job)
        ledger.close()
        for key in made:
            if made[key] != now[key]:
                raise RunError(
                    f"{self.folder}/job.yaml: {key} is not what the run was made with; restore it, or start another run"
                )

    def open_problem(self, allow_code: bool = False) -> Problem:
        """The job's models and items, checked to be those that the run was made with."""
        problem = _open(self.job, allow_code)
        problem.unchanged(self._hashes())
        kept = json.loads((self.folder / "splits.json").read_text())
        for rows in kept.values():
            rows.pop("provenance", None)  # words, which say the same of the same rows
        if problem.splits() != kept:
            raise RunError(
                f"{self.folder}: the items no longer split as splits.json says; restore the data or start another run"
            )
        return problem

    def results(self) -> Results:
        """The run as it stands now."""
        return Results(self.folder)

    def export(self, candidate: str | Candidate, out: str | Path | None = None, allow_code: bool = False) -> Path:
        """Write a candidate as a checkpoint, load it with transformers and score it again. See `optimizer.export`."""
        from optimizer.export import export

        chosen = self.results().pick(candidate) if isinstance(candidate, str) else candidate
        return export(self, chosen, self._target(chosen, out), allow_code)

    def export_adapter(
        self,
        candidate: str | Candidate,
        out: str | Path | None = None,
        rank: int | None = None,
        allow_code: bool = False,
    ) -> tuple[Path, OneAdapter]:
        """Write a merge of adapters as one LoRA of the base; its folder, and how near it is to the merge.

        `rank` None puts the adapters' factors side by side, which loses nothing. See `optimizer.export`.
        """
        from optimizer.export import export_adapter

        chosen = self.results().pick(candidate) if isinstance(candidate, str) else candidate
        target = self._target(chosen, out, "-lora")
        return target, export_adapter(self, chosen, target, rank, allow_code)

    def _target(self, chosen: Candidate, out: str | Path | None, ending: str = "") -> Path:
        own = self.folder / "exports" / (chosen.label.replace(": ", "-").replace(" ", "-") + ending)
        return (own if out is None else Path(out)).absolute()

    def discard(self) -> bool:
        """Remove the folder of a run that has no answer yet; says whether it did."""
        ledger = Ledger.open(self.folder / "ledger.db", readonly=True)
        empty = not ledger.answers()
        ledger.close()
        if empty:
            shutil.rmtree(self.folder)
        return empty

    def report(self, path: str | Path | None = None) -> Path:
        """Write the standalone report, by default to `report.html` in the run's folder."""
        from optimizer.report import write_report

        return write_report(self.results(), Path(path) if path is not None else self.folder / "report.html")

    def _hashes(self) -> Hashes:
        if self.job.hashes is None:
            raise RunError(f"{self.folder}/job.yaml has lost its content hashes; restore it from a copy")
        return self.job.hashes

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One driver a run; a second is refused, naming the first."""
        owner = self.folder / "driver.json"
        try:
            with FileLock(self.folder / "driver.lock", timeout=0):
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                owner.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
                yield
                owner.unlink(missing_ok=True)
        except Timeout as error:
            who = _owner(owner)
            raise RunLocked(
                f"{self.folder} is being driven by process {who['pid']} on {who['host']} since {who['since']}; "
                "'mergeopt status' shows how it stands"
            ) from error


def _owner(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # the other process is just writing it
        return {"host": "?", "pid": "?", "since": "?"}


def _identity(job: Job) -> dict[str, Any]:
    """What a run's answers depend on, as JSON values: all of the job but budget, executor, name and place."""
    found = job.model_dump(mode="json", exclude={"budget", "executor", "name", "root", "hashes"})
    return dict(json.loads(json.dumps(found)))


def _open(job: Job, allow_code: bool) -> Problem:
    from optimizer.problem import Problem

    return Problem.open(job, allow_code)


def _with_room(job: Job, problem: Problem) -> Problem:
    """The problem; raises JobError where this host cannot hold its workers, before any weight is read."""
    from optimizer.needs import check_room

    check_room(job, problem.pool)
    return problem


def _write_run(folder: Path, job: Job, problem: Problem, space: CoefficientSpace) -> None:
    (folder / "job.yaml").write_text(job.yaml())
    said = {name: {"provenance": lines} for name, lines in problem.provenance.items()}
    splits = {name: {**rows, **said.get(name, {})} for name, rows in problem.splits().items()}
    (folder / "splits.json").write_text(json.dumps(splits))
    meta: Mapping[str, Any] = {
        "name": job.name,
        "evaluations": job.budget.evaluations,
        "objectives": [[o.name, o.goal] for o in problem.objectives],
        "metrics": {name: metric.goal for name, metric in problem.metrics.items()},
        "space": space.describe(),
        "job": _identity(job),
        "steps": most_steps(job),
        "done": False,  # whether the driver has nothing left to ask
    }
    Ledger.create(folder / "ledger.db", meta).close()
