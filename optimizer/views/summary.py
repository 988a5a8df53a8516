"""How does a run stand? One line of it, and all that is no candidate's."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import OptimizerError
from optimizer.output.plain import by_objective
from optimizer.record import files
from optimizer.record.candidate import Candidate
from optimizer.record.owner import owner
from optimizer.record.results import Results
from optimizer.record.saved import saved
from optimizer.views.rounding import ERRORS, rounded
from optimizer.views.run_values import (
    Axis,
    Best,
    Fidelity,
    Gap,
    Items,
    Objective,
    Phase,
    Reference,
    Run,
    Spent,
    Stage,
    Status,
    Summary,
)
from optimizer.wording import shown

if TYPE_CHECKING:
    from optimizer.jobs.job import Job
    from searchspaces.domain import Domain

SPARKS = 60
SPARK_SECONDS = 0.1  # what a line may take beside reading: what is missing is filled in later
RATE = 50  # latest answers that the time left is told by


def status(results: Results) -> Status:
    """Whether somebody drives it, and if not whether there is anything left to do."""
    if owner(results.folder) is not None:
        return "running" if results.times else "starting"
    return "finished" if results.finished else "stopped"


def summary(results: Results) -> Summary:
    """A run in a line."""
    return Summary(**_line(results))


def run(results: Results) -> Run:
    """A run whole."""
    groups, experts = results.axes
    return Run(
        **_line(results, 0.0),
        constraints=[str(c) for c in results.feasible.constraints],
        groups=groups,
        experts=experts,
        axes=[_axis(results.domain, i) for i in range(len(results.domain.names))],
        metrics=dict(results.goals),
        verdict=results.verdict,
        knee=results.front.knee(),
        curse=[Gap(objective=g.name, value=g.value, stderr=g.stderr) for g in results.confidence.curse],
        references=[_reference(results, c) for c in results.compared],
        stages=[Stage(**vars(s)) for s in results.growth.stages],
        seed=_whole(results.job.get("seed")),
        calibration=calibration(results),
        heldout_done=results.heldout_answered >= results.heldout_asked > 0,
        heldout_asked=results.heldout_asked,
        heldout_answered=results.heldout_answered,
        phase=_phase(results),
        driver_done=results.done,
        reached=results.reached,
        fidelity=_fidelity(results),
        provenance=_provenance(results),
        broken={c.label: shown(str(c.failure), 500) for c in results.references.values() if c.failure is not None},
    )


def scores(results: Results, c: Candidate, split: str) -> tuple[list[float | None], list[float | None]]:
    """Values and standard errors by objective, rounded."""
    measures = [(c.heldout if split == "heldout" else c.measures)[o.name] for o in results.objectives]
    errors = [np.nan if m.stderr is None else m.stderr for m in measures]
    return rounded(np.array([m.value for m in measures])), rounded(np.array(errors), ERRORS)


def calibration(results: Results) -> dict[str, Items]:
    """By evaluator how many items chose the candidates, a digest of which and how, and how many are held out."""
    try:
        written = [(results.folder / name).stat().st_mtime_ns for name in ("splits.json", "job.yaml")]
        return dict(_calibration(results.folder, *written))
    except (OSError, OptimizerError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # of a folder that says nothing of them


@lru_cache(64)
def _calibration(folder: Path, splits_written: int, job_written: int) -> dict[str, Items]:
    """Of these files as they were written then: to digest many rows takes a tenth of a second."""
    splits, job = json.loads(files.read(folder / "splits.json", links=True)), _job(folder / "job.yaml", job_written)
    return {
        name: Items(
            items=len(rows["calibration"]),
            digest=_digest(job, name, rows["calibration"]),
            heldout=len(rows.get("heldout", ())),
        )
        for name, rows in splits.items()
    }


def job_of(folder: Path) -> Job:
    """A run's job. Raises JobError or OSError where it cannot be read."""
    return _job(folder / "job.yaml", (folder / "job.yaml").stat().st_mtime_ns)


@lru_cache(64)
def _job(path: Path, written: int) -> Job:
    from optimizer.jobs.job import Job

    return Job.load(path)


