"""What does the command line offer to start a search? First files, checks, and searches that stay in the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.commands import remote
from optimizer.commands.arguments import (
    DEFAULT_RUNS,
    Address,
    AllowCode,
    AsJson,
    JobFile,
    NewName,
    RunAnywhere,
    Runs,
    RunsAnywhere,
    only_here,
    opened,
)
from optimizer.commands.interrupts import interruptible
from optimizer.commands.refusal import refusals
from optimizer.errors import DiskFull, LedgerBusy, OptimizerError, RunLocked
from optimizer.output import hints, logs

if TYPE_CHECKING:
    from optimizer.run import Run

app = typer.Typer()

MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve metrics for Prometheus on this port of 127.0.0.1.", show_default=False),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log to stderr, one JSON object a line and candidate.")]
LogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log-to",
        help="Log candidates and front to tensorboard, mlflow or wandb too; once for each.",
        show_default=False,
    ),
]


def _as_json(command: Callable[..., None]) -> Callable[..., None]:
    """With --log-json all that a command says on stderr is lines of JSON, a refusal that ends it too."""

    @wraps(command)
    def told(*given: Any, **options: Any) -> None:
        if not options.get("log_json"):
            command(*given, **options)
            return
        with logs.to(as_json=True), refusals(lambda text, code: logs.program.error("%s", text)):
            command(*given, **options)

    return told


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where models, data and the run go.")] = Path("demo"),
    evaluations: Annotated[int, typer.Option(min=20, help="The search's budget, in candidates.")] = 120,
) -> None:
    """Train a tiny base and four experts on digits, search, and export the best merge. No network, a few minutes."""
    from optimizer.jobs.demo import prepare

    job = prepare(out, evaluations, typer.echo)
    from optimizer.commands.driving import drive
    from optimizer.run import Run

    made = Run.create(job, out / "runs")
    drive(made, None, False)
    folder = made.export("best")
    typer.echo(f"exported {folder}: reloaded, it scores what the ledger says")
    init = shlex.join(["mergeopt", "init", "--base", str(out / "base")])
    typer.echo(
        f"next:\n  {hints.command('front', made.folder)}   # what was found\n"
        f"  {hints.command('compare', made.folder, 'best', 'uniform')}   # is it better than the plain average?\n"
        f"  {init} --expert NAME=FOLDER ...   # a job of models that you choose\n"
        "docs/start.md goes on from here"
    )


@app.command()
def init(
    base: Annotated[str, typer.Option(help="The base model's folder.", show_default=False)],
    expert: Annotated[
        list[str], typer.Option(help="An expert, NAME=FOLDER; give it once for each.", show_default=False)
    ],
    data: Annotated[list[str] | None, typer.Option(help="Items of a task, NAME=FILE; once for each.")] = None,
    out: Annotated[Path, typer.Option(help="The job file to write.")] = Path("job.yaml"),
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Search by gradients of the tasks' losses: the fastest way.")
    ] = False,
) -> None:
    """Look at the models and write a commented job file."""
    from optimizer.jobs.starter import write_job

    write_job(base, expert, data or [], out, gradients)
    typer.echo(f"wrote {out}; look it through, then: mergeopt check {out}")


@app.command()
def check(
    job: JobFile,
    json_out: AsJson = False,
    allow_code: AllowCode = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Only the arithmetic, from headers and bandwidths: nothing is loaded.")
    ] = False,
) -> None:
    """Validate everything, score one candidate, and say what the search will need."""
    from optimizer.jobs.checking import check_job
    from optimizer.jobs.job import Job
    from optimizer.jobs.paper import on_paper
    from optimizer.output.needs import print_check, print_paper, rows_on_paper

    loaded = Job.load(job)
    found = on_paper(loaded) if paper else check_job(loaded, allow_code)
    if json_out:
        typer.echo(json.dumps({**found, "said": rows_on_paper(found)} if paper else found))
    else:
        (print_paper if paper else print_check)(found)


@app.command()
@_as_json
@interruptible
def run(
    job: JobFile,
    name: NewName = None,
    runs: Runs = DEFAULT_RUNS,
    allow_code: AllowCode = False,
    metrics_port: MetricsPort = None,
    log_json: LogJson = False,
    log_to: LogTo = None,
) -> None:
    """Start a search, and stay with it until its front is scored on held-out items."""
    from optimizer.commands.driving import drive
    from optimizer.jobs.job import Job
    from optimizer.output import loggers
    from optimizer.run import Run

    loaded, others = Job.load(job), loggers.find(log_to or [])
    if name is not None:
        loaded = Job.parse({**loaded.model_dump(mode="json"), "name": name}, Path(loaded.root or "."))
    made = Run.create(loaded, runs, allow_code, lambda what: logs.say("reading %s", what))
    with _new(made):
        drive(made, None, allow_code, metrics_port, log_to=others)


@contextmanager
def _new(made: Run) -> Iterator[None]:
    """Say that there is a run now; what could not even start can be mended and run again under its name."""
    typer.echo(f"run {made.folder}")
    try:
        yield
    except (RunLocked, LedgerBusy, DiskFull):
        raise  # it can go on as it is, or does
    except ValueError:
        with suppress(OptimizerError, OSError):  # a run that stays is the lesser evil: the reason is to be heard
            made.discard()
        raise


@app.command()
@_as_json
@interruptible
def resume(
    name: RunAnywhere,
    runs: RunsAnywhere = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="A new budget, in candidates.", show_default=False)
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(help="Inputs have changed: start a child run of this name with them.", show_default=False),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="First ask again what failed for want of a worker, time or memory.")
    ] = False,
    allow_code: AllowCode = False,
    address: Address = None,
    metrics_port: MetricsPort = None,
    log_json: LogJson = False,
    log_to: LogTo = None,
) -> None:
    """Go on where a run was stopped or killed; nothing that was answered is asked again."""
    from optimizer.commands.driving import drive
    from optimizer.output import loggers

    if address is not None:
        only_here(
            {"--fork": fork, "--retry-failed": retry_failed or None}
            | {"--metrics-port": metrics_port, "--log-json": log_json or None, "--log-to": log_to or None}
        )
        remote.resume(name, runs, address, evaluations, allow_code)
        return
    found, others = opened(name, runs), loggers.find(log_to or [])
    with ExitStack() as stack:
        if fork is not None:
            found = found.fork(fork, allow_code, lambda what: logs.say("reading %s", what))
            stack.enter_context(_new(found))
        drive(found, evaluations, allow_code, metrics_port, retry_failed, others)
