"""Does a method keep the share of entries that it was asked for? In bf16 too, where many are of one magnitude."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from naive import NaiveFacts, merged
from safetensors.torch import save_file

from searchspaces import CoefficientSpace, Pool, methods
from searchspaces.composition import Composition, Keep
from searchspaces.errors import Inexpressible
from searchspaces.facts.known_facts import KnownFacts
from searchspaces.mergekit import to_mergekit
from searchspaces.option import Option, complete
from searchspaces.row import Row
from searchspaces.weights import composed, composed_reference, kernel
from searchspaces.weights.composed_reference import Source
from searchspaces.weights.packed import Packed

SIDE = 400
DENSITIES = (0.05, 0.2, 0.37, 0.5, 0.6, 0.9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pool_of(home: Path, dtype: torch.dtype, change: float) -> Pool:
    """Two experts of one matrix: weights of std 0.03, task vectors of std `change`."""
    draw = torch.Generator().manual_seed(0)
    first = 0.03 * torch.randn(SIDE, SIDE, generator=draw)
    folders = {}
    for name, by in (("base", 0.0), ("a", change), ("b", change)):
        folders[name] = home / name
        folders[name].mkdir(parents=True)
        tensor = (first + by * torch.randn(SIDE, SIDE, generator=draw)).to(dtype)
        save_file({"layer.weight": tensor}, folders[name] / "model.safetensors", {"format": "pt"})
        (folders[name] / "config.json").write_text(json.dumps({"architectures": ["LayerModel"]}))
    return Pool.open(folders.pop("base"), folders)


def composition(pool: Pool, method: str, options: dict[str, Option], seed: int = 0) -> Composition:
    kind = methods.load(method)
    whole = complete(method, kind.options, options)
    row = Row.of(kind.options, np.array([[1.0, 0.0]]), whole, 0)
    return kind(whole).compose(row, KnownFacts(pool, pool.hashes(), seed).of("layer.weight"))


def kept(pool: Pool, method: str, options: dict[str, Option], seed: int = 0) -> torch.Tensor:
    """What a kernel leaves of the first expert's task vector, flat; the same bits as plain torch leaves of it."""
    keeps = composition(pool, method, options, seed).keeps
    assert keeps is not None
    first, *experts = (m.tensor("layer.weight").flatten() for m in (pool.base, *pool.experts.values()))
    packed = Packed.of(Composition(0.0, np.array([1.0, 0.0]), keeps), (SIDE, SIDE))
    addresses, code = np.array([e.data_ptr() for e in experts]), kernel.CODES[first.dtype]
    out, wanted = torch.empty(first.shape), torch.empty(first.shape)
    assert composed.merge(
        packed, first.data_ptr(), code, addresses, np.full(2, code), out.data_ptr(), 0, 0, first.numel()
    )
    assert composed_reference.merge(wanted, first, [Source(e) for e in experts], packed)
    assert torch.equal(out, wanted)
    return out


def changes(pool: Pool) -> torch.Tensor:
    first, expert = pool.base.tensor("layer.weight"), pool.experts["a"].tensor("layer.weight")
    return (expert.float() - first.float()).flatten()


@pytest.mark.parametrize("change", [1e-4, 3e-5])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_as_many_stay_as_were_asked_for_in_bf16(tmp_path: Path, method: str, change: float) -> None:
    pool = pool_of(tmp_path, torch.bfloat16, change)
    tau = changes(pool)
    sizes, positive = tau.abs().sort(descending=True).values, int((tau != 0).sum())
    assert len(sizes.unique()) < 1000  # of 160,000 entries: nearly all are tied
    start = int(0.01 * len(tau)) if method == "breadcrumbs" else 0
    before = torch.zeros(len(tau), dtype=torch.bool)
    for density in DENSITIES:
        found = kept(pool, method, {"density": density})
        stay = found != 0
        last = start + int(density * len(tau))
        # zeros count among the entries that stay, and are not seen
        asked = min(last, positive) - start
        assert abs(int(stay.sum()) - asked) <= 4 * math.sqrt(len(tau) / 2)
        assert torch.equal(found, torch.where(stay, tau, 0.0))
        # what is larger than the least that stays, and smaller than the largest, stays to the last entry
        least, most = float(sizes[last - 1]), float(sizes[start]) if start else math.inf
        inside = (tau.abs() > least) & (tau.abs() < most)
        assert bool(stay[inside].all()) and not stay[(tau.abs() < least) | (tau.abs() > most)].any()
        assert bool(stay[before].all())  # nested
        before = stay


