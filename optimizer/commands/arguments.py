"""Which arguments do commands share, and what does a name mean? Their types and help, said once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.errors import JobError
from optimizer.record.folders import run_folder

if TYPE_CHECKING:
    from optimizer.run import Run

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
RunName = Annotated[str, typer.Argument(help="A run: its name under --runs, or its folder.", show_default=False)]
RunAnywhere = Annotated[
    str, typer.Argument(help="A run: its name or folder; with --address also its id.", show_default=False)
]
Runs = Annotated[Path, typer.Option(help="Where runs are kept.")]
RunsAnywhere = Annotated[
    Path, typer.Option("--runs", help="Where runs are kept; with --address a folder of the cluster, from its home.")
]
NewName = Annotated[str | None, typer.Option("--name", help="Name the run otherwise than the job does.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster's job API, such as http://head:8265, or auto: of 'cluster up'.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let evaluators run Python files that the job names.")]
DEFAULT_RUNS = Path("runs")


def opened(name: str, runs: Path) -> Run:
    """The run of this host that a name means."""
    from optimizer.run import Run

    return Run(run_folder(name, runs))


def only_here(**given: object) -> None:
    """Refuse options that mean nothing on a cluster, where they were given: none is dropped silently."""
    if found := [option for option, value in given.items() if value is not None]:
        raise JobError(
            f"{', '.join(found)}: for a run of this host, not with --address; leave it out, or do it on the cluster"
        )
