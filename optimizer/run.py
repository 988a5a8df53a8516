"""How is a run made, driven and read? The composition root: the one place that knows every concrete part."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import RunError
from optimizer.jobs import room
from optimizer.jobs.assemble import build_driver, build_executor
from optimizer.jobs.changes import changed_content, edits, identity
from optimizer.jobs.job import Hashes, Job
from optimizer.jobs.run_search import assembled
from optimizer.output import logs
from optimizer.record import files
from optimizer.record.copied import no_copy
from optimizer.record.folders import LEDGER, SPOOL, found
from optimizer.record.foreign import readable
from optimizer.record.inherited import PARENT
from optimizer.record.ledger import Ledger
from optimizer.record.owner import owning
from optimizer.record.results import Candidate, Results

if TYPE_CHECKING:
    from optimizer.answer import Answer
    from optimizer.jobs.problem import Problem
    from optimizer.searching.search import Search
    from searchspaces.adapters.concatenate import OneAdapter


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
        if not found(self.folder / LEDGER):
            raise RunError(f"no run at {folder}; 'mergeopt run job.yaml' makes one under runs/")
        self.job = Job.load(self.folder / "job.yaml")

    @classmethod
    def create(
        cls,
        job: Job,
        runs: str | Path = "runs",
        allow_code: bool = False,
        progress: Callable[[str], None] = lambda what: None,
        parent: Run | None = None,
    ) -> Run:
        """Check everything, hash models and data, and make the run's folder in one step.

        `parent` is the run that it was forked of. Raises RunError where the folder exists, DiskFull where its disk has
        less than 1.2 times what it may need, CacheError where the cache cannot be written; PoolError, EvaluatorError or
        JobError where an input does not fit.
        """
        from optimizer.jobs.caching import check_writable
        from optimizer.jobs.founding import write_folder
        from searchspaces.models.shards import sync_folder

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
        check_writable(job, problem.pool, space)
        build_driver(job, space, problem)  # its options are checked before anything is written,
        build_executor(job, allow_code)  # and those of the executor
        folder.parent.mkdir(parents=True, exist_ok=True)
        room.check(folder.parent, room.needed(job, problem, len(space.domain.names), job.budget.evaluations))
        unfinished = folder.parent / f".{job.name}.{os.getpid()}-{secrets.token_hex(4)}"  # a killed one's may be there
        unfinished.mkdir()
        try:
            write_folder(unfinished, job, problem, space, None if parent is None else parent._as_parent(hashes))
            if parent is not None and parent._scores_alike(job, problem):
                with closing(Ledger.open(parent.folder / LEDGER, readonly=True)) as ledger:
                    ledger.copy(unfinished / PARENT)
            unfinished.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            Ledger.remove(unfinished / LEDGER)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return cls(folder)

    def search(
        self,
        on_answer: Callable[[Search, Any], None] = lambda search, answer: None,
        on_start: Callable[[Search], None] = lambda search: None,
        evaluations: int | None = None,
        allow_code: bool = False,
        heldout: bool = True,
        retry_failed: bool = False,
        on_phase: Callable[[Search], None] = lambda search: None,
    ) -> Search:
        """Run, or resume, to the budget (or to `evaluations`); the front is then scored on held-out items.

        Without `heldout` that waits for another call. Of `evaluations` and an edit of the budget in job.yaml, what came
        last is the budget from then on. With `retry_failed` what failed for want of a worker, time or memory is asked
        again first.

        Raises RunLocked where another process drives this run, RunError where models or data have changed, and where
        the folder is a copy of a run that lives elsewhere.
        """

        def told(search: Search, answer: Answer) -> None:
            logs.answered(answer)
            on_answer(search, answer)

        no_copy(self.folder)
        with owning(self.folder):
            self._same_job()
            problem, models = _with_room(self.job, self.open_problem(allow_code)), self._hashes().models
            space = problem.space(models)
            with closing(Ledger.open(self.folder / LEDGER)) as ledger:
                self._set_budget(ledger, evaluations)
                self._check_disk(ledger, problem, len(space.domain.names))
                with assembled(self.folder, problem, space, ledger, models, allow_code, told, on_phase) as search:
                    on_start(search)
                    search.run(heldout, retry_failed)
            return search

    def _check_disk(self, ledger: Ledger, problem: Problem, dimension: int) -> None:
        """Raises DiskFull where the disk has no room for what is left of the budget."""
        left = max(0, ledger.meta("evaluations") - len(ledger.times()))
        room.check(self.folder, room.needed(self.job, problem, dimension, left))

    def _set_budget(self, ledger: Ledger, evaluations: int | None) -> None:
        """Keep how many candidates are wanted: so many, or what job.yaml says where that was edited since."""
        said = self.job.budget.evaluations
        if said != ledger.meta("said_evaluations", None):
            if evaluations is None and ledger.meta("said_evaluations", None) is not None:
                evaluations = said
            ledger.set_meta("said_evaluations", said)
        if evaluations is not None:
            if evaluations < (before := ledger.meta("evaluations")):
                logs.say("the budget is %d candidates now, it was %d", evaluations, before)
            ledger.set_meta("evaluations", evaluations)

    def _same_job(self) -> None:
        """Raises RunError where job.yaml no longer says what the run was made with; budget and executor may change."""
        if found := self.edited():
            raise RunError(
                f"{self.folder}/job.yaml is not what the run was made with; {'; '.join(found)}; restore it, or go on "
                f"in a child run: mergeopt resume {self.folder.name} --fork NAME"
            )

    def edited(self) -> list[str]:
        """What job.yaml says otherwise than the job that the run was made with, one line a key."""
        with closing(Ledger.open(self.folder / LEDGER, readonly=True)) as ledger, readable(self.folder):
            return list(edits(ledger.meta("job"), identity(self.job)))

    def fork(self, name: str, allow_code: bool = False, progress: Callable[[str], None] = lambda what: None) -> Run:
        """A run of its own beside this one, of job.yaml, models and data as they are now.

        It knows its parent and what has changed. Where a recipe's scores cannot have changed (driver, objectives or
        space have, and neither models nor items nor evaluators), those that the parent has now are not computed again.
        """
        child = Job.parse(
            {**self.job.model_dump(mode="json"), "name": name, "hashes": None}, Path(self.job.root or ".")
        )
        return Run.create(child, self.folder.parent, allow_code, progress, self)

    def _as_parent(self, hashes: Hashes) -> dict[str, Any]:
        """What a child run of models and data with these hashes keeps of this one: its name, and what has changed."""
        return {"name": self.folder.name, "changed": [*self.edited(), *changed_content(self._hashes(), hashes)]}

    def _scores_alike(self, job: Job, problem: Problem) -> bool:
        """Whether a recipe has the same scores in a run of this job: same models, evaluators, items, seed."""
        with closing(Ledger.open(self.folder / LEDGER, readonly=True)) as ledger, readable(self.folder):
            made, now = ledger.meta("job"), identity(job)
            same = all(made.get(key) == now[key] for key in ("models", "evaluators", "seed"))
        return same and self._hashes() == job.hashes and self._splits() == problem.splits()

    def open_problem(self, allow_code: bool = False) -> Problem:
        """The job's models and items, checked to be those that the run was made with."""
        problem = _open(self.job, allow_code)
        problem.unchanged(self._hashes())
        if problem.splits() != self._splits():
            raise RunError(
                f"{self.folder}: the items no longer split as splits.json says; restore the data or start another run"
            )
        return problem

    def _splits(self) -> Any:
        """What splits.json says of the rows. Raises RunError where it cannot be read."""
        path = self.folder / "splits.json"
        try:
            kept = json.loads(files.read(path, links=True))
            for rows in kept.values():
                rows.pop("provenance", None)  # words, which say the same of the same rows
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise RunError(f"{path} cannot be read: {error}; restore it from a copy of the run's folder") from error
        return kept

    def results(self) -> Results:
        """The run as it stands now."""
        return Results(self.folder)

    def export(self, candidate: str | Candidate, out: str | Path | None = None, allow_code: bool = False) -> Path:
        """Write a candidate as a checkpoint, load and score it again: see `optimizer.output.export`."""
        from optimizer.output.export import export

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

        `rank` None puts the adapters' factors side by side, which loses nothing. See `optimizer.output.export`.
        """
        from optimizer.output.export import export_adapter

        chosen = self.results().pick(candidate) if isinstance(candidate, str) else candidate
        target = self._target(chosen, out, "-lora")
        return target, export_adapter(self, chosen, target, rank, allow_code)

    def _target(self, chosen: Candidate, out: str | Path | None, ending: str = "") -> Path:
        own = self.folder / "exports" / (chosen.label.replace(": ", "-").replace(" ", "-") + ending)
        return (own if out is None else Path(out)).absolute()

    def discard(self) -> bool:
        """Remove the folder of a run that has asked nothing yet; says whether it did.

        Raises RunLocked where a process drives it, or writes to its ledger.
        """
        with owning(self.folder):
            with closing(Ledger.open(self.folder / LEDGER)) as ledger:
                started = ledger.started or (self.folder / SPOOL).exists()
            if not started:
                Ledger.remove(self.folder / LEDGER)
                gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
                self.folder.rename(gone)  # at once: who waits for the lock finds no half of a run
                shutil.rmtree(gone)
        return not started

    def report(self, path: str | Path | None = None) -> Path:
        """Write the standalone report, by default to `report.html` in the run's folder."""
        from optimizer.views.report import write_report

        return write_report(self.results(), Path(path) if path is not None else self.folder / "report.html")

    def _hashes(self) -> Hashes:
        if self.job.hashes is None:
            raise RunError(f"{self.folder}/job.yaml has lost its content hashes; restore it from a copy")
        return self.job.hashes


def _open(job: Job, allow_code: bool) -> Problem:
    from optimizer.jobs.problem import Problem

    return Problem.open(job, allow_code)


def _with_room(job: Job, problem: Problem) -> Problem:
    """The problem; raises JobError where this host cannot hold its workers, before any weight is read."""
    from optimizer.jobs.needs import check_room

    check_room(job, problem.pool)
    return problem
