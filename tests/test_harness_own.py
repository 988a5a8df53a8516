"""Whose documents does the search see, how many of them, and which options of the harness hold?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from own_task import TASK, TEST, TRAIN, own, rows, setting, write
from pico import base

from evaluators.errors import DataError, OptionError
from evaluators.harness import documents
from evaluators.harness.evaluator import Harness
from evaluators.harness.own_documents import is_own

BOTH = TRAIN + TEST
THREE = "training_split: train\nvalidation_split: validation\ntest_split: test\n"


def task(root: Path, splits: str, name: str = "mine", **files: list[dict[str, Any]]) -> Path:
    """A task file that names its data files itself, as the harness's own name a data set."""
    named = ", ".join(f"{split}: {write(root / f'{split}.jsonl', found)}" for split, found in files.items())
    text = TASK.replace("NAME", name).replace("SPLITS", splits)
    text = text.replace("{test: TEST, train: TRAIN}", "{" + named + "}")
    (root / "tasks").mkdir(exist_ok=True)
    path = root / "tasks" / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task files are taken for those of a data set of the hub, which no test can read."""
    monkeypatch.setattr(documents, "is_own", lambda config: False)


NOT_OWN: dict[str, dict[str, Any]] = {
    "no data set": {},
    "no path, files": {"dataset_kwargs": {"data_files": "/data/a.json"}},
    "a name that is a folder here": {"dataset_path": "org/name"},
    "a folder": {"dataset_path": "/"},
    "a format without files": {"dataset_path": "json"},
    "a URL": {"dataset_path": "json", "dataset_kwargs": {"data_files": "https://a.b/c.json"}},
    "the hub": {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": ["hf://datasets/a/b.json"]}}},
    "one of two": {
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"train": "/data/a.parquet", "test": "zip://a::https://a.b/c.zip"}},
    },
    "relative": {"dataset_path": "csv", "dataset_kwargs": {"data_files": "a.csv"}},
    "a folder of the hub": {"dataset_path": "json", "dataset_kwargs": {"data_dir": "data"}},
    "a function of the task": {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": "/data/a.json"},
        "custom_dataset": print,
    },
}


@pytest.mark.parametrize("case", NOT_OWN)
def test_what_may_come_from_the_hub_is_not_the_user_s(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_own(NOT_OWN[case])


def test_local_files_of_any_format_are_the_user_s() -> None:
    for path in ("json", "csv", "parquet", "text", "arrow"):
        assert is_own({"dataset_path": path, "dataset_kwargs": {"data_files": {"a": ["/x/1", "/x/2"], "b": "/y"}}})


def test_a_task_file_over_the_hub_is_guarded_whatever_folder_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`org/name` beside the task file, as a clone of the data set leaves it, does not make its test split ours."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    write(folder / "test.jsonl", rows(6, 1))
    text = TASK.replace("NAME", "far").replace("SPLITS", TEST).replace("dataset_path: json", "dataset_path: org/name")
    (tmp_path / "far.yaml").write_text("\n".join(line for line in text.splitlines() if "data_files" not in line))
    with pytest.raises(OptionError, match="would see 'test' of task 'far', which the harness reports on"):
        Harness("e", {"task": "far.yaml"}, tmp_path)


def test_at_most_200_documents_of_a_data_set_are_calibration_where_nothing_is_said(
    tmp_path: Path, of_the_hub: None
) -> None:
    task(tmp_path, BOTH, train=rows(230, 1), test=rows(5, 2))
    made = Harness("e", {"task": "./tasks"}, tmp_path)
    assert len(made.splits.calibration) == 200 and len(made.splits.heldout) == 5
    assert "; 30 more are there: say calibration: 230 for all of them" in made.provenance[0]
    assert list(made.splits.calibration) != list(range(200)), "by content, and not from the top"
    for asked, count in ((230, 230), (10**6, 230), (7, 7), (0.5, 115)):
        made = Harness("e", {"task": "./tasks", "calibration": asked}, tmp_path)
        assert len(made.splits.calibration) == count and "more are there" not in made.provenance[0]


def test_a_split_that_serves_both_sides_gives_at_most_200_too(tmp_path: Path, of_the_hub: None) -> None:
    task(tmp_path, TEST, test=rows(450, 1))
    made = Harness("e", {"task": "./tasks", "allow_test": True}, tmp_path)
    assert [len(side) for side in made.splits][:2] == [200, 250]


def test_the_user_s_own_documents_are_all_taken(tmp_path: Path) -> None:
    assert len(own(tmp_path, rows(450, 1)).splits.calibration) == 225
    write(tmp_path / "other.jsonl", rows(4, 9))
    two = {"calibration": "items.jsonl", "heldout": "other.jsonl"}
    assert len(own(tmp_path, rows(450, 1), data=two).splits.calibration) == 450


@pytest.mark.parametrize("allow", [False, True])
def test_documents_that_the_harness_reports_on_are_left_out_wherever_they_are(
    allow: bool, tmp_path: Path, of_the_hub: None
) -> None:
    tests = rows(6, 3)
    task(tmp_path, THREE, train=[*rows(8, 1), *tests[:4]], validation=rows(5, 2), test=tests)
    options = {"task": "./tasks", "allow_test": allow, "limit": 12, "heldout_split": "validation"}
    made = Harness("e", options, tmp_path)
    assert len(made.splits.calibration) == (12 if allow else 8)
    assert ("; 4 that are among the held-out or reported ones too were left out" in made.provenance[0]) is not allow
    both = Harness("e", {**options, "calibration_split": "train", "heldout_split": "train"}, tmp_path)
    seen = {row["text"] for i, row in enumerate([*rows(8, 1), *tests[:4]]) if i in both.splits.calibration}
    assert bool(seen & {row["text"] for row in tests}) is allow, "one split for both sides"


def test_a_count_for_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other.jsonl", rows(4, 9))
    with pytest.raises(OptionError, match="'calibration' says how to split one file, but `data` names a file per"):
        own(tmp_path, data={"calibration": "items.jsonl", "heldout": "other.jsonl"}, calibration=3)


def test_options_that_hold_for_no_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'num_fewshot': mine/mine.yaml says 0, and the harness keeps to that; drop"):
        own(tmp_path, text=TASK + "num_fewshot: 0\n", num_fewshot=5)
    assert own(tmp_path, text=TASK + "num_fewshot: 0\n", num_fewshot=0).metrics, "what the task says is no clash"
    with pytest.raises(OptionError, match=r"mine/mine\.yaml generates no text; drop the option 'gen_kwargs'"):
        own(tmp_path, gen_kwargs={"max_gen_toks": 4})


def test_options_that_hold_for_some_of_a_group_say_for_which_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        path = task(tmp_path, BOTH, name, train=rows(8, 1), test=rows(6, 2))
        if name == "a":
            path.write_text(path.read_text() + "num_fewshot: 0\n")
    (tmp_path / "tasks" / "pair.yaml").write_text("group: pair\ntask: [a, b]\n")
    made = Harness("e", {"task": "tasks/pair", "num_fewshot": 2}, tmp_path)
    assert made.provenance[-1] == "a: no examples, as the task says" and len(made.provenance) == 3


def test_a_column_of_several_kinds_is_named(tmp_path: Path) -> None:
    items = rows(6, 1)
    with pytest.raises(DataError, match=r"items\.jsonl: column 'text' has values of several kinds"):
        own(tmp_path, [*items, {"text": 3, "label": 0}])
    with pytest.raises(DataError, match=r"items\.jsonl: column 'more' has values of several kinds"):
        own(tmp_path, [*items, {**items[0], "more": [1]}, {**items[1], "more": "x"}])


def test_a_column_that_the_first_row_lacks_is_there_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    items = [{"label": 0, "text": "plain"}, *({**row, "more": f"x{i}"} for i, row in enumerate(rows(6, 1)))]
    made = own(tmp_path, items, TASK.replace("{{text}}", "{{more}}"))
    at = setting(base(tmp_path / "base", "chat"))
    made.prepare(at)
    decode = hf.AutoTokenizer.from_pretrained(at.folder).decode
    prompts = [decode(made.answers(row)[0][0].pairs[0][0]) for row in range(7)]
    assert prompts == ["None", *(f"x{i}" for i in range(6))]
