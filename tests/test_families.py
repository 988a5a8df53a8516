"""Does every architecture merge as itself? Weights, gradients and exports against transformers' own loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from families import FAMILIES, Family
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe, Resident
from searchspaces.errors import PoolError
from searchspaces.models import shards
from searchspaces.models.layout import Part
from searchspaces.models.loading import load_model, targets
from searchspaces.weights.materialise import merged_tensors


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def pool_of(folder: Path, family: Family) -> Pool:
    base = family.save(folder / "base")
    return Pool.open(base, {f"e{k}": pico.expert(folder / f"e{k}", base, k) for k in (1, 2)})


def space_of(pool: Pool, granularity: str = "layer") -> CoefficientSpace:
    return CoefficientSpace([t.name for t in pool.merged], pool.names, granularity=granularity, blocks=pool.blocks)


def recipe_of(space: CoefficientSpace, seed: int = 0) -> Recipe:
    return space.decode(np.random.default_rng(seed).uniform(0.05, 0.95, len(space.domain.low)))


def exported(folder: Path, pool: Pool, recipe: Recipe) -> Path:
    folder.mkdir()
    specs = [shards.Spec(n, s, d) for n, s, d in pool.layout()]
    shards.write(folder, specs, merged_tensors(pool, recipe))
    shutil.copy(pool.base.folder / "config.json", folder)
    return folder


def outputs(model: Any, family: Family) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(tensors(model(**family.inputs()).to_tuple()))


def tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors(part)
    elif hasattr(output, "to_tuple"):
        yield from tensors(output.to_tuple())


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    assert found and len(found) == len(expected) and all(t.isfinite().all() for t in expected)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("granularity", ["module", "tensor"])
def test_what_is_exported_answers_as_what_was_resident(tmp_path: Path, family: Family, granularity: str) -> None:
    pool = pool_of(tmp_path, family)
    resident = Resident(pool)
    recipe = recipe_of(space_of(pool, granularity))
    before = outputs(resident.model, family)
    resident.write(recipe)
    written = outputs(resident.model, family)
    assert same(outputs(load_model(exported(tmp_path / "out", pool, recipe)), family), written)
    assert not same(before, written)
    resident.write_expert("e2")
    assert same(outputs(resident.model, family), outputs(load_model(tmp_path / "e2"), family))
    resident.write(recipe)
    assert same(outputs(resident.model, family), written)


def loss(model: Any, family: Family) -> torch.Tensor:
    """A loss that touches every output, symmetric in nothing."""
    total = torch.zeros(())
    for part in tensors(model(**family.inputs()).to_tuple()):
        if part.requires_grad:
            total = total + (torch.tanh(part) * torch.linspace(-1, 1, part.numel()).view(part.shape)).sum()
    return total


def test_the_gradient_is_that_by_the_parameters_which_transformers_makes(tmp_path: Path, family: Family) -> None:
    """Against <dL/dW, W'>, where W' is what transformers loads from a checkpoint of one group's task vector alone."""
    pool = pool_of(tmp_path, family)
    space, resident = space_of(pool), Resident(pool)
    recipe = recipe_of(space)
    resident.write(recipe)
    with resident.tracking():
        loss(resident.model, family).backward()
        found = resident.gradient(recipe)
        grads = {name: p.grad.clone() for name, p in resident.model.named_parameters() if p.grad is not None}
    assert not any(p.requires_grad or p.grad is not None for p in resident.model.parameters())
    base, expert = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "e1"))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "base" / "config.json", alone)
    scale = max(float(np.abs(found).max()), 1e-3)
    for row, names in enumerate(space.groups.values()):
        vector = {n: expert[n] - t if n in names else torch.zeros_like(t) for n, t in base.items()}
        save_file(vector, alone / "model.safetensors", {"format": "pt"})
        ways = dict(load_model(alone).named_parameters())
        expected = sum(float((grad * ways[name]).sum()) for name, grad in grads.items())
        assert found[row, 0] == pytest.approx(expected, rel=1e-4, abs=2e-5 * scale)
    assert np.count_nonzero(found) > found.size / 2


def test_layers_are_the_models_blocks_and_modules_their_parts(tmp_path: Path, family: Family) -> None:
    pool = pool_of(tmp_path, family)
    assert tuple(g for g in pool.groups("layer") if g != "embeddings") == family.layers
    last = [group for group in family.layers if group[-1].isdigit()][-1]
    found = sorted(g.removeprefix(f"{last}.") for g in pool.groups("module") if g.startswith(f"{last}."))
    assert tuple(found) == family.modules
    every = sorted(t.name for t in pool.merged)
    for granularity in ("layer", "module", "tensor"):
        assert sorted(t for group in pool.groups(granularity).values() for t in group) == every


