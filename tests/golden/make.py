"""How were further.safetensors and further.json made? By mergekit 0.1.5, run by a Python that has it.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5
    /tmp/mergekit/bin/python tests/golden/make.py

Tiny models with tensors of all kinds of shapes and accidents, and merges of them by every option of every method that
is not random. Tensors are named `model/tensor` and `case number/tensor`; the JSON has cases as index.json does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import save_file

HERE = Path(__file__).parent
TWO, THREE, FOUR = (["expert1", "expert2", "expert3", "expert4"][:k] for k in (2, 3, 4))
W2, W3, W4 = [0.8, 0.5], [0.6, -0.3, 0.9], [0.4, 0.7, 0.2, 0.5]
State = dict[str, torch.Tensor]


def models() -> dict[str, State]:
    """Base and four experts: a matrix, a filter, a vector, single numbers, no change, one expert's change alone."""
    draw = torch.Generator().manual_seed(7)
    shapes = {"matrix": (9, 7), "filter": (3, 2, 2, 3), "vector": (11,), "one": (1,), "same": (3, 4), "alone": (4, 5)}
    found = {"base": {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}}
    found["base"]["alone"][1] = 0.0  # a row of zeros
    for k in range(1, 5):
        found[f"expert{k}"] = {
            name: base + 0.3 * k**0.5 * torch.randn(base.shape, generator=draw) for name, base in found["base"].items()
        }
        found[f"expert{k}"]["same"] = found["base"]["same"].clone()
        if k != 2:
            found[f"expert{k}"]["alone"] = found["base"]["alone"].clone()
    return found


def sparsified() -> list[tuple[str, dict[str, Any], bool, list[str]]]:
    """Rows of generalised task arithmetic: method, parameters, with a base, experts."""
    every: list[tuple[str, dict[str, Any]]] = [
        ("ties", {"weight": W3, "density": [0.2, 0.5, 0.9]}),
        ("ties", {"weight": W3, "density": [0.3] * 3, "normalize": False}),
        ("ties", {"weight": W3, "density": [0.4] * 3, "rescale": True}),
        ("ties", {"weight": W3, "density": [0.4, 1.0, 0.1], "rescale": True, "lambda": 1.7, "normalize": False}),
        ("ties", {"weight": [0.0, 0.0, 0.7], "density": [0.5] * 3}),
        ("ties", {"weight": [-0.5, -0.4, -0.6], "density": [0.6] * 3}),
        ("ties", {"weight": [0.5, -0.5, 0.3], "density": [1.0] * 3, "lambda": -0.5}),
        ("ties", {"weight": [1.0] * 3, "density": [0.001] * 3}),
        ("breadcrumbs", {"weight": W3, "density": [0.6] * 3, "gamma": [0.0] * 3}),
        ("breadcrumbs", {"weight": W3, "density": [0.6, 0.9, 1.0], "gamma": [0.3, 0.2, 0.5]}),
        ("breadcrumbs", {"weight": W3, "density": [0.5] * 3, "gamma": [0.9] * 3}),
        ("breadcrumbs", {"weight": W3, "density": [0.05] * 3, "gamma": [0.1] * 3, "rescale": True}),
        ("breadcrumbs", {"weight": W3, "density": [0.7] * 3, "gamma": [0.1] * 3, "normalize": True, "lambda": 0.6}),
        ("breadcrumbs", {"weight": [0.5, -0.5, 0.0], "density": [0.7] * 3, "gamma": [0.1] * 3, "normalize": True}),
        ("breadcrumbs_ties", {"weight": W3, "density": [0.6, 0.7, 0.8], "gamma": [0.1, 0.0, 0.2]}),
        ("breadcrumbs_ties", {"weight": W3, "density": [0.5] * 3, "gamma": [0.1] * 3, "normalize": True}),
        ("breadcrumbs_ties", {"weight": W3, "density": [0.5] * 3, "gamma": [0.2] * 3, "rescale": True, "lambda": 1.3}),
    ]
    return [(method, parameters, True, THREE) for method, parameters in every] + [
        ("ties", {"weight": W4, "density": [0.3, 0.4, 0.5, 0.6]}, True, FOUR),
        ("ties", {"weight": [0.7], "density": [0.4]}, True, ["expert2"]),
        ("breadcrumbs", {"weight": [0.7], "density": [0.4], "gamma": [0.2]}, True, ["expert2"]),
        ("task_arithmetic", {"weight": [0.5, 0.7], "lambda": -1.2}, True, TWO),
        ("task_arithmetic", {"weight": W3, "normalize": True, "lambda": 0.8}, True, THREE),
    ]


def averaged() -> list[tuple[str, dict[str, Any], bool, list[str]]]:
    """Averages, on lines and on spheres."""
    found: list[tuple[str, dict[str, Any], bool, list[str]]] = [
        ("linear", {"weight": W3, "normalize": normalize}, False, THREE) for normalize in (True, False)
    ]
    found += [("slerp", {"t": t}, True, ["expert4"]) for t in (0.0, 0.6, 1.0, 1.4, -0.2)]
    for base in (False, True):
        for flat, rows in ((True, False), (False, False), (False, True)):
            options = {"nuslerp_flatten": flat, "nuslerp_row_wise": rows}
            found += [("nuslerp", {"weight": W2, **options}, base, TWO)]
        found += [("nuslerp", {"weight": weight}, base, TWO) for weight in ([0.4, -0.4], [0.9, -0.3])]
        found += [("multislerp", {"weight": W3, "normalize_weights": w}, base, THREE) for w in (True, False)]
        found += [("multislerp", {"weight": W4}, base, FOUR), ("multislerp", {"weight": [0.9, 0.0]}, base, TWO)]
    found += [("karcher", {}, False, names) for names in (TWO, THREE, FOUR)]
    found += [("karcher", {"max_iter": 1, "tol": 1e-9}, False, FOUR), ("karcher", {"max_iter": 0}, False, FOUR)]
    for names in (TWO, THREE, FOUR):
        found += [("model_stock", {"filter_wise": w}, True, names) for w in (False, True)]
    found += [("sce", {"select_topk": share}, True, names) for share in (1.0, 0.5, 0.1) for names in (TWO, FOUR)]
    found += [("sce", {"select_topk": 1.0}, True, ["expert1"]), ("sce", {"select_topk": 0.5}, True, ["expert1"])]
    return found


def main() -> None:
    """Write both files beside this one."""
    made = models()
    tensors = {f"{model}/{name}": t.contiguous() for model, state in made.items() for name, t in state.items()}
    cases = []
    for number, (method, parameters, base, names) in enumerate(sparsified() + averaged()):
        # mergekit refuses a multislerp of three or more task vectors that are zero
        left = {"same"} if method == "multislerp" and base and len(names) > 2 else set()
        inputs = {m: {n: made[m][n] for n in made[m].keys() - left} for m in ([*names, "base"] if base else names)}
        merged = merge_state_dicts(inputs, method, parameters=_keyed(parameters, names), base="base" if base else None)
        assert all(t.isfinite().all() for t in merged.values()), (method, parameters)
        tensors |= {f"{number}/{name}": t.float().contiguous() for name, t in merged.items()}
        cases.append({"file": str(number), "method": method, "parameters": parameters, "base": base, "experts": names})
    save_file(tensors, HERE / "further.safetensors")
    (HERE / "further.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def _keyed(parameters: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Lists are by expert; mergekit takes them by name."""
    return {k: dict(zip(names, v, strict=True)) if isinstance(v, list) else v for k, v in parameters.items()}


if __name__ == "__main__":
    main()
