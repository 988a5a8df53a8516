"""Is the front what brute force says, and its quality what the definitions say?"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimizer.record.front import Front

Array = NDArray[np.float64]

SETS = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 6).map(float), min_size=m, max_size=m), min_size=1, max_size=14)
)


def built(losses: Array, anchors: Collection[int] = ()) -> Front:
    front = Front(losses.shape[1])
    for number, row in enumerate(losses):
        front.add(number, row, anchor=number in anchors)
    return front


def dominates(a: Array, b: Array) -> bool:
    return bool((a <= b).all() and (a < b).any())


def covered(points: Array, upto: Array) -> float:
    """Volume below `upto` that points dominate, by counting the cells of the grid that their coordinates draw."""
    axes = [np.unique([*column, top]) for column, top in zip(points.T, upto, strict=True)]
    volume = 0.0
    for cell in itertools.product(*[range(len(axis) - 1) for axis in axes]):
        low = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
        high = np.array([axis[i + 1] for axis, i in zip(axes, cell, strict=True)])
        if (high <= upto).all() and (points <= low).all(axis=1).any():
            volume += float(np.prod(high - low))
    return volume


@settings(max_examples=150)
@given(SETS, st.sets(st.integers(0, 13)))
def test_equals_brute_force(rows: list[list[float]], some: set[int]) -> None:
    losses = np.array(rows)
    anchors = sorted(some & set(range(len(losses))))
    front = built(losses, anchors)
    expected = [i for i, row in enumerate(losses) if not any(dominates(other, row) for other in losses)]
    assert list(front.nondominated) == expected
    assert front.numbers == tuple(range(len(losses)))
    box = losses[anchors] if anchors else losses
    ideal, reference = box.min(axis=0), box.max(axis=0)
    assert (front.ideal == ideal).all() and (front.reference == reference).all()
    if (ideal == reference).all():
        assert (front.hypervolume, front.epsilon) == (0.0, 0.0)
        return
    alone = built(losses[anchors], range(len(anchors))).hypervolume if anchors else None
    assert front.anchors_hypervolume == (None if alone is None else pytest.approx(alone, abs=1e-9))
    span = np.where(reference > ideal, reference - ideal, np.where(ideal == 0, 1.0, np.abs(ideal)))
    unit = (losses - ideal) / span
    assert front.exact
    assert front.hypervolume == pytest.approx(covered(unit, np.ones(losses.shape[1])), abs=1e-9)
    if anchors:
        shortfall = max(min((a - unit[i]).max() for a in unit[anchors]) for i in expected)
        assert front.epsilon == pytest.approx(max(0.0, shortfall), abs=1e-9)
    order = front.by_mean()
    assert sorted(order) == list(range(len(losses)))
    assert (np.diff(unit[order].mean(axis=1)) >= -1e-12).all()


@settings(max_examples=60)
@given(SETS)
def test_add_says_whether_the_front_changed(rows: list[list[float]]) -> None:
    front = Front(len(rows[0]))
    for number, row in enumerate(rows):
        before = front.nondominated
        assert front.add(number, np.array(row)) == (front.nondominated != before)


@settings(max_examples=60)
@given(SETS)
def test_quality_never_falls_once_the_anchors_are_in(rows: list[list[float]]) -> None:
    m = len(rows[0])
    front = Front(m)
    front.add(0, np.arange(m, dtype=float), anchor=True)
    front.add(1, 3.0 - np.arange(m, dtype=float), anchor=True)
    assert front.epsilon == 0.0
    quality = (front.hypervolume, front.epsilon)
    for number, row in enumerate(rows, 2):
        front.add(number, np.array(row))
        now = (front.hypervolume, front.epsilon)
        assert now[0] >= quality[0] - 1e-12 and now[1] >= quality[1] - 1e-12
        quality = now


def test_a_worked_example() -> None:
    front = Front(2)
    assert (front.hypervolume, front.epsilon, front.by_mean(), front.nondominated) == (0.0, 0.0, [], ())
    assert front.reference is None and front.ideal is None
    for number, losses in enumerate([[0.0, 10.0], [2.0, 0.0]]):
        assert front.add(number, np.array(losses), anchor=True)
    assert front.hypervolume == 0.0
    assert front.add(2, np.array([1.0, 2.0]))
    assert not front.add(3, np.array([2.0, 3.0]))
    assert front.hypervolume == pytest.approx(0.5 * 0.8)
    assert front.epsilon == pytest.approx(0.5)
    assert front.anchors_hypervolume == 0.0
    before = front.still()
    front.add(4, np.array([0.5, 5.0]), anchor=True)
    front.add(5, np.array([0.0, 0.0]), anchor=True, feasible=False)
    assert front.anchors_hypervolume == pytest.approx(0.75 * 0.5) and before.anchors_hypervolume == 0.0
    front = before
    assert front.by_mean() == [2, 0, 1, 3]
    assert front.reference is not None and front.reference.tolist() == [2.0, 10.0]


def test_better_than_ideal_exceeds_one() -> None:
    front = built(np.array([[0.0, 1.0], [1.0, 0.0], [-0.5, -0.5]]), {0, 1})
    assert front.hypervolume == pytest.approx(1.5**2)


def test_equal_losses_are_all_kept() -> None:
    front = built(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]))
    assert front.nondominated == (0, 1, 2)
    assert front.by_mean() == [0, 1, 2]


@pytest.mark.parametrize("losses", [[1.0], [1.0, np.nan], [np.inf, 0.0]])
def test_what_failed_is_refused(losses: list[float]) -> None:
    front = Front(2)
    with pytest.raises(ValueError, match="candidate 7: expected 2 finite losses"):
        front.add(7, np.array(losses))
    assert front.numbers == ()


def test_large_fronts_in_many_objectives_are_approximated_and_say_so() -> None:
    directions = np.abs(np.random.default_rng(0).normal(size=(150, 7)))
    losses = 1 - 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    front = Front(7)
    front.add(-2, np.zeros(7), anchor=True)
    front.add(-1, np.ones(7), anchor=True)
    assert front.exact and front.hypervolume == pytest.approx(1.0)
    front = Front(7)
    for number, corner in enumerate(np.eye(7)):
        front.add(number, corner, anchor=True)
    for number, row in enumerate(losses, 7):
        front.add(number, row)
    assert not front.exact
    import moocore

    assert front.hypervolume == pytest.approx(float(moocore.hypervolume(losses, ref=1.0)), rel=0.01)
    assert front.hypervolume == front.hypervolume


@pytest.mark.parametrize(("objectives", "most"), [(9, 15), (20, 12), (31, 12)])
def test_few_points_in_many_objectives_are_measured_exactly_and_more_are_not(objectives: int, most: int) -> None:
    front = Front(objectives)
    front.add(-2, np.zeros(objectives), anchor=True, feasible=False)
    front.add(-1, np.ones(objectives), anchor=True, feasible=False)
    for number, row in enumerate(np.random.default_rng(0).random((40, objectives)) ** 4):
        front.add(number, row)
        assert front.exact == (len(front.nondominated) <= most) and np.isfinite(front.hypervolume)
    assert len(front.nondominated) > most


@pytest.mark.parametrize(
    ("losses", "knee"),
    [
        ([[0.0, 1.0], [1.0, 0.0], [0.2, 0.3], [0.4, 0.2]], 2),
        ([[0.0, 10.0], [1.0, 0.0], [0.4, 3.0], [0.2, 2.0]], 3),  # whatever the objectives' units are
        ([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], None),  # on the chord
        ([[0.0, 1.0], [1.0, 0.0], [0.6, 0.7]], None),  # above it
        ([[0.0, 1.0], [1.0, 0.0]], None),
        ([[0.5]], None),
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.7, 0.6, 0.6], [0.8, 0.5, 0.5]], 4),
        ([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [0.3, 0.3, 5.0]], 2),  # one on which all agree
        ([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.1, -0.1, 0.5]], 2),  # two extremes in one
    ],
)
def test_the_knee_lies_furthest_below_the_plane_through_the_extremes(
    losses: list[list[float]], knee: int | None
) -> None:
    front = built(np.array(losses), anchors=(0, 1) if len(losses) > 1 else ())
    assert front.knee() == knee
    order = np.random.default_rng(0).permutation(len(losses))
    moved = Front(len(losses[0]))
    for i in order:
        moved.add(int(i), np.array(losses[i]) * 3 - 1)
    assert moved.knee() == knee


@settings(max_examples=80)
@given(SETS, SETS)
def test_the_distance_to_another_set_is_what_its_definition_says(
    rows: list[list[float]], others: list[list[float]]
) -> None:
    m = min(len(rows[0]), len(others[0]))
    losses, other = np.array(rows)[:, :m], np.array(others)[:, :m]
    front = Front(m)
    front.add(100, np.zeros(m), anchor=True)
    front.add(101, np.full(m, 2.0), anchor=True)
    for number, row in enumerate(losses + 1):
        front.add(number, row)
    front_losses = np.array([np.zeros(m), *(losses + 1)])
    short = np.maximum(front_losses[:, None] - other, 0) / 2
    igd_plus, epsilon = front.against(other)
    assert igd_plus == pytest.approx(np.sqrt((short**2).sum(axis=2)).min(axis=0).mean(), abs=1e-9)
    assert epsilon == pytest.approx(((front_losses[:, None] - other) / 2).max(axis=2).min(axis=0).max(), abs=1e-9)


@pytest.mark.parametrize("reference", [[[1.0]], [[1.0, np.nan]], [[np.inf, 1.0]]])
def test_another_set_that_does_not_fit_is_refused(reference: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"expected finite losses \(n, 2\)"):
        built(np.array([[0.0, 1.0]])).against(np.array(reference))
    with pytest.raises(ValueError, match="no front"):
        Front(2).against(np.array([[1.0, 2.0]]))
