"""What does the command line offer? Each command calls what a notebook calls, and prints. Imports are lazy."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, NoReturn

import typer

from optimizer.commands import catalogue, host, remote, results, searches
from optimizer.output import logs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the best way to merge fine-tuned models: search, Pareto front, export.",
)
for room in (searches, results, host, catalogue, remote):  # --help lists in this order
    app.add_typer(room.app)


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


if __name__ == "__main__":
    main()
