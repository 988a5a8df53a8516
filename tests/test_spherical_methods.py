"""Are means of directions what they say? On the sphere where there is one, and defined where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import NaiveFacts, company, composed, merged

from searchspaces import methods
from searchspaces.option import Option


def test_opposite_experts_meet_at_the_base_of_their_line_and_never_at_nan() -> None:
    draw = torch.Generator().manual_seed(3)
    base, way = torch.randn(4, 5, generator=draw), torch.randn(4, 5, generator=draw)
    pair = NaiveFacts("w", base, [base + way, base - way])
    half = [0.5, 0.5]
    for options in ({}, {"along": "rows"}, {"along": "columns"}):
        found = merged("nuslerp", pair, half, {"task_vectors": True, **options})
        torch.testing.assert_close(found, base, rtol=1e-5, atol=1e-5)
    for count, weights in ((2, half), (4, half * 2)):
        facts = NaiveFacts("w", base, [base + way, base - way] * (count // 2))
        torch.testing.assert_close(merged("multislerp", facts, weights, {"task_vectors": True}), base)
    mirror = NaiveFacts("w", base, [base, -base])
    for method in ("multislerp", "karcher"):
        assert merged(method, mirror, half, {}).isfinite().all()
    torch.testing.assert_close(merged("slerp", NaiveFacts("w", base, [-base]), [0.3], {}), 0.4 * base)
    opposed = NaiveFacts("w", base, [base + way, base - way])
    torch.testing.assert_close(merged("model_stock", opposed, [1.0, 1.0], {}), base)  # 1 + cos is 0


@pytest.mark.parametrize("rows", [False, True])
def test_without_a_floor_model_stock_does_not_depend_on_how_long_task_vectors_are(rows: bool) -> None:
    long = company(3, 5, 6)
    short = NaiveFacts("w", torch.zeros(5, 6), list(1e-4 * long.deltas))
    ones, options = [1.0] * 3, {"filter_wise": rows}
    part = merged("model_stock", NaiveFacts("w", torch.zeros(5, 6), list(long.deltas)), ones, {"floor": 0.0, **options})
    found = merged("model_stock", short, ones, {"floor": 0.0, **options})
    torch.testing.assert_close(found, 1e-4 * part, rtol=1e-4, atol=1e-9)
    floored = merged("model_stock", short, ones, options)
    assert float(floored.norm()) < 0.5 * float(found.norm())
    still = NaiveFacts("w", torch.ones(5, 6), [torch.ones(5, 6)] * 2)
    assert torch.equal(merged("model_stock", still, [1.0, 1.0], {"floor": 0.0, **options}), still.base)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_equal_experts_are_their_own_mean(method: str) -> None:
    facts = company(1, 5, 6)
    twice = NaiveFacts("w", facts.base, [facts.experts[0]] * 2)
    for options in ({}, *({"task_vectors": True} for _ in range("task_vectors" in methods.load(method).options))):
        found = merged(method, twice, [0.3, 0.4], options)
        torch.testing.assert_close(found, facts.experts[0], rtol=1e-5, atol=1e-6)


def test_near_experts_average_as_on_a_line() -> None:
    # fine-tuned models are within a thousandth of each other: fp32 cannot tell their angle, Gram matrices can
    draw = torch.Generator().manual_seed(4)
    base = torch.randn(64, 64, generator=draw)
    facts = NaiveFacts("w", base, [base + 1e-4 * torch.randn(64, 64, generator=draw) for _ in range(2)])
    line = base + 0.3 * facts.deltas[0] + 0.7 * facts.deltas[1]
    for method in ("nuslerp", "multislerp", "karcher"):
        torch.testing.assert_close(merged(method, facts, [0.3, 0.7], {}), line, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_weights_that_sum_to_nothing_give_the_base(method: str) -> None:
    facts = company(3, 5, 6)
    assert torch.equal(merged(method, facts, [0.5, -0.5, 0.0], {}), facts.base)


def test_the_karcher_mean_is_where_the_ways_to_all_experts_cancel() -> None:
    facts, weights = company(3, 5, 6), np.array([0.2, 0.5, 0.3])
    found = merged("karcher", facts, weights.tolist(), {"max_iter": 100, "tol": 1e-9}).double().flatten()
    mean = found / found.norm()
    ways = []
    for expert in facts.experts:
        unit = expert.double().flatten() / expert.double().norm()
        cosine = unit @ mean
        ways.append((unit - cosine * mean) * torch.acos(cosine) / (1 - cosine**2).sqrt())
    assert float((torch.from_numpy(weights)[:, None] * torch.stack(ways)).sum(0).norm()) < 1e-6
    lengths = torch.stack([e.norm() for e in facts.experts]).double()
    assert float(found.norm()) == pytest.approx(float(torch.from_numpy(weights) @ lengths), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "count"), [("slerp", 1), ("nuslerp", 2), ("multislerp", 3), ("karcher", 3), ("model_stock", 3)]
)
def test_merges_of_whole_tensors_are_sums_that_cost_what_task_arithmetic_does(method: str, count: int) -> None:
    assert composed(method, company(count, 5, 6), [0.6, 0.3, 0.4][:count]).plain


@pytest.mark.parametrize(
    ("method", "options"), [("nuslerp", {"along": "rows"}), ("model_stock", {"filter_wise": True})]
)
def test_rows_have_weights_of_their_own(method: str, options: dict[str, Option]) -> None:
    facts = company(2, 3, 4, 5)
    composition = composed(method, facts, [0.6, 0.3], options)
    assert composition.weights.shape == (12, 2) and not composition.columns and not composition.plain
    for shape in ((), (1,), (7,)):
        assert composed(method, company(2, *shape), [0.6, 0.3], options).plain
    if method == "nuslerp":
        turned = composed(method, facts, [0.6, 0.3], {"along": "columns"})
        assert turned.weights.shape == (20, 2) and turned.columns
