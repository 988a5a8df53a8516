"""What does a job describe, once opened? Its pool, its search space, its evaluators and its objectives."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import evaluators
from evaluators.evaluator import Differentiable, Evaluator, Indices, Metric
from optimizer import objectives
from optimizer.conditions import Condition
from optimizer.driver import Items, Split
from optimizer.errors import JobError, RunError
from optimizer.fidelity import ESTIMATORS
from optimizer.jobs.changes import changed_content
from optimizer.jobs.job import EvaluatorEntry, Hashes, Job
from optimizer.rungs.order import ORDERS, TURNS, first_blocks
from optimizer.training.gathering import owners
from optimizer.training.training import Training, minibatch
from searchspaces import CoefficientSpace, Pool
from searchspaces.box import Start


@dataclass(frozen=True, eq=False)
class Problem:
    """A job with its models and items opened and checked; no weights are loaded."""

    job: Job
    pool: Pool
    evaluators: tuple[Evaluator, ...]
    objectives: tuple[objectives.Objective, ...]
    training: Training | None = None  # of drivers that ask for gradients
    constraints: tuple[Condition, ...] = ()

    @classmethod
    def open(cls, job: Job, allow_code: bool = False) -> Problem:
        """Open and check all that a job names.

        Raises PoolError, EvaluatorError or JobError; `allow_code` permits evaluators that run the user's own Python.
        """
        pool = open_pool(job)
        made = tuple(_evaluator(entry, job, allow_code) for entry in job.evaluators)
        training = Training.of(job, space_of(job, pool, {}), made)
        offered = _metrics(made)
        wanted = objectives.resolve(job.objectives, offered)
        problem = cls(job, pool, made, wanted, training, objectives.constrained(job.constraints, offered))
        if problem.training is not None:
            for evaluator in made:
                evaluator.splits = evaluator.splits.parted(problem.training.rows(evaluator))
        for method in job.space.methods:
            owners(method, pool.names, made)  # or an expert's statistics could not be gathered
        check_teachers(problem.pupils, pool.names)
        check_rungs(job, problem.sizes)
        if job.fidelity is not None and job.fidelity.choose == TURNS:  # others are known when candidates are
            for e in made:
                rows, first = e.splits.calibration, job.fidelity.rungs[0]
                blocks = first_blocks(len(rows), first, job.seed, e.name)
                e.splits = e.splits.in_blocks([rows[places] for places in blocks])
        return problem

    @property
    def pupils(self) -> list[Differentiable]:
        """The evaluators that follow an expert's outputs, in a loss or in a metric."""
        return pupils(self.evaluators, self.training)

    @property
    def sizes(self) -> dict[str, int]:
        """How many items candidates are scored on, by evaluator."""
        return {e.name: len(e.splits.calibration) for e in self.evaluators}

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by its qualified name."""
        return _metrics(self.evaluators)

    def space(self, hashes: Mapping[str, str]) -> CoefficientSpace:
        """The search space, whose recipes carry these content hashes of the models."""
        return space_of(self.job, self.pool, hashes)

    def rows(self, evaluator: Evaluator, items: Items) -> Indices:
        """The rows of an evaluator that a question is answered on."""
        rows: Indices = getattr(evaluator.splits, items.split)
        if items.places:
            return rows[list(items.places[self.evaluators.index(evaluator)])]
        return minibatch(rows, items, self.job.seed, evaluator.name)

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Row numbers by evaluator and split, as `splits.json` keeps them."""
        names: list[Split] = ["calibration", "heldout", *(["train"] if self.training else [])]  # type: ignore[list-item]
        return {e.name: {split: self.rows(e, Items(split)).tolist() for split in names} for e in self.evaluators}

    def unchanged(self, before: Hashes) -> None:
        """Raises RunError naming the first model, data file or data set whose content is not what `before` says."""
        contents = self.contents()
        # a run from before contents were kept says nothing of them
        data = {n: h for n, h in self.data_hashes().items() if n not in contents or n in before.data}
        for line in changed_content(before, Hashes(models=self.pool.hashes(), data=data)):
            raise RunError(
                f"{line}: it has changed since the run was made; restore it, or go on in a child run: "
                "resume --fork NAME"
            )

    @property
    def provenance(self) -> dict[str, list[str]]:
        """Where items are from, in sentences, by evaluator: of those that chose them for the user."""
        said = {e.name: list(getattr(e, "provenance", ())) for e in self.evaluators}
        return {name: lines for name, lines in said.items() if lines}

    def data_hashes(self, progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
        """sha256 of every data file, by its absolute path, and of what else evaluators read (see `contents`)."""
        found = self.contents()
        for path in sorted({f for e in self.evaluators for f in e.files}):
            progress(path.name)
            with path.open("rb") as file:
                found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def contents(self) -> dict[str, str]:
        """sha256 of what was read that is no file of the user's, by evaluator and its own name for it."""
        return {
            f"{e.name}: {what}": digest for e in self.evaluators for what, digest in getattr(e, "contents", {}).items()
        }


def pupils(made: Sequence[Evaluator], training: Training | None) -> list[Differentiable]:
    """Those of some evaluators that follow an expert's outputs, in a loss or in a metric."""
    followed = training.tasks if training is not None and training.follows else ()
    return [cast(Differentiable, e) for e in made if e in followed or getattr(e, "learns", False)]


def check_teachers(made: Sequence[Differentiable], experts: Sequence[str]) -> None:
    """Raises JobError where one of these evaluators follows a model that is no expert."""
    for evaluator in made:
        if evaluator.teacher not in experts:
            raise JobError(
                f"evaluator {evaluator.name!r}: its teacher {evaluator.teacher!r} is no expert; there are: "
                f"{', '.join(experts)}"
            )


def check_rungs(job: Job, sizes: Mapping[str, int]) -> None:
    """Raises JobError where a job's fidelity asks for items that there are not, or for an estimator that is none."""
    if job.fidelity is None:
        return
    most, (name, least) = job.fidelity.rungs[-1], min(sizes.items(), key=lambda row: row[1], default=("", math.inf))
    if most >= least:
        raise JobError(
            f"fidelity.rungs: {most} items of each task come before all, and evaluator {name!r} has {least} "
            f"calibration items; name at most {least - 1}, or leave fidelity out"
            if least > 1
            else f"fidelity.rungs: evaluator {name!r} has {least} calibration item, which is all; leave fidelity out"
        )
    if job.fidelity.estimate not in ESTIMATORS:
        raise JobError(f"fidelity.estimate: no {job.fidelity.estimate!r}; there are: {', '.join(ESTIMATORS)}")
    if job.fidelity.choose not in ORDERS:
        raise JobError(f"fidelity.choose: no {job.fidelity.choose!r}; there are: {', '.join(ORDERS)}")


def _metrics(made: Sequence[Evaluator]) -> dict[str, Metric]:
    return {f"{e.name}.{metric.name}": metric for e in made for metric in e.metrics}


def space_of(job: Job, pool: Pool, hashes: Mapping[str, str]) -> CoefficientSpace:
    """The search space of a job over its pool. Raises RecipeError for methods, options and bounds that do not fit."""
    space = job.space
    return CoefficientSpace(
        tensors=[t.name for t in pool.merged],
        experts=pool.names,
        method=space.method,
        options=space.said,
        granularity=space.granularity,
        bounds=space.bounds,
        start=_start(job, pool),
        frozen=space.frozen,
        simplex=space.simplex,
        seed=job.seed,
        hashes=hashes,
        blocks=pool.blocks,
    )


def _start(job: Job, pool: Pool) -> Start:
    """The job's start, else 0.3 where bounds or simplex allow it, else the nearest to it that they do."""
    space = job.space
    if space.start is not None:
        return space.start
    if space.simplex:
        return min(0.3, 1 / len(pool.names))
    if isinstance(space.bounds, dict):
        return {name: min(max(0.3, low), high) for name, (low, high) in space.bounds.items()}
    low, high = space.bounds
    return min(max(0.3, low), high)


def open_pool(job: Job) -> Pool:
    """The models that a job names; headers are read, and no weights. Raises PoolError."""
    models = job.models
    return Pool.open(
        _model(job, models.base),
        {name: _model(job, where) for name, where in models.experts.items()},
        heads=models.heads,
        exclude=models.exclude,
        vocabulary=models.vocabulary,
        sources=models.sources,
    )


def _model(job: Job, text: str) -> str | Path:
    """A local folder where there is one; else the text as it is, which the pool takes for a hub id or refuses."""
    path = job.path(text)
    return path if path.exists() or "@" not in text else text


def _evaluator(entry: EvaluatorEntry, job: Job, allow_code: bool) -> Evaluator:
    kind = evaluators.load(entry.kind)
    root = Path(job.root or ".")
    if not allow_code and (where := _code(kind, entry, root)) is not None:
        raise JobError(
            f"evaluator {entry.name!r} (kind {entry.kind}) runs Python code that the job names{where}; "
            "read that code, then say --allow-code on the command line"
        )
    return kind(entry.name, entry.options, root)


def _code(kind: type[Evaluator], entry: EvaluatorEntry, root: Path) -> str | None:
    """None where making an evaluator runs no code of the user's; else the places that name it, where they are known."""
    if kind.runs_code:
        return ""
    named = getattr(kind, "code", None)
    lines = named(entry.name, entry.options, root) if named is not None else ()
    return f" ({'; '.join(lines)})" if lines else None
