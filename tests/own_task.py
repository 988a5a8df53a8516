"""A task file of the user's over a few documents, and the evaluator that is made of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evaluators.evaluator import Setting
from evaluators.harness.evaluator import Harness

TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: TEST, train: TRAIN}}
SPLITS
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: ["A", "bad one", "C"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TRAIN = "training_split: train\n"
TEST = "test_split: test\n"


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"text": f"{seed} {i} {draw.random()}", "label": draw.randrange(3)} for i in range(n)]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def setting(folder: Path, **changes: Any) -> Setting:
    return Setting(AutoModelForCausalLM.from_pretrained(folder), folder, torch.device("cpu"), {}, 4)


def own(root: Path, found: list[dict[str, Any]] | None = None, text: str = TASK, **options: Any) -> Harness:
    """A task file of the user's over data named under `data`."""
    (root / "mine").mkdir(exist_ok=True)
    kept = text.replace("NAME", "mine").replace("SPLITS", TEST)
    kept = "\n".join(line for line in kept.splitlines() if "data_files" not in line)
    (root / "mine" / "mine.yaml").write_text(kept)
    write(root / "items.jsonl", rows(20, 5) if found is None else found)
    return Harness("e", {"task": "mine/mine.yaml", "data": "items.jsonl", **options}, root)
