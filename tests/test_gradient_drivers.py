"""Where do gradient drivers end up? Where the mathematics says, and they stop when they should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driver_rows import Box, answer, box, frozen

from optimizer.driver import ANCHOR, FOREIGN, Driver, DriverError, Outcome, Question
from optimizer.drivers import DRIVERS, find
from optimizer.drivers.dam import similarity, similarity_slope
from optimizer.drivers.expert_merging import cut
from optimizer.drivers.pareto import common_weights
from optimizer.drivers.walks.adam import Adam, AdamRule
from optimizer.record.front import Front

Answer = Callable[[Question], Outcome]
WALKS = [name for name, entry in DRIVERS.items() if entry.loss and not entry.optional]


def make(name: str, domain: Box, objectives: int = 1, **options: Any) -> Driver:
    kind = find(name).load()
    return kind(domain, objectives, 0, kind.Options(**options))


def unit_box(groups: int, experts: int, start: float = 0.3, high: float = 1.0) -> Box:
    dim = groups * experts
    return Box(frozen(np.zeros(dim)), frozen(np.full(dim, high)), frozen(np.full(dim, start)), (groups, experts))


def walked(driver: Driver, reply: Answer, limit: int = 3000) -> list[Outcome]:
    """Everything answered at once, in the order asked."""
    told: list[Outcome] = []
    while not driver.done and len(told) < limit:
        questions = driver.ask(4)
        for question in questions:
            told.append(reply(question))
            driver.tell([told[-1]])
    return told


def bowls(targets: np.ndarray, scales: tuple[float, ...] | None = None) -> Answer:
    """Tasks with losses `scale |point - target|^2`, targets (T, dim), which are the objectives too."""
    factors = np.ones(len(targets)) if scales is None else np.array(scales)

    def reply(question: Question) -> Outcome:
        apart = question.point - targets
        losses, rows = factors * (apart**2).sum(axis=1), 2 * factors[:, None] * apart
        if question.wants == "scores":
            return Outcome(question, losses, np.zeros(len(losses)))
        if question.wants == "sizes":
            return Outcome(question, np.zeros(0), np.zeros(0), np.ones((1, len(question.point))))
        rows = rows if question.wants == "gradients" else rows.mean(axis=0, keepdims=True)
        return Outcome(question, losses, np.zeros(len(losses)), rows)

    return reply


def points(told: list[Outcome], wants: str = "scores") -> np.ndarray:
    return np.array([o.question.point for o in told if o.question.wants == wants])


def test_adam_is_torchs() -> None:
    ours, parameter = Adam(0.03), torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    theirs = torch.optim.Adam([parameter], lr=0.03)
    at = np.zeros(5)
    draw = np.random.default_rng(0)
    for _ in range(50):
        slope = draw.normal(size=5) * draw.choice([1e-4, 1.0, 100.0])
        at = at + ours.step(slope)
        parameter.grad = torch.tensor(slope)
        theirs.step()
    np.testing.assert_allclose(at, parameter.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bounds", ["clamp", "project", "sigmoid"])
def test_a_walk_ends_at_the_optimum_of_the_box(bounds: str) -> None:
    target = np.array([[0.2, 0.7, 1.6, -0.5]])  # two coordinates want to leave
    driver = make("supervised", unit_box(2, 2), steps=800, every=800, lr=0.02, bounds=bounds)
    end = points(walked(driver, bowls(target)))[-1]
    np.testing.assert_allclose(end, [0.2, 0.7, 1.0, 0.0], atol=0.03)


def test_a_clamped_coefficient_has_no_gradient_and_a_projected_one_comes_back() -> None:
    out, back = np.array([[2.0, 2.0]]), np.array([[0.5, 0.5]])
    found = {}
    for bounds in ("clamp", "project"):
        rule = AdamRule(unit_box(1, 2, start=0.95), np.array([0.95, 0.95]), 0.1, bounds)
        for step in range(60):
            question = Question(step, rule.point, "gradient")
            rule.update(bowls(out if step < 10 else back)(question))
        found[bounds] = rule.point
    assert (found["clamp"] == 1.0).all()
    assert (found["project"] < 0.8).all()


@pytest.mark.parametrize("name", WALKS)
def test_every_walk_lowers_the_loss(name: str) -> None:
    target = np.tile([0.9, 0.1, 0.1], 4)[np.newaxis]
    options: dict[str, Any] = {"every": 5}
    if name != "frank_wolfe":
        options["lr"] = 0.02
    if name not in ("frank_wolfe", "frank_wolfe_soft"):
        options["steps"] = 60
    if name.startswith("expert_merging"):
        options["stay"] = 0.5
    elif name == "frank_wolfe_soft":
        options |= {"inner": 30, "rounds": 2}
    told = walked(make(name, unit_box(4, 3), **options), bowls(target))
    scores = [o.losses[0] for o in told if o.question.wants == "scores"]
    assert min(scores) < 0.7 * scores[0]


def test_a_walk_stops_when_unseen_items_say_so_whatever_the_timing() -> None:
    def reply(question: Question) -> Outcome:
        if question.wants == "scores":  # unseen items are at their best after 20 steps of 0.01
            return Outcome(question, np.array([abs(question.point[0] - 0.5)]), np.zeros(1))
        return Outcome(question, np.ones(1), np.zeros(1), -np.ones((1, 4)))

    def make_one() -> Driver:
        return make("supervised", unit_box(2, 2), steps=500, every=5, patience=3, lr=0.01)

    prompt = walked(make_one(), reply)
    steps = [o for o in prompt if o.question.wants == "gradient"]
    assert 35 <= len(steps) <= 45
    slow, waiting, late = make_one(), list[Question](), list[Outcome]()
    while not slow.done or waiting:  # gradients at once, scores as late as can be
        questions = slow.ask(3)
        waiting += [q for q in questions if q.wants == "scores"]
        now = [q for q in questions if q.wants != "scores"] or ([waiting.pop(0)] if waiting and not questions else [])
        for question in now:
            late.append(reply(question))
            slow.tell([late[-1]])
    assert np.array_equal(points(late, "gradient"), points(prompt, "gradient"))
    assert np.array_equal(np.sort(points(late), axis=0), np.sort(points(prompt), axis=0))


def test_the_best_anchor_is_where_a_walk_starts_if_asked() -> None:
    driver = make("supervised", unit_box(2, 2), start="best")
    for value, loss in ((0.1, 3.0), (0.6, 1.0), (0.9, 2.0)):
        question = Question(FOREIGN, np.full(4, value), stage=f"{ANCHOR}{value}")
        driver.tell([Outcome(question, np.array([loss]), np.zeros(1))])
    fill = Question(FOREIGN, np.full(4, 0.2), stage="fill")  # how many of these come depends on the workers
    driver.tell([Outcome(fill, np.zeros(1), np.zeros(1))])
    assert (driver.ask(1)[0].point == 0.6).all()


@pytest.mark.parametrize("failure", ["nonfinite: the loss is nan", "error: KeyError: 'x'"])
def test_a_first_gradient_that_fails_ends_it_with_the_reason(failure: str) -> None:
    driver = make("adamerging", unit_box(2, 2))
    _, gradient = driver.ask(2)
    with pytest.raises(DriverError, match="adamerging cannot start") as caught:
        driver.tell([Outcome(gradient, np.zeros(0), np.zeros(0), failure=failure)])
    assert failure in str(caught.value) and caught.value.exit_code == 2


def test_later_failures_go_back_with_smaller_steps_and_three_in_a_row_end_it() -> None:
    driver = make("supervised", unit_box(2, 2), lr=0.1, every=100)
    reply = bowls(np.full((1, 4), 0.9))
    seen: list[np.ndarray] = []
    for _ in range(6):
        for question in driver.ask(4):
            failed = question.wants == "gradient" and len(seen) >= 3
            if question.wants == "gradient":
                seen.append(question.point)
            bad = Outcome(question, np.zeros(0), np.zeros(0), failure="nonfinite: NaN")
            driver.tell([bad if failed else reply(question)])
    assert len(seen) == 6 and np.array_equal(seen[4], seen[2])
    driver.ask(4)
    assert driver.done


def test_a_gradient_of_the_wrong_shape_is_refused() -> None:
    driver = make("supervised", unit_box(2, 2))
    _, gradient = driver.ask(2)
    with pytest.raises(DriverError, match=r"gradient of shape \(1, 4\), got \(2, 4\)"):
        driver.tell([Outcome(gradient, np.ones(2), np.zeros(2), np.ones((2, 4)))])


@pytest.mark.parametrize("name", ["frank_wolfe", "frank_wolfe_soft"])
def test_frank_wolfe_needs_base_and_experts_inside_the_bounds(name: str) -> None:
    with pytest.raises(DriverError, match=r"widen space\.bounds"):
        make(name, unit_box(2, 2, high=0.5))


def test_a_start_outside_the_bounds_is_refused() -> None:
    domain = Box(frozen(np.full(4, 0.4)), frozen(np.ones(4)), frozen(np.full(4, 0.5)), (2, 2))
    with pytest.raises(DriverError, match="'base' lies outside"):
        make("supervised", domain, start="base")


@pytest.mark.parametrize("rule", ["inner", "cosine"])
@pytest.mark.parametrize("scope", ["model", "group"])
def test_frank_wolfe_goes_towards_the_least_inner_product(rule: str, scope: str) -> None:
    driver = make("frank_wolfe", unit_box(2, 3), rule=rule, scope=scope, step=0.5, steps=2)
    start, question = driver.ask(2)
    assert (start.point == 0).all() and question.wants == ("cosines" if rule == "cosine" else "gradient")
    slope = np.array([[[0.0, -3.0, 1.0], [-1.0, 1.5, 0.0]]])  # sums over groups: -1, -1.5, 1
    driver.tell([Outcome(start, np.ones(1), np.zeros(1))])
    driver.tell([Outcome(question, np.ones(1), np.zeros(1), slope.reshape(1, 6))])
    wanted = {"model": [0, 0.5, 0, 0, 0.5, 0], "group": [0, 0.5, 0, 0.5, 0, 0]}[scope]  # gamma_0 = 0.5 * 2 / 2
    _, question = driver.ask(2)
    np.testing.assert_allclose(question.point, wanted)
    driver.tell([Outcome(question, np.ones(1), np.zeros(1), np.tile([0.0, 0.0, -1.0], 2)[np.newaxis])])
    gamma = 0.5 * 2 / 3
    np.testing.assert_allclose(driver.ask(1)[0].point, (1 - gamma) * np.array(wanted) + gamma * np.tile([0, 0, 1], 2))


def test_frank_wolfe_soft_never_enters_experts_that_do_not_help() -> None:
    targets = np.zeros((2, 3, 8))  # 3 groups, 8 experts; the tasks want experts 1 and 4
    targets[0, :, 1] = targets[1, :, 4] = 0.6
    targets[:, :, [0, 2, 3, 5, 6, 7]] = -0.2
    driver = make("frank_wolfe_soft", unit_box(3, 8, start=0.3), 2, lr=0.05, inner=60, every=20)
    told = walked(driver, bowls(targets.reshape(2, -1)))
    end = points(told)[-1].reshape(3, 8)
    assert (end[:, [0, 2, 3, 5, 6, 7]] == 0).all()
    np.testing.assert_allclose(end[:, [1, 4]], 0.3, atol=0.05)


def test_pieces_are_cut_where_a_layer_matters() -> None:
    layers = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 6.0, 2.0, 2.0, 2.0])  # importance 4 and 12
    assert cut(layers, weights, 4, 1.0).tolist() == [0, 0, 0, 0, 1, 2, 3, 3]
    assert cut(layers, weights, 2, 1.0).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(set(cut(layers, weights, 100, 1.0).tolist())) == 8
    assert cut(layers, np.zeros(8), 2, 1.0).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_expert_merging_pp_ties_layers_then_pieces() -> None:
    domain = unit_box(4, 2)  # two layers of two groups
    driver = make("expert_merging_pp", domain, steps=40, every=20, lr=0.1, pieces=8, stay=0.0)
    target = np.random.default_rng(0).uniform(0.1, 0.9, (1, 8))
    told = walked(driver, bowls(target))
    asked = points(told, "gradient").reshape(-1, 4, 2)
    assert sum(o.question.wants == "sizes" for o in told) == 1
    for first in asked[:20]:
        assert np.array_equal(first[0], first[1]) and np.array_equal(first[2], first[3])
    assert not np.array_equal(asked[-1][0], asked[-1][1])


@pytest.mark.parametrize("shape", [(5, 3), (4, 1), (3, 4)])
def test_the_slope_of_similarity_is_its_difference_quotient(shape: tuple[int, int]) -> None:
    c = np.random.default_rng(0).normal(size=shape)
    slope = similarity_slope(c)
    for i in np.ndindex(shape):
        ahead, behind = c.copy(), c.copy()
        ahead[i] += 1e-6
        behind[i] -= 1e-6
        assert slope[i] == pytest.approx((similarity(ahead) - similarity(behind)) / 2e-6, abs=1e-7)


def test_the_common_direction_descends_for_all_and_is_known_for_two() -> None:
    draw = np.random.default_rng(0)
    for tasks in (1, 2, 3, 6):
        rows = draw.normal(size=(tasks, 20))
        weights = common_weights(rows)
        assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
        direction = weights @ rows
        assert (rows @ direction >= direction @ direction * (1 - 1e-6)).all()
    a, b = np.array([2.0, 0.0]), np.array([0.0, 1.0])  # closed form: weight of a is b.(b - a) / |a - b|^2
    np.testing.assert_allclose(common_weights(np.array([a, b])), [0.2, 0.8], atol=1e-9)
    np.testing.assert_allclose(common_weights(np.zeros((2, 3))), [0.5, 0.5])


def test_mgda_lowers_every_loss_and_ends_on_the_front() -> None:
    targets = np.array([[0.2, 0.2, 0.5, 0.5], [0.8, 0.8, 0.5, 0.5]])
    driver = make("mgda", unit_box(2, 2, start=0.05), 2, lr=0.01, steps=400, every=10, patience=None)
    losses = np.array([o.losses for o in walked(driver, bowls(targets)) if o.question.wants == "scores"])
    assert (losses[-1] < losses[0]).all()
    end = np.sqrt(losses[-1])  # on the segment between the targets, distances add up to its length
    assert end.sum() == pytest.approx(np.linalg.norm(targets[0] - targets[1]), abs=0.02)


def test_a_path_traces_the_front_of_two_bowls_of_unlike_scale() -> None:
    targets = np.array([[0.2, 0.2, 0.5, 0.5], [0.8, 0.8, 0.5, 0.5]])
    driver = make("pareto", unit_box(2, 2), 2, lr=0.02, every=20, stops=4)
    told = walked(driver, bowls(targets, (1.0, 100.0)))
    losses = np.array([o.losses for o in told if o.question.wants == "scores"]) / [1.0, 100.0]
    front = Front(2)
    front.add(-1, np.array([0.0, 0.72]), anchor=True)
    front.add(-2, np.array([0.72, 0.0]), anchor=True)
    for number, found in enumerate(losses):
        front.add(number, found)
    assert np.linalg.norm(targets[0] - targets[1]) ** 2 == pytest.approx(0.72)
    exact = [np.array([t**2, (1 - t) ** 2]) * 0.72 for t in np.linspace(0, 1, 9)]
    bound = Front(2)
    bound.add(-1, np.array([0.0, 0.72]), anchor=True)
    bound.add(-2, np.array([0.72, 0.0]), anchor=True)
    for number, found in enumerate(exact):
        bound.add(number, found)
    assert front.hypervolume > 0.92 * bound.hypervolume  # the paths end at an emphasis of 0.9, short of the ends


@pytest.mark.parametrize(
    ("ends", "said"),
    [([[1.0]], "expected 2"), ([[1.0, -1.0]], "expected 2"), ([[0.0, 0.0]], "expected 2"), ([], "empty")],
)
def test_ends_of_a_path_that_do_not_fit_are_refused(ends: list[list[float]], said: str) -> None:
    driver = make("pareto", unit_box(2, 2), 2, ends=ends)
    with pytest.raises(DriverError, match=rf"driver\.ends: .*{said}"):
        walked(driver, bowls(np.zeros((2, 4))))


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("option", [{"lr": 0}, {"steps": 0}, {"every": 0}, {"lr": float("nan")}, {"batch": -1}])
def test_options_that_make_no_sense_are_refused(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        find(name).load().Options.model_validate(option)


def test_the_toy_answers_differentiate_their_own_losses() -> None:
    """The contract suite's answers are what they say: or the suite would test nothing."""
    domain = box()
    for objectives in (1, 3):
        question = Question(0, domain.start, "gradients")
        rows = answer(domain, question, objectives).gradient
        assert rows is not None
        for i in range(len(domain.low)):
            moved = [domain.start + sign * 1e-6 * np.eye(len(domain.low))[i] for sign in (1, -1)]
            ahead, behind = (answer(domain, Question(0, p), objectives).losses for p in moved)
            np.testing.assert_allclose(rows[:, i], (ahead - behind) / 2e-6, atol=1e-6)


