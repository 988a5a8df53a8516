"""What does the driver `auto` promise? Coarse before fine, volume counted rightly, and models that know slopes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
import worlds
from driver_rows import Box, frozen, mixed
from quadratics import Toy, domain, made
from scipy.sparse import csr_array

from optimizer import Job, Run
from optimizer.driver import ANCHOR, FOREIGN, Driver, Outcome, Question, Trained, exact, unit_of
from optimizer.drivers.gaussian import slopes as slope_model
from optimizer.drivers.gaussian.climb import climb
from optimizer.drivers.gaussian.depth import Depth
from optimizer.drivers.gaussian.features import Features, Moves, halves
from optimizer.drivers.gaussian.levels import Levels
from optimizer.drivers.gaussian.process import Process
from optimizer.drivers.gaussian.slopes import Slopes
from optimizer.drivers.gaussian.trace import Trace
from optimizer.drivers.shared.scale import Scale
from optimizer.volume import Volume

RNG = np.random.default_rng


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
def test_volume_by_directions_is_the_hypervolume(objectives: int) -> None:
    losses = RNG(0).random((30, objectives)) ** 0.5
    volume = Volume(objectives)
    volume.add(losses[:10])
    gains = volume.gain(losses[10:])
    before = moocore.hypervolume(losses[:10], ref=np.ones(objectives))
    assert volume.value == pytest.approx(before, rel=0.1)
    exact = [moocore.hypervolume(np.vstack([losses[:10], row]), ref=np.ones(objectives)) for row in losses[10:]]
    assert gains == pytest.approx(np.array(exact) - before, abs=0.05 * before)
    volume.add(losses[10:])
    assert volume.value == pytest.approx(moocore.hypervolume(losses, ref=np.ones(objectives)), rel=0.1)
    assert (volume.gain(losses) == 0).all() and volume.gain(np.full((1, objectives), 1.5)).item() == 0


def test_halves_are_orthogonal_and_go_from_the_model_to_single_groups() -> None:
    layers = ("embeddings", *(f"layer {i // 3}" for i in range(12)), "head")
    tree, depth = halves(layers)
    rows = tree.toarray()
    assert rows @ rows.T == pytest.approx(14 * np.eye(14))
    assert depth[0] == 0 and (np.diff(depth) >= 0).all()
    assert (rows[0] == 1).all() and set(np.sign(rows[1])) == {1, -1}
    assert (np.sign(rows[1])[:7] == 1).all() and (np.sign(rows[1])[7:] == -1).all()  # embeddings and two layers
    fine = rows[depth == depth.max()]
    assert all((row != 0).sum() == 2 for row in fine)


def test_features_of_a_space_with_choices_part_their_values() -> None:
    where = mixed()
    features = Features.of(where)
    a, b = where.start.copy(), where.start.copy()
    b[-1] = 1 - b[-1]
    seen = features(np.array([unit_of(where, a), unit_of(where, b)]))
    assert seen.shape == (2, 4 + 2 + 4 + 2)
    assert (seen[0] != seen[1]).sum() == 2


def slope(f: Callable[[Any], Any], at: Any, step: float = 1e-5) -> Any:
    """Central differences of `f`, `(..., n)` for points `(n, dim)`: `(..., dim, n)`, or `(n, dim)`."""
    moves = step * np.eye(at.shape[1])
    return np.stack([(f(at + move) - f(at - move)) / (2 * step) for move in moves], axis=1)


def test_the_process_finds_what_matters_and_knows_its_slopes() -> None:
    rng = RNG(0)
    points, fresh = rng.random((60, 5)), rng.random((20, 5))

    def truth(x: Any) -> Any:
        return np.stack([np.sin(3 * x[:, 0]) + 0.2 * x[:, 1], (x[:, 2] - 0.5) ** 2], axis=1)

    process = Process(np.arange(5), np.ones(5, dtype=bool), 2)
    exact = np.zeros((60, 2))
    process.condition(points, truth(points), exact)
    unfitted = np.abs(process(fresh)[0] - truth(fresh)).mean()
    process.fit(points, truth(points), exact)
    smoothed = process.condition(points, truth(points), exact)
    means, kept = process(fresh)
    assert np.abs(means - truth(fresh)).mean() < min(0.02, unfitted)
    assert smoothed == pytest.approx(truth(points), abs=0.05)
    assert (process.deviation(points) < process.deviation(fresh).mean(axis=0)).mean() > 0.9
    weights = rng.random((20, 2))
    pulled = process.pull(fresh, kept, weights)
    assert pulled == pytest.approx(slope(lambda x: (weights * process(x)[0]).sum(axis=1), fresh), abs=1e-5)


def test_the_process_believes_estimates_no_more_than_their_errors_allow() -> None:
    rng = RNG(1)
    points = rng.random((80, 3))
    truth = np.stack([np.sin(3 * points[:, 0]), (points[:, 1] - 0.5) ** 2], axis=1)
    errors = np.where(np.arange(80)[:, None] < 20, 0.0, np.array([0.5, 0.2]))  # the first 20 are exact
    told = truth + errors * rng.standard_normal((80, 2))
    off = {}
    for name, known in {"known": errors, "unknown": np.zeros_like(errors)}.items():
        process = Process(np.arange(3), np.ones(3, dtype=bool), 2)
        process.fit(points, told, known)
        off[name] = np.abs(process.condition(points, told, known) - truth)
    assert (off["known"].mean(axis=0) < 0.8 * off["unknown"].mean(axis=0)).all()
    assert off["known"][:20].max() < 0.05 < off["unknown"][:20].max()


def test_estimates_lengthen_the_volume_by_which_a_level_is_kept_no_further_than_they_are_sure() -> None:
    where, stages = domain(8, 2), {}
    for share, error in ((1.0, 0.01), (0.1, 0.01), (0.1, 9.0)):
        driver = made("auto", where, 2)
        for value in (0.0, 1.0):  # a box from 0 to 1
            question = Question(FOREIGN, np.full(16, value), stage=ANCHOR + str(value))
            driver.tell([Outcome(question, np.full(2, value), np.zeros(2))])
        for i in range(60):
            (question,) = driver.ask(1)
            driver.tell([Outcome(question, np.full(2, 0.9 - 0.05 * i), np.full(2, error), share=share)])
        stages[share, error] = question.stage
    assert stages[1.0, 0.01] == stages[0.1, 0.01] == "auto: level 0" != stages[0.1, 9.0]


@pytest.mark.parametrize("first", ["an estimate", "a failure"])
def test_scores_after_an_estimate_or_a_failure_are_news_and_nothing_else_is(first: str) -> None:
    where = domain(2, 2)
    levels, rng = Levels(where, 1), RNG(0)
    points = rng.random((30, 4))
    for point in points:
        levels.learn(point, point.sum(keepdims=True) / 4)
    there, far = np.full(4, 0.5), np.array([5.0])
    levels.learn(there, None if first == "a failure" else far, None, None if first == "a failure" else np.array([0.01]))
    before = levels.count
    units, _, losses, _ = levels._known(before, 500)
    assert len(units) == before and losses[-1] > 1
    levels.learn(there, np.array([0.5]))
    assert levels.count == before + 1
    units, _, losses, errors = levels._known(levels.count, 500)
    assert len(units) == before and losses[-1] == 0.5 and not errors.any()
    assert levels._known(before, 500)[2][-1] > 1, "what was thought out by then stays"
    for news, unsure in ((np.array([0.1]), None), (far, np.array([0.01])), (None, None)):
        levels.learn(there, news, None, unsure)
    assert levels.count == before + 1


def test_slopes_are_interpolated_and_both_ways_to_solve_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = RNG(1)
    points, fresh, targets = rng.random((40, 6)), rng.random((5, 6)), rng.random((2, 6))
    losses = ((points[:, None] - targets) ** 2).sum(axis=-1)
    gradients = 2 * (points[:, None] - targets)
    model = Slopes(6)
    model.condition(points, losses, gradients)
    expected, kept = model(fresh)
    assert model(points)[0] == pytest.approx(losses, abs=0.02)
    assert expected == pytest.approx(((fresh[:, None] - targets) ** 2).sum(axis=-1), abs=0.1)
    weights = rng.random((5, 2))
    assert model.pull(fresh, kept, weights) == pytest.approx(
        slope(lambda x: (weights * model(x)[0]).sum(axis=1), fresh), abs=1e-5
    )
    monkeypatch.setattr(slope_model, "DENSE", 0)
    monkeypatch.setattr(slope_model, "ITERATIONS", 2000)
    nearly = Slopes(6)
    nearly.condition(points, losses, gradients)
    assert nearly(fresh)[0] == pytest.approx(expected, abs=1e-3)


def test_slopes_of_few_items_are_believed_no_more_than_they_foretell_each_other() -> None:
    rng = RNG(2)
    points, fresh, targets = rng.random((40, 30)), rng.random((10, 30)), rng.random((2, 30))
    true = 2 * (points[:, None] - targets)
    losses = ((points[:, None] - targets) ** 2).sum(axis=-1)
    lucky = true + true.std() * rng.standard_normal(true.shape)
    wanted = 2 * (fresh[:, None] - targets)
    off = {}
    for noisy in (False, True):
        model = Slopes(30, noisy)
        model.fit(points, losses, lucky)
        model.condition(points, losses, lucky)
        off[noisy] = float(((model.slopes(fresh) - wanted) ** 2).sum() / (wanted**2).sum())
    assert off[True] < 0.7 * off[False]
    exact = Slopes(30)
    exact.fit(points, losses, true)
    assert exact.noise == 0.0, "what is told is exact, and smooth"


def test_gradients_of_few_items_are_foretold_from_without_their_luck() -> None:
    where, rng = domain(16, 3), RNG(5)
    toy = conflicting(where)
    found = {}
    for batch in (0, 16):  # told to be exact, or of few items
        driver = trained(where, 3, batch=batch, steps=24)
        scored = []
        while len(scored) < 24:
            (question,) = driver.ask(1)
            outcome = toy.answer(question)
            if question.wants == "scores":
                scored.append(outcome)
            else:
                luck = rng.standard_normal(outcome.gradient.shape) * outcome.gradient.std()  # type: ignore[union-attr]
                outcome = replace(outcome, gradient=outcome.gradient + luck)
            driver.tell([outcome])
        found[batch] = volume(scored, toy, where)
    assert found[16] > 1.05 * found[0]


def test_climbs_keep_to_their_reach_their_moves_and_the_cube() -> None:
    class Plane:
        def __call__(self, units: Any) -> Any:
            return units.sum(axis=1, keepdims=True), None

        def pull(self, units: Any, kept: None, weights: Any) -> Any:
            return np.broadcast_to(weights, units.shape)

    starts, reach = np.array([[0.5, 0.5, 0.1]] * 2), np.array([[0.2], [0.9]])
    ends = climb(
        Plane(),
        starts,
        np.ones((2, 1)),
        Moves(csr_array([[1.0, 1.0, 0.0]]), csr_array([[1.0], [1.0], [0.0]]), 1, np.zeros(0, dtype=np.int64), 3),
        reach,
        np.zeros((2, 1)),
        60,
    )
    assert ends[0] == pytest.approx([0.3, 0.3, 0.1], abs=0.01) and ends[1] == pytest.approx([0, 0, 0.1], abs=0.01)


def test_climbs_without_moves_leave_alone_what_matters_little() -> None:
    class Plane:
        def __call__(self, units: Any) -> Any:
            return units @ np.array([[1.0], [0.02]]), None

        def pull(self, units: Any, kept: None, weights: Any) -> Any:
            return weights @ np.array([[1.0, 0.02]])

    (end,) = climb(Plane(), np.array([[0.5, 0.5]]), np.ones((1, 1)), None, np.array([[0.2]]), np.zeros((1, 2)), 40)
    assert end[0] == pytest.approx(0.3) and 0.45 < end[1] < 0.5


@pytest.mark.parametrize("rough", [False, True])
def test_gradients_are_asked_as_far_as_the_model_foretells_their_slopes(rough: bool) -> None:
    rng, targets = RNG(4), 0.8 + 0.2 * RNG(5).random((2, 20))
    trace, known = Trace(20), [np.zeros(20)]
    apart = []
    for i in range(22):
        unit = known[-1]
        slopes = rng.standard_normal((2, 20)) if rough else (unit - targets) / 2
        trace.learn(unit, 0.1 + ((unit - targets) ** 2).sum(axis=1) / 4, slopes)
        known.append(trace.propose(i + 1, [], RNG(i)))
        apart.append(min(np.abs(known[-1] - k).max() for k in known[:-1]))
    assert max(apart[:3]) <= 0.15 + 1e-9, "nothing is known of the model yet"
    assert max(apart[-3:]) <= 0.04 if rough else max(apart[3:]) > 0.2


def test_the_luck_of_the_first_few_items_decides_no_task_s_worth() -> None:
    targets, found = RNG(5).random((2, 20)), []
    for luck in (1.0, 4.0):  # by which the first item of one task tells too little, and of the other too much
        trace, unit, rng = Trace(20, noisy=True), np.full(20, 0.5), RNG(6)
        for i in range(24):
            losses = ((unit - targets) ** 2).sum(axis=1) * np.exp(0.1 * rng.standard_normal(2))
            slopes = 2 * (unit - targets) + 0.3 * rng.standard_normal((2, 20))
            trace.learn(unit, losses * ([1 / luck, luck] if i == 0 else 1.0), slopes)
            unit = trace.propose(i + 1, [], RNG(i))
        best = trace.cover(24, [], RNG(0))  # the most volume that one point has
        found.append(((best - targets) ** 2).sum(axis=1))
    assert found[1] == pytest.approx(found[0], rel=0.5)


def search(driver: Driver, toy: Toy, evaluations: int, workers: int = 1) -> list[Outcome]:
    """Answers in the order told; a question is answered when `workers` are on their way."""
    outcomes: list[Outcome] = []
    waiting: list[Question] = []
    while len(outcomes) < evaluations:
        waiting += driver.ask(workers - len(waiting))
        outcomes.append(toy.answer(waiting.pop(0)))
        driver.tell(outcomes[-1:])
    return outcomes


def trained(where: Box, objectives: int, **options: Any) -> Driver:
    driver = made("auto", where, objectives, **options)
    assert isinstance(driver, Trained)
    driver.trained_on(objectives)
    return driver


def conflicting(where: Box) -> Toy:
    """Three tasks whose best coefficients differ from layer to layer."""
    targets = RNG(0).random((3, len(where.low)))
    return Toy(targets, curvatures=16 / len(where.low))


def anchored(driver: Driver, where: Box, toy: Toy) -> None:
    assert where.vertices is not None and where.base is not None
    for label, point in (("base", where.base), *((f"e{k}", v) for k, v in enumerate(where.vertices))):
        outcome = toy.answer(Question(0, frozen(point), stage=ANCHOR + label))
        driver.tell([replace(outcome, question=replace(outcome.question, number=FOREIGN))])


def volume(outcomes: list[Outcome], toy: Toy, where: Box) -> float:
    assert where.base is not None
    reference = toy.losses(where.base)
    return float(moocore.hypervolume(np.array([o.losses for o in outcomes]), ref=reference) / np.prod(reference))


def test_it_begins_with_one_coefficient_an_expert_and_grows_finer() -> None:
    where = domain(16, 3)
    toy = conflicting(where)
    driver = made("auto", where, 3)
    anchored(driver, where, toy)
    outcomes = search(driver, toy, 150)
    blocks = [o.question.point.reshape(16, 3) for o in outcomes]
    levels = [o.question.stage.removeprefix("auto: ") for o in outcomes]
    assert list(dict.fromkeys(stage for stage in levels if "level" in stage))[:3] == ["level 0", "level 2", "level 3"]
    # a move of a level may begin at what a finer one found
    coarse = blocks[: levels.index("level 2")]
    assert len(coarse) > 8 and all(np.abs(b - b[0]).max() < 1e-9 for b in coarse)
    finer = levels.index("level 3")
    quarters = [b for b, stage in zip(blocks[:finer], levels[:finer], strict=True) if stage == "level 2"]
    free = [b for b in quarters if (b > 0).all() and (b < 1).all()]  # bounds are kept group by group
    assert free and all(np.abs(b.reshape(4, 4, 3) - b.reshape(4, 4, 3)[:, :1]).max() < 1e-9 for b in free)


@pytest.mark.parametrize(
    ("by_scouts", "by_others", "level"),
    [(0.004, 0.002, 1), (0.002, 0.004, 0), (0.2, 0.1, 0), (0.0, 0.0, 1)],
    ids=["finer moves gain more", "they gain less", "all gain much", "nothing gains"],
)
def test_a_level_is_left_once_finer_moves_gain_more(by_scouts: float, by_others: float, level: int) -> None:
    depth, side = Depth([2, 6]), 1.0
    asked = []
    for number in range(14):
        asked.append(depth.at(number, number))
        side += by_scouts if asked[-1] > depth.at(number) else by_others
        depth.add(side, asked[-1])
    assert asked[:9] == [0, 0, 0, 1, 0, 0, 1, 0, 0] and depth.at(14) == level
    assert depth.at(9, None) == 0  # where gradients are asked, there are no scouts


def test_no_level_is_left_for_finer_moves_that_nobody_made() -> None:
    depth, side, asked = Depth([4, 16, 32, 64], design=10), 1.0, []
    for number in range(150):
        asked.append(depth.at(number, number) > depth.at(number))
        before = depth.at(number)
        side += 0.002 * (number % 3 == 0) + 0.001
        depth.add(side, depth.at(number, number))
        if depth.at(number + 1) > before:
            assert sum(asked[-9:]) >= 3
    assert depth.at(150) == 3


@pytest.mark.parametrize("workers", [2, 8])
def test_a_scout_is_what_was_asked_as_one_however_late_its_answer_comes(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int | None, int]] = []
    add = Depth.add

    def noted(depth: Depth, side: float, asked: int | None) -> None:
        told.append((asked, depth.at(len(told))))
        add(depth, side, asked)

    monkeypatch.setattr(Depth, "add", noted)
    where = domain(16, 3)
    driver = made("auto", where, 3)
    outcomes = search(driver, conflicting(where), 90, workers)
    names = {"auto: level 0": 0, "auto: level 2": 1, "auto: level 3": 2, "auto: level 4": 3}
    stages = [o.question.stage for o in outcomes]
    first = next(i for i, stage in enumerate(stages) if stage in names)
    asked = [place for place, _ in told]
    assert asked[first:] == [names.get(stage, 0) for stage in stages[first:]]
    assert any(place > level for place, level in told[first:] if place is not None), "there are scouts"


@pytest.mark.parametrize("units", [(64.0, 64.0), (0.5, 512.0)])
def test_without_anchors_it_asks_the_same_in_whatever_units_losses_are(units: tuple[float, float]) -> None:
    where = domain(4, 2)
    toy = Toy(RNG(3).random((2, 8)))
    plain, scaled = made("auto", where, 2), made("auto", where, 2)
    for _ in range(40):
        (question,), (other,) = plain.ask(1), scaled.ask(1)
        assert np.array_equal(other.point, question.point)
        plain.tell([toy.answer(question)])
        scaled.tell(
            [replace(toy.answer(question), losses=toy.losses(question.point) * np.array(units), question=other)]
        )


def test_without_anchors_what_gradients_foretell_is_beside_all_that_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    where, beside = domain(16, 3), list[int]()
    cover = Trace.cover

    def noted(trace: Trace, count: int, scored: Sequence[Any], stream: np.random.Generator) -> Any:
        beside.append(len(scored))
        return cover(trace, count, scored, stream)

    monkeypatch.setattr(Trace, "cover", noted)
    search(trained(where, 3), conflicting(where), 40)
    assert beside == list(range(9)), "before there is a box, too"


@pytest.mark.parametrize("workers", [1, 4])
def test_it_finds_more_volume_than_others(workers: int) -> None:
    where = domain(16, 3)
    toy = conflicting(where)
    found = {}
    for name in ("auto", "sobol", "tpe"):
        driver = made(name, where, 3)
        anchored(driver, where, toy)
        found[name] = volume(search(driver, toy, 120, workers), toy, where)
    assert found["auto"] > 1.15 * max(found["sobol"], found["tpe"])


def test_gradients_find_more_than_scores_at_a_third_of_the_price() -> None:
    where = domain(16, 3)
    toy = conflicting(where)
    by_scores, by_gradients = made("auto", where, 3), trained(where, 3)
    anchored(by_scores, where, toy)
    anchored(by_gradients, where, toy)
    asked = search(by_gradients, toy, 40)
    assert [o.question.wants for o in asked[:4]] == ["gradients"] * 4
    assert (asked[0].question.point == where.base).all()
    best = min(where.vertices, key=lambda v: toy.losses(v).sum())
    assert (asked[1].question.point == best).all(), "the most promising anchor"
    assert sum(o.question.wants == "scores" for o in asked) == 9
    assert volume(asked, toy, where) > volume(search(by_scores, toy, 120), toy, where)


def test_after_its_gradients_it_scores_what_they_foretell() -> None:
    where = domain(8, 2)
    toy = Toy(RNG(0).random((2, 16)))
    asked = search(trained(where, 2, steps=12), toy, 40)
    assert sum(o.question.wants == "gradients" for o in asked) == 12
    stages = [o.question.stage for o in asked[18:]]
    assert any("foretold" in s for s in stages) and any("foretold" not in s for s in stages)


def test_where_the_base_has_no_gradient_the_most_promising_anchor_is_next() -> None:
    where = domain(16, 3)
    toy = conflicting(where)
    driver = trained(where, 3)
    anchored(driver, where, toy)
    toy.fails = lambda question: "error: none" if question.number == 0 else None
    asked = search(driver, toy, 3)
    best = min(where.vertices, key=lambda v: toy.losses(v).sum())
    assert (asked[0].question.point == where.base).all() and (asked[1].question.point == best).all()


def test_gradients_that_fail_leave_scores() -> None:
    where = domain(4, 2)
    toy = Toy(RNG(0).random((2, 8)), fails=lambda q: "error: none" if q.wants == "gradients" else None)
    asked = search(trained(where, 2), toy, 30)
    assert [o.question.wants for o in asked].count("gradients") == 3
    assert asked[-1].failure is None


def test_the_next_question_is_thought_out_while_answers_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    where = domain(16, 3)
    toy = conflicting(where)
    driver = made("auto", where, 3)
    anchored(driver, where, toy)
    search(driver, toy, 30)
    threads: list[str] = []
    think = Levels.propose

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return think(*given)

    monkeypatch.setattr(Levels, "propose", noted)
    asked = driver.ask(2)
    driver.tell([toy.answer(asked[0])])
    driver.ask(1)
    assert threads[:2] == ["MainThread"] * 2 and set(threads[2:4]) == {"auto"}


def test_a_level_that_finds_nothing_is_left() -> None:
    where = domain(8, 2)

    def losses(point: Any) -> Any:
        first, second = point[:8].mean(), point[8:].mean()
        alike, apart = np.abs(first + second), first - second
        return np.full(2, 1.2) + 0.2 * alike - 0.8 * apart  # moved alike it never falls below 1

    driver = made("auto", where, 2)
    for _ in range(2):  # a box from 0 to 1
        for value in (0.0, 1.0):
            question = Question(FOREIGN, frozen(where.start), stage=ANCHOR + str(value))
            driver.tell([Outcome(question, np.full(2, value), np.zeros(2))])
    found = []
    for _ in range(90):
        (question,) = driver.ask(1)
        found.append(losses(question.point))
        driver.tell([Outcome(question, found[-1], np.zeros(2))])
    assert question.stage.startswith("auto: level") and question.stage != "auto: level 0"
    assert np.min(found) < 1


def test_nothing_is_asked_twice_though_every_climb_ends_in_the_best_corner() -> None:
    where = domain(8, 2)
    driver = made("auto", where, 2)
    for value in (0.0, 1.0):
        question = Question(FOREIGN, np.full(16, value), stage=ANCHOR + str(value))
        driver.tell([Outcome(question, np.full(2, value), np.zeros(2))])
    found = search(driver, Toy(np.zeros((2, 16))), 40)
    assert len({o.question.point.tobytes() for o in found}) == 40


def test_nothing_is_asked_twice_where_there_is_more_to_ask() -> None:
    low, high = np.zeros(3), np.full(3, 4.0)
    where = Box(frozen(low), frozen(high), frozen(low), (0, 2), ("choice", "integer", "choice"))
    driver = made("auto", where, 1)
    asked = [o.question.point.tobytes() for o in search(driver, Toy(np.array([[3.0, 1.0, 4.0]])), 100)]
    designed = driver_needs(where)
    assert len(set(asked[designed:])) == 100 - designed


def driver_needs(where: Box) -> int:
    return Levels(where, 1).needed


@pytest.mark.parametrize(
    ("anchors", "base", "expected"),
    [
        ([[1, 1], [0, 0.5], [0.5, 0]], [1, 1], [1, 1]),  # the base
        ([[0, 1], [0.4, 0.5], [0.5, 0]], [0, 1], [0.4, 1]),  # as good as the best in one: the median
        ([[1, 1], [0, 1e6], [0.5, 0], [0.4, 0.3]], [1, 1], [1, 1]),  # an expert broken elsewhere
        ([[50, 50], [0, 0.5], [0.5, 0]], [50, 50], [2, 2]),  # a base that violates a constraint
        ([[1, 3], [0, 3]], None, [1, 3]),  # one that never changes counts in its own units
        ([[1, 0.3], [0, 0.1 + 0.2], [0.5, 0.9]], None, [1, 0.6]),  # the median is the best but for rounding
    ],
)
def test_the_box_is_one_in_which_differences_show(anchors: Any, base: Any, expected: Any) -> None:
    scale = Scale.boxed(np.array(anchors, dtype=float), None if base is None else np.array(base, dtype=float), 2)
    ideal, span = scale.ideal, scale.span
    assert (ideal == np.min(anchors, axis=0)).all() and span == pytest.approx(expected)


def test_one_objective_is_taken_to_its_least() -> None:
    where = domain(6, 2)
    toy = Toy(np.full((1, 12), 0.7), curvatures=2.0)
    assert min(o.losses[0] for o in search(made("auto", where, 1), toy, 60)) < 0.02 * toy.losses(where.start)[0]


def test_choices_and_integers_are_found() -> None:
    where = mixed()
    best = np.array([0.9, 0.2, 0.6, 0.4, 0.6, 3, 2, 1.0])

    def losses(point: Any) -> Any:
        return np.array(
            [np.abs(unit_of(where, point) - unit_of(where, best)).mean() + 0.5 * (point[6:] != best[6:]).sum()]
        )

    driver = made("auto", where, 1)
    found = []
    for _ in range(80):
        (question,) = driver.ask(1)
        found.append((losses(question.point)[0], question.point))
        driver.tell([Outcome(question, losses(question.point), np.zeros(1))])
    least, point = min(found, key=lambda f: f[0])
    assert (point[6:] == best[6:]).all() and least < 0.05


def odd(dim: int, shape: tuple[int, int], high: float = 1.0, kind: str = "real") -> Box:
    further = (kind,) * (dim - shape[0] * shape[1])
    low, top = np.zeros(dim), np.full(dim, high)
    if dim > 1 and kind == "real":
        top[1] = 0.0  # nowhere to go
    return Box(frozen(low), frozen(top), frozen(low), shape, further)  # type: ignore[arg-type]


ODD: dict[str, tuple[Box, Callable[[Any], list[float]]]] = {
    "one coordinate": (odd(1, (1, 1)), lambda p: [float((p - 0.7) @ (p - 0.7))]),
    "a bound without width": (odd(4, (2, 2)), lambda p: [float((p - 0.7) @ (p - 0.7)), float((p - 0.2) @ (p - 0.2))]),
    "models picked by groups": (
        odd(12, (12, 0), 3.0, "choice"),
        lambda p: [float((p != 2).sum()), float((p != 1).sum())],
    ),
    "twenty objectives": (odd(6, (3, 2)), lambda p: [float((p - i / 20) @ (p - i / 20)) for i in range(20)]),
    "one that never changes": (odd(6, (3, 2)), lambda p: [0.0, float((p - 0.2) @ (p - 0.2))]),
    "of other magnitudes": (
        odd(6, (3, 2)),
        lambda p: [1e30 * float((p - 0.7) @ (p - 0.7)), 1e-12 * float((p - 0.2) @ (p - 0.2)) - 1e-9],
    ),
}


@pytest.mark.parametrize(
    ("name", "gradients"),
    [(name, g) for name in ODD for g in (False, True) if not g or "choice" not in ODD[name][0].kinds],
)
def test_odd_spaces_and_losses_are_survived(name: str, gradients: bool) -> None:
    where, losses = ODD[name]
    count = len(losses(where.start))
    driver = trained(where, count, steps=8) if gradients else made("auto", where, count)
    first, best = np.array(losses(where.start)), np.array(losses(where.start))
    for _ in range(35):
        (question,) = driver.ask(1)
        assert exact(where, question.point)
        found, point = np.array(losses(question.point)), question.point
        slopes = slope(lambda x: np.array([losses(row) for row in x]).T, point[None])[:, :, 0]
        driver.tell([Outcome(question, found, np.zeros(count), slopes if question.wants == "gradients" else None)])
        best = np.minimum(best, found)
    assert (best <= first).all() and ((best < first) | (first == 0)).any()


@pytest.mark.parametrize("wants", [None, {}, {"loss": "cross_entropy"}])
def test_a_job_asks_for_gradients_where_it_says_of_what(tmp_path: Path, wants: dict[str, str] | None) -> None:
    job = Job.load(worlds.classification(tmp_path, evaluations=14))
    driver = {"name": "auto", **({} if wants is None else {"gradients": wants, "steps": 5, "every": 3})}
    run = Run.create(Job.parse(job.model_dump(mode="json") | {"driver": driver}, tmp_path), tmp_path / "runs")
    run.search()
    results = run.results()
    assert results.gradients == (0 if wants is None else 5) and len(results.candidates) == 14
    killed = Run.create(Job.parse(job.model_dump(mode="json") | {"driver": driver}, tmp_path), tmp_path / "killed")

    def stop(search: Any, answer: Any) -> None:
        if search.answered + search.gradients == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.search(stop)
    killed.search()
    again = killed.results().candidates
    assert [(c.point.tolist(), c.stage) for c in again.values()] == [
        (c.point.tolist(), c.stage) for c in results.candidates.values()
    ]
