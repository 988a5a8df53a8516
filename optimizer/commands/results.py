"""What does the command line offer to look at a run, and to take from it?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.commands import remote
from optimizer.commands.arguments import (
    DEFAULT_RUNS,
    Address,
    AllowCode,
    AsJson,
    RunAnywhere,
    RunName,
    Runs,
    RunsAnywhere,
    opened,
)
from optimizer.errors import ExportError, JobError

if TYPE_CHECKING:
    from optimizer.conditions import Condition
    from optimizer.run import Run

app = typer.Typer()
NAMED = "A number, a recipe hash, an anchor's name, 'expert NAME', best, best:METRIC, knee or surest."


@app.command()
def status(name: RunAnywhere, runs: RunsAnywhere = None, json_out: AsJson = False, address: Address = None) -> None:
    """How far a run is, and what it has found."""
    from optimizer.output import plain, show

    if address is not None:
        remote.status(name, runs, address, json_out)
        return
    found = plain.status(opened(name, runs).results())
    typer.echo(json.dumps(found)) if json_out else show.print_status(found)


@app.command()
def front(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Every candidate of the front and every anchor.")] = False,
    by_confidence: Annotated[
        bool, typer.Option("--by-confidence", help="The likeliest to be on the front in truth first.")
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(help="One candidate instead: 'METRIC >= NUMBER', or <=; may be given again.", show_default=False),
    ] = None,
    best: Annotated[
        str | None, typer.Option(help="The metric that it is to be best in; by default the mean.", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another run of these objectives to measure the front by.", show_default=False)
    ] = None,
) -> None:
    """The non-dominated candidates, how sure they are, the anchors, and models as they are; or the one preferred."""
    from optimizer.output import certain, plain, show
    from optimizer.record.naming import preferred

    results = opened(name, runs).results()
    one = bool(where) or best is not None
    _one_of(
        {
            "--where and --best": one,
            "--against": against is not None,
            "--all and --by-confidence": everything or by_confidence,
        }
    )
    if one:
        conditions = _conditions(where or ())
        chosen = preferred(results, conditions, best)
        found = plain.preferred(results, chosen, conditions)
        typer.echo(json.dumps(found)) if json_out else certain.print_preferred(results, chosen, conditions, best)
    elif against is not None:
        told = plain.against(results, opened(against, runs).results())
        typer.echo(json.dumps(told)) if json_out else certain.print_against(told)
    elif json_out:
        typer.echo(json.dumps(plain.front(results, by_confidence)))
    else:
        show.print_front(results, everything, by_confidence)


@app.command()
def compare(
    name: RunName,
    a: Annotated[str, typer.Argument(metavar="A", help=NAMED)],
    b: Annotated[str, typer.Argument(metavar="B", help="The candidate that it is compared with.")],
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
) -> None:
    """Two candidates, item by item: differences with standard errors, wins and losses, and who dominates whom."""
    from optimizer.output import pairs, plain

    results = opened(name, runs).results()
    one, other = results.pick(a), results.pick(b)
    for chosen in (one, other):
        if chosen.failure is not None:
            raise JobError(f"candidate {chosen.label} has no scores to compare: {chosen.failure}; name another")
    found = plain.compared(results, one, other) if json_out else None
    typer.echo(json.dumps(found)) if found else pairs.print_compared(results, one, other)


@app.command("show")
def show_candidate(
    name: RunName,
    candidate: Annotated[str, typer.Argument(help=NAMED)] = "best",
    runs: Runs = DEFAULT_RUNS,
    json_out: AsJson = False,
) -> None:
    """One candidate: scores, coefficients, how it was asked."""
    from optimizer.output import plain, show

    results = opened(name, runs).results()
    chosen = results.pick(candidate)
    typer.echo(json.dumps(plain.candidate(results, chosen))) if json_out else show.print_candidate(results, chosen)


@app.command()
def export(
    name: RunName,
    candidate: Annotated[str, typer.Argument(help=NAMED)] = "best",
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
        where, written = opened(name, runs).export_adapter(candidate, out, _rank(lora), allow_code)
        typer.echo(f"exported {where}\n{written.describe()}; its scores are in {where / 'README.md'}")
        return
    made = opened(name, runs)
    chosen = made.results().pick(candidate)
    folder = made.export(chosen, out, allow_code)
    typer.echo("\n".join([f"exported {folder}", *map(printable, said_of_export(made, folder, candidate))]))


@app.command()
def report(
    name: RunName,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default report.html in the run's folder.")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
) -> None:
    """Write the standalone HTML report."""
    typer.echo(f"wrote {opened(name, runs).report(out)}")


def _one_of(given: dict[str, bool]) -> None:
    """Refuse options of which each asks for something else to be shown."""
    if len(asked := [name for name, there in given.items() if there]) > 1:
        raise JobError(f"{' and '.join(asked)} show different things; ask for one at a time")


def _conditions(texts: Sequence[str]) -> list[Condition]:
    """What --where asks for. Raises JobError for what is no condition, and for conditions that cannot all hold."""
    from optimizer.conditions import Condition, consistent

    try:
        found = [Condition.parse(text) for text in texts]
        consistent(found)
        return found
    except ValueError as error:
        raise JobError(f"--where: {error}") from None


def said_of_export(run: Run, folder: Path, candidate: str) -> list[str]:
    """What to know of a checkpoint that was just written: that it was verified, and whether it is worth it."""
    from optimizer.output.export import why_not_mergekit

    results = run.results()
    chosen = results.pick(candidate)
    found = [
        "its scores on reload are those of the ledger"
        if chosen.share == 1.0
        else "the ledger has estimates of its scores; those in its README.md are measured on all items"
    ]
    if (why := why_not_mergekit(run, folder)) is not None:
        found.append(f"mergekit cannot express it: {why}")
    if candidate == "best" and results.verdict:
        found.append(f"it is the anchor {chosen.label}. {results.verdict}" if chosen.is_anchor else results.verdict)
    return found


def _rank(text: str) -> int | None:
    """The rank that --lora asks for; None for what is exact."""

    if text == "exact":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ExportError(f"--lora: expected a rank from 1, or 'exact', got {text!r}")
    return int(text)
