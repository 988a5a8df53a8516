"""Is a walk the one that torch would take through the graph, and is all asked that should be, and no more?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from driver_rows import Box, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import Array, Toy, domain, made, scored, stepped, walked

from optimizer.driver import ANCHOR, FOREIGN, DriverError, Items, Outcome, Question
from optimizer.drivers import DRIVERS
from optimizer.drivers.dam import similarity
from optimizer.drivers.expert_merging import cut

GRADIENT = [name for name, entry in DRIVERS.items() if entry.loss]


# through the graph


def in_graph(a: torch.Tensor, bounds: str, where: Box) -> torch.Tensor:
    """The coefficients of latent ones, as a graph would have them."""
    low, high = torch.from_numpy(np.array(where.low)), torch.from_numpy(np.array(where.high))
    if bounds == "sigmoid":
        return low + (high - low) * torch.sigmoid(a)
    return torch.clamp(a, low, high)


def alike(c: torch.Tensor) -> torch.Tensor:
    """Mean cosine of three experts' coefficients in two groups."""
    a, b, d = c.reshape(2, 3).T
    cosine = torch.nn.functional.cosine_similarity
    return (cosine(a, b, 0) + cosine(b, d, 0) + cosine(d, a, 0)) / 3


PENALTIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "adamerging": lambda c: torch.zeros(()),
    "supervised": lambda c: torch.zeros(()),
    "expert_merging": lambda c: 0.7 * (c - 0.3).abs().sum() / 2,  # over groups
    "dam": lambda c: 0.5 * alike(c),
}
WEIGHTS = {"expert_merging": {"stay": 0.7}, "dam": {"similarity": 0.5, "start": "space"}}


@pytest.mark.parametrize("bounds", ["clamp", "project", "sigmoid"])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_walk_is_that_of_torchs_adam_through_the_graph(name: str, bounds: str) -> None:
    where = domain(2, 3, high=0.8)
    toy = Toy(np.random.default_rng(1).uniform(-1, 2, size=(3, 6)))  # optima inside, and beyond either bound
    driver = made(name, where, 3, lr=0.03, steps=80, every=100, patience=None, bounds=bounds, **WEIGHTS.get(name, {}))
    ours = stepped(walked(driver, toy))
    a = torch.full((6,), 0.3, dtype=torch.float64)
    if bounds == "sigmoid":
        a = torch.logit(a / 0.8)
    a.requires_grad_()
    adam = torch.optim.Adam([a], lr=0.03)
    targets = torch.from_numpy(toy.targets)
    for point in ours:
        c = in_graph(a, bounds, where)
        assert np.abs(point - c.detach().numpy()).max() < 1e-9
        adam.zero_grad()
        (((c - targets) ** 2).sum() / 6 + PENALTIES[name](c)).backward()  # mean over the tasks
        adam.step()
        if bounds == "project":
            a.data.clamp_(0, 0.8)


def test_a_coefficient_whose_bounds_meet_stays() -> None:
    where = replace(domain(), high=frozen([1.0, 0.3, 1.0, 1.0]), low=frozen([0.0, 0.3, 0.0, 0.0]))
    for bounds in ("clamp", "project", "sigmoid"):
        points = stepped(walked(made("supervised", where, steps=5, bounds=bounds), Toy(np.full((1, 4), 0.9))))
        assert (points[:, 1] == 0.3).all() and (points[-1, [0, 2, 3]] > 0.3).all()


# the loop


def test_gradients_are_asked_on_successive_minibatches_and_scores_on_other_items() -> None:
    told = walked(made("adamerging", domain(), steps=6, every=4, batch=16), Toy(np.ones((1, 4))), workers=2)
    gradients = [o.question for o in told if o.question.wants == "gradient"]
    assert [q.items for q in gradients] == [Items("train", 16, draw) for draw in range(6)]
    assert gradients[3].stage == "adamerging step 3"
    scores = sorted((o.question for o in told if o.question.wants == "scores"), key=lambda q: q.number)
    assert [q.stage for q in scores] == ["adamerging: start", "adamerging after 4 steps", "adamerging after 6 steps"]
    assert {q.items for q in scores} == {Items()}


