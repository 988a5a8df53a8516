"""What does every driver owe? One suite over the whole table, alone and composed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from driver_rows import (
    ROWS,
    Box,
    Event,
    Row,
    alone,
    answer,
    asked,
    box,
    digests,
    losses,
    mixed,
    replayed,
    searched,
    signature,
)
from pydantic import ValidationError

from optimizer import drivers
from optimizer.driver import Driver, Outcome, Question, at, exact, preference, snapped, unit_of
from optimizer.drivers import DRIVERS, DriverError, Entry, find
from optimizer.drivers.anchors import FILL, Anchored
from optimizer.drivers.scalarised import Scalarised, default_weights

BEATS_RANDOM = {
    ("cma", box): 0.2, ("tpe", box): 0.6, ("nsga2", box): 0.75, ("nsga3", box): 0.6, ("map", box): 0.01,
    ("cma", mixed): 0.2, ("tpe", mixed): 0.5, ("nsga2", mixed): 0.6,
}  # fmt: skip
"""Best loss on a quadratic (in 6 dimensions; in 6 with two choices) after 150 answers, as a share of what random points
find."""

TESTS = Path(__file__).parents[1]


@pytest.fixture(params=ROWS.values(), ids=ROWS.keys())
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(autouse=True)
def global_generators_stay_untouched() -> Iterator[None]:
    before = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    yield
    after = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    assert before[0] == after[0]
    assert repr(before[1]) == repr(after[1])
    assert (before[1]["state"]["key"] == after[1]["state"]["key"]).all()


@pytest.mark.parametrize("domain", [box(), box(1, 1), box(40, 3)], ids=["6", "1", "120"])
def test_questions_are_finite_inside_the_bounds_and_numbered_on(row: Row, domain: Box) -> None:
    domain = domain if row.domain is box else row.domain()
    questions = asked(searched(row.make(domain, 1), domain, row.objectives, 40))
    assert [q.number for q in questions] == list(range(len(questions)))
    assert len(questions) == 40 or row.ends
    for q in questions:
        assert q.point.shape == domain.low.shape and q.point.dtype == np.float64
        assert np.isfinite(q.point).all() and exact(domain, q.point)
        assert q.stage and (row.gradients or q.wants in ("scores", "grams"))
        assert q.items.split == ("calibration" if q.wants == "scores" else "train")


def test_ask_returns_at_most_n(row: Row) -> None:
    driver = row.make(row.domain(), 1)
    assert driver.ask(0) == []
    for n in (1, 3, 17):
        found = len(driver.ask(n))
        assert found <= n and (found or row.ends or row.gradients)  # these may wait for answers
    assert not driver.done


def test_seeds_differ_and_repeat(row: Row) -> None:
    first, again, other = (
        signature(asked(searched(row.make(row.domain(), s), row.domain(), row.objectives, 30))) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other or row.ends


def test_a_fresh_process_asks_the_same() -> None:
    code = "import json, driver_rows; print(json.dumps(driver_rows.digests(30)))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digests(30)


def test_a_replay_asks_the_same_to_the_bit(row: Row) -> None:
    driver = row.make(row.domain(), 3)
    events = searched(driver, row.domain(), row.objectives, 60)
    resumed = replayed(row.make(row.domain(), 3), events)
    assert signature(resumed.ask(5)) == signature(driver.ask(5))


def test_one_tell_of_many_is_many_tells_of_one(row: Row) -> None:
    one, many = row.make(row.domain(), 3), row.make(row.domain(), 3)
    for _ in range(4):
        outcomes = [answer(row.domain(), q, row.objectives) for q in one.ask(8)]
        many.ask(8)
        one.tell(outcomes)
        for outcome in outcomes:
            many.tell([outcome])
    assert signature(one.ask(3)) == signature(many.ask(3))


def test_tell_leaves_what_it_is_given_as_it_is(row: Row) -> None:
    driver = row.make(row.domain(), 3)
    given = [answer(row.domain(), q, row.objectives) for q in driver.ask(20)]
    copies = [(list(given), o.losses.copy(), o.stderr.copy(), o.question.point.copy()) for o in given]
    driver.tell(given)
    for outcome, (order, loss, stderr, point) in zip(given, copies, strict=True):
        assert order == given
        assert (outcome.losses == loss).all() and (outcome.stderr == stderr).all()
        assert (outcome.question.point == point).all()


def test_all_failed_is_survived(row: Row) -> None:
    driver = row.make(row.domain(), 3)
    for _ in range(8):
        driver.tell([answer(row.domain(), q, row.objectives, failure="out of memory") for q in driver.ask(7)])
    assert driver.ask(1) or driver.done


def test_a_flat_function_is_survived(row: Row) -> None:
    driver, events = row.make(row.domain(), 3), list[Event]()
    for _ in range(15):
        questions = driver.ask(7)
        outcomes = [replace(answer(row.domain(), q, row.objectives), losses=np.ones(row.objectives)) for q in questions]
        driver.tell(outcomes)
        events += [(7, questions), *outcomes]
    assert signature(replayed(row.make(row.domain(), 3), events).ask(9)) == signature(driver.ask(9))


@pytest.mark.parametrize("name", [n for n in ROWS if "random" not in n and "sobol" not in n])
def test_a_loss_that_is_no_number_is_refused(name: str) -> None:
    driver = ROWS[name].make(ROWS[name].domain(), 3)
    outcomes = [answer(ROWS[name].domain(), q, ROWS[name].objectives) for q in driver.ask(4)]
    driver.tell(outcomes[:-1])
    question = (driver.ask(1) or [outcomes[-1].question])[0]
    bad = replace(
        answer(ROWS[name].domain(), question, ROWS[name].objectives), losses=np.full(ROWS[name].objectives, np.nan)
    )
    with pytest.raises(DriverError, match="finite losses"):
        driver.tell([bad, outcomes[-1]])
        driver.ask(1)


@pytest.mark.parametrize(("name", "where"), BEATS_RANDOM, ids=lambda value: getattr(value, "__name__", value))
def test_a_driver_that_learns_beats_random(name: str, where: Callable[[], Box]) -> None:
    def best(which: str) -> float:
        found = [asked(searched(alone(which, 1).make(where(), s), where(), 1, 150)) for s in range(3)]
        return float(np.median([min(losses(where(), q.point, 1)[0] for q in questions) for questions in found]))

    assert best(name) < BEATS_RANDOM[name, where] * best("random")


@pytest.mark.parametrize("name", DRIVERS)
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        find(name).load().Options.model_validate({"no_such_option": 1})


@pytest.mark.parametrize("name", [name for name, entry in DRIVERS.items() if entry.objectives == "one"])
def test_too_many_objectives_are_refused(name: str) -> None:
    with pytest.raises(DriverError, match="one objective"):
        find(name).load()(box(), 2, 0, None)


def test_an_unknown_driver_names_the_nearest() -> None:
    with pytest.raises(DriverError, match=r"no driver 'cmaes'; did you mean 'cma'\?"):
        find("cmaes")
    assert DriverError.exit_code == 2


def test_drivers_of_other_packages_come_in_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer(name: str, loaded: object) -> None:
        point = SimpleNamespace(name=name, value="elsewhere:ENTRY", load=lambda: loaded)
        monkeypatch.setattr(drivers.importlib.metadata, "entry_points", lambda group: [point])

    entry = Entry("optimizer.drivers.sampling:Random", "any", "elsewhere")
    offer("elsewhere", entry)
    assert find("elsewhere").load() is find("random").load()
    offer("cma", entry)
    with pytest.raises(DriverError, match="there twice"):
        find("no such driver")
    offer("elsewhere", object())
    with pytest.raises(DriverError, match=r"expected an optimizer\.drivers\.Entry"):
        find("elsewhere")


@pytest.mark.parametrize("target", ["optimizer.no_such_module:X", "optimizer.drivers:NoSuchClass"])
def test_a_driver_that_cannot_be_loaded_says_so(target: str) -> None:
    with pytest.raises(DriverError, match="cannot load the driver"):
        Entry(target, "any", "broken").load()


def test_the_table_loads_no_search_library() -> None:
    code = (
        "import sys, optimizer.drivers; print([m for m in ('cma', 'optuna', 'scipy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sobol_refuses_more_dimensions_than_it_knows() -> None:
    with pytest.raises(DriverError, match="at most 21201 dimensions, this space has 30000"):
        alone("sobol", 1).make(box(10_000, 3), 0)


def test_cma_starts_at_the_best_foreign_answer() -> None:
    domain = box(20, 3)
    kind = find("cma").load()
    driver = kind(domain, 1, 0, kind.Options(sigma0=1e-6))
    near, far, outside = domain.low + 0.3 * (domain.high - domain.low), domain.high, domain.high + 1
    for point, loss in ((far, 5.0), (near, 1.0), (outside, 0.0)):
        driver.tell([Outcome(Question(-1, point), np.array([loss]), np.zeros(1))])
    assert np.abs(driver.ask(1)[0].point - near).max() < 1e-4


def test_cma_refuses_a_record_that_is_not_its_own() -> None:
    made = alone("cma", 1).make
    questions = made(box(), 0).ask(3)
    with pytest.raises(DriverError, match="recorded question 0 is not"):
        made(box(), 1).replay(3, questions)


def test_cma_restarts_with_more_samples_when_it_has_converged() -> None:
    driver, domain = alone("cma", 1).make(box(1, 2), 0), box(1, 2)
    generations = Counter(q.stage for q in asked(searched(driver, domain, 1, 2000)))
    sizes = {r: np.median([n for stage, n in generations.items() if stage.endswith(f"restart {r}")]) for r in (0, 1, 2)}
    assert sizes == {0: 6, 1: 12, 2: 24}


def test_cma_clips_answers_to_questions_of_long_ago() -> None:
    driver, domain = alone("cma", 1).make(box(), 0), box()
    old = driver.ask(1)[0]
    for _ in range(200):
        driver.tell([answer(domain, q, 1) for q in driver.ask(1)])
    before = np.array([q.point for q in driver.ask(20)])
    driver.tell([replace(answer(domain, old, 1), losses=np.full(1, -1.0))])
    for _ in range(9):  # one generation, with the old answer ahead of all
        driver.tell([answer(domain, q, 1) for q in driver.ask(1)])
    after = np.array([q.point for q in driver.ask(20)])
    assert np.abs(old.point - before).max() > 3 * np.ptp(before, axis=0).max()
    assert np.abs(after - before.mean(axis=0)).max() < 3 * np.ptp(before, axis=0).max()


def test_tpe_learns_from_failures_once_something_has_succeeded() -> None:
    driver, unanswered = (alone("tpe", 1).make(box(), 0) for _ in range(2))
    unanswered.ask(11)
    questions = driver.ask(10)
    driver.tell([answer(box(), q, 1, failure="broken") for q in questions])
    driver.tell([answer(box(), q, 1) for q in driver.ask(1)])  # the tenth answer and one: no startup any more
    assert signature(driver.ask(1)) != signature(unanswered.ask(1))


@pytest.mark.parametrize("name", [n for n in ROWS if "random" not in n and "sobol" not in n])
def test_an_answer_to_nothing_asked_is_refused(name: str) -> None:
    row = ROWS[name]
    driver = row.make(row.domain(), 0)
    outcome = answer(row.domain(), driver.ask(1)[0], row.objectives)
    driver.tell([outcome])
    for number in (0, 1000):
        again = replace(outcome, question=replace(outcome.question, number=number))
        with pytest.raises(DriverError, match=f"question {number}, which it has not asked, or was told of before"):
            driver.tell([again])


class Recorder:
    """An inner driver that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Outcome] = []
        self.number = 0
        self.done = False

    def ask(self, n: int) -> list[Question]:
        self.number += n
        return [Question(i, box().start, stage="inner") for i in range(self.number - n, self.number)]

    def replay(self, n: int, questions: list[Question]) -> None:
        self.number += len(questions)

    def tell(self, outcomes: list[Outcome]) -> None:
        self.told += outcomes


