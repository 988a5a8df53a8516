"""What does the command line offer? Each command calls what a notebook calls, and prints. Imports are lazy."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from optimizer.commands import cli_runs
from optimizer.commands.catalogue import app as catalogue
from optimizer.commands.cli_runs import Address
from optimizer.errors import DiskFull, LedgerBusy, OptimizerError, RunLocked
from optimizer.output import logs
from optimizer.record.folders import run_folder

if TYPE_CHECKING:
    from optimizer.doctor import Finding
    from optimizer.run import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the best way to merge fine-tuned models: search, Pareto front, export.",
)

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
RunName = Annotated[str, typer.Argument(help="A run: its name under --runs, or its folder.", show_default=False)]
Runs = Annotated[Path, typer.Option(help="Where runs are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let evaluators run Python files that the job names.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve metrics for Prometheus on this port of 127.0.0.1.", show_default=False),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log to stderr, one JSON object a line and candidate.")]
DEFAULT_RUNS = Path("runs")


def _as_json(command: Callable[..., None]) -> Callable[..., None]:
    """With --log-json all that a command says on stderr is lines of JSON, a refusal that ends it too."""

    @wraps(command)
    def told(*given: Any, **options: Any) -> None:
        if not options.get("log_json"):
            command(*given, **options)
            return
        with logs.to(as_json=True):
            try:
                command(*given, **options)
            except ValueError as error:
                if not hasattr(error, "exit_code"):
                    raise
                logs.program.error("%s", error)
                raise SystemExit(error.exit_code) from None

    return told


def _version(asked: bool) -> None:
    if asked:
        from optimizer.remote.wire import version

        typer.echo(f"mergeopt {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What may stand before a command."""


@app.command()
def init(
    base: Annotated[str, typer.Option(help="The base model's folder.", show_default=False)],
    expert: Annotated[
        list[str], typer.Option(help="An expert, NAME=FOLDER; give it once for each.", show_default=False)
    ],
    data: Annotated[list[str] | None, typer.Option(help="Items of a task, NAME=FILE; once for each.")] = None,
    out: Annotated[Path, typer.Option(help="The job file to write.")] = Path("job.yaml"),
) -> None:
    """Look at the models and write a commented job file."""
    from optimizer.jobs.starter import write_job

    write_job(base, expert, data or [], out)
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
    from optimizer.jobs.checking import check_job, print_check, print_paper
    from optimizer.jobs.job import Job
    from optimizer.jobs.paper import on_paper

    loaded = Job.load(job)
    found = on_paper(loaded) if paper else check_job(loaded, allow_code)
    if json_out:
        typer.echo(json.dumps(found))
    else:
        (print_paper if paper else print_check)(found)


@app.command()
@_as_json
def run(
    job: JobFile,
    name: Annotated[str | None, typer.Option(help="Name the run otherwise than the job does.")] = None,
    runs: Runs = DEFAULT_RUNS,
    allow_code: AllowCode = False,
    metrics_port: MetricsPort = None,
    log_json: LogJson = False,
) -> None:
    """Start a search, and stay with it until its front is scored on held-out items."""
    from optimizer.commands.driving import drive
    from optimizer.jobs.job import Job
    from optimizer.run import Run

    loaded = Job.load(job)
    if name is not None:
        loaded = Job.parse({**loaded.model_dump(mode="json"), "name": name}, Path(loaded.root or "."))
    made = Run.create(loaded, runs, allow_code, lambda what: logs.say("reading %s", what))
    typer.echo(f"run {made.folder}")
    try:
        drive(made, None, allow_code, metrics_port, log_json)
    except (RunLocked, LedgerBusy, DiskFull):
        raise  # it can go on as it is, or does
    except ValueError:
        with suppress(OptimizerError, OSError):  # a run that stays is the lesser evil: the reason is to be heard
            made.discard()  # what could not even start can be mended and run again under its name
        raise


@app.command()
@_as_json
def resume(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
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
) -> None:
    """Go on where a run was stopped or killed; nothing that was answered is asked again."""
    from optimizer.commands.driving import drive

    if address is not None:
        local = {"--fork": fork, "--metrics-port": metrics_port, "--log-json": log_json or None}
        _only_here(**local, **{"--retry-failed": retry_failed or None})
        cli_runs.remote_resume(name, address, evaluations, allow_code)
        return
    found = _find(name, runs)
    if fork is not None:
        found = found.fork(fork, allow_code, lambda what: logs.say("reading %s", what))
        typer.echo(f"run {found.folder}")
    drive(found, evaluations, allow_code, metrics_port, log_json, retry_failed)


