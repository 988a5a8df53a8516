"""Does every driver keep to what candidates must not fall short of, and is the user told where none does?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from program import program
from ruamel.yaml import YAML
from simulated import Bowl
from test_search import OBJECTIVES, Killed, driver, questions

from evaluators.evaluator import Measure, Metric
from optimizer import Job, Run
from optimizer.conditions import Condition
from optimizer.driver import Driver, Outcome, Question
from optimizer.drivers import DRIVERS, Entry
from optimizer.errors import JobError, RunError
from optimizer.executors.executor import Inline
from optimizer.jobs.changes import identity
from optimizer.objectives import constrained, losses
from optimizer.output import plain
from optimizer.record.feasible import Feasible
from optimizer.record.ledger import Ledger
from optimizer.searching.search import Search

SAFE = Condition("task2.accuracy", True, 0.95)  # within 0.22 of 0.1, on average; the front lies from 0.25 to 0.75
SPEC = json.dumps({"targets": [0.25, 0.75, 0.1]})


class Watched:
    """A driver that keeps what it is told."""

    def __init__(self, inner: Driver) -> None:
        self._inner, self.told = inner, []

    @property
    def done(self) -> bool:
        return self._inner.done

    def ask(self, n: int) -> list[Question]:
        return self._inner.ask(n)

    def replay(self, n: int, asked: Sequence[Question]) -> None:
        self._inner.replay(n, asked)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self.told += outcomes
        self._inner.tell(outcomes)


def searched(
    path: Path, made: Driver, evaluations: int = 40, kill_after: int = 0, constraints: Sequence[Condition] = (SAFE,)
) -> Search:
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {})
    left = [kill_after]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    made_search = Search(
        *(made, Inline(Bowl.TARGET, SPEC), ledger, OBJECTIVES, evaluations, lambda p: p.tobytes().hex(), count),
        tasks=("task0", "task1", "task2"),
        constraints=constraints,
    )
    with contextlib.closing(ledger):
        made_search.run()
    return made_search


def safety(path: Path) -> dict[int, float]:
    with contextlib.closing(Ledger.open(path, readonly=True)) as ledger:
        return {a.number: a.measures["task2.accuracy"].value for a in ledger.answers()}


@pytest.fixture(params=list(DRIVERS.values()), ids=list(DRIVERS))
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


def test_the_front_holds_what_meets_the_constraints_and_the_ledger_true_scores(entry: Entry, tmp_path: Path) -> None:
    search = searched(tmp_path / "l.db", driver(entry))
    scores = safety(tmp_path / "l.db")
    assert search.front.nondominated and all(scores[n] >= 0.95 for n in search.front.nondominated)
    met = {n for n in search.front.numbers if scores[n] >= 0.95}
    assert set(search.front.feasible) == met < set(search.front.numbers)
    assert min(scores.values()) < 0.95 and search.front.best() is not None
    held = {n for n, *_ in questions(tmp_path / "l.db", "heldout")}
    assert held == {*search.front.nondominated, 0, 1, 2}


def told(path: Path, entry: Entry) -> tuple[list[Outcome], dict[int, np.ndarray]]:
    """The scores that a driver is told in a search, and by question the true losses."""
    watched = Watched(driver(entry))
    searched(path, watched)
    with contextlib.closing(Ledger.open(path, readonly=True)) as ledger:
        true = {a.number: losses(OBJECTIVES, a.measures)[0] for a in ledger.answers()}
    return [o for o in watched.told if o.question.wants == "scores"], true


def test_a_violation_is_told_as_worse_than_all_that_is_allowed(entry: Entry, tmp_path: Path) -> None:
    found, true = told(tmp_path / "l.db", entry)
    scores, allowed, violating = safety(tmp_path / "l.db"), [], 0
    for outcome in found:
        number = outcome.question.number
        if scores[number] >= 0.95:
            assert np.array_equal(outcome.losses, true[number])
            allowed.append(true[number])
            continue
        violating += 1
        assert outcome.failure is None and np.isfinite(outcome.losses).all() and np.isnan(outcome.stderr).all()
        assert not allowed or (outcome.losses > np.max(allowed, axis=0)).all()
    assert violating >= 2 and allowed


def test_it_is_told_in_proportion_to_the_violation(tmp_path: Path) -> None:
    found, true = told(tmp_path / "l.db", DRIVERS["random"])
    scores, anchors = safety(tmp_path / "l.db"), np.array([true[n] for n in range(3)])
    unit = np.ptp([scores[n] for n in range(3)])
    for at, outcome in enumerate(found):
        number = outcome.question.number
        if number > 2 and scores[number] < 0.95:
            before = [true[o.question.number] for o in found[:at] if scores[o.question.number] >= 0.95]
            worst = np.max([*anchors, *before], axis=0)
            expected = worst + (0.95 - scores[number]) / unit * np.ptp(anchors, axis=0)
            np.testing.assert_allclose(outcome.losses, expected)


def test_killed_anywhere_and_resumed_it_is_told_and_asks_the_same(entry: Entry, tmp_path: Path) -> None:
    whole = Watched(driver(entry))
    searched(tmp_path / "whole.db", whole)
    for kills in ((2,), (9, 14)):
        path = tmp_path / f"killed{kills[0]}.db"
        for kill in kills:
            with contextlib.suppress(Killed):
                searched(path, driver(entry), kill_after=kill)
        resumed = Watched(driver(entry))
        searched(path, resumed)
        assert questions(path) == questions(tmp_path / "whole.db")
        assert [o.losses.tobytes() for o in resumed.told] == [o.losses.tobytes() for o in whole.told]


@pytest.mark.parametrize("name", ["cma", "tpe"])
def test_a_search_goes_to_where_candidates_are_allowed(name: str, tmp_path: Path) -> None:
    def share(*constraints: Condition) -> float:
        path = tmp_path / f"{len(constraints)}.db"
        searched(path, driver(DRIVERS[name]), 120, constraints=constraints)
        return float(np.mean([s >= 0.95 for n, s in safety(path).items() if n >= 60]))

    assert share(SAFE) > 0.5 > 0.25 > share()


def test_without_constraints_nothing_is_told_otherwise(tmp_path: Path) -> None:
    made = []
    for constraints in ((), (Condition("task2.accuracy", True, -9.0),)):
        watched = Watched(driver(DRIVERS["cma"]))
        searched(tmp_path / f"{len(constraints)}.db", watched, constraints=constraints)
        made.append([(o.losses.tobytes(), o.stderr.tobytes()) for o in watched.told])
    assert made[0] == made[1]


def test_where_none_is_allowed_the_nearest_is_scored_on_heldout_items(tmp_path: Path) -> None:
    search = searched(
        tmp_path / "l.db", driver(DRIVERS["sobol"]), constraints=(Condition("task2.accuracy", True, 0.999),)
    )
    scores = safety(tmp_path / "l.db")
    nearest = max(scores, key=lambda n: (scores[n], -n))
    assert max(scores.values()) < 0.999 and search.front.nondominated == () and search.front.best() is None
    assert (search.front.hypervolume, search.front.epsilon) == (0.0, 0.0)
    assert {n for n, *_ in questions(tmp_path / "l.db", "heldout")} == {nearest, 0, 1, 2}


def test_a_violation_is_in_units_of_the_anchors() -> None:
    def scored(a: float, b: float) -> dict[str, Measure]:
        return {"a": Measure(a, None, 1), "b": Measure(b, None, 1)}

    found = Feasible([Condition("a", True, 0.8), Condition("b", False, 2.0)])
    assert found.nearest() is None
    assert found.learn(0, scored(0.4, 1.0), True) == pytest.approx(0.5), "one anchor: in units of the bound"
    assert found.learn(1, scored(0.9, 5.0), True) == pytest.approx(3 / 4)
    assert found.learn(2, scored(0.7, 3.0), False) == pytest.approx(0.1 / 0.5 + 1 / 4)
    assert found.learn(3, scored(0.8, 2.0), False) == 0.0 and found.meets(scored(0.8, 2.0))
    assert found.nearest() == 3 and not found.meets(scored(0.8, 2.1))
    alike = Feasible([Condition("a", True, 0.8)])
    for number in range(2):
        alike.learn(number, scored(0.5 + number * 1e-9, 0), True)
    assert alike.violation(scored(0.4, 0)) == pytest.approx(0.4 / 0.008), "a hundredth of the bound at least"
    rounded = Feasible([Condition("a", True, 0.0), Condition("b", True, 2.0)])
    for value in (0.3, 0.1 + 0.2):
        rounded.learn(0, scored(value, value), True)
    assert rounded.violation(scored(-0.4, 1.0)) == pytest.approx(0.4 + 0.5), "alike but for rounding"


OFFERED = {"a.accuracy": Metric("accuracy", "max", "", 0, 1), "a.loss": Metric("loss", "min", "", 0)}
BASIC = {
    "models": {"base": "b", "experts": {"a": "a"}},
    "evaluators": [{"kind": "language", "name": "a"}],
    "objectives": ["a.loss"],
}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a.accuracy"], "expected a metric, >= or <=, and a number, such as"),
        (["a.accuracy > 0.5"], "write >= or <="),
        (["a.accuracy >= high"], "got 'high' for the number"),
        (["a.accuracy >= inf"], "leave it out for no limit"),
        (["a.accuracy >= .9", "a.accuracy <= .8"], "cannot both hold; raise the one to 'a.accuracy <= 0.9' or more"),
        (["a.loss >= 1", "a.loss>=2.0"], "keep 'a.loss >= 2.0'"),
        (["\x1b]0;x\x07" * 200], "expected a metric"),
        ([3], "constraints.0: expected text, got int 3"),
        ("a.loss <= 2", "constraints: expected a list"),
    ],
)
def test_what_is_no_constraint_is_refused_with_the_job(texts: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as error:
        Job.parse({**BASIC, "constraints": texts}, tmp_path)
    assert message in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.accuracy >= 95",
            "'a.accuracy >= 95.0': a.accuracy is between 0 and 1; give a bound in there, such as 0.95",
        ),
        ("a.accuracy <= -0.5", "a.accuracy is between 0 and 1"),
        ("a.loss <= -1", "a.loss is 0 or more"),
        ("a.acuracy >= 0.5", "no evaluator reports 'a.acuracy'; there are: a.accuracy"),
    ],
)
def test_a_bound_that_no_score_can_meet_is_refused(text: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        constrained([text], OFFERED)
    assert message in str(error.value)
    assert constrained(["a.accuracy >= 1", "a.loss <= 0"], OFFERED)[0].bound == 1.0


def test_however_it_is_written_it_is_one_constraint(tmp_path: Path) -> None:
    one, other = (Job.parse({**BASIC, "constraints": [t]}, tmp_path) for t in ("a.loss<=2", " a.loss  <=  2.0 "))
    assert identity(one) == identity(other) and one.constraints == ["a.loss <= 2.0"]
    assert "constraints" not in identity(Job.parse(BASIC, tmp_path)), "runs from before there were any go on"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    worlds.classification(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def made(*constraints: str) -> Path:
        path = worlds.classification(tmp_path, extra=f"constraints: {json.dumps(constraints)}\n")
        return path

    return made


def test_a_run_with_constraints_from_check_to_report(
    job: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mergeopt = program(capsys)
    path = job("mood.accuracy >= 0.62", "spam.entropy <= 0.9")
    assert "mood.accuracy >= 0.62, spam.entropy <= 0.9" in mergeopt("check", path).out
    assert mergeopt("run", path).code == 0
    run = Run(tmp_path / "runs" / "pico")
    results = run.results()
    met = {n for n, c in results.candidates.items() if c.measures["mood.accuracy"].value >= 0.62}
    assert set(results.front.feasible) == met and 0 < len(met) < 14, "or this world has changed"
    rows = json.loads(mergeopt("front", "pico", "--json").out)
    assert all(r["feasible"] == (r["candidate"] in met) for r in rows) and all(
        r["feasible"] for r in rows if r["front"]
    )
    for name in ("best", "best:spam.accuracy", "surest"):
        assert results.pick(name).number in met
    assert f"{len(met)} of 14 candidates meet" in mergeopt("status", "pico").out
    assert "constraint mood.accuracy >= 0.62: met on calibration items" in mergeopt("show", "pico", "best").out
    bad = str(next(n for n in results.candidates if n not in met))
    assert "missed by" in mergeopt("show", "pico", bad).out
    assert plain.candidate(results, results.pick(bad))["constraints"][0]["missed_by"] > 0
    assert '"constraints":["mood.accuracy >= 0.62"' in run.report().read_text()
    kept = YAML(typ="safe").load(run.folder / "job.yaml")
    text = (run.folder / "job.yaml").read_text()
    assert kept["constraints"] == ["mood.accuracy >= 0.62", "spam.entropy <= 0.9"]
    (run.folder / "job.yaml").write_text(text.replace(">= 0.62", ">= 0.6"))
    with pytest.raises(RunError, match=r"constraints\[0\]: was 'mood.accuracy >= 0.62', is 'mood.accuracy >= 0.6'"):
        Run(run.folder).search()
    assert mergeopt("resume", "pico", "--fork", "looser").code == 0, "its parent's scores hold"
    assert Run(tmp_path / "runs" / "looser").results().candidates[0].worker == "run pico"


def test_where_no_candidate_is_allowed_that_is_said_everywhere(
    job: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mergeopt = program(capsys)
    assert mergeopt("run", job("mood.accuracy >= 1")).code == 0
    results = Run("runs/pico").results()
    nearest = max(results.candidates.values(), key=lambda c: (c.measures["mood.accuracy"].value, -c.number))
    sentence = (
        f"No candidate meets the constraints (mood.accuracy >= 1.0); the nearest, candidate {nearest.number}, has"
    )
    for command in ("status", "front"):
        said = " ".join(mergeopt(command, "pico").out.split())
        assert sentence in said and " mood.accuracy 0." in said
    assert "(nearest)" in mergeopt("front", "pico").out
    found = json.loads(mergeopt("status", "pico", "--json").out)
    assert (found["best"], found["front"], found["feasible"], found["nearest"]) == (None, 0, 0, nearest.number)
    assert found["finished"]
    for name in ("best", "knee", "surest", "best:spam.accuracy"):
        said = mergeopt("show", "pico", name)
        assert said.code == 2 and sentence in said.err and "fork the run" in said.err
    assert sentence in mergeopt("export", "pico", "best").err
    assert sentence in mergeopt("front", "pico", "--where", "spam.accuracy >= 0.1").err
    assert mergeopt("show", "pico", str(nearest.number)).code == 0
    assert sentence in Run("runs/pico").report().read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mood.accuracy >= 95", "such as 0.95 for 95 %"),
        ("moody.accuracy >= 0.5", "no evaluator reports 'moody.accuracy'"),
    ],
)
def test_check_refuses_what_cannot_be(
    job: Callable[..., Path], capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    said = program(capsys)("check", job(text))
    assert said.code == 2 and message in said.err
