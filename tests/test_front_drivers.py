"""Do drivers that search a front find it? Populations, a Gaussian process, and quadratics, on fronts that are known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import moocore
import numpy as np
import pytest
from driver_rows import Box, answer, asked, box, frozen, losses, mixed, replayed, searched, signature
from numpy.typing import NDArray

from optimizer.driver import FOREIGN, Driver, DriverError, Outcome, Question, at
from optimizer.drivers import find
from optimizer.drivers.gp import layers, looked_at
from optimizer.drivers.nsga import divisions
from optimizer.drivers.searches.quadratic import fitted, levelled, where_it_errs

Array = NDArray[np.float64]


def unit_box(groups: int, experts: int) -> Box:
    dim = groups * experts
    return Box(*(frozen(np.full(dim, value)) for value in (0.0, 1.0, 0.3)), (groups, experts))


def made(name: str, where: Box, objectives: int, seed: int = 0, **options: object) -> Driver:
    kind = find(name).load()
    return kind(where, objectives, seed, kind.Options.model_validate(options))


def told(driver: Driver, function: Callable[[Array], Array], count: int, workers: int = 4) -> list[Outcome]:
    """An asynchronous search: so many on their way, the second oldest answered first."""
    outcomes, waiting, number = list[Outcome](), list[Question](), 0
    while len(outcomes) < count:
        some = driver.ask(min(workers - len(waiting), count - number))
        number, waiting = number + len(some), waiting + some
        question = waiting.pop(1 if len(waiting) > 1 else 0)
        value = function(question.point)
        outcomes.append(Outcome(question, value, np.zeros(len(value))))
        driver.tell(outcomes[-1:])
    return outcomes


def two_bowls(point: Array) -> Array:
    """Squared distances from two corners' neighbourhoods: the front is the line between (0.2, ...) and (0.7, ...)."""
    return np.array([np.mean((point - 0.2) ** 2), np.mean((point - 0.7) ** 2)])


def missing(found: Sequence[Array]) -> float:
    """The share of the front's hypervolume that losses `(n, 2)` do not cover."""
    front = np.array([two_bowls(np.full(8, value)) for value in np.linspace(0.2, 0.7, 1001)])
    covered, whole = (moocore.hypervolume(np.array(rows), ref=np.full(2, 0.25)) for rows in (found, front))
    return float(1 - covered / whole)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_population_covers_more_of_a_front_than_random_points(name: str) -> None:
    def left(which: str) -> float:
        searches = [told(made(which, unit_box(4, 2), 2, seed), two_bowls, 300) for seed in (0, 1)]
        return float(np.mean([missing([o.losses for o in outcomes]) for outcomes in searches]))

    assert left(name) < 0.75 * left("random")


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_foreign_answers_are_parents_and_a_slow_answer_stops_nobody(name: str) -> None:
    where = unit_box(4, 2)
    driver = made(name, where, 2, population=6)
    near = [np.full(8, 0.2 + 0.1 * i) for i in range(6)]
    driver.tell([Outcome(Question(FOREIGN, p), two_bowls(p), np.zeros(2)) for p in near])
    slow = driver.ask(1)[0]
    assert slow.stage == f"{name}: generation 1"
    some = driver.ask(40)
    assert np.median([np.abs(q.point - q.point.mean()).max() for q in some]) < 0.35  # children of points on a line
    driver.tell([Outcome(q, two_bowls(q.point), np.zeros(2)) for q in some])
    assert driver.ask(1)[0].stage == f"{name}: generation 7"
    driver.tell([Outcome(slow, two_bowls(slow.point), np.zeros(2))])


def test_a_replayed_population_has_the_same_parents_of_many_generations() -> None:
    for name, where in (("nsga2", box()), ("nsga3", box()), ("nsga2", mixed())):
        driver = made(name, where, 2, population=4)
        events = searched(driver, where, 2, 50)
        again = replayed(made(name, where, 2, population=4), events)
        assert signature(again.ask(6)) == signature(driver.ask(6)) and "generation 12" in driver.ask(1)[0].stage


@pytest.mark.parametrize(
    ("objectives", "most", "expected"), [(1, 20, 1), (2, 20, 19), (3, 24, 5), (8, 8, 1), (9, 8, 1)]
)
def test_nsga3_has_as_many_directions_as_fit_into_a_generation(objectives: int, most: int, expected: int) -> None:
    assert divisions(objectives, most) == expected