def anchored(inner: Driver) -> Anchored:
    return Anchored(box(), [("low", box().low), ("high", box().high), ("same", box().low - 0.0)], inner, 0)


def test_anchors_come_first_then_fill_until_all_are_answered_then_the_inner_driver() -> None:
    inner = Recorder()
    driver = anchored(inner)
    assert driver.anchors == {0: "low, same", 1: "high"}
    first, second, fill, more = driver.ask(4)
    assert [q.stage for q in (first, second, fill, more)] == ["anchor: low, same", "anchor: high", FILL, FILL]
    unit = ((fill.point - box().low) / (box().high - box().low)).reshape(box().shape)
    assert np.allclose(unit, unit[0])
    driver.tell([answer(box(), q, 1) for q in (second, fill)])
    assert inner.told == [] and driver.ask(1)[0].stage == FILL
    driver.tell([answer(box(), first, 1, failure="broken")])
    assert [(o.question.number, o.failure) for o in inner.told] == [(-1, None), (-1, None), (-1, "broken")]
    (question,) = driver.ask(1)
    assert (question.number, question.stage) == (5, "inner")
    driver.tell([answer(box(), more, 1), answer(box(), question, 1)])
    assert [o.question.number for o in inner.told[3:]] == [-1, 0]
    inner.done = True
    assert driver.done


