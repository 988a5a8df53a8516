"""What does every evaluator owe? One suite over the table; a new evaluator is one more description in CASES."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import base, expert
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from evaluators import EVALUATORS, load
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Evaluator, Head, Setting

WORDS = ["good", "bad", "red", "blue", "a", "b", "c", "d"]


def sentences(n: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"text": f"{' '.join(draw.choices(WORDS, k=draw.randint(2, 12)))} {WORDS[i % 8]}", "label": i % 3}
        for i in range(n)
    ]


def squares(n: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [{"pixels": draw.normal(size=(8, 8)).round(3).tolist(), "label": i % 3} for i in range(n)]


@dataclass(frozen=True)
class Case:
    """How to set an evaluator up: the pico base it needs, its items, its options."""

    kind: str
    base: str
    options: dict[str, Any]
    rows: Callable[[int], list[dict[str, Any]]] = sentences
    files: dict[str, str] = field(default_factory=dict)


CODE = """
import torch

def judge(model, rows, tokenizer):
    totals = []
    for row in rows:
        inputs = tokenizer(row["text"], return_tensors="pt")
        totals.append(float(model(**inputs).last_hidden_state.sum()))
    return {"size": totals, "rows": len(rows) if all(t == t for t in totals) else float("nan")}
"""

CHOICES = """
task: pick
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}} is"
doc_to_target: label
doc_to_choice: [" good", " A", " bad", " B"]
metric_list:
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