def overfitting(question: Question, limit: float = 0.6) -> Outcome:
    """Gradients lead to 1, the scores are best at `limit`."""
    toy = Toy(np.full((1, 4), 1.0 if question.wants == "gradient" else limit))
    return toy.answer(question)


ORDERS: dict[str, tuple[int, Callable[[Sequence[Question]], int]]] = {
    "one worker": (1, lambda waiting: 0),
    "gradients first": (4, lambda waiting: min(range(len(waiting)), key=lambda i: waiting[i].wants == "scores")),
    "scores first": (4, lambda waiting: min(range(len(waiting)), key=lambda i: waiting[i].wants != "scores")),
    "newest first": (3, lambda waiting: len(waiting) - 1),
}


def test_it_stops_where_unseen_items_get_no_better_whatever_the_order_of_answers() -> None:
    found = []
    for workers, pick in ORDERS.values():
        driver = made("supervised", domain(), lr=0.02, steps=200, every=5, patience=3)
        toy = Toy(np.ones((1, 4)))
        toy.answer = overfitting  # type: ignore[method-assign]
        told = walked(driver, toy, workers, pick)
        found.append((stepped(told), scored(told)))
    for steps, scores in found[1:]:
        assert np.array_equal(steps, found[0][0]) and np.array_equal(scores, found[0][1])
    scores = found[0][1][:, 0]
    best = int(np.abs(scores - 0.6).argmin())
    assert best > 0 and 4 <= len(scores) - best <= 5  # patience, and the score that was on its way
    assert len(found[0][0]) == 5 * (len(scores) - 1) < 100


def test_patience_null_goes_to_the_last_step() -> None:
    toy = Toy(np.ones((1, 4)))
    toy.answer = overfitting  # type: ignore[method-assign]
    assert len(stepped(walked(made("supervised", domain(), lr=0.02, steps=120, patience=None), toy))) == 120


def test_a_score_may_be_on_its_way_beside_a_gradient_but_never_two_gradients() -> None:
    driver, toy = made("supervised", domain(), steps=20, every=2), Toy(np.ones((1, 4)))
    start, first = driver.ask(5)
    assert (start.wants, first.wants) == ("scores", "gradient") and driver.ask(5) == []
    driver.tell([toy.answer(first)])
    (second,) = driver.ask(5)
    driver.tell([toy.answer(second)])
    (after,) = driver.ask(5)
    assert after.wants == "scores" and driver.ask(5) == [], "the score of the start is awaited"
    driver.tell([toy.answer(start)])
    assert [q.wants for q in driver.ask(5)] == ["gradient"]


def test_the_range_of_the_anchors_is_the_unit_of_each_objective() -> None:
    """One objective gets a thousandth better, in units of a range of a hundredth; the other a tenth worse, of 100."""

    def count(anchors: Sequence[Sequence[float]]) -> int:
        driver = made("supervised", domain(), 2, steps=100, every=1, patience=2)
        for losses in anchors:
            driver.tell([Outcome(Question(FOREIGN, domain().start, stage=ANCHOR), np.array(losses), np.zeros(2))])
        asked = 0
        while questions := driver.ask(1):
            asked += questions[0].wants == "gradient"
            number = int(questions[0].stage.split()[2]) if "after" in questions[0].stage else 0
            losses = np.array([1 - 1e-3 * number, 1 + 0.1 * number])
            driver.tell([Outcome(questions[0], losses, np.zeros(2), np.ones((1, 4)))])
        return asked

    assert count([]) == count([[1.0, 1.0]]) == 3
    assert count([[0.5, 0.0], [0.51, 100.0]]) == 100


def test_the_best_anchor_inside_the_bounds_is_the_start_where_that_is_asked() -> None:
    driver = made("supervised", domain(), 2, start="best")
    for value, losses in ((0.1, [1.0, 0.0]), (0.2, [0.2, 20.0]), (0.4, [0.0, 100.0]), (1.5, [0.0, 0.0])):
        driver.tell([Outcome(Question(FOREIGN, np.full(4, value), stage=ANCHOR), np.array(losses), np.zeros(2))])
    assert driver.ask(1)[0].point == pytest.approx(np.full(4, 0.2))


