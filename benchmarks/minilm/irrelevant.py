"""What happens when most experts are of no use? Experts of the MiniLM pool fine-tuned on shuffled labels.

    python benchmarks/minilm/irrelevant.py --out benchmarks/data/minilm-irrelevant --count 16

What is there is not made again. Experts are called TASK-0, TASK-1, ...; each has another shuffle of its task's labels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import texts

HERE = Path(__file__).parent


def main() -> None:
    """Make the experts that are missing."""
    parser = argparse.ArgumentParser(description="Experts of the MiniLM pool fine-tuned on shuffled labels.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "data/minilm-irrelevant", help="their folder")
    parser.add_argument("--pool", type=Path, default=HERE.parent / "data/minilm-hard", help="for its base and heads")
    parser.add_argument("--sources", type=Path, default=HERE.parent / "data/minilm-sources", help="packages and texts")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="training processes side by side, one thread each")
    options = parser.parse_args()
    if not (options.pool / "heads.safetensors").is_file():
        raise SystemExit(f"{options.pool}: no heads.safetensors; run build.py --out {options.pool} first")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    from training import Recipe, write_expert

    lr = json.loads((options.pool / "recipe.json").read_text())["lr"]
    tasks = texts.build(options.sources / "unpacked", options.sources / "tasks.json")
    names = list(tasks)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as workers:
        running = {}
        for i in range(options.count):
            name = names[i % len(names)]
            out = options.out / f"{name}-{i // len(names)}"
            if out.is_dir():
                continue
            task = replace(tasks[name], train=_shuffled(tasks[name].train, i))
            base, heads, recipe = (
                options.pool / "base",
                options.pool / "heads.safetensors",
                Recipe(options.steps, lr, False),
            )
            running[workers.submit(write_expert, base, heads, name, task, recipe, out)] = out.name
        for done in as_completed(running):
            first, last = done.result()
            print(f"{running[done]}: loss {first:.3f} -> {last:.3f} on shuffled labels", flush=True)


def _shuffled(rows: list[texts.Row], seed: int) -> list[texts.Row]:
    """The same texts and the same labels, the latter in another order."""
    labels = [label for _, label in rows]
    random.Random(seed).shuffle(labels)
    return [(text, label) for (text, _), label in zip(rows, labels, strict=True)]


if __name__ == "__main__":
    main()
