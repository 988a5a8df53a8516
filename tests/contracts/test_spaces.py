"""What does every search space owe? Totality, an exact inverse, anchors, and refusals, over all its shapes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from optimizer.driver import at, exact
from searchspaces import METHODS, CoefficientSpace, Recipe, methods
from searchspaces.box import start_by_group
from searchspaces.errors import RecipeError
from searchspaces.groups import GRANULARITIES, group_tensors
from searchspaces.option import Flag, Number, complete

BLOCK = (
    "attention.self.query.weight",
    "attention.output.LayerNorm.weight",
    "intermediate.dense.weight",
    "output.dense.bias",
)
TENSORS = [
    "embeddings.word_embeddings.weight",
    *(f"encoder.layer.{i}.{rest}" for i in (0, 1, 2, 10, 11) for rest in BLOCK),
    "pooler.dense.weight",
]


def searched(method: str, per: str) -> dict[str, Any]:
    """All that can be searched of a method's options; what may not differ so is left out but by `model`."""
    found: dict[str, Any] = {}
    for name, spec in methods.load(method).options.items():
        if not isinstance(spec, Number):
            if per == "model":
                values = [False, True] if isinstance(spec, Flag) else list(spec.among)
                found[name] = {"values": values}
        elif spec.prepared:
            if per == "model":
                other = spec.high if spec.high != spec.default else (spec.low + spec.high) / 2
                found[name] = {"values": sorted({spec.default, other})}
        elif per in ("model", "group") or spec.per == "expert":
            found[name] = {"low": spec.default, "high": spec.high, "per": per} if spec.search is None else {"per": per}
    return found


EXPERTS = ["math", "code", "prose"]
GTA = ["task_arithmetic", "ties", "dare_ties"]
ROWS: dict[str, dict[str, Any]] = {
    f"{method}-{granularity}{'-simplex' if simplex else ''}": {
        "method": method, "granularity": granularity, "simplex": simplex
    }
    for method in ("linear", "task_arithmetic")
    for granularity in GRANULARITIES
    for simplex in (False, True)
}  # fmt: skip
ROWS |= {method: {"method": method} for method in METHODS}
ROWS |= {
    f"{method}-{per}": {"method": method, "options": options}
    for method in METHODS
    for per in ("model", "expert", "group", "both")
    if (options := searched(method, per))
}
ROWS["several"] = {"method": [*GTA, "layer_swap"], "options": {"density": {"per": "both"}, "lambda": "search"}}
ROWS["several, simplex"] = {**ROWS["several"], "simplex": True}


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def space(request: pytest.FixtureRequest) -> CoefficientSpace:
    return made(**request.param)


def made(**changes: Any) -> CoefficientSpace:
    """A space of as many experts as its first method merges."""
    method = changes.get("method", "task_arithmetic")
    most = methods.load(method if isinstance(method, str) else method[0]).experts[1]
    return CoefficientSpace(**{"tensors": TENSORS, "experts": EXPERTS[:most], "start": 0.25, **changes})


def points(space: CoefficientSpace, count: int = 8) -> list[np.ndarray]:
    units = np.random.default_rng(0).random((count, len(space.domain.names)))
    return [at(space.domain, unit) for unit in units]


def picks(space: CoefficientSpace) -> bool:
    return methods.load(space.method).picks


