"""What does the command line offer? Each command calls what a notebook calls, and prints. Imports are lazy."""

from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from optimizer.run import Run
    from optimizer.search import Search

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
DEFAULT_RUNS = Path("runs")


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
    from optimizer.starter import write_job

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
    from optimizer.checking import check_job, print_check, print_paper
    from optimizer.job import Job
    from optimizer.paper import on_paper

    loaded = Job.load(job)
    found = on_paper(loaded) if paper else check_job(loaded, allow_code)
    if json_out:
        typer.echo(json.dumps(found))
    else:
        (print_paper if paper else print_check)(found)


@app.command()
def run(
    job: JobFile,
    name: Annotated[str | None, typer.Option(help="Name the run otherwise than the job does.")] = None,
    runs: Runs = DEFAULT_RUNS,
    allow_code: AllowCode = False,
) -> None:
    """Start a search, and stay with it until its front is scored on held-out items."""
    from optimizer.job import Job
    from optimizer.run import Run

    loaded = Job.load(job)
    if name is not None:
        loaded = Job.parse({**loaded.model_dump(mode="json"), "name": name}, Path(loaded.root or "."))
    made = Run.create(loaded, runs, allow_code, lambda what: typer.echo(f"reading {what}", err=True))
    typer.echo(f"run {made.folder}")
    try:
        _drive(made, None, allow_code)
    except ValueError:
        made.discard()  # what could not even start can be mended and run again under its name
        raise


@app.command()
def resume(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="A new budget, in candidates.", show_default=False)
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Go on where a run was stopped or killed; nothing that was answered is asked again."""
    _drive(_find(name, runs), evaluations, allow_code)


@app.command()
def status(name: RunName, runs: Runs = DEFAULT_RUNS, json_out: AsJson = False) -> None:
    """How far a run is, and what it has found."""
    from optimizer import show

    results = _find(name, runs).results()
    typer.echo(json.dumps(show.status(results))) if json_out else show.print_status(results)


@app.command()
def front(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Every candidate of the front and every anchor.")] = False,
) -> None:
    """The non-dominated candidates and the anchors, on calibration and on held-out items."""
    from optimizer import show

    results = _find(name, runs).results()
    typer.echo(json.dumps(show.front(results))) if json_out else show.print_front(results, everything)


@app.command("show")
def show_candidate(
    name: RunName,
    candidate: Annotated[
        str, typer.Argument(help="A number, a recipe hash, an anchor's name, best, or best:METRIC.")
    ] = "best",
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
) -> None:
    """One candidate: scores, coefficients, how it was asked."""
    from optimizer import show

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
    if candidate == "best" and chosen.is_anchor:
        typer.echo(f"it is the anchor {chosen.label}: no merge has a better mean")


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

    if clear:
        limit.clear()
    found = limit.sizes()
    if json_out:
        typer.echo(json.dumps({"folder": str(limit.root()), "limit": limit.limit(), "bytes": found}))
        return
    typer.echo(
        f"{limit.root()}: {sum(found.values()) / 1e9:.2f} GB of at most {limit.limit() / 1e9:.2f} ({limit.LIMIT})"
    )
    for kind, size in found.items():
        typer.echo(f"  {kind:<14}{size / 1e9:8.2f} GB")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where models, data and the run go.")] = Path("demo"),
    evaluations: Annotated[int, typer.Option(min=20, help="The search's budget, in candidates.")] = 120,
) -> None:
    """Train a tiny base and four experts on digits, search, and export the best merge. No network, a few minutes."""
    from optimizer.demo import prepare

    job = prepare(out, evaluations, typer.echo)
    from optimizer.run import Run

    made = Run.create(job, out / "runs")
    _drive(made, None, False)
    folder = made.export("best")
    typer.echo(f"exported {folder}: reloaded, it scores what the ledger says")


def main() -> None:
    """The command `mergeopt`: runs the app, and turns refusals into one message and an exit code."""
    try:
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
    """One message, and the exit code."""
    typer.secho(f"error: {_printable(text)}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise SystemExit(code) from None


def _find(name: str, runs: Path) -> Run:
    from optimizer.run import Run

    folder = Path(name)
    return Run(folder if (folder / "ledger.db").is_file() else runs / name)


def _drive(made: Run, evaluations: int | None, allow_code: bool) -> None:
    """Search with progress, then print the front and write the report. Ctrl-C drains and exits 130."""
    from rich.console import Console

    from optimizer import show
    from optimizer.progress import SearchProgress

    with SearchProgress(Console()) as progress, _Interruptible() as interruptible:

        def start(search: Search) -> None:
            progress.on_start(search)
            interruptible.search = search

        search = made.search(progress.on_answer, start, evaluations, allow_code)
    results = made.results()
    show.print_front(results)
    if search.ended and search.gradient_failure is not None:
        typer.echo(f"the walk ended early, its last gradients failed: {search.gradient_failure}", err=True)
    elif search.ended and search.answered < search.evaluations:
        taken = f" after {search.gradients} of {search.steps} steps" if search.steps else ""
        typer.echo(f"the driver has nothing left to ask{taken}: more evaluations change nothing")
    typer.echo(f"report {made.report()}")
    if search.ended and search.gradient_failure is not None:
        raise SystemExit(1)
    if search.stopped:
        typer.echo(
            f"stopped at {search.answered} of {search.evaluations} candidates; 'mergeopt resume {made.folder}' goes on"
        )
        raise SystemExit(130)


class _Interruptible:
    """First Ctrl-C or SIGTERM: ask nothing more and drain. Second, or before the search has begun: stop now."""

    def __init__(self) -> None:
        self.search: Search | None = None

    def __enter__(self) -> _Interruptible:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):
            typer.echo("stopped at once; what was answered is kept, resume goes on", err=True)
            raise SystemExit(130) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.search is None or self.search.stopped:
            raise KeyboardInterrupt
        typer.echo("stopping: waiting for what is in flight (again: stop at once)", err=True)
        self.search.stop()


def _rank(text: str) -> int | None:
    """The rank that --lora asks for; None for what is exact."""
    from optimizer.errors import ExportError

    if text == "exact":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ExportError(f"--lora: expected a rank from 1, or 'exact', got {text!r}")
    return int(text)


def _printable(text: str) -> str:
    """Without control characters: names from models and data may end up in an error."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
