"""What may be asked of runs? Every request that only reads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel

from optimizer.conditions import Condition
from optimizer.errors import JobError
from optimizer.record import files
from optimizer.record.candidate import Candidate as Scored
from optimizer.record.results import Results
from optimizer.service import answers
from optimizer.service.again import begun_at, brief
from optimizer.service.board import Board
from optimizer.service.refusals import Refused, said
from optimizer.service.runs import Reader, Shelf
from optimizer.views import candidate_values, fronts, one, run_values, summary, table
from optimizer.views.importance import importance, most_important
from optimizer.wording import redacted

COUNT_SECONDS = 0.3  # how long an answer waits for what is counted beside it
CODES = (400, 401, 403, 404, 408, 409, 413, 422)
REFUSED: dict[int | str, dict[str, Any]] = {code: {"model": answers.Refusal} for code in CODES}

MOST_COORDINATES = 200  # in one answer

router = APIRouter(prefix="/api", responses=REFUSED)


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _reader(request: Request, run: str) -> Reader:
    return _shelf(request).reader(run)


def _board(request: Request) -> Board:
    board: Board = request.app.state.board
    return board


Runs = Annotated[Shelf, Depends(_shelf)]
Lines = Annotated[Board, Depends(_board)]
Of = Annotated[Reader, Depends(_reader)]


def _sent(found: BaseModel) -> Response:
    """As JSON; large answers are checked as they are made, and need not be again."""
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/version")
def version(request: Request) -> answers.Version:
    """Which version answers, and whether this request could change anything."""
    settings = request.app.state.settings
    may = bool(request.scope["state"]["may_write"])
    return answers.Version(version=request.app.version, read_only=not may, runs=str(settings.runs.absolute()))


@router.get("/runs")
def runs(board: Lines) -> answers.Runs:
    """All runs, a line each, the latest first. One that cannot be read says why."""
    return answers.Runs(runs=board.lines())


@router.get("/compare")
def compare_runs(shelf: Runs, runs: str) -> run_values.Fronts:
    """The fronts of several runs, `runs=a,b`, in one another's units; 409 where they are not comparable."""
    names = list(dict.fromkeys(name for name in runs.split(",") if name))
    if not 2 <= len(names) <= fronts.MOST_RUNS:
        raise Refused(422, f"runs: expected 2 to {fronts.MOST_RUNS} names with commas between them")
    return fronts.compared([shelf.results(name) for name in names])


@router.get("/runs/{run}")
def run(reader: Of, board: Lines) -> run_values.Run:
    """A run whole, its candidates apart."""
    line = board.line(reader.name)
    return summary.run(reader.now()).model_copy(update={"status": line.status, "error": line.error})


@router.get("/runs/{run}/candidates", response_model=candidate_values.Candidates)
def candidates(
    request: Request,
    reader: Of,
    since: int = -1,
    front: bool = False,
    stage: str | None = None,
    failed: bool | None = None,
    order: str = "number",
    limit: Annotated[int | None, Query(ge=0)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Candidates as columns; with `since`, those of which anything was told after that event."""
    sure = reader.sure(request.app.state.slow, COUNT_SECONDS)
    wanted = table.Wanted(since, front, stage, failed, order, limit, offset)
    return _sent(table.columns(reader.now(), wanted, sure))


@router.get("/runs/{run}/coordinates", response_model=candidate_values.Coordinates)
def coordinates(
    reader: Of,
    names: str | None = None,
    top: Annotated[int, Query(ge=1, le=200)] = 12,
    since: int = -1,
) -> Response:
    """Coordinates of all candidates, by name or the most important ones, in the order of `candidates`."""
    results = reader.now()
    there = {name: i for i, name in enumerate(results.domain.names)}
    wanted = list(dict.fromkeys(names.split(","))) if names is not None else most_important(results, top)
    if len(wanted) > MOST_COORDINATES:
        raise Refused(
            422, f"expected at most {MOST_COORDINATES} coordinates, got {len(wanted)}; ask for some at a time"
        )
    if missing := [name for name in wanted if name not in there]:
        raise Refused(422, f"no coordinate {missing[0]!r} in this run; GET /api/runs/{reader.name} lists its axes")
    rows = table.chosen(results, table.Wanted(since))
    return _sent(
        candidate_values.Coordinates(
            event=results.event,
            numbers=[c.number for c in rows],
            names=wanted,
            columns=table.points(rows, [there[name] for name in wanted]),
        )
    )


@router.get("/runs/{run}/importance")
def important(reader: Of, metric: str | None = None) -> list[candidate_values.Importance]:
    """How much each coordinate decides, of the mean over objectives or of one metric; the most important first."""
    return importance(reader.now(), metric)


@router.get("/runs/{run}/candidates/{pick:path}")
def candidate(request: Request, reader: Of, pick: str) -> candidate_values.Candidate:
    """One candidate: a number, a recipe hash, an anchor, `expert: NAME`, best, best:METRIC, knee or surest."""
    results = reader.now()
    sure = reader.sure(request.app.state.slow, COUNT_SECONDS)
    return one.candidate(results, picked(results, pick), sure, reader.unseen)


@router.get("/runs/{run}/compare")
def compare(request: Request, reader: Of, a: str, b: str) -> candidate_values.Pair:
    """Two candidates, item by item."""
    results = reader.now()
    return one.pair(results, picked(results, a), picked(results, b), reader.sure(request.app.state.slow))


@router.get("/runs/{run}/curve", response_model=run_values.Curve)
def curve(request: Request, reader: Of) -> Response:
    """Hypervolume and epsilon over the candidates answered, as far as they are known by now."""
    results = reader.now()
    reader.sure(request.app.state.slow)  # begins to compute all that is missing
    return _sent(fronts.curve(results))


@router.get("/runs/{run}/pick")
def pick(reader: Of, weights: str = "", where: Annotated[list[str] | None, Query()] = None) -> run_values.Picked:
    """The front's best answer: `weights=METRIC:0.7,METRIC:0.3`, `where=METRIC>=0.8` (which may be given again)."""
    return fronts.picked(reader.now(), _weights(weights), [_condition(text) for text in where or ()])


@router.get("/runs/{run}/job", response_class=PlainTextResponse)
def job(request: Request, run: str, start: str | None = None, short: bool = False) -> PlainTextResponse:
    """The run's job, as YAML, or that of what never became one; `short`: as a person would write it, for another run.

    With `start` that, beginning at the candidate's coefficients, every expert's in every group.
    """
    file = _board(request).job(run)
    try:
        text = files.read(file, 1 << 20).decode()
    except (OSError, ValueError) as error:
        raise Refused(409, said(error)) from error
    if start is not None:
        results = _reader(request, run).now()
        text = begun_at(file, results, picked(results, start))
    elif short:
        text = brief(file)
    return PlainTextResponse(redacted(text))


def picked(results: Results, text: str) -> Scored:
    """The candidate that a name means. Raises Refused where there is none."""
    try:
        return results.pick(text)
    except JobError as error:
        raise Refused(404, said(error)) from error


def _weights(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in (p for p in text.split(",") if p):
        name, _, number = part.rpartition(":")
        try:
            found[name] = float(number)
        except ValueError:
            raise Refused(422, f"weights: expected METRIC:NUMBER, got {part!r}") from None
    return found


def _condition(text: str) -> Condition:
    try:
        return Condition.parse(text)
    except ValueError as error:
        raise Refused(422, f"where: {error}") from None
