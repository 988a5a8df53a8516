"""What a search promises: budget kept, failures survived, and a resume from anywhere that goes on to the bit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from driver_rows import QUICK, sparse
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Driver, Question
from optimizer.drivers import DRIVERS, Entry
from optimizer.drivers.anchors import Anchored
from optimizer.drivers.scalarised import Scalarised
from optimizer.errors import TooManyFailures
from optimizer.executors.executor import Inline
from optimizer.objectives import Objective
from optimizer.record.ledger import Ledger
from optimizer.searching.search import Search

OBJECTIVES = (Objective("task0.accuracy", "max"), Objective("task1.accuracy", "max"))


class Box:
    """A domain of 3 groups x 2 experts."""

    names = tuple(f"g{g}|e{k}" for g in range(3) for k in range(2))
    low, high, start = np.zeros(6), np.ones(6), np.full(6, 0.3)
    shape = (3, 2)
    layers = ("l0", "l1", "l1")
    kinds = ("real",) * 6
    base, uniform, vertices = np.zeros(6), np.full(6, 0.5), np.tile(np.eye(2), 3)


def driver(entry: Entry) -> Driver:
    kind = entry.load()
    options = next(
        (kind.Options.model_validate(o) for name, o in QUICK.items() if DRIVERS[name] is entry), kind.Options()
    )
    anchors = [("base", np.zeros(6)), ("expert: e0", np.tile([1.0, 0], 3)), ("uniform", np.full(6, 0.5))]
    if entry.needs == "options":
        where = sparse(3)
        further = where.start[6:]
        anchors = [(label, np.append(point, further)) for label, point in anchors]
        return Anchored(where, anchors, kind(where, 2, 7, kind.Options()), 7)
    if entry.objectives == "any":
        return Anchored(Box(), anchors, kind(Box(), 2, 7, options), 7)
    return Anchored(Box(), anchors, Scalarised(Box(), 2, 7, lambda seed: kind(Box(), 1, seed, options)), 7)


class Killed(Exception):
    """Stands for a process that is gone: nothing after it is run."""


def search(path: Path, made: Driver, evaluations: int = 40, kill_after: int | None = None, **spec: object) -> Search:
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {})
    left = [kill_after]

    def count(running: Search, answer: Answer) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed

    made_search = Search(
        made,
        Inline(Bowl.TARGET, json.dumps(spec)),
        ledger,
        OBJECTIVES,
        evaluations,
        lambda p: p.tobytes().hex(),
        count,
        tasks=("task0", "task1"),
    )
    try:
        made_search.run()
    finally:
        ledger.close()
    return made_search


def questions(path: Path, split: str = "calibration") -> list[tuple[int, bytes, str]]:
    ledger = Ledger.open(path, readonly=True)
    found = [(q.number, q.point.tobytes(), q.stage) for q in ledger.questions(split)]
    ledger.close()
    return found


@pytest.fixture(params=list(DRIVERS.values()), ids=list(DRIVERS))
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


def test_killed_anywhere_and_resumed_it_asks_what_it_would_have_asked(entry: Entry, tmp_path: Path) -> None:
    whole = search(tmp_path / "whole.db", driver(entry))
    for kills in ((1, 1), (3, 17), (24, 8), (39, 3)):
        path = tmp_path / f"killed{kills[0]}.db"
        for kill in kills:
            # what ends by itself may do so before
            with contextlib.suppress(Killed) if entry.loss or entry.ends else pytest.raises(Killed):
                search(path, driver(entry), kill_after=kill)
        resumed = search(path, driver(entry))
        assert questions(path) == questions(tmp_path / "whole.db")
        assert questions(path, "heldout") == questions(tmp_path / "whole.db", "heldout")
        assert resumed.front.nondominated == whole.front.nondominated
        assert resumed.front.hypervolume == whole.front.hypervolume


def test_a_finished_run_resumed_asks_nothing_more(entry: Entry, tmp_path: Path) -> None:
    search(tmp_path / "l.db", driver(entry), 12)
    before = questions(tmp_path / "l.db")
    search(tmp_path / "l.db", driver(entry), 12)
    assert questions(tmp_path / "l.db") == before


def test_a_larger_budget_goes_on_from_where_it_was(entry: Entry, tmp_path: Path) -> None:
    search(tmp_path / "a.db", driver(entry), 15)
    search(tmp_path / "a.db", driver(entry), 30)
    search(tmp_path / "b.db", driver(entry), 30)
    assert questions(tmp_path / "a.db") == questions(tmp_path / "b.db")


def test_the_front_and_the_anchors_are_scored_on_heldout_items(entry: Entry, tmp_path: Path) -> None:
    made = search(tmp_path / "l.db", driver(entry), 20)
    held = {number for number, _, _ in questions(tmp_path / "l.db", "heldout")}
    assert held == {*made.front.nondominated, 0, 1, 2}


def test_failures_are_recorded_never_on_the_front_and_do_not_stop_the_search(entry: Entry, tmp_path: Path) -> None:
    asks = driver(entry)
    made = search(tmp_path / "l.db", asks, 40, bad=0.9)  # the expert's anchor fails, and some others
    assert (made.answered == 40 or asks.done) and made.failed >= 1
    ledger = Ledger.open(tmp_path / "l.db", readonly=True)
    failed = {a.number for a in ledger.answers() if a.failure is not None}
    assert failed and not failed & set(made.front.nondominated)


def test_a_search_in_which_most_candidates_fail_stops_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match=r"11 of the last 11 candidates failed.*loss is nan"):
        search(tmp_path / "l.db", driver(DRIVERS["random"]), 40, bad=-1.0)
    ledger = Ledger.open(tmp_path / "l.db", readonly=True)
    assert len(ledger.answers()) == 11


def test_a_stop_asks_nothing_more_and_keeps_what_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    ledger = Ledger.create(path, {})
    made = Search(
        driver(DRIVERS["sobol"]), Inline(Bowl.TARGET, "{}"), ledger, OBJECTIVES, 40, lambda p: p.tobytes().hex(),
        lambda running, answer: running.stop() if running.answered == 9 else None,
    )  # fmt: skip
    made.run()
    assert made.stopped and made.answered == 9 and ledger.pending() == []
    assert ledger.questions("heldout") == []


def test_an_answer_lost_with_its_process_is_asked_again_under_its_number(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with pytest.raises(Killed):
        search(path, driver(DRIVERS["tpe"]), kill_after=5)
    shutil.copy(path, tmp_path / "copy.db")
    ledger = Ledger.open(tmp_path / "copy.db")
    lost: Sequence[Question] = driver_after(ledger).ask(1)
    ledger.asked(1, lost, ["r"])  # asked, and killed before the answer
    ledger.close()
    search(tmp_path / "copy.db", driver(DRIVERS["tpe"]))
    search(path, driver(DRIVERS["tpe"]))
    assert questions(tmp_path / "copy.db") == questions(path)


def driver_after(ledger: Ledger) -> Driver:
    made = driver(DRIVERS["tpe"])
    Search(made, Inline(Bowl.TARGET, "{}"), ledger, OBJECTIVES, 40, lambda p: "").replay()
    return made
