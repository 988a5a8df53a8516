"""Are an accelerator's weights and gradients those of the kernels? On the CPU with plain buffers, and on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import pico
import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from searchspaces import CoefficientSpace, Pool, Recipe, Resident, methods, processed
from searchspaces.errors import NonFinite, PoolError
from searchspaces.weights.accelerator import Accelerated, Hold, Limit
from searchspaces.weights.merger import Merged

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
HOLDS: list[Hold] = ["device", "stream"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks a tensor, of lengths that divide nothing."""
    monkeypatch.setattr("searchspaces.weights.accelerator.CHUNKS", {"cpu": 301, "cuda": 301})
    monkeypatch.setattr("searchspaces.weights.accelerator.STAGED", 2000)


def full(folder: Path, dtype: torch.dtype = F32) -> Pool:
    base = pico.base(folder / "base", "llama", dtype=dtype)
    return Pool.open(base, {n: pico.expert(folder / n, base, k) for k, n in enumerate("abc", 1)})


def low(folder: Path, dtype: torch.dtype = F32) -> Pool:
    """A whole expert between adapters of other ranks, one of which leaves most tensors alone."""
    base = pico.base(folder / "base", "gpt2", dtype=dtype)
    wide = pico.adapter(folder / "wide", base, 1, r=5, scale=0.1, target_modules=["c_attn", "c_proj", "c_fc"])
    few = pico.adapter(folder / "few", base, 2, r=2, scale=0.1, target_modules=["c_attn"], bias="lora_only")
    return Pool.open(base, {"wide": wide, "full": pico.expert(folder / "full", base, 3), "few": few})


def other(folder: Path, dtype: torch.dtype = F32) -> Pool:
    """Experts in other dtypes than the base's."""
    pool = full(folder, dtype)
    for name, kind in (("a", F16), ("b", torch.float64)):
        file = pool.experts[name].folder / "model.safetensors"
        save_file({k: v.to(kind) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return Pool.open(pool.base.folder, {n: e.folder for n, e in pool.experts.items()})


def recipe_of(pool: Pool, seed: int = 0, **options: Any) -> Recipe:
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, bounds=(-1.0, 1.0), start=0.3, **options)
    return space.decode(np.random.default_rng(seed).uniform(-1, 1, len(space.domain.low)))


def merged_of(pool: Pool) -> list[Merged]:
    """A pool's tensors, each with room for itself."""
    return [Merged.of(pool, t.name, torch.empty(t.numel, dtype=t.dtype)) for t in pool.merged]


def weights(resident: Resident, recipe: Recipe) -> dict[str, torch.Tensor]:
    resident.write(recipe)
    return {name: tensor.cpu().clone() for name, tensor in resident.model.state_dict().items()}


def gradient(resident: Resident, recipe: Recipe, what: str = "gradient") -> np.ndarray:
    resident.write(recipe)
    ids = torch.arange(5, 25, device=resident.device).view(2, 10)
    with resident.tracking():
        resident.model(input_ids=ids, labels=ids).loss.backward()
        found: np.ndarray = getattr(resident, what)(recipe)
    return found


def agree(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """To fp32 rounding, and then at most one step of a narrower dtype."""
    tolerance = 2e-6 if dtype == F32 else torch.finfo(dtype).eps
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=tolerance, atol=2e-6)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("pool_of", [full, low, other])
def test_weights_are_the_kernels(tmp_path: Path, pool_of: Any, dtype: torch.dtype, hold: Hold, device: str) -> None:
    pool = pool_of(tmp_path, dtype)
    kernels, ours = Resident(pool), Resident(pool, device, hold=hold, threads=2)
    for seed in (1, 2):  # twice: nothing of the first candidate is left
        recipe = recipe_of(pool, seed, granularity="tensor")
        agree(weights(ours, recipe), weights(kernels, recipe), dtype)
    again = weights(ours, recipe)
    assert all(torch.equal(t, again[n]) for n, t in weights(ours, recipe).items()), "the same bits every time"


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("what", ["gradient", "cosines", "sizes", "grams"])
@pytest.mark.parametrize("pool_of", [full, low, other])
def test_gradients_are_the_kernels(tmp_path: Path, pool_of: Any, what: str, hold: Hold, device: str) -> None:
    pool = pool_of(tmp_path)
    recipe = recipe_of(pool, granularity="tensor", method="linear", options={"normalize": False})
    wanted = gradient(Resident(pool), recipe, what)
    found = gradient(Resident(pool, device, hold=hold), recipe, what)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_gets_its_weights_wherever_it_keeps_them(tmp_path: Path, kind: str, hold: Hold) -> None:
    base = FAMILIES[kind].save(tmp_path / "base")
    pool = Pool.open(base, {n: pico.expert(tmp_path / n, base, k) for k, n in enumerate("ab", 1)})
    recipe = recipe_of(pool, blocks=pool.blocks)
    agree(weights(Resident(pool, hold=hold), recipe), weights(Resident(pool), recipe), F32)


@pytest.mark.parametrize("hold", HOLDS)
def test_coefficients_of_0_give_the_base_to_the_bit_and_read_no_expert(tmp_path: Path, hold: Hold) -> None:
    pool = full(tmp_path, BF16)
    file = pool.experts["a"].folder / "model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, start=0.0)
    found = weights(Resident(pool, hold=hold), space.decode(space.domain.start))
    assert all(torch.equal(found[t.name], pool.base.tensor(t.name)) for t in pool.merged)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_named_and_the_next_candidate_is_sound(
    tmp_path: Path, hold: Hold, wrong: float, device: str
) -> None:
    pool = full(tmp_path)
    file = pool.experts["b"].folder / "model.safetensors"
    tensors = load_file(file)
    bad = "model.layers.1.mlp.up_proj.weight"
    tensors[bad][-1, -1] = wrong  # in the last of several chunks
    save_file(tensors, file, metadata={"format": "pt"})
    resident = Resident(pool, device, hold=hold)
    with pytest.raises(NonFinite, match=bad):
        resident.write(recipe_of(pool))
    space = CoefficientSpace([t.name for t in pool.merged], pool.names)
    alone = space.decode(np.array([0.5 if "[a]" in n or n.endswith("a") else 0.0 for n in space.domain.names]))
    agree(weights(resident, alone), weights(Resident(pool), alone), F32)


@pytest.mark.parametrize("hold", HOLDS)
def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path, hold: Hold) -> None:
    pool = full(tmp_path)
    resident, recipe = Resident(pool, hold=hold), recipe_of(pool)
    resident.write(recipe)
    with resident.tracking():
        parameter = resident.model.model.norm.weight
        parameter.grad = torch.full_like(parameter, float("nan"))
        with pytest.raises(NonFinite, match=r"gradient of merged tensor 'model\.norm\.weight'"):
            resident.gradient(recipe)


