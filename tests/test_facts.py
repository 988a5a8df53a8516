"""Are the facts of task vectors exact, the same in every process, and made once? Order statistics, ranks, Grams."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico import adapter, base
from safetensors.torch import save_file

from searchspaces import Pool
from searchspaces.adapters.lowrank import LowRank
from searchspaces.algebra.draws import UNIT, draws
from searchspaces.cache.once import cache
from searchspaces.composition import Composition
from searchspaces.errors import PoolError
from searchspaces.facts import orders
from searchspaces.facts.known_facts import KnownFacts, TensorFacts
from searchspaces.weights import composed, kernel
from searchspaces.weights.packed import Packed

Tensors = Mapping[str, torch.Tensor]
SHAPES = {"embed": (130, 70), "conv": (5, 4, 3, 3), "bias": (70,), "scalar": (), "none": (0, 4), "deep": (3, 5000)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=[64, orders.KNOTS])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few knots, and with as many as there are."""
    monkeypatch.setattr(orders, "KNOTS", request.param)


def write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def pool_of(home: Path, first: Tensors, *others: Tensors) -> Pool:
    experts = {f"e{k}": write(home / f"e{k}", tensors) for k, tensors in enumerate(others)}
    return Pool.open(write(home / "base", first), experts)


def drawn(seed: int, dtype: torch.dtype, around: Tensors | None = None, scale: float = 0.1) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    noise = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    if around is None:
        return {n: t.to(dtype) for n, t in noise.items()}
    # most entries of a fine-tune in bf16 are the base's, or a few steps away from it
    return {n: (around[n].float() + scale * t).to(dtype) for n, t in noise.items()}


def some_pool(home: Path, dtype: torch.dtype = torch.float32, count: int = 3) -> Pool:
    first = drawn(0, dtype)
    return pool_of(home, first, *(drawn(k + 1, dtype, first, 0.01 * (k + 1)) for k in range(count)))


def facts_of(pool: Pool, seed: int = 0, threads: int = 1) -> list[TensorFacts]:
    known = KnownFacts(pool, pool.hashes(), seed, threads)
    return [known.of(info.name) for info in pool.merged]


def taus(pool: Pool, name: str) -> list[torch.Tensor]:
    """The task vectors in plain torch, fp32 and flat."""
    first, found = pool.base.tensor(name).float(), []
    for expert in pool.experts.values():
        source = expert.source(name)
        if isinstance(source, LowRank):
            found.append(source.added(torch.zeros(first.shape)).flatten())
        else:
            found.append((source.float() - first).flatten() if source is not None else torch.zeros(first.numel()))
    return found


def variance(vectors: list[torch.Tensor]) -> torch.Tensor:
    share = torch.tensor(1.0) / len(vectors)
    mean = sum(vectors[1:], vectors[0]) * share
    squares = [(v - mean) * (v - mean) for v in vectors]
    return sum(squares[1:], squares[0]) * share


