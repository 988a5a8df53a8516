"""What may be asked to be done? Every request that changes something, and wants the token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from optimizer.service.answers import (
    Checked,
    Checking,
    Done,
    Draft,
    Drafting,
    Export,
    Exporting,
    Exports,
    Launch,
    Launched,
    Resume,
    Started,
)
from optimizer.service.exporting import Exporter
from optimizer.service.looking import REFUSED, Of, picked
from optimizer.service.starting import Starter

router = APIRouter(prefix="/api", responses=REFUSED)


def _starter(request: Request) -> Starter:
    starter: Starter = request.app.state.starter
    return starter


def _exporter(request: Request) -> Exporter:
    exporter: Exporter = request.app.state.exporter
    return exporter


Searches = Annotated[Starter, Depends(_starter)]
Merges = Annotated[Exporter, Depends(_exporter)]


@router.get("/schema/job")
def schema() -> dict[str, Any]:
    """The JSON Schema of a job."""
    from optimizer.jobs.job import Job

    return Job.model_json_schema()


@router.post("/jobs/check")
def check(searches: Searches, wanted: Checking) -> Checked:
    """Whether a job may start here, and what it will need: nothing is loaded."""
    return searches.check(wanted.yaml)


@router.post("/jobs/draft")
def draft(searches: Searches, wanted: Drafting) -> Draft:
    """A first job file of these models."""
    return searches.draft(wanted)


@router.post("/jobs")
def launch(searches: Searches, wanted: Launch) -> Launched:
    """Start a search, in a process of its own; or on a Ray cluster, which keeps it."""
    return searches.launch(wanted)


@router.post("/runs/{run}/stop")
def stop(searches: Searches, run: str) -> Done:
    """Ask nothing more, and wait for what is in flight."""
    return searches.stop(run)


@router.post("/runs/{run}/cancel")
def cancel(searches: Searches, run: str) -> Done:
    """Stop at once; what was answered is kept."""
    return searches.cancel(run)


@router.post("/runs/{run}/resume")
def resume(searches: Searches, run: str, wanted: Resume | None = None) -> Done:
    """Go on with a run."""
    return searches.resume(run, None if wanted is None else wanted.evaluations)


@router.post("/runs/{run}/exports")
def export(merges: Merges, reader: Of, wanted: Exporting) -> Started:
    """Write a candidate as a checkpoint under the run's exports."""
    results = reader.now()
    return Started(id=merges.start(reader.name, results, picked(results, wanted.candidate), wanted.name))


@router.get("/exports")
def exports(merges: Merges) -> Exports:
    """All exports that were started here, the latest first."""
    return Exports(exports=merges.all())


@router.get("/exports/{id}")
def one_export(merges: Merges, id: str) -> Export:
    """How far an export is."""
    return merges.one(id)