@pytest.mark.parametrize(("start", "value"), [("space", 0.3), ("base", 0.0), ("average", 0.5)])
def test_starts(start: str, value: float) -> None:
    assert made("supervised", domain(), start=start).ask(1)[0].point == pytest.approx(np.full(4, value))


# failures


def test_a_later_failure_goes_back_to_the_last_good_point_with_half_the_steps() -> None:
    toy = Toy(np.full((1, 4), 5.0), fails=lambda q: "nonfinite: inf" if q.items.draw == 6 else None)
    points = stepped(walked(made("supervised", domain(), lr=0.02, steps=10, every=50), toy))[:, 0]
    assert points[:7] == pytest.approx(0.3 + 0.02 * np.arange(7), abs=1e-3)
    assert points[7:] == pytest.approx([0.4, 0.41, 0.42, 0.43], abs=1e-3)  # ten updates in all


def test_three_failures_in_a_row_end_the_walk_where_it_last_did_not_fail() -> None:
    toy = Toy(np.full((1, 4), 5.0), fails=lambda q: "timeout: 60 s" if q.items.draw >= 3 else None)
    told = walked(made("supervised", domain(), lr=0.02, every=50), toy)
    assert stepped(told)[:, 0] == pytest.approx([0.3, 0.32, 0.34, 0.36, 0.34, 0.34], abs=1e-3)
    assert scored(told)[-1] == pytest.approx(np.full(4, 0.34), abs=1e-3)


def test_failed_scores_count_as_worst() -> None:
    toy = Toy(np.full((1, 4), 5.0), fails=lambda q: "timeout: 60 s" if "after" in q.stage else None)
    assert (
        len(stepped(walked(made("supervised", domain(), every=2, patience=4), toy))) == 10
    )  # 4 scores, and one on its way


@pytest.mark.parametrize("bad", [np.full((1, 4), np.nan), np.ones((1, 3)), np.ones((2, 4)), None])
def test_a_gradient_that_is_none_is_refused(bad: Array | None) -> None:
    driver = made("supervised", domain())
    _, question = driver.ask(2)
    with pytest.raises(DriverError, match="expected"):
        driver.tell([Outcome(question, np.ones(1), np.zeros(1), bad)])


# Expert Merging


def test_expert_merging_stays_where_nothing_pulls() -> None:
    flat = Toy(np.zeros((1, 4)), curvatures=0.0)
    for start in (0.1, 0.3, 0.7):
        points = stepped(walked(made("expert_merging", domain(start=start), lr=0.1, steps=5), flat))
        assert np.abs(points - start).max() < 1e-9


def test_expert_merging_learns_one_coefficient_a_layer_then_one_a_piece_of_those_that_matter() -> None:
    where = domain(6, 2)  # three layers of two groups
    sizes = np.repeat([10.0, 10.0, 0.1, 0.1, 0.1, 0.1], 2)
    toy = Toy(np.linspace(0, 1, 12)[None], sizes=sizes)
    told = walked(made("expert_merging_pp", where, steps=61, stay=0, lr=0.05, pieces=4, patience=None), toy)
    wants = [o.question.wants for o in told if o.question.wants != "scores"]
    assert wants.count("sizes") == 1 and wants.index("sizes") == 30
    points = stepped(told).reshape(-1, 6, 2)
    first, last = points[:31], points[31:]
    assert np.array_equal(first[:, 0::2], first[:, 1::2]), "the groups of a layer move as one"
    assert last[0] == pytest.approx(first[-1], abs=1e-12), "the second half begins where the first ended"
    assert np.abs(last[-1, 0] - last[-1, 1]).min() > 0.01, "the layer that matters is cut"
    assert np.array_equal(last[:, 2::2], last[:, 3::2]), "the others are not"


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e6)), min_size=1, max_size=40), st.integers(1, 60),
    st.floats(0, 3),
)  # fmt: skip
def test_layers_are_cut_along_their_groups_in_no_more_pieces_than_their_share(
    groups: list[tuple[int, float]], total: int, kappa: float
) -> None:
    layers = np.unique([layer for layer, _ in groups], return_inverse=True)[1]
    weights = np.array([weight for _, weight in groups])
    pieces = cut(layers, weights, total, kappa)
    importance = np.bincount(layers, weights)
    shares = (importance / importance.sum()) ** kappa if importance.sum() > 0 else np.ones(len(importance))
    for layer in range(len(importance)):
        inside = pieces[layers == layer]
        assert (np.diff(inside) >= 0).all() and (np.diff(inside) <= 1).all(), "pieces are runs of groups"
        assert len(set(inside)) <= max(1, np.floor(total * shares[layer] / shares.sum() + 1e-9))
        assert not set(inside) & set(pieces[layers != layer])