def check_magnitudes(pool: Pool) -> None:
    for facts in facts_of(pool):
        for k, tau in enumerate(taus(pool, facts.name)):
            expected = tau.abs().sort(descending=True).values.tolist()
            step = max(1, facts.size // 400)
            ranks = [*range(1, facts.size + 1, step), facts.size] if facts.size else []
            assert [facts.magnitude(k, r) for r in ranks] == [expected[r - 1] for r in ranks], facts.name
            # numbers that some entries have, and numbers between those
            for number in {n + by for n in expected[:: max(1, facts.size // 40)] for by in (0.0, 1e-9, 1e-3)}:
                larger, equal = int((tau.abs().double() > number).sum()), int((tau.abs().double() == number).sum())
                assert facts.tied(k, number) == (larger, equal), facts.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.usefixtures("few")
def test_magnitudes_are_those_of_a_sort(tmp_path: Path, dtype: torch.dtype) -> None:
    check_magnitudes(some_pool(tmp_path, dtype))


@pytest.mark.usefixtures("few")
def test_magnitudes_of_unequal_dtypes_and_of_experts_that_are_the_base(tmp_path: Path) -> None:
    first = drawn(0, torch.float32)
    half, same = drawn(1, torch.bfloat16, first), dict(first)
    coarse = {n: t + (torch.arange(t.numel()).reshape(t.shape) % 3 == 0) for n, t in first.items()}  # many ties
    check_magnitudes(pool_of(tmp_path, first, half, same, coarse))


@pytest.mark.usefixtures("few")
def test_facts_of_adapters_are_those_of_their_task_vectors(tmp_path: Path) -> None:
    first = base(tmp_path / "base", "llama")
    pool = Pool.open(first, {n: adapter(tmp_path / n, first, seed) for seed, n in enumerate("ab")})
    check_magnitudes(pool)
    for facts in facts_of(pool):
        vectors = taus(pool, facts.name)
        assert torch.equal(facts.ranks(1), ranked(vectors[1], facts.shape))
        check_spread(facts, vectors)
        check_grams(facts, pool.base.tensor(facts.name).float(), vectors)


@given(
    numbers=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(0, 10, width=32), min_size=1, max_size=80),
    count=st.integers(2, 12),
    bounds=st.tuples(st.floats(0, 11, width=32), st.floats(0, 11, width=32)),
    data=st.data(),
)
def test_an_order_is_exact_wherever_its_knots_lie(
    numbers: list[float], count: int, bounds: tuple[float, float], data: st.DataObject
) -> None:
    ascending = np.sort(np.array(numbers, dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orders, "KNOTS", count)
        order = orders.Order.of(np.array(numbers, dtype=np.float32))
    assert len(order.values) == min(len(numbers), count) and order.positive == np.count_nonzero(ascending)
    asked: list[int] = []

    def between(j: int) -> np.ndarray:
        asked.append(j)
        return ascending[(ascending > order.values[j + 1]) & (ascending < order.values[j])]

    assert [order.at(r, between) for r in range(1, len(numbers) + 1)] == ascending[::-1].tolist()
    for bound in (*bounds, data.draw(st.sampled_from(numbers))):
        wide = ascending.astype(np.float64)
        assert order.sum(bound, between) == pytest.approx(wide[wide >= bound].sum(), abs=1e-9)
        assert order.sum(bound, between, strictly=True) == pytest.approx(wide[wide > bound].sum(), abs=1e-9)
    # what lies between is looked at only where something does
    assert all(len(between(j)) for j in set(asked))


@pytest.mark.usefixtures("few")
def test_mass_is_the_sum_over_a_band_and_over_all(tmp_path: Path) -> None:
    pool = some_pool(tmp_path, torch.bfloat16)
    for facts in facts_of(pool):
        for k, tau in enumerate(taus(pool, facts.name)):
            sizes = tau.abs().double()
            picked = [sizes[i * facts.size // 7].item() for i in range(7)] if facts.size else []
            for least, most in [(0.0, np.inf), (0.0, 0.0), (0.004, 0.009), (0.009, 0.004), *pairwise(picked)]:
                band, total = facts.mass(k, least, most)
                inside = sizes[(sizes >= np.float32(least)) & (sizes <= np.float32(most))].sum().item()
                assert band == pytest.approx(inside, rel=1e-12, abs=1e-12 * total)
                assert total == pytest.approx(sizes.sum().item(), rel=1e-12)
                assert band == 0.0 or inside > 0.0


def ranked(tau: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    width = shape[-1] if shape else 1
    if width == 0 or not tau.numel():
        return torch.zeros(0, dtype=torch.uint8)
    rows = tau.abs().reshape(-1, width)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double()
    scaled = ranks / (width - 1) * 255 if width > 1 else torch.full(rows.shape, 255.0)
    return (scaled + 0.5).floor().to(torch.uint8).flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranks_are_by_magnitude_within_rows_and_by_place_where_equal(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchspaces.facts.known_facts.BLOCK", 500)  # rows in several blocks, and rows longer than one
    pool = some_pool(tmp_path, dtype)
    for facts in facts_of(pool):
        for k, tau in enumerate(taus(pool, facts.name)):
            found = facts.ranks(k)
            assert found.dtype == torch.uint8 and torch.equal(found, ranked(tau, facts.shape)), facts.name


def check_spread(facts: TensorFacts, vectors: list[torch.Tensor]) -> None:
    numbers = variance(vectors)
    ordered = numbers.sort(descending=True).values
    positive = int((numbers != 0).sum())
    for share in (0.0, 1e-9, 0.01, 0.1, 0.37, 0.5, 0.999, 1.0, 1.5):
        rank = int(share * positive)
        expected = 0.0 if share >= 1 else float(ordered[rank - 1]) if rank else np.inf
        larger, equal = int((numbers > expected).sum()), int((numbers == expected).sum())
        until = (rank - larger) / equal if 0 < share < 1 and rank else 1.0
        assert facts.spread(share) == (expected, pytest.approx(until))
        kept = [torch.where(numbers >= expected, v, 0).double().square().sum() for v in vectors]
        np.testing.assert_allclose(facts.energies(expected), np.array(kept) / max(1, facts.size), rtol=1e-12)
    # of bounds that are no entry's variance, and of every bound at the knots
    some = ordered[:: max(1, len(ordered) // 20)].tolist()
    for least in [0.0, *some, *(math.nextafter(v, math.inf) for v in some), 1e30]:
        kept = [torch.where(numbers >= least, v, 0).double().square().sum() for v in vectors]
        np.testing.assert_allclose(facts.energies(least), np.array(kept) / max(1, facts.size), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("few")
def test_the_spread_is_the_variance_of_that_rank_and_energies_are_above_it(tmp_path: Path, dtype: torch.dtype) -> None:
    pool = some_pool(tmp_path, dtype)
    for facts in facts_of(pool):
        check_spread(facts, taus(pool, facts.name))


def test_spreads_where_most_entries_lie_between_two_knots_and_where_some_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "KNOTS", 3)
    first = drawn(0, torch.bfloat16)
    others = [drawn(k, torch.bfloat16, first, 0.01 * k) for k in (1, 2)]
    pool = pool_of(tmp_path / "whole", first, *others, dict(first))
    for facts in facts_of(pool):
        check_spread(facts, taus(pool, facts.name))
    low, high = dict(first), dict(others[0])
    low["embed"], high["embed"] = first["embed"].clone(), others[0]["embed"].clone()
    low["embed"][0, 7], high["embed"][0, 7] = -3e38, 3e38  # a difference that is infinite, a variance that is NaN
    high["embed"][1, 20:40:10] = 1e25  # variances that are infinite
    pool = pool_of(tmp_path / "huge", low, high, others[1])
    facts = next(f for f in facts_of(pool) if f.name == "embed")
    numbers, vectors = variance(taus(pool, "embed")), taus(pool, "embed")
    assert int(numbers.isnan().sum()) == 1 and int(numbers.isinf().sum()) == 2
    ordered = numbers.sort(descending=True).values
    for rank in (4, 10, 3000, 9000):
        least, _ = facts.spread((rank + 0.5) / int((numbers != 0).sum()))
        kept = [torch.where(numbers >= least, v, 0).double().square().sum() for v in vectors]
        assert least == float(ordered[rank - 1])
        np.testing.assert_allclose(facts.energies(least), np.array(kept) / facts.size, rtol=1e-12)
    assert facts.energies(math.nan).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_keeps_as_many_entries_as_were_asked_for_and_equals_of_the_last(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """The variance that a kernel finds of an entry is the one that the threshold is, to the bit."""
    pool = some_pool(tmp_path, dtype)
    facts = next(f for f in facts_of(pool) if f.name == "embed")
    first, numbers = pool.base.tensor("embed"), variance(taus(pool, "embed"))
    experts = [e.tensor("embed") for e in pool.experts.values()]
    addresses, code = np.array([e.data_ptr() for e in experts]), kernel.CODES[dtype]
    for share in (0.01, 0.1, 0.37, 0.9):
        (spread, until), out = facts.spread(share), torch.empty(first.shape)
        weights, key = np.full(3, 10.0, np.float32), facts.key(None, seeded=False)
        packed = Packed.of(Composition(0.0, weights, spread=spread, until=until, key=key), facts.shape)
        assert composed.merge(
            packed, first.data_ptr(), code, addresses, np.full(3, code), out.data_ptr(), 0, 0, first.numel()
        )
        drawn = draws(key, 0, len(numbers)) < until * UNIT
        expected = ((numbers > spread) | ((numbers == spread) & drawn)).reshape(first.shape)
        asked, larger = int(share * int((numbers != 0).sum())), int((numbers > spread).sum())
        assert 0 <= larger < asked  # with fewer it would not be the least threshold
        equal = int((numbers == spread).sum())
        assert abs(int(expected.sum()) - asked) <= 4 * math.sqrt(equal * until * (1 - until))
        # an entry of no expert's is the base's share of it, 0; one whose task vectors cancel is no witness
        moved = sum(e.float() - first.float() for e in experts) != 0
        assert torch.equal((out != 0) & moved, expected & moved) and int(moved.sum()) > 0.9 * first.numel()


def test_facts_and_their_pool_are_freed_when_nobody_has_them(tmp_path: Path) -> None:
    gc.disable()  # what waits for the collector keeps files mapped until it comes
    try:
        pool = some_pool(tmp_path)
        known = KnownFacts(pool, pool.hashes())
        facts = known.of("deep")
        assert facts.magnitude(0, 7000) > 0 and facts.spread(0.37)[0] > 0
        gone = [ref(known), ref(facts), ref(pool)]
        del known, facts, pool
        assert [g() for g in gone] == [None] * 3
    finally:
        gc.enable()


def check_grams(facts: TensorFacts, first: torch.Tensor, vectors: list[torch.Tensor]) -> None:
    every = torch.stack([first.flatten(), *vectors]).double()
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(facts.gram(), every @ every.T, **close)
    width = facts.shape[-1] if facts.shape else 1
    rows = every.reshape(len(every), -1, width)
    np.testing.assert_allclose(facts.row_grams(), torch.einsum("irn,jrn->rij", rows, rows), **close)
    columns = every.reshape(len(every), facts.shape[0] if facts.shape else 1, -1)
    np.testing.assert_allclose(facts.row_grams(columns=True), torch.einsum("inc,jnc->cij", columns, columns), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_grams_are_inner_products_of_base_and_task_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    pool = some_pool(tmp_path, dtype)
    for facts in facts_of(pool):
        if facts.size:
            check_grams(facts, pool.base.tensor(facts.name).float(), taus(pool, facts.name))
        else:
            assert not facts.gram().any() and facts.row_grams().shape == (0, 4, 4)


def test_one_expert_has_no_variance_and_one_that_is_the_base_no_magnitude(tmp_path: Path) -> None:
    first = drawn(0, torch.float32)
    one = facts_of(pool_of(tmp_path / "one", first, drawn(1, torch.float32, first)))[0]
    assert [one.spread(s) for s in (0.0, 0.5, 0.999, 1.0)] == [(np.inf, 1.0)] * 3 + [(0.0, 1.0)]
    assert one.energies(np.inf).tolist() == [0.0] and one.energies(0.0)[0] > 0
    none = next(f for f in facts_of(pool_of(tmp_path / "none", first, dict(first))) if f.name == "embed")
    assert none.magnitude(0, 1) == none.magnitude(0, none.size) == 0.0
    assert none.mass(0, 0.0, np.inf) == (0.0, 0.0) and none.energies(0.0).tolist() == [0.0]
    assert none.ranks(0).reshape(none.shape)[0, [0, 35, 69]].tolist() == [0, 129, 255]  # by place


def test_a_rank_that_no_entry_has_is_refused(tmp_path: Path) -> None:
    facts = {f.name: f for f in facts_of(some_pool(tmp_path, count=1))}
    for name, rank in [("bias", 0), ("bias", 71), ("none", 1)]:
        with pytest.raises(ValueError, match=f"'{name}' has no entry of rank {rank}; expected 1 to"):
            facts[name].magnitude(0, rank)


def test_a_key_is_a_function_of_seed_expert_and_tensor_alone(tmp_path: Path) -> None:
    pool = some_pool(tmp_path)
    turned = Pool.open(pool.base.folder, {n: pool.experts[n].folder for n in ("e2", "e0")})
    keys = [f.key(2) for f in facts_of(pool)]
    assert keys == [f.key(0) for f in facts_of(turned)] and all(0 <= key < 2**32 for key in keys)
    others = [f.key(k) for seed in (0, 1) for f in facts_of(pool, seed) for k in range(3)]
    assert len(set(others)) == len(others) == 2 * 3 * len(SHAPES)


def test_weights_that_are_not_those_hashed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "KNOTS", 16)
    first, second = some_pool(tmp_path / "one"), some_pool(tmp_path / "two", torch.bfloat16)
    KnownFacts(first, first.hashes()).of("embed").magnitude(0, 1)
    wrong = KnownFacts(second, first.hashes()).of("embed")
    with pytest.raises(PoolError, match=r"'embed': its weights do not fit the table in .*remove the folder"):
        wrong.magnitude(0, 300)
    KnownFacts(first, first.hashes()).of("embed").spread(0.3)
    for ask in (lambda: wrong.spread(0.3), lambda: wrong.energies(3e-4)):
        with pytest.raises(PoolError, match=r"'embed': its weights do not fit the table in .*remove the folder"):
            ask()


DIGEST = """
import hashlib, sys
import numpy as np
from searchspaces import Pool
from searchspaces.errors import PoolError
from searchspaces.facts.known_facts import KnownFacts
pool = Pool.open(sys.argv[1], {n: f"{sys.argv[2]}/{n}" for n in ("e0", "e1", "e2")})
known = KnownFacts(pool, pool.hashes(), 0, threads=int(sys.argv[3]))
seen = hashlib.sha256()
for info in reversed(pool.merged) if len(sys.argv) > 4 else pool.merged:
    f = known.of(info.name)
    said = [f.gram(), f.row_grams(), f.row_grams(True), f.energies(f.spread(0.3)[0]), np.array([f.key(1)])]
    said += [f.ranks(k).numpy() for k in range(3)]
    said += [np.array([f.magnitude(k, r), *f.mass(k, f.magnitude(k, r), 1.0)])
             for k in range(3) for r in range(1, f.size + 1, 97)]
    print(info.name, hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in said)).hexdigest())
"""


def test_processes_with_caches_of_their_own_find_the_same_bits(tmp_path: Path) -> None:
    pool = some_pool(tmp_path, torch.bfloat16)
    found = []
    for threads in ("1", "3"):
        where = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"own-{threads}")}
        command = [sys.executable, "-c", DIGEST, str(pool.base.folder), str(tmp_path), threads]
        found.append(subprocess.run(command, env=where, capture_output=True, text=True, check=True).stdout)
    again = subprocess.run([*command, "turned"], env=where, capture_output=True, text=True, check=True).stdout
    assert found[0] == found[1] and len(found[0].splitlines()) == len(SHAPES)
    assert sorted(again.splitlines()) == sorted(found[0].splitlines())  # from the disk, in another order


def test_two_processes_that_ask_at_once_share_what_one_makes(tmp_path: Path) -> None:
    pool = some_pool(tmp_path)
    pool.hashes()
    command = [sys.executable, "-c", DIGEST, str(pool.base.folder), str(tmp_path), "2"]
    both = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert {k: len(folders(k)) for k in ("magnitudes", "ranks", "grams")} == {"magnitudes": 3, "ranks": 3, "grams": 1}


def folders(kind: str) -> list[Path]:
    return [p for p in cache(kind).iterdir() if p.is_dir()]


def test_tables_are_made_once_and_shared_by_pools_with_the_expert(tmp_path: Path) -> None:
    pool = some_pool(tmp_path)
    hashes, seen = pool.hashes(), []
    first = KnownFacts(pool, hashes, progress=seen.append)
    for info in pool.merged:
        first.of(info.name).mass(0, 0.0, 1.0)
    assert seen == [info.name for info in pool.merged]
    fewer = Pool.open(pool.base.folder, {"other": pool.experts["e0"].folder, "e1": pool.experts["e1"].folder})
    second = KnownFacts(fewer, fewer.hashes(), progress=seen.append)
    assert second.of("embed").magnitude(0, 7) == first.of("embed").magnitude(0, 7) and len(seen) == len(pool.merged)
    assert len(folders("magnitudes")) == 1
    second.of("embed").magnitude(1, 7)
    assert len(folders("magnitudes")) == 2
    # another content, or other tensors, are other tables
    part = Pool.open(pool.base.folder, {"e0": pool.experts["e0"].folder}, exclude=["conv"])
    assert facts_of(part)[0].magnitude(0, 1) > 0
    assert len(folders("magnitudes")) == 3


@pytest.mark.parametrize("kind", ["magnitudes", "ranks"])
def test_a_truncated_table_is_made_again(tmp_path: Path, kind: str) -> None:
    pool = some_pool(tmp_path)

    def ask() -> list[object]:
        return [
            f.magnitude(0, 5) if kind == "magnitudes" else f.ranks(0).tolist() for f in facts_of(pool) if f.size > 5
        ]

    expected = ask()
    (file,) = [f for home in folders(kind) for f in home.glob("*.safetensors")]
    os.truncate(file, file.stat().st_size - 1000)
    assert ask() == expected


def test_a_search_that_asks_again_looks_at_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "KNOTS", 16)
    pool = some_pool(tmp_path)
    facts = facts_of(pool)

    def ask() -> list[float]:
        found = [n for f in facts if f.size for n in (f.magnitude(1, f.size // 3 + 1), f.mass(1, 0.004, 0.007)[0])]
        return [*found, *(n for f in facts for n in (*f.spread(0.3), *f.energies(f.spread(0.3)[0])))]

    found = ask()
    monkeypatch.setattr("searchspaces.facts.known_facts.Deltas.of", None)
    assert ask() == found