def test_the_documented_defaults_are_those_of_the_code() -> None:
    text = (Path(__file__).parent.parent / "docs" / "gradients.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| default of"))
    common = [cell.strip("` ") for cell in head.split("|")[2:-2]]

    def said(value: object) -> str:
        return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    for name in WALKS:
        fields = find(name).load().Options.model_fields
        own = ", ".join(f"`{k}: {said(f.default)}`" for k, f in fields.items() if k not in common)
        cells = [f"`{name}`", *(f"`{said(fields[k].default)}`" if k in fields else "" for k in common), own]
        assert f"| {' | '.join(cells)} |" in text


def test_equal_anchors_start_the_same_walk_in_whatever_order_they_came() -> None:
    starts = []
    for values in ((0.1, 0.6), (0.6, 0.1)):
        driver = make("supervised", unit_box(2, 2), start="best")
        for value in values:
            question = Question(FOREIGN, np.full(4, value), stage=ANCHOR)
            driver.tell([Outcome(question, np.ones(1), np.zeros(1))])
        starts.append(driver.ask(1)[0].point)
    assert np.array_equal(*starts)


def test_however_much_importance_counts_every_layer_has_a_piece() -> None:
    found = cut(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 5.0, 5.0]), 4, 2000.0)
    assert len(set(found[:2])) == 1 and len(set(found[2:])) == 2