def test_a_domain_without_blocks_asks_the_inner_driver_at_once() -> None:
    domain = replace(box(), shape=(3, 0))
    driver = Anchored(domain, [("low", domain.low)], Recorder(), 0)
    assert [q.stage for q in driver.ask(3)] == ["anchor: low", "inner", "inner"]


@pytest.mark.parametrize("point", [np.zeros(2), np.full(6, np.nan)])
def test_an_anchor_that_does_not_fit_is_refused(point: np.ndarray) -> None:
    with pytest.raises(DriverError, match="the anchor 'odd'"):
        Anchored(box(), [("odd", point)], Recorder(), 0)


def test_an_answer_is_weighed_in_the_range_of_the_anchors_and_told_to_who_asked() -> None:
    made: list[Recorder] = []
    driver = Scalarised(box(), 2, 0, lambda seed: made.append(Recorder()) or made[-1], [[3, 1], [0, 2]])
    for loss in ([1.0, 10.0], [3.0, 50.0]):
        driver.tell([Outcome(Question(-1, box().low), np.array(loss), np.zeros(2))])
    questions = driver.ask(3)
    assert [q.stage for q in questions] == [
        "preference 0.75/0.25: inner",
        "preference 0/1: inner",
        "preference 0.75/0.25: inner",
    ]
    gradient = np.stack([np.ones(6), np.full(6, 40.0)])
    driver.tell([Outcome(questions[2], np.array([2.0, 30.0]), np.array([0.2, 0.0]), gradient)])
    assert [o.question.number for o in made[0].told] == [-1, -1, 1]
    assert [o.losses.item() for o in made[0].told] == pytest.approx([0.0, 1.0, 0.5])
    assert made[0].told[-1].stderr.item() == pytest.approx(0.75 * 0.2 / 2)
    assert made[0].told[-1].gradient == pytest.approx(np.full((1, 6), 0.75 / 2 + 0.25))
    assert [o.question.number for o in made[1].told] == [-1, -1]


