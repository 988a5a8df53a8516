"""What does the command line offer to who uses other tools too?"""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import Annotated

import typer

from optimizer.commands.arguments import DEFAULT_RUNS, RunName, Runs, existing
from optimizer.commands.interrupts import interruptible

FOLLOW_SECONDS = 2.0  # between two looks at a run

app = typer.Typer()


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A merge of mergekit's, or a search of mergekit-evolve.")],
    out: Annotated[Path, typer.Option(help="The job file to write.")] = Path("job.yaml"),
    data: Annotated[
        list[str] | None, typer.Option(help="Items of a task that a merge is scored on, NAME=FILE; once for each.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Where a model of the file is, MODEL=FOLDER, or MODEL=org/name@commit; once for each."),
    ] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Take the mean of an option that differs by layer; else it is refused.")
    ] = False,
) -> None:
    """Write the job that starts at a mergekit merge, or searches what mergekit-evolve does; says what is otherwise."""
    from optimizer.importing.writing import write_import
    from optimizer.output import logs

    for note in write_import(file, out, data or [], at or [], nearest):
        logs.say("%s", note)
    typer.echo(f"wrote {out}; look it through, then: mergeopt check {out}")


@app.command()
@interruptible
def mirror(
    name: RunName,
    storage: Annotated[
        str, typer.Option(help="Where Optuna keeps studies, such as sqlite:///optuna.db.", show_default=False)
    ],
    study: Annotated[
        str | None, typer.Option(help="The study's name, by default the run's.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is finished, or Ctrl-C.")] = False,
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """Copy a run's candidates to an Optuna study, for optuna-dashboard; again adds what is new."""
    from optimizer.output.mirror import Mirror
    from optimizer.record.results import Results

    results = Results(existing(name, runs))
    copy = Mirror(results, storage, study)
    added = copy.copy()
    while follow and not results.finished:
        sleep(FOLLOW_SECONDS)
        if results.refresh():
            added += copy.copy()
    typer.echo(f"{added} candidates added to the study {copy.name}")
