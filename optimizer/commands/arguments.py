"""Which arguments do commands share, and what does a name mean? Their types and help, said once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.errors import JobError, RunError
from optimizer.record.folders import LEDGER, found, run_folder, runs_in
from optimizer.wording import shown

if TYPE_CHECKING:
    from optimizer.run import Run

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
RunName = Annotated[str, typer.Argument(help="A run: its name under --runs, or its folder.", show_default=False)]
RunAnywhere = Annotated[
    str, typer.Argument(help="A run: its name or folder; with --address also its id.", show_default=False)
]
Runs = Annotated[Path, typer.Option(help="Where runs are kept.")]
RunsAnywhere = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        help="Where runs are kept, by default runs; with --address only those that were sent there with this --runs.",
        show_default=False,
    ),
]
NewName = Annotated[str | None, typer.Option("--name", help="Name the run otherwise than the job does.")]
AddressText = typer.Option(
    "--address", help="A Ray cluster's job API, such as http://head:8265, or auto: of 'cluster up'.", show_default=False
)
Address = Annotated[str | None, AddressText]
NeededAddress = Annotated[str, AddressText]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let evaluators run Python files that the job names.")]
DEFAULT_RUNS = Path("runs")
RUNS_SHOWN = 8


def here(name: str, runs: Path | None) -> Path:
    """The folder of this host that a run's name means."""
    return run_folder(name, runs or DEFAULT_RUNS)


def opened(name: str, runs: Path | None) -> Run:
    """The run of this host that a name means."""
    from optimizer.run import Run

    return Run(existing(name, runs))


def existing(name: str, runs: Path | None) -> Path:
    """The folder of a run that is there. Raises RunError, naming those that are, where it is not."""
    folder, runs = here(name, runs), runs or DEFAULT_RUNS
    if found(folder / LEDGER):
        return folder
    if not (others := runs_in(runs)):
        said = f"there is none in {runs}; make one with 'mergeopt run job.yaml', or name"
    else:
        more = ", ..." if len(others) > RUNS_SHOWN else ""
        said = f"in {runs} there are: {shown(', '.join(others[:RUNS_SHOWN]), 500)}{more}; name one of these,"
    raise RunError(f"no run at {folder}; {said} a run's folder, or with --runs where it is kept")


def only_here(given: Mapping[str, object]) -> None:
    """Refuse options that mean nothing on a cluster, where they were given: none is dropped silently."""
    if found := [option for option, value in given.items() if value is not None]:
        raise JobError(
            f"{', '.join(found)}: for a run of this host, not with --address; leave it out, or do it on the cluster"
        )
