"""Is a recipe an identity? Its hash, its YAML, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import base, expert
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe
from searchspaces.errors import Inexpressible, RecipeError
from searchspaces.mergekit import to_mergekit

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)


def recipe(values: object = ((0.1, 0.2), (0.3, -1e-300))) -> Recipe:
    return Recipe(
        "task_arithmetic", {"lambda": 1.0}, "layer", ("embeddings", "h.0"), ("math", "code"),
        np.array(values, dtype=np.float64), {"base": "0" * 64, "math": "1" * 64, "code": "2" * 64},
    )  # fmt: skip


@given(st.lists(FLOATS, min_size=4, max_size=4))
def test_yaml_gives_the_recipe_back_to_the_bit(values: list[float]) -> None:
    one = recipe(np.array(values).reshape(2, 2))
    again = Recipe.from_yaml(one.to_yaml())
    assert again.coefficients.tobytes() == one.coefficients.tobytes()
    assert again == one and again.hash == one.hash


def test_the_hash_sees_everything_that_decides_the_weights() -> None:
    one = recipe()
    others = [
        recipe(((0.1, 0.2), (0.3, -2e-300))),
        replace(one, method="linear"),
        replace(one, options={"lambda": 0.5}),
        replace(one, granularity="module"),
        replace(one, groups=("embeddings", "h.1")),
        replace(one, experts=("code", "math")),
        replace(one, models={**one.models, "base": "3" * 64}),
        replace(one, seed=1),
    ]
    assert len({one.hash, *(o.hash for o in others)}) == 9
    assert len(one.hash) == 64 and recipe() == one and hash(recipe()) == hash(one)


def test_minus_zero_is_zero() -> None:
    assert recipe(((0.0, 0.2), (0.3, 0.4))) == recipe(((-0.0, 0.2), (0.3, 0.4)))


def test_coefficients_cannot_be_changed() -> None:
    values = np.zeros((2, 2))
    one = recipe(values)
    before = one.hash
    values[0, 0] = 5.0
    assert one.coefficients[0, 0] == 0 and recipe(np.zeros((2, 2))).hash == before
    with pytest.raises(ValueError, match="read-only"):
        one.coefficients[0, 0] = 1.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_coefficient_that_is_no_number_is_refused_by_name(wrong: float) -> None:
    with pytest.raises(RecipeError, match=r"h\.0\|math is"):
        recipe(((0.1, 0.2), (wrong, 0.3)))


def test_coefficients_of_another_shape_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"shape \(2, 2\)"):
        recipe((0.1, 0.2))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("math: 0.1", "math: 0.15"), "remove the line"),
        (lambda t: t.replace("math: 0.1", "math: .nan"), "finite numbers"),
        (lambda t: t.replace("math: 0.1", "math: true"), "finite numbers"),
        (lambda t: t.replace("seed: 0", "seed: 0\nspeed: 1"), "'speed' is"),
        (lambda t: t.replace("seed: 0\n", ""), "'seed' is"),
        (lambda t: t.replace("seed: 0", "seed: 0\nseed: 1"), "not valid YAML"),
        (lambda t: t.replace("seed: 0", "seed: &a 0").replace("math: 0.1", "math: *a"), "aliases"),
        (lambda t: t.replace("format: 1", "format: 9"), "another version"),
        (lambda t: t.replace("- math\n- code", "- code\n- math"), "in this order"),
        (lambda t: "- 1\n- 2\n", "expected a mapping"),
        (lambda t: "{", "not valid YAML"),
        (lambda t: "x" * 17_000_000, "at most"),
    ],
)
def test_text_that_is_no_recipe_is_refused(edit, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(edit(recipe().to_yaml()))


def test_a_recipe_edited_by_hand_is_read_without_its_hash() -> None:
    text = recipe().to_yaml().replace("math: 0.1", "math: 0.15")
    edited = Recipe.from_yaml("\n".join(line for line in text.splitlines() if not line.startswith("hash:")))
    assert edited.coefficients[0, 0] == 0.15


def resolve(document: dict, model: Path, tensor: str) -> float:  # type: ignore[type-arg]
    """mergekit's rule: the first entry whose filter is in the name, or that has none."""
    entry = next(m for m in document["models"] if m["model"] == str(model))
    weight = entry["parameters"]["weight"]
    if not isinstance(weight, list):
        return float(weight)
    return float(next(w["value"] for w in weight if "filter" not in w or w["filter"] in tensor))


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "tensor"])
@pytest.mark.parametrize("exclude", [[], ["*norm*"]])
def test_mergekit_reads_each_tensors_coefficient(tmp_path: Path, granularity: str, exclude: list[str]) -> None:
    first = base(tmp_path / "base", "llama", num_hidden_layers=11)
    pool = Pool.open(
        first, {"a": expert(tmp_path / "a", first, 1), "b": expert(tmp_path / "b", first, 2)}, exclude=exclude
    )
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity=granularity)
    made = space.decode(np.random.default_rng(0).random(len(space.domain.names)))
    document = YAML(typ="safe", pure=True).load(to_mergekit(made, pool))
    row = {t: made.coefficients[g] for g, tensors in enumerate(space.groups.values()) for t in tensors}
    for info in (*pool.merged, *pool.copied):
        for k, name in enumerate(("a", "b")):
            assert resolve(document, tmp_path / name, info.name) == row.get(info.name, (0.0, 0.0))[k]


def test_mergekit_cannot_say_experts_with_other_names(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = expert(tmp_path / "other", first, 1)
    save_file({f"bert.{k}": v for k, v in load_file(other / "model.safetensors").items()}, other / "model.safetensors")
    pool = Pool.open(first, {"other": other})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names)
    with pytest.raises(Inexpressible, match="wants equal names"):
        to_mergekit(space.decode(space.domain.start), pool)
