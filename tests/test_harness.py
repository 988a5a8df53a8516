"""Are scores, standard errors and per-item results those of `lm_eval.simple_evaluate` on the same weights?"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pico import base
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.evaluator import Scores, Setting
from evaluators.harness import Harness

WORDS = ["good", "bad", "the", "other", "in", "A", "thing", "is", "water", "red"]

HEAD = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA, train: TRAIN}}
training_split: train
test_split: test
"""

TASKS = {
    "choices": """
task: choices
output_type: multiple_choice
doc_to_text: "Question: {{text}}\\nA or B?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["A", "B", "C"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
""",
    "endings": """
task: endings
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: "{{endings}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
""",
    "last_word": """
task: last_word
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{endings[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "say": """
task: say
output_type: generate_until
doc_to_text: "Say {{text}}:"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["E", "h"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: letter, filter: [{function: regex, regex_pattern: "([a-zA-Z])"}, {function: take_first}]}
""",
}

GROUP = """
group: both
task: [choices, endings]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
  - {metric: acc_norm, weight_by_size: false}
"""


def documents(n: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    return [
        {
            "text": text(2, 9),
            "label": draw.randrange(3),
            "endings": [f"{text(1, 4)} {i}" for i in range(3)],
            "long": text(3, 120),
            "said": draw.choice("bsfhj"),
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task files over small data, and a pico base that has opinions."""
    root = tmp_path_factory.mktemp("world")
    files = {"DATA": root / "test.jsonl", "TRAIN": root / "train.jsonl"}
    for seed, (name, count) in enumerate({"DATA": 23, "TRAIN": 9}.items()):
        files[name].write_text("\n".join(json.dumps(row) for row in documents(count, seed)))
    (root / "tasks").mkdir()
    for name, text in TASKS.items():
        whole = HEAD.replace("DATA", str(files["DATA"])).replace("TRAIN", str(files["TRAIN"])) + text
        (root / "tasks" / f"{name}.yaml").write_text(whole)
    (root / "tasks" / "both.yaml").write_text(GROUP)
    base(root / "base", "chat", seed=3, initializer_range=0.3)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ours(world: Path, task: str, batch_size: int = 5, **options: Any) -> tuple[Harness, Scores, Any]:
    """An evaluator of a task in the world, its scores on all documents, and the model."""
    made = Harness("mine", {"task": f"tasks/{task}", "bootstrap_iters": 100, **options}, world)
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, batch_size))
    rows = np.sort(np.concatenate([made.splits.calibration, made.splits.heldout]))
    return made, made.score(model, rows), model


def theirs(world: Path, task: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """What `simple_evaluate` says of the same, without asking git and the machine who they are."""
    for asked in ("add_env_info", "add_tokenizer_info"):
        monkeypatch.setattr(f"lm_eval.evaluator.{asked}", lambda *_: None)
    monkeypatch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: "")
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    found: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=5),
        tasks=[task],
        task_manager=TaskManager(include_path=str(world / "tasks"), include_defaults=False),
        bootstrap_iters=100,
        **options,
    )
    return found


def same(scores: Scores, results: dict[str, Any], names: dict[str, str]) -> None:
    """Every measure by our name is the harness's by its own, and nothing else is reported."""
    assert set(scores.measures) == set(names)
    for name, key in names.items():
        metric, _, filtered = key.partition(",")
        measure, stderr = scores.measures[name], results[f"{metric}_stderr,{filtered}"]
        assert measure.value == pytest.approx(float(results[key]), rel=1e-5), name
        assert measure.stderr == pytest.approx(0.0 if stderr == "N/A" else float(stderr), rel=1e-4), name
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
        {"num_fewshot": 2, "apply_chat_template": True, "system_instruction": "Be good.", "fewshot_as_multiturn": False},
    ),
    "several-token choices": (
        "endings",
        {name: f"{name},none" for name in ("acc", "acc_norm", "acc_mutual_info")},
        {"num_fewshot": 1},
    ),
    "likelihood": ("last_word", {"perplexity": "perplexity,none", "acc": "acc,none"}, {}),
    "rolling": ("rolling", {n: f"{n},none" for n in ("word_perplexity", "byte_perplexity", "bits_per_byte")}, {}),
    "generation": (
        "say",
        {"exact_match": "exact_match,whole", "exact_match.letter": "exact_match,letter"},
        {"num_fewshot": 1},
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_scores_errors_and_items_are_the_harness_s(world: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, names, options = SETTINGS[case]
    _, scores, _ = ours(world, task, **options)
    found = theirs(world, task, monkeypatch, **options)
    same(scores, found["results"][task], names)
    kept = 0
    for name, values in scores.per_item.items():
        metric, _, filtered = names[name].partition(",")
        samples = sorted((s for s in found["samples"][task] if s["filter"] == filtered), key=lambda s: s["doc_id"])
        wanted = [sample[metric] for sample in samples]
        if task == "rolling":
            words = {"word_perplexity": np.exp, "byte_perplexity": np.exp, "bits_per_byte": lambda x: x / np.log(2)}
            wanted = [float(words[metric](-total / weight)) for total, weight in wanted]
        np.testing.assert_allclose(values, np.array(wanted, dtype=np.float32), rtol=1e-4)
        kept += 1
        assert len(set(values.tolist())) > 1 or metric in ("acc", "exact_match"), "a constant would prove nothing"
    assert kept >= 1


def test_a_group_is_the_harness_s_aggregate_with_its_members(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, scores, _ = ours(world, "both")
    found = theirs(world, "both", monkeypatch)
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
