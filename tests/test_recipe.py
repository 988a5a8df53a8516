"""Is a recipe an identity? Its hash, its YAML, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchspaces import Recipe, methods
from searchspaces.errors import RecipeError
from searchspaces.option import complete

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


NAMES = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x85\u2028\u2029\t\n\r :#'\""), min_size=1)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_yaml_gives_any_name_back(groups: list[str]) -> None:
    one = Recipe(
        "linear", {"normalize": True}, "tensor", tuple(groups), ("e",), np.array([[0.1], [0.2]]), {"base": "h"}
    )
    again = Recipe.from_yaml(one.to_yaml())
    assert again.groups == one.groups and again.hash == one.hash


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


def with_options(**options: object) -> Recipe:
    return replace(recipe(), method="ties", options={"lambda": 1.0, **options})


def test_an_option_that_is_the_same_everywhere_is_a_plain_number() -> None:
    plain = with_options(density=0.5)
    assert with_options(density=np.full((2, 2), 0.5)) == plain == with_options(density=np.full((2, 1), 0.5))
    by_group = with_options(density=np.array([[0.5, 0.5], [0.25, 0.25]]))
    assert by_group == with_options(density=np.array([[0.5], [0.25]])) != plain
    assert by_group.hash != with_options(density=np.array([[0.25], [0.5]])).hash
    assert with_options(density=np.array([[0.0], [0.25]])) == with_options(density=np.array([[-0.0], [0.25]]))


@pytest.mark.parametrize("shape", [(2, 1), (2, 2)])
def test_a_whole_number_that_is_the_same_everywhere_stays_whole(shape: tuple[int, int]) -> None:
    def counting(least: object) -> Recipe:
        return replace(recipe(), method="consensus", options={"least": least})

    plain, table = counting(3), counting(np.full(shape, 3.0))
    assert table == plain and table.hash == plain.hash
    assert type(table.options["least"]) is int and Recipe.from_yaml(table.to_yaml()) == plain
    options = methods.load("consensus").options
    assert complete("consensus", options, table.options)["least"] == 3
    with pytest.raises(RecipeError, match=r"must be a whole number, got 2\.5"):
        complete("consensus", options, counting(np.full(shape, 2.5)).options)


def test_a_recipe_of_plain_options_keeps_its_hash_of_old() -> None:
    assert recipe().hash == "862275f7ee495096e4fe09fbd6f5a868cf5bb19c0c29f6b3762e3d02e15005b7"


@pytest.mark.parametrize("shape", [(2, 1), (2, 2)])
def test_options_that_differ_come_back_from_yaml_to_the_bit(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(shape)
    one = with_options(density=values, normalize=True)
    again = Recipe.from_yaml(one.to_yaml())
    assert again == one and np.asarray(again.options["density"]).tobytes() == values.tobytes()
    assert again.options["normalize"] is True
    first = float(values[0, 0])
    assert one.plain_options["density"]["embeddings"] == (
        first if shape[1] == 1 else {"math": first, "code": values[0, 1]}
    )
    with pytest.raises(ValueError, match="read-only"):
        one.options["density"][0, 0] = 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 2)), r"option density has shape \(3, 2\), expected \(2, 2\) .* or \(2, 1\)"),
        (np.zeros(2), r"option density has shape \(2,\)"),
        (np.array([[0.1], [np.nan]]), r"option density has nan in it"),
        (float("inf"), r"option density is inf"),
    ],
)
def test_options_that_do_not_fit_are_refused(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        with_options(density=value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("h.0: 0.25", "h.1: 0.25", 1), "map the groups of the coefficients, in their order"),
        (lambda t: t.replace("h.0: 0.25", "h.0: .inf", 1), "option 'density' of 'h.0' must be finite"),
        (lambda t: t.replace("h.0: 0.25", "h.0: [1]", 1), "option 'density' of 'h.0' must be finite"),
        (lambda t: t.replace("h.0: 0.25", "h.0: {math: 1, code: 2}", 1), "of 'embeddings' must name the experts"),
        (lambda t: t.replace("h.0: 0.25", "h.0: 0.3", 1), "remove the line"),
    ],
)
def test_options_in_text_that_are_none_are_refused(edit, message: str) -> None:  # type: ignore[no-untyped-def]
    text = with_options(density=np.array([[0.5], [0.25]])).to_yaml()
    assert edit(text) != text
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(edit(text))