def test_a_gaussian_process_beats_a_sobol_sequence_at_forty_evaluations() -> None:
    def best(name: str, **options: object) -> float:
        where = box(2, 2)
        searches = [asked(searched(made(name, where, 1, seed, **options), where, 1, 40)) for seed in (0, 1)]
        return float(np.mean([min(losses(where, q.point, 1)[0] for q in questions) for questions in searches]))

    assert best("gp") < 0.3 * best("sobol")


@pytest.mark.parametrize(("where", "objectives"), [(mixed(), 1), (box(1, 2), 2)], ids=["mixed", "two objectives"])
def test_a_gaussian_process_is_a_function_of_its_history_over_all_and_over_few(where: Box, objectives: int) -> None:
    driver = made("gp", where, objectives, startup=10, most=12)
    events = searched(driver, where, objectives, 15)
    again = replayed(made("gp", where, objectives, startup=10, most=12), events)
    first = signature(driver.ask(2))
    assert signature(again.ask(2)) == first
    blind = made("gp", where, objectives, startup=99, most=99)
    assert signature(replayed(blind, events).ask(2)) != first


def test_a_gaussian_process_survives_a_flat_function_and_failures() -> None:
    where, driver = box(1, 2), made("gp", box(1, 2), 2, startup=4)
    driver.tell([answer(where, q, 2, failure="broken") for q in driver.ask(3)])
    driver.tell([Outcome(q, np.ones(2), np.zeros(2)) for q in driver.ask(3)])
    assert all(np.isfinite(q.point).all() for q in driver.ask(2))


def test_a_gaussian_process_looks_at_the_best_and_the_newest() -> None:
    values = np.array([[5, 5], [0, 1], [9, 9], [1, 0], [8, 8], [7, 7]], dtype=float)
    assert looked_at(values, 4) == [1, 3, 4, 5]
    assert looked_at(values, 6) == [0, 1, 2, 3, 4, 5]


def test_drivers_of_the_table_load_no_torch_before_a_gaussian_process_asks() -> None:
    code = "import sys, optimizer.drivers.gp; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def corner_bowls(experts: int, groups: int = 1) -> tuple[Callable[[Array], Array], Callable[[Array], float]]:
    """A loss for each expert, least where it has 0.8 and the others 0.1, and how far a point is from their front.

    Squared distances: their front is the triangle (line, tetrahedron) of the least points.
    """
    targets = np.full((experts, experts), 0.1) + 0.7 * np.eye(experts)

    def function(point: Array) -> Array:
        return np.asarray(((point.reshape(groups, experts)[None] - targets[:, None]) ** 2).mean(axis=(1, 2)))

    def off(point: Array) -> float:
        corners = np.vstack([targets.T, np.ones(experts)])  # and that their parts sum to 1
        parts = np.clip(np.linalg.lstsq(corners, np.append(point[:experts], 1.0), rcond=None)[0], 0, None)
        return float(np.abs(parts / parts.sum() @ targets - point[:experts]).max())

    return function, off


@pytest.mark.parametrize(("experts", "groups"), [(2, 1), (3, 1), (3, 5)])
@pytest.mark.parametrize("sampling", ["even", "errors"])
def test_the_front_that_map_foretells_is_the_front_of_quadratics(experts: int, groups: int, sampling: str) -> None:
    function, off = corner_bowls(experts, groups)
    outcomes = told(made("map", unit_box(groups, experts), experts, sampling=sampling), function, 60)
    ahead = [o for o in outcomes if "foretold" in o.question.stage]
    assert len(ahead) > 20
    late = np.array([off(o.question.point) for o in ahead[5:]])
    assert np.median(late) < 0.02 and late.max() < 0.1
    spread = np.array([o.question.point[:experts] for o in ahead])
    assert (np.ptp(spread, axis=0) > 0.6).all()  # the whole of it
    assert all(np.ptp(o.question.point.reshape(groups, experts), axis=0).max() == 0 for o in outcomes)
    assert all(("one coefficient per expert" in o.question.stage) == (groups > 1) for o in outcomes)


