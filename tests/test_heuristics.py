"""Do heuristics find what they say? The experts that help, weights by the formula, children between their parents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import worlds
from driver_rows import Box, frozen, sparse
from program import mergeopt
from quadratics import Toy, domain, made, scored, walked

from optimizer import Job, Run
from optimizer.driver import ANCHOR, FOREIGN, Driver, DriverError, Outcome, Question, exact
from optimizer.drivers import DRIVERS, find
from optimizer.drivers.kinship import kinship
from optimizer.drivers.natural_niches import slerp
from optimizer.drivers.shared.scale import Scale
from optimizer.record.front import Front
from optimizer.record.ledger import Ledger

SOUPS = ["greedy_soup", "metrics_weighted", "lm_cocktail", "kinship"]


def searched(
    driver: Driver,
    score: Callable[[np.ndarray], Any],
    count: int,
    workers: int = 1,
    related: np.ndarray | None = None,
) -> list[Outcome]:
    """The first `count` scores, the oldest first, of losses `score(point)`; a driver that has ended asks no more.

    `related`: what `grams` are, or else they cannot be had.
    """
    told: list[Outcome] = []
    waiting: list[Question] = []
    while len(told) < count:
        waiting += driver.ask(min(workers, count - len(told)) - len(waiting))
        if not waiting:
            assert driver.done
            break
        question = waiting.pop(0)
        if question.wants == "grams":
            failure = "broken" if related is None else None
            driver.tell([Outcome(question, np.zeros(0), np.zeros(0), related, failure)])
            continue
        losses = score(question.point)
        failed = "broken" if losses is None else None
        told.append(Outcome(question, np.atleast_1d(9.0 if losses is None else losses), np.zeros(1), failure=failed))
        driver.tell([told[-1]])
    return told


def experts_of(point: np.ndarray, count: int) -> np.ndarray:
    """The experts' weights, which are the same in all groups."""
    rows = point.reshape(-1, count)
    np.testing.assert_allclose(rows, np.tile(rows[0], (len(rows), 1)), atol=1e-12)
    return np.asarray(rows[0])


# the greedy soup


