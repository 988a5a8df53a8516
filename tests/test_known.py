"""What is scored once: each recipe, and each model of the pool as it is; told, counted, replayed, and ended by."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from simulated import Bowl
from test_search import OBJECTIVES, Box, Killed, driver, questions

from optimizer.answer import Answer, Failure
from optimizer.driver import FOREIGN, Driver, Outcome, Point, Question
from optimizer.drivers import DRIVERS
from optimizer.executors.executor import Executor, Inline
from optimizer.record.inherited import Inherited
from optimizer.record.ledger import Ledger
from optimizer.searching.search import Search

REPEATS = 20
MODELS = {"base": "hash of base", "e0": "hash of e0"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.searching.known.REPEATS", REPEATS)


def coarse(point: Point) -> str:
    """Nine recipes: three values of each of two coordinates."""
    return str(np.rint(point[:2] * 2).tolist())


def run(
    path: Path,
    made: Driver,
    evaluations: int,
    recipe_of: Callable[[Point], str] = coarse,
    kill_after: int = 0,
    models: dict[str, str] | None = None,
    executor: Executor | None = None,
    inherited: Inherited | None = None,
    **spec: object,
) -> Search:
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {})
    left = [kill_after or 10**9]

    def count(running: Search, answer: Answer) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    search = Search(
        made,
        executor or Inline(Bowl.TARGET, json.dumps(spec)),
        *(ledger, OBJECTIVES, evaluations, recipe_of, count),
        references=models,
        inherited=inherited,
    )
    try:
        search.run()
    finally:
        ledger.close()
    return search


def answers(path: Path) -> list[Answer]:
    ledger = Ledger.open(path, readonly=True)
    found = ledger.answers()
    ledger.close()
    return found


@pytest.mark.parametrize("name", ["cma", "tpe", "random"])
def test_a_recipe_is_scored_once_and_a_search_of_nothing_new_ends(name: str, tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    search = run(path, driver(DRIVERS[name]), 40)
    found = answers(path)
    ledger = Ledger.open(path, readonly=True)
    recipes = ledger.recipes()
    scored = {a.number: a for a in found if a.of is None}
    assert len({recipes[n] for n in scored}) == len(scored) == search.answered <= 9
    for a in found:
        if a.of is not None:
            assert recipes[a.number] == recipes[a.of] and a.measures == scored[a.of].measures and not a.worker
    assert search.ended and search.repeated == len(found) - len(scored) >= REPEATS
    assert {recipes[n] for n in search.front.nondominated} <= set(recipes.values())
    assert len({recipes[n] for n in search.front.nondominated}) == len(search.front.nondominated)
    before = len(found)
    assert run(path, driver(DRIVERS[name]), 60).ended and len(answers(path)) == before


def test_a_budget_counts_what_was_evaluated(tmp_path: Path) -> None:
    search = run(tmp_path / "l.db", driver(DRIVERS["random"]), 5)
    assert search.answered == 5 and search.repeated > 0 and not search.ended


@pytest.mark.parametrize("name", ["cma", "tpe", "sobol"])
def test_killed_anywhere_it_asks_and_is_told_the_same(name: str, tmp_path: Path) -> None:
    def told(path: Path) -> list[tuple[int, int | None, object]]:
        return [(a.number, a.of, a.measures) for a in answers(path)]

    whole = run(tmp_path / "whole.db", driver(DRIVERS[name]), 8, models=MODELS)
    path = tmp_path / "killed.db"
    for kill in (1, 2, 5, 9, 14):
        with contextlib.suppress(Killed):
            run(path, driver(DRIVERS[name]), 8, kill_after=kill, models=MODELS)
    resumed = run(path, driver(DRIVERS[name]), 8, models=MODELS)
    assert questions(path) == questions(tmp_path / "whole.db") and told(path) == told(tmp_path / "whole.db")
    assert (resumed.answered, resumed.repeated, resumed.front.nondominated) == (
        *(whole.answered, whole.repeated),
        whole.front.nondominated,
    )


def test_no_driver_hears_of_references_and_no_budget_pays_for_them(tmp_path: Path) -> None:
    class Listening:
        def __init__(self, inner: Driver) -> None:
            self.inner, self.told = inner, []  # type: ignore[var-annotated]
            self.ask, self.replay = inner.ask, inner.replay

        @property
        def done(self) -> bool:
            return self.inner.done

        def tell(self, outcomes: list[Outcome]) -> None:
            self.told += [o.question.number for o in outcomes]
            self.inner.tell(outcomes)

    plain = run(tmp_path / "plain.db", driver(DRIVERS["cma"]), 12, lambda p: p.tobytes().hex())
    heard = Listening(driver(DRIVERS["cma"]))
    search = run(tmp_path / "l.db", heard, 12, lambda p: p.tobytes().hex(), models=MODELS)
    assert questions(tmp_path / "l.db") == questions(tmp_path / "plain.db") and min(heard.told) > FOREIGN
    assert search.answered == 12 and search.front.nondominated == plain.front.nondominated
    ledger = Ledger.open(tmp_path / "l.db", readonly=True)
    for split in ("calibration", "heldout"):
        kept = ledger.answers(split, references=True)
        assert [q.model for q in ledger.questions(split, references=True)] == ["base", "e0"]
        assert len(kept) == 2 and all(a.measures["task0.accuracy"].value == 1 - 0.25**2 for a in kept)
    run(tmp_path / "l.db", driver(DRIVERS["cma"]), 12, lambda p: p.tobytes().hex(), models=MODELS)
    assert len(Ledger.open(tmp_path / "l.db", readonly=True).answers(references=True)) == 2


def test_a_reference_that_fails_is_kept_and_stops_nothing(tmp_path: Path) -> None:
    search = run(tmp_path / "l.db", driver(DRIVERS["random"]), 6, lambda p: p.tobytes().hex(), models=MODELS, bad=0.49)
    ledger = Ledger.open(tmp_path / "l.db", readonly=True)
    assert [str(a.failure) for a in ledger.answers(references=True)] == ["nonfinite: loss is nan"] * 2
    assert ledger.questions("heldout", references=True) == [] and search.answered == 6


class Held:
    """Three workers at once, of which the one that was asked last answers first; the first answers are failures."""

    slots, ready, busy = 3, 3, False

    def __init__(self, failures: int) -> None:
        self.submitted: list[Question] = []
        self._queue: list[Question] = []
        self._failures, self._worker = failures, Bowl("{}", "w")

    def start(self) -> None:
        pass

    def submit(self, question: Question) -> None:
        self.submitted.append(question)
        self._queue.append(question)

    def collect(self, timeout: float) -> list[Answer]:
        question = self._queue.pop()
        if self._failures:
            self._failures -= 1
            return [Answer(question.number, question.items.split, failure=Failure("timeout", "no answer"))]
        return [self._worker.answer(question)]

    def close(self) -> None:
        pass


class Same:
    """Asks for one point, again and again."""

    done = False

    def __init__(self) -> None:
        self.told: list[Outcome] = []
        self._number = 0

    def ask(self, n: int) -> list[Question]:
        self._number += n
        return [Question(i, Box.start) for i in range(self._number - n, self._number)]

    def replay(self, n: int, questions: list[Question]) -> None:
        self._number += len(questions)

    def tell(self, outcomes: list[Outcome]) -> None:
        self.told += outcomes


@pytest.mark.parametrize("kill", [0, 1, 4, 9, 12])
def test_a_child_is_told_what_its_parent_knows_and_all_else_is_as_without(tmp_path: Path, kill: int) -> None:
    def exactly(point: Point) -> str:
        return point.tobytes().hex()

    parent, alone, path = (tmp_path / name for name in ("parent.db", "alone.db", "child.db"))
    run(parent, driver(DRIVERS["sobol"]), 5, exactly, models=MODELS, bad=0.9)
    whole = run(alone, driver(DRIVERS["cma"]), 8, exactly, models=MODELS, bad=0.9)

    def told(path: Path) -> list[object]:
        with closing(Ledger.open(path, readonly=True)) as ledger:
            kept = [a for s in ("calibration", "heldout") for r in (0, 1) for a in ledger.answers(s, bool(r))]
            values = [ledger.item_values(a.number, a.split) for a in kept]
            items = [{name: v.tobytes() for name, v in value.items()} for value in values]
            return [(a.number, a.split, a.of, a.measures, a.failure) for a in kept] + items

    inherited = Inherited(parent, "first")
    with contextlib.suppress(Killed):
        run(path, driver(DRIVERS["cma"]), 8, exactly, models=MODELS, kill_after=kill, inherited=inherited, bad=0.9)
    child = run(path, driver(DRIVERS["cma"]), 8, exactly, models=MODELS, inherited=inherited, bad=0.9)
    inherited.close()
    assert told(path) == told(alone) and questions(path) == questions(alone)
    assert (child.answered, child.repeated, child.failed) == (whole.answered, whole.repeated, whole.failed)
    with closing(Ledger.open(path, readonly=True)) as ledger, closing(Ledger.open(parent, readonly=True)) as before:
        ours, theirs = ledger.recipes(), before.recipes()
        for split, references in (("calibration", False), ("calibration", True), ("heldout", False), ("heldout", True)):
            scored = {theirs[a.number] for a in before.answers(split, references) if a.failure is None}
            kept = [a for a in ledger.answers(split, references) if a.of is None]
            known = [a for a in kept if ours[a.number] in scored]
            assert known and {(a.worker, a.attempts) for a in known} == {("run first", 0)}, (split, references)
            assert all(a.worker == "inline" for a in kept if a not in known)


def test_workers_are_all_busy_where_there_are_fewer_references_than_workers(tmp_path: Path) -> None:
    class Counting(Held):
        at_once: int | None = None

        def collect(self, timeout: float) -> list[Answer]:
            self.at_once = self.at_once or len(self._queue)
            return super().collect(timeout)

    workers = Counting(0)
    run(tmp_path / "l.db", driver(DRIVERS["random"]), 6, lambda p: p.tobytes().hex(), models=MODELS, executor=workers)
    assert workers.at_once == 3, "two references, and the driver's first question beside them"


def test_what_a_worker_is_just_scoring_is_waited_for(tmp_path: Path) -> None:
    asks, workers = Same(), Held(0)
    search = run(tmp_path / "l.db", asks, 10, executor=workers)
    assert [q.number for q in workers.submitted if q.items.split == "calibration"] == [0]
    assert search.answered == 1 and search.repeated >= REPEATS and search.ended
    assert len({o.losses.tobytes() for o in asks.told}) == 1


def test_who_waited_for_what_failed_is_told_so(tmp_path: Path) -> None:
    asks, workers = Same(), Held(1)
    search = run(tmp_path / "l.db", asks, 10, executor=workers)
    assert [q.number for q in workers.submitted] == [0]
    assert search.answered == search.failed == 1 and search.front.numbers == () and search.ended
    assert {a.of for a in answers(tmp_path / "l.db")[1:]} == {0} == {a.of or 0 for a in answers(tmp_path / "l.db")}
