"""What can a space search beside coefficients? Options by model, expert and group, listed values, picks, methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from searchspaces import CoefficientSpace
from searchspaces.errors import RecipeError

TENSORS = ["embed.weight", "h.0.w", "h.1.w"]
EXPERTS = ["math", "code"]
GROUPS = ("embeddings", "h.0", "h.1")


def space(method: Any = "ties", options: dict[str, Any] | None = None, **changes: Any) -> CoefficientSpace:
    return CoefficientSpace(**{"tensors": TENSORS, "experts": EXPERTS, "method": method, "options": options, **changes})


def further(space: CoefficientSpace) -> list[str]:
    return list(space.domain.names[space.domain.shape[0] * space.domain.shape[1] :])


@pytest.mark.parametrize(
    ("per", "names", "shape"),
    [
        ("model", ["density"], ()),
        ("expert", ["density|math", "density|code"], (3, 2)),
        ("group", ["embeddings|density", "h.0|density", "h.1|density"], (3, 1)),
        ("both", [f"{g}|density|{e}" for g in GROUPS for e in EXPERTS], (3, 2)),
    ],
)
def test_a_number_is_one_coordinate_or_one_by_what_it_differs_by(per: str, names: list[str], shape: tuple) -> None:
    made = space(options={"density": {"low": 0.1, "high": 0.9, "per": per, "start": 0.4}})
    assert further(made) == names and made.domain.shape == (3, 2)
    assert made.decode(made.domain.start).options["density"] == 0.4
    point = np.array(made.domain.start)
    point[6:] = np.linspace(0.2, 0.8, len(names))
    found = np.asarray(made.decode(point).options["density"])
    assert found.shape == shape and (made.domain.low[6:] == 0.1).all() and (made.domain.high[6:] == 0.9).all()
    wanted = {"model": 0.2, "expert": [[0.2, 0.8]] * 3, "group": [[0.2], [0.5], [0.8]]}
    if per in wanted:
        np.testing.assert_allclose(found, wanted[per])
    else:
        np.testing.assert_allclose(found.ravel(), point[6:])
    point[6:] = 0.7
    assert made.decode(point).options["density"] == 0.7  # the same everywhere: a plain number, and one hash
    alone = space(options={"density": 0.7})
    assert made.decode(point) == alone.decode(point[:6]) and (made.encode(alone.decode(point[:6])) == point).all()


def test_search_takes_the_bounds_worth_searching_and_the_default_as_start() -> None:
    made = space(options={"density": "search", "normalize": "search"})
    domain = made.domain
    assert further(made) == ["density", "normalize"] and domain.kinds[6:] == ("real", "choice")
    assert 0 < domain.low[6] < domain.high[6] <= 1 and domain.labels == {7: ("false", "true")}
    started = made.decode(domain.start).options
    assert started["density"] == made.options["density"] and started["normalize"] is True
    other = made.decode(np.where(np.arange(8) == 7, 0.0, domain.start))
    assert other.options["normalize"] is False
    assert made.told(other and made.encode(other)) == {"density": f"{started['density']:g}", "normalize": "false"}


def test_an_option_may_be_fixed_by_expert() -> None:
    made = space(options={"density": {"code": 0.3, "math": 0.6}})
    assert further(made) == []
    np.testing.assert_array_equal(made.decode(made.domain.start).options["density"], [[0.6, 0.3]] * 3)
    turned = space(options={"density": {"code": 0.3, "math": 0.6}}, experts=["code", "math"])
    recipe = turned.decode(turned.domain.start)
    np.testing.assert_array_equal(recipe.options["density"], [[0.3, 0.6]] * 3)
    assert made.decode(made.encode(recipe)).options["density"][0].tolist() == [0.6, 0.3]  # type: ignore[index]


def test_whole_numbers_are_whole_in_recipes() -> None:
    made = space("consensus", {"least": {"low": 1, "high": 3, "per": "group"}})
    assert made.domain.kinds[6:] == ("integer",) * 3
    point = np.array(made.domain.start)
    point[6:] = 1
    same = made.decode(point).options["least"]
    assert same == 1 and type(same) is int
    assert made.decode(point) == space("consensus", {"least": 1}).decode(point[:6])
    point[6:] = 1, 2, 3
    np.testing.assert_array_equal(made.decode(point).options["least"], [[1], [2], [3]])
    point[6] = 1.5
    with pytest.raises(RecipeError, match=r"embeddings\|least is 1.5, expected a whole number from 1 to 3"):
        made.decode(point)


def test_listed_numbers_are_places_in_a_sorted_list() -> None:
    made = space("ties_once", {"density": {"values": [0.4, 0.1, 0.2]}, "scope": {"values": ["tensor", "model"]}})
    assert made.domain.kinds[6:] == ("integer", "choice")
    assert made.domain.labels == {6: ("0.1", "0.2", "0.4"), 7: ("tensor", "model")}
    recipe = made.decode(np.array([*made.domain.start[:6], 2.0, 0.0]))
    assert (recipe.options["density"], recipe.options["scope"]) == (0.4, "tensor")
    assert made.encode(recipe)[6:].tolist() == [2.0, 0.0]
    reached = {(o["density"], o["scope"]) for method, o in made.prepared if method == "ties_once"}
    assert reached == {(d, s) for d in (0.1, 0.2, 0.4) for s in ("tensor", "model")}
    with pytest.raises(RecipeError, match=r"density is 0.3; this space has one of 0.1, 0.2, 0.4: see space.options"):
        made.encode(replace(recipe, options={**recipe.options, "density": 0.3}))


def test_a_method_that_picks_has_a_choice_for_each_group() -> None:
    made = space("layer_swap", frozen=["embeddings"])
    domain = made.domain
    assert domain.names == ("h.0|pick", "h.1|pick") and domain.shape == (2, 0) and domain.kinds == ("choice",) * 2
    assert domain.labels[0] == ("base", "math", "code") and not made.decode(domain.start).coefficients.any()
    recipe = made.decode(np.array([2.0, 1.0]))
    np.testing.assert_array_equal(recipe.coefficients, [[0, 0], [0, 1], [1, 0]])
    assert made.encode(recipe).tolist() == [2.0, 1.0]
    assert [label for label, _ in made.anchors()] == ["base", "expert: math", "expert: code"]
    with pytest.raises(RecipeError, match="are one of the models"):
        made.encode(replace(recipe, coefficients=[[0, 0], [0.5, 0], [0, 0]]))
    held = space("layer_swap", frozen=["h.*"], start={"math": 1.0, "code": 0.0})
    np.testing.assert_array_equal(held.decode(held.domain.low).coefficients, [[0, 0], [1, 0], [1, 0]])


def test_the_method_is_a_choice_and_what_is_anothers_is_no_part_of_a_recipe() -> None:
    options = {"density": {"low": 0.1, "high": 0.9}, "dare_ties.density": {"low": 0.5, "high": 1.0}, "lambda": "search"}
    made = space(["task_arithmetic", "ties", "dare_ties", "layer_swap"], options, seed=7)
    assert further(made) == [f"{g}|pick" for g in GROUPS] + ["method", "density", "dare_ties.density", "lambda"]
    names = {name: i for i, name in enumerate(made.domain.names)}
    assert made.domain.labels[names["method"]] == ("task_arithmetic", "ties", "dare_ties", "layer_swap")

    def at(method: int, **changes: float) -> np.ndarray:
        point = np.array(made.domain.start)
        point[names["method"]] = method
        for name, value in changes.items():
            point[names[name.replace("__", ".")]] = value
        return point

    plain = made.decode(at(0))
    assert plain == made.decode(at(0, density=0.2, dare_ties__density=0.8)) and plain != made.decode(at(1))
    assert plain.hash == made.decode(at(0, density=0.2)).hash and "density" not in plain.options
    assert plain == space("task_arithmetic").decode(made.domain.start[:6]) and plain.seed == 0
    assert made.decode(at(1, density=0.2)).options["density"] == 0.2
    assert made.decode(at(2, density=0.2, dare_ties__density=0.8)).options["density"] == 0.8
    assert made.decode(at(2)).seed == 7 and made.decode(at(1, **{"lambda": 0.5})).options["lambda"] == 0.5
    assert made.told(at(3)) == {
        "embeddings|pick": "base",
        "h.0|pick": "base",
        "h.1|pick": "base",
        "method": "layer_swap",
    }
    assert made.told(at(1, density=0.25)).items() >= {"method": "ties", "density": "0.25"}.items()
    assert "dare_ties.density" not in made.told(at(1))
    labels = [label for label, _ in made.anchors()]
    assert labels.count("base") == 1 and "alone: math (ties)" in labels and "uniform (dare_ties)" in labels
    assert made.domain.vertices is None


def labels_of(made: CoefficientSpace, most: int | None = None) -> list[str]:
    return [label for label, _ in made.anchors(most)]


def test_of_more_anchors_than_there_is_room_for_the_best_known_are_taken_in_the_same_order() -> None:
    made = space(["task_arithmetic", "ties", "tsv_m"])
    every = labels_of(made)
    assert labels_of(made, 1000) == every and len(every) == 22
    # what is one model under all methods is asked once
    assert every[:3] == ["base", "expert: math", "expert: code"] and not [a for a in every if "expert: math (" in a]
    first = ["base", "global 0.4 (task_arithmetic)", "uniform (ties)", "global 1 (tsv_m)", "expert: math"]
    for most in range(1, len(every) + 1):
        found = labels_of(made, most)
        assert len(found) == most and found == [label for label in every if label in found]
        assert set(first[:most]) <= set(found)
    assert labels_of(made, 10)[3:] == [
        *("uniform (task_arithmetic)", "global 0.3 (task_arithmetic)", "global 0.4 (task_arithmetic)"),
        *("uniform (ties)", "uniform (tsv_m)", "global 0.7 (tsv_m)", "global 1 (tsv_m)"),
    ]
    held = space(["task_arithmetic", "layer_swap"], frozen=["embeddings"])
    assert "expert: math (layer_swap)" in labels_of(held), "what is held differs by method"


def test_a_recipe_of_coarser_groups_brings_its_options_along() -> None:
    coarse = space(options={"density": {"low": 0.1, "high": 0.9, "per": "both"}}, granularity="layer")
    fine = space(options={"density": {"low": 0.1, "high": 0.9, "per": "both"}}, granularity="tensor")
    point = coarse.domain.low + np.linspace(0.1, 0.7, 12)
    recipe = coarse.decode(point)
    np.testing.assert_array_equal(fine.decode(fine.encode(recipe)).options["density"], recipe.options["density"])
    with pytest.raises(RecipeError, match=r"density is an array of .3, 2.; this space has values that differ by group"):
        space(options={"density": {"low": 0.1, "high": 0.9, "per": "group"}}).encode(recipe)
    with pytest.raises(RecipeError, match=r"(?s)option density of ties is .* in this space it is 0.5; search it"):
        space(options={"density": 0.5}).encode(recipe)
    with pytest.raises(RecipeError, match=r"density is 0.9; this space has one from 0.1 to 0.5"):
        space(options={"density": {"low": 0.1, "high": 0.5}}).encode(
            replace(recipe, options={**recipe.options, "density": 0.9})
        )


def test_held_groups_keep_options_that_differ_by_group() -> None:
    made = space(options={"density": {"low": 0.1, "high": 0.9, "per": "group", "start": 0.3}}, frozen=["h.0"])
    assert further(made) == ["embeddings|density", "h.1|density"]
    found = made.decode(made.domain.high).options["density"]
    np.testing.assert_array_equal(found, [[0.9], [0.3], [0.9]])


def test_names_stay_unambiguous_whatever_experts_are_called() -> None:
    made = space(options={"density": {"low": 0.1, "high": 0.9, "per": "group"}}, experts=["density", "code"])
    assert "h.0|density" in made.domain.names[:6] and "h.0|option density" in further(made)
    picked = space("layer_swap", experts=["pick", "code"])
    assert picked.domain.names[0] == "embeddings|option pick"
    assert len(set(space(["linear", "layer_swap"], experts=["pick", "a"]).domain.names)) == 10


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ties", {"densty": 0.5}, r"ties has no option 'densty'; did you mean 'density'\? there are: .*density"),
        ("ties", {"dare.density": 0.5}, r"method ties has no option 'dare.density'"),
        (
            "ties",
            {"gamma": 0.5},
            r"ties has no option 'gamma'; .*\(gamma is an option of breadcrumbs, breadcrumbs_ties",
        ),
        ("ties", {"pcb.ratio": 0.5}, r"options\.pcb\.ratio: space\.method does not list pcb, but ties; list it too"),
        ("ties", {"density": "0.5"}, r"must be a finite number, got '0.5'; write it without quotes$"),
        ("ties", {"density": "serch"}, r"must be a finite number, got 'serch'; did you mean 'search'\?$"),
        (
            ["ties", "linear"],
            {"gamma": 1},
            r"none of the methods ties, linear has an option 'gamma'; .*density \(ties\)",
        ),
        (["ties", "linear"], {"linear.density": 1}, r"method linear has no option 'density'"),
        (["ties", "linear"], {"density": 0.5, "ties.density": 0.6}, r"said of ties by itself already"),
        ("ties", {"density": 1.5}, r"method ties: option density is 1.5, expected"),
        ("ties", {"density": {"maths": 0.5}}, r"names 'maths', which is no expert \(math, code\)"),
        ("ties", {"lambda": {"math": 0.5}}, r"option lambda is the same for all experts"),
        ("ties", {"density": {"low": 0.0}}, r"lower bound \(of ties\) is 0, expected above 0"),
        ("ties", {"density": {"low": 0.5, "high": 0.5}}, r"expected the lower first"),
        ("ties", {"density": {"low": 0.5, "start": 0.1}}, r"density.start is 0.1, outside \[0.5, 1\]"),
        ("ties", {"density": {"low": 0.5, "hihg": 1}}, r"'hihg' is none of its keys"),
        (
            "ties",
            {"lambda": {"per": "expert"}},
            r"lambda.per is 'expert', which ties cannot do; expected: model or group",
        ),
        ("ties", {"density": {"per": "tensor"}}, r"per is 'tensor', expected one of: model"),
        ("ties", {"density": {"values": [0.5]}}, r"two at least"),
        ("ties", {"density": {"values": [0.5, 0.5]}}, r"each once"),
        ("ties", {"density": {"values": 0.5}}, r"expected a list"),
        ("ties", {"density": {"values": [0.5, 2]}}, r"values \(of ties\) is 2"),
        ("ties", {"density": {"values": [0.5, 0.6], "start": 0.7}}, r"start is 0.7, expected one of: 0.5, 0.6"),
        ("ties", {"density": {"values": [0.5, 0.6], "low": 0.1}}, r"has no low and no high"),
        ("ties", {"normalize": {"per": "group"}}, r"which ties cannot do; expected: model"),
        ("ties", {"normalize": {"values": [True, "no"]}}, r"must be true or false"),
        ("ties", {"lambda": {"low": 0, "high": 1}}, r"lambda is 0, which makes every candidate the base"),
        ("ties", {"lambda": 1e-310}, r"lambda is 1e-310, .* expected 1e-06 at least, or leave it out"),
        ("ties", {"lambda": -1e-7}, r"lambda is -1e-07, which makes every candidate the base"),
        ("ties", {"lambda": {"low": -1e-300, "high": 1}}, r"lambda is -1e-300, which makes every candidate the base"),
        ("ties", {"density": {1: 2, "zz": 3, "low": 0.1}}, r"space.options.density: 1 is none of its keys"),
        ("ties_once", {"density": "search"}, r"once for each of its values: list those .* \{values: \[0.2"),
        ("ties_once", {"density": {"low": 0.1, "high": 0.5}}, r"once for each of its values"),
        ("ties_once", {"scope": "search"}, r"once for each of its values: list those"),
        ("ties_once", {"density": {"values": [0.1, 0.2], "per": "group"}}, r"which ties_once cannot do"),
        ("karcher", {"tol": "search"}, r"say from where to where"),
        (["ties", "ties"], {}, r"one name or several that differ"),
        ([], {}, r"one name or several"),
        ("slerp", {}, r"method slerp merges 1 expert, got 2: math, code; change models.experts"),
        (["ties", "slerp"], {}, r"method slerp merges 1 expert"),
        ("tise", {}, r"no merge method 'tise'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        space(method, options)


def test_methods_that_share_an_option_search_what_suits_them_all() -> None:
    made = space(["ties", "sce"], {"lambda": "search"})
    assert further(made) == ["method", "lambda"]
    with pytest.raises(RecipeError, match="recipe is of method karcher, this space of ties, sce"):
        made.encode(space("karcher").decode(np.full(6, 0.3)))
