"""Do methods on statistics do what their papers say, and what is promised where statistics are missing or singular?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse.linalg import LinearOperator, cg

from searchspaces.errors import PoolError
from searchspaces.facts.gathered import Gathered, statistics_of
from searchspaces.given import Given
from searchspaces.methods import load
from searchspaces.methods.mats import reach_of
from searchspaces.option import complete

K, OUT, IN = 3, 5, 8
NAMES = [f"e{k}" for k in range(K)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(rows: int = 40, dead: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
    """A base's weight (OUT, IN), its experts', and each expert's inputs (rows, IN)."""
    mix = drawn(IN, IN, seed=9)
    inputs = [drawn(rows, IN, seed=20 + k) @ mix * (1 + k) for k in range(K)]
    for x in inputs:
        if dead is not None:
            x[:, dead] = 0.0
    return drawn(OUT, IN).float(), {n: drawn(OUT, IN, seed=1 + k).float() for k, n in enumerate(NAMES)}, inputs


def gram(x: torch.Tensor) -> torch.Tensor:
    return (x.T @ x / len(x)).float()


def grams(inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: gram(x) for n, x in zip(NAMES, inputs, strict=False)}


def done(
    method: str,
    base: torch.Tensor,
    experts: dict[str, torch.Tensor],
    statistics: dict[str, torch.Tensor],
    **options: Any,
) -> list[torch.Tensor]:
    """Processed task vectors, float64; nothing that went in is changed."""
    kind = load(method)
    before = [t.clone() for t in (base, *experts.values(), *statistics.values())]
    found = list(kind(complete(method, kind.options, options)).process(Given("w", base, experts, statistics)))
    after = [base, *experts.values(), *statistics.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(t.dtype == torch.float32 and t.shape == base.shape and t.is_contiguous() for t in found)
    return [t.double() for t in found]


def merged(
    method: str, base: torch.Tensor, experts: dict[str, torch.Tensor], *rest: Any, **options: Any
) -> torch.Tensor:
    return base.double() + sum(done(method, base, experts, *rest, **options))


def error(weight: torch.Tensor, experts: dict[str, torch.Tensor], inputs: list[torch.Tensor]) -> float:
    """`sum_k mean |W x - W_k x|^2`: what RegMean is to make small."""
    wanted = zip(experts.values(), inputs, strict=True)
    return sum(float((x @ (weight - e.double()).T).square().sum() / len(x)) for e, x in wanted)


def test_regmean_is_the_optimum_of_the_layers_outputs() -> None:
    base, experts, inputs = world()
    found = merged("regmean", base, experts, grams(inputs), scale=1.0, ridge=0.0)
    stacked = torch.cat([x / len(x) ** 0.5 for x in inputs])
    wanted = torch.cat([x @ e.double().T / len(x) ** 0.5 for e, x in zip(experts.values(), inputs, strict=True)])
    torch.testing.assert_close(found.T, torch.linalg.lstsq(stacked, wanted).solution, rtol=1e-4, atol=1e-5)
    least = error(found, experts, inputs)
    for seed in range(20):
        assert error(found + 1e-2 * drawn(OUT, IN, seed=seed), experts, inputs) > least
    average = torch.stack(list(experts.values())).double().mean(0)
    assert least < 0.9 * error(average, experts, inputs)


@pytest.mark.parametrize("scale", [0.0, 0.5, 0.9, 1.0])
def test_regmean_is_its_formula(scale: float) -> None:
    base, experts, inputs = world()
    dense = [g.double() * (scale + (1 - scale) * torch.eye(IN)) for g in grams(inputs).values()]
    inverse = torch.linalg.inv(sum(dense))
    found = done("regmean", base, experts, grams(inputs), scale=scale, ridge=0.0)
    for tau, g, expert in zip(found, dense, experts.values(), strict=True):
        torch.testing.assert_close(tau, (expert - base).double() @ g @ inverse, rtol=1e-3, atol=1e-4)


def test_the_published_scale_is_the_default() -> None:
    base, experts, inputs = world()
    plain = done("regmean", base, experts, grams(inputs))
    assert all(map(torch.equal, plain, done("regmean", base, experts, grams(inputs), scale=0.9)))
    assert not torch.equal(plain[0], done("regmean", base, experts, grams(inputs), scale=0.8)[0])


@pytest.mark.parametrize("method", ["regmean", "mats"])
def test_a_weight_stored_the_other_way_round_is_merged_the_other_way_round(method: str) -> None:
    base, experts, inputs = world()
    square, others = base.new_zeros(IN, IN), {n: drawn(IN, IN, seed=k).float() for k, n in enumerate(NAMES)}
    for first, every in ((base, experts), (square, others)):
        turned = {n: g[..., None] for n, g in grams(inputs).items()}
        one = done(method, first, every, grams(inputs))
        other = done(method, first.T.contiguous(), {n: e.T.contiguous() for n, e in every.items()}, turned)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b.T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_no_inputs_tell_apart_is_averaged_and_the_rest_is_the_optimum(rows: int) -> None:
    base, experts, inputs = world(rows)
    found = merged("regmean", base, experts, grams(inputs), scale=1.0, ridge=1e-4)
    seen = torch.cat(inputs)  # fewer rows than columns: the sum of Grams is singular
    null = torch.linalg.svd(seen).Vh[len(seen) :]
    average = torch.stack(list(experts.values())).double().mean(0)
    each = sum(gram(x) for x in inputs).diagonal().double()  # what the ridge is a share of
    each = each / each.mean()
    torch.testing.assert_close(found * each @ null.T, average * each @ null.T, rtol=1e-2, atol=1e-2)
    stacked = torch.cat([x / len(x) ** 0.5 for x in inputs])
    wanted = torch.cat([x @ e.double().T / len(x) ** 0.5 for e, x in zip(experts.values(), inputs, strict=True)])
    least = error(torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution.T, experts, inputs)
    assert error(found, experts, inputs) < least + 1e-3 * error(average, experts, inputs)


def test_a_singular_sum_without_a_ridge_is_refused_with_the_remedy() -> None:
    base, experts, _ = world()
    same = torch.ones(IN, IN)
    with pytest.raises(PoolError, match=r"Grams of 'w' is singular; set option scale below 1 .* ridge \(now 0"):
        done("regmean", base, experts, dict.fromkeys(NAMES, same), scale=1.0, ridge=0.0)
    assert torch.isfinite(merged("regmean", base, experts, dict.fromkeys(NAMES, same), scale=0.9, ridge=0.0)).all()


@pytest.mark.parametrize(("width", "rows"), [(33, 16), (40, 16)])
@pytest.mark.parametrize("ridge", [0.0, 1e-9])
def test_a_sum_that_is_regular_by_rounding_alone_is_singular(width: int, rows: int, ridge: float) -> None:
    for seed in range(8):
        sizes = 10 ** (3 * drawn(width, seed=99).sigmoid())  # whatever the units of the inputs
        inputs = [drawn(rows, width, seed=50 + 2 * seed + k) * sizes for k in range(2)]
        base, experts = torch.zeros(OUT, width), {n: drawn(OUT, width, seed=k).float() for k, n in enumerate(NAMES[:2])}
        with pytest.raises(PoolError, match="is singular; set option scale"):
            done("regmean", base, experts, grams(inputs), scale=1.0, ridge=ridge)
        enough = [drawn(100, width, seed=50 + 2 * seed + k) * sizes for k in range(2)]
        assert all(
            torch.isfinite(t).all() for t in done("regmean", base, experts, grams(enough), scale=1.0, ridge=ridge)
        )


@pytest.mark.parametrize("method", ["regmean", "mats"])
@pytest.mark.parametrize("options", [{}, {"scale": 1.0}, {"scale": 0.0}])
def test_an_input_that_is_always_zero_is_averaged(method: str, options: dict[str, float]) -> None:
    base, experts, inputs = world(dead=3)
    found = merged(method, base, experts, grams(inputs), **options)
    average = torch.stack(list(experts.values())).double().mean(0)
    torch.testing.assert_close(found[:, 3], average[:, 3], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[:, 2], average[:, 2], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", ["regmean", "mats"])
def test_without_grams_and_with_zero_ones_experts_are_averaged(method: str) -> None:
    base, experts, _ = world()
    nothing = torch.zeros(IN, IN)
    for statistics in ({}, dict.fromkeys(NAMES, nothing)):
        for tau, expert in zip(done(method, base, experts, statistics), experts.values(), strict=True):
            torch.testing.assert_close(tau, (expert - base).double() / K, rtol=1e-6, atol=1e-7)
    bias = {n: e[:, 0].contiguous() for n, e in experts.items()}
    for tau, expert in zip(done(method, base[:, 0].contiguous(), bias, {}), bias.values(), strict=True):
        torch.testing.assert_close(tau, (expert - base[:, 0]).double() / K, rtol=1e-6, atol=1e-7)


def test_an_expert_whose_data_never_reached_a_layer_weighs_nothing_there() -> None:
    base, experts, inputs = world()
    statistics = grams(inputs)
    del statistics["e1"]
    found = done("regmean", base, experts, statistics)
    assert found[1].abs().max() < 1e-4
    others = {n: e for n, e in experts.items() if n != "e1"}
    for tau, alone in zip((found[0], found[2]), done("regmean", base, others, statistics), strict=True):
        torch.testing.assert_close(tau, alone, rtol=1e-3, atol=1e-4)
    explicit = done("regmean", base, experts, {**statistics, "e1": torch.zeros(IN, IN)})
    assert all(map(torch.equal, found, explicit))


def by_scipy(base: torch.Tensor, experts: dict[str, torch.Tensor], x: list[torch.Tensor], start: float, n: int) -> Any:
    """The whole merge by scipy's conjugate gradients, in weights and not in task vectors."""
    dense = [g.double().numpy() for g in grams(x).values()]
    weights = [e.double().numpy().T for e in experts.values()]
    total, right = sum(dense), sum(g @ w for g, w in zip(dense, weights, strict=True))
    first = base.double().numpy().T + start * sum(w - base.double().numpy().T for w in weights)
    shape = first.shape
    matrix = LinearOperator((first.size, first.size), matvec=lambda v: (total @ v.reshape(shape)).ravel())
    return cg(matrix, right.ravel(), x0=first.ravel(), maxiter=n)[0].reshape(shape).T


@pytest.mark.parametrize(("initial", "start"), [("average", 1 / K), ("base", 0.0), ("task_arithmetic", 0.3)])
@pytest.mark.parametrize("iterations", [0, 1, 4, 100])
def test_mats_is_conjugate_gradients_on_the_whole(initial: str, start: float, iterations: int) -> None:
    base, experts, inputs = world()
    found = merged("mats", base, experts, grams(inputs), iterations=iterations, initial=initial)
    wanted = torch.from_numpy(by_scipy(base, experts, inputs, start, iterations))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_mats_comes_to_regmean_and_is_elsewhere_before() -> None:
    base, experts, inputs = world()
    there = merged("regmean", base, experts, grams(inputs), scale=1.0, ridge=0.0)
    away = [(merged("mats", base, experts, grams(inputs), iterations=n) - there).norm().item() for n in (0, 2, 200)]
    assert away[2] < 0.02 * away[0] and away[0] > away[1] > away[2]


@pytest.mark.parametrize(("initial", "start"), [("average", 1 / K), ("base", 0.0), ("task_arithmetic", 0.3)])
def test_each_part_of_mats_takes_the_steps_of_the_whole_from_its_own_residual(initial: str, start: float) -> None:
    base, experts, inputs = world()
    parts = done("mats", base, experts, grams(inputs), iterations=3, initial=initial)
    taus = [(e - base).double().T for e in experts.values()]
    dense = [g.double() for g in grams(inputs).values()]
    residuals = [g @ tau - start * sum(dense) @ tau for g, tau in zip(dense, taus, strict=True)]
    values, vectors = torch.linalg.eigh(sum(dense))
    reach = reach_of(values, (vectors.T @ sum(residuals)).square().sum(1), 3, 0.0)
    for part, tau, residual in zip(parts, taus, residuals, strict=True):
        wanted = start * tau + vectors @ (reach[:, None] * (vectors.T @ residual))
        torch.testing.assert_close(part.T, wanted, rtol=1e-5, atol=1e-6)
        alone = reach_of(values, (vectors.T @ residual).square().sum(1), 3, 0.0)
        assert not torch.allclose(alone, reach, rtol=1e-2)


@pytest.mark.parametrize("initial", ["average", "base", "task_arithmetic"])
def test_task_vectors_that_are_all_twice_as_long_have_parts_of_mats_that_are(initial: str) -> None:
    base, experts, inputs = world()
    twice = {n: base + (e - base) * 2 for n, e in experts.items()}
    found, doubled = (done("mats", base, e, grams(inputs), iterations=3, initial=initial) for e in (experts, twice))
    for part, other in zip(found, doubled, strict=True):
        torch.testing.assert_close(2 * part, other, rtol=1e-4, atol=1e-5)


def test_mats_on_singular_grams_stays_where_it_starts_in_directions_without_inputs() -> None:
    base, experts, inputs = world(1)
    found = merged("mats", base, experts, grams(inputs))
    null = torch.linalg.svd(torch.cat(inputs)).Vh[K:]
    average = torch.stack(list(experts.values())).double().mean(0)
    torch.testing.assert_close(found @ null.T, average @ null.T, rtol=1e-3, atol=1e-3)
    assert error(found, experts, inputs) < 1e-6 * error(average, experts, inputs)


@pytest.mark.parametrize("floor", [1e-6, 1e-2])
def test_fisher_is_the_weighted_average_of_the_experts(floor: float) -> None:
    base, experts, _ = world()
    fishers = {n: drawn(OUT, IN, seed=30 + k).float().square() * 10.0 ** (-3 * k) for k, n in enumerate(NAMES)}
    floored = [f.double().clamp(min=floor) for f in fishers.values()]
    wanted = sum(f * e.double() for f, e in zip(floored, experts.values(), strict=True)) / sum(floored)
    torch.testing.assert_close(merged("fisher", base, experts, fishers, floor=floor), wanted, rtol=1e-5, atol=1e-6)
    if floor == 1e-6:
        assert torch.equal(
            merged("fisher", base, experts, fishers), merged("fisher", base, experts, fishers, floor=1e-6)
        )


def test_fisher_without_information_is_the_floor_and_where_all_is_zero_the_average() -> None:
    base, experts, _ = world()
    some = {"e0": torch.full((OUT, IN), 3e-6)}
    found = done("fisher", base, experts, some)
    for tau, expert, share in zip(found, experts.values(), (3 / 5, 1 / 5, 1 / 5), strict=True):
        torch.testing.assert_close(tau, share * (expert - base).double(), rtol=1e-5, atol=1e-6)
    nothing = dict.fromkeys(NAMES, torch.zeros(OUT, IN))
    for statistics, floor in (({}, 1e-6), (nothing, 1e-6), (nothing, 0.0), ({}, 0.0)):
        for tau, expert in zip(done("fisher", base, experts, statistics, floor=floor), experts.values(), strict=True):
            torch.testing.assert_close(tau, (expert - base).double() / K, rtol=1e-5, atol=1e-6)


def test_fishers_whose_sum_is_no_float32_still_share() -> None:
    base, experts, _ = world()
    found = merged("fisher", base, experts, {n: torch.full_like(base, 3e38) for n in NAMES})
    torch.testing.assert_close(found, torch.stack([e.double() for e in experts.values()]).mean(0), rtol=1e-5, atol=1e-6)


def test_fisher_warns_of_experts_most_of_whose_entries_are_at_the_floor(caplog: pytest.LogCaptureFixture) -> None:
    base, experts, _ = world()
    high, low = torch.full((OUT, IN), 1e-3), torch.full((OUT, IN), 1e-9)
    mixed = torch.where(torch.arange(IN) < 2, high, low)  # a quarter is above
    for options, told in (({}, {"e1": 75, "e2": 100}), ({"floor": 1e-12}, {"e2": 100})):
        caplog.clear()
        kind = load("fisher")
        rule = kind(complete("fisher", kind.options, options))
        for name in ("v", "w"):
            list(rule.process(Given(name, base, experts, {"e0": high, "e1": mixed})))
        assert not caplog.records  # once for all tensors
        rule.conclude()
        found = [record.getMessage() for record in caplog.records]
        assert len(found) == len(told) and all("lower option floor" in text for text in found)
        for text, (expert, share) in zip(found, told.items(), strict=True):
            assert text.startswith(f"method fisher: {share} % of expert '{expert}'")


STATISTICS = {"fisher": (OUT, IN), "regmean": (IN, IN), "mats": (IN, IN)}


@pytest.mark.parametrize("method", STATISTICS)
def test_one_expert_is_itself_and_order_is_nothing(method: str) -> None:
    base, experts, inputs = world()
    statistics = grams(inputs) if method != "fisher" else {n: drawn(OUT, IN, seed=5).float().square() for n in NAMES}
    alone = done(method, base, {"e0": experts["e0"]}, statistics)
    torch.testing.assert_close(alone[0], (experts["e0"] - base).double(), rtol=1e-4, atol=1e-5)
    there = done(method, base, dict(reversed(experts.items())), statistics)
    for one, other in zip(done(method, base, experts, statistics), reversed(there), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    same = dict.fromkeys(NAMES, base)  # task vectors of 0
    assert all(float(t.abs().max()) == 0 for t in done(method, base, same, statistics))


@pytest.mark.parametrize("method", STATISTICS)
@pytest.mark.parametrize("fault", ["shape", "nan", "negative"])
def test_statistics_that_do_not_fit_are_refused_by_name(method: str, fault: str) -> None:
    base, experts, _ = world()
    good = torch.ones(STATISTICS[method])
    bad = {"shape": torch.ones(3, 3), "nan": good * float("nan"), "negative": -good}[fault]
    with pytest.raises(PoolError, match=r"expert 'e1'.* of 'w' \(5, 8\) has .*remove the statistics"):
        done(method, base, experts, {"e0": good, "e1": bad, "e2": good})


def test_folders_of_statistics_are_read_by_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00000.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00001.safetensors")
    found = Gathered.open(tmp_path)
    assert statistics_of("b", {"e": found})["e"].tolist() == [0, 0, 0]
    assert statistics_of("a", {"e": found})["e"].tolist() == [1, 1]
    assert statistics_of("c", {"e": found}) == {}
    (tmp_path / "model-00002.safetensors").write_bytes(b"\x08\0\0\0")
    with pytest.raises(PoolError, match=r"cannot be read .*remove the folder"):
        Gathered.open(tmp_path)


def test_options_out_of_bounds_are_refused() -> None:
    from searchspaces.errors import RecipeError

    for method, name, value in (
        ("regmean", "scale", 1.1),
        ("regmean", "ridge", -1e-3),
        ("mats", "iterations", -1),
        ("mats", "iterations", 2.5),
        ("mats", "initial", "ties"),
        ("fisher", "floor", np.nan),
    ):
        with pytest.raises(RecipeError, match=name):
            complete(method, load(method).options, {name: value})