def test_the_soup_is_of_exactly_the_experts_that_help() -> None:
    # 0, 2 and 3 err each in a way of its own; 1, the second best, errs as the best does
    ingredients = np.array([[1.0, 0, 0], [1.01, 0, 0], [0, 1.02, 0], [0, 0, 1.03]])

    def score(point: np.ndarray) -> float:
        return float(((experts_of(point, 4) @ ingredients) ** 2).sum())

    told = searched(made("greedy_soup", domain(3, 4)), score, 100)
    values = [o.losses.item() for o in told]
    assert len(told) == 4 + 3
    best = experts_of(told[int(np.argmin(values))].question.point, 4)
    np.testing.assert_allclose(best, [1 / 3, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("seed", range(8))
def test_the_soup_is_never_worse_than_the_best_expert_and_its_pieces_ever_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ingredients, target = draw.normal(size=(6, 4)), draw.normal(size=4) / 4

    def score(point: np.ndarray) -> float:
        return float(((experts_of(point, 6) @ ingredients - target) ** 2).sum())

    told = searched(made("greedy_soup", domain(1, 6)), score, 100)
    alone, after = told[:6], told[6:]
    order = np.argsort([o.losses.item() for o in alone], kind="stable").tolist()
    soup, best = [order[0]], alone[order[0]].losses.item()
    for expert, outcome in zip(order[1:], after, strict=True):  # one question for each, in that order
        weights = np.zeros(6)
        weights[[*soup, expert]] = 1 / (len(soup) + 1)
        np.testing.assert_allclose(experts_of(outcome.question.point, 6), weights, atol=1e-12)
        if outcome.losses.item() < best:
            soup, best = [*soup, expert], outcome.losses.item()
    assert best <= min(o.losses.item() for o in alone)


def test_equal_experts_stay_out_of_the_soup_unless_they_are_asked_in() -> None:
    for equal, last in ((False, [0.5, 0, 0.5]), (True, [1 / 3, 1 / 3, 1 / 3])):
        told = searched(made("greedy_soup", domain(1, 3), equal=equal), lambda point: 1.0, 100)
        np.testing.assert_allclose(told[-1].question.point, last)


def test_several_objectives_are_weighed_in_units_of_the_anchors_range() -> None:
    # 2 is the best; which is the second depends on the unit of the second objective
    losses = {0: [0.1, 200.0], 1: [1.0, 100.0], 2: [0.0, 110.0]}

    def score(point: np.ndarray) -> list[float]:
        return losses[int(np.argmax(point))] if point.max() == 1 else [0.0, 105.0]

    for anchors, second in ((True, [0.5, 0, 0.5]), (False, [0, 0.5, 0.5])):
        driver = made("greedy_soup", domain(1, 3), 2)
        if anchors:
            for k, value in enumerate(([0.0, 0.0], [1.0, 1000.0])):
                point = np.full(3, 0.1 * k)
                driver.tell([Outcome(Question(FOREIGN, point, stage=ANCHOR), np.array(value), np.zeros(2))])
        told = searched(driver, score, 4)
        np.testing.assert_allclose(told[-1].question.point, second)


def test_an_objective_that_is_alike_but_for_rounding_decides_nothing() -> None:
    # the second objective says: 1 is the best, and 2 makes it better; by the first one they differ in the last digit
    losses = {0: [0.3, 1.0], 1: [0.1 + 0.2, 0.1], 2: [0.3, 0.5]}

    def score(point: np.ndarray) -> list[float]:
        return losses[int(np.argmax(point))] if point.max() == 1 else [0.3 + 1e-9, 0.0 if point[2] else 1.0]

    told = searched(made("greedy_soup", domain(1, 3), 2), score, 4)
    np.testing.assert_allclose(told[3].question.point, [0, 0.5, 0.5])


ALIKE = [
    [[0.3, 1.0], [0.1 + 0.2, 0.0], [0.3, 0.5]],
    [[-0.3, 1e6], [-0.1 - 0.2, 1e6 + 1e-9], [-0.3, 1e6]],
    [[0.0, 5.0], [0.0, 7.0]],
    [[1e-15, 2.0], [3e-15, 2.0]],
    [[4.0, 0.0]],
]


@pytest.mark.parametrize("known", ALIKE)
def test_drivers_count_in_the_units_that_the_record_counts_in(known: list[list[float]]) -> None:
    front = Front(2)
    for number, row in enumerate(known):
        front.add(number, np.array(row), anchor=True)
    rows = np.array(known)
    assert front.span is not None and (Scale.ranging(list(rows), 2).span == front.span).all()
    apart = np.ptp(rows, axis=0) > 1e-12 * np.abs(rows).max(axis=0)
    size = np.abs(rows).max(axis=0)
    np.testing.assert_allclose(front.span, np.where(apart, np.ptp(rows, axis=0), np.where(size > 0, size, 1.0)))


def test_the_soup_goes_on_without_an_expert_that_failed() -> None:
    told = searched(made("greedy_soup", domain(1, 3)), lambda p: None if p[1] == 1 else 1 - p[0] * p[2], 100)
    assert len(told) == 4
    np.testing.assert_allclose(told[-1].question.point, [0.5, 0, 0.5])
    assert len(searched(made("greedy_soup", domain(1, 3)), lambda point: None, 100)) == 3


# weights from scores


def test_weights_are_powers_of_losses_and_of_metrics() -> None:
    losses = np.array([1.0, 2.0, 4.0])
    for sign, expected in ((1.0, [4, 2, 1]), (-1.0, [1, 2, 4])):
        driver = made("metrics_weighted", domain(2, 3), exponents=[1.0, 2.0])
        told = searched(driver, lambda p, sign=sign: sign * (losses @ experts_of(p, 3)), 100)  # type: ignore[misc]
        one, two = (experts_of(o.question.point, 3) for o in told[3:])
        np.testing.assert_allclose(one, np.array(expected) / 7)
        np.testing.assert_allclose(two, np.array(expected) ** 2 / 21)


def test_weights_are_a_softmax_of_minus_the_losses() -> None:
    losses = np.array([[1.0, 700.0], [2.0, 701.0], [1.5, 702.0]])
    driver = made("lm_cocktail", domain(2, 3), 2, temperatures=[0.5, 5.0])
    told = searched(driver, lambda p: losses.T @ experts_of(p, 3), 100, workers=8)
    rows = []
    for t in (0.5, 5.0):
        weights = np.exp(-(losses - losses.min(axis=0)) / t)
        first, second = (weights / weights.sum(axis=0)).T
        rows += [(first + second) / 2, first, second]
    assert len(told) == 3 + 6
    np.testing.assert_allclose([experts_of(o.question.point, 3) for o in told[3:]], rows)


@pytest.mark.parametrize("name", ["metrics_weighted", "lm_cocktail"])
def test_all_weights_are_asked_at_once_and_failed_experts_have_none(name: str) -> None:
    driver = made(name, domain(1, 4), 2)
    first = driver.ask(100)
    assert len(first) == 4 and driver.ask(1) == [] and not driver.done
    for k, question in enumerate(first):
        driver.tell([Outcome(question, np.ones(2) + k, np.zeros(2), failure="broken" if k == 1 else None)])
    options = find(name).load().Options()
    sweep = next(v for v in options.model_dump().values() if isinstance(v, tuple))
    second = driver.ask(100)
    assert len(sweep) <= len({q.point.tobytes() for q in second}) == len(second) <= 3 * len(sweep)
    for question in second:
        assert question.point[1] == 0 and question.point.sum() == pytest.approx(1) and question.point[0] > 0.3
    driver.tell([Outcome(q, np.ones(2), np.zeros(2)) for q in second])
    assert driver.done


@pytest.mark.parametrize("losses", [[-1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [-0.9, 0.0, -0.3], [0.0, 1.0, 1e300]])
def test_scores_without_powers_have_weights_all_the_same(losses: list[float]) -> None:
    told = searched(made("metrics_weighted", domain(1, 3)), lambda p: losses[int(np.argmax(p))], 100)
    for outcome in told[3:]:
        weights = outcome.question.point
        assert (
            weights.sum() == pytest.approx(1) and (np.diff(weights[np.argsort(losses, kind="stable")]) <= 1e-12).all()
        )


def test_the_base_is_in_the_cocktail_where_it_is_asked_in() -> None:
    told = searched(made("lm_cocktail", domain(1, 2), base=True, temperatures=[1.0]), lambda p: 1.0, 100)
    assert [o.question.stage for o in told][2] == "lm_cocktail: model base"
    np.testing.assert_allclose(told[-1].question.point, [1 / 3, 1 / 3])
    away = Box(frozen([-1.0, 0.1]), frozen([1.0, 1.0]), frozen([0.3, 0.3]), (1, 2))
    with pytest.raises(DriverError, match="each expert alone, at coefficient 1; widen"):
        made("lm_cocktail", away, base=True)


# all that go by rounds


@pytest.mark.parametrize("name", SOUPS)
def test_what_was_an_anchor_is_not_asked_again(name: str) -> None:
    where = domain(2, 3)
    driver, vertices = made(name, where), where.vertices
    assert vertices is not None
    for k, point in enumerate(vertices[[2, 0]]):
        driver.tell([Outcome(Question(FOREIGN, point, stage=ANCHOR), np.array([1.0 + k]), np.zeros(1))])
    told = searched(driver, lambda p: 1.5, 100)
    asked = {o.question.point.tobytes() for o in told}
    assert vertices[1].tobytes() in asked and not {vertices[0].tobytes(), vertices[2].tobytes()} & asked
    assert len(asked) == len(told)


@pytest.mark.parametrize("name", SOUPS)
def test_what_comes_next_does_not_depend_on_who_answered_first(name: str) -> None:
    toy = Toy(np.random.default_rng(0).uniform(0, 0.6, size=(2, 8)), grams=of_vectors(np.eye(4), 2))
    found = [
        scored(walked(made(name, domain(2, 4), 2), toy, workers, pick))
        for workers, pick in ((1, lambda w: 0), (3, lambda w: len(w) - 1), (20, lambda w: len(w) // 2))
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", [name for name, entry in DRIVERS.items() if entry.needs == "experts"])
def test_a_space_without_experts_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(DriverError, match=r"affine in the coefficients.*task_arithmetic"):
        made(name, sparse())
    with pytest.raises(DriverError, match=r"widen space\.bounds"):
        made(name, domain(high=0.8))


def test_a_record_of_another_search_is_refused() -> None:
    driver = made("greedy_soup", domain(1, 3))
    with pytest.raises(DriverError, match="recorded question 7 is not what greedy_soup asks"):
        driver.replay(1, [Question(7, np.full(3, 0.4))])


# kinship


def of_vectors(vectors: np.ndarray, groups: int = 1) -> np.ndarray:
    """What `grams` says of task vectors `(K, n)` that are cut in groups of like length, `(K + 2, groups * K)`."""
    parts = np.split(vectors, groups, axis=1)
    return np.hstack([np.vstack([p @ p.T, p.sum(axis=1), np.full(len(p), p.shape[1])]) for p in parts])


def test_kinship_is_what_numpy_says_of_the_averages_themselves() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(4, 30)) + 2
    for _ in range(5):
        a, b = draw.dirichlet(np.ones(4), size=2)
        x, y = a @ vectors, b @ vectors
        rows = of_vectors(vectors)
        found = {m: kinship(rows[:4], rows[4], 30, m)(a, b) for m in ("pearson", "cosine", "euclid")}
        assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert found["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert found["euclid"] == pytest.approx(-np.linalg.norm(x - y))
    assert kinship(np.zeros((2, 2)), np.zeros(2), 0, "pearson")(np.eye(2)[0], np.eye(2)[1]) == 0


def test_the_best_are_merged_and_the_least_related_helps_them_out() -> None:
    # 0, 1 and 2 are nearly one model, and their averages are no better; what they lack is in 3, the worst expert
    vectors = np.array([[1.0, 0.1, 0, 0], [1.0, -0.1, 0, 0], [1.0, 0, 0.1, 0], [-0.5, 0, 0, 1.3]])
    target = np.array([0.25, 0, 0, 0.6])

    def score(point: np.ndarray) -> float:
        return float(((experts_of(point, 4) @ vectors - target) ** 2).sum())

    best = {}
    for escape in (False, True):
        driver = made("kinship", domain(2, 4), best=2, escape=escape)
        told = searched(driver, score, 100, related=of_vectors(np.repeat(vectors, 2, axis=1), 2))
        assert driver.done
        best[escape] = min(told, key=lambda o: o.losses.item())
        if not escape:
            assert all(experts_of(o.question.point, 4)[3] == 0 for o in told[4:])
    assert best[True].losses.item() < 0.1 * best[False].losses.item()
    far = [o for o in searched(made("kinship", domain(1, 4), best=2), score, 100, related=of_vectors(vectors))]
    assert "least related" in far[5].question.stage and far[5].question.point[3] == 0.5


@pytest.mark.parametrize("metric", ["pearson", "cosine", "euclid"])
def test_without_signs_the_unrelated_is_less_related_than_the_opposite(metric: str) -> None:
    # 0 and 1 are the best; 2 opposes them, 3 has nothing to do with them; no mean, so that Pearson's is the cosine
    vectors = np.array([[1.0, -1, 0, 0], [1, -1, 0.1, -0.1], [-0.9, 0.9, 0.3, -0.3], [0, 0, 1, -1]]) / np.sqrt(2)

    def escaped(signed: bool) -> int:
        told = searched(
            made("kinship", domain(1, 4), best=2, metric=metric, signed=signed),
            lambda p: float(((experts_of(p, 4) - [0.6, 0.5, 0.1, 0.1]) ** 2).sum()),
            12,
            related=of_vectors(vectors),
        )
        (first,) = [o.question.point for o in told if o.question.stage == "kinship: generation 1, the least related"]
        return int(np.flatnonzero(experts_of(first, 4))[-1])

    assert escaped(True) == 2
    assert escaped(False) == (2 if metric == "euclid" else 3), "a distance knows no sign"


def test_without_kinship_the_best_are_merged_all_the_same() -> None:
    told = searched(made("kinship", domain(1, 3), best=2), lambda p: float(((p - [0.6, 0.4, 0]) ** 2).sum()), 100)
    np.testing.assert_allclose(told[3].question.point, [0.5, 0.5, 0])
    assert min(o.losses.item() for o in told) < 0.03
    assert len(searched(made("kinship", domain(1, 3)), lambda p: None, 100)) == 3


def test_a_generation_merges_no_pair_twice_and_asks_for_no_model_twice() -> None:
    draw = np.random.default_rng(3)
    vectors, target = draw.normal(size=(5, 8)), draw.normal(size=8) / 3
    told = searched(
        made("kinship", domain(1, 5), best=4),
        lambda p: float(((p @ vectors - target) ** 2).sum()),
        500,
        workers=4,
        related=of_vectors(vectors),
    )
    points = np.array([o.question.point for o in told])
    assert len(np.unique(points.round(9), axis=0)) == len(points) > 11
    assert points.sum(axis=1) == pytest.approx(np.ones(len(points)))


# M2N2


def test_children_lie_between_their_parents_on_either_side_of_a_split() -> None:
    driver = made("m2n2", domain(40, 2, start=0.0), 2, blend="linear")
    told = searched(driver, lambda p: [1 - p[::2].mean(), 1 - p[1::2].mean()], 3)  # experts 0 and 1, and the base
    assert sorted(o.question.point.sum() for o in told) == [0, 40, 40]
    for question in driver.ask(20):
        rows = question.point.reshape(40, 2)
        changes = np.flatnonzero(np.abs(np.diff(rows, axis=0)).sum(axis=1) > 1e-12)
        assert len(changes) <= 1 and exact(domain(40, 2), question.point)
        parts = rows[[0, -1]]
        if len(changes) and np.allclose(rows.sum(axis=1), 1):  # of the two experts: w, and behind the split 1 - w
            np.testing.assert_allclose(parts[0] + parts[1], 1)


def test_a_partner_is_strong_where_the_other_is_not() -> None:
    driver = made("m2n2", domain(1, 3, start=1.0), 2, blend="linear")
    table = {b"\x00": [0.0, 1.0], b"\x01": [1.0, 0.0], b"\x02": [0.05, 1.0], b"s": [1.0, 1.0]}

    def score(point: np.ndarray) -> list[float]:
        return table[b"s" if point.sum() > 1.5 else bytes([int(np.argmax(point))])]

    searched(driver, score, 4)
    found = [q.point for q in driver.ask(200)]
    # 0 and 2 can do the same, 1 the rest: nearly every child is of 1 and one of these
    assert np.mean([p[1] > 1e-9 for p in found]) > 0.95
    assert np.mean([p[0] > 1e-9 and p[2] > 1e-9 for p in found]) < 0.1


def test_what_many_can_do_is_shared_and_the_archive_keeps_who_is_alone_at_something() -> None:
    driver = made("m2n2", domain(1, 4, start=0.5), 3, archive=3)
    # 0, 1 and 2 are good at two objectives; 3 is at one alone, at which nobody else is
    table = [[0.0, 0.0, 1.0], [0.01, 0.01, 1.0], [0.02, 0.02, 1.0], [1.0, 1.0, 0.8]]
    searched(driver, lambda p: [1.0, 1.0, 1.0] if p.sum() > 1.5 else table[int(np.argmax(p))], 5)
    children = [q.point for q in driver.ask(60)]
    assert np.mean([p[3] > 1e-9 for p in children]) > 0.9


@pytest.mark.parametrize("blend", ["slerp", "linear"])
def test_niches_beat_the_best_expert_where_the_optimum_is_between_them(blend: str) -> None:
    optimum = np.repeat([[0.8, 0.1], [0.2, 0.7]], 4, axis=0).ravel()

    def score(point: np.ndarray) -> float:
        return float(((point - optimum) ** 2).mean())

    told = searched(made("m2n2", domain(8, 2, start=0.0), blend=blend), score, 120, workers=4)
    values = [o.losses.item() for o in told]
    assert min(values) < 0.25 * min(values[:3])


def test_slerp_is_of_one_length_between_vectors_of_one_length() -> None:
    a, b = np.array([3.0, 0, 0, 4.0]), np.array([0, 5.0, 0, 0])
    for w in (0.0, 0.3, 0.5, 1.0):
        assert np.linalg.norm(slerp(a, b, np.full(4, w))) == pytest.approx(5)
    np.testing.assert_allclose(slerp(a, b, np.full(4, 0.5)), (a + b) / np.sqrt(2))
    np.testing.assert_allclose(slerp(a, np.zeros(4), np.full(4, 0.25)), 0.75 * a)
    np.testing.assert_allclose(slerp(a, 2 * a, np.full(4, 0.5)), 1.5 * a)


# Evo-Merging


def test_noise_is_dropped_and_a_harmful_expert_subtracted() -> None:
    where = sparse(3, 2)
    optimum = np.array([0.6, -0.5, 0.2, 0.9])

    def score(point: np.ndarray) -> float:
        scales = experts_of(point[:6], 2)
        return float(((np.append(scales, point[6:8]) - optimum) ** 2).sum() + 0.3 * (point[8] != 2))

    told = searched(made("evo_merging", where), score, 240, workers=4)
    best = min(told, key=lambda o: o.losses.item()).question.point
    np.testing.assert_allclose(np.append(best[:2], best[6:8]), optimum, atol=0.1)
    assert best[8] == 2


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (domain(low=-1.0), "4 of 4 coefficients that may be negative, and 0 such numbers"),
        (Box(frozen(np.zeros(4)), frozen(np.ones(4)), frozen(np.full(4, 0.5)), (1, 2), ("real", "real")), "0 of 2"),
        (Box(frozen([-1.0] * 3), frozen(np.ones(3)), frozen(np.zeros(3)), (1, 2), ("real",)), "and 1 such"),
    ],
    ids=["no options", "no signs", "one for all"],
)
def test_a_space_without_sparsities_or_signs_is_refused(where: Box, found: str) -> None:
    with pytest.raises(DriverError, match=rf"for each of the 2 experts.*{found}.*density: \{{low"):
        made("evo_merging", where)


# what is told


def test_the_documented_defaults_are_those_of_the_code() -> None:
    text = (Path(__file__).parent.parent / "docs" / "heuristics.md").read_text()

    def told(value: object) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(told(one) for one in value)}]"
        if value is None or isinstance(value, bool):
            return json.dumps(value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    for name in [*SOUPS, "m2n2", "evo_merging"]:
        fields = find(name).load().Options.model_fields
        assert f"| `{name}` | {', '.join(f'`{k}: {told(f.default)}`' for k, f in fields.items())} |" in text
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | ") and "arxiv.org" in line)
        assert row.endswith(f" | {', '.join(f'`{k}`' for k in fields)} |")


@pytest.mark.parametrize(
    ("name", "text"),
    [("greedy_soup", "each expert alone is a point; ends by itself"), ("evo_merging", "may be negative")],
)
def test_users_are_told_what_a_driver_needs(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mergeopt("drivers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert text in lines[next(i for i, line in enumerate(lines) if line.startswith(f"{name} ")) + 1]


def test_of_objectives_the_list_of_drivers_tells_only_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    assert mergeopt("drivers") == 0
    said = capsys.readouterr().out
    assert said.count("objective; several by weights") == 1 and "several objectives by itself" not in said
    assert said.endswith("which of them for what: docs/choosing.md\n") and "\n\n\n" not in said
    assert not [line for line in said.splitlines() if line.isspace()]


# whole runs


def run(folder: Path, changes: dict[str, Any], evaluations: int) -> Run:
    job = Job.load(worlds.classification(folder, evaluations))
    pico.expert(folder / "experts" / "third", folder / "base", 3, labels=2)
    models = job.models.model_dump(mode="json")
    changes["models"] = models | {"experts": models["experts"] | {"third": "experts/third"}}
    found = Run.create(Job.parse(job.model_dump(mode="json") | changes, folder), folder / "runs")
    found.search()
    return found


@pytest.mark.parametrize("name", SOUPS)
def test_a_run_averages_real_models_and_ends(name: str, tmp_path: Path) -> None:
    results = run(tmp_path, {"driver": {"name": name}}, 60).results()
    stages = [c.stage for c in results.candidates.values()]
    assert results.done and not any(c.failure for c in results.candidates.values())
    assert any(stage.startswith(f"{name}: ") for stage in stages)
    # experts were anchors, and are asked once
    for candidate in results.candidates.values():
        if candidate.stage.startswith(f"{name}: "):
            assert "expert " not in candidate.stage and "model " not in candidate.stage


def test_kinship_of_real_models_is_found_once_and_recorded(tmp_path: Path) -> None:
    made = run(tmp_path, {"driver": {"name": "kinship", "metric": "cosine"}, "space": {"granularity": "layer"}}, 60)
    assert any("least related" in c.stage for c in made.results().candidates.values())
    ledger = Ledger.open(made.folder / "ledger.db", readonly=True)
    (question,), (answer,) = ledger.questions("train"), ledger.answers("train")
    ledger.close()
    assert question.wants == "grams" and answer.gradient is not None and made.results().done
    pool = made.open_problem().pool
    products = answer.gradient[:3].reshape(3, -1, 3).sum(axis=1)
    moved = [
        np.concatenate([(e.tensor(t.name) - pool.base.tensor(t.name)).double().numpy().ravel() for t in pool.merged])
        for e in pool.experts.values()
    ]
    np.testing.assert_allclose(products, np.inner(moved, moved), rtol=1e-4)
    made.search()  # what is recorded is replayed, and nothing asked again
    assert made.results().gradients == 1


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("m2n2", {"granularity": "layer"}),
        ("m2n2", {"granularity": "layer", "simplex": True}),
        (
            "evo_merging",
            {
                "method": "dare_linear",
                "granularity": "layer",
                "bounds": [-1, 1],
                "options": {"density": {"low": 0.1, "high": 1, "per": "expert"}},
            },
        ),
    ],
    ids=["m2n2", "m2n2 in a simplex", "evo_merging"],
)
def test_a_run_evolves_real_models_to_its_budget(name: str, space: dict[str, Any], tmp_path: Path) -> None:
    results = run(tmp_path, {"driver": {"name": name}, "space": space}, 40).results()
    stages = [c.stage for c in results.candidates.values()]
    assert len(stages) >= 40 and f"{name}: child" in stages
    assert not any(c.failure for c in results.candidates.values())
