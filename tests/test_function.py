"""Is a user's own function loaded, called and checked as it was promised?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluators import load
from evaluators.errors import NonFinite, OptionError
from evaluators.evaluator import Evaluator, Measure, Scores, Setting
from evaluators.function import Function


def make(root: Path, body: str, **changes: Any) -> Evaluator:
    (root / "own.py").write_text(body)
    (root / "a.jsonl").write_text("\n".join(json.dumps({"n": i, "m": 2 * i}) for i in range(10)))
    options = {"data": "a.jsonl", "function": "own.py:f", "metrics": {"x": "max"}, **changes}
    return Function("mine", options, root)


def score(root: Path, body: str, **changes: Any) -> Scores:
    evaluator = make(root, body, **changes)
    model = torch.nn.Linear(1, 1)
    evaluator.prepare(Setting(model, root, torch.device("cpu")))
    return evaluator.score(model, np.array([7, 2, 5]))


def test_code_is_declared_so_that_it_can_be_refused() -> None:
    assert {kind: load(kind).runs_code for kind in ("classification", "language", "function")} == {
        "classification": False,
        "language": False,
        "function": True,
    }


def test_one_number_a_row_comes_back_in_the_order_asked(tmp_path: Path) -> None:
    scores = score(tmp_path, "def f(model, rows, tokenizer): return {'x': [row['n'] for row in rows]}")
    assert scores.per_item["x"].tolist() == [7, 2, 5]
    assert scores.measures["x"].value == pytest.approx(14 / 3)
    assert scores.measures["x"].stderr == pytest.approx(np.std([7, 2, 5], ddof=1) / np.sqrt(3))


def test_a_single_number_and_a_tensor_will_do(tmp_path: Path) -> None:
    body = "import torch\ndef f(model, rows, tokenizer): return {'x': torch.ones(len(rows)), 'y': torch.tensor(2.5)}"
    scores = score(tmp_path, body, metrics={"x": "max", "y": "min"})
    assert scores.measures["y"] == Measure(2.5, None, 3) and "y" not in scores.per_item
    assert scores.per_item["x"].tolist() == [1, 1, 1]


def test_the_function_sees_its_columns_an_evaluating_model_and_copies_of_the_rows(tmp_path: Path) -> None:
    body = """
import torch
def f(model, rows, tokenizer):
    assert not model.training and torch.is_inference_mode_enabled() and tokenizer is None
    found = [sorted(row) == ["m"] for row in rows]
    rows[0].clear()
    return {"x": found}
"""
    evaluator = make(tmp_path, body, columns=["m"])
    model = torch.nn.Linear(1, 1)
    evaluator.prepare(Setting(model, tmp_path, torch.device("cpu")))
    for _ in range(2):
        assert evaluator.score(model, evaluator.splits.calibration).measures["x"].value == 1.0


def test_the_file_of_the_function_is_among_the_files_to_hash(tmp_path: Path) -> None:
    assert {file.name for file in make(tmp_path, "def f(model, rows, tokenizer): ...").files} == {"a.jsonl", "own.py"}


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ("3", OptionError, "returned int, expected a dict of metrics"),
        ("{}", OptionError, "returned nothing, but `metrics` declares x; make them the same"),
        ("{'x': 1, 'z': 2}", OptionError, "returned x, z, but"),
        ("{'x': [1, 2]}", OptionError, r"expected a number, or 3 numbers, one for each row, got shape \(2,\)"),
        ("{'x': 'much'}", OptionError, "'x' of own.py:f: expected a number"),
        ("{'x': [1, 2, float('nan')]}", NonFinite, "1 of 3 values of metric 'x'"),
        ("{'x': float('inf')}", NonFinite, "1 of 1 values"),
    ],
)
def test_a_wrong_result_is_explained(returned: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        score(tmp_path, f"def f(model, rows, tokenizer): return {returned}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("own.py:g", r"own\.py has no function 'g'; it has: f"),
        ("gone.py:f", r"cannot import gone\.py \(FileNotFoundError"),
        ("no_such_module:f", r"cannot import no_such_module \(ModuleNotFoundError"),
        ("own.py", "option 'function'"),
    ],
)
def test_a_function_that_is_not_there_is_named(function: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        make(tmp_path, "def f(model, rows, tokenizer): ...", function=function)


def test_a_module_of_the_path_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "", function="statistics:fmean")


@pytest.mark.parametrize("metrics", [{}, {"x": "up"}, {"x.y": "max"}])
def test_metrics_are_declared_with_a_direction(metrics: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="option 'metrics"):
        make(tmp_path, "def f(model, rows, tokenizer): ...", metrics=metrics)
