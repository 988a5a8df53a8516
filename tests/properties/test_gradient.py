"""Is the coefficient gradient the derivative? Against autograd through the whole expression, in every space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pico
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from searchspaces import CoefficientSpace, Pool, Resident, processed
from searchspaces.adapters.lowrank import LowRank, inner_products
from searchspaces.algebra import simplex
from searchspaces.errors import NonFinite
from searchspaces.groups import GRANULARITIES
from searchspaces.models.loading import load_model, targets
from searchspaces.weights import kernel, reference

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("task_arithmetic", {"lambda": 0.7}),
    ("linear", {}),
    ("linear", {"normalize": False}),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pool_of(folder: Path, kind: str, dtype: torch.dtype = torch.float32, experts: int = 3, **changes: object) -> Pool:
    base = pico.base(folder / "base", kind, dtype=dtype, **changes)
    names = [f"e{k}" for k in range(experts)]
    return Pool.open(base, {n: pico.expert(folder / n, base, k + 1) for k, n in enumerate(names)})


def with_adapters(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Pool:
    """A full expert between adapters of other ranks, one of which leaves most tensors alone."""
    base = pico.base(folder / "base", kind, dtype=dtype)
    wide = pico.adapter(folder / "wide", base, 1, r=5, scale=0.1)
    few = pico.adapter(
        folder / "few", base, 2, r=2, scale=0.1, target_modules=r".*\.1\..*(query|q_proj|fc1|dense|up_proj)"
    )
    return Pool.open(base, {"wide": wide, "full": pico.expert(folder / "full", base, 3), "few": few})


def inputs(kind: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=draw)}
    return {"input_ids": torch.randint(5, 30, (3, 7), generator=draw)}


def loss_of(output: Any) -> torch.Tensor:
    """A loss that touches every output, not symmetric in anything."""
    found = getattr(output, "logits", None)
    found = output.last_hidden_state if found is None else found
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    return (torch.tanh(found) * weights).sum() + 0.01 * (found.float() ** 2).mean()


def space_of(pool: Pool, **options: Any) -> CoefficientSpace:
    return CoefficientSpace([t.name for t in pool.merged], pool.names, start=0.2, **options)


def by_autograd(pool: Pool, space: CoefficientSpace, point: np.ndarray, kind: str, dtype: torch.dtype) -> np.ndarray:
    """d loss / d coefficients, (G, K): merged weights as a graph through every expert."""
    model = load_model(pool.base.folder, dtype=dtype)
    recipe = space.decode(point)
    c = torch.tensor(recipe.coefficients, dtype=torch.float32, requires_grad=True)
    row = {t: g for g, tensors in enumerate(space.groups.values()) for t in tensors}
    places = {t.data_ptr(): name for name, t in model.state_dict().items()}
    merged: dict[str, torch.Tensor] = {}
    for name, place in targets(pool, model).items():
        base = pool.base.tensor(name).float()
        tau = torch.stack([e.tensor(name).float() - base for e in pool.experts.values()])
        weights = c[row[name]]
        whole = recipe.method == "linear" and not recipe.options["normalize"]
        if recipe.method == "linear" and recipe.options["normalize"]:
            weights = weights / weights.sum()
        scale = float(recipe.options.get("lambda", 1.0))
        total = base * (weights.sum() if whole else 1.0) + scale * torch.tensordot(weights, tau, 1)
        merged[places[place.parts[0].view.data_ptr()]] = total.to(dtype)
    loss_of(functional_call(model, merged, (), inputs(kind))).backward()
    assert c.grad is not None
    return c.grad.double().numpy()


def by_streaming(resident: Resident, space: CoefficientSpace, point: np.ndarray, kind: str) -> np.ndarray:
    recipe = space.decode(point)
    resident.write(recipe)
    with resident.tracking():
        loss_of(resident.model(**inputs(kind))).backward()
        found = resident.gradient(recipe)
    assert not any(p.requires_grad or p.grad is not None for p in resident.model.parameters())
    return found


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=["task_arithmetic", "normalised", "linear"])
@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "tied"])
def test_it_is_what_autograd_finds(
    tmp_path: Path, kind: str, method: str, options: dict[str, Any], granularity: str
) -> None:
    changes: Mapping[str, object] = {"tie_word_embeddings": True} if kind == "tied" else {}
    kind = "llama" if kind == "tied" else kind
    pool = pool_of(tmp_path, kind, **changes)
    space = space_of(pool, method=method, options=options, granularity=granularity)
    point = np.random.default_rng(1).uniform(0.1, 0.5, len(space.domain.low))
    found = by_streaming(Resident(pool), space, point, kind)
    assert distance(found, by_autograd(pool, space, point, kind, torch.float32)) < 1e-5


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_in_bf16_it_agrees_to_what_bf16_holds(tmp_path: Path, granularity: str) -> None:
    pool = pool_of(tmp_path, "bert", torch.bfloat16)
    space = space_of(pool, granularity=granularity)
    found = by_streaming(Resident(pool), space, space.domain.start, "bert")
    assert distance(found, by_autograd(pool, space, space.domain.start, "bert", torch.bfloat16)) < 1e-2


def test_gradients_add_up_over_backward_passes_and_are_forgotten(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert")
    space, resident = space_of(pool), Resident(pool)
    recipe = space.decode(space.domain.start)
    resident.write(recipe)
    with resident.tracking():
        for _ in range(2):
            loss_of(resident.model(**inputs("bert"))).backward()
        twice = resident.gradient(recipe)
        resident.forget()
        loss_of(resident.model(**inputs("bert"))).backward()
        once = resident.gradient(recipe)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_threads_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchspaces.weights.gradient.SLICE", 100)  # many slices a tensor
    pool = pool_of(tmp_path, "bert")
    space = space_of(pool, granularity="tensor")
    found = [by_streaming(Resident(pool, threads=n), space, space.domain.start, "bert") for n in (1, 4)]
    assert found[0].tobytes() == found[1].tobytes()


@given(
    size=st.integers(1, 6000),
    count=st.integers(0, 9),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16]), min_size=11, max_size=11),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_the_kernel_is_the_reference(size: int, count: int, dtypes: list[torch.dtype], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    base, grad, *experts = (torch.randn(size, generator=draw).to(d) for d in dtypes[: count + 2])
    out = np.empty(count + 2)
    kernel.products(
        *(base.data_ptr(), kernel.CODES[base.dtype]),
        np.array([e.data_ptr() for e in experts], dtype=np.int64),
        np.array([kernel.CODES[e.dtype] for e in experts], dtype=np.int64),
        *(grad.data_ptr(), kernel.CODES[grad.dtype], 0, size, out),
    )
    exact = [float(grad.double() @ (e.double() - base.double())) for e in experts]
    exact += [float(grad.double() @ base.double()), float(grad.double() @ grad.double())]
    scale = 1e-5 * (1 + size**0.5)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=scale)
    np.testing.assert_allclose(reference.products(grad, base, experts), exact, rtol=1e-5, atol=scale)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60)
def test_task_vectors_of_low_rank_need_not_be_made(
    rows: int, columns: int, ranks: list[int], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    draw = torch.Generator().manual_seed(seed)
    grad = torch.randn(rows * columns, generator=draw).to(dtype)
    lows = [
        LowRank(torch.randn(rows, r, generator=draw), torch.randn(columns, r, generator=draw).to(dtype).T, 0.5 * r)
        for r in ranks
    ]
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    with mock.patch("searchspaces.adapters.lowrank.ROWS", 7):
        found = inner_products(lows, grad, first * columns, last * columns)
    part = grad.double().view(rows, columns)[first:last]
    exact = [float((part * (p.left[first:last].double() @ p.right.double())).sum() * p.scale) for p in lows]
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4 * (1 + (rows * columns) ** 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 64, 4999])
def test_an_experts_product_has_the_same_bits_in_any_company(size: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    base, grad, *experts = (torch.randn(size, generator=draw).to(dtype) for _ in range(8))
    code = kernel.CODES[dtype]

    def found(some: list[torch.Tensor]) -> np.ndarray:
        out = np.empty(len(some) + 2)
        addresses = np.array([e.data_ptr() for e in some], dtype=np.int64)
        codes = np.full(len(some), code)
        kernel.products(base.data_ptr(), code, addresses, codes, grad.data_ptr(), code, 0, size, out)
        return out[:-2]

    assert found(experts).tolist() == [float(found([e])[0]) for e in experts]


def test_a_gradient_that_is_not_finite_names_its_tensor(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert")
    space, resident = space_of(pool), Resident(pool)
    recipe = space.decode(space.domain.start)
    resident.write(recipe)
    with resident.tracking():
        loss_of(resident.model(**inputs("bert"))).backward()
        parameter = dict(resident.model.named_parameters())["encoder.layer.1.output.dense.weight"]
        assert parameter.grad is not None
        parameter.grad[3, 4] = float("nan")
        with pytest.raises(NonFinite, match=r"'encoder\.layer\.1\.output\.dense\.weight'"):
            resident.gradient(recipe)


@pytest.mark.parametrize("make", [pool_of, with_adapters], ids=["full", "adapters"])
def test_cosines_and_sizes_are_what_they_say(tmp_path: Path, make: Callable[[Path, str], Pool]) -> None:
    pool = make(tmp_path, "bert")
    space, resident = space_of(pool, granularity="layer"), Resident(pool)
    recipe = space.decode(space.domain.start)
    resident.write(recipe)
    with resident.tracking():
        loss_of(resident.model(**inputs("bert"))).backward()
        found = resident.cosines(recipe)
        grads = {
            name: p.grad.double().reshape(-1) for name, p in resident.model.named_parameters() if p.grad is not None
        }
    for g, tensors in enumerate(space.groups.values()):
        for k, expert in enumerate(pool.experts.values()):
            pairs = [(grads[t], expert.tensor(t).double().reshape(-1)) for t in tensors if t in grads]
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs if a.norm() * b.norm() > 0]
            assert found[g, k] == pytest.approx(sum(cosines), abs=1e-5)
            size = sum(float((expert.tensor(t) - pool.base.tensor(t)).abs().sum()) for t in tensors)
            assert resident.sizes(recipe)[g, k] == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("make", [pool_of, with_adapters], ids=["full", "adapters"])
def test_grams_are_inner_products_sums_and_counts_and_their_parts_add_up(
    tmp_path: Path, make: Callable[[Path, str], Pool]
) -> None:
    pool = make(tmp_path, "bert")
    turned = pool.names[::-1]
    space = CoefficientSpace([t.name for t in pool.merged], turned, start=0.2, granularity="layer")
    recipe = space.decode(space.domain.start)
    resident = Resident(pool, threads=2)
    with mock.patch.object(reference, "CHUNK", 100):  # in pieces
        found = resident.grams(recipe)
    np.testing.assert_allclose(sum(resident.grams(recipe, (i, 3)) for i in range(3)), found, rtol=1e-12)
    for g, tensors in enumerate(space.groups.values()):
        moved = [
            torch.cat([(pool.experts[k].tensor(t) - pool.base.tensor(t)).double().reshape(-1) for t in tensors])
            for k in turned
        ]
        products = [[float(a @ b) for b in moved] for a in moved]
        scale = max(products[k][k] for k in range(3))
        np.testing.assert_allclose(found[:3, g], products, rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_allclose(found[3, g], [float(a.sum()) for a in moved], rtol=1e-5, atol=1e-5)
        assert (found[4, g] == len(moved[0])).all()


def test_experts_in_another_order_have_their_columns_in_that_order(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert")
    space = space_of(pool)
    turned = CoefficientSpace([t.name for t in pool.merged], pool.names[::-1], start=0.2)
    resident = Resident(pool)
    there, back = (by_streaming(resident, s, s.domain.start, "bert") for s in (space, turned))
    np.testing.assert_array_equal(there, back[:, ::-1])


def test_by_the_point_of_a_frozen_simplex_it_is_what_autograd_finds(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert")
    space = space_of(pool, simplex=True, frozen=["embeddings"])
    u = np.random.default_rng(0).uniform(0.1, 0.9, len(space.domain.low))
    found = space.pull(u, by_streaming(Resident(pool), space, u, "bert"))
    point = torch.tensor(u).view(space.domain.shape).requires_grad_(True)
    kept = (1 - point) ** (1 / torch.arange(space.domain.shape[1], 0, -1))
    rest = torch.cumprod(kept, 1)
    c = torch.cat([torch.ones(len(kept), 1, dtype=rest.dtype), rest[:, :-1]], 1) * (1 - kept)
    np.testing.assert_allclose(c.detach().numpy(), space.decode(u).coefficients[1:], atol=1e-12)
    c.backward(torch.tensor(by_autograd(pool, space, u, "bert", torch.float32)[1:]))
    assert point.grad is not None
    assert distance(found, point.grad.numpy().ravel()) < 1e-5


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_of_processed_task_vectors_it_is_what_autograd_finds(tmp_path: Path, scope: str) -> None:
    options = {"density": 0.4, "lambda": 0.7, "scope": scope}
    pool = processed(pool_of(tmp_path, "bert"), "ties_once", options)
    space = space_of(pool, method="ties_once", options=options, granularity="module")
    found = by_streaming(Resident(pool), space, space.domain.start, "bert")
    assert distance(found, by_autograd(pool, space, space.domain.start, "bert", torch.float32)) < 1e-5


def test_without_the_kernel_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(tmp_path, "vit")
    space = space_of(pool, granularity="module")
    found = by_streaming(Resident(pool), space, space.domain.start, "vit")
    monkeypatch.setattr(kernel, "CODES", {})  # as for a device or dtype that it does not know
    monkeypatch.setattr(kernel, "products", None)
    assert distance(found, by_streaming(Resident(pool), space, space.domain.start, "vit")) < 1e-6


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_of_adapters_it_is_what_autograd_finds(
    tmp_path: Path, kind: str, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchspaces.weights.gradient.SLICE", 100)  # that cuts rows in pieces
    pool = with_adapters(tmp_path, kind)
    space = space_of(pool, granularity=granularity)
    point = np.random.default_rng(1).uniform(0.1, 0.5, len(space.domain.low))
    found = by_streaming(Resident(pool, threads=2), space, point, kind)
    assert distance(found, by_autograd(pool, space, point, kind, torch.float32)) < 1e-5
    monkeypatch.setattr(kernel, "CODES", {})
    monkeypatch.setattr(kernel, "products", None)
    assert distance(by_streaming(Resident(pool), space, point, kind), found) < 1e-6


def test_threads_change_no_bit_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchspaces.weights.gradient.SLICE", 100)
    pool = with_adapters(tmp_path, "bert")
    space = space_of(pool, granularity="tensor")
    found = [by_streaming(Resident(pool, threads=n), space, space.domain.start, "bert") for n in (1, 4)]
    assert found[0].tobytes() == found[1].tobytes()


def test_on_the_faces_of_the_simplex_the_slope_is_finite() -> None:
    corners = np.array(np.meshgrid([0.0, 0.5, 1.0], [0.0, 1.0], [0.0, 1.0])).reshape(3, -1).T
    assert np.isfinite(simplex.pull(corners, np.ones_like(corners))).all()


def test_the_resident_model_becomes_an_expert_and_a_merge_again(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "bert")
    held = Pool.open(pool.base.folder, {n: e.folder for n, e in pool.experts.items()}, exclude=["embeddings.*"])
    space, resident = space_of(held), Resident(held)
    recipe = space.decode(space.domain.start)
    resident.write(recipe)
    before = {k: v.clone() for k, v in resident.model.state_dict().items()}
    resident.write_expert("e1")
    with torch.no_grad():
        own = load_model(held.experts["e1"].folder)(**inputs("bert")).last_hidden_state
        assert torch.equal(resident.model(**inputs("bert")).last_hidden_state, own)
    resident.write(recipe)
    for name, tensor in resident.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_an_experts_head_is_not_the_resident_models(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "llama", experts=1)
    held = Pool.open(pool.base.folder, {"e0": pool.experts["e0"].folder}, ["lm_head.*"], ["model.norm.*"])
    resident = Resident(held)
    resident.write_expert("e0")
    state = resident.model.state_dict()
    assert torch.equal(state["lm_head.weight"], held.base.tensor("lm_head.weight"))
    assert torch.equal(state["model.norm.weight"], held.experts["e0"].tensor("model.norm.weight"))
