"""Does a mergekit file become the job that starts at its merge, and is what would be another merge refused?"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pico
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program import Program, mergeopt
from ruamel.yaml import YAML
from test_mergekit import recipe_of

from evaluators.harness.options import HarnessOptions
from optimizer.errors import JobError
from optimizer.importing import models as naming
from optimizer.importing.documents import Reference, read
from optimizer.importing.methods import METHODS, OTHERS
from optimizer.importing.writing import write_import
from optimizer.jobs.job import Job
from optimizer.jobs.problem import open_pool, space_of
from optimizer.run import Run
from searchspaces import Pool, Recipe, methods
from searchspaces.box import start_by_group
from searchspaces.mergekit import to_mergekit
from searchspaces.option import complete
from searchspaces.weights.materialise import merged_tensors

LAYERS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Llama of four layers, three experts of it, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = pico.base(folder / "base", "llama", num_hidden_layers=LAYERS)
    for k in range(3):
        pico.expert(folder / f"e{k}", base, k + 1)
    pico.adapter(folder / "lora", base, 7)
    return folder


@pytest.fixture
def imported(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Job, list[str]]]:
    """Imports a text whose models are called as their folders are, from there."""
    monkeypatch.chdir(world)

    def made(text: str, **more: Any) -> tuple[Job, list[str]]:
        file, out = tmp_path / "merge.yaml", tmp_path / "job.yaml"
        file.write_text(text)
        out.unlink(missing_ok=True)
        notes = write_import(file, out, **more)
        return Job.load(out), notes

    return made


def begins(job: Job) -> tuple[Recipe, Pool]:
    pool = open_pool(job)
    space = space_of(job, pool, {})
    assert space.domain.start.tolist() in [point.tolist() for _, point in space.anchors(2)]
    return space.decode(space.domain.start), pool


def by_layer(recipe: Recipe, expert: int = 0) -> dict[str, float]:
    return dict(zip(recipe.groups, recipe.coefficients[:, expert].tolist(), strict=True))


MODELS = """
models:
  - model: e0
    parameters: {%s}
  - model: e1
    parameters: {%s}
