"""What is scored once: each recipe, and each model of the pool as it is; told, counted, replayed, and ended by."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from simulated import Bowl
from test_search import OBJECTIVES, Box, Killed, driver, questions

from optimizer.answer import Answer, Failure
from optimizer.driver import FOREIGN, Driver, Outcome, Point, Question
from optimizer.drivers import DRIVERS
from optimizer.executors.executor import Executor, Inline
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

    slots, busy = 3, False

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
