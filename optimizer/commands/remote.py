"""What does the command line offer for runs elsewhere? On a cluster with --address, else of another process here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from optimizer.commands import cluster
from optimizer.commands.arguments import (
    DEFAULT_RUNS,
    Address,
    AllowCode,
    JobFile,
    NeededAddress,
    NewName,
    RunAnywhere,
    RunsAnywhere,
    here,
)
from optimizer.commands.cluster import say
from optimizer.output import hints

if TYPE_CHECKING:
    from optimizer.remote.jobs import Cluster, Sent
    from optimizer.remote.wire import Order

PANEL = "On a cluster, or of a run that goes on"

app = typer.Typer()
app.add_typer(cluster.app, name="cluster", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def launch(
    job: JobFile,
    address: NeededAddress,
    name: NewName = None,
    runs: Annotated[Path, typer.Option(help="Where the cluster keeps runs, from its home.")] = DEFAULT_RUNS,
    root: Annotated[
        str | None, typer.Option(help="The cluster's folder where the job's relative paths start.", show_default=False)
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Start a search on a Ray cluster, and return. The job travels, nothing else."""
    from optimizer.remote.shipping import shipped
    from optimizer.remote.wire import Order

    sent = shipped(job, name, root)
    there = cluster.reached(address)
    _drive(there, Order("run", sent.name, str(runs), job=sent.yaml(), allow_code=allow_code))
    say(f"'mergeopt watch {sent.name} --address {address}' follows it")


@app.command(rich_help_panel=PANEL)
def logs(
    name: RunAnywhere,
    address: Address = None,
    runs: RunsAnywhere = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """What happened: a line for each answer here, what the run printed on a cluster."""
    from optimizer.remote import following

    if address is None:
        _print(following.answers(here(name, runs), follow))
    else:
        there = cluster.reached(address)
        _print(following.log(there, _find(there, name, runs).id, follow))


@app.command(rich_help_panel=PANEL)
def watch(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = None) -> None:
    """Follow a run until it ends: how far it is, and what it has found."""
    from optimizer.remote import following

    if address is None:
        _print(following.progress(here(name, runs)))
        return
    there = cluster.reached(address)
    order = _find(there, name, runs)
    _print(following.log(there, order.id, True))
    ended = there.state(order.id)
    say(f"{order.id}: {ended.status}")


@app.command(rich_help_panel=PANEL)
def stop(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = None) -> None:
    """Ask a run to stop, as Ctrl-C does: it asks nothing more, and waits at most 30 s for what is in flight."""
    from optimizer.remote import control

    if address is None:
        if not _over(folder := here(name, runs)):
            pid = control.drain(folder)
            say(f"process {pid} is stopping; '{hints.command('resume', folder)}' goes on")
        return
    there = cluster.reached(address)
    order = _find(there, name, runs)
    if there.stop(order.id):
        say(f"{order.id} is stopping; {_goes_on(order, address)}")
    else:
        _say_over(there.state(order.id), address)


@app.command(rich_help_panel=PANEL)
def cancel(name: RunAnywhere, address: Address = None, runs: RunsAnywhere = None) -> None:
    """Stop a run at once, as a second Ctrl-C does; what was answered is kept."""
    from optimizer.remote import control

    if address is None:
        if not _over(folder := here(name, runs)):
            pid = control.cancel(folder)
            say(f"process {pid} has ended; what was answered is kept, '{hints.command('resume', folder)}' goes on")
        return
    there = cluster.reached(address)
    order = _find(there, name, runs)
    if order.over:
        _say_over(order, address)
    else:
        gone = _told(there, _ask(there, order, "cancel"), "pid")
        say(f"process {gone} has ended; what was answered is kept, {_goes_on(order, address)}")


@app.command(rich_help_panel=PANEL)
def fetch(
    name: RunAnywhere,
    what: Annotated[
        Literal["ledger", "report", "export"], typer.Argument(help="ledger: a run's folder, for status, front, show.")
    ] = "ledger",
    out: Annotated[
        Path | None, typer.Option(help="What to make; by default runs/NAME, NAME.html or NAME-merged here.")
    ] = None,
    candidate: Annotated[str, typer.Option(help="Of an export.")] = "best",
    address: Address = None,
    runs: RunsAnywhere = None,
    allow_code: AllowCode = False,
) -> None:
    """Bring a run's ledger, report or an exported candidate here, while it runs or afterwards."""
    from optimizer.remote import parcel

    if address is None:
        made, note = _fetch_here(here(name, runs), what, out, candidate, allow_code)
    else:
        from optimizer.remote.wire import Order

        there = cluster.reached(address)
        run = _find(there, name, runs)
        made = out or _default_out(run.name, what)
        of_run = (run.name, address) if what == "ledger" else None
        parcel.may_be_made(made, of_run is not None)
        order = Order(
            *("fetch", run.name, run.runs),
            allow_code=allow_code,
            what=what,
            candidate=candidate,
            out=made.absolute().name,
        )
        made.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made.absolute().parent, prefix=f".{made.name}.") as archive:
            note = there.receive(there.send(order), archive)
            archive.flush()
            parcel.unpack(Path(archive.name), made, what == "report", of_run)
    say(f"fetched {made}{f'; {note}' if note else ''}")


