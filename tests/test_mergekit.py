"""Does the YAML for mergekit say each tensor's numbers, and is what it cannot say refused with the reason?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import base, expert
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe, methods
from searchspaces.errors import Inexpressible
from searchspaces.mergekit import to_mergekit
from searchspaces.mergekit_methods import SAID
from searchspaces.option import Option, complete

NORMS = ["*norm*"]
DROPPING = ["dare_linear", "dare_ties", "della", "della_linear"]


def pool_of(folder: Path, count: int = 2, exclude: list[str] | None = None, **changes: Any) -> Pool:
    first = base(folder / "base", "llama", **changes)
    return Pool.open(
        first, {f"e{k}": expert(folder / f"e{k}", first, k + 1) for k in range(count)}, exclude=exclude or []
    )


def grown(values: Any, count: int) -> Any:
    """The last row again for as many groups as there are: what is written out here is of four."""
    found = np.asarray(values, dtype=np.float64)
    return found if found.ndim == 0 or len(found) != 4 else found[np.minimum(np.arange(count), 3)]


def recipe_of(
    pool: Pool, method: str, coefficients: Any = 1.0, granularity: str = "layer", **options: Option
) -> Recipe:
    groups = tuple(pool.groups(granularity))
    options = {n: grown(v, len(groups)) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    return Recipe(
        method, complete(method, methods.load(method).options, options), granularity, groups, pool.names,
        np.broadcast_to(grown(coefficients, len(groups)), (len(groups), len(pool.names))), {},
    )  # fmt: skip


def document(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    found = YAML(typ="safe", pure=True).load(to_mergekit(recipe, pool))
    assert found["out_dtype"] == "float32"
    return found


def resolve(setting: Any, tensor: str) -> Any:
    """mergekit's rule: the first entry whose filter is in the name, or that has none."""
    if not isinstance(setting, list):
        return setting
    return next(entry["value"] for entry in setting if "filter" not in entry or entry["filter"] in tensor)


def by_tensor(pool: Pool, recipe: Recipe, values: Any, rest: float) -> dict[str, float]:
    """A number of each group, for each of the pool's tensors."""
    wide = np.broadcast_to(grown(values, len(recipe.groups)), len(recipe.groups)).tolist()
    rows = zip(pool.groups(recipe.granularity).values(), wide, strict=True)
    return {t.name: rest for t in pool.copied} | {t: value for tensors, value in rows for t in tensors}


def says(setting: Any, wanted: Mapping[str, float]) -> bool:
    return all(resolve(setting, tensor) == value for tensor, value in wanted.items())


def entry(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    return next(m.get("parameters", {}) for m in found["models"] if m["model"] == str(folder))


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "tensor"])
@pytest.mark.parametrize("exclude", [[], NORMS])
def test_mergekit_reads_each_tensors_coefficient(tmp_path: Path, granularity: str, exclude: list[str]) -> None:
    pool = pool_of(tmp_path, exclude=exclude, num_hidden_layers=11)
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity=granularity)
    made = space.decode(np.random.default_rng(0).random(len(space.domain.names)))
    found = document(made, pool)
    for k, name in enumerate(pool.names):
        wanted = by_tensor(pool, made, made.coefficients[:, k], 0.0)
        assert says(entry(found, tmp_path / name)["weight"], wanted)


