"""What happens in a run, told as it happens?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.answer import Answer
from optimizer.output import hints, plain
from optimizer.record.copied import copied
from optimizer.record.folders import LEDGER
from optimizer.record.foreign import readable
from optimizer.record.ledger import SEEN, Ledger
from optimizer.record.results import Results
from optimizer.remote import control, wire

if TYPE_CHECKING:
    from optimizer.remote.jobs import Cluster

LOOK_SECONDS = 1.0


def answers(folder: Path, follow: bool) -> Iterator[str]:
    """A line for each answer of a run of this host; with `follow` until nobody drives it."""
    told: set[tuple[str, int]] = set()
    while True:
        more = follow and control.driven(folder)  # before the ledger is read: what comes later is read once more
        for line, key in _answered(folder):
            if key not in told:
                told.add(key)
                yield line
        if not more:
            return
        time.sleep(LOOK_SECONDS)


def progress(folder: Path) -> Iterator[str]:
    """A line whenever a run of this host has come further, until nobody drives it."""
    before = None
    while True:
        more = control.driven(folder)
        found = plain.status(Results(folder))
        line = (
            f"{found['answered']}/{found['evaluations']} candidates  {found['failed']} failed  {found['front']} on the "
            f"front, {found['heldout']} scored on held-out items  hypervolume {found['hypervolume']:.4f}"
        )
        if line != before:
            before = line
            yield line
        if not more:
            yield "finished" if found["finished"] else f"nobody drives it: {_goes_on(folder)}"
            return
        time.sleep(LOOK_SECONDS)


def _goes_on(folder: Path) -> str:
    of = copied(folder)
    return f"it is {of}" if of else f"'{hints.command('resume', folder)}' goes on"


def log(cluster: Cluster, order: str, follow: bool) -> Iterator[str]:
    """What an order on a cluster printed, line by line; with `follow` until it is over."""
    told = 0
    while True:
        more = follow and not cluster.state(order).over
        text = wire.said(cluster.log(order))
        whole = text if not more else text[: text.rfind("\n") + 1]
        yield from whole[told:].splitlines()
        told = max(told, len(whole))
        if not more:
            return
        time.sleep(LOOK_SECONDS)


def _answered(folder: Path) -> list[tuple[str, tuple[str, int]]]:
    ledger = Ledger.open(folder / LEDGER, readonly=True)
    try:
        with readable(folder):
            found = [(_line(a), (a.split, a.number)) for split in SEEN for a in ledger.answers(split)]
            times = {(split, number): at for split in SEEN for number, at in ledger.times(split)}
            found.sort(key=lambda line: times[line[1]])
            return found + [(_line(a), (a.split, a.number)) for a in ledger.answers("heldout")]
    finally:
        ledger.close()


def _line(answer: Answer) -> str:
    if answer.failure is not None:
        said = f"failed: {answer.failure}"
    else:
        said = "  ".join(f"{name} {m.value:.4f}" for name, m in answer.measures.items())
    again = f"  attempt {answer.attempts}" if answer.attempts > 1 else ""
    return f"{answer.split} {answer.number}  {answer.seconds:.2f} s  {answer.worker}{again}  {said}"
