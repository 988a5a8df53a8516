"""Is a candidate's mean over all items told from some of them, and is it as far off as is said? Every estimator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fidelity as benchmark
from benchmarks.simulated.answers import ANSWERS, Answers
from optimizer.fidelity import CHOICES, ESTIMATORS, Estimate, FidelityError
from optimizer.fidelity.ability import free
from optimizer.fidelity.latent import fitted

ITEMS, SEEDS = 300, 5
KINDS = ("irt", "right", "right/search", "loss", "loss/search")  # drawn from the model, and of merged networks
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@cache
def answers(kind: str, seed: int) -> Answers:
    return ANSWERS[kind](60, ITEMS, seed)


def errors(name: str, kind: str, known: int, count: int, draws: int = 4) -> tuple[Array, Array, Array]:
    """Errors of an estimator, what it said of them, and the sample mean's, for candidates that came after `known`."""
    found = []
    for seed in range(SEEDS):
        table = answers(kind, seed)
        estimator = ESTIMATORS[name](table.known[:known], table.experts)
        stream = np.random.default_rng(seed)
        for _ in range(draws):
            items = stream.choice(ITEMS, count, replace=False)
            for row in table.known[known : known + 12]:
                said = estimator.estimate(items, row[items])
                found.append((said.value - row.mean(), said.stderr, row[items].mean() - row.mean()))
    off, stated, sampled = np.array(found).T
    return off, stated, sampled


def rms(off: Array) -> float:
    return float(np.sqrt(np.mean(off**2)))


# --- what every row of the table owes