def test_the_domain_is_consistent(space: CoefficientSpace) -> None:
    domain = space.domain
    dim, block = len(domain.names), domain.shape[0] * domain.shape[1]
    assert len(set(domain.names)) == len(domain.kinds) == dim >= block
    assert domain.names[:block] == tuple(f"{g}|{e}" for g in space.groups for e in space.experts)[:block]
    assert set(domain.kinds[:block]) <= {"real"} and domain.shape[0] == len(space.groups)
    assert (domain.low < domain.high).all() and exact(domain, domain.start)
    for i, labels in domain.labels.items():
        assert (domain.low[i], domain.high[i]) == (0, len(labels) - 1) and len(set(labels)) == len(labels)
    assert {i for i, kind in enumerate(domain.kinds) if kind == "choice"} <= domain.labels.keys()
    for array in (domain.low, domain.high, domain.start, domain.uniform):
        assert array.dtype == np.float64 and array.shape == (dim,)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_every_point_decodes_and_encodes_back(space: CoefficientSpace) -> None:
    for point in (*points(space), space.domain.low, space.domain.start):
        recipe = space.decode(point)
        assert np.isfinite(recipe.coefficients).all() and recipe.method in space.methods
        complete(recipe.method, methods.load(recipe.method).options, recipe.options)  # refuses what does not fit
        again = space.encode(recipe)
        if len(space.methods) == 1:  # what belongs to another method is not in a recipe
            np.testing.assert_allclose(again, point, atol=1e-9)
        twice = space.decode(again)
        np.testing.assert_allclose(twice.coefficients, recipe.coefficients, atol=1e-12)
        assert replace(twice, coefficients=recipe.coefficients) == recipe
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    space.decode(space.domain.high)


def test_the_start_is_what_was_asked_for(space: CoefficientSpace) -> None:
    recipe = space.decode(space.domain.start)
    np.testing.assert_allclose(recipe.coefficients, 0.0 if picks(space) else 0.25, rtol=1e-12)
    assert (recipe.method, recipe.options.keys()) == (space.method, space.options.keys())


def test_points_that_are_none_are_refused(space: CoefficientSpace) -> None:
    domain = space.domain
    with pytest.raises(RecipeError, match="has shape"):
        space.decode(domain.start[:-1])
    for i in (0, len(domain.names) - 1):
        for wrong in (np.nan, np.inf, domain.high[i] + 1, domain.low[i] - 0.1):
            point = np.array(domain.start)
            point[i] = wrong
            with pytest.raises(RecipeError, match=rf"{re.escape(domain.names[i])} is .*outside"):
                space.decode(point)
        if domain.kinds[i] != "real":
            with pytest.raises(RecipeError, match=r"expected a whole number from 0"):
                space.decode(np.where(np.arange(len(domain.names)) == i, 0.5, domain.start))


def test_anchors_are_points_of_the_space(space: CoefficientSpace) -> None:
    found = {label: space.decode(point) for label, point in space.anchors()}
    rule = methods.load(space.method)(space.options)
    tail = f" ({space.method})" if len(space.methods) > 1 else ""
    assert ("base" in found) == rule.grounded
    assert not rule.grounded or (found["base"].coefficients == 0).all()
    if not picks(space) and len(space.experts) > 1:  # of one expert it is that expert's anchor
        np.testing.assert_allclose(found[f"uniform{tail}"].coefficients, rule.unit / len(space.experts), rtol=1e-12)
    # what was processed first is no longer the expert, even where the method restores what it merges
    what = "expert" if rule.restores and not methods.load(space.method).processes else "alone"
    for k, name in enumerate(space.experts):
        one = rule.unit * np.eye(len(space.experts))[k]
        np.testing.assert_allclose(
            found[f"{what}: {name}{'' if rule.restores else tail}"].coefficients,
            np.tile(one, (len(space.groups), 1)),
            atol=1e-12,
        )
    # what picks has nothing but models that all methods share
    assert {r.method for r in found.values()} >= {m for m in space.methods if not methods.load(m).picks}
    for recipe in found.values():  # at the start of all that is no coefficient
        start = made_start(space, recipe.method)
        assert replace(recipe, options=start) == recipe


def made_start(space: CoefficientSpace, method: str) -> dict[str, Any]:
    """Options where the search starts; of other methods than the start's, none is prepared in these rows."""
    return space.options if method == space.method else next(o for name, o in space.prepared if name == method)