@pytest.mark.parametrize("exclude", [[], NORMS])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", *DROPPING])
def test_options_by_group_and_expert_are_said_of_each_tensor(tmp_path: Path, method: str, exclude: list[str]) -> None:
    pool, draw = pool_of(tmp_path, exclude=exclude), np.random.default_rng(1)
    groups, specs = len(pool.groups("layer")), methods.load(method).options
    options: dict[str, Option] = {"normalize": False, "lambda": draw.uniform(0.2, 2, (groups, 1))}
    options |= {n: draw.uniform(0.1, 0.4, (groups, 2)) for n in ("density", "gamma", "epsilon") if n in specs}
    if method in DROPPING:
        options["density"] = 1.0
    made = recipe_of(pool, method, draw.uniform(-1, 1, (groups, 2)), **options)
    found = document(made, pool)
    assert (found["merge_method"], found["base_model"]) == (method, str(tmp_path / "base"))
    assert found["parameters"]["normalize"] is False
    assert found["parameters"].get("rescale", "none") == made.options.get("rescale", "none")
    assert says(found["parameters"]["lambda"], by_tensor(pool, made, options["lambda"][:, 0], 1.0))
    for k, name in enumerate(pool.names):
        own = entry(found, tmp_path / name)
        assert says(own["weight"], by_tensor(pool, made, made.coefficients[:, k], 0.0))
        for number in own.keys() - {"weight"}:
            values = np.broadcast_to(options[number], (groups, 2))[:, k]
            assert says(own[number], by_tensor(pool, made, values, 1.0))
    assert own.keys() == {"weight"} | (specs.keys() & {"density", "gamma", "epsilon"})


def test_averages_say_the_bases_share_too(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, exclude=NORMS)
    c = np.array([[1.0, 3.0], [0.0, 0.0], [0.5, 0.0], [-1.0, 2.0]])
    swap = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    for made, base_, experts in (
        (recipe_of(pool, "linear", c), [0, 1, 0, 0], [[0.25, 0.75], [0, 0], [1, 0], [-1, 2]]),
        (recipe_of(pool, "linear", c, normalize=False), [0, 0, 0, 0], c),
        (recipe_of(pool, "layer_swap", swap), [0, 1, 0, 0], swap),
    ):
        found = document(made, pool)
        assert found["merge_method"] == "linear" and found["parameters"] == {"normalize": False}
        assert says(entry(found, tmp_path / "base")["weight"], by_tensor(pool, made, base_, 1.0))
        for k, name in enumerate(pool.names):
            wanted = by_tensor(pool, made, np.array(experts)[:, k], 0.0)
            assert says(entry(found, tmp_path / name)["weight"], wanted)


def test_methods_without_weights_say_the_published_merge(tmp_path: Path) -> None:
    pool, some = pool_of(tmp_path), np.array([[1.0], [0.25], [0.5], [2.0]])
    found = document(recipe_of(pool, "model_stock", some, filter_wise=True, **{"lambda": 1 / some}), pool)
    assert found["parameters"] == {"filter_wise": True} and found["base_model"] == str(tmp_path / "base")
    assert [m["model"] for m in found["models"]] == [str(tmp_path / "e0"), str(tmp_path / "e1")]

    kept = pool_of(tmp_path / "kept", exclude=NORMS)
    made = recipe_of(
        kept, "sce", np.array([[1.0], [0.0], [1.0], [1.0]]), select_topk=np.array([[0.1], [0.2], [0.3], [1]])
    )
    found = document(made, kept)
    assert says(found["parameters"]["select_topk"], by_tensor(kept, made, [0.1, 0.0, 0.3, 1.0], 0.0))

    made = recipe_of(pool, "karcher", 0.5, max_iter=np.array([[1.0], [2], [3], [4]]), tol=1e-6)
    found = document(made, pool)
    assert "base_model" not in found and found["dtype"] == "float64"
    assert says(found["parameters"]["max_iter"], by_tensor(pool, made, [1, 2, 3, 4], 0))
    assert all(type(resolve(found["parameters"]["max_iter"], t.name)) is int for t in pool.merged)
    assert says(found["parameters"]["tol"], by_tensor(pool, made, 1e-6, 0.0))


