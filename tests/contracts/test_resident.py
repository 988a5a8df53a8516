"""What does every method owe a worker? Bits that follow from the recipe: not from threads or from what came before."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from safetensors.torch import save_file

from searchspaces import METHODS, Pool, Recipe, Resident, processed
from searchspaces.methods import load
from searchspaces.option import complete
from searchspaces.weights.materialise import merged_tensors

NAMES = ("a", "b", "c")
Weights = dict[str, torch.Tensor]


class World:
    """Three experts of a pico Llama in bf16, the last a LoRA; statistics of each; and models that stay resident."""

    def __init__(self, home: Path) -> None:
        self.home, self.base = home, pico.base(home / "base", "llama", dtype=torch.bfloat16)
        self.folders = {name: pico.expert(home / name, self.base, k) for k, name in enumerate(NAMES[:2], 1)}
        self.folders["c"] = pico.adapter(home / "c", self.base, 3)
        self._residents: dict[tuple[int, int], Resident] = {}

    def raw(self, count: int) -> Pool:
        return Pool.open(self.base, {name: self.folders[name] for name in NAMES[-count:]})

    def merged(self, recipe: Recipe) -> Pool:
        """The pool that a recipe merges."""
        raw, kind = self.raw(len(recipe.experts)), getattr(load(recipe.method), "gathers", "")
        found = {name: self.statistics(raw, name, kind) for name in recipe.experts} if kind else None
        return processed(raw, recipe.method, recipe.options, statistics=found)

    def statistics(self, raw: Pool, expert: str, kind: str) -> Path:
        """Random ones: the squares of numbers, or Grams of a matrix's inputs."""
        folder = self.home / f"{kind}-{expert}"
        if not folder.exists():
            draw = torch.Generator().manual_seed(zlib.crc32(expert.encode()))
            numbers = {t.name: torch.randn(t.shape, generator=draw) for t in raw.merged}
            grams = {n: t.T @ t for n, t in numbers.items() if t.dim() == 2}
            folder.mkdir()
            save_file(grams if kind == "gram" else {n: t**2 for n, t in numbers.items()}, folder / "s.safetensors")
        return folder

    def resident(self, count: int, threads: int) -> Resident:
        if (count, threads) not in self._residents:
            self._residents[count, threads] = Resident(self.raw(count), threads=threads, pools=self.merged)
        return self._residents[count, threads]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.home / "cache"))


def recipes(method: str, raw: Callable[[int], Pool]) -> tuple[Recipe, Recipe]:
    """Two candidates, of other rows than one a multiple of the other."""
    kind = load(method)
    pool = raw(min(kind.experts[1] or 3, 3))
    rows = ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]) if kind.picks else ([0.5, -0.2, 0.7], [0.1, 0.6, 0.3])
    groups, options = tuple(pool.groups("model")), complete(method, kind.options, {})
    one, other = (
        Recipe(method, options, "model", groups, pool.names, np.array([row[: len(pool.names)]]), {}, seed)
        for row, seed in zip(rows, (5, 6) if kind.random else (0, 0), strict=True)
    )
    return one, other


def weights(resident: Resident) -> Weights:
    return {name: tensor.clone() for name, tensor in resident.model.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_candidate_has_the_same_bits_with_any_threads_after_any_other_and_in_an_export(
    method: str, world: World
) -> None:
    one, other = recipes(method, world.raw)
    alone, side_by_side = (world.resident(len(one.experts), threads) for threads in (1, 2))
    alone.write(one)
    first = weights(alone)
    alone.write(other)
    assert not same(first, weights(alone))
    side_by_side.write(one)
    alone.write(one)
    assert same(first, weights(alone)) and same(first, weights(side_by_side))
    exported = dict(merged_tensors(world.merged(one), one))
    assert exported.keys() >= {info.name for info in world.raw(1).merged}
    assert same({name: tensor for name, tensor in exported.items() if name in first}, first)
