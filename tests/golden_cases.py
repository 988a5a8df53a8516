"""Which merges of mergekit's are there to hold ours against? Models, merges, and what they are in our words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from searchspaces import methods
from searchspaces.option import Option

GOLDEN = Path(__file__).parent / "golden"
FURTHER = load_file(GOLDEN / "further.safetensors")
CASES = json.loads((GOLDEN / "index.json").read_text()) + json.loads((GOLDEN / "further.json").read_text())
IDS = [f"{case['file'].partition('.')[0]}-{case['method']}" for case in CASES]


def expected(case: dict) -> dict[str, torch.Tensor]:
    """What mergekit made."""
    return load_file(GOLDEN / case["file"]) if _own_file(case) else _further(case["file"])


def models(case: dict) -> dict[str, dict[str, torch.Tensor]]:
    """Base and experts that went in, by name."""
    names = ("base", *case["experts"])
    return {n: load_file(GOLDEN / f"{n}.safetensors") if _own_file(case) else _further(n) for n in names}


def said(case: dict) -> tuple[list[float], dict[str, Option]]:
    """A coefficient for each expert, and options; those that are by expert are arrays `(1, K)`."""
    found = dict(case["parameters"])
    known = methods.load(case["method"]).options
    # where nothing is said mergekit drops nothing, and goes along experts unless there is a base
    found = {name: 1.0 for name in ("density", "select_topk") if name in known} | found
    if "task_vectors" in known:
        found["task_vectors"] = case["base"]
    if "along" in known:  # mergekit looks at one flag where another says so
        flat, across = found.pop("nuslerp_flatten", True), found.pop("nuslerp_row_wise", False)
        found["along"] = "flat" if flat else "columns" if across else "rows"
    weights = found.pop("weight", [found.pop("t")] if "t" in found else [1.0] * len(case["experts"]))
    return weights, {k: np.array([v], dtype=np.float64) if isinstance(v, list) else v for k, v in found.items()}


def _own_file(case: dict) -> bool:
    return case["file"].endswith(".safetensors")


def _further(name: str) -> dict[str, torch.Tensor]:
    return {key.partition("/")[2]: t for key, t in FURTHER.items() if key.startswith(name + "/")}