"""


@pytest.mark.parametrize(
    ("text", "method", "coefficients", "options"),
    [
        (  # examples/bio-merge.yml
            MODELS % ("density: 0.5, weight: 0.5", "density: 0.5, weight: 0.5")
            + "merge_method: ties\nbase_model: base\nparameters: {normalize: false, int8_mask: true}\ndtype: float16",
            "ties", [0.5, 0.5], {"density": 0.5, "normalize": False, "lambda": 1.0},
        ),
        (  # examples/linear.yml
            MODELS % ("weight: 1.0", "weight: 0.3") + "merge_method: linear\ndtype: float16",
            "linear", [1.0, 0.3], {"normalize": True},
        ),
        (  # mergekit's defaults are not ours
            MODELS % ("weight: 0.5", "weight: -0.25") + "merge_method: ties\nbase_model: base",
            "ties", [0.5, -0.25], {"density": 1.0, "normalize": True},
        ),
        (
            MODELS % ("weight: 1", "weight: 1, density: 0.3")
            + "merge_method: breadcrumbs\nbase_model: base\nparameters: {density: 0.9, gamma: 0.02, lambda: 0.7}",
            "breadcrumbs", [1.0, 1.0], {"density": [0.9, 0.3], "gamma": 0.02, "lambda": 0.7, "rescale": False},
        ),
        (
            MODELS % ("weight: 1", "weight: 1") + "merge_method: della\nbase_model: base",
            "della", [1.0, 1.0], {"density": 1.0, "epsilon": 0.15, "rescale": True, "normalize": True},
        ),
        (
            "slices: [{sources: [{model: base, layer_range: [0, 4]}, {model: e1, layer_range: [0, 4]}]}]\n"
            "merge_method: slerp\nbase_model: base\nparameters: {t: 0.4}",
            "slerp", [0.4], {},
        ),
        (
            MODELS % ("weight: 0.4", "weight: 0.6") + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}",
            "nuslerp", [0.4, 0.6], {"along": "rows", "task_vectors": False},
        ),
        (
            "models: [{model: e0}, {model: e1}, {model: base}]\nmerge_method: model_stock\nbase_model: base",
            "model_stock", [1.0, 1.0], {"filter_wise": False},
        ),
        (
            "models: [{model: e0}, {model: e1}]\nmerge_method: sce\nbase_model: base\nparameters: {select_topk: 0.2}",
            "sce", [1.0, 1.0], {"select_topk": 0.2},
        ),
        (
            "models: [{model: e0}, {model: e1}]\nmerge_method: karcher\nparameters: {max_iter: 20}",
            "karcher", [1.0, 1.0], {"max_iter": 20, "tol": 1e-5},
        ),
        (
            MODELS % ("weight: 0.4", "weight: 0.6") + "merge_method: multislerp\nbase_model: base",
            "multislerp", [0.4, 0.6], {"task_vectors": True, "normalize_weights": True},
        ),
        (  # a share of the base is a merge of task vectors
            "models: [{model: base, parameters: {weight: 2}}, {model: e0, parameters: {weight: 1}},"
            " {model: e1, parameters: {weight: 1}}]\nmerge_method: linear\nbase_model: base",
            "task_arithmetic", [0.25, 0.25], {"normalize": False, "lambda": 1.0},
        ),
    ],
)  # fmt: skip
def test_a_merge_is_where_its_job_starts(
    imported: Callable[..., tuple[Job, list[str]]],
    text: str,
    method: str,
    coefficients: list[float],
    options: dict[str, Any],
) -> None:
    job, notes = imported(text)
    recipe, pool = begins(job)
    assert recipe.method == method and recipe.granularity == "layer"
    np.testing.assert_allclose(recipe.coefficients, np.tile(coefficients, (len(recipe.groups), 1)))
    for name, value in options.items():
        wanted = np.broadcast_to(value, recipe.coefficients.shape) if isinstance(value, list) else value
        np.testing.assert_array_equal(recipe.options[name], wanted)
    assert pool.names == tuple(name for name in ("e0", "e1") if name in job.models.experts)
    assert any("FILL-IN" in note for note in notes)


def test_numbers_by_layer_and_by_name_are_those_of_each_tensor(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    gradient = "{filter: self_attn, value: [0, 0.6, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}"  # gradient-slerp
    job, _ = imported(
        "models: [{model: base}, {model: e0}]\nmerge_method: slerp\nbase_model: base\n"
        f"parameters: {{t: [{gradient}]}}"
    )
    recipe, _ = begins(job)
    row = by_layer(recipe)
    assert recipe.granularity == "module"
    found = [row[f"model.layers.{i}.attention"] for i in range(LAYERS)]
    np.testing.assert_allclose(found, [0.0, 0.4, 0.6 + 0.4 / 3, 1.0])
    np.testing.assert_allclose([row[f"model.layers.{i}.mlp"] for i in range(LAYERS)], [1, 2 / 3, 1 / 3, 0])
    assert {row[g] for g in ("embeddings", "lm_head", "model.norm", "model.layers.2.norm")} == {0.5}

    job, _ = imported(MODELS % ("weight: [0, 0.3, 0.6, 0.9]", "weight: 1") + "merge_method: ties\nbase_model: base")
    recipe, _ = begins(job)
    row = by_layer(recipe)
    assert recipe.granularity == "layer" and row["embeddings"] == row["lm_head"] == 0.0
    np.testing.assert_allclose([row[f"model.layers.{i}"] for i in range(LAYERS)], [0, 0.3, 0.6, 0.9])

    halves = [
        {"sources": [{"model": m, "layer_range": r, "parameters": {"weight": w}} for m, w in zip(ms, ws, strict=True)]}
        for r, ms, ws in [([0, 1], ("e0", "e1"), (0.1, 0.2)), ([1, 4], ("e0",), (0.3,))]
    ]
    job, _ = imported(json.dumps({"slices": halves, "merge_method": "task_arithmetic", "base_model": "base"}))
    recipe, _ = begins(job)
    first, second = by_layer(recipe), by_layer(recipe, 1)
    assert [first[f"model.layers.{i}"] for i in range(LAYERS)] == [0.1, 0.3, 0.3, 0.3]
    assert [second[f"model.layers.{i}"] for i in range(LAYERS)] == [0.2, 0.0, 0.0, 0.0]
    assert (first["embeddings"], first["lm_head"], second["model.norm"]) == (0.1, 0.3, 0.0)


@pytest.mark.parametrize("case", golden_cases.CASES, ids=golden_cases.IDS)
def test_every_merge_that_mergekit_made_starts_at_the_numbers_that_make_it_here(
    imported: Callable[..., tuple[Job, list[str]]], case: dict[str, Any]
) -> None:
    """That those make the same weights is tested with the methods."""
    own = {name: v for name, v in case["parameters"].items() if isinstance(v, list)}
    models = [
        {"model": f"org/{name}", "parameters": {p: values[k] for p, values in own.items()}}
        for k, name in enumerate(case["experts"])
    ]
    shared = {name: v for name, v in case["parameters"].items() if name not in own}
    document = {"merge_method": case["method"], "models": models, "parameters": shared}
    job, _ = imported(json.dumps(document | ({"base_model": "org/base"} if case["base"] else {})))
    weights, options = golden_cases.said(case)
    assert job.space.method == case["method"] and list(job.models.experts) == case["experts"]
    assert job.space.start == {name: {"*": w} for name, w in zip(case["experts"], weights, strict=True)}
    specs = methods.load(case["method"]).options
    ours = {n: np.array([[*v.values()]]) if isinstance(v, dict) else v for n, v in job.space.said.items()}
    wanted = complete(case["method"], specs, options)
    for name, value in complete(case["method"], specs, ours).items():
        assert np.all(np.asarray(value) == np.asarray(wanted[name])), name


def test_the_best_merge_of_mergekit_evolve_is_a_start_too(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    """Its best_config.yaml: slices with the base among the sources, or models with layers, numbers by filters."""

    def numbers(k: int) -> dict[str, Any]:
        return {
            "weight": [{"filter": "mlp", "value": 0.1 * k}, {"filter": None, "value": 0.5}],
            "density": [{"filter": "mlp", "value": 0.75}, {"filter": None, "value": 0.75}],
        }

    rest: dict[str, Any] = {"merge_method": "dare_ties", "base_model": "base", "dtype": "bfloat16"}
    rest |= {"parameters": {"normalize": True, "int8_mask": True}, "tokenizer_source": None}
    sources = [
        [{"model": f"e{k}", "layer_range": [n, n + 2], "parameters": numbers(k + n)} for k in range(2)]
        + [{"model": "base", "layer_range": [n, n + 2]}]
        for n in (0, 2)
    ]
    job, notes = imported(json.dumps({**rest, "slices": [{"sources": part} for part in sources]}))
    recipe, _ = begins(job)
    row = by_layer(recipe, 1)
    np.testing.assert_allclose([row[f"model.layers.{i}.mlp"] for i in range(LAYERS)], [0.1, 0.1, 0.3, 0.3])
    assert recipe.options["density"] == 0.75 and row["model.layers.3.attention"] == row["embeddings"] == 0.5
    assert any("drawn in another way" in note for note in notes)

    models = [{"model": f"e{k}", "layer_range": [0, 4], "parameters": {"weight": [0.3, 0.6]}} for k in range(2)]
    job, _ = imported(json.dumps({**rest, "models": [*models, {"model": "base"}]}))
    row = by_layer(begins(job)[0])
    np.testing.assert_allclose([row[f"model.layers.{i}"] for i in range(LAYERS)], [0.3, 0.4, 0.5, 0.6])


ROUND = [
    ("task_arithmetic", {"lambda": 0.7}),
    ("ties", {"density": 0.6, "normalize": False}),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.05}),
    ("dare_ties", {"density": 1.0}),
    ("linear", {"normalize": False}),
    ("multislerp", {"task_vectors": True}),
    ("nuslerp", {"along": "columns"}),
]


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "tensor"])
@pytest.mark.parametrize(("method", "options"), ROUND)
def test_what_an_export_says_to_mergekit_is_the_same_recipe_again(
    world: Path,
    imported: Callable[..., tuple[Job, list[str]]],
    method: str,
    options: dict[str, Any],
    granularity: str,
) -> None:
    pool = Pool.open(world / "base", {"e0": world / "e0", "e1": world / "e1"})
    count = len(pool.groups(granularity))
    values = np.random.default_rng(3).uniform(0.1, 0.9, (count, 2))
    exported = recipe_of(pool, method, values, granularity, **options)
    job, _ = imported(to_mergekit(exported, pool))
    again, _ = begins(job)
    told = granularity if count > 1 else again.granularity
    assert (again.method, dict(again.options), again.granularity) == (method, dict(exported.options), told)
    rows = np.broadcast_to(values, again.coefficients.shape) if count == 1 else values
    np.testing.assert_array_equal(again.coefficients, rows)
    if count > 1:
        assert again.hash == Recipe(**{**vars_of(exported), "models": {}, "seed": again.seed}).hash


def vars_of(recipe: Recipe) -> dict[str, Any]:
    names = ("method", "options", "granularity", "groups", "experts", "coefficients")
    return {name: getattr(recipe, name) for name in names}


@pytest.mark.parametrize(("method", "rows"), [("linear", [[1.0, 3.0]]), ("layer_swap", [[0.0, 1.0]])])
def test_what_mergekit_calls_an_average_has_the_same_weights(
    world: Path, imported: Callable[..., tuple[Job, list[str]]], method: str, rows: Any
) -> None:
    pool = Pool.open(world / "base", {"e0": world / "e0", "e1": world / "e1"})
    values = np.tile(rows, (len(pool.groups("layer")), 1))
    values[1] = 0.0  # a group that stays the base
    exported = recipe_of(pool, method, values)
    again, _ = begins(imported(to_mergekit(exported, pool))[0])
    for (name, theirs), (_, ours) in zip(merged_tensors(pool, exported), merged_tensors(pool, again), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_what_differs_where_no_option_does_is_refused_or_its_mean(
    imported: Callable[..., tuple[Job, list[str]]],
) -> None:
    text = MODELS % ("density: [1, 0.7, 0.1], weight: 1", "density: 0.5, weight: 1")  # examples/ties.yml
    text += "merge_method: ties\nbase_model: base"
    with pytest.raises(JobError, match=r"'density' differs by layer or by tensor.*--nearest"):
        imported(text)
    job, notes = imported(text, nearest=True)
    assert any("density differs by layer" in note and "mean" in note for note in notes)
    assert 0.1 < job.space.said["density"]["e0"] < 1 and job.space.said["density"]["e1"] == 0.5


def test_adapters_of_the_base_are_experts(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    text = MODELS.replace("e1", "base+lora") % ("weight: 0.5", "weight: 0.25") + "merge_method: task_arithmetic\n"
    job, _ = imported(text + "base_model: base")
    recipe, pool = begins(job)
    assert list(pool.adapters) == ["lora"] and by_layer(recipe, 1)["embeddings"] == 0.25
    with pytest.raises(JobError, match=r"'base[+]lora': an adapter is an expert of the base .* save it merged"):
        imported(text + "base_model: e2")


def test_models_that_are_not_here_are_named_and_not_looked_at(
    imported: Callable[..., tuple[Job, list[str]]], world: Path
) -> None:
    commit = "0123456789" * 4
    text = f"""