def test_a_recipe_of_a_tree_of_modules_is_decoded_without_a_model(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, FAMILIES["musicgen"])
    assert pool.blocks == ("model.decoder.layers.0", "model.decoder.layers.1")
    space = space_of(pool)
    again = CoefficientSpace(**json.loads(json.dumps(space.describe())))
    assert again.decode(space.domain.start) == space.decode(space.domain.start)
    assert set(again.domain.layers) == set(pool.groups("layer"))
    # and a coarse recipe is lifted to what it says of each tensor
    fine = space_of(pool, "module")
    lifted = fine.decode(fine.encode(recipe_of(space)))
    merged = [dict(merged_tensors(pool, r)) for r in (recipe_of(space), lifted)]
    assert all(torch.equal(t, merged[1][name]) for name, t in merged[0].items())


@pytest.mark.parametrize("name", ["mixtral", "nomic_bert", "qwen2_moe"])
def test_in_bf16_and_on_threads_what_is_converted_keeps_its_bits(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    pool = pool_of(tmp_path, family)
    recipe = recipe_of(space_of(pool))
    resident = Resident(pool, dtype=torch.bfloat16, threads=2)
    resident.write(recipe)
    folder = tmp_path / "out"
    folder.mkdir()
    specs = [shards.Spec(n, s, d) for n, s, d in pool.layout(torch.bfloat16)]
    shards.write(folder, specs, merged_tensors(pool, recipe, torch.bfloat16))
    shutil.copy(pool.base.folder / "config.json", folder)
    reloaded = load_model(folder, dtype=torch.bfloat16)
    held = dict(resident.model.named_parameters())
    assert all(torch.equal(p, held[n]) for n, p in reloaded.named_parameters())


def test_a_part_of_a_gradient_is_found_whatever_its_strides() -> None:
    owner = torch.zeros(3, 4, 5)
    part = Part(owner[1, 2:4], owner, "experts")
    values = torch.arange(60.0).view(3, 4, 5)
    for other in (values, values.permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.cat([values, values])[3:]):
        assert torch.equal(part.of(other), values[1, 2:4])


@contextmanager
def converting(operation: Any) -> Iterator[None]:
    """Inside, transformers stores a Llama's `mlp.down_proj` as `mlp.down`, changed by an operation."""
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.core_model_loading import WeightConverter

    changed = [WeightConverter("mlp.down.weight", "mlp.down_proj.weight", operations=[operation])]
    before = get_checkpoint_conversion_mapping("llama")
    register_checkpoint_conversion_mapping("llama", changed, overwrite=True)
    try:
        yield
    finally:
        register_checkpoint_conversion_mapping("llama", before or [], overwrite=True)


def test_a_stored_tensor_that_transformers_transposes_is_merged_too(tmp_path: Path) -> None:
    from transformers.core_model_loading import Transpose

    with converting(Transpose(0, 1)):
        test_what_is_exported_answers_as_what_was_resident(tmp_path, FAMILIES["llama"], "tensor")
        assert load_file(tmp_path / "base" / "model.safetensors")["model.layers.0.mlp.down.weight"].shape == (24, 16)
        (tmp_path / "two").mkdir()
        test_the_gradient_is_that_by_the_parameters_which_transformers_makes(tmp_path / "two", FAMILIES["llama"])


def test_a_stored_tensor_that_transformers_shuffles_is_refused_by_name(tmp_path: Path) -> None:
    from transformers.core_model_loading import Interleave

    with converting(Interleave(dim=0)):
        pool = pool_of(tmp_path, FAMILIES["llama"])
        with pytest.raises(PoolError, match=r"no parameter for tensor 'model.layers.0.mlp.down.weight' \(16, 24\)"):
            Resident(pool)
        left = Pool.open(tmp_path / "base", {"e1": tmp_path / "e1"}, exclude=["*.mlp.down.weight"])
        Resident(left).write(recipe_of(space_of(left)))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_that_does_not_hold_the_bases_values_is_refused(tmp_path: Path, dtype: torch.dtype | None) -> None:
    pool = pool_of(tmp_path, FAMILIES["mixtral"])
    model = load_model(pool.base.folder, dtype=dtype)
    targets(pool, model)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2].mul_(-1)
    with pytest.raises(PoolError, match=r"changes the values of tensor 'model.layers.1.*experts.2.w2.weight'"):
        targets(pool, model)


def test_a_layout_that_cannot_be_followed_is_refused_by_name(tmp_path: Path) -> None:
    base = FAMILIES["mixtral"].save(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    save_file({n: t.T.contiguous() if n == name else t for n, t in stored.items()}, base / "model.safetensors")
    pool = Pool.open(base, {"e1": pico.expert(tmp_path / "e1", base, 1)})
    with pytest.raises(PoolError, match=r"MixtralForCausalLM|transformers cannot load"):
        Resident(pool)