def test_arcs_say_where_on_them_each_tensor_is(tmp_path: Path) -> None:
    one, c = pool_of(tmp_path / "one", 1, NORMS), np.array([[0.1], [-0.2], [1.3], [0.0]])
    made = recipe_of(one, "slerp", c)
    found = document(made, one)
    assert says(found["parameters"]["t"], by_tensor(one, made, c[:, 0], 0.0))
    assert [m["model"] for m in found["models"]] == [found["base_model"], str(tmp_path / "one" / "e0")]

    pool, c = pool_of(tmp_path / "two"), np.array([[0.1, 0.2], [0.3, -0.3], [1.0, 0.0], [0.5, 2.0]])
    for task_vectors in (False, True):
        made = recipe_of(pool, "nuslerp", c, task_vectors=task_vectors, along="rows")
        found = document(made, pool)
        assert ("base_model" in found) is task_vectors
        assert found["parameters"] == {"nuslerp_flatten": False, "nuslerp_row_wise": False}
        made = recipe_of(pool, "multislerp", c, task_vectors=task_vectors, normalize_weights=False)
        found = document(made, pool)
        assert ("base_model" in found) is task_vectors and found["parameters"] == {"normalize_weights": False}
        for k, name in enumerate(pool.names):
            assert says(entry(found, tmp_path / "two" / name)["weight"], by_tensor(pool, made, c[:, k], 0.0))

    kept = pool_of(tmp_path / "kept", exclude=NORMS)  # two task vectors of weights 0 leave the base
    made = recipe_of(kept, "multislerp", c, task_vectors=True, normalize_weights=False)
    weight = entry(document(made, kept), tmp_path / "kept" / "e0")["weight"]
    assert says(weight, by_tensor(kept, made, c[:, 0], 0.0))