def test_equal_groups_are_cut_in_equal_pieces() -> None:
    assert cut(np.zeros(6, dtype=np.int64), np.ones(6), 3, 1.0).tolist() == [0, 0, 1, 1, 2, 2]
    # importance 3 : 1, squared 9 : 1
    layers = np.repeat([0, 1], 10)
    weights = np.repeat([3.0, 1.0], 10)
    assert [len(set(cut(layers, weights, 10, kappa)[layers == 0])) for kappa in (0.0, 1.0, 2.0)] == [5, 7, 9]


# DAM


def test_dam_starts_at_the_average_and_keeps_experts_apart() -> None:
    where = domain(4, 2)
    flat = Toy(np.zeros((1, 8)), curvatures=0.0)
    assert made("dam", where).ask(1)[0].point == pytest.approx(np.full(8, 0.5))
    tilt = replace(where, start=frozen([0.5, 0.4, 0.5, 0.5, 0.5, 0.6, 0.5, 0.5]))
    told = walked(made("dam", tilt, start="space", lr=0.01, steps=50, every=50, patience=None), flat)
    before, after = (similarity(point.reshape(4, 2)) for point in scored(told)[[0, -1]])
    assert after < before - 0.05


# Frank-Wolfe


def test_frank_wolfe_reaches_the_best_average_of_experts_and_never_picks_an_irrelevant_one() -> None:
    """Three tasks, of which each wants another expert; two more experts lie orthogonal to all of that."""
    where = domain(3, 5)
    target = np.tile([1 / 3, 1 / 3, 1 / 3, 0.0, 0.0], 3)
    for scope in ("model", "group"):
        told = walked(made("frank_wolfe", where, scope=scope, steps=200), Toy(target[None]))
        points = scored(told).reshape(-1, 3, 5)
        assert (points[:, :, 3:] == 0).all()
        assert np.abs(points[-1].ravel() - target).max() < 0.02
        assert (points >= 0).all() and (points.sum(axis=2) <= 1 + 1e-12).all(), "inside the hull of base and experts"


@pytest.mark.parametrize("bounds", ["clamp", "project", "sigmoid"])
def test_soft_frank_wolfe_adds_each_tasks_best_expert_and_learns_the_chosen_ones_alone(bounds: str) -> None:
    where = domain(2, 4)
    tasks = np.array([[0.5, 0.0, 0.2, -0.5] * 2, [0.0, 0.6, 0.3, -0.5] * 2])
    driver = made("frank_wolfe_soft", where, 2, rounds=9, inner=5, lr=0.05, patience=None, bounds=bounds)
    told = walked(driver, Toy(tasks))
    wants = [o.question.wants for o in told if o.question.wants != "scores"]
    assert wants == [*(["gradients"] + ["gradient"] * 5) * 2, "gradients"], "ends when nobody left is of use"
    batches = [o.question.items.batch for o in told if o.question.wants != "scores"]
    assert batches == [*([0] + [16] * 5) * 2, 0], "the oracle sees every training item, so that noise lets nobody in"
    points = stepped(told).reshape(-1, 2, 4)
    assert (points[0] == 0).all()
    assert points[1] == pytest.approx(np.array([[0.1, 0.1, 0, 0]] * 2)), "the first of task 0, the second of task 1"
    assert (points[1:7, :, 2:] == 0).all() and (points[2:7, :, :2] > 0.1).all()
    assert points[7, :, 2:] == pytest.approx(np.array([[0.1, 0.0]] * 2)), "then the third, and never the last"
    assert (points[:, :, 3] == 0).all()
    assert points[7, :, :2] == pytest.approx(points[6, :, :2], abs=0.2)


