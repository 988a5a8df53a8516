"""Are the weights right? The kernel against its definition, the resident model against the stream, for every layout."""

from __future__ import annotations

import unittest.mock
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import base, expert
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe, Resident
from searchspaces.adapters import tiles
from searchspaces.adapters.lowrank import LowRank, differences
from searchspaces.errors import NonFinite, PoolError, RecipeError
from searchspaces.weights import kernel, reference
from searchspaces.weights.materialise import load_model, merged_tensors

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FAST = st.sampled_from([F32, BF16])


def by_kernel(
    out: torch.Tensor, first: torch.Tensor, experts: list[torch.Tensor], base_scale: float, scales: list[float]
) -> bool:
    active = [(e, s) for e, s in zip(experts, scales, strict=True) if s != 0]
    return bool(
        kernel.merge(
            first.data_ptr(), kernel.CODES[first.dtype], np.array([e.data_ptr() for e, _ in active], dtype=np.int64),
            np.array([kernel.CODES[e.dtype] for e, _ in active], dtype=np.int64), np.float32(base_scale),
            np.array([s for _, s in active], dtype=np.float32), out.data_ptr(), kernel.CODES[out.dtype], 0, len(out),
        )
    )  # fmt: skip


@settings(max_examples=80)
@given(
    dtypes=st.lists(FAST, min_size=2, max_size=11),
    size=st.sampled_from([0, 1, 7, kernel.CHUNK - 1, kernel.CHUNK, kernel.CHUNK + 1, 3 * kernel.CHUNK + 5]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_the_kernel_is_its_definition(dtypes: list[torch.dtype], size: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    out_dtype, base_dtype, *expert_dtypes = dtypes
    first = torch.randn(size, generator=generator).to(base_dtype)
    experts = [torch.randn(size, generator=generator).to(d) for d in expert_dtypes]
    scale = st.one_of(st.just(0.0), st.floats(-3, 3, width=32))
    scales = data.draw(st.lists(scale, min_size=len(experts), max_size=len(experts)))
    base_scale = data.draw(st.one_of(st.just(1.0), scale))
    ours, wanted = torch.empty(size, dtype=out_dtype), torch.empty(size, dtype=out_dtype)
    assert by_kernel(ours, first, experts, base_scale, scales) == reference.merge(
        wanted, first, experts, base_scale, scales
    )
    # the same sums in the same order: not only close but equal, and the rounding to bf16 with them
    assert torch.equal(ours, wanted)


@settings(max_examples=60)
@given(
    rows=st.sampled_from([1, 3, 4, 5, 127, 128, 131]),
    columns=st.sampled_from([1, 7, 31, 32, 33, 64, 95]),
    rank=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_a_product_of_thin_matrices_is_its_definition(rows: int, columns: int, rank: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
    out, wanted = torch.full((rows, columns), float("nan")), torch.empty(rows, columns)
    tiles.multiply(left.numpy(), right.numpy(), out.numpy())
    reference.multiply(left, right, wanted)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    # an entry has the same bits wherever it is computed
    i, j = seed % rows, seed % columns
    alone = torch.empty(1, 1)
    tiles.multiply(left[i : i + 1].numpy(), right[:, j : j + 1].contiguous().numpy(), alone.numpy())
    assert torch.equal(alone[0, 0], out[i, j])


@settings(max_examples=40)
@given(
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shape=st.sampled_from([(1, 50), (13, 40), (200, 7), (70, 33)]),
    turned=st.booleans(),
    dtype=st.sampled_from([F32, BF16, F16]),
    data=st.data(),
)
def test_pieces_of_low_rank_task_vectors_are_pieces_of_the_whole(
    ranks: list[int], shape: tuple[int, int], turned: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    draw, (rows, columns) = torch.Generator().manual_seed(sum(ranks)), shape
    parts, whole = [], torch.zeros(shape, dtype=torch.float64)
    for rank in ranks:
        left, right = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
        left, right = left.to(dtype), right.to(dtype)
        if turned:  # views as an adapter of a transposed layer has them
            left, right = left.T.contiguous().T, right.T.contiguous().T
        by = data.draw(st.floats(-3, 3, width=32))
        parts.append((LowRank(left, right, 0.5), by))
        whole += 0.5 * by * (left.double() @ right.double())
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    with (
        unittest.mock.patch("searchspaces.adapters.lowrank.BLOCK", 40),
        unittest.mock.patch("searchspaces.adapters.lowrank.LEAST", 2),
    ):
        pieces = [(a, b, d.clone()) for a, b, (d,) in differences([parts], start, stop)]
    (everything,) = [d.clone() for _, _, (d,) in differences([parts])]
    torch.testing.assert_close(everything.view(shape).double(), whole, rtol=1e-4, atol=1e-4)
    assert [p[0] for p in pieces] == [start, *(p[1] for p in pieces[:-1])][: len(pieces)]
    found = torch.cat([torch.empty(0), *(d for _, _, d in pieces)])
    assert torch.equal(found, everything[start:stop])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_kernel_adds_what_is_a_difference_already(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    first, *experts = (torch.randn(5000, generator=draw).to(dtype) for _ in range(6))
    added = torch.randn(5000, generator=draw)
    for count in (0, 1, 5):
        for place in {0, count // 2, count}:  # wherever it stands among the experts
            addresses = [e.data_ptr() for e in experts[:count]]
            codes = [kernel.CODES[dtype]] * count
            addresses.insert(place, added.data_ptr())
            codes.insert(place, kernel.DIFFERENCE)
            out, wanted = torch.empty(5000), torch.empty(5000)
            kernel.merge(
                first.data_ptr(), kernel.CODES[dtype], np.array(addresses), np.array(codes), np.float32(1),
                np.ones(count + 1, dtype=np.float32), out.data_ptr(), 0, 0, 5000,
            )  # fmt: skip
            reference.merge(wanted, first, experts[:count], 1.0, [1.0] * count, added)
            torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf"), 3.3e38])
@pytest.mark.parametrize("at", [0, 5000])
def test_the_kernel_sees_what_is_not_finite(dtype: torch.dtype, wrong: float, at: int) -> None:
    first, other, out = torch.zeros(5001), torch.zeros(5001), torch.empty(5001, dtype=dtype)
    other[at] = wrong
    assert by_kernel(out, first, [other], 1.0, [0.5]) == (wrong == 3.3e38)
    assert not by_kernel(out, first, [other], 1.0, [2.0])
    assert by_kernel(out, first, [other], 1.0, [0.0])  # an expert with coefficient 0 takes no part


def test_the_largest_bf16_is_finite_and_what_rounds_beyond_is_not() -> None:
    out, zeros = torch.empty(1, dtype=BF16), torch.zeros(1)
    for bits, finite in ((0x7F7F7FFF, True), (0x7F7F8000, False), (0x7F7FFFFF, False)):
        value = torch.tensor([bits], dtype=torch.int32).view(F32)
        assert by_kernel(out, value, [zeros], 1.0, [0.0]) == finite == bool(torch.isfinite(value.to(BF16)).all())


def pool_of(folder: Path, kind: str, dtype: torch.dtype, experts: int = 5) -> Pool:
    first = base(folder / "base", kind, dtype=dtype)
    named = {f"e{k}": expert(folder / f"e{k}", first, k, labels=k or None) for k in range(experts)}
    return Pool.open(first, named, heads=["classifier.*"], exclude=["*bias"] if kind == "vit" else [])


def recipe_of(pool: Pool, granularity: str = "tensor", value: float | None = None) -> Recipe:
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity=granularity, bounds=(0.0, 1e38))
    count = len(space.domain.names)
    return space.decode(np.full(count, value) if value is not None else np.random.default_rng(count).random(count))


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_the_resident_model_holds_what_an_export_reloads(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    pool = pool_of(tmp_path, kind, dtype)
    one, two = Resident(pool), Resident(pool, threads=2)
    recipe = recipe_of(pool)
    for resident in (one, two):
        resident.write(recipe_of(pool, "model", 0.9))  # whatever was there before
        resident.write(recipe)
    merged = dict(merged_tensors(pool, recipe))
    assert [(n, t.shape, t.dtype) for n, t in merged.items()] == [(t.name, t.shape, t.dtype) for t in pool.layout()]
    out = tmp_path / "out"
    out.mkdir()
    save_file({n: t.clone() for n, t in merged.items()}, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    reloaded = load_model(out).state_dict()
    for resident in (one, two):
        state = resident.model.state_dict()
        assert state.keys() == reloaded.keys()
        assert all(torch.equal(state[n], t) for n, t in reloaded.items())


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_each_tensor_has_its_own_groups_coefficients(tmp_path: Path, kind: str) -> None:
    pool = pool_of(tmp_path, kind, F32, 2)
    recipe = recipe_of(pool, "tensor")
    found = dict(merged_tensors(pool, recipe))
    for group, row in zip(recipe.groups, recipe.coefficients, strict=True):
        first = pool.base.tensor(group).double()
        wanted = first + sum(
            c * (e.tensor(group).double() - first) for c, e in zip(row, pool.experts.values(), strict=True)
        )
        torch.testing.assert_close(found[group].double(), wanted, rtol=1e-5, atol=1e-6)
    for info in pool.copied:
        assert torch.equal(found[info.name], pool.base.tensor(info.name))


def test_another_dtype_is_the_same_sum_rounded_once(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "llama", F32)
    recipe, resident = recipe_of(pool), Resident(pool, dtype=BF16)
    resident.write(recipe)
    state, exact = resident.model.state_dict(), dict(merged_tensors(pool, recipe))
    for name, tensor in merged_tensors(pool, recipe, BF16):
        assert torch.equal(state[name], tensor) and torch.equal(exact[name].to(BF16), tensor)


def test_experts_of_another_dtype_are_merged_as_they_are(tmp_path: Path) -> None:
    first = base(tmp_path / "base", "llama", dtype=BF16)
    half = expert(tmp_path / "half", first, 1)
    tensors = {k: v.to(F16) for k, v in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    pool = Pool.open(first, {"half": half})
    for name, tensor in merged_tensors(pool, recipe_of(pool, "model", 1.0)):
        assert tensor.dtype == BF16
        torch.testing.assert_close(tensor.float(), tensors[name].float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_weights_that_overflow_are_a_failed_candidate_and_the_next_is_none(tmp_path: Path, dtype: torch.dtype) -> None:
    pool = pool_of(tmp_path, "bert", dtype)
    resident, good = Resident(pool), recipe_of(pool)
    with pytest.raises(NonFinite, match=r"merged tensor '.*' has NaN or infinity"):
        resident.write(huge(pool))
    with pytest.raises(NonFinite, match="merged tensor"):
        list(merged_tensors(pool, huge(pool)))
    resident.write(good)
    state = resident.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in merged_tensors(pool, good))


def huge(pool: Pool) -> Recipe:
    """Coefficients beyond fp32."""
    recipe = recipe_of(pool)
    return replace(recipe, coefficients=np.full_like(recipe.coefficients, 1e300))


def test_the_files_of_a_pool_are_never_written(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert", F32)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    Resident(pool).write(recipe_of(pool))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == before


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    first = base(tmp_path / "base", "llama", tie_word_embeddings=True)
    pool = Pool.open(first, {"a": expert(tmp_path / "a", first, 1)})
    resident, recipe = Resident(pool), recipe_of(pool)
    resident.write(recipe)
    state = resident.model.state_dict()
    wanted = dict(merged_tensors(pool, recipe))["model.embed_tokens.weight"]
    assert torch.equal(state["lm_head.weight"], wanted) and torch.equal(state["model.embed_tokens.weight"], wanted)


def test_a_model_is_loaded_for_evaluation_and_what_is_not_stored_is_never_random(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    tensors = {k: v for k, v in load_file(first / "model.safetensors").items() if not k.startswith("pooler")}
    save_file(tensors, first / "model.safetensors", {"format": "pt"})
    model = load_model(first)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.pooler.dense.weight.isnan().all() and not model.embeddings.word_embeddings.weight.isnan().any()


def test_a_pool_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert", F32, 1)
    path = tmp_path / "base" / "config.json"
    path.write_text('{"model_type": "no_such_model"}')
    with pytest.raises(PoolError, match="transformers cannot load"):
        Resident(pool)


def test_a_tensor_that_the_model_has_no_place_for_is_refused(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = expert(tmp_path / "a", first, 1)
    for folder in (first, other):
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "adapter.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PoolError, match=r"no parameter for tensor 'adapter\.weight'.*models\.exclude"):
        Resident(Pool.open(first, {"a": other}))


def test_a_recipe_of_another_pool_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert", F32, 2)
    other = Pool.open(tmp_path / "base", {"x": tmp_path / "e0"})
    with pytest.raises(RecipeError, match="experts are"):
        Resident(pool).write(recipe_of(other))
    smaller = Pool.open(
        tmp_path / "base", {"e0": tmp_path / "e0", "e1": tmp_path / "e1"}, ["classifier.*"], ["pooler.*"]
    )
    with pytest.raises(RecipeError, match="groups are not this pool's"):
        list(merged_tensors(pool, recipe_of(smaller)))