def test_the_chain_rule_is_the_derivative_of_decoding(space: CoefficientSpace) -> None:
    point = space.domain.start + 0.2 * (points(space, 1)[0] - space.domain.start)
    point = np.where(np.array(space.domain.kinds) == "real", point, space.domain.start)
    slope = np.random.default_rng(1).normal(size=(len(space.groups), len(space.experts)))
    found, block = space.pull(point, slope), space.domain.shape[0] * space.domain.shape[1]
    assert found.shape == point.shape and not found[block:].any()
    for i in range(min(block, 30)):
        ahead, behind = (space.decode(point + s * (np.arange(len(point)) == i)).coefficients for s in (1e-6, -1e-6))
        if not picks(space):
            assert found[i] == pytest.approx(((ahead - behind) * slope).sum() / 2e-6, rel=1e-5, abs=1e-7)
    assert np.isfinite(space.pull(space.domain.low, slope)).all()
    assert np.isfinite(space.pull(space.domain.high, slope)).all()


def test_each_free_group_has_its_layer(space: CoefficientSpace) -> None:
    layers = dict(zip(space.groups, space.domain.layers, strict=True))
    if space.granularity == "model":
        assert layers == {"model": "model"}
        return
    for layer, tensors in group_tensors(TENSORS, "layer").items():
        mine = {group for group, held in space.groups.items() if set(held) & set(tensors)}
        assert {layers[group] for group in mine} == {layer}


def test_a_space_is_made_again_from_its_description(space: CoefficientSpace) -> None:
    again = CoefficientSpace(**json.loads(json.dumps(space.describe())))
    for point in points(space, 3):
        assert again.decode(point) == space.decode(point) and again.domain.names == space.domain.names


def test_a_recipe_of_one_group_is_lifted_to_finer_ones(space: CoefficientSpace) -> None:
    if picks(space):
        pytest.skip("coefficients of its groups are 0 or 1")
    coarse = CoefficientSpace(TENSORS, space.experts, space.method, space.options, granularity="model")
    row = [0.1, 0.2, 0.3][: len(space.experts)]
    recipe = coarse.decode(np.array(row))
    np.testing.assert_allclose(space.decode(space.encode(recipe)).coefficients, [row] * len(space.groups))


def test_a_finer_recipe_is_refused_where_it_does_not_fit() -> None:
    fine = CoefficientSpace(TENSORS, EXPERTS, granularity="tensor")
    with pytest.raises(RecipeError, match="granularity tensor can hold it"):
        CoefficientSpace(TENSORS, EXPERTS, granularity="layer").encode(fine.decode(points(fine, 1)[0]))


def test_frozen_groups_keep_their_start_and_are_no_coordinates() -> None:
    space = CoefficientSpace(
        TENSORS, EXPERTS, frozen=["embeddings", "encoder.layer.1.*"], start={"math": 0.5, "code": 0.0}
    )
    assert not [n for n in space.domain.names if n.startswith(("embeddings|", "encoder.layer.1|"))]
    assert [n for n in space.domain.names if n.startswith("encoder.layer.11|")]
    recipe = space.decode(space.domain.high)
    np.testing.assert_array_equal(recipe.coefficients[recipe.groups.index("embeddings")], [0.5, 0.0, 0.3])
    assert space.domain.layers == tuple(g for g in space.groups if g not in ("embeddings", "encoder.layer.1"))
    assert space.domain.layers == tuple(n.split("|")[0] for n in space.domain.names[::3])
    slope = np.random.default_rng(0).normal(size=(len(space.groups), 3))
    free = [g for g, name in enumerate(space.groups) if name in space.domain.layers]
    np.testing.assert_array_equal(space.pull(space.domain.start, slope), slope[free].ravel())
    moved = CoefficientSpace(TENSORS, EXPERTS).decode(np.full(21, 0.7))
    with pytest.raises(RecipeError, match="unfreeze"):
        space.encode(moved)


BY_GROUP = {"math": {"encoder.layer.1": 1.0, "encoder.layer.*": 0.5, "*": 0.0}, "code": {"*": 0.0}, "prose": 0.0}


