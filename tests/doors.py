"""The doors by which bytes of others come in, with bytes that each takes, and a watch over files that are opened."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from evaluators import items
from evaluators.harness import guard
from optimizer.jobs.job import Job
from optimizer.record import postgres
from optimizer.record.results import Results
from searchspaces import Recipe
from searchspaces.adapters.adapter_config import LoraConfig
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.vocabularies.tokens import Tokens

JOB = b"""name: demo
models: {base: models/base, experts: {a: models/a, b: models/b}, heads: ["classifier.*"]}
space: {method: [ties, linear], bounds: {a: [0, 1e0]}, options: {ties.density: {low: 0.1, high: 1}}}
evaluators: [{kind: classification, name: a, data: a.jsonl}]
objectives: [a.accuracy]
driver: {name: cma, sigma: 1e-3, gradients: {loss: {kl: 1.5}}}
executor: {device: {"": 0}, gpus: 1}
ledger: postgresql://me@host:5432/db?sslmode=require
seed: 3
"""
RECIPE = b"""format: 1
method: task_arithmetic
options: {lambda: {g: {a: 0.5, b: 1.0}, h: {a: 0.25, b: 1}}, normalize: false}
granularity: layer
experts: [a, b]
coefficients: {g: {a: 0.5, b: -0.25}, h: {a: 1e-3, b: 1}}
models: {base: x, a: y, b: z}
seed: 0
"""
_HEADER = json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {}})
WEIGHTS = struct.pack("<Q", len(_HEADER)) + _HEADER.encode() + bytes(16)
INDEX = b'{"metadata": {"total_size": 16}, "weight_map": {"a.weight": "one.safetensors"}}'
LORA = b"""{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
"bias": "none", "use_rslora": false, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {},
"base_model_name_or_path": "x"}"""
TOKENS = b"""{"version": "1.0", "added_tokens": [{"id": 2, "content": "<s>", "special": true}],
"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"""
TASK = b"""task: mine
dataset_path: json
output_type: multiple_choice
include: other.yaml
doc_to_text: "{{text}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def job(folder: Path, data: bytes) -> None:
    (folder / "job.yaml").write_bytes(data)
    read = Job.load(folder / "job.yaml")
    assert "/" not in read.name and read.name.strip(".")
    (folder / "again.yaml").write_text(read.yaml(), encoding="utf-8")
    again = Job.load(folder / "again.yaml")
    assert repr(again) == repr(read)  # NaN in an option is not equal to itself


def recipe(folder: Path, data: bytes) -> None:
    read = Recipe.from_yaml(data.decode(errors="surrogateescape"))
    assert Recipe.from_yaml(read.to_yaml()).hash == read.hash


def weights(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)
    found = Checkpoint.open(folder, "base")
    for name in found.tensors:
        found.tensor(name)


def index(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "one.safetensors").write_bytes(WEIGHTS)
    (folder / "model.safetensors.index.json").write_bytes(data)
    Checkpoint.open(folder, "base")


def config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    Checkpoint.open(folder, "base")


def lora(folder: Path, data: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(data)
    read = LoraConfig.read(folder / "adapter_config.json", "expert 'a'")
    assert read.rank_of("model.layers.0.q_proj") > 0
    read.scale_of("model.layers.0.q_proj")


def tokens(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    Tokens.of(folder, "base")


def task(folder: Path, data: bytes) -> None:
    (folder / "mine.yaml").write_bytes(data)
    (folder / "other.yaml").write_text("test_split: test\n")
    guard.read(folder / "mine.yaml", folder)


def note(folder: Path, data: bytes) -> None:
    (folder / "ledger.json").write_bytes(data)
    postgres.noted(folder / "ledger.json")


def rows(folder: Path, data: bytes) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        (folder / name).write_bytes(data)
        with contextlib.suppress(items.DataError):
            items.read(name, folder)


def run(folder: Path, data: bytes) -> None:
    """A run's folder from elsewhere, whose ledger is these bytes."""
    (folder / "ledger.db").write_bytes(data)
    Results(folder)


# by name: what reads, and bytes that it takes
DOORS: dict[str, tuple[Callable[[Path, bytes], None], bytes]] = {
    "job": (job, JOB),
    "recipe": (recipe, RECIPE),
    "weights": (weights, WEIGHTS),
    "index": (index, INDEX),
    "config": (config, b'{"model_type": "llama", "hidden_size": 8}'),
    "lora": (lora, LORA),
    "tokens": (tokens, TOKENS),
    "task": (task, TASK),
    "note": (note, b'{"server": "postgresql://me@host/db?sslmode=require", "run": "0123456789abcdef01234567"}'),
    "rows": (rows, b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n'),
    "run": (run, b"SQLite format 3\0" + bytes(84)),
}
OWN_MODULES = ("searchspaces.", "evaluators.", "optimizer.")
# what Python and its libraries read of their own as they are first used
LIBRARIES = tuple(
    os.path.realpath(where)
    for where in (*filter(None, sys.path), sys.prefix, sys.base_prefix, "/usr/share/zoneinfo", "/proc/sys", "/sys/fs")
)
_watching: list[tuple[Path, list[str]]] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str | bytes):
        folder, outside = _watching[-1]
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((str(folder), *LIBRARIES)):
            outside.append(path)


sys.addaudithook(_watch)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Files outside `folder` (and outside Python and this house) that are opened meanwhile."""
    outside: list[str] = []
    _watching.append((folder.resolve(), outside))
    try:
        yield outside
    finally:
        _watching.pop()


def knock(name: str, folder: Path, data: bytes) -> str | None:
    """Give a door these bytes. None where it took them, else its refusal; whatever else it raises is a defect."""
    door, _ = DOORS[name]
    for left in folder.iterdir():
        left.unlink()
    with watched(folder) as outside:
        try:
            door(folder, data)
            said = None
        except ValueError as error:
            if not type(error).__module__.startswith(OWN_MODULES):
                raise
            said = str(error)
    assert not outside, f"{name} opened {outside}"
    return said
