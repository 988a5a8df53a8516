"""A small world of task files over small data, what we say of them, and what `lm_eval.simple_evaluate` says."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pico
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.evaluator import Measure, Scores, Setting
from evaluators.harness.evaluator import Harness

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
    "echo": """
task: echo
output_type: generate_until
doc_to_text: "{{text}}. {{text}}. {{text}}. {{text}}."
doc_to_target: " {{text}}"
generation_kwargs: {until: ["."], max_gen_toks: 16}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: chrf, aggregation: chrf, higher_is_better: true}
""",
    "say": """
task: say
output_type: generate_until
doc_to_text: "Say {{text}}:"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["E", "h"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
  - {metric: chrf, aggregation: chrf, higher_is_better: true}
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


def write(root: Path, tests: int, trains: int) -> int:
    """Write the task files to `root/tasks`, and their data beside them; returns how many."""
    files = {"DATA": root / "test.jsonl", "TRAIN": root / "train.jsonl"}
    for seed, (name, count) in enumerate({"DATA": tests, "TRAIN": trains}.items()):
        files[name].write_text("\n".join(json.dumps(row) for row in documents(count, seed)))
    (root / "tasks").mkdir()
    for name, text in TASKS.items():
        whole = HEAD.replace("DATA", str(files["DATA"])).replace("TRAIN", str(files["TRAIN"])) + text
        (root / "tasks" / f"{name}.yaml").write_text(whole)
    (root / "tasks" / "both.yaml").write_text(GROUP)
    return len(TASKS) + 1


def ours(world: Path, task: str, batch_size: int = 5, dtype: torch.dtype = torch.float32, **options: Any) -> Scores:
    """Our scores of a task on all documents, by the model in `world/base`."""
    made = Harness("mine", {"task": f"tasks/{task}", "bootstrap_iters": 100, **options}, world)
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=dtype)
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, batch_size))
    return made.score(model, np.sort(np.concatenate([made.splits.calibration, made.splits.heldout])))


def theirs(
    world: Path, task: str, dtype: torch.dtype = torch.float32, lm: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """What `simple_evaluate` says of the same, without asking git and the machine who they are; `lm` is for `HFLM`."""
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=dtype)
    with (
        patch("lm_eval.evaluator.add_env_info"),
        patch("lm_eval.evaluator.add_tokenizer_info"),
        patch("lm_eval.evaluator.get_git_commit_hash"),
        patch.dict(os.environ, DISABLE_MULTIPROC="1"),
    ):
        found: dict[str, Any] = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=5, **(lm or {})),
            tasks=[task],
            task_manager=TaskManager(include_path=str(world / "tasks"), include_defaults=False),
            bootstrap_iters=100,
            **options,
        )
    return found


def compared(
    scores: Scores, found: dict[str, Any], task: str
) -> Iterator[tuple[str, Measure, float, float | None, float]]:
    """By our name: our measure, the harness's value and standard error (None: it has none), and by how much per-item
    values differ at most (NaN where none are kept, or they are a group's)."""
    for name, measure in scores.measures.items():
        first, _, rest = name.partition(".")
        member = first if first in found["results"] and first != task else task
        metric, _, filtered = (rest if member != task else name).partition(".")
        results = found["results"][member]
        filtered = filtered or next(k.partition(",")[2] for k in results if k.startswith(f"{metric},"))
        stderr = results[f"{metric}_stderr,{filtered}"]
        apart = float("nan")
        if name in scores.per_item and member in found["samples"]:
            values = scores.per_item[name]
            wanted = items(found, member, metric, filtered)
            apart = float(np.max(np.abs(values[~np.isnan(values)] / np.where(wanted, wanted, 1) - (wanted != 0))))
        value = float(results[f"{metric},{filtered}"])
        yield name, measure, value, None if stderr == "N/A" else float(stderr), apart


def made(root: Path) -> Path:
    """A folder with task files over small data, and a pico base that has opinions."""
    write(root, 23, 9)
    pico.base(root / "base", "chat", seed=3, initializer_range=0.3)
    return root


def items(found: dict[str, Any], task: str, metric: str, filtered: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The harness's value of each document; of (log-likelihood, weight) that document's own perplexity or bits."""
    samples = sorted((s for s in found["samples"][task] if s["filter"] == filtered), key=lambda s: s["doc_id"])
    values = np.array([sample[metric] for sample in samples], dtype=np.float64)
    if values.ndim == 2:
        own = -values[:, 0] / values[:, 1]
        values = own / np.log(2) if metric == "bits_per_byte" else np.exp(own)
    return values
