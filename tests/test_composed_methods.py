"""What do the methods that compose make of one tensor? mergekit's numbers, and what is promised where those end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import CASES, IDS, expected, models, said
from naive import NaiveFacts, company, composed, made, merged, run, shipped

from searchspaces import methods
from searchspaces.composition import Composition
from searchspaces.errors import RecipeError
from searchspaces.option import Option, complete
from searchspaces.row import Row

SPARSIFIED = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
SPHERES = ("slerp", "nuslerp", "multislerp", "karcher")
MASKS = ("sce", "model_stock", "magmax", "consensus")
EVERY = (*SPARSIFIED, *SPHERES, *MASKS, "layer_swap")


def fits(method: str) -> int:
    """A number of experts that it merges."""
    least, most = methods.load(method).experts
    return min(max(least, 3), most or 3)


def weights_of(method: str) -> list[float]:
    """Coefficients that it accepts, no two alike where it accepts more than a choice."""
    return ([0.0, 1.0, 0.0] if methods.load(method).picks else [0.5, -0.2, 0.7])[: fits(method)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_weights_are_mergekits(case: dict) -> None:
    base, *experts = models(case).values()
    weights, options = said(case)
    assert expected(case)
    for name, tensor in expected(case).items():
        facts = NaiveFacts(name, base[name], [e[name] for e in experts])
        torch.testing.assert_close(merged(case["method"], facts, weights, options), tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_what_merges_models_makes_of_a_tensor_what_its_definition_says(method: str) -> None:
    facts = company(fits(method), 40, 50)
    wanted = merged(method, facts, weights_of(method))
    assert not torch.equal(wanted, facts.base)
    torch.testing.assert_close(shipped(method, facts, weights_of(method)), wanted, rtol=1e-5, atol=1e-5)


def test_mergekits_cases_have_every_method_and_option_of_its_own() -> None:
    said_of: dict[str, set[str]] = {}
    for case in CASES:
        said_of.setdefault(case["method"], set()).update(case["parameters"])
    for method in (*EVERY, "linear", "task_arithmetic"):
        if method in ("magmax", "consensus", "layer_swap") or methods.load(method).random:
            continue
        ours = {"task_vectors", "floor", "along"} | ({"lambda"} if method in MASKS else set())
        assert methods.load(method).options.keys() - ours <= said_of[method], method


def test_mergekits_cases_go_along_all_that_its_nuslerp_does() -> None:
    along = {said(case)[1]["along"] for case in CASES if case["method"] == "nuslerp"}
    assert along == {"flat", "rows", "columns"}


@pytest.mark.parametrize("method", EVERY)
def test_no_coefficients_are_the_base_bit_for_bit_with_any_flag(method: str) -> None:
    facts = company(fits(method), 5, 6)
    for options in ({}, *({name: True} for name, spec in made(method).options.items() if spec.default is False)):
        assert torch.equal(merged(method, facts, [0.0] * facts.count, options), facts.base)


@pytest.mark.parametrize("method", EVERY)
def test_one_expert_at_unit_is_that_expert_where_the_method_restores(method: str) -> None:
    whole = {"density": 1.0} if "density" in methods.load(method).options else {}
    rule, facts = made(method, whole), company(fits(method), 5, 6)
    found = merged(method, facts, [0.0] * (facts.count - 1) + [rule.unit], whole)
    near = torch.allclose(found, facts.experts[-1], rtol=1e-5, atol=1e-6)
    assert near is rule.restores is (method not in MASKS)


@pytest.mark.parametrize("method", SPARSIFIED)
def test_a_density_below_1_for_any_expert_restores_none(method: str) -> None:
    assert not made(method, {"density": np.array([[1.0, 0.5]])}).restores
    assert made(method, {"density": np.array([[1.0, 1.0]])}).restores


@pytest.mark.parametrize("method", EVERY)
def test_one_expert_no_change_a_vector_and_one_number_are_merged_without_nan(method: str) -> None:
    least, most = methods.load(method).experts
    for count in {least, min(3, most or 3)}:
        for shape in ((4, 5), (7,), (1,), (), (2, 3, 2, 2), (3, 1)):
            weights = [1.0] + [0.0] * (count - 1)
            facts = company(count, *shape)
            assert merged(method, facts, weights, {}).isfinite().all()
            still = NaiveFacts("w", facts.base, [facts.base] * count)
            torch.testing.assert_close(merged(method, still, weights, {}), facts.base, rtol=1e-6, atol=1e-6)
            zeros = NaiveFacts("w", torch.zeros(shape), [torch.zeros(shape)] * count)
            assert torch.equal(merged(method, zeros, weights, {}), zeros.base)


@pytest.mark.parametrize("method", [m for m in EVERY if methods.load(m).linear])
def test_linear_ones_are_linear_in_their_weights_and_pull_is_the_chain_rule(method: str) -> None:
    facts = company(4, 6, 5)
    slope = torch.randn(6, 5, generator=torch.Generator().manual_seed(9)).double()
    for options in ({}, *({"normalize": True} for _ in range("normalize" in methods.load(method).options))):
        weights = np.array([0.4, 0.3, -0.1, 0.6])

        def loss(c: np.ndarray, options: dict[str, Option] = options) -> float:
            return float((merged(method, facts, c.tolist(), options).double() * slope).sum())

        composition = composed(method, facts, weights.tolist(), options)
        part = np.array([_part(composition, facts, k, slope) for k in range(4)])
        specs = methods.load(method).options
        row = Row.of(specs, weights[None], complete(method, specs, options), 0)
        found = made(method, options).pull(row, float((facts.base.double() * slope).sum()), part)
        steps = 0.05 * np.eye(
            4
        )  # large, as float32 sums are coarse, and small enough for the curve of a normalised one
        expected = [(loss(weights + s) - loss(weights - s)) / 0.1 for s in steps]
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


def _part(c: Composition, facts: NaiveFacts, k: int, slope: torch.Tensor) -> float:
    """`<G, u_k>`: what a weight of 1 on one expert adds to nothing."""
    alone = Composition(0.0, np.eye(facts.count)[k], *(getattr(c, f) for f in FIELDS))
    return float((run(alone, facts.base, facts.deltas).double() * slope).sum())


FIELDS = ("keeps", "consensus", "threshold", "least", "divisors", "gains", "spread", "until", "key", "scale", "columns")


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_what_is_dropped_at_random_is_unbiased_over_seeds(method: str, density: float) -> None:
    facts, rounds = company(2, 6, 8), 600
    options = {"density": density, "epsilon": 0.15} if method == "della_linear" else {"density": density}
    total, squares = torch.zeros(6, 8), torch.zeros(6, 8)
    for seed in range(rounds):
        facts.seed = seed
        found = shipped(method, facts, [0.7, -0.4], options) - facts.base
        total, squares = total + found, squares + found**2
    mean = total / rounds
    error = ((squares / rounds - mean**2).clamp(min=0) / rounds).sqrt()
    expected = 0.7 * facts.deltas[0] - 0.4 * facts.deltas[1]
    # entry by entry, and all of them together
    assert ((mean - expected).abs() <= 4.5 * error + 1e-6).all()
    pull = (mean - expected) / error.clamp(min=1e-9)
    assert float(pull[error > 1e-6].mean().abs()) <= 4 / int((error > 1e-6).sum()) ** 0.5


def test_della_keeps_large_entries_more_often_and_as_many_as_its_density_says() -> None:
    facts = company(1, 400, 50)
    found = shipped("della_linear", facts, [1.0], {"density": 0.4, "epsilon": 0.2}) != facts.base
    rows = facts.deltas[0].abs().argsort(dim=1).argsort(dim=1)
    assert float(found.float().mean()) == pytest.approx(0.4, abs=0.015)
    assert float(found[rows >= 40].float().mean()) == pytest.approx(0.56, abs=0.03)
    assert float(found[rows < 10].float().mean()) == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize(("density", "epsilon", "slope"), [(0.95, 0.2, 0.05), (0.1, 0.2, 0.09), (1.0, 0.2, 0.0)])
def test_dellas_probabilities_stay_in_range_whatever_epsilon(density: float, epsilon: float, slope: float) -> None:
    keeps = composed("della", company(1, 3, 4), [1.0], {"density": density, "epsilon": epsilon}).keeps
    assert keeps is not None and keeps[0].slope == pytest.approx(slope)
    assert keeps[0].share - keeps[0].slope > 0 and keeps[0].share + keeps[0].slope <= 1


def test_masks_of_a_random_method_depend_on_seed_tensor_and_expert() -> None:
    one, again, other = company(2, 40, 5), company(2, 40, 5), company(2, 40, 5)
    other.seed = 1
    found = [merged("dare_linear", f, [1.0, 0.5], {"density": 0.5}) for f in (one, again, other)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    keeps = composed("dare_linear", one, [1.0, 0.5], {"density": 0.5}).keeps
    assert keeps is not None and keeps[0].key != keeps[1].key


def test_magmax_takes_the_largest_change_of_each_entry() -> None:
    facts = company(3, 5, 6)
    largest = facts.deltas.gather(0, facts.deltas.abs().argmax(0)[None])[0]
    torch.testing.assert_close(merged("magmax", facts, [1.0] * 3, {"lambda": 0.5}), facts.base + 0.5 * largest)


def test_consensus_keeps_what_two_experts_need() -> None:
    base = torch.zeros(5)
    #                       all agree, one alone, two against one, cancelled, small among large
    facts = NaiveFacts("w", base, [torch.tensor(t) for t in (
        [1.0, 2.0, 1.0, 1.0, 0.1], [1.0, 0.0, 1.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0],
    )])  # fmt: skip
    found = merged("consensus", facts, [1.0, 1.0, 1.0], {"threshold": 0.4})
    assert found.tolist() == pytest.approx([3.0, 0.0, 2.0, 0.0, 2.1])
    only = merged("consensus", facts, [1.0, 1.0, 1.0], {"threshold": 0.4, "least": 1})
    assert only.tolist() == pytest.approx([3.0, 2.0, 2.0, 0.0, 2.1])
    three = merged("consensus", facts, [1.0, 1.0, 1.0], {"threshold": 0.4, "least": 3})
    assert three.tolist() == pytest.approx([3.0, 0.0, 0.0, 0.0, 0.0])


def test_consensus_of_one_expert_is_that_expert() -> None:
    facts = company(1, 5, 6)
    torch.testing.assert_close(merged("consensus", facts, [1.0], {}), facts.experts[0])


def test_sces_shares_follow_energy_whatever_the_scale_without_a_floor() -> None:
    facts = company(3, 5, 6)
    facts.deltas = facts.deltas * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    small = company(3, 5, 6)
    small.deltas = facts.deltas * 1e-4
    ask = {"select_topk": 1.0, "floor": 0.0}
    large, little = (merged("sce", f, [1.0] * 3, ask) - f.base for f in (facts, small))
    torch.testing.assert_close(little * 1e4, large, rtol=1e-2, atol=1e-2)
    level = merged("sce", small, [1.0] * 3, {"select_topk": 1.0}) - small.base
    assert not torch.allclose(level * 1e4, large, rtol=1e-2, atol=1e-2)


def test_model_stock_by_rows_has_no_gradient() -> None:
    assert methods.load("model_stock").linear and made("model_stock").linear
    assert not made("model_stock", {"filter_wise": True}).linear


@pytest.mark.parametrize("row", [[0.5, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 1e-9]])
def test_layer_swap_takes_whole_models_alone(row: list[float]) -> None:
    facts = company(3, 4, 5)
    assert methods.load("layer_swap").picks
    torch.testing.assert_close(merged("layer_swap", facts, [0.0, 0.0, 1.0], {}), facts.experts[2])
    with pytest.raises(RecipeError, match="takes each group from one model"):
        merged("layer_swap", facts, row, {})


@pytest.mark.parametrize("method", EVERY)
def test_what_is_worth_searching_is_accepted_and_merges(method: str) -> None:
    for name, spec in methods.load(method).options.items():
        for number in getattr(spec, "search", None) or ():
            found = spec.check("it", number)
            facts = company(fits(method), 4, 5)
            moved = shipped(method, facts, weights_of(method), {name: found})
            assert moved.isfinite().all() and not torch.equal(moved, facts.base)
