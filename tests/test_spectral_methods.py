"""Are TSV-M, Iso-C and Iso-CTS with all coefficients 1 what their papers say, and defined where the papers are not?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchspaces import CoefficientSpace, Pool, Resident, processed
from searchspaces.given import Given
from searchspaces.method import Processing
from searchspaces.methods import load
from searchspaces.option import Option, complete
from searchspaces.weights.materialise import merged_tensors

ALL = ("tsv_m", "iso_c", "iso_cts")
SHAPES = [(24, 18), (18, 24), (20, 20), (70, 5)]


def method(name: str, **options: Option) -> Processing:
    kind = load(name)
    made: Processing = kind(complete(name, kind.options, options))  # type: ignore[assignment]
    return made


def parts(rule: Processing, base: torch.Tensor, *deltas: torch.Tensor) -> list[torch.Tensor]:
    experts = {f"e{k}": base + delta for k, delta in enumerate(deltas)}

    def tensors() -> Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]:
        yield "w", base, experts

    rule.survey(tensors)
    found = list(rule.process(Given("w", base, experts)))
    assert all(t.dtype == torch.float32 and t.shape == base.shape and torch.isfinite(t).all() for t in found)
    return found


def normal(count: int, *shape: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base, and task vectors of unequal sizes that have something in common."""
    draw = torch.Generator().manual_seed(seed)
    base, common, *own = torch.randn(count + 2, *shape, generator=draw).unbind()
    experts = [base + 0.02 * (k + 1) * (own[k] + 0.5 * common) for k in range(count)]
    return base, [expert - base for expert in experts]


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(columns, full_matrices=False)
    return u @ v


def tsv_m(taus: torch.Tensor) -> torch.Tensor:
    """TSV-M of `(K, n, m)` float64, algorithm 1 of the paper."""
    rank = min(taus.shape[1:]) // len(taus)
    u, s, v = torch.linalg.svd(taus, full_matrices=False)
    left = orthonormal(torch.cat([x[:, :rank] for x in u], dim=1))
    right = orthonormal(torch.cat([x[:rank] for x in v], dim=0))
    return (left * s[:, :rank].reshape(-1)) @ right


def iso_c(taus: torch.Tensor) -> torch.Tensor:
    """Iso-C of `(K, n, m)` float64, equation 6 of the paper."""
    u, s, v = torch.linalg.svd(taus.sum(dim=0), full_matrices=False)
    return s.mean() * u @ v


def iso_cts(taus: torch.Tensor, common: float) -> torch.Tensor:
    """Iso-CTS of `(K, n, m)` float64, algorithm 2 of the paper, with the authors' rounding of the shares."""
    short, count = min(taus.shape[1:]), len(taus)
    own = round((short - int(short * common)) / count)
    left, sizes, right = (x for x in torch.linalg.svd(taus.sum(dim=0), full_matrices=False))
    rank = short - own * count
    found = [(left[:, :rank], sizes[:rank], right[:rank])]
    for tau in taus:
        u, s, v = torch.linalg.svd(tau - left[:, :rank] @ left[:, :rank].T @ tau, full_matrices=False)
        found.append((u[:, :own], s[:own], v[:own]))
    u, s, v = (torch.cat([f[i] for f in found], dim=d) for i, d in ((0, 1), (1, 0), (2, 0)))
    return s.mean() * orthonormal(u) @ orthonormal(v)


