"""Is the room in the cache that a job is told of the room that it takes?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pico
import pytest

from optimizer.jobs.caching import CacheNeeds
from searchspaces import CoefficientSpace, Pool, processed
from searchspaces.cache import holds, limit
from searchspaces.facts.asked import room
from searchspaces.weights.materialise import merged_tensors


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("models")
    base = pico.base(folder / "base", "bert")
    return Pool.open(base, {n: pico.expert(folder / n, base, seed) for seed, n in enumerate("ab", 1)})


def space(pool: Pool, method: str | list[str], options: dict | None = None) -> CoefficientSpace:
    return CoefficientSpace(
        [t.name for t in pool.merged], pool.names, method, options, "model", start=1.0, hashes=pool.hashes()
    )


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MERGEOPT_CACHE_GB", raising=False)


CASES = [
    ("task_arithmetic", None),
    ("sce", None),
    ("della", None),
    ("ties_once", None),
    ("karcher", None),
    ("nuslerp", {"along": {"values": ["flat", "columns"]}}),
    ("model_stock", {"filter_wise": "search"}),
    ("tsv_m", {"share": {"values": [0.5, 1.0, 2.0]}}),
    ("ties", {"density": {"low": 0.1, "high": 1.0, "start": 1.0, "per": "both"}}),
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=lambda value: str(value)[:30])
def test_what_a_method_keeps_is_what_was_told(method: str, options: dict | None, pool: Pool, own_cache: None) -> None:
    made = space(pool, method, options)
    told = room(pool, made)
    points = (made.domain.start, made.domain.low, made.domain.high) if options else (made.domain.start,)
    for point in points:
        recipe = made.decode(point)
        for _ in merged_tensors(processed(pool, method, recipe.options, recipe.models), recipe):
            pass
    if method == "tsv_m":
        assert made.decode(made.domain.low).options["share"] == 0.5
    found = limit.sizes()
    assert found.keys() == told.keys()
    for kind, size in told.items():  # beside it headers, a file of sizes, a config
        folders = sum(entry.kind == kind for entry in limit.entries())
        assert size <= found[kind] <= size + folders * (2000 + 400 * len(pool.merged) * len(pool.names))
    holds.release()


def test_a_disk_or_a_limit_that_is_too_small_is_told_in_numbers(
    pool: Pool, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wanted:
        class space:
            methods = ("tsv_m", "iso_c", "regmean")

    made = space(pool, ["tsv_m", "iso_c", "regmean"], {"share": {"values": [0.5, 1.0]}})
    needs = CacheNeeds.of(Wanted, pool, made)  # type: ignore[arg-type]
    assert needs.refusal is None and needs.warning is None and needs.combinations == 4
    assert needs.kinds["processed"] == room(pool, made)["processed"] and needs.kinds["statistics"] > 0
    assert needs.said.startswith("processed task vectors for 4 combinations ")
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "1e-6")
    warning = CacheNeeds.of(Wanted, pool, made).warning  # type: ignore[arg-type]
    assert (
        warning is not None and "more than its limit of 0.0 MB" in warning and "set MERGEOPT_CACHE_GB to 1" in warning
    )
    full = replace(needs, free=needs.total - 1, held=0)
    assert full.refusal is not None and "free some, set XDG_CACHE_HOME to another disk, or list fewer" in full.refusal
    assert replace(full, held=1).refusal is None, "what the cache holds can go"