GENERATED = """
task: say
dataset_path: json
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["a"], max_gen_toks: 5}
metric_list:
  - {metric: chrf, aggregation: chrf, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""

CASES = {
    "text, linear head": Case("classification", "bert", {"text": "text", "head": "task"}),
    "text, own classifier": Case("classification", "bert", {"text": "text", "head": "task", "pooling": "model"}),
    "image": Case("classification", "vit", {"image": "pixels", "head": "task", "scale": 0.5}, squares),
    "language": Case("language", "llama", {}),
    "function": Case(
        "function",
        "bert",
        {"function": "own.py:judge", "metrics": {"size": "max", "rows": "min"}},
        files={"own.py": CODE},
    ),
    "harness, choices": Case("harness", "chat", {"task": "./pick.yaml"}, files={"pick.yaml": CHOICES}),
    "harness, text": Case("harness", "chat", {"task": "./say.yaml"}, files={"say.yaml": GENERATED}),
}


def write(root: Path, rows: list[dict[str, Any]]) -> str:
    (root / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "items.jsonl"


def setting(root: Path, kind: str, batch_size: int = 4) -> Setting:
    folder = base(root / "base", kind)
    task = expert(root / "task", folder, seed=1, labels=3)
    tensors = {k: v for k, v in load_file(task / "model.safetensors").items() if k.startswith("classifier")}
    model = (AutoModelForCausalLM if kind in ("llama", "chat") else AutoModel).from_pretrained(folder)
    return Setting(model, folder, torch.device("cpu"), {"task": Head(task, tensors)}, batch_size)


def make(case: Case, root: Path, n: int = 30, **changes: Any) -> Evaluator:
    for name, text in case.files.items():
        (root / name).write_text(text)
    return load(case.kind)("mine", {"data": write(root, case.rows(n)), **case.options, **changes}, root)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def ready(case: Case, tmp_path: Path) -> tuple[Evaluator, torch.nn.Module]:
    """An evaluator that is prepared, whose files are gone: what it needs, it has."""
    evaluator, at = make(case, tmp_path), setting(tmp_path, case.base)
    evaluator.prepare(at)
    shutil.rmtree(tmp_path)
    return evaluator, at.model


def test_every_kind_has_a_case() -> None:
    assert {case.kind for case in CASES.values()} == set(EVALUATORS)


def test_declared_metrics_are_what_is_measured(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    items = evaluator.splits.calibration
    scores = evaluator.score(model, items)
    assert set(scores.measures) == {metric.name for metric in evaluator.metrics}
    assert {metric.goal for metric in evaluator.metrics} <= {"max", "min"}
    for metric in evaluator.metrics:
        assert metric.low - 1e-6 <= scores.measures[metric.name].value <= metric.high + 1e-6
    for measure in scores.measures.values():
        assert math.isfinite(measure.value)
        assert measure.stderr is None or (math.isfinite(measure.stderr) and measure.stderr >= 0)
        assert measure.count == len(items)
    assert scores.per_item, "per-item results are kept"
    for name, values in scores.per_item.items():
        assert name in scores.measures and values.shape == (len(items),) and values.dtype == np.float32
        assert np.isfinite(values).all()


def test_same_weights_same_bits(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    first, again = (evaluator.score(model, evaluator.splits.calibration) for _ in range(2))
    assert first.measures == again.measures
    for name, values in first.per_item.items():
        assert np.array_equal(values, again.per_item[name])


def test_weights_changed_in_place_are_scored_as_they_are_now(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    before = evaluator.score(model, evaluator.splits.calibration)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = evaluator.score(model, evaluator.splits.calibration)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(1.5)
    assert before.measures != after.measures
    name = next(iter(before.per_item))
    back = evaluator.score(model, evaluator.splits.calibration).per_item[name]
    np.testing.assert_allclose(back, before.per_item[name], rtol=1e-3, atol=1e-3)


def test_an_item_scores_the_same_in_any_subset_and_order(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    items = evaluator.splits.calibration
    whole = evaluator.score(model, items)
    chosen = np.random.default_rng(0).permutation(len(items))[:7]
    part = evaluator.score(model, items[chosen])
    for name, values in part.per_item.items():
        assert np.array_equal(values, whole.per_item[name][chosen])
    assert all(measure.count == 7 for measure in part.measures.values())
    shuffled = evaluator.score(model, np.concatenate([evaluator.splits.heldout, items[::-1]]))
    for name, values in shuffled.per_item.items():
        assert np.array_equal(values[-len(items) :][::-1], whole.per_item[name])


def test_another_model_object_with_these_weights_scores_the_same(case: Case, tmp_path: Path) -> None:
    evaluator, at = make(case, tmp_path), setting(tmp_path, case.base)
    evaluator.prepare(at)
    other = type(at.model).from_pretrained(at.folder)
    with torch.no_grad():
        for parameter in at.model.parameters():
            parameter.add_(0.1)
    loaded = evaluator.score(other, evaluator.splits.heldout).measures
    assert loaded != evaluator.score(at.model, evaluator.splits.heldout).measures
    at.model.load_state_dict(other.state_dict())
    assert loaded == evaluator.score(at.model, evaluator.splits.heldout).measures


def test_splits_are_disjoint_and_sorted(case: Case, tmp_path: Path) -> None:
    evaluator = make(case, tmp_path, calibration=0.4)
    calibration, heldout = evaluator.splits.calibration, evaluator.splits.heldout
    assert len(calibration) == 12 and len(heldout) == 18 and calibration.dtype == np.int64
    assert sorted([*calibration, *heldout]) == list(range(30))
    assert list(calibration) == sorted(calibration) and list(heldout) == sorted(heldout)
    assert tmp_path / "items.jsonl" in evaluator.files and all(file.is_file() for file in evaluator.files)


def test_nan_weights_are_a_failure_and_never_a_score(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFinite, match=r"'mine'.* of .*"):
        evaluator.score(model, evaluator.splits.calibration)


def test_no_global_random_generator_is_touched(case: Case, tmp_path: Path) -> None:
    at = setting(tmp_path, case.base)

    def state() -> tuple[bytes, str, str]:
        return torch.get_rng_state().numpy().tobytes(), repr(random.getstate()), repr(np.random.get_state())  # noqa: NPY002

    before = state()
    evaluator = make(case, tmp_path)
    evaluator.prepare(at)
    evaluator.score(at.model, evaluator.splits.calibration)
    assert state() == before


def test_the_resident_model_is_left_as_it_was(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    names, before = [n for n, _ in model.named_modules()], {k: v.clone() for k, v in model.state_dict().items()}
    evaluator.score(model, evaluator.splits.calibration)
    assert [n for n, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unknown_option_is_refused_with_the_nearest(case: Case, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'mine'.*unknown option 'calibratoin'.*did you mean 'calibration'"):
        make(case, tmp_path, calibratoin=0.5)


def test_wrong_type_names_option_and_value(case: Case, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"option 'seed'.*got 'three'"):
        make(case, tmp_path, seed="three")


def test_empty_split_is_refused_with_counts(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"30 items and calibration: 30 make 30 calibration and 0 held-out"):
        make(case, tmp_path, calibration=30)
    with pytest.raises(DataError, match="expected rows, found none"):
        make(case, tmp_path, n=0)


def test_missing_file_is_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        make(case, tmp_path, data="gone.jsonl")
    with pytest.raises(DataError, match=r"~nosuch/gone\.jsonl: no such file"):
        make(case, tmp_path, data="~nosuch/gone.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for no_file in ("pipe.jsonl", "/dev/null"):
        with pytest.raises(DataError, match="got a pipe, a device or a socket"):
            make(case, tmp_path, data=no_file)


def test_items_that_are_none_or_not_there_are_refused(ready: tuple[Evaluator, torch.nn.Module]) -> None:
    evaluator, model = ready
    with pytest.raises(DataError, match="no items"):
        evaluator.score(model, np.array([], dtype=np.int64))
    with pytest.raises(DataError, match="row 99 is in neither split"):
        evaluator.score(model, np.array([99]))


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(
        OptionError, match=r"'clasification'.*did you mean 'classification'.*function, harness, language"
    ):
        load("clasification")


def test_entry_points_join_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def offer(name: str) -> Callable[..., list[metadata.EntryPoint]]:
        return lambda group: [metadata.EntryPoint(name, "evaluators.language:Language", group)]

    monkeypatch.setattr(metadata, "entry_points", offer("theirs"))
    assert load("theirs") is load("language")
    monkeypatch.setattr(metadata, "entry_points", offer("function"))
    with pytest.raises(OptionError, match=r"'function'.*already means"):
        load("function")
