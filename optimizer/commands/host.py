"""What does the command line offer to see to this host? Its cache, and what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.commands.arguments import DEFAULT_RUNS, AllowCode, AsJson, Runs
from optimizer.record.folders import run_folder

if TYPE_CHECKING:
    from optimizer.doctor import Finding

app = typer.Typer()


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove what no process uses; it is made again at need.")
    ] = False,
    json_out: AsJson = False,
) -> None:
    """What is kept on this host so that it is computed once, and how large it may grow."""
    from searchspaces.cache import limit

    gone = limit.clear() if clear else {}
    found = limit.sizes()
    if json_out:
        removed = {"removed": gone} if clear else {}
        typer.echo(json.dumps({"folder": str(limit.root()), "limit": limit.limit(), "bytes": found, **removed}))
        return
    if clear:
        typer.echo(f"removed {sum(gone.values()) / 1e9:.2f} GB:" if gone else "removed nothing")
        for kind, size in gone.items():
            typer.echo(f"  {kind:<14}{size / 1e9:8.2f} GB")
    typer.echo(
        f"{limit.root()}: {sum(found.values()) / 1e9:.2f} GB of at most {limit.limit() / 1e9:.2f} ({limit.LIMIT})"
        + ("; processes that are under way use it, and it stays until they end" if clear and found else "")
    )
    for kind, size in found.items():
        typer.echo(f"  {kind:<14}{size / 1e9:8.2f} GB")


@app.command()
def doctor(
    name: Annotated[str | None, typer.Argument(help="A run: its name or folder.", show_default=False)] = None,
    address: Annotated[
        str | None, typer.Option(help="A cluster: http://HOST:8265, HOST:6379, or auto.", show_default=False)
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
    allow_code: AllowCode = False,
) -> None:
    """What is wrong here, with a run or a cluster, and how to mend it; exit code 1 where something is."""
    from optimizer.doctor import installation, ray_cluster
    from optimizer.doctor.finding import print_findings
    from optimizer.doctor.run_folder import examine

    found: list[Finding] = []
    if name is not None:
        found += examine(run_folder(name, runs), allow_code)
    if address is not None:
        found += ray_cluster.examine(address)
    if name is None and address is None:
        found += [*installation.examine(runs), ray_cluster.own_token()]
    typer.echo(json.dumps([vars(f) for f in found])) if json_out else print_findings(found)
    if any(f.state == "wrong" for f in found):
        raise SystemExit(1)
