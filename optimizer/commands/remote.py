"""What does the command line offer for runs elsewhere? On a cluster with --address, else of another process here."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from optimizer.commands.arguments import (
    DEFAULT_RUNS,
    Address,
    AllowCode,
    JobFile,
    NewName,
    RunAnywhere,
    RunsAnywhere,
)
from optimizer.record.folders import run_folder
from optimizer.wording import printable

if TYPE_CHECKING:
    from optimizer.remote.jobs import Cluster, Sent

PANEL = "On a cluster, or of a run that goes on"

app = typer.Typer()
cluster_app = typer.Typer(no_args_is_help=True, help="A cluster of this host alone, to try things on.")
app.add_typer(cluster_app, name="cluster", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def launch(
    job: JobFile,
    address: Annotated[str, typer.Option(help="A Ray cluster's job API, such as http://head:8265, or auto.")],
    name: NewName = None,
    runs: RunsAnywhere = DEFAULT_RUNS,
    root: Annotated[
        str | None, typer.Option(help="The cluster's folder where the job's relative paths start.", show_default=False)
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Start a search on a Ray cluster, and return. The job travels, nothing else."""
    from optimizer.remote.shipping import shipped
    from optimizer.remote.wire import Order

    sent = shipped(job, name, root)
    there = _cluster(address)
    found = there.send(Order("run", sent.name, str(runs), job=sent.yaml(), allow_code=allow_code))
    typer.echo(f"run {found}\nin {there.answer(found)['folder']} on the cluster")
    typer.echo(f"'mergeopt watch {sent.name} --address {address}' follows it")


@app.command(rich_help_panel=PANEL)
def logs(
    name: RunAnywhere,
    address: Address = None,
    runs: RunsAnywhere = DEFAULT_RUNS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """What happened: a line for each answer here, what the run printed on a cluster."""
    from optimizer.remote import following

    if address is None:
        _print(following.answers(run_folder(name, runs), follow))
    else:
        there = _cluster(address)
        _print(following.log(there, there.find(name).id, follow))


@app.command(rich_help_panel=PANEL)
def watch(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = DEFAULT_RUNS) -> None:
    """Follow a run until it ends: how far it is, and what it has found."""
    from optimizer.remote import following

    if address is None:
        _print(following.progress(run_folder(name, runs)))
        return
    there = _cluster(address)
    order = there.find(name)
    _print(following.log(there, order.id, True))
    ended = there.state(order.id)
    typer.echo(f"{order.id}: {ended.status}")


@app.command(rich_help_panel=PANEL)
def stop(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = DEFAULT_RUNS) -> None:
    """Ask a run to stop, as Ctrl-C does: it asks nothing more, and waits at most 30 s for what is in flight."""
    from optimizer.remote import control

    if address is None:
        typer.echo(f"process {control.drain(run_folder(name, runs))} is stopping; 'mergeopt resume {name}' goes on")
        return
    there = _cluster(address)
    order = there.find(name)
    if there.stop(order.id):
        typer.echo(f"{order.id} is stopping; 'mergeopt resume {order.name} --address {address}' goes on")
    else:
        typer.echo(f"{order.id} is over already: {there.state(order.id).status}")


@app.command(rich_help_panel=PANEL)
def cancel(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = DEFAULT_RUNS) -> None:
    """Stop a run at once, as a second Ctrl-C does; what was answered is kept."""
    from optimizer.remote import control

    if address is None:
        pid = control.cancel(run_folder(name, runs))
    else:
        pid = _ask(_cluster(address), name, "cancel")[1]["pid"]
    typer.echo(f"process {pid} has ended; what was answered is kept, resume goes on")


@app.command(rich_help_panel=PANEL)
def fetch(
    name: RunAnywhere,
    what: Annotated[
        Literal["ledger", "report", "export"], typer.Argument(help="ledger: a run's folder, for status, front, show.")
    ] = "ledger",
    out: Annotated[Path | None, typer.Option(help="What to make; by default under --runs' name here.")] = None,
    candidate: Annotated[str, typer.Option(help="Of an export.")] = "best",
    address: Address = None,
    runs: RunsAnywhere = DEFAULT_RUNS,
    allow_code: AllowCode = False,
) -> None:
    """Bring a run's ledger, report or an exported candidate here, while it runs or afterwards."""
    from optimizer.errors import RunError
    from optimizer.remote import parcel

    if address is None:
        made = _fetch_here(run_folder(name, runs), what, out, candidate, allow_code)
    else:
        from optimizer.remote.wire import Order

        there = _cluster(address)
        run = there.find(name)
        made = out or _default_out(run.name, what)
        if made.exists():
            raise RunError(f"{made} exists already; name another with --out")
        order = Order("fetch", run.name, run.runs, allow_code=allow_code, what=what, candidate=candidate)
        made.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made.absolute().parent, prefix=f".{made.name}.") as archive:
            there.receive(there.send(order), archive)
            archive.flush()
            parcel.unpack(Path(archive.name), made, single=what == "report")
    typer.echo(f"fetched {made}")


