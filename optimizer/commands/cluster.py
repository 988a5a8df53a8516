"""What does the command line offer to try a cluster, and how is one reached?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.wording import printable

if TYPE_CHECKING:
    from optimizer.remote.jobs import Cluster

app = typer.Typer(no_args_is_help=True, help="A cluster of this host alone, to try things on.")


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of its job API.")] = 8265,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that it has; by default this host's.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that it has; by default this host's.")] = None,
) -> None:
    """Start a Ray head on loopback, which asks for a token that only you can read."""
    from optimizer.remote import head

    made = head.up(port, cpus, gpus)
    typer.echo(f"cluster {made.url}, process {made.pid}\n'mergeopt launch job.yaml --address auto' sends it a job")


@app.command()
def down() -> None:
    """End the head that 'cluster up' started, and all that runs on it."""
    from optimizer.remote import head

    typer.echo("the cluster has ended" if head.down() else "no cluster of this host is running")


@app.command("status")
def status(address: Annotated[str, typer.Option(help="Which cluster.")] = "auto") -> None:
    """Where the cluster listens, and what it was sent."""
    there = reached(address)
    typer.echo(f"cluster {there.url}")
    for one in there.sent():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.began / 1000))
        say(f"  {one.id:<32}{one.verb:<8}{one.name:<24}{one.told:<10}{began}")


def reached(address: str) -> Cluster:
    """The cluster at an address, to send orders to."""
    from optimizer.remote.address import Endpoint

    endpoint = Endpoint.of(address)  # refused before Ray is loaded, and before anything is sent
    from optimizer.remote.jobs import Cluster

    return Cluster(endpoint)


def say(line: str) -> None:
    """One line, whatever a cluster, or a run's folder, has put into it."""
    typer.echo(printable(line.expandtabs().replace("\n", " ")))