models:
  - {{model: org/one@{commit}, parameters: {{weight: 0.5}}}}
  - {{model: org/two@main, parameters: {{weight: 0.5, density: 0.4}}}}
merge_method: ties
base_model: org/base
tokenizer_source: union
name: unheard of
"""
    job, notes = imported(text)
    assert job.models.experts == {"one": f"org/one@{commit}", "two": "org/two@main"}
    assert (job.models.base, job.models.vocabulary) == ("org/base", "union")
    assert job.space.start == {"one": {"*": 0.5}, "two": {"*": 0.5}}
    assert any("not pinned" in n and "org/base, org/two@main" in n and "org/one" not in n for n in notes)
    assert "name: unknown, and left out" in notes
    at = [f"org/{name}={world / folder}" for name, folder in (("one", "e0"), ("two@main", "e1"), ("base", "base"))]
    job, notes = imported(text, at=at)
    assert job.models.experts["two"] == str(world / "e1") and not any("not pinned" in note for note in notes)
    with pytest.raises(JobError, match="--at names 'org/three', which the file does not"):
        imported(text, at=["org/three=e0"])
    with pytest.raises(JobError, match=r"'weight' differs by layer, which needs the models: .*--at MODEL=FOLDER"):
        imported(text.replace("{weight: 0.5}", "{weight: [0, 1]}"))


def test_the_model_of_an_adapter_stands_for_a_base_that_is_not_named(
    imported: Callable[..., tuple[Job, list[str]]],
) -> None:
    for listed in ("{model: base+lora}, {model: e1}", "{model: e1}, {model: base+lora}"):
        job, notes = imported(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{listed}]")
        assert Path(job.models.base).name == "base" and set(job.models.experts) == {"lora", "e1"}
        assert any("names no base: base stands for it" in note for note in notes)


def test_what_each_model_overrides_needs_no_models(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    text = MODELS.replace("e0", "org/a").replace("e1", "org/b") % ("weight: 0.5", "weight: 0.25")
    job, _ = imported(text + "merge_method: linear\nparameters: {weight: [0.1, 0.9]}")
    assert job.space.start == {"a": {"*": 0.5}, "b": {"*": 0.25}}


ONE = "models: [{model: e0, parameters: {weight: 1}}]\nbase_model: base\n"
BAD: list[tuple[str, str]] = [
    ("merge_method: passthrough\nslices: [{sources: [{model: e0, layer_range: [0, 4]}]}]", "stacks layers"),
    ("merge_method: arcee_fusion\n" + ONE, "no such method"),
    ("merge_method: made_up\n" + ONE, "there are: breadcrumbs, .*task_arithmetic"),
    ("merge_method: ties\nmodels: [{model: e0, parameters: {weight: 1}}]", "base_model is required by ties"),
    ("merge_method: ties\nmodels: [{model: e0}]\nbase_model: base", "'weight' of 'e0' is missing"),
    ("merge_method: slerp\nmodels: [{model: e0}, {model: base}]\nbase_model: base", "'t' is missing"),
    ("merge_method: slerp\nparameters: {t: 1}\nmodels: [{model: e0}, {model: e1}]\nbase_model: base", "1 model beside"),
    ("merge_method: ties\nmodules: {default: {}}\n" + ONE, "modules cannot be imported"),
    ("merge_method: ties\n" + ONE + "tokenizer: {source: union, tokens: {a: {source: e0}}}", "models.sources"),
    (ONE.replace("weight: 1", "weight: yes please") + "merge_method: ties", "expected a number, got 'yes please'"),
    (ONE.replace("weight: 1", "weight: .nan") + "merge_method: ties", "weight: expected a number"),
    (ONE.replace("weight: 1", "weight: 1, density: 1.5") + "merge_method: ties", "density is 1.5, expected"),
    (ONE + "merge_method: ties\nparameters: {normalize: 'yes'}", "normalize must be true or false, got 'yes'"),
    (
        "merge_method: nuslerp\nparameters: {nuslerp_flatten: 'yes', weight: 1}\nmodels: [{model: e0}, {model: e1}]",
        "nuslerp_flatten must be true or false, got 'yes'",
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: e0+lora}, {model: e1+lora}]",
        "the file names no base, and has adapters of different models [(]e0, e1[)]",
    ),
    (ONE.replace("model: e0", "model: a+b+c") + "merge_method: ties", "MODEL or MODEL[+]ADAPTER"),
    (ONE.replace("model: e0", "model: [e0]") + "merge_method: ties", "expected a model"),
    ("gate_mode: random\nexperts: []", "mixture of experts"),
    ("models: {base: base}", "this has models"),
    ("[1, 2]", "a mapping with merge_method or genome; got list"),
    ("a: &x 1\nmerge_method: *x", "aliases"),
    ("merge_method: !!python/object/apply:os.system [ls]", "not valid YAML|none of its kind|expected"),
    ("merge_method: ties\n---\nmerge_method: linear", "not valid YAML"),
    (
        "merge_method: linear\nparameters: {normalize: false}\nbase_model: base\n"
        "models: [{model: base, parameters: {weight: 1}}, {model: e0, parameters: {weight: 1}}]",
        "do not sum to 1 scale the base",
    ),
    (
        "merge_method: linear\nslices: [{sources: [{model: e0, layer_range: [2, 4], parameters: {weight: 1}}]}]",
        "layers 2 to 4 come where layer 0 is due",
    ),
    (
        "merge_method: linear\nslices: [{sources: [{model: e0, layer_range: [0, 3], parameters: {weight: 1}}]}]",
        "end at layer 3, and the models have 4",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_would_be_another_merge_is_refused(
    imported: Callable[..., tuple[Job, list[str]]], tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        imported(text)
    assert not (tmp_path / "job.yaml").exists() and not list(tmp_path.glob(".job*"))


@pytest.mark.parametrize("weight", ["1e308", "-1e300", "1" + "0" * 400, ".nan", "[1e308, 0.5]"])
def test_numbers_that_are_no_weights_are_refused(imported: Callable[..., tuple[Job, list[str]]], weight: str) -> None:
    with pytest.raises(JobError, match="within a million"):
        imported(f"merge_method: linear\nmodels: [{{model: e0, parameters: {{weight: {weight}}}}}, {{model: e1}}]")


def test_a_home_of_nobody_is_a_folder_that_is_not_here(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    both = "[{model: ~nobody-of-this-host/x, parameters: {weight: 1}}, {model: e1, parameters: {weight: 1}}]"
    _, notes = imported(f"merge_method: linear\nmodels: {both}")
    assert any("~nobody-of-this-host/x" in note for note in notes)


def test_many_models_of_one_name_are_numbered() -> None:
    names = naming.named([Reference(f"a{i}/model") for i in range(300)])
    assert len(set(names.values())) == 300 and list(names.values())[:3] == ["model", "model-2", "model-3"]


def test_names_of_models_are_text_and_end_no_comment(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    name = 'org/x"\n\x1b[31mevaluators: []\n# '
    text = json.dumps(
        {
            "merge_method": "linear",
            "models": [{"model": name, "parameters": {"weight": 1, "\nbad: 1": 2}}],
            "chat_template": "{{ 1 }}",
        }
    )
    job, notes = imported(text)
    assert job.models.base == name and list(job.models.experts) == ["x----31mevaluators-------"]
    assert all("\x1b" not in note for note in notes) and [e.name for e in job.evaluators] == ["task"]


EVOLVE = """
genome:
  models: [e0, e1]
  merge_method: {method}
  base_model: base
  layer_granularity: 2
  {more}