def test_on_the_cpu_auto_maps_and_says_so(tmp_path: Path) -> None:
    pool = full(tmp_path)
    recipe = recipe_of(pool)
    assert "mapped" in Resident(pool).reads(recipe)["cpu"]
    assert "streamed" in Resident(pool, hold="stream").reads(recipe)["cpu"]
    assert Resident(pool, hold="device").reads(recipe)["cpu"].endswith("on cpu")


class Room(Limit):
    """A device that says how much is free."""

    def room(self, device: torch.device) -> int | None:
        return self.spare


@pytest.mark.parametrize(("more", "held"), [(0, True), (-1, False)])
def test_auto_takes_the_device_exactly_where_the_pool_fits(tmp_path: Path, more: int, held: bool) -> None:
    pool = full(tmp_path)
    tensors = merged_of(pool)
    bytes_ = pool.bytes * 4  # base and three experts
    made = Accelerated(torch.device("cpu"), tensors, "auto", Room(1.0, bytes_ + more))
    assert ("streamed" not in made.describe()) == held
    assert made.bytes == bytes_


def test_a_pool_that_is_to_live_where_it_has_no_room_is_refused(tmp_path: Path) -> None:
    made = Accelerated(torch.device("cpu"), merged_of(full(tmp_path)), "device", Room(1.0, 1000))
    with pytest.raises(PoolError, match=r"executor\.pool: device needs .* 0\.00 GB are left .*say pool: stream"):
        made.describe()


def test_a_device_that_runs_out_on_the_way_is_streamed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_up(self: Accelerated) -> None:
        raise torch.OutOfMemoryError("somebody else came first")

    monkeypatch.setattr(Accelerated, "_brought", full_up)
    tensors = merged_of(full(tmp_path))
    assert "streamed" in Accelerated(torch.device("cpu"), tensors, "auto", Room(1.0, 10**9)).describe()
    with pytest.raises(PoolError, match="no room left"):
        Accelerated(torch.device("cpu"), tensors, "device", Room(1.0, 10**9)).describe()


class NoWaiting(TorchDispatchMode):
    """Refuses to read a number off the device, for which the host would wait until it is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["ties", "della_linear", "breadcrumbs", "sce", "consensus", "magmax", "multislerp"])
def test_no_chunk_waits_for_the_device(tmp_path: Path, method: str) -> None:
    resident = Resident(pool := full(tmp_path), hold="device")
    recipe = recipe_of(pool, method=method)
    resident.write(recipe)
    ids = torch.arange(5, 25, device=resident.device).view(2, 10)
    with resident.tracking():
        resident.model(input_ids=ids, labels=ids).loss.backward()
        with NoWaiting():
            resident.write(recipe)
            if methods.load(method)(recipe.options).linear:
                resident.gradient(recipe)


@pytest.mark.parametrize(("pools", "made"), [(2.5, 2), (1.5, 4)])
def test_processed_pools_stay_on_the_device_while_there_is_room(
    tmp_path: Path, pools: float, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pool, asked, held = full(tmp_path), list[float](), [0]
    brought = Accelerated._brought

    def counted(self: Accelerated) -> Any:
        held[0] += self.bytes
        finalize(self, lambda: held.__setitem__(0, held[0] - pool.bytes * 4))
        return brought(self)

    def made_of(recipe: Recipe) -> Pool:
        asked.append(float(recipe.options["density"]))
        return processed(pool, recipe.method, recipe.options)

    class Left(Limit):
        def room(self, device: torch.device) -> int | None:
            return self.spare - held[0]

    monkeypatch.setattr(Accelerated, "_brought", counted)
    limit = Left(1.0, int(pools * pool.bytes * 4))  # base and three experts
    resident = Resident(pool, hold="device", limit=limit, pools=made_of)
    recipes = [recipe_of(pool, method="ties_once", options={"density": d, "scope": "tensor"}) for d in (0.2, 0.7)]
    found = [weights(resident, recipe) for recipe in recipes * 2]
    assert len(asked) == made  # one that has gone is brought again, and none is refused
    for first, again in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(first[n], again[n]) for n in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_share_of_a_cuda_device_is_counted_with_what_is_taken_of_it() -> None:
    device = torch.device("cuda:0")
    whole, half = Limit().room(device), Limit(0.5).room(device)
    assert whole is not None and half is not None and 0 < half <= whole
    assert Limit(spare=1000).room(device) <= whole
