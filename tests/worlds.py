"""Small worlds for whole runs: a pico base, experts with heads, items, and a job file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pico

from optimizer import Job, Run

WORDS = ["good", "bad", "red", "blue", *"abcdefgh"]


def items(path: Path, count: int, seed: int) -> Path:
    """Texts of a few words, labelled by whether more of them are `good` than `bad`; no two alike."""
    draw = np.random.default_rng(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        words = [WORDS[i] for i in draw.integers(len(WORDS), size=int(draw.integers(3, 12)))]
        rows[" ".join(words)] = "pos" if words.count("good") > words.count("bad") else "neg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows.items()))
    return path


def searched(job: Path) -> Run:
    """The run of a job file, in `runs` beside it, at its end."""
    run = Run.create(Job.load(job), job.parent / "runs")
    run.search()
    return run


def classification(
    folder: Path, evaluations: int = 14, driver: str = "sobol", executor: str = "inline", extra: str = ""
) -> Path:
    """Two tasks on a pico BERT; returns the job file."""
    base = pico.base(folder / "base", "bert")
    for seed, name in enumerate(("spam", "mood"), 1):
        pico.expert(folder / "experts" / name, base, seed, labels=2)
        items(folder / "data" / f"{name}.jsonl", 60, seed)
    job = folder / "job.yaml"
    job.write_text(f"""
name: pico
models:
  base: base
  experts: {{spam: experts/spam, mood: experts/mood}}
  heads: ["classifier.*"]
space: {{granularity: layer}}
evaluators:
  - {{kind: classification, name: spam, data: data/spam.jsonl, text: text, classes: [neg, pos], pooling: mean}}
  - {{kind: classification, name: mood, data: data/mood.jsonl, text: text, classes: [neg, pos], pooling: mean}}
objectives: [spam.accuracy, mood.cross_entropy]
driver: {{name: {driver}}}
budget: {{evaluations: {evaluations}}}
executor: {{kind: {executor}, workers: 2, cpus: 0.5}}
{extra}""")
    return job


def language(folder: Path, evaluations: int = 8) -> Path:
    """Two experts of a pico Llama, loss on one text; returns the job file."""
    base = pico.base(folder / "base", "llama")
    for seed, name in enumerate(("one", "two"), 1):
        pico.expert(folder / "experts" / name, base, seed)
    items(folder / "data" / "text.jsonl", 40, 3)
    job = folder / "job.yaml"
    job.write_text(f"""
name: words
models: {{base: base, experts: {{one: experts/one, two: experts/two}}}}
space: {{granularity: module, method: linear}}
evaluators: [{{kind: language, name: text, data: data/text.jsonl, text: text}}]
objectives: [text.loss]
driver: {{name: cma}}
budget: {{evaluations: {evaluations}}}
executor: {{kind: inline}}
""")
    return job


def adapters(folder: Path, dense: bool = False, evaluations: int = 10, extra: str = "") -> Path:
    """Two LoRA experts of a pico Llama, or their densified twins, and losses on two texts; returns the job file."""
    base = pico.base(folder / "base", "llama")
    for seed, name in enumerate(("one", "two"), 1):
        home = pico.adapter(folder / "adapters" / name, base, seed, r=2 + seed, lora_alpha=4)
        if dense:
            pico.densified(folder / "twins" / name, base, home)
        items(folder / "data" / f"{name}.jsonl", 40, seed)
    where = "twins" if dense else "adapters"
    job = folder / "job.yaml"
    job.write_text(f"""
name: lora
models: {{base: base, experts: {{one: {where}/one, two: {where}/two}}}}
space: {{granularity: module}}
evaluators:
  - {{kind: language, name: first, data: data/one.jsonl, text: text}}
  - {{kind: language, name: second, data: data/two.jsonl, text: text}}
objectives: [first.loss, second.loss]
driver: {{name: cma}}
budget: {{evaluations: {evaluations}}}
executor: {{kind: inline}}
{extra}""")
    return job