def test_tchebycheff_weighs_the_objective_that_is_worst_and_a_little_of_the_sum() -> None:
    told = Recorder()
    driver = Scalarised(box(), 2, 0, lambda seed: told, [[3, 1]], "tchebycheff")
    for loss in ([1.0, 10.0], [3.0, 50.0]):
        driver.tell([Outcome(Question(-1, box().low), np.array(loss), np.zeros(2))])
    asked = driver.ask(2)
    gradient = np.stack([np.ones(6), np.full(6, 40.0)])
    driver.tell([Outcome(asked[0], np.array([2.0, 30.0]), np.array([0.2, 0.0]), gradient)])  # z = 0.5, 0.5
    driver.tell([Outcome(asked[1], np.array([1.2, 50.0]), np.array([0.0, 8.0]), gradient)])  # z = 0.1, 1
    assert [o.losses.item() for o in told.told[2:]] == pytest.approx([0.375 + 0.05 * 0.5, 0.25 + 0.05 * 0.325])
    assert [o.stderr.item() for o in told.told[2:]] == pytest.approx([1.05 * 0.375 * 0.2, 1.05 * 0.25 / 40 * 8])
    assert told.told[2].gradient == pytest.approx(np.full((1, 6), 1.05 * 0.375 + 0.05 * 0.25))
    assert told.told[3].gradient == pytest.approx(np.full((1, 6), 0.05 * 0.375 + 1.05 * 0.25))


