"""Are task vectors processed as the papers say, once per host, and never half? ties_once and its cache."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import base, expert
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe, Resident, processed
from searchspaces.algebra.draws import UNIT, draws, key_of
from searchspaces.errors import Inexpressible, PoolError, RecipeError
from searchspaces.facts.process import folder
from searchspaces.given import Given
from searchspaces.mergekit import to_mergekit
from searchspaces.methods.ties_once import TiesOnce, thresholds
from searchspaces.models.loading import load_model
from searchspaces.option import complete
from searchspaces.weights.materialise import merged_tensors

Space = namedtuple("Space", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pool_of(home: Path, dtype: torch.dtype = torch.float32, experts: int = 3) -> Pool:
    first = base(home / "base", dtype=dtype)
    # unequal scales: over the whole model, and in each tensor, other entries are the largest
    named = {f"e{k}": expert(home / f"e{k}", first, k + 1, scale=0.05 * (k + 1)) for k in range(experts)}
    return Pool.open(first, named)


def recipe_of(pool: Pool, method: str = "ties_once", **options: float | str) -> Recipe:
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, method, options, "layer")
    return space.decode(np.random.default_rng(0).random(len(space.domain.names)))


def made() -> list[Path]:
    """Folders of processed experts, finished or not."""
    return [p for p in folder().iterdir() if p.is_dir()] if folder().is_dir() else []


def plainly(pool: Pool, density: float, scope: str) -> dict[str, list[torch.Tensor]]:
    """The experts of TIES, as the paper tells it: sort, trim, elect, and drop what disagrees."""
    names = [t.name for t in pool.merged]
    taus = [{n: e.tensor(n).float() - pool.base.tensor(n).float() for n in names} for e in pool.experts.values()]
    for name, tau in zip(pool.names, taus, strict=True):
        for part in [names] if scope == "model" else [[n] for n in names]:
            sizes = torch.cat([tau[n].abs().flatten() for n in part]).sort(descending=True).values
            rank = int(np.ceil(density * len(sizes)))
            least = sizes[rank - 1]
            until = (rank - int((sizes > least).sum())) / int((sizes == least).sum())
            for n in part:
                order = draws(key_of(name, n), 0, tau[n].numel()).reshape(tau[n].shape) / UNIT
                tau[n] = torch.where((tau[n].abs() > least) | ((tau[n].abs() == least) & (order < until)), tau[n], 0)
    out = {}
    for n in names:
        elected = sum(tau[n] for tau in taus).sign()
        out[n] = [torch.where(tau[n].sign() == elected, tau[n], 0) for tau in taus]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_ties_once_is_what_the_papers_say(tmp_path: Path, density: float, scope: str, dtype: torch.dtype) -> None:
    raw = pool_of(tmp_path, dtype)
    pool = processed(raw, "ties_once", {"density": density, "scope": scope})
    expected = plainly(raw, density, scope)
    moved = 0
    for info in raw.merged:
        for k, name in enumerate(raw.names):
            kept = pool.experts[name].source(info.name).tensor
            assert kept.dtype == dtype
            assert torch.equal(kept, expected[info.name][k].to(dtype)), (info.name, name)
            moved += int((kept != 0).sum())
    # a tensor keeps an entry at least; draws let as many more stay as fewer
    assert 0 < moved <= density * 3 * raw.parameters + 3 * len(raw.merged) + 4 * math.sqrt(3 * raw.parameters / 4)


def test_the_merge_is_the_base_and_scaled_task_vectors(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    pool = processed(raw, "ties_once", {"lambda": 0.7})
    recipe, taus = recipe_of(pool, **{"lambda": 0.7}), plainly(raw, 0.2, "model")
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, "ties_once", granularity="layer")
    row = {t: recipe.coefficients[g] for g, tensors in enumerate(space.groups.values()) for t in tensors}
    for name, tensor in merged_tensors(pool, recipe):
        wanted = raw.base.tensor(name) + 0.7 * sum(
            c * tau for c, tau in zip(row[name].tolist(), taus[name], strict=True)
        )
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6)


def published(taus: torch.Tensor, density: float) -> torch.Tensor:
    """TIES of flat task vectors `(K, d)` as its authors' code has it, but for sums of 0: the mean of what agrees.

    Left out is that these get the sign that most sums have: there is none here.
    """
    least = taus.abs().kthvalue(taus.shape[1] - int(np.ceil(density * taus.shape[1])) + 1, dim=1, keepdim=True).values
    trimmed = taus * (taus.abs() >= least)
    assert (trimmed.sum(dim=0) != 0)[(trimmed != 0).any(dim=0)].all()
    agrees = torch.where(trimmed.sum(dim=0) > 0, trimmed > 0, trimmed < 0)
    chosen = trimmed * agrees
    return chosen.sum(dim=0) / (chosen != 0).sum(dim=0).clamp(min=1)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_the_mean_of_what_agrees_is_published_ties(tmp_path: Path, density: float) -> None:
    raw = pool_of(tmp_path)
    names = [t.name for t in raw.merged]
    first = torch.cat([raw.base.tensor(n).flatten() for n in names])
    taus = torch.stack([torch.cat([e.tensor(n).flatten() for n in names]) - first for e in raw.experts.values()])
    pool = processed(raw, "ties_once", {"density": density, "combine": "mean"})
    options = complete("ties_once", TiesOnce.options, {"density": density, "combine": "mean"})
    ones = Recipe("ties_once", options, "model", tuple(pool.groups("model")), pool.names, np.ones((1, 3)), {}, 0)
    merged = dict(merged_tensors(pool, ones))
    found = torch.cat([merged[n].flatten() for n in names])
    torch.testing.assert_close(found, first + published(taus, density), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(taus.sum(0), published(taus, density), atol=1e-3)


def test_opposite_task_vectors_leave_the_larger_and_equal_ones_nothing() -> None:
    first = torch.zeros(4)
    one, two = torch.tensor([3.0, -2.0, 1.0, 0.0]), torch.tensor([-1.0, -5.0, -1.0, 0.0])
    rule = TiesOnce(complete("ties_once", TiesOnce.options, {"density": 1.0, "scope": "tensor"}))
    kept = list(rule.process(Given("w", first, {"one": one, "two": two})))
    assert [t.tolist() for t in kept] == [[3, -2, 0, 0], [0, -5, 0, 0]]
    assert one.tolist() == [3, -2, 1, 0] and first.tolist() == [0] * 4


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(-10, 10, width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=60),
    density=st.floats(0.01, 1.0),
    cut=st.integers(0, 60),
)
def test_the_threshold_is_the_entry_of_that_rank(values: list[float], density: float, cut: int) -> None:
    whole = torch.tensor(values)
    parts = [p for p in (whole[:cut], whole[cut:]) if len(p)]
    found = thresholds(lambda: ((str(i), torch.zeros_like(p), {"e": p}) for i, p in enumerate(parts)), density)
    rank = int(np.ceil(density * len(values)))
    sizes = whole.abs().sort(descending=True).values
    ((least, until),) = found
    larger, equal = int((sizes > least).sum()), int((sizes == least).sum())
    assert least == float(sizes[rank - 1])
    assert larger + until * equal == pytest.approx(rank)


def test_where_the_base_is_wider_what_is_dropped_stays_the_base(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = expert(tmp_path / "half", first, 1)
    tensors = {k: v.bfloat16() for k, v in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    pool = processed(Pool.open(first, {"half": other}), "ties_once")
    moved = sum(int((pool.experts["half"].tensor(t.name) != pool.base.tensor(t.name)).sum()) for t in pool.merged)
    assert moved <= 0.2 * pool.parameters + 1


@pytest.mark.parametrize(("method", "dtype"), [("iso_c", torch.float32), ("tsv_m", torch.bfloat16)])
def test_parts_that_may_cancel_keep_the_digits_of_their_sum(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    first = base(tmp_path / "base", dtype=torch.bfloat16)
    names = {"one": expert(tmp_path / "one", first, 1, scale=0.5)}
    names["other"] = expert(tmp_path / "other", first, 2, scale=0.01)
    tensors, plain = (load_file(home / "model.safetensors") for home in (names["other"], first))
    one = load_file(names["one"] / "model.safetensors")
    # all but the opposite: shares of their sum are far above 1
    turned = {
        n: t if n not in plain else (2 * plain[n].float() - 0.98 * one[n].float()).to(t.dtype)
        for n, t in tensors.items()
    }
    save_file(turned, names["other"] / "model.safetensors", {"format": "pt"})
    raw = Pool.open(first, names)
    pool = processed(raw, method)
    for info in pool.merged:
        assert {e.tensors[info.name].dtype for e in pool.experts.values()} == {dtype}
        if len(info.shape) == 2 and dtype == torch.float32:
            start = raw.base.tensor(info.name).double()
            u, s, v = torch.linalg.svd(
                sum(e.tensor(info.name).double() - start for e in raw.experts.values()), full_matrices=False
            )
            found = sum(e.source(info.name).tensor.double() for e in pool.experts.values())
            torch.testing.assert_close(found, s.mean() * u @ v, rtol=1e-3, atol=1e-4 * float(s.mean()))


def test_processed_experts_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = pool_of(tmp_path)
    seen: list[str] = []
    with ThreadPoolExecutor(4) as threads:  # workers of one host that start together
        pools = list(threads.map(lambda _: processed(raw, "ties_once", progress=seen.append), range(4)))
    assert seen == [t.name for t in raw.merged] and len(made()) == 1
    assert len({p.experts["e0"].kept.folder for p in pools}) == 1
    monkeypatch.setattr(TiesOnce, "process", None)
    again = Pool.open(raw.base.folder, {n: e.folder for n, e in raw.experts.items()})
    assert (
        processed(again, "ties_once", {"density": 0.2}).experts["e0"].kept.folder == pools[0].experts["e0"].kept.folder
    )


@pytest.mark.parametrize("method", ["ties_once", "pcb", "tsv_m", "iso_c", "iso_cts"])
def test_experts_in_another_order_find_the_same_ones_each_its_own(tmp_path: Path, method: str) -> None:
    raw = pool_of(tmp_path)
    turned = Pool.open(raw.base.folder, {n: raw.experts[n].folder for n in ("e2", "e0", "e1")})
    first, second = processed(raw, method), processed(turned, method)
    assert len(made()) == 1 and second.names == ("e2", "e0", "e1")
    differ = 0
    for info in raw.merged:
        found = [second.experts[name].tensor(info.name) for name in first.names]
        assert all(map(torch.equal, found, (e.tensor(info.name) for e in first.experts.values())))
        differ += not torch.equal(found[0], found[2])
    assert differ


def test_what_they_depend_on_makes_others(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    folders = {n: e.folder for n, e in raw.experts.items()}
    fewer = Pool.open(raw.base.folder, {n: folders[n] for n in ("e0", "e1")})
    other = Pool.open(raw.base.folder, folders, exclude=["pooler.*"])
    every = [processed(raw, "ties_once"), processed(fewer, "ties_once"), processed(other, "ties_once")]
    every += [processed(raw, "ties_once", {"density": 0.3}), processed(raw, "ties_once", {"scope": "tensor"})]
    expert(tmp_path / "e2", raw.base.folder, 9)
    every += [processed(Pool.open(raw.base.folder, folders), "ties_once")]
    assert len({p.experts["e0"].kept.folder for p in every}) == len(made()) == 6


def test_names_of_tensors_and_experts_may_be_as_long_as_they_may(tmp_path: Path) -> None:
    first, long = base(tmp_path / "base"), "x" * 256
    folders = {"e" * 63 + str(k): expert(tmp_path / str(k), first, k, scale=0.1) for k in (1, 2)}
    for home in (first, *folders.values()):
        tensors = load_file(home / "model.safetensors")
        save_file({**tensors, long: next(iter(tensors.values())).clone()}, home / "model.safetensors")
    pool = processed(Pool.open(first, folders), "ties_once")
    for whole in pool.experts.values():
        assert whole.tensor(long).shape == pool.base.tensor(long).shape


def test_a_processed_pool_is_not_processed_again(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    once = processed(raw, "ties_once")
    assert processed(once, "task_arithmetic") is raw and once.original is raw
    wide, straight = (processed(p, "ties_once", {"density": 0.5}) for p in (once, raw))
    name = raw.merged[3].name
    assert torch.equal(wide.experts["e1"].tensor(name), straight.experts["e1"].tensor(name))


KILLED = """
import os, signal, sys
from searchspaces import Pool, processed
base, *experts = sys.argv[1:]
done = []
def progress(name):
    done.append(name)
    if len(done) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
