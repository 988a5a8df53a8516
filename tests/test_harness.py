"""Are scores, standard errors and per-item results those of `lm_eval.simple_evaluate` on the same weights?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_world import items, made, ours, theirs
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.evaluator import Scores, Setting
from evaluators.harness.bootstrap import standard_error
from evaluators.harness.evaluator import Harness


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task files over small data, and a pico base that has opinions."""
    return made(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def same(scores: Scores, results: dict[str, Any], names: dict[str, str]) -> None:
    """Every measure by our name is the harness's by its own, and nothing else is reported."""
    assert set(scores.measures) == set(names)
    for name, key in names.items():
        metric, _, filtered = key.partition(",")
        measure, stderr = scores.measures[name], results[f"{metric}_stderr,{filtered}"]
        assert measure.value == pytest.approx(float(results[key]), rel=1e-5), name
        assert measure.stderr == (None if stderr == "N/A" else pytest.approx(float(stderr), rel=1e-4)), name
        assert measure.count == 23


SETTINGS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "one-token choices": (
        "choices",
        {"acc": "acc,none", "acc_norm": "acc_norm,none", "mcc": "mcc,none"},
        {},
    ),
    "choices, three examples": (
        "choices",
        {"acc": "acc,none", "acc_norm": "acc_norm,none", "mcc": "mcc,none"},
        {"num_fewshot": 3},
    ),
    "choices, chat": (
        "choices",
        {"acc": "acc,none", "acc_norm": "acc_norm,none", "mcc": "mcc,none"},
        {
            "num_fewshot": 2,
            "apply_chat_template": True,
            "system_instruction": "Be.",
            "fewshot_as_multiturn": False,
        },
    ),
    "several-token choices": (
        "endings",
        {name: f"{name},none" for name in ("acc", "acc_norm", "acc_mutual_info")},
        {"num_fewshot": 1},
    ),
    "likelihood": ("last_word", {"perplexity": "perplexity,none", "acc": "acc,none"}, {}),
    "rolling": ("rolling", {n: f"{n},none" for n in ("word_perplexity", "byte_perplexity", "bits_per_byte")}, {}),
    "generation": ("echo", {"exact_match": "exact_match,none", "chrf": "chrf,none"}, {}),
    "generation, two filters": (
        "say",
        {n + s: f"{n},{f}" for n in ("exact_match", "chrf") for s, f in (("", "whole"), (".letter", "letter"))},
        {"num_fewshot": 1},
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_scores_errors_and_items_are_the_harness_s(world: Path, case: str) -> None:
    task, names, options = SETTINGS[case]
    scores = ours(world, task, **options)
    found = theirs(world, task, **options)
    same(scores, found["results"][task], names)
    kept = 0
    for name, values in scores.per_item.items():
        metric, _, filtered = names[name].partition(",")
        wanted = items(found, task, metric, filtered)
        np.testing.assert_allclose(values, wanted, rtol=1e-4)
        kept += 1
        assert len(set(values.tolist())) > 1 or metric in ("acc", "exact_match"), "a constant would prove nothing"
    assert kept >= 1
    if "chrf" in scores.measures:
        assert scores.measures["chrf"].value > 0, "texts without a letter in common would prove nothing"


def test_a_group_is_the_harness_s_aggregate_with_its_members(world: Path) -> None:
    scores = ours(world, "both")
    found = theirs(world, "both")
    group, members = found["results"]["both"], found["results"]
    for metric in ("acc", "acc_norm"):
        measure = scores.measures[metric]
        assert measure.value == pytest.approx(group[f"{metric},none"], rel=1e-6) and measure.count == 46
        assert measure.stderr == pytest.approx(group[f"{metric}_stderr,none"], rel=1e-6)
        for task in ("choices", "endings"):
            mine = scores.measures[f"{task}.{metric}"]
            assert mine.value == pytest.approx(members[task][f"{metric},none"], rel=1e-6) and mine.count == 23
    assert scores.per_item["acc"].shape == (46,) and np.isfinite(scores.per_item["acc"]).all()
    assert np.isnan(scores.per_item["endings.acc"]).sum() == 23, "rows of the other task have no such value"


PAIRS = {"both classes": [(0, 0), (1, 1), (1, 0), (0, 1), (1, True)], "one class": [(1, 1), (1, 1), (1, 0), (1, 1)]}
FIVE = [(i % 5, (i * i) % 5) for i in range(23)]
WORDS = [("yes", "no"), ("no", "no"), ("maybe", "yes"), ("yes", "yes")]
BOOTSTRAPS: dict[str, tuple[str, list[Any]]] = {
    "perplexity": ("perplexity", np.random.default_rng(0).normal(-3, 1, size=37).tolist()),
    "median, odd": ("median", np.random.default_rng(1).normal(size=37).tolist()),
    "median, even": ("median", np.random.default_rng(1).normal(size=36).tolist()),
    "nanmean": ("nanmean", [1.0, 2.0, float("nan"), 5.0, *range(12)]),
    **{f"f1, {k}": ("f1_score", v * 4) for k, v in PAIRS.items()},
    **{f"mcc, {k}": ("matthews_corrcoef", v * 4) for k, v in PAIRS.items()},
    "mcc, five classes": ("matthews_corrcoef", FIVE),
    "mcc, words": ("matthews_corrcoef", WORDS * 3),
}


@pytest.mark.parametrize("case", BOOTSTRAPS)
def test_bootstraps_are_the_harness_s_draw_for_draw(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api import metrics

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    name, values = BOOTSTRAPS[case]
    metric = getattr(metrics, name)
    for iters in (100, 2000) if name == "perplexity" else (40,):
        wanted = metrics.bootstrap_stderr(metric, values, iters)
        assert standard_error(metric, values, iters) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["f1_score", "matthews_corrcoef", "perplexity", "median", "nanmean"])
def test_metrics_of_counts_are_not_asked_for_each_resample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 resamples of 200 documents by scikit-learn are a quarter of an hour for each candidate."""
    from lm_eval.api import metrics

    monkeypatch.setattr(metrics, "_bootstrap_internal_no_mp", None)
    pairs = name in ("f1_score", "matthews_corrcoef")
    values = [(i % 2, i % 3 % 2) if pairs else -float(i) for i in range(20)]
    assert standard_error(getattr(metrics, name), values, 1000) > 0


def test_a_context_goes_through_the_model_once_for_all_its_choices(world: Path) -> None:
    made = Harness("mine", {"task": "tasks/endings"}, world)
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, 1))
    read: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    made.score(model, np.concatenate(list(made.splits)))
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    contexts = [len(tokenizer.encode(row["text"])) for row in rows]
    endings = [sum(len(tokenizer.encode(f" {e}")) - 1 for e in row["endings"]) for row in rows]
    # acc_mutual_info asks for each ending after the prefix token alone, too: a context so short is read once for all
    # of a row's endings only where that saves an eighth of the tokens
    prefixes = [1 if 3 + ending <= 2 * 8 else 3 for ending in endings]
    assert sum(read) == sum(contexts) + sum(endings) + sum(prefixes) + sum(endings)
