"""How long does mergekit 0.1.5 take to write a candidate in memory? To be run by a Python that has it, not by ours.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5
    python benchmarks/harness.py --mergekit /tmp/mergekit/bin/python

Prints seconds a candidate, one a line, by the way of mergekit-evolve's in-memory evaluator: a plan of task arithmetic
over `FOLDER/base` and `FOLDER/expertN`, executed, each tensor copied into the resident model. The first is not printed.
That evaluator's own `plan_in_memory` ends with a TypeError in 0.1.5, whatever the pydantic; the tensors' tasks that it
would wrap are executed here.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from mergekit.architecture import arch_info_for_config
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Write candidates of random coefficients."""
    parser = argparse.ArgumentParser(description="Seconds that mergekit takes for a candidate in memory.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.folder / "base", dtype=getattr(torch, options.dtype))
    places = dict(model.named_parameters())
    draw = random.Random(0)
    for round_ in range(options.rounds + 1):
        config = configuration(options.folder, options.experts, options.dtype, draw)
        began = time.perf_counter()
        known = arch_info_for_config(AutoConfig.from_pretrained(options.folder / "base"))
        planner = MergePlanner(config, known, MergeOptions(lazy_unpickle=True), model.config)
        count = 0
        planner._plan()
        names = {task: info.name for info, task in planner._tensors}
        with torch.no_grad():
            for task, value in Executor(list(names), "cpu", "cpu").run(quiet=True):
                if names[task] in places:
                    places[names[task]].copy_(value)
                    count += 1
        if round_:
            print(time.perf_counter() - began, flush=True)
        if count < len(places) - 1:  # a tied head is no tensor of its own
            raise SystemExit(f"mergekit wrote {count} of {len(places)} tensors")


def configuration(folder: Path, experts: int, dtype: str, draw: random.Random) -> MergeConfiguration:
    """Task arithmetic with a coefficient for each expert."""
    models: list[dict[str, Any]] = [{"model": str(folder / "base")}]
    models += [
        {"model": str(folder / f"expert{k}"), "parameters": {"weight": draw.random() * 0.5}}
        for k in range(1, experts + 1)
    ]
    found = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models, "dtype": dtype}
    return MergeConfiguration.model_validate(found)


if __name__ == "__main__":
    main()