REFERENCES = {"tsv_m": tsv_m, "iso_c": iso_c, "iso_cts": lambda taus: iso_cts(taus, 0.8)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ALL)
def test_the_sum_is_the_published_merge(name: str, count: int, shape: tuple[int, int]) -> None:
    base, deltas = normal(count, *shape)
    expected = REFERENCES[name](torch.stack(deltas).double())
    torch.testing.assert_close(sum(parts(method(name), base, *deltas)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_iso_cts_has_the_common_share_that_is_asked_for(common: float) -> None:
    base, deltas = normal(3, 24, 18)
    found = sum(parts(method("iso_cts", common=common), base, *deltas)).double()
    torch.testing.assert_close(found, iso_cts(torch.stack(deltas).double(), common), rtol=1e-5, atol=1e-5)
    if common == 1.0:
        torch.testing.assert_close(found, iso_c(torch.stack(deltas).double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_isotropic_merges_have_one_singular_value(name: str) -> None:
    base, deltas = normal(3, 24, 18)
    sizes = torch.linalg.svdvals(sum(parts(method(name), base, *deltas)).double())
    torch.testing.assert_close(sizes, sizes.mean().expand(18), rtol=1e-5, atol=0)


def test_tsv_m_keeps_experts_apart_with_their_singular_values() -> None:
    base, deltas = normal(3, 24, 18)
    found = parts(method("tsv_m"), base, *deltas)
    for k, (one, delta) in enumerate(zip(found, deltas, strict=True)):
        torch.testing.assert_close(torch.linalg.svdvals(one)[:6], torch.linalg.svdvals(delta)[:6], rtol=1e-5, atol=0)
        for other in found[:k]:  # rows and columns of one expert are orthogonal to the others'
            torch.testing.assert_close(one @ other.T, torch.zeros(24, 24), rtol=0, atol=1e-6)
            torch.testing.assert_close(one.T @ other, torch.zeros(18, 18), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_tsv_m_of_experts_that_hardly_differ_is_the_published_merge(count: int) -> None:
    """A task vector and what is added to it: another seed of one training, or a checkpoint a little further on."""
    draw = torch.Generator().manual_seed(1)
    base, common, *own = torch.randn(count + 2, 24, 18, generator=draw).unbind()
    for share in (1e-2, 1e-3):
        deltas = [base + 0.02 * (common + share * o) - base for o in own]
        expected = tsv_m(torch.stack(deltas).double())
        found = sum(parts(method("tsv_m"), base, *deltas)).double()
        assert float((found - expected).norm() / expected.norm()) < 1e-2 * share**0.5


def test_tsv_m_keeps_as_many_directions_as_are_asked_for() -> None:
    base, deltas = normal(3, 24, 18)
    for share, kept in ((0.5, 3), (1.0, 6), (2.0, 12), (64.0, 18)):
        found = parts(method("tsv_m", share=share), base, *deltas)
        assert [int(torch.linalg.matrix_rank(t, rtol=1e-5)) for t in found] == [kept] * 3
    u, s, v = torch.linalg.svd(torch.stack(deltas).double(), full_matrices=False)
    lossless = (orthonormal(torch.cat(list(u), dim=1)) * s.reshape(-1)) @ orthonormal(torch.cat(list(v), dim=0))
    torch.testing.assert_close(sum(found).double(), lossless, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2, 2), (6, 3, 5)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_matrix_is_averaged(name: str, shape: tuple[int, ...]) -> None:
    base, deltas = normal(3, *shape)
    for found, delta in zip(parts(method(name), base, *deltas), deltas, strict=True):
        torch.testing.assert_close(found, delta / 3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_one_expert_alone_is_itself(name: str, shape: tuple[int, ...]) -> None:
    base, (delta,) = normal(1, *shape)
    torch.testing.assert_close(parts(method(name), base, delta)[0], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_expert_that_did_not_move_has_no_part(name: str) -> None:
    base, deltas = normal(2, 24, 18)
    still = torch.zeros_like(base)
    found = parts(method(name), base, *deltas, still)
    assert torch.equal(found[2], still)
    for tensor in parts(method(name), base, still, still):
        assert torch.equal(tensor, still)


def test_a_direction_is_parted_by_what_experts_put_into_it() -> None:
    one, two = torch.diag(torch.tensor([3.0, -1.0])), torch.diag(torch.tensor([1.0, 3.0]))
    first, second = parts(method("iso_c"), torch.zeros(2, 2), one, two)  # a sum of 4 and 2, each 3 when made equal
    torch.testing.assert_close(first, 3 * torch.diag(torch.tensor([3 / 4, -1 / 2])))
    torch.testing.assert_close(second, 3 * torch.diag(torch.tensor([1 / 4, 3 / 2])))


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_opposite_experts_have_no_direction_in_common(name: str) -> None:
    base, (delta,) = normal(1, 24, 18)
    found = parts(method(name, **({"common": 1.0} if name == "iso_cts" else {})), base, delta, (base - delta) - base)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in found)


@pytest.mark.parametrize("name", ALL)
def test_task_vectors_of_low_rank_stay_of_low_rank(name: str) -> None:
    base, _ = normal(1, 40, 30)
    draw = torch.Generator().manual_seed(3)
    thin = [0.1 * torch.randn(40, 2, generator=draw) @ torch.randn(2, 30, generator=draw) for _ in range(3)]
    deltas = [(base + t) - base for t in thin]  # what is left in float32 weights
    merged = sum(parts(method(name), base, *deltas))
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-3)) == 6
    assert float(torch.linalg.svdvals(merged)[6]) < 1e-5 * float(torch.linalg.svdvals(merged)[0])


@pytest.mark.parametrize("name", ALL)
def test_equal_experts_are_finite_and_equal(name: str) -> None:
    base, (delta,) = normal(1, 24, 18)
    one, two = parts(method(name), base, delta, delta)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(ALL),
    count=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_the_order_of_experts_the_sides_and_the_scale_change_nothing(
    name: str, count: int, shape: tuple[int, int], scale: float, seed: int
) -> None:
    _, deltas = normal(count, *shape, seed=seed)
    base = torch.zeros(shape)
    found = parts(method(name), base, *deltas)
    size = 1e-4 * max(float(d.abs().max()) for d in deltas)
    for k, tensor in enumerate(reversed(parts(method(name), base, *reversed(deltas)))):
        torch.testing.assert_close(tensor, found[k], rtol=1e-3, atol=size)
    scaled = parts(method(name), base, *(scale * d for d in deltas))
    torch.testing.assert_close(sum(scaled) / scale, sum(found), rtol=1e-3, atol=size)


@pytest.mark.parametrize("name", ALL)
def test_bf16_models_are_processed_in_fp32_and_nothing_is_changed(name: str) -> None:
    base, deltas = normal(2, 24, 18)
    models = [base.bfloat16(), *((base + d).bfloat16() for d in deltas)]
    before = [m.clone() for m in models]
    found = list(method(name).process(Given("w", models[0], {"a": models[1], "b": models[2]})))
    assert all(torch.equal(m, b) for m, b in zip(models, before, strict=True))
    straight = parts(method(name), models[0].float(), *(m.float() - models[0].float() for m in models[1:]))
    for one, other in zip(found, straight, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_model_merged_with_every_coefficient_1_is_the_published_merge(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = pico.base(tmp_path / "base")
    raw = Pool.open(first, {f"e{k}": pico.expert(tmp_path / f"e{k}", first, k + 1) for k in range(2)})
    pool = processed(raw, name)
    names = [t.name for t in pool.merged]
    space = CoefficientSpace(names, pool.names, name, {"lambda": 0.7}, "tensor", bounds=(-1.0, 2.0))
    recipe = space.decode(np.ones(len(space.domain.names)))
    merged = dict(merged_tensors(pool, recipe))
    for tensor in names:
        start = raw.base.tensor(tensor)
        taus = torch.stack([e.tensor(tensor).double() - start.double() for e in raw.experts.values()])
        whole = REFERENCES[name](taus) if start.dim() == 2 else taus.mean(dim=0)
        torch.testing.assert_close(merged[tensor].double(), start + 0.7 * whole, rtol=1e-5, atol=1e-5)
    resident = Resident(pool)
    resident.write(recipe)
    state = resident.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in merged.items())


@pytest.mark.parametrize("name", ALL)
def test_adapters_are_processed_beside_whole_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = pico.base(tmp_path / "base")
    raw = Pool.open(first, {n: pico.adapter(tmp_path / n, first, k) for k, n in enumerate("ab")})
    pool = processed(raw, name)
    moved = 0
    for info in raw.merged:
        found = sum(e.source(info.name).tensor for e in pool.experts.values())
        taus = [e.tensor(info.name) - raw.base.tensor(info.name) for e in raw.experts.values()]
        rank = sum(int(torch.linalg.matrix_rank(t, rtol=1e-3)) for t in taus) if info.shape[1:] else 0
        assert int(torch.linalg.matrix_rank(found, rtol=1e-3)) <= rank if rank else not found.any()
        moved += bool(found.any())
    assert moved > 5