def test_map_learns_from_answers_in_any_units_and_from_models_that_broke() -> None:
    function, off = corner_bowls(2)

    def odd(point: Array) -> Array:
        return function(point) * [1e-4, 1e4] - [7.0, 0.0] + (1e9 if point.sum() > 1.6 else 0.0)

    outcomes = told(made("map", unit_box(1, 2), 2), odd, 60)
    ahead = [off(o.question.point) for o in outcomes if "foretold" in o.question.stage]
    assert np.median(ahead[5:]) < 0.05


def test_map_counts_tied_foreign_answers_as_samples_and_no_others() -> None:
    function, _ = corner_bowls(2, 3)
    where = unit_box(3, 2)
    generator = np.random.default_rng(0)
    for tied, stage in ((True, "the front that is foretold"), (False, "samples")):
        driver = made("map", where, 2)
        for _ in range(12):
            unit = np.tile(generator.random(2), 3) if tied else generator.random(6)
            point = at(where, unit)
            driver.tell([Outcome(Question(FOREIGN, point), function(point), np.zeros(2))])
        assert stage in driver.ask(1)[0].stage


def test_nested_map_searches_pairs_then_pairs_of_what_is_best_there() -> None:
    function, _ = corner_bowls(5)
    where = unit_box(1, 5)
    driver = made("map", where, 5)
    outcomes = told(driver, function, 110)
    rounds = [o.question.stage for o in sorted(outcomes, key=lambda o: o.question.number)]
    assert "round 1, pair 2 of 2" in rounds[1] and any("round 2, pair 1 of 1" in stage for stage in rounds)
    assert "foretold" in rounds[-1]
    first = [o.question.point for o in outcomes if "round 1" in o.question.stage]
    assert all((p[4] == 0) and ((p[:2] == 0).all() or (p[2:4] == 0).all()) for p in first)
    last = np.array([o.losses.mean() for o in outcomes if "foretold" in o.question.stage])
    assert last.min() < 0.6 * min(function(row).mean() for row in np.eye(5))
    events = searched(made("map", where, 2), where, 2, 90)
    one, two = (replayed(made("map", where, 2), events) for _ in range(2))
    assert signature(one.ask(4)) == signature(two.ask(4))


def test_map_asks_on_where_the_front_is_one_point() -> None:
    outcomes = told(made("map", unit_box(1, 2), 1), lambda p: np.array([np.sum((p - 0.4) ** 2)]), 40)
    assert min(o.losses[0] for o in outcomes) < 1e-6
    assert any("where it errs" in o.question.stage for o in outcomes)
    assert len({o.question.point.tobytes() for o in outcomes}) == 40


@pytest.mark.parametrize("shape", [(3, 0), (0, 0)])
def test_map_refuses_a_space_without_coefficients(shape: tuple[int, int]) -> None:
    where = box()
    with pytest.raises(DriverError, match="this space has none to search; take tpe"):
        made("map", Box(where.low, where.high, where.start, shape), 2)


def test_layers_come_front_by_front() -> None:
    values = np.random.default_rng(0).integers(0, 12, (700, 3)).astype(float)

    def dominated(row: Array, others: Array) -> bool:
        return bool(((others <= row).all(axis=1) & (others < row).any(axis=1)).any())

    first = {tuple(row) for row in values if not dominated(row, values)}
    best = values[layers(values, len(first))]
    assert {tuple(row) for row in best} == first
    assert set(layers(values, 700).tolist()) == set(range(700))


def test_losses_are_levelled_in_order_and_a_surface_knows_where_it_errs() -> None:
    values = np.array([[1.0, 5], [2, 5], [3, 5], [4, 5], [1e12, 5]])
    found = levelled(values)
    assert (np.diff(found[:, 0]) > 0).all() and found[:, 0].max() < 40 and (found[:, 1] == 0).all()
    points = np.linspace(0, 1, 9)[:, None]
    kink = np.abs(points - 0.75) * 3
    kink[6] = 4.0
    errors = fitted(points, kink).errors
    assert errors.argmax() == 6
    pool = np.linspace(0, 1, 101)[:, None]
    assert abs(pool[where_it_errs(points, errors, np.zeros((0, 1)), pool)][0] - 0.75) < 0.07