def test_patience_ends_a_round_of_soft_frank_wolfe_and_not_the_walk() -> None:
    """Scores that never get better end the first round early; the oracle is asked again, and finds another expert."""
    toy = Toy(np.array([[0.5, 0.4] * 2]))

    def reply(question: Question) -> Outcome:
        found = toy.answer(question)
        return replace(found, losses=np.ones(1)) if question.wants == "scores" else found

    driver = made("frank_wolfe_soft", domain(), inner=500, every=5, patience=2, lr=0.01)
    told: list[Outcome] = []
    while not driver.done:
        for question in driver.ask(1):
            told.append(reply(question))
            driver.tell([told[-1]])
    asked = [o.question.wants for o in told if o.question.wants != "scores"]
    assert asked.count("gradients") == 2 and asked.count("gradient") < 40
    assert (told[-1].question.point > 0).all(), "both experts are in"


def test_a_failure_right_after_a_turn_goes_back_to_where_a_gradient_was_had() -> None:
    tasks = np.array([[0.5, 0.4] * 2])
    seen: list[np.ndarray] = []
    driver = made("frank_wolfe_soft", domain(), rounds=1, inner=50, every=100, lr=0.01)

    def fails(question: Question) -> str | None:
        return "nonfinite: NaN" if question.wants == "gradient" and question.point[0] >= 0.1 else None

    toy = Toy(tasks, fails=fails)
    for _ in range(4):
        for question in driver.ask(1):
            seen.append(question.point)
            driver.tell([toy.answer(question)])
    assert seen[2][0] == pytest.approx(0.1), "the first expert enters, and fails there"
    assert (seen[3] == 0).all(), "back at the base, with the expert still free to move"


def test_frank_wolfe_stays_where_no_expert_is_better() -> None:
    told = walked(made("frank_wolfe", domain(), steps=3), Toy(np.full((1, 4), -0.5)))
    assert (stepped(told) == 0).all()


def test_soft_frank_wolfe_ends_after_its_rounds() -> None:
    driver = made("frank_wolfe_soft", domain(2, 6), rounds=2, inner=3)
    told = walked(driver, Toy(np.linspace(0.1, 0.9, 12)[None]))
    assert len(stepped(told)) == 8 and (scored(told)[-1] > 0).sum() == 4


# several losses at once


def test_mgda_stops_at_a_stationary_point() -> None:
    where = replace(domain(1, 2), start=frozen([0.5, 0.5]))
    told = walked(made("mgda", where, 2, patience=None), Toy(np.array([[0.2, 0.5], [0.8, 0.5]])))
    assert len(stepped(told)) == 1


FRONT = Toy(np.array([[0.2, 0.2, 0.5, 0.4], [0.8, 0.6, 0.1, 0.4]]), floor=0.1)


def test_the_path_does_not_mind_the_scale_of_a_loss() -> None:
    loud = Toy(FRONT.targets, np.array([[1.0], [8.0]]))
    ends = [scored(walked(made("pareto", domain(), 2), toy)) for toy in (replace(FRONT, floor=0.0), loud)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


def test_each_path_begins_at_the_end_of_the_first_walk_and_leads_to_its_preference() -> None:
    driver = made("pareto", domain(), 2, lr=0.03, first=8, stops=4, every=20, ends=[[3, 0], [0, 0.5]])
    told = walked(driver, replace(FRONT, floor=0.0))
    steps, ends = stepped(told), scored(told)
    assert np.array_equal(steps[160], steps[160 + 80]), "both paths leave from one point"
    for end, target in zip((ends[-5], ends[-1]), FRONT.targets, strict=True):
        assert np.linalg.norm(end - target) < 0.25 * np.linalg.norm(steps[160] - target)