@pytest.mark.parametrize("weights", [[], [[1, 2, 3]], [[1, -1]], [[0, 0]], [[1, float("nan")]]])
def test_preferences_that_do_not_fit_are_refused(weights: list[list[float]]) -> None:
    with pytest.raises(DriverError, match=r"driver\.preferences"):
        Scalarised(box(), 2, 0, lambda seed: Recorder(), weights)


@pytest.mark.parametrize(
    ("given", "weights"), [([1e308, 1e308], [0.5, 0.5]), ([5e-324, 0], [1, 0]), ([3, 1], [0.75, 0.25])]
)
def test_preferences_mean_their_ratio_however_large_they_are(given: list[float], weights: list[float]) -> None:
    assert preference("driver.preferences", given, "objective", 2).tolist() == weights


@pytest.mark.parametrize("objectives", range(2, 12))
def test_default_preferences_spread_over_the_simplex(objectives: int) -> None:
    weights = default_weights(objectives)
    assert 5 <= len(weights) <= 7
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights))) and (weights > 0).all()
    assert weights[0] == pytest.approx(np.full(objectives, 1 / objectives))
    assert len(np.unique(weights.round(9), axis=0)) == len(weights)


def test_the_unit_cube_gives_each_value_a_like_part() -> None:
    domain = mixed()
    units = np.random.default_rng(0).random((8000, len(domain.low)))
    points = np.array([at(domain, unit) for unit in units])
    assert all(exact(domain, p) for p in points)
    for i, count in ((5, 8), (6, 4), (7, 2)):
        values, found = np.unique(points[:, i], return_counts=True)
        assert values.tolist() == list(range(int(domain.low[i]), int(domain.high[i]) + 1)) and len(values) == count
        assert np.abs(found / len(units) - 1 / count).max() < 0.02
    assert all((at(domain, unit_of(domain, p)) == p)[5:].all() for p in points[:50])
    np.testing.assert_allclose([at(domain, unit_of(domain, p)) for p in points[:50]], points[:50], atol=1e-12)
    for unit in (np.zeros(8), np.ones(8)):
        assert exact(domain, at(domain, unit))


def test_points_are_snapped_to_whole_numbers_within_the_bounds() -> None:
    domain = mixed()
    point = np.array([0.5, 9.0, 0.1, 0.2, 0.3, 7.3, 1.6, -4.0])
    assert snapped(domain, point).tolist() == [0.5, 9.0, 0.1, 0.2, 0.3, 5.0, 2.0, 0.0]
    assert not exact(domain, snapped(domain, point))  # what is real stays, out of bounds
    assert exact(domain, domain.start) and not exact(domain, domain.start + 0.01)


@pytest.mark.parametrize("name", ["cma", "tpe", "nsga2"])
def test_a_choice_that_is_better_is_asked_more_and_others_now_and_then(name: str) -> None:
    domain = mixed()
    questions = asked(searched(alone(name, 1).make(domain, 0), domain, 1, 200))
    late = [q.point[6] for q in questions[120:]]
    assert late.count(2.0) > 0.5 * len(late) and len(set(late)) > 1


@pytest.mark.parametrize("name", [name for name, entry in DRIVERS.items() if entry.loss and not entry.optional])
def test_drivers_that_walk_refuse_what_has_no_slope(name: str) -> None:
    with pytest.raises(DriverError, match="coefficients alone"):
        alone(name, 1).make(mixed(), 0)
