"""What is told as it happens, or as a file? Events, a log, and tables of candidates."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from optimizer.record.candidate import Candidate
from optimizer.record.results import Results
from optimizer.service.answers import Log
from optimizer.service.looking import REFUSED, Lines, Of
from optimizer.service.starting import Starter
from optimizer.service.watching import Watch

Cell = str | int | float | bool | None
KINDS = {"csv": "text/csv", "json": "application/json", "parquet": "application/vnd.apache.parquet"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one

router = APIRouter(prefix="/api", responses=REFUSED)


def _watch(request: Request) -> Watch:
    watch: Watch = request.app.state.watch
    return watch


Told = Annotated[Watch, Depends(_watch)]


@router.get("/events", response_class=StreamingResponse)
async def events(watch: Told) -> StreamingResponse:
    """Server-sent events `changed`: a run has come further, or stands otherwise."""
    return _stream(watch, None)


@router.get("/runs/{run}/events", response_class=StreamingResponse)
async def run_events(watch: Told, board: Lines, run: str) -> StreamingResponse:
    """The same of one run."""
    board.known(run)
    return _stream(watch, run)


@router.get("/runs/{run}/log")
def log(request: Request, board: Lines, run: str, tail: Annotated[int, Query(ge=1, le=10_000)] = 200) -> Log:
    """A line for each of the last answers, and the last that the process said that was started here."""
    starter: Starter = request.app.state.starter
    board.known(run)
    started, results = starter.of(run), board.results(run)
    lines = [] if results is None else [_line(c) for c in list(results.candidates.values())[-tail:]]
    return Log(lines=lines, process=[] if started is None else started.lines[-tail:])


@router.get("/runs/{run}/table.{kind}")
def table(reader: Of, kind: Literal["csv", "json", "parquet"]) -> Response:
    """All candidates with all metrics and coordinates, a row each."""
    columns = _columns(reader.now())
    made: dict[str, Callable[[dict[str, list[Cell]]], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}
    # as it is: compressing tens of megabytes would hold everybody up
    headers = {"content-disposition": f'attachment; filename="{reader.name}.{kind}"', "content-encoding": "identity"}
    return Response(made[kind](columns), media_type=KINDS[kind], headers=headers)


def _stream(watch: Watch, run: str | None) -> StreamingResponse:
    watch.room()
    return StreamingResponse(watch.lines(run), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _line(c: Candidate) -> str:
    said = "  ".join(f"{name} {m.value:.4f}" for name, m in c.measures.items())
    if c.failure is not None:
        said = f"failed: {c.failure}"
    again = f"  attempt {c.attempts}" if c.attempts > 1 else ""
    return f"candidate {c.number}  {c.stage}  {c.seconds:.2f} s  {c.worker}{again}  {said}"


def _columns(results: Results) -> dict[str, list[Cell]]:
    """By name; scores in natural units, standard errors and held-out scores where they are known."""
    rows, front = list(results.candidates.values()), set(results.front.nondominated)
    found: dict[str, list[Cell]] = {
        "number": [c.number for c in rows],
        "label": [c.label for c in rows],
        "stage": [c.stage for c in rows],
        "recipe": [c.recipe for c in rows],
        "same_as": [c.of for c in rows],
        "front": [c.number in front for c in rows],
        "share": [c.share for c in rows],
        "seconds": [c.seconds for c in rows],
        "attempts": [c.attempts for c in rows],
        "worker": [c.worker for c in rows],
        "failure": [None if c.failure is None else str(c.failure) for c in rows],
    }
    for metric in results.goals:
        for split in ("", " heldout"):
            measures = [(c.heldout if split else c.measures).get(metric) for c in rows]
            found[metric + split] = [None if m is None else m.value for m in measures]
            found[f"{metric}{split} stderr"] = [None if m is None else m.stderr for m in measures]
    matrix = np.array([c.point for c in rows]) if rows else np.empty((0, len(results.domain.names)))
    return found | {
        f"at {name}": list(column.tolist()) for name, column in zip(results.domain.names, matrix.T, strict=True)
    }


def _csv(columns: dict[str, list[Cell]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return out.getvalue().encode()


def _cell(value: Cell) -> Cell:
    """A text that a spreadsheet would run is one that it shows."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _json(columns: dict[str, list[Cell]]) -> bytes:
    names: Iterable[str] = list(columns)
    rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps(rows, allow_nan=False).encode()


def _parquet(columns: dict[str, list[Cell]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out)
    return bytes(out.getvalue().to_pybytes())