tasks:
  - {{name: gsm8k, metric: "exact_match,strict-match", weight: 2}}
  - {{name: gsm8k, metric: "exact_match,flexible-extract"}}
  - mine
  - {{name: wikitext, metric: "word_perplexity,none", weight: -0.5}}
limit: 40
num_fewshot: 3
"""


@pytest.mark.parametrize(
    ("method", "more", "space"),
    [
        ("task_arithmetic", "", {"normalize": False, "bounds": (0, 2), "granularity": "layer"}),
        ("task_arithmetic", "allow_negative_weights: true", {"bounds": (-2, 2), "granularity": "layer"}),
        ("linear", "", {"normalize": True, "bounds": (0, 1), "granularity": "layer"}),
        ("ties", "normalize: false", {"normalize": False, "bounds": (0, 2), "granularity": "layer"}),
        ("dare_ties", "filters: [self_attn, mlp]", {"normalize": True, "bounds": (0, 1), "granularity": "module"}),
    ],
)
def test_a_genome_and_its_tasks_become_a_search(
    imported: Callable[..., tuple[Job, list[str]]],
    tmp_path: Path,
    method: str,
    more: str,
    space: dict[str, Any],
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("dataset_path: json\ntask: mine   # ours\n")
    job, notes = imported(EVOLVE.format(method=method, more=more))
    recipe, pool = space_of(job, open_pool(job), {}), open_pool(job)
    begun = recipe.decode(recipe.domain.start)
    assert (begun.method, begun.granularity) == (method, space["granularity"])
    assert (begun.coefficients == 0.5).all() and (np.asarray(begun.options.get("density", 1.0)) == 1.0).all()
    assert begun.options["normalize"] == space.get("normalize", False) and job.space.bounds == space["bounds"]
    assert pool.names == ("e0", "e1") and job.models.dtype == "bfloat16"
    assert job.objectives == [
        "gsm8k.exact_match", "gsm8k.exact_match.flexible-extract", "mine.acc", "wikitext.word_perplexity"
    ]  # fmt: skip
    assert job.driver.name == "cma" and job.driver.preferences == [[2.0, 1.0, 1.0, 0.5]]
    tasks = {e.name: e.options for e in job.evaluators}
    assert {e.kind for e in job.evaluators} == {"harness"}
    assert tasks["gsm8k"]["task"] == "gsm8k" and tasks["mine"]["task"] == "tasks/own.yaml"
    assert any("task mine is the file tasks/own.yaml" in note for note in notes)
    shared = {"limit": 40, "num_fewshot": 3, "apply_chat_template": True, "fewshot_as_multiturn": True}
    assert all(
        options.items() >= shared.items() and HarnessOptions.model_validate(options) for options in tasks.values()
    )
    assert any("layer_granularity: 2" in n or "filters" in n for n in notes)


def test_a_task_that_is_a_path_is_found_from_where_the_job_is_or_said_to_be_missing(
    imported: Callable[..., tuple[Job, list[str]]], tmp_path: Path, mergeopt: Program
) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("one", "two"):
        (tmp_path / "deep" / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n")
    genome = "genome: {models: [e0, e1], merge_method: ties, base_model: base}"
    os.mkfifo(tmp_path / "deep" / "pipe.yaml")
    tasks = ["./deep/one.yaml", str(tmp_path / "deep" / "two.yaml"), f"none/{'x' * 300}.yaml", "none/three.yml"]
    tasks += ["deep/pipe.yaml"]
    job, notes = imported(f"{genome}\ntasks: {json.dumps(tasks)}")
    wanted = {"one": "deep/one.yaml", "two": "deep/two.yaml", "x" * 60: tasks[2], "three": tasks[3], "pipe": tasks[4]}
    assert {e.name: e.options["task"] for e in job.evaluators} == wanted
    assert job.objectives == [f"{name}.acc" for name in wanted]
    assert f"task {tasks[0]} is the file deep/one.yaml" in notes
    (missing,) = [note for note in notes if note.startswith("task none/three.yml is a path at which nothing is")]
    assert any(note.startswith("task deep/pipe.yaml is a path at which nothing is") for note in notes)
    assert "under evaluators, at three, say where its .yaml is" in missing
    pytest.importorskip("lm_eval", reason="tasks need the extra 'harness'")
    for task in tasks[2:4]:
        imported(f"{genome}\ntasks: {json.dumps([task])}")
        refused = mergeopt("check", tmp_path / "job.yaml")  # says it too
        assert refused.code == 2 and "no such file or folder" in refused.err and "Traceback" not in refused.err


def test_a_genomes_words_are_taken_as_they_are_meant(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    genome = "genome: {models: [e0, e1], merge_method: linear, filters: [self_attn, mlp]%s}\n"
    tasks = "tasks: [{name: a, metric: criteria_score}]\nnum_fewshot: 0"
    job, notes = imported(genome % "" + tasks)
    assert job.evaluators[0].options["num_fewshot"] == 0 and job.objectives == ["a.criteria_score"]
    assert job.space.granularity == "model" and any(
        "has 3 coefficients of each model, each for all" in n for n in notes
    )
    job, notes = imported(genome % ", layer_granularity: 2" + tasks)
    assert job.space.granularity == "module" and any("3 coefficients of each model for each 2" in n for n in notes)
    with pytest.raises(JobError, match="less is better"):
        imported(genome % "" + "tasks: [{name: a, metric: ter}]")


def test_what_a_genome_becomes_runs_to_its_end(imported: Callable[..., tuple[Job, list[str]]], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="tasks need the extra 'harness'")
    from own_task import TASK, TEST, TRAIN, rows, write

    base = pico.base(tmp_path / "chat", "chat")
    at = [f"base={base}", *(f"e{k}={pico.expert(tmp_path / f'c{k}', base, k)}" for k in range(2))]
    for seed, name in enumerate(("first", "second")):
        files = {
            split: write(tmp_path / f"{name}.{split}.jsonl", rows(12, 2 * seed + k))
            for k, split in enumerate(("test", "train"))
        }
        text = TASK.replace("NAME", name).replace("SPLITS", TRAIN + TEST)
        text = text.replace("TEST,", f"{files['test']},").replace("TRAIN}", f"{files['train']}}}")
        (tmp_path / f"{name}.yaml").write_text(text)
    genome = "{models: [e0, e1], merge_method: task_arithmetic, base_model: base}"
    job, _ = imported(f"genome: {genome}\ntasks: [first, {{name: second, weight: 3}}]", at=at)
    plain = job.model_dump(mode="json")
    plain |= {"executor": {"kind": "inline"}, "budget": {"evaluations": 8}}
    run = Run.create(Job.parse(plain, tmp_path), tmp_path / "runs")
    run.search()
    results = run.results()
    assert len(results.scored) == 8 and not results.failures and results.finished
    assert [o.name for o in results.objectives] == ["first.acc", "second.acc"]
    assert all(c.heldout.keys() == c.measures.keys() for c in results.on_front)


def test_slerp_of_a_genome_is_the_arc_between_its_two_models(imported: Callable[..., tuple[Job, list[str]]]) -> None:
    text = "genome: {models: [e0, e1], merge_method: slerp, smooth: false}\ntasks: [a]\nshuffle: true\nextra: 1"
    job, notes = imported(text)
    assert Path(job.root or ".", job.models.base).resolve().name == "e0" and list(job.models.experts) == ["e1"]
    assert job.space.granularity == "model" and job.driver.preferences is None and job.space.start == 0.5
    assert any(n.startswith("shuffle: left out") for n in notes) and "extra: unknown, and left out" in notes


@pytest.mark.parametrize(
    ("genome", "rest", "message"),
    [
        ("models: [e0, e1, e2], merge_method: slerp", "tasks: [a]", "slerp of 3 models chooses two"),
        ("models: [e0, e1], merge_method: nuslerp", "tasks: [a]", "mergekit-evolve has no 'nuslerp'"),
        ("models: [e0, e1], merge_method: ties", "tasks: [a]", "genome.base_model is required by ties"),
        ("models: [], merge_method: ties", "tasks: [a]", "genome.models"),
        ("models: [e0], merge_method: linear", "tasks: []", "tasks"),
        ("models: [e0], merge_method: linear", "tasks: [{name: a, weight: 0}]", "every weight is 0"),
        ("models: [e0], merge_method: linear", "tasks: [{name: a, weight: -1}]", "asks for the worst"),
        (
            "models: [e0], merge_method: linear",
            "tasks: [{name: a, metric: 'perplexity,none'}]",
            "less is better, asks for the worst",
        ),
        ("models: [e0], merge_method: linear", "tasks: [{weight: 1}]", r"tasks.0.name: required"),
        ("models: [e0], merge_method: linear, layer_granularity: two", "tasks: [a]", "layer_granularity"),
    ],
)
def test_a_genome_that_cannot_be_searched_is_refused(
    imported: Callable[..., tuple[Job, list[str]]], genome: str, rest: str, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        imported(f"genome: {{{genome}}}\n{rest}")


def test_the_command_writes_what_can_be_run_and_check_says_what_is_left(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    file, out = tmp_path / "merge.yaml", tmp_path / "job.yaml"
    file.write_text(MODELS % ("weight: 0.5", "weight: 0.25") + "merge_method: task_arithmetic\nbase_model: base")
    assert mergeopt("import", file, "--out", out) == 0
    said = capsys.readouterr()
    assert "FILL-IN.jsonl" in said.err and f"mergeopt check {out}" in said.out
    assert mergeopt("check", out) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "FILL-IN.jsonl" in said
    assert mergeopt("import", file, "--out", out) == 2 and "exists already" in capsys.readouterr().err
    text = out.read_text()
    assert "# What is otherwise here than there:" in text and YAML(typ="safe", pure=True).load(text)["space"]
    (tmp_path / "t.jsonl").write_text('{"text": "a b"}\n')
    assert mergeopt("import", file, "--out", tmp_path / "b.yaml", "--data", f"talk={tmp_path}/t.jsonl") == 0
    assert Job.load(tmp_path / "b.yaml").objectives == ["talk.loss"] and "FILL-IN" not in capsys.readouterr().err


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["e0", "base", "a+b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = sorted({
    "weight", "t", "nuslerp_flatten", "nuslerp_row_wise",
    *(name for m in METHODS.values() for name in (*m.by_expert, *m.by_merge, *m.flags)),
})  # fmt: skip
NUMBER = st.sampled_from([0.5, 1, True, False, "yes", [0.1, 0.9]])
KEYS = {
    "merge_method": st.sampled_from([*METHODS, *OTHERS, "x"]) | JUNK,
    "base_model": st.sampled_from(["base", "org/x", "b+c"]) | JUNK,
    "models": st.lists(st.fixed_dictionaries({"model": st.sampled_from(["e0", "e1", "base"]) | JUNK}, optional={
        "parameters": st.dictionaries(st.sampled_from(OPTIONS), NUMBER | JUNK, max_size=3)
    }), max_size=3) | JUNK,
    "slices": JUNK, "parameters": st.dictionaries(st.sampled_from(OPTIONS), NUMBER | JUNK, max_size=3) | JUNK,
    "dtype": JUNK, "tokenizer": JUNK, "tokenizer_source": JUNK, "modules": JUNK,
    "tasks": st.lists(st.just("a") | JUNK, max_size=2), "limit": JUNK,
}  # fmt: skip
GENOME = st.fixed_dictionaries(
    {"models": KEYS["models"], "merge_method": KEYS["merge_method"]},
    optional={"filters": JUNK, "layer_granularity": JUNK, "normalize": JUNK, "base_model": KEYS["base_model"]},
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={**KEYS, "genome": GENOME | JUNK}))
def test_any_file_is_a_job_or_one_refusal(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "merge.yaml", Path(folder) / "job.yaml"
        file.write_text(json.dumps(document))  # NaN and infinity are words of YAML's then
        try:
            write_import(file, out)
        except ValueError as error:
            assert hasattr(error, "exit_code") and not out.exists(), repr(error)
            return
        Job.load(out)


def test_a_start_by_group_says_the_most_frequent_number_once() -> None:
    assert start_by_group(["a", "b", "c", "d"], [0.1, 0.3, 0.2, 0.3]) == {"a": 0.1, "c": 0.2, "*": 0.3}
    names = [str(i) for i in range(100_000)]
    assert len(start_by_group(names, [float(i) for i in range(100_000)])) == 100_000  # at once, not in minutes


def test_every_form_of_a_model_is_read() -> None:
    forms = [
        ("org/a", "org/a"), ("org/a@v1", "org/a@v1"), ("a+org/b@v2", "a+org/b@v2"),
        ({"model": {"path": "/x+y@z"}}, "/x+y@z"), ({"model": "a", "lora": {"path": "b"}}, "a+b"),
        ({"path": "a", "revision": "v"}, "a@v"),
    ]  # fmt: skip
    for said, wanted in forms:
        merge = read({"merge_method": "linear", "models": [{"model": said}]}, "x")
        assert str(merge.models[0].model) == wanted  # type: ignore[union-attr]