def status(name: str, runs: Path | None, address: str, json_out: bool) -> None:
    """Print what 'status' says of a run on a cluster, with what Ray says of its process."""
    from optimizer.output import show

    there = cluster.reached(address)
    order = _find(there, name, runs)
    found = _ask(there, order, "status")
    if json_out:
        typer.echo(json.dumps({"id": order.id, "process": order.status, **found}))
    else:
        from optimizer.remote.jobs import understood

        resume = f"mergeopt resume {order.name} --address {address}"
        with understood(there.url):  # it may have answered anything
            show.print_status(found, f"{order.id} on {there.url}: {order.status}", resume)


def resume(name: str, runs: Path | None, address: str, evaluations: int | None, allow_code: bool) -> None:
    """Go on with a run on a cluster."""
    from optimizer.remote.wire import Order

    there = cluster.reached(address)
    run = _find(there, name, runs)
    _drive(there, Order("resume", run.name, run.runs, allow_code=allow_code, evaluations=evaluations))


def _drive(there: Cluster, order: Order) -> None:
    """Have the cluster drive a run; returns when it has taken it up."""
    found = there.send(order)
    say(f"run {found}")
    say(f"in {_told(there, there.answer(found), 'folder')} on the cluster")


def _told(there: Cluster, answer: dict[str, Any], key: str) -> str:
    """What an answer says of this; ClusterError where it says nothing of it."""
    from optimizer.remote.jobs import understood

    with understood(there.url):
        return str(answer[key])


def _find(there: Cluster, name: str, runs: Path | None) -> Sent:
    return there.find(name, None if runs is None else str(runs))


def _ask(there: Cluster, order: Sent, verb: Literal["status", "cancel"]) -> dict[str, Any]:
    """What the cluster says of the run that an order drives, or drove."""
    from optimizer.remote.wire import Order

    return there.answer(there.send(Order(verb, order.name, order.runs)))


def _goes_on(order: Sent, address: str) -> str:
    return f"'mergeopt resume {order.name} --address {address}' goes on"


def _over(folder: Path) -> bool:
    """Whether a run of this host is finished, which is said."""
    from optimizer.remote import control

    if found := control.over(folder):
        say(f"{folder.name} is over already: finished")
    return found


def _say_over(order: Sent, address: str) -> None:
    """There is nothing to stop; an order that has not ended by itself may have left something to go on with."""
    say(
        f"{order.id} is over already: {order.status}"
        + ("" if order.status == "SUCCEEDED" else f"; {_goes_on(order, address)}")
    )


def _default_out(name: str, what: str) -> Path:
    return {"ledger": DEFAULT_RUNS / name, "report": Path(f"{name}.html"), "export": Path(f"{name}-merged")}[what]


def _fetch_here(folder: Path, what: str, out: Path | None, candidate: str, allow_code: bool) -> tuple[Path, str]:
    """The same of a run of this host: a copy that is whole though the run goes on."""
    from optimizer.commands.results import said_of_export
    from optimizer.remote import parcel
    from optimizer.run import Run

    made = out or _default_out(f"{folder.name}-copy" if what == "ledger" else folder.name, what)
    if what == "ledger":
        parcel.copy_run(folder, made.absolute())
        return made, ""
    run = Run(folder)
    if what == "report":
        return run.report(made), ""
    run.export(candidate, made, allow_code)
    return made, " ".join(said_of_export(run, made, candidate))


def _print(lines: Iterable[str]) -> None:
    """Line by line; Ctrl-C ends the looking, and nothing else."""
    try:
        for line in lines:
            say(line)
    except KeyboardInterrupt:
        typer.echo("no longer following; the run goes on", err=True)
        raise SystemExit(130) from None