@cluster_app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of its job API.")] = 8265,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that it has; by default this host's.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that it has; by default this host's.")] = None,
) -> None:
    """Start a Ray head on loopback, which asks for a token that only you can read."""
    from optimizer.remote import head

    made = head.up(port, cpus, gpus)
    typer.echo(f"cluster {made.url}, process {made.pid}\n'mergeopt launch job.yaml --address auto' sends it a job")


@cluster_app.command()
def down() -> None:
    """End the head that 'cluster up' started, and all that runs on it."""
    from optimizer.remote import head

    typer.echo("the cluster has ended" if head.down() else "no cluster of this host is running")


@cluster_app.command("status")
def cluster_status(address: Annotated[str, typer.Option(help="Which cluster.")] = "auto") -> None:
    """Where the cluster listens, and what it was sent."""
    there = _cluster(address)
    typer.echo(f"cluster {there.url}")
    for one in there.sent():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.began / 1000))
        typer.echo(printable(f"  {one.id:<32}{one.verb:<8}{one.name:<24}{one.status:<10}{began}"))


def status(name: str, address: str, json_out: bool) -> None:
    """Print what 'status' says of a run on a cluster, with what Ray says of its process."""
    from optimizer.output import show

    there = _cluster(address)
    order, found = _ask(there, name, "status")
    if json_out:
        typer.echo(json.dumps({"id": order.id, "process": order.status, **found}))
    else:
        show.print_status(found, f"{order.id} on {there.url}: {order.status}")


def resume(name: str, address: str, evaluations: int | None, allow_code: bool) -> None:
    """Go on with a run on a cluster."""
    from optimizer.remote.wire import Order

    there = _cluster(address)
    run = there.find(name)
    found = there.send(Order("resume", run.name, run.runs, allow_code=allow_code, evaluations=evaluations))
    typer.echo(f"run {found}\nin {there.answer(found)['folder']} on the cluster")


def _cluster(address: str) -> Cluster:
    from optimizer.remote.address import Endpoint

    endpoint = Endpoint.of(address)  # refused before Ray is loaded, and before anything is sent
    from optimizer.remote.jobs import Cluster

    return Cluster(endpoint)


def _ask(there: Cluster, name: str, verb: Literal["status", "cancel"]) -> tuple[Sent, dict[str, Any]]:
    """The order that a run came of, and what the cluster says of it."""
    from optimizer.remote.wire import Order

    order = there.find(name)
    return order, there.answer(there.send(Order(verb, order.name, order.runs)))


def _default_out(name: str, what: str) -> Path:
    return {"ledger": DEFAULT_RUNS / name, "report": Path(f"{name}.html"), "export": Path(f"{name}-merged")}[what]


def _fetch_here(folder: Path, what: str, out: Path | None, candidate: str, allow_code: bool) -> Path:
    """The same of a run of this host: a copy that is whole though the run goes on."""
    from optimizer.remote import parcel
    from optimizer.run import Run

    made = out or _default_out(f"{folder.name}-copy" if what == "ledger" else folder.name, what)
    if what == "ledger":
        parcel.copy_run(folder, made.absolute())
        return made
    run = Run(folder)
    return run.report(made) if what == "report" else run.export(candidate, made, allow_code)


def _print(lines: Iterable[str]) -> None:
    """Line by line; Ctrl-C ends the looking, and nothing else."""
    try:
        for line in lines:
            typer.echo(printable(line.expandtabs().replace("\n", " ")))
    except KeyboardInterrupt:
        typer.echo("no longer following; the run goes on", err=True)
        raise SystemExit(130) from None
