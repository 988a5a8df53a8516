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

from optimizer.commands.interrupts import in_order
from optimizer.commands.refusal import refusals
from optimizer.errors import ClusterError, RunError
from optimizer.output import hints
from optimizer.remote import control, parcel, wire
from optimizer.remote.wire import Order

KEPT_SECONDS = 3600  # what was sent and is not taken off the log by then stays there


def main() -> None:
    """Carry out the order of this folder. A refusal is the answer, and its exit code ours."""
    with refusals(_refuse), in_order():
        order = Order.read(Path())
        if order.version != wire.version():
            raise ClusterError(
                f"the cluster has mergeopt {wire.version()}, this host {order.version}; install the same on both"
            )
        with hints.from_afar(order.name):
            carry_out(order)


def carry_out(order: Order) -> None:
    """Do what an order says, and print its answer."""
    folder = runs_folder(order) / order.name
    if order.verb in ("run", "resume"):
        _drive(order, folder)
    elif order.verb == "status":
        from optimizer.output import plain
        from optimizer.run import Run

        _answer(plain.status(Run(folder).results()))
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
            f"the cluster has a run at {folder} already; '{hints.command('resume', folder)}' goes on, --name starts "
            "another beside it"
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
    from optimizer.commands.results import said_of_export
    from optimizer.run import Run

    run = Run(folder)
    note = ""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as here:
        if order.what == "ledger":
            parcel.copy_run(folder, source := Path(here) / "run")
        elif order.what == "report":
            source = run.report(Path(here) / "report.html")
        else:
            chosen = run.results().pick(order.candidate)
            source = run.export(chosen, Path(here) / "export" / order.export_name, order.allow_code)
            note = " ".join(said_of_export(run, source, order.candidate))
        parcel.pack(source, archive := Path(here) / "parcel.zip")
        with archive.open("rb") as file:
            for line in wire.encode(file, note):
                print(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it is waited for
    sys.stdout.flush()
    if signal.sigtimedwait({signal.SIGTERM}, KEPT_SECONDS) and stat.S_ISREG(os.fstat(1).st_mode):
        os.ftruncate(1, 0)


def _refuse(text: str, code: int) -> None:
    _answer({"error": text, "exit_code": code})
    print(f"error: {text}", file=sys.stderr)


def _answer(value: Mapping[str, Any]) -> None:
    print(wire.ANSWER + json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