STILL = np.array([[1.0], [0.0], [1.0], [1.0]])
OPPOSED = np.array([[0.5, 0.5], [0.5, -0.5], [1.0, 0.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("method", "coefficients", "options", "exclude", "message"),
    [
        *((m, 0.3, {"density": 0.9}, [], f"mergekit's {m} draws other entries .* density of 1 only") for m in DROPPING),
        *((m, 1.0, {}, [], f"mergekit has no method like {m};") for m in ("tsv_m", "magmax", "consensus", "ties_once")),
        ("model_stock", 0.5, {}, [], "neither weights nor lambda"),
        ("model_stock", 1.0, {"lambda": 2.0}, [], "neither weights nor lambda"),
        (
            "model_stock",
            STILL,
            {},
            [],
            r"leave group 'model.layers.0' as the base has it, which mergekit's model_stock",
        ),
        ("model_stock", 1.0, {}, NORMS, "'model.layers.0.input_layernorm.weight' is the base's as it is"),
        ("sce", 0.5, {}, [], "neither weights nor lambda"),
        ("sce", 1.0, {"floor": 0.0}, [], "fixed floor of 1e-06"),
        ("nuslerp", STILL, {}, [], "leave group"),
        ("nuslerp", 1.0, {}, NORMS, "is the base's as it is"),
        ("multislerp", STILL, {}, [], "leave group"),
        ("multislerp", OPPOSED, {}, [], "leave group"),
        ("multislerp", 1.0, {"normalize_weights": False}, NORMS, "is the base's as it is"),
        ("karcher", np.array([0.5, 0.6]), {}, [], "equal coefficients only"),
        ("karcher", STILL, {}, [], "leave group"),
        ("karcher", 1.0, {}, NORMS, "is the base's as it is"),
    ],
)
def test_what_a_method_of_mergekit_cannot_is_refused(
    tmp_path: Path, method: str, coefficients: Any, options: dict[str, Option], exclude: list[str], message: str
) -> None:
    pool = pool_of(tmp_path, exclude=exclude)
    with pytest.raises(Inexpressible, match=message):
        to_mergekit(recipe_of(pool, method, coefficients, **options), pool)


def test_model_stock_of_one_expert_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 1)
    with pytest.raises(Inexpressible, match="two experts at least"):
        to_mergekit(recipe_of(pool, "model_stock"), pool)


def test_every_method_of_the_table_is_one_of_ours_and_says_its_defaults(tmp_path: Path) -> None:
    pools = {count: pool_of(tmp_path / str(count), count) for count in (1, 2)}
    for method in SAID:
        pool = pools[1 if method == "slerp" else 2]
        options: dict[str, Option] = {"density": 1.0} if method in DROPPING else {}
        one = np.eye(2)[:1] if method == "layer_swap" else 1.0
        assert document(recipe_of(pool, method, one, **options), pool)["models"]


def test_a_recipe_of_another_pool_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    with pytest.raises(Inexpressible, match="of another pool"):
        to_mergekit(replace(recipe_of(pool, "ties"), experts=("x", "y")), pool)


def test_paths_that_mergekit_would_read_its_own_way_are_said_as_paths(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "a+b@c")
    found = document(recipe_of(pool, "ties"), pool)
    assert found["base_model"] == {"model": {"path": str(tmp_path / "a+b@c" / "base")}} == found["models"][0]["model"]


def test_paths_are_said_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    pool = Pool.open("base", {"e0": "e0"})
    assert document(recipe_of(pool, "ties"), pool)["base_model"] == str(tmp_path / "base")


def rewrite(folder: Path, change: Any) -> None:
    """Change a folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.{k}": v for k, v in tensors.items()}, folder / "model.safetensors")


NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: renamed(d / "e0"), "wants equal names"),
        (lambda d: rewrite(d / "e0", lambda t: t.pop(NORM)), f"'e0' has no tensor '{NORM}'"),
        (lambda d: rewrite(d / "e0", lambda t: t.update({NORM: torch.ones(8)})), r"in shape \(8,\) \(base: \(16,\)\)"),
        (
            lambda d: rewrite(d / "base", lambda t: t.update({NORM: t[NORM].half()})),
            "float16 and float32; .* one dtype",
        ),
        (lambda d: [rewrite(d / n, lambda t: t.update({"a*b": torch.ones(2)})) for n in ("base", "e0")], r"a '\*'"),
        (lambda d: [rewrite(d / n, lambda t: t.update({"x.gamma": torch.ones(2)})) for n in ("base", "e0")], "old one"),
        (lambda d: rewrite(d / "e0", lambda t: t["ids"].add_(1)), "'ids' of expert 'e0' is not the base's"),
        (lambda d: settle(d / "e0", architectures=["Other"]), r"architectures \['Other'\]"),
        (lambda d: [settle(d / n, architectures=["BertModel"]) for n in ("base", "e0")], "fails on BertModel"),
        (lambda d: [settle(d / n, architectures=[]) for n in ("base", "e0")], "wants one architecture"),
        (
            lambda d: rewrite(d / "base", lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()})),
            "'base' stores 'lm_head.weight' beside the embedding",
        ),
    ],
)
def test_models_that_mergekit_does_not_merge_as_we_do_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    pool_of(tmp_path, 1, tie_word_embeddings=True)
    for name in ("base", "e0"):
        rewrite(tmp_path / name, lambda t: t.update({"ids": torch.arange(3)}))
    pool = Pool.open(tmp_path / "base", {"e0": tmp_path / "e0"}, exclude=NORMS)
    assert document(recipe_of(pool, "ties"), pool)
    change(tmp_path)
    pool = Pool.open(tmp_path / "base", {"e0": tmp_path / "e0"}, exclude=["*norm*"])
    with pytest.raises(Inexpressible, match=message):
        to_mergekit(recipe_of(pool, "ties"), pool)


def settle(folder: Path, **values: Any) -> None:
    """Change a folder's config."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_given_twice_is_refused(tmp_path: Path) -> None:
    pool_of(tmp_path, 1)
    pool = Pool.open(tmp_path / "base", {"a": tmp_path / "e0", "b": tmp_path / "e0"})
    with pytest.raises(Inexpressible, match="'b' is in the same folder as 'a'"):
        to_mergekit(recipe_of(pool, "ties"), pool)