def test_what_stays_at_a_bound_does_not_depend_on_seed_and_differs_by_expert(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, torch.bfloat16, 1e-4)
    one, other = (composition(pool, "ties", {"density": 0.2}, seed).keeps for seed in (0, 1))
    assert one is not None and other is not None
    assert [(k.key, k.until) for k in one] == [(k.key, k.until) for k in other]
    assert one[0].tied and one[0].key != one[1].key


def test_gamma_and_density_cut_one_magnitude_on_both_sides() -> None:
    base = torch.zeros(100, 100)
    facts = NaiveFacts("w", base, [torch.ones(100, 100)])  # one magnitude alone
    found = [
        merged("breadcrumbs", facts, [1.0], {"density": d, "gamma": g}).flatten()
        for d, g in ((0.2, 0.1), (0.4, 0.1), (0.4, 0.5))
    ]
    assert [float(f.mean()) for f in found] == pytest.approx([0.2, 0.4, 0.4], abs=0.02)
    assert bool(found[1][found[0] == 1].all())
    # of ranks 0.1 to 0.5 and of 0.5 to 0.9 no entry is in both
    assert not (found[1] * found[2]).any()


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_rescaling_brings_tied_entries_back_to_the_sum_of_magnitudes(tmp_path: Path, method: str) -> None:
    pool = pool_of(tmp_path, torch.bfloat16, 1e-4)
    for density in DENSITIES:
        found = kept(pool, method, {"density": density, "rescale": True})
        assert float(found.abs().double().sum()) == pytest.approx(float(changes(pool).abs().double().sum()), rel=0.02)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_mergekit_cannot_say_a_threshold_that_is_tied(tmp_path: Path, method: str) -> None:
    for name, dtype in (("full", torch.float32), ("half", torch.bfloat16)):
        pool = pool_of(tmp_path / name, dtype, 1e-4)
        names = [t.name for t in pool.merged]
        for density in (0.37, 1.0):
            space = CoefficientSpace(names, pool.names, method=method, options={"density": density})
            recipe = space.decode(space.domain.start)
            if name == "half" and density < 1:
                with pytest.raises(Inexpressible, match=r"'layer.weight' of expert 'a' has entries of equal magnitude"):
                    to_mergekit(recipe, pool)
            else:
                assert f"merge_method: {method}" in to_mergekit(recipe, pool)


def test_draws_at_a_bound_and_of_all_entries_are_not_both_of_one_expert() -> None:
    for keep in (Keep(least=1.0, until=0.5, share=0.5), Keep(most=1.0, after=0.5, share=0.5)):
        with pytest.raises(ValueError, match="not both of one expert"):
            Packed.of(Composition(1.0, np.ones(1), (keep,)), (12,))


@pytest.mark.parametrize("bounds", [*itertools.product([0.0, 0.25, 1.0], [0.0, 0.75, 1.0])])
def test_a_share_of_none_and_of_all_at_a_bound(bounds: tuple[float, float]) -> None:
    until, after = bounds
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).repeat(2000) * torch.tensor([1.0, -1.0]).repeat_interleave(5000)
    base, out = torch.zeros(10_000), torch.empty(10_000)
    packed = Packed.of(Composition(0.0, np.ones(1), (Keep(2.0, 4.0, until, after, key=3),)), (10_000,))
    composed.merge(
        packed, base.data_ptr(), 0, np.array([sizes.data_ptr()]), np.zeros(1, int), out.data_ptr(), 0, 0, 10_000
    )
    shares = [float((out[sizes.abs() == s] != 0).float().mean()) for s in (1, 2, 3, 4, 5)]
    assert shares == pytest.approx([0, until, 1, 1 - after, 0], abs=0.05 if 0 < until < 1 or 0 < after < 1 else 0)