@pytest.mark.parametrize("start", [BY_GROUP, {**BY_GROUP, "math": dict(reversed(BY_GROUP["math"].items()))}])
@pytest.mark.parametrize("simplex", [False, True])
def test_a_start_by_group_is_the_longest_patterns_and_an_anchor(start: dict[str, Any], simplex: bool) -> None:
    space = CoefficientSpace(TENSORS, EXPERTS, start=start, simplex=simplex, frozen=["encoder.layer.2"])
    begun = space.decode(space.domain.start)
    wanted = [0.0 if "layer" not in g else 1.0 if g == "encoder.layer.1" else 0.5 for g in space.groups]
    np.testing.assert_allclose(begun.coefficients[:, 0], wanted, atol=1e-12)
    assert not begun.coefficients[:, 1:].any()
    for most in (None, 2):
        assert dict(space.anchors(most))["start"].tolist() == space.domain.start.tolist()
    again = CoefficientSpace(**space.describe())
    assert again.decode(again.domain.start).hash == begun.hash


@given(
    st.dictionaries(st.text("a*?[]!-", min_size=1, max_size=4), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1),
    st.randoms(use_true_random=False),
)
@example({"a[0]": 0.25, "a0": 0.5, "a1": 0.5}, Random(0))
@example({"a*": 0.25, "ab": 0.5, "ac": 0.5}, Random(0))
@example({"*": 0.25, "[*]": 0.0, "a": 0.5, "b": 0.5}, Random(0))
def test_a_groups_own_name_is_that_group_alone_however_it_looks(starts: dict[str, float], order: Random) -> None:
    said = list(start_by_group(list(starts), list(starts.values())).items())
    order.shuffle(said)
    space = CoefficientSpace(list(starts), ["math"], granularity="tensor", start={"math": dict(said)})
    found = space.decode(space.domain.start).coefficients[:, 0]
    assert dict(zip(space.groups, found.tolist(), strict=True)) == starts
    for name in starts if len(starts) > 1 else ():
        held = CoefficientSpace(list(starts), ["math"], granularity="tensor", frozen=[name])
        assert {n.rpartition("|")[0] for n in held.domain.names} == set(starts) - {name}


def test_a_start_by_group_is_what_each_group_picks() -> None:
    space = CoefficientSpace(TENSORS, EXPERTS, method=["layer_swap", "linear"], start=BY_GROUP)
    begun = space.decode(space.domain.start)
    assert begun.method == "layer_swap"
    assert [begun.groups[g] for g in np.flatnonzero(begun.coefficients.any(axis=1))] == ["encoder.layer.1"]