processed(Pool.open(base, {f"e{k}": e for k, e in enumerate(experts)}), "ties_once", progress=progress)
"""


def test_killed_in_the_middle_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    command = [sys.executable, "-c", KILLED, str(raw.base.folder), *(str(e.folder) for e in raw.experts.values())]
    process = subprocess.run(command, env=dict(os.environ), check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(made()) == 1 and made()[0].name.startswith(".")
    seen: list[str] = []
    pool = processed(raw, "ties_once", progress=seen.append)
    assert len(seen) == len(raw.merged) and made() == [pool.experts["e0"].kept.folder]  # and the torn one is gone
    name = raw.merged[-1].name
    assert torch.equal(pool.experts["e2"].source(name).tensor, plainly(raw, 0.2, "model")[name][2])


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processed(pool_of(tmp_path), "ties_once", progress=stop)
    assert not made()


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
@pytest.mark.parametrize("dimensions", [1, 2])  # a vector is averaged, a matrix is decomposed
def test_what_is_not_finite_is_refused_by_name_and_not_kept(tmp_path: Path, method: str, dimensions: int) -> None:
    raw = pool_of(tmp_path)
    name = next(t.name for t in raw.merged if len(t.shape) == dimensions)
    for home, huge in ((raw.base.folder, 3e38), (raw.experts["e1"].folder, -3e38)):  # finite, unlike their difference
        tensors = load_file(home / "model.safetensors")
        tensors[name].view(-1)[0] = huge
        save_file(tensors, home / "model.safetensors", {"format": "pt"})
    broken = Pool.open(raw.base.folder, {n: e.folder for n, e in raw.experts.items()})
    with pytest.raises(PoolError, match=f"method '{method}': the task vector of '{name}' of expert 'e.'.*exclude it"):
        processed(broken, method)
    assert not made()


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = pool_of(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Space(10**9, 10**9, 1000))
    with pytest.raises(PoolError, match=r"0\.0 MB free, the processed task vectors need .* XDG_CACHE_HOME"):
        processed(raw, "ties_once")
    assert not made()


def test_a_cache_that_cannot_be_written_is_a_pool_error(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    hashes = raw.hashes()
    (tmp_path / "cache" / "mergeopt" / "processed").write_text("a file where a folder should be")
    with pytest.raises(PoolError, match=r"cannot be written to .* set XDG_CACHE_HOME"):
        processed(raw, "ties_once", hashes=hashes)


def test_a_recipe_and_a_pool_of_other_processing_are_refused(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    pool = processed(raw, "ties_once")
    for where, recipe in (
        (raw, recipe_of(raw)),
        (pool, recipe_of(raw, "task_arithmetic")),
        (pool, recipe_of(pool, density=0.3)),
    ):
        with pytest.raises(RecipeError, match=r"processed by .* the pool that it needs with searchspaces\.processed"):
            list(merged_tensors(where, recipe))


def test_a_resident_model_finds_what_each_recipe_merges(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    resident = Resident(raw, threads=2)
    for recipe in (recipe_of(raw), recipe_of(raw, "task_arithmetic"), recipe_of(raw, density=0.3), recipe_of(raw)):
        resident.write(recipe)
        state = resident.model.state_dict()
        pool = processed(raw, recipe.method, recipe.options)
        assert all(torch.equal(state[name], tensor) for name, tensor in merged_tensors(pool, recipe))


def test_the_resident_model_has_the_exports_bits_and_becomes_the_unprocessed_expert(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    pool = processed(raw, "ties_once")
    resident, recipe = Resident(pool, threads=2), recipe_of(pool)
    resident.write(recipe)
    exported = dict(merged_tensors(pool, recipe))
    for _ in range(2):
        state = resident.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in exported.items())
        resident.write_expert("e1")
        own = load_model(raw.experts["e1"].folder).state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in resident.model.state_dict().items())
        resident.write(recipe)


def test_heads_are_the_experts_own(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    raw = Pool.open(first, {"a": expert(tmp_path / "a", first, 1, labels=3)}, heads=["classifier.*"])
    assert torch.equal(processed(raw, "ties_once").heads["a"]["classifier.weight"], raw.heads["a"]["classifier.weight"])


def test_mergekit_cannot_say_it(tmp_path: Path) -> None:
    raw = pool_of(tmp_path)
    with pytest.raises(Inexpressible, match="no method like ties_once"):
        to_mergekit(recipe_of(raw), raw)


@pytest.mark.parametrize("method", ["ties_once", "pcb", "tsv_m", "iso_c", "iso_cts"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_tensor_without_elements_stays_one(tmp_path: Path, method: str, scope: str) -> None:
    draw = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        tensors = {"empty": torch.zeros(0, 3), "full": torch.randn(6, 5, generator=draw)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    pool = Pool.open(tmp_path / "base", {n: tmp_path / n for n in ("a", "b")})
    found = processed(pool, method, {"scope": scope} if method == "ties_once" else {})
    shapes = {n: tuple(e.tensor(n).shape) for e in found.experts.values() for n in ("empty", "full")}
    assert shapes == {"empty": (0, 3), "full": (6, 5)}