def _digest(job: Job, name: str, rows: list[int]) -> str:
    """Of the rows, of the content of the evaluator's files, and of what the job says of it but for where they lie."""
    entry = next((e.model_dump(mode="json") for e in job.evaluators if e.name == name), {})
    data, hashes = entry.pop("data", None), {} if job.hashes is None else job.hashes.data
    paths = list(data.values()) if isinstance(data, dict) else [data]
    content = [hashes.get(str(job.path(str(path)))) for path in paths]
    told = [entry, content if all(content) else sorted(hashes.values()), rows]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _line(results: Results, seconds: float = SPARK_SECONDS) -> dict[str, Any]:
    """What a line says; `seconds` may go to what is not known yet of how the hypervolume grew."""
    times = [at for _, at in results.times]
    if seconds or not results.growth.places:
        results.growth.measured(seconds)
    best = results.pick("best") if results.front.feasible else None
    job, parent = results.job, results.parent
    return {
        "name": results.folder.name,
        "status": status(results),
        "driver": _text(job, "driver", "name"),
        "method": _text(job, "space", "method"),
        "objectives": [Objective(name=o.name, goal=o.goal) for o in results.objectives],
        "evaluations": results.evaluations,
        "answered": len(results.scored),
        "failed": len(results.failures),
        "repeated": results.repeated,
        "hypervolume": _short(results.front.hypervolume),
        "spark": _spark(results),
        "best": None
        if best is None
        else Best(number=best.number, label=best.label, values=by_objective(results, best.measures)),
        "eta_seconds": _left(results, times),
        "spent": Spent(**{k: v for k, v in results.spent.items() if k in Spent.model_fields}),
        "created": _made(results.folder),
        "updated": times[-1] if times else None,
        "parent": str(parent["name"]) if parent and isinstance(parent.get("name"), str) else None,
        "event": results.event,
    }


def _phase(results: Results) -> Phase:
    """What it is at, or would go on with."""
    if results.finished:
        return "over"
    if not (results.done or results.reached is not None or len(results.scored) >= results.evaluations):
        return "search"
    some = results.heldout_asked == 0 and any(c.share < 1 for c in results.scored)
    return "finalists" if some else "heldout"


def _fidelity(results: Results) -> Fidelity | None:
    """What it saved to score candidates on few items first; None where all are scored on all."""
    said = results.job.get("fidelity")
    rungs = said.get("rungs") if isinstance(said, dict) else None
    found = saved(results.scored, results.objectives)
    if found is None:
        return None
    return Fidelity(rungs=[r for r in rungs or [] if type(r) is int], **vars(found))


def _provenance(results: Results) -> dict[str, list[str]]:
    try:
        return results.provenance
    except (OSError, OptimizerError):
        return {}  # of a folder that says nothing of them


def _spark(results: Results) -> list[float]:
    places = results.growth.places
    if not places:
        return []
    chosen = np.unique(np.linspace(0, len(places) - 1, min(SPARKS, len(places))).round().astype(int))
    return [_short(places[i].front.measured[0]) for i in chosen]


def _left(results: Results, times: list[float]) -> float | None:
    """Seconds until the budget of candidates is used up at the rate of the latest, while somebody drives the run."""
    left, latest = results.evaluations - len(results.scored), times[-RATE:]
    if left <= 0 or len(latest) < 2 or latest[-1] <= latest[0] or owner(results.folder) is None:
        return None
    return round(left * (latest[-1] - latest[0]) / (len(latest) - 1), 1)


def _text(job: dict[str, Any], *keys: str) -> str:
    """What a job says under these keys, for people; a folder may say anything."""
    found: Any = job
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return shown(", ".join(map(str, found)) if isinstance(found, list) else str(found or ""), 200)


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _made(folder: Path) -> float | None:
    try:
        return (folder / "splits.json").stat().st_mtime
    except OSError:
        return None


def _axis(domain: Domain, i: int) -> Axis:
    labels = list(domain.labels[i]) if i in domain.labels else None
    return Axis(
        name=domain.names[i], low=float(domain.low[i]), high=float(domain.high[i]), kind=domain.kinds[i], labels=labels
    )


def _reference(results: Results, c: Candidate) -> Reference:
    values, stderr = scores(results, c, "calibration")
    heldout, unseen = scores(results, c, "heldout") if c.heldout else (None, None)
    return Reference(label=c.label, values=values, stderr=stderr, heldout=heldout, heldout_stderr=unseen)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
