"""Can drivers be compared on surrogates? On the one of the docs, as it is written there, and on files of SMM-Bench."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from benchmarks import search as benchmark
from benchmarks.simulated import smm
from benchmarks.simulated.problems import loaded

DOCS = Path(__file__).parents[1] / "docs" / "search.md"


def test_the_surrogate_of_the_docs_is_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"`my_surrogate.py`:\n\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    Path("my_surrogate.py").write_text(source)
    (command,) = re.findall(r"python benchmarks/search.py (.*my_surrogate.*)", DOCS.read_text())
    assert benchmark.main([*command.replace("50 100", "20 30").split(), "--seeds", "0"]) == 0
    said = capsys.readouterr().out
    assert "12 groups x 2 experts" in said and "\n| auto | " in said and "\n| cma | " in said


def booster(folder: Path, columns: int) -> Path:
    """Files as SMM-Bench has them, of an accuracy that grows with the first weight, and falls with the second."""
    draw = np.random.default_rng(0)
    x = draw.random((400, columns))
    data = lightgbm.Dataset(x, 0.3 + 0.2 * x[:, 0] - 0.1 * x[:, 1])
    options = {"verbose": -1, "num_threads": 1, "deterministic": True, "min_data_in_leaf": 5}
    folds = lightgbm.cv(options, data, 20, nfold=3, stratified=False, return_cvbooster=True)["cvbooster"]
    folds.save_model(folder / smm.FILE)
    return folder


def test_files_of_smm_bench_are_read_in_either_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMM_BENCH", str(booster(tmp_path, 64)))
    by_layer, by_model = (loaded(f"benchmarks.simulated.smm:{order}") for order in ("by_layer", "by_model"))
    assert by_layer.shape == by_model.shape == (32, 2)
    assert by_layer.objectives(np.zeros(64)) == pytest.approx([1.0])
    first, second, third = np.eye(64)[:3]
    assert by_layer.objectives(first).item() == by_model.objectives(first).item() < 0.9
    # the second column of the files is the second model's weight of the first layer, or the first's of the second
    assert by_layer.objectives(second).item() == by_model.objectives(third).item() > 1.01
    assert by_layer.objectives(third).item() == pytest.approx(1, abs=0.02)
    folds = lightgbm.CVBooster(model_file=tmp_path / smm.FILE)
    point = np.random.default_rng(1).random(64)
    accuracy, base = (float(np.mean(folds.predict(row[None]))) for row in (point, np.zeros(64)))
    assert by_layer.objectives(point).item() == pytest.approx((1 - accuracy) / (1 - base))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "set SMM_BENCH"),
        ("{}", "expected a CVBooster"),
        ("[1", "expected a CVBooster"),
        ('{"boosters": ["tree"], "best_iteration": 1}', "expected a CVBooster"),
        ("95", "over 64 weights"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, told: str
) -> None:
    monkeypatch.setenv("SMM_BENCH", str(tmp_path))
    if content == "95":
        booster(tmp_path, 95)
    elif content is not None:
        (tmp_path / smm.FILE).write_text(content)
    with pytest.raises(ValueError, match=told):
        loaded("benchmarks.simulated.smm:by_layer")


def test_folds_are_json_and_no_code(tmp_path: Path) -> None:
    assert set(json.loads((booster(tmp_path, 64) / smm.FILE).read_text())) == {"boosters", "best_iteration"}
