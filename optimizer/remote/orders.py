"""What does the cluster's side of a command do? Run there by Ray, in the folder that holds the order.

python -m optimizer.remote.orders
"""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import ClusterError, RunError
from optimizer.remote import control, parcel, wire
from optimizer.remote.wire import Order

KEPT_SECONDS = 3600  # what was sent and is not taken off the log by then stays there


def main() -> None:
    """Carry out the order of this folder. A refusal is the answer, and its exit code ours."""
    try:
        order = Order.read(Path())
        if order.version != wire.version():
            raise ClusterError(
                f"the cluster has mergeopt {wire.version()}, this host {order.version}; install the same on both"
            )
        carry_out(order)
    except ValueError as error:
        if not hasattr(error, "exit_code"):
            raise
        _answer({"error": str(error), "exit_code": error.exit_code})
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def carry_out(order: Order) -> None:
    """Do what an order says, and print its answer."""
    folder = runs_folder(order) / order.name
    if order.verb in ("run", "resume"):
        _drive(order, folder)
    elif order.verb == "status":
        from optimizer.output import show
        from optimizer.run import Run

        _answer(show.status(Run(folder).results()))
    elif order.verb == "cancel":
        _answer({"pid": control.cancel(folder)})
    else:
        _send(order, folder)


def runs_folder(order: Order) -> Path:
    """Where the cluster keeps runs: a relative folder starts from the home of the user that Ray runs as there."""
    return Path.home() / Path(order.runs).expanduser()


def _drive(order: Order, folder: Path) -> None:
    """The command of that name, in this process: what it prints is the log, and Ray's stop is its SIGTERM."""
    from optimizer.commands import searches

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if order.verb == "run" and folder.exists():
        raise RunError(
            f"the cluster has a run at {folder} already; 'mergeopt resume {order.name}' with its --address goes on, "
            "--name starts another beside it"
        )
    if order.verb == "resume":
        control.nobody_drives(folder)
    _answer({"folder": str(folder)})
    if order.verb == "run":
        searches.run(Path(wire.JOB).absolute(), None, folder.parent, order.allow_code)
    else:
        searches.resume(str(folder), folder.parent, order.evaluations, allow_code=order.allow_code)


def _send(order: Order, folder: Path) -> None:
    """What was asked for, as lines of this process's log; once it was read, Ray's stop takes them out again."""
    from optimizer.run import Run

    run = Run(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as here:
        if order.what == "ledger":
            parcel.copy_run(folder, source := Path(here) / "run")
        elif order.what == "report":
            source = run.report(Path(here) / "report.html")
        else:
            source = run.export(order.candidate, Path(here) / "export", order.allow_code)
        parcel.pack(source, archive := Path(here) / "parcel.zip")
        with archive.open("rb") as file:
            for line in wire.encode(file):
                print(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it is waited for
    sys.stdout.flush()
    if signal.sigtimedwait({signal.SIGTERM}, KEPT_SECONDS) and stat.S_ISREG(os.fstat(1).st_mode):
        os.ftruncate(1, 0)


def _answer(value: Mapping[str, Any]) -> None:
    print(wire.ANSWER + json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
