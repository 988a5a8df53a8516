"""What will a job need? Everything validated, one candidate scored, memory and time told before anything is spent."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from evaluators.evaluator import Evaluator, Indices
from optimizer.driver import Items, Question, Split
from optimizer.drivers.walks.descent import Options
from optimizer.errors import JobError
from optimizer.jobs.counted import share_in_all
from optimizer.jobs.job import Job
from optimizer.jobs.paper import on_paper
from optimizer.training.training import PARTS

if TYPE_CHECKING:
    from optimizer.answer import Answer
    from optimizer.executors.worker import Worker
    from optimizer.jobs.problem import Problem
    from searchspaces.domain import Domain


def check_job(job: Job, allow_code: bool = False) -> dict[str, Any]:
    """Validate a job as a run would, and score its starting point once in this process.

    Times are seconds for one candidate on this machine; memory is the private bytes that one worker holds.
    Raises what a run would raise; JobError where the starting point itself cannot be scored.
    """
    from optimizer.executors.worker import Worker, specification
    from optimizer.jobs.assemble import build_driver, most_anchors
    from optimizer.record.postgres import Postgres
    from searchspaces.cache.compiled import compiling

    server = Postgres.usable(job.ledger) if job.ledger else None  # before minutes are spent
    paper = on_paper(job)
    if paper["refusal"]:
        raise JobError(f"the job does not fit here: {paper['refusal']}")
    before = _private_bytes()
    started = time.perf_counter()
    worker = Worker(specification(job, allow_code), "check")
    ready = max(0.0, time.perf_counter() - started - compiling.seconds)  # later workers find the kernels on the disk
    domain, pool = worker.space.domain, worker.problem.pool
    build_driver(job, worker.space, worker.problem)
    every = len(worker.space.anchors()) if job.driver.anchors else 0
    anchors = min(every, most_anchors(job))
    return {
        "name": job.name,
        "ledger": server,
        "experts": list(pool.names),
        "adapters": {n: {"ranks": list(a.ranks), "bytes": a.bytes} for n, a in pool.adapters.items()},
        "parameters": pool.parameters,
        "dimension": len(domain.names),
        "groups": domain.shape[0],
        "coefficients": domain.shape[0] * domain.shape[1],
        "further": _further(domain),
        "objectives": [f"{o.name} ({o.goal})" for o in worker.problem.objectives],
        "constraints": [str(c) for c in worker.problem.constraints],
        "items": {e.name: {split: len(rows) for split, rows in _splits(e)} for e in worker.problem.evaluators},
        "provenance": [line for lines in worker.problem.provenance.values() for line in lines],
        "anchors_in_all": every,
        **_spending(job, worker, ready, anchors),
        "worker_private_bytes": _private_bytes(),
        "empty_worker_private_bytes": before,
        "pool_bytes": pool.base.bytes + sum(e.bytes for e in pool.experts.values()),
        "reads": worker.resident.reads(worker.space.decode(domain.start)),
        "layers": _layers(worker),
        "paper": paper,
        "available_bytes": psutil.virtual_memory().available,
        "taught_bytes": sum(file.stat().st_size for file in worker.taught.values()),
        "kernels_seconds": compiling.seconds,
        "warnings": [*paper["warnings"], *_warnings(job, anchors, every)],
    }


def _spending(job: Job, worker: Worker, ready: float, anchors: int) -> dict[str, Any]:
    """How much a search will ask, and what that will take and cost by the times of its starting point.

    `ready`: seconds that a worker takes to start; `anchors`: how many the driver asks.
    """
    from optimizer import drivers
    from optimizer.jobs.assemble import driver_options, limits, most_steps
    from optimizer.jobs.references import references

    compared = references(worker.problem, worker.space)
    heldout = _scored(worker, "heldout").seconds  # it warms torch's caches
    start = _scored(worker, "calibration")
    _check_rungs(job, worker.problem, start)
    seconds = start.seconds
    evaluations, workers = job.budget.evaluations, 1 if job.executor.kind == "inline" else job.executor.workers
    gradient: float | None = None
    steps, side_by_side, options = most_steps(job), 1, driver_options(job)
    if steps:
        gradient = _gradient(worker, options)
        side_by_side = min(workers, job.driver.parts or PARTS)
    ends = drivers.find(job.driver.name).ends
    if isinstance(options, Options):  # of a walk: steps one after the other, with a score now and then
        evaluations = min(evaluations, anchors + 1 + math.ceil(steps / options.every))
    scored = evaluations + len(compared)
    share, final, fewest = 1.0, 0.0, min(worker.problem.sizes.values())
    if job.fidelity is not None:
        share, final = job.fidelity.usual_share(fewest), job.fidelity.final_share(fewest)
    in_all = share_in_all(evaluations, anchors, share, final)[1]
    asked = in_all * evaluations + len(compared)  # of whole candidates' time
    search_seconds = ready + asked * seconds / workers + steps * (gradient or 0.0) / side_by_side
    most = limits(job)
    spends = most.spent(search_seconds / 3600, workers)
    return {
        "evaluations": evaluations,
        "rungs": [] if job.fidelity is None else job.fidelity.rungs,
        "usual_share": share,
        "search_share": in_all,
        "anchors": min(anchors, evaluations),
        "references": compared,
        "workers": workers,
        "worker_start_seconds": ready,
        "candidate_seconds": seconds,
        "heldout_seconds": heldout,
        "gradient_seconds": gradient,
        "gradients": steps,
        "ends_by_itself": ends or isinstance(options, Options),
        "search_seconds": search_seconds,
        "heldout_seconds_at_most": scored * heldout / workers,
        "spends": spends,
        "reached": most.over(spends),
    }


def _further(domain: Domain) -> list[str]:
    """What is searched beside coefficients, and where it may go, one line a coordinate."""
    lines = []
    for i in range(domain.shape[0] * domain.shape[1], len(domain.names)):
        span = ", ".join(domain.labels[i]) if i in domain.labels else f"{domain.low[i]:g} to {domain.high[i]:g}"
        lines.append(
            f"{domain.names[i]}: {span}{' (whole)' if domain.kinds[i] == 'integer' and i not in domain.labels else ''}"
        )
    return lines


def _layers(worker: Worker) -> list[str]:
    """Which groups of layers are on which device, one line a device."""
    groups = {name: layer for layer, names in worker.problem.pool.groups("layer").items() for name in names}
    lines = []
    for device, names in worker.resident.placement().items():
        there = list(dict.fromkeys(groups[name] for name in names))
        lines.append(f"{device}: {there[0]}" + (f" to {there[-1]} ({len(there)})" if len(there) > 1 else ""))
    return lines


def _splits(evaluator: Evaluator) -> list[tuple[str, Indices]]:
    found = evaluator.splits
    return [("calibration", found.calibration), ("heldout", found.heldout), ("train", found.train)]


def _gradient(worker: Worker, options: Any) -> float:
    """Seconds of one gradient at the starting point, of the kind that most steps ask for."""
    items = Items("train", options.batch, 0)
    answer = worker.answer(Question(0, worker.space.domain.start, options.asks, items))
    if answer.failure is not None:
        raise JobError(f"the starting point has no gradient: {answer.failure}")
    return float(answer.seconds)


def _check_rungs(job: Job, problem: Problem, start: Answer) -> None:
    """Raises JobError where the scores of the starting point cannot be told from some of the items."""
    from optimizer.jobs.assemble import build_ladder

    ladder = build_ladder(job, problem, lambda number: {})
    if ladder is None:
        return
    ladder.learn(Question(0, np.zeros(0)), start)
    if ladder.refusal is not None:
        raise JobError(f"fidelity: {ladder.refusal}; take another metric of that evaluator, or leave fidelity out")


def _scored(worker: Worker, split: Split) -> Answer:
    """The starting point, scored."""
    answer = worker.answer(Question(0, worker.space.domain.start, items=Items(split)))
    if answer.failure is not None:
        raise JobError(f"the starting point cannot be scored: {answer.failure}")
    return answer


def _warnings(job: Job, anchors: int, every: int) -> list[str]:
    found = []
    if all(name.endswith(".entropy") for name in job.objectives):
        found.append(
            "every objective is an entropy, which a merge that is sure and wrong lowers too; choose by accuracy or "
            "cross_entropy, or without labels by kl from each expert (`teacher`)"
        )
    if anchors < every:
        methods = f" of {len(job.space.methods)} methods" if len(job.space.methods) > 1 else ""
        found.append(
            f"the {every} anchors{methods} would take more than half of the budget of {job.budget.evaluations}: the "
            f"{anchors} best known of them are asked; all are with budget.evaluations: {2 * every}"
        )
    if job.executor.kind == "ray" and job.executor.address == "local":
        wanted, cores = job.executor.workers * job.executor.threads, psutil.cpu_count() or 1
        if wanted > cores:
            found.append(f"{wanted} threads on {cores} cores; fewer workers will be faster")
    return found


def _private_bytes() -> int:
    """Resident memory of this process that no file backs (pages of the mapped pool are shared, and not counted)."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
