"""Which driver and which executor does a job name? Made from its entries, their options checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from optimizer.drivers.walks import descent
from optimizer.errors import JobError
from optimizer.jobs.job import Job
from optimizer.jobs.job_search import Fidelity
from optimizer.rungs.plan import Plan
from optimizer.searching.budget import Limits
from optimizer.wording import in_line

if TYPE_CHECKING:
    from optimizer.driver import Driver
    from optimizer.executors.executor import Executor
    from optimizer.jobs.problem import Problem
    from optimizer.record.attempt import Attempt
    from optimizer.rungs.ladder import Ladder, PerItem
    from searchspaces import CoefficientSpace


def build_driver(job: Job, space: CoefficientSpace, problem: Problem, anchors: int | None = None) -> Driver:
    """The job's driver: wrapped for several objectives if it knows only one, anchors first unless switched off.

    `anchors`: at most so many, of a run whose ledger says `most_anchors` of its first budget; None: all.
    """
    from optimizer import drivers
    from optimizer.driver import Trained
    from optimizer.drivers.anchors import Anchored
    from optimizer.drivers.scalarised import Scalarised

    entry, objectives = drivers.find(job.driver.name), len(problem.objectives)
    kind, options = entry.load(), driver_options(job)
    if isinstance(options, descent.Options) and options.start == "best" and not job.driver.anchors:
        raise JobError(
            "driver.start: best is the best anchor, and driver.anchors is false; set it true, or start: space"
        )
    inner: Driver
    if entry.objectives == "one" and objectives > 1:
        inner = Scalarised(
            space.domain,
            objectives,
            job.seed,
            lambda seed: kind(space.domain, 1, seed, options),
            job.driver.preferences,
            job.driver.scalarisation,
        )
    elif given := _of_wrapped(job):
        why = "trades objectives off by itself" if entry.objectives == "any" else "has one objective to search"
        raise JobError(f"driver {job.driver.name!r} {why}; remove driver.{given}")
    else:
        inner = kind(space.domain, objectives, job.seed, options)
    if problem.training is not None and isinstance(inner, Trained):
        inner.trained_on(len(problem.training.tasks))
    return Anchored(space.domain, space.anchors(anchors), inner, job.seed) if job.driver.anchors else inner


def _of_wrapped(job: Job) -> str | None:
    """What the job says that is for a driver of one objective which several are searched with."""
    if job.driver.preferences is not None:
        return "preferences"
    return "scalarisation" if job.driver.scalarisation != "sum" else None


def most_anchors(job: Job) -> int:
    """How many anchors a run of this budget asks at most: half of it is for the search."""
    return max(1, job.budget.evaluations // 2)


def driver_options(job: Job) -> Any:
    """The options of the job's driver, checked. Raises JobError naming those that do not fit, and those there are."""
    from optimizer import drivers

    kind = drivers.find(job.driver.name).load()
    try:
        return kind.Options.model_validate(job.driver.options)
    except ValidationError as error:
        known = ", ".join(kind.Options.model_fields) or "none"
        found = "; ".join(
            f"{in_line('.'.join(str(p) for p in e['loc']))}: "
            + ("no such option" if e["type"] == "extra_forbidden" else str(e["msg"]))
            for e in error.errors(include_url=False)
        )
        raise JobError(f"driver {job.driver.name!r}: {found}; its options are: {known}") from error


def most_steps(job: Job) -> int:
    """How many gradients the job's driver asks at most."""
    from optimizer import drivers

    return int(driver_options(job).steps) if drivers.find(job.driver.name).asks_gradients(job.driver.gradients) else 0


def limits(job: Job) -> Limits:
    """What the job's run may spend beside evaluations."""
    b = job.budget
    return Limits(b.hours, b.gpu_hours, b.money, b.price_per_hour or 0.0, job.gpus)


def build_ladder(job: Job, problem: Problem, values: Callable[[int], PerItem]) -> Ladder | None:
    """What lets candidates go on to more items, where the job has a fidelity; `values` reads per-item results."""
    from optimizer.rungs.ladder import Ladder

    if job.fidelity is None:
        return None
    return Ladder(plan_of(job.fidelity), problem.objectives, problem.constraints, problem.sizes, job.seed, values)


def plan_of(entry: Fidelity) -> Plan:
    """A job's `fidelity` as plain values."""
    return Plan(tuple(entry.rungs), entry.rule, entry.keep, entry.final, entry.sure, entry.estimate, entry.choose)


def build_executor(
    job: Job, allow_code: bool, attempt: Attempt | None = None, ladder: Ladder | None = None
) -> Executor:
    """The job's executor, its workers not started; one that works in this process says in `attempt` at what."""
    from optimizer.executors.parts import Parts
    from optimizer.executors.rungs import Rungs
    from optimizer.executors.worker import Worker, specification
    from optimizer.training.training import PARTS

    spec, entry = specification(job, allow_code), job.executor
    made: Executor
    if entry.kind == "inline":
        if entry.timeout is not None:
            raise JobError("executor.timeout needs kind: ray, where a worker can be stopped; remove it, or use ray")
        from optimizer.executors.executor import Inline

        made = Inline(Worker.TARGET, spec, attempt)
    else:
        from optimizer.executors.cluster import RayExecutor

        made = RayExecutor(
            *(Worker.TARGET, spec, entry.workers, entry.cpus, entry.gpus, entry.timeout, entry.address),
            memory=int(entry.memory * 1e9),
            patience=entry.patience,
        )
    made = Parts(made, job.driver.parts or PARTS)
    return made if ladder is None else Rungs(made, ladder)