def test_bounds_by_expert_leave_out_anchors_beyond_them() -> None:
    space = CoefficientSpace(TENSORS, EXPERTS, bounds={"math": (-0.5, 0.5)})
    assert (space.domain.low[:3] == [-0.5, 0, 0]).all() and (space.domain.high[:3] == [0.5, 1, 1]).all()
    labels = [label for label, _ in space.anchors()]
    assert "expert: math" not in labels and "expert: code" in labels and "global 0.7" not in labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bounds": (1.0, 0.0)}, "the lower first"),
        ({"bounds": (0.0, float("nan"))}, "the lower first"),
        ({"bounds": (-1e308, 1e308)}, "from -1e[+]38 to 1e[+]38, the lower first"),
        ({"start": 2.0}, "set space.start inside"),
        ({"start": {"maths": 0.1}}, "'maths', which is no expert"),
        (
            {"start": {"math": {"layers.7*": 0.1, "*": 0.2}}},
            "the pattern 'layers.7[*]' matches no group",
        ),
        ({"start": {"math": {"*.0": 0.1}}}, 'start of math says nothing of group .*; add "[*]": NUMBER'),
        ({"start": {"math": {"*": 0.1, "*.0": 1.5}}}, "start of math is 1.5, outside"),
        ({"simplex": True, "start": {"math": {"*": 0.6}, "code": {"*.0": 0.6, "*": 0.1}}}, "sum to at most 1"),
        ({"frozen": ["*"]}, "nothing is left"),
        ({"frozen": ["decoder.*"]}, "matches no group and no tensor"),
        ({"granularity": "block"}, "there are: model, layer, module, tensor"),
        ({"simplex": True, "start": 0.5}, "sum to at most 1"),
        ({"simplex": True, "bounds": (0.0, 2.0)}, "bounds of its own"),
        ({"tensors": []}, "needs merged tensors"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CoefficientSpace(**{"tensors": TENSORS, "experts": EXPERTS, **changes})


def test_a_uniform_box_is_uniform_on_the_simplex() -> None:
    space = CoefficientSpace(["w"], EXPERTS, simplex=True, start=0.1)
    found = np.array([space.decode(p).coefficients[0] for p in points(space, 4000)])
    parts = np.column_stack([found, 1 - found.sum(axis=1)])
    assert parts.min() >= -1e-12
    for column in parts.T:  # each part of a uniform point has the marginal Beta(1, K)
        assert stats.kstest(column, stats.beta(1, 3).cdf).pvalue > 1e-3


def test_groups_follow_the_model() -> None:
    layers = group_tensors(TENSORS, "layer")
    assert list(layers) == ["embeddings", *(f"encoder.layer.{i}" for i in (0, 1, 2, 10, 11)), "pooler"]
    modules = group_tensors(TENSORS, "module")
    assert modules["encoder.layer.10.norm"] == ("encoder.layer.10.attention.output.LayerNorm.weight",)
    assert set(modules["encoder.layer.0.mlp"]) == {f"encoder.layer.0.{r}" for r in BLOCK[2:]}
    t5 = group_tensors(["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
                        "decoder.block.0.layer.0.norm.weight", "encoder.final_layer_norm.weight"], "layer")  # fmt: skip
    assert set(t5) == {"embeddings", "encoder.block.0", "decoder.block.0", "encoder.final_layer_norm"}
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
    llama = group_tensors(names, "module")
    assert list(llama) == ["embeddings", "model.layers.0.mlp", "lm_head", "model.norm"]


def test_decoding_and_hashing_a_thousand_dimensions_is_cheap() -> None:
    space = CoefficientSpace([f"h.{i}.w" for i in range(250)], ["a", "b", "c", "d"], granularity="tensor")
    many = points(space, 50)
    begin = time.perf_counter()
    assert len({space.decode(p).hash for p in many}) == 50
    assert (time.perf_counter() - begin) / 50 < 0.005  # well under 1 ms on a quiet machine


@pytest.mark.parametrize(
    "method, options, unit", [("task_arithmetic", {"lambda": 0.5}, 2.0), ("linear", {"normalize": False}, 1.0)]
)
def test_an_affine_space_knows_the_points_of_its_experts(method: str, options: dict[str, Any], unit: float) -> None:
    space = CoefficientSpace(["a.0.w", "a.1.w"], ["x", "y"], method, options, bounds=(0.0, 3.0))
    vertices = space.domain.vertices
    assert vertices is not None
    labels = dict(space.anchors())
    for name, vertex in zip(space.experts, vertices, strict=True):
        assert np.array_equal(vertex, labels[f"expert: {name}"]) and vertex.max() == unit
    assert np.array_equal(space.domain.uniform, labels["uniform"])
    assert ("base" in labels) == (space.domain.base is not None) == (method == "task_arithmetic")


def test_where_weights_are_not_affine_there_are_no_vertices() -> None:
    average = CoefficientSpace(["a.0.w"], ["x", "y"], "linear").domain
    assert average.vertices is None and average.base is None  # at all 0 an average has no slope
    inside = CoefficientSpace(["a.0.w"], ["x", "y"], simplex=True)
    assert inside.domain.vertices is None and inside.domain.base is not None
    assert inside.decode(inside.domain.uniform).coefficients == pytest.approx(np.full((1, 2), 0.5))
    assert not inside.decode(inside.domain.base).coefficients.any()