@pytest.fixture(params=list(ESTIMATORS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["right", "loss"])
def table(request: pytest.FixtureRequest) -> Answers:
    return answers(request.param, 0)


def test_a_row_says_what_it_is_in_a_sentence(name: str) -> None:
    assert len(ESTIMATORS[name].summary) > 20 and "\n" not in ESTIMATORS[name].summary


def test_all_items_seen_is_exact_whatever_the_weights(name: str, table: Answers) -> None:
    row = table.known[30]
    estimator = ESTIMATORS[name](table.known[:20], table.experts)
    said = estimator.estimate(np.arange(ITEMS), row, np.arange(ITEMS) + 1.0)
    assert said == Estimate(pytest.approx(row.mean(), rel=1e-12), 0.0)


def test_the_same_is_said_again_in_any_order_and_whatever_was_asked_between(name: str, table: Answers) -> None:
    row, stream = table.known[30], np.random.default_rng(1)
    items = stream.choice(ITEMS, 40, replace=False)
    weights = stream.random(40)
    estimator = ESTIMATORS[name](table.known[:20], table.experts)
    said = estimator.estimate(items, row[items], weights)
    for _ in range(10):
        others = stream.choice(ITEMS, 25, replace=False)
        estimator.estimate(others, table.known[31][others])
    order = stream.permutation(40)
    assert estimator.estimate(items[order], row[items[order]], weights[order]) == said
    assert ESTIMATORS[name](table.known[:20].copy(), table.experts).estimate(items, row[items], weights) == said


def test_renumbered_items_change_nothing(name: str, table: Answers) -> None:
    order = np.random.default_rng(2).permutation(ITEMS)  # new item j is the old order[j]
    items, row = np.arange(0, ITEMS, 9), table.known[30]
    said = ESTIMATORS[name](table.known[:20], table.experts).estimate(items, row[items])
    places = np.argsort(order)[items]
    again = ESTIMATORS[name](table.known[:20, order], table.experts).estimate(places, row[items])
    assert again.value == pytest.approx(said.value, abs=1e-6) and again.stderr == pytest.approx(said.stderr, rel=1e-4)


def test_better_on_every_item_is_told_to_be_better(name: str) -> None:
    estimator = ESTIMATORS[name](answers("right", 0).known[:20], (0, 1, 2))
    for count in (3, 30, 150):
        items = np.random.default_rng(count).choice(ITEMS, count, replace=False)
        all_right, all_wrong = (estimator.estimate(items, np.full(count, right)) for right in (1.0, 0.0))
        assert all_right.value > all_wrong.value


def test_values_stay_within_what_unseen_items_can_make_of_them(name: str) -> None:
    table = answers("right", 1)
    estimator = ESTIMATORS[name](table.known[:20], table.experts)
    for right in (0.0, 1.0):
        said = estimator.estimate(np.arange(280), np.full(280, right))
        low = 280 * right / ITEMS
        assert low <= said.value <= low + 20 / ITEMS and said.stderr <= 20 / ITEMS


def test_more_items_leave_less_doubt(name: str, table: Answers) -> None:
    order = np.random.default_rng(3).permutation(ITEMS)
    estimator = ESTIMATORS[name](table.known[:30], table.experts)
    stated = [
        np.mean([estimator.estimate(order[:n], row[order[:n]]).stderr for row in table.known[30:50]])
        for n in (5, 100, 290, ITEMS)
    ]
    assert stated == sorted(stated, reverse=True) and stated[-1] == 0


def test_units_of_losses_make_no_difference(name: str) -> None:
    table = answers("loss", 0)
    items, row = np.arange(0, ITEMS, 7), table.known[30]
    said = ESTIMATORS[name](table.known[:20], table.experts).estimate(items, row[items])
    scaled = ESTIMATORS[name](5 + 1e3 * table.known[:20], table.experts).estimate(items, 5 + 1e3 * row[items])
    assert scaled.value == pytest.approx(5 + 1e3 * said.value, rel=1e-6)
    assert scaled.stderr == pytest.approx(1e3 * said.stderr, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("known", "count"), [(10, 20), (40, 60)])
def test_what_is_stated_holds_for_95_of_100_candidates(name: str, kind: str, known: int, count: int) -> None:
    off, stated, sampled = errors(name, kind, known, count)
    # candidates share their items, 20 sets in all, so that the share itself has a standard error of some 4 %
    assert (np.abs(off) <= 1.96 * stated).mean() >= 0.86
    assert rms(stated) < 4 * rms(sampled)  # said by being wide, it would be no news


# --- what is gained


@pytest.mark.parametrize(
    ("name", "kind", "most"),
    [
        ("irt", "irt", 0.85),
        ("gp_irt", "irt", 0.85),
        ("mp_irt", "irt", 0.85),
        ("gmp_irt", "irt", 0.9),
        ("paired", "irt", 0.97),
        ("irt", "right", 0.55),
        ("gp_irt", "right", 0.55),
        ("mp_irt", "right", 0.55),
        ("paired", "right", 0.7),
        ("paired", "loss", 0.65),
        ("irt", "loss", 0.75),
        ("gp_irt", "loss", 0.75),
    ],
)
def test_errors_are_less_than_the_sample_mean_s(name: str, kind: str, most: float) -> None:
    off, _, sampled = errors(name, kind, known=20, count=30)
    assert rms(off) < most * rms(sampled)


@pytest.mark.parametrize("constant", [0.7, 2.5, -3.0, 1e6])
def test_a_metric_that_is_always_the_same_is_that(name: str, constant: float) -> None:
    said = ESTIMATORS[name](np.full((8, 200), constant), (0, 1)).estimate(np.arange(10), np.full(10, constant))
    assert said.value == pytest.approx(constant, rel=1e-6) and said.stderr < 0.05 * abs(constant)


def test_items_and_abilities_are_found_again_that_answers_were_drawn_from() -> None:
    stream = np.random.default_rng(0)
    slopes, hardness = stream.normal(1.2, 0.4, size=1500), stream.normal(size=1500)
    abilities = stream.normal(size=120)
    chances = 1 / (1 + np.exp(hardness - np.outer(abilities, slopes)))
    known = (stream.random(chances.shape) < chances).astype(np.float64)
    latent = fitted(known[:100], 2, True)
    found = latent.abilities[:, np.argmax(np.abs(latent.items.mean[:, :2]).mean(axis=0))]
    assert abs(np.corrcoef(found, abilities[:100])[0, 1]) > 0.98
    assert np.corrcoef(latent.items.mean[:, 2], -hardness)[0, 1] > 0.9
    held, _ = free(latent.items, known[100:])
    centre, spread = latent.items.predicted(held)
    told = 1 / (1 + np.exp(-centre / np.sqrt(1 + np.pi * spread / 8)))
    assert rms(told - chances[100:]) < 0.07


def test_items_learned_without_a_candidate_are_those_of_a_fit_without_it() -> None:
    known = answers("irt", 0).known[:12]
    latent = fitted(known, 1, True)
    copies = latent.without(np.arange(12))
    shared, apart = [], []
    for r in range(12):
        refit = fitted(np.delete(known, r, axis=0), 1, True).items.mean[
            :, 1
        ]  # intercepts, which have no sign to choose
        shared.append(rms(latent.items.mean[:, 1] - refit))
        apart.append(rms(copies.mean[r, :, 1] - refit))
    assert np.mean(apart) < 0.6 * np.mean(shared)


def test_leaving_a_known_candidate_out_of_the_regression_is_closed_in_form() -> None:
    """The factor rests on `-(Q d)_r / Q_rr`, which is what fitting without candidate r says of it."""
    known, items, ridge = answers("loss", 0).known[:8], np.arange(0, ITEMS, 10), 0.3
    sample = known[:, items] - known[:, items].mean(axis=1, keepdims=True)
    gaps = known.mean(axis=1) - known[:, items].mean(axis=1)
    inverse = np.linalg.inv(sample @ sample.T + ridge * (np.eye(8) + 1))
    others = sample[1:]
    beta = np.linalg.solve(others @ others.T + ridge * (np.eye(7) + 1), others @ sample[0] + ridge)
    assert beta @ gaps[1:] - gaps[0] == pytest.approx(-(inverse @ gaps)[0] / inverse[0, 0])


def test_the_sample_mean_has_the_error_of_a_draw_without_replacement() -> None:
    stream = np.random.default_rng(4)
    row = stream.normal(size=ITEMS)
    items = np.arange(150)
    said = ESTIMATORS["mean"](np.zeros((0, ITEMS))).estimate(items, row[items])
    expected = math.sqrt((1 - 150 / ITEMS) * row[items].var(ddof=1) / 150)
    assert said.value == pytest.approx(row[items].mean()) and said.stderr == pytest.approx(expected, rel=0.01)


# --- little, odd and wrong input


@pytest.mark.parametrize("known", [np.zeros((0, 30)), np.linspace(0, 1, 30)[None]])
def test_without_two_known_candidates_the_sample_mean_speaks_and_says_so(name: str, known: Array) -> None:
    items, values = np.arange(10), np.linspace(0.2, 0.7, 10)
    said = ESTIMATORS[name](known, range(len(known))).estimate(items, values)
    plain = ESTIMATORS["mean"](known).estimate(items, values)
    assert (said.value, said.stderr) == (plain.value, plain.stderr)
    assert plain.note == "" and ("the sample mean" in said.note or ESTIMATORS[name] is ESTIMATORS["mean"])


def test_a_mix_of_no_experts_is_any_ability_and_says_so() -> None:
    table = answers("right", 0)
    items = np.arange(0, ITEMS, 9)
    said = ESTIMATORS["mp_irt"](table.known[:20]).estimate(items, table.known[30][items])
    free_one = ESTIMATORS["irt"](table.known[:20]).estimate(items, table.known[30][items])
    assert said.value == free_one.value and "2 experts" in said.note


def test_a_candidate_unlike_all_others_is_its_own_sample() -> None:
    table = answers("loss", 0)
    items, row = np.arange(0, ITEMS, 9), table.known[30] + 1e6
    for row_name in ESTIMATORS:
        said = ESTIMATORS[row_name](table.known[:20], table.experts).estimate(items, row[items])
        assert abs(said.value - row.mean()) <= 1.96 * said.stderr + 1e-3


def test_a_broken_candidate_among_the_known_spoils_nothing(name: str) -> None:
    table = answers("loss", 0)
    items, row = np.arange(0, ITEMS, 9), table.known[30]
    said = ESTIMATORS[name]([*table.known[:20], np.full(ITEMS, 1e20)], table.experts).estimate(items, row[items])
    assert abs(said.value - row.mean()) < 5 * np.std(row) / math.sqrt(len(items))


ODD = {
    "all wrong": np.zeros((5, 30)),
    "all right": np.ones((5, 30)),
    "one value": np.full((5, 30), 3.7),
    "items alike": np.tile(np.linspace(0, 1, 5)[:, None], (1, 30)),
    "candidates alike": np.tile(np.linspace(0, 1, 30), (5, 1)),
    "answers alike": np.tile(np.arange(30) % 2.0, (5, 1)),
    "two candidates": np.random.default_rng(0).random((2, 30)),
    "huge": np.random.default_rng(0).random((6, 30)) * 1e30,
    "tiny": np.random.default_rng(0).random((6, 30)) * 1e-30,
    "an item": np.random.default_rng(0).random((6, 1)),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_results_have_finite_estimates_that_hold(name: str, odd: str) -> None:
    known = ODD[odd]
    estimator = ESTIMATORS[name](known, (0, 1))
    for count in {1, min(12, known.shape[1])}:
        items = np.random.default_rng(1).choice(known.shape[1], count, replace=False)
        said = estimator.estimate(items, known[-1, items])
        off = abs(said.value - known[-1].mean())
        assert math.isfinite(said.value) and math.isfinite(said.stderr)
        assert off <= 3 * 1.96 * said.stderr + 1e-9 * np.abs(known).max()


BAD: list[tuple[Callable[[Any], object], str]] = [
    (lambda e: e.estimate([0, 1], [0.5, math.nan]), r"values: expected finite numbers, got nan at \(1,\)"),
    (lambda e: e.estimate([], []), "items"),
    (lambda e: e.estimate([0.5], [1.0]), "whole numbers"),
    (lambda e: e.estimate([0, 30], [1.0, 1.0]), "expected 0 to 29, got 0 to 30"),
    (lambda e: e.estimate([3, 3], [1.0, 1.0]), "each once"),
    (lambda e: e.estimate([0, 1], [1.0]), "one an item"),
    (lambda e: e.estimate([0, 1], [1.0, 0.0], [1.0]), "weights"),
    (lambda e: e.estimate([0, 1], [1.0, 0.0], [1.0, -1.0]), "weights"),
    (lambda e: type(e)(np.full((3, 4), math.inf)), r"known results: expected finite numbers, got inf at \(0, 0\)"),
    (lambda e: type(e)(np.zeros(4)), r"expected \(candidates, items\)"),
    (lambda e: type(e)(np.zeros((3, 4)), (3,)), "rows of 0 to 2, got 3"),
]


@pytest.mark.parametrize(("ask", "said"), BAD)
def test_what_does_not_fit_is_refused(name: str, ask: Callable[[Any], object], said: str) -> None:
    with pytest.raises(FidelityError, match=said):
        ask(ESTIMATORS[name](np.arange(90.0).reshape(3, 30)))


# --- which items


@pytest.fixture(params=list(CHOICES))
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_shorter_choices_are_the_beginnings_of_longer_ones(known: int, count: int, seed: int, binary: bool) -> None:
    results = np.random.default_rng(seed).random((known, 40))
    results = results.round() if binary else results
    for choose in CHOICES.values():
        found, all_of_them = choose(results, count, seed), choose(results, 40, seed)
        assert sorted(all_of_them.items(40)) == list(range(40))
        assert (found.items(count) == all_of_them.items(count)).all()
        for chosen in (found, all_of_them):
            weights = chosen.weights(count)
            assert (weights > 0).all() and weights.sum() == pytest.approx(1)


def test_a_choice_is_its_seed_s_and_no_more_than_there_are(choice: str) -> None:
    known = answers("right", 0).known[:6]
    first, again = (CHOICES[choice](known, ITEMS, 7) for _ in range(2))
    assert (first.order == again.order).all()
    assert (CHOICES[choice](known, ITEMS, 8).order != first.order).any()
    for count in (0, ITEMS + 1):
        with pytest.raises(FidelityError, match=f"expected 1 to {ITEMS}, got {count}"):
            CHOICES[choice](known, count, 7)
        with pytest.raises(FidelityError, match=f"expected 1 to {ITEMS}, got {count}"):
            first.items(count)


@pytest.mark.parametrize(
    ("name", "kind", "most"), [("herding", "right", 0.85), ("herding", "loss", 0.7), ("clusters", "loss", 0.7)]
)
def test_items_that_stand_for_all_have_a_better_sample_mean_than_any(name: str, kind: str, most: float) -> None:
    off: dict[str, list[float]] = {name: [], "random": []}
    for seed in range(SEEDS):
        table = answers(kind, seed)
        for draw in range(10):
            for own in off:
                chosen = CHOICES[own](table.known[:20], 30, 10 * seed + draw)
                items, weights = chosen.items(30), chosen.weights(30)
                off[own] += [float(weights @ row[items] - row.mean()) for row in table.known[20:]]
    assert rms(np.array(off[name])) < most * rms(np.array(off["random"]))


def test_items_that_all_candidates_answer_alike_are_one_cluster() -> None:
    known = np.repeat(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), [10, 20, 30], axis=1)
    chosen = CHOICES["clusters"](known, 6, 0)
    kinds = [0 if i < 10 else 1 if i < 30 else 2 for i in chosen.items(3)]
    assert sorted(kinds) == [0, 1, 2]
    assert dict(zip(kinds, chosen.weights(3), strict=True)) == pytest.approx({0: 1 / 6, 1: 2 / 6, 2: 3 / 6})


# --- the benchmark


def test_the_benchmark_tells_errors_of_estimators_in_units_of_the_sample_mean_s(
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = (
        "--simulated irt --items 120 --seeds 2 --known 10 --counts 15 --draws 2 --choices random --estimators mean irt"
    )
    assert benchmark.main(some.split()) == 0
    printed = capsys.readouterr().out
    mean, irt = (re.search(rf"`{name}` \| (\S+) / (\d+) ", printed) for name in ("mean", "irt"))
    assert mean and irt and float(mean[1]) == 1.0 and float(irt[1]) < 1


def test_the_benchmark_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = worlds.searched(worlds.classification(tmp_path, evaluations=10))
    assert (
        benchmark.main([str(run.folder), *["--known", "5", "--counts", "4", "--draws", "1", "--choices", "random"]])
        == 0
    )
    printed = capsys.readouterr().out
    assert "spam.accuracy" in printed and printed.count("`gmp_irt`") == printed.count("m known")
    assert benchmark.main([str(tmp_path)]) == 2
