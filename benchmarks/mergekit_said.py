"""Does mergekit merge what our YAML tells it? Random recipes of every method that can be said, on tiny models.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5
    python benchmarks/mergekit_said.py --mergekit /tmp/mergekit/bin/python [--recipes 1] [--seed 0]

Pools of one, two and three experts, with and without tensors that the base keeps, two architectures; every granularity;
options by group and by expert. `mergekit-yaml` (see `mergekit_yaml.py`) writes each that can be said, and its tensors
are held against ours: the largest difference is printed by method, in units of the largest weight that any model has
there, and what cannot be said with its reason. Ends with 1 where one is above 1e-5, or mergekit refuses.

Of entries of equal magnitude at the edge of a density mergekit keeps those that its sort leaves last, we keep all or
none: tensors in which an expert has such entries, and that differ, are counted apart.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
from pico import base, expert  # noqa: E402

from searchspaces import Pool, Recipe, methods  # noqa: E402
from searchspaces.errors import Inexpressible, RecipeError  # noqa: E402
from searchspaces.mergekit import to_mergekit  # noqa: E402
from searchspaces.mergekit_methods import SAID  # noqa: E402
from searchspaces.option import Flag, Number, Option, Spec, complete  # noqa: E402
from searchspaces.weights.materialise import merged_tensors  # noqa: E402

GRANULARITIES = ("model", "layer", "tensor")
BOUND = 1e-5


def main() -> None:
    """Say, run mergekit, compare."""
    parser = argparse.ArgumentParser(description="What mergekit makes of our recipes.")
    parser.add_argument("--mergekit", required=True, help="a Python that has mergekit 0.1.5")
    parser.add_argument("--recipes", type=int, default=1, help="of each method, pool and granularity")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        said: dict[str, tuple[str, Pool, Recipe]] = {}
        reasons: Counter[tuple[str, str]] = Counter()
        for number, (method, pool, recipe) in enumerate(drawn(home, options.recipes, options.seed)):
            try:
                (home / f"{number:05d}.yaml").write_text(to_mergekit(recipe, pool))
                said[f"{number:05d}"] = (method, pool, recipe)
            except Inexpressible as error:
                reasons[method, re.sub(r"'[a-z]\S*'", "...", str(error))] += 1
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        command = [options.mergekit, str(HERE / "mergekit_yaml.py"), str(home)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{options.mergekit} does not run mergekit: {done.stderr[-600:]}")
        bad = report(home, said, reasons)
    raise SystemExit(bad > 0)


def pools(home: Path) -> Iterator[Pool]:
    """Small steps make some methods take other branches; mergekit reads `+` and `@` in paths its way."""
    for kind, place, scales, changes in (
        ("llama", "three", (0.05, 0.02, 0.03), {}),
        ("llama", "near", (2e-4, 1e-4), {}),
        ("llama", "tied", (0.05,), {"tie_word_embeddings": True}),
        ("gpt2", "a+b@c", (0.1, 0.05), {}),
    ):
        first = base(home / place / "base", kind, **changes)
        experts = {f"e{k}": expert(home / place / f"e{k}", first, k + 1, scale=s) for k, s in enumerate(scales)}
        for exclude in ([], ["*norm*" if kind == "llama" else "*.ln_*"]):
            yield Pool.open(first, experts, exclude=exclude)


def drawn(home: Path, count: int, seed: int) -> Iterator[tuple[str, Pool, Recipe]]:
    """Random recipes of every method for every pool that it can merge."""
    draw = np.random.default_rng(seed)
    for pool in pools(home):
        hashes = pool.hashes()
        for method in SAID:
            kind = methods.load(method)
            if len(pool.names) < kind.experts[0] or (kind.experts[1] or 99) < len(pool.names):
                continue
            for granularity in GRANULARITIES:
                groups = tuple(pool.groups(granularity))
                for _ in range(count):
                    shape = (len(groups), len(pool.names))
                    published = bool(draw.random() < 0.4)
                    values = {
                        n: v
                        for n, s in kind.options.items()
                        if not (published and n in ("lambda", "floor", "density"))
                        and (v := option(draw, s, shape)) is not None
                    }
                    if published and kind.random:
                        values["density"] = 1.0
                    try:
                        kind(checked := complete(method, kind.options, values))
                    except RecipeError:
                        continue
                    yield (
                        method,
                        pool,
                        Recipe(
                            method,
                            checked,
                            granularity,
                            groups,
                            pool.names,
                            np.ones(shape) if published and not kind.picks else coefficients(draw, shape, kind.picks),
                            hashes,
                        ),
                    )


def coefficients(draw: np.random.Generator, shape: tuple[int, int], picks: bool) -> np.ndarray:
    """All 1, equal, positive, or of any sign; in some of them zeros, and groups of zeros. `picks`: one model each."""
    if picks:
        return np.eye(shape[1] + 1)[draw.integers(shape[1] + 1, size=shape[0])][:, 1:]
    way = draw.integers(5)
    found = np.ones(shape) if way < 2 else np.full(shape, draw.uniform(0.2, 0.8))
    if way > 2:
        found = draw.uniform(-0.5 if way == 4 else 0.1, 1.5, shape)
        if draw.random() < 0.5:
            found *= draw.random(shape) < 0.8
        total = np.abs(found.sum(axis=1)) < 0.2  # near 0 a normalised average is of huge weights, in any precision
        found[total] = 0.0
    return found


def option(draw: np.random.Generator, spec: Spec, shape: tuple[int, int]) -> Option | None:
    """A value, the same everywhere, by group, or by group and expert; None is the default."""
    if isinstance(spec, Flag):
        return bool(draw.random() < 0.5)
    if not isinstance(spec, Number) or (way := draw.integers(5)) < 2:
        return None
    low, high = spec.search or (spec.low, spec.high)
    if spec.low < 0:
        low = -high
    found = draw.uniform(low, high, (shape[0], shape[1] if spec.per == "expert" and way == 4 else 1))
    if spec.whole:
        return np.round(found) if way > 2 and shape[0] > 1 else int(found[0, 0])
    return found if way > 2 else float(found[0, 0])


def report(home: Path, said: dict[str, tuple[str, Pool, Recipe]], reasons: Counter[tuple[str, str]]) -> int:
    """Print a line a method, and what went wrong; returns how many did."""
    worst: dict[str, float] = {}
    bad = 0
    ties: Counter[str] = Counter()
    for number, (method, pool, recipe) in said.items():
        trouble = home / f"{number}.txt"
        why = trouble.read_text().strip().splitlines()[-1] if trouble.exists() else ""
        away = {"": np.inf} if why else distances(home / number, pool, recipe)
        tied = [n for n, far in away.items() if BOUND < far < np.inf and "density" in recipe.options and equal(pool, n)]
        ties[method] += len(tied)
        far, where = max((far, n) for n, far in away.items() if n not in tied)
        worst[method] = max(worst.get(method, 0.0), far)
        if not far <= BOUND:
            bad += 1
            print(f"{method}: {far:.1e} {where} {why}\n{recipe.to_yaml() if bad < 4 else ''}")
    for method in SAID:
        count = sum(of == method for of, _, _ in said.values())
        aside = f", {ties[method]} tensors apart" if ties[method] else ""
        print(f"{method}: {count} recipes said, largest difference {worst.get(method, 0.0):.1e}{aside}")
        for (of, reason), times in sorted(reasons.items()):
            if of == method:
                print(f"    {times} not: {reason}")
    return bad


def distances(folder: Path, pool: Pool, recipe: Recipe) -> dict[str, float]:
    """By tensor: the largest difference over our largest magnitude there (1 at least)."""
    theirs = load_file(folder / "model.safetensors")
    found = {}
    for name, ours in merged_tensors(pool, recipe):
        other = theirs.pop(name)
        if other.dtype != ours.dtype:
            raise SystemExit(f"mergekit wrote {name} in {other.dtype}, not {ours.dtype}")
        found[name] = float((other - ours).abs().max() / max(1.0, float(ours.abs().max())))
    if theirs:
        raise SystemExit(f"mergekit wrote tensors that the pool does not have: {sorted(theirs)}")
    return found


def equal(pool: Pool, name: str) -> bool:
    """Whether an expert's task vector has two entries of one magnitude."""
    first = pool.base.tensor(name)
    sizes = [(e.tensor(name) - first).abs().flatten() for e in pool.opened.values()]
    return any(s.unique().numel() < s.numel() for s in sizes)


if __name__ == "__main__":
    main()