@app.command()
def status(name: RunName, runs: Runs = DEFAULT_RUNS, json_out: AsJson = False, address: Address = None) -> None:
    """How far a run is, and what it has found."""
    from optimizer.output import show

    if address is not None:
        cli_runs.remote_status(name, address, json_out)
        return
    found = show.status(_find(name, runs).results())
    typer.echo(json.dumps(found)) if json_out else show.print_status(found)


@app.command()
def front(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Every candidate of the front and every anchor.")] = False,
) -> None:
    """The non-dominated candidates, the anchors, and models as they are, on calibration and on held-out items."""
    from optimizer.output import show

    results = _find(name, runs).results()
    typer.echo(json.dumps(show.front(results))) if json_out else show.print_front(results, everything)


@app.command("show")
def show_candidate(
    name: RunName,
    candidate: Annotated[
        str, typer.Argument(help="A number, a recipe hash, an anchor's name, 'expert NAME', best, or best:METRIC.")
    ] = "best",
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
) -> None:
    """One candidate: scores, coefficients, how it was asked."""
    from optimizer.output import show

    results = _find(name, runs).results()
    chosen = results.pick(candidate)
    typer.echo(json.dumps(show.candidate(results, chosen))) if json_out else show.print_candidate(results, chosen)


@app.command()
def export(
    name: RunName,
    candidate: Annotated[
        str, typer.Argument(help="A number, a recipe hash, an anchor's name, best, or best:METRIC.")
    ] = "best",
    out: Annotated[Path | None, typer.Option(help="The folder to make; by default under the run's exports/.")] = None,
    runs: Runs = DEFAULT_RUNS,
    allow_code: AllowCode = False,
    lora: Annotated[
        str | None,
        typer.Option(help="Write one LoRA of the base instead, of this rank or 'exact'.", show_default=False),
    ] = None,
) -> None:
    """Write a candidate as a Hugging Face checkpoint, load it again and check that it scores the same."""
    from optimizer.wording import printable

    if lora is not None:
        where, written = _find(name, runs).export_adapter(candidate, out, _rank(lora), allow_code)
        typer.echo(f"exported {where}\n{written.describe()}; its scores are in {where / 'README.md'}")
        return
    made = _find(name, runs)
    chosen = made.results().pick(candidate)
    folder = made.export(chosen, out, allow_code)
    typer.echo(f"exported {folder}\nits scores on reload are those of the ledger")
    if not (folder / "mergekit.yaml").is_file():
        typer.echo(f"mergekit cannot express it; the reason is in {folder / 'README.md'}")
    verdict = made.results().verdict
    if candidate == "best" and verdict:
        typer.echo(printable(f"it is the anchor {chosen.label}. {verdict}" if chosen.is_anchor else verdict))


@app.command()
def report(
    name: RunName,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default report.html in the run's folder.")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """Write the standalone HTML report."""
    typer.echo(f"wrote {_find(name, runs).report(out)}")


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


app.add_typer(catalogue)
cli_runs.register(app)  # last: --help lists in this order


def main() -> None:
    """The command `mergeopt`: runs the app, and turns refusals into one message and an exit code."""
    try:
        with logs.to():
            app()
    except ValueError as error:
        if not hasattr(error, "exit_code"):
            raise
        _refuse(str(error), error.exit_code)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        full = error.errno == errno.ENOSPC
        _refuse(f"cannot use{where}: {error.strerror or error}", 74 if full else 2)


def _refuse(text: str, code: int) -> NoReturn:
    """One message, and the exit code. Names from models and data, and addresses, may be part of the message."""
    from optimizer.wording import printable, redacted

    typer.secho(f"error: {redacted(printable(text))}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise SystemExit(code) from None


def _only_here(**given: object) -> None:
    """Refuse options that mean nothing on a cluster, where they were given: none is dropped silently."""
    from optimizer.errors import JobError

    if found := [option for option, value in given.items() if value is not None]:
        raise JobError(
            f"{', '.join(found)}: for a run of this host, not with --address; leave it out, or do it on the cluster"
        )


def _find(name: str, runs: Path) -> Run:
    from optimizer.run import Run

    return Run(run_folder(name, runs))


def _rank(text: str) -> int | None:
    """The rank that --lora asks for; None for what is exact."""
    from optimizer.errors import ExportError

    if text == "exact":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ExportError(f"--lora: expected a rank from 1, or 'exact', got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
