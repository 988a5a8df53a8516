"""Which file does a job's `task` mean, and what is said of one that is not there or cannot be used?"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from own_task import TASK, TEST, own, rows, setting, write
from pico import base

from evaluators.errors import DataError, OptionError
from evaluators.harness import task_index
from evaluators.harness.evaluator import Harness
from optimizer.errors import JobError
from optimizer.jobs.job import EvaluatorEntry, Job
from optimizer.jobs.problem import _evaluator

PLAIN = "\n".join(line for line in TASK.replace("SPLITS", TEST).splitlines() if "data_files" not in line)
NORM = PLAIN.replace("metric: acc,", "metric: acc_norm,")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write(tmp_path / "items.jsonl", rows(20, 5))
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def save(folder: Path, text: str, **names: str) -> None:
    """Task files by their stem, each with its own name of the task."""
    for stem, name in names.items():
        (folder / f"{stem}.yaml").write_text(text.replace("NAME", name))


def made(root: Path, task: str, **options: Any) -> Harness:
    """The evaluator as a job makes it, which first asks for the code that the task names."""
    entry = EvaluatorEntry.model_validate({"kind": "harness", "name": "e", "task": task, **options})
    found = _evaluator(entry, Job.model_construct(root=str(root)), False)
    assert isinstance(found, Harness)
    return found


def metrics(root: Path, task: str) -> list[str]:
    return [metric.name for metric in made(root, task, data="items.jsonl").metrics]


def test_of_files_that_share_a_name_the_one_that_is_named_is_the_task(
    tasks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tasks, PLAIN, a="mine", c="mine")
    save(tasks, NORM, b="mine")
    with caplog.at_level(logging.WARNING):
        assert metrics(tmp_path, "./tasks/a.yaml") == ["acc"]
        assert metrics(tmp_path, "./tasks/b.yaml") == ["acc_norm"]
    assert "Duplicate" not in caplog.text
    found = made(tmp_path, "tasks/../tasks/b.yaml", data="items.jsonl")
    assert {path.name for path in found.files} == {"b.yaml", "items.jsonl"}


def test_code_and_errors_are_those_of_the_file_that_is_named(tasks: Path, tmp_path: Path) -> None:
    save(tasks, PLAIN.replace('"{{text}}"', "!function own.text"), fn="mine")
    save(tasks, PLAIN.replace("metric: acc,", "metric: acc_nrom,"), bm="mine")
    save(tasks, PLAIN.replace("{{text}}", "{{question}}"), badcol="mine")
    save(tasks, PLAIN, good="mine")
    with pytest.raises(JobError, match=r"job names \(fn\.yaml, line 7: !function own\.text\)"):
        metrics(tmp_path, "./tasks/fn.yaml")
    with pytest.raises(JobError, match=r"job names \(bm\.yaml: metric: acc_nrom \(did you mean 'acc_norm'\? .*\)\)"):
        metrics(tmp_path, "./tasks/bm.yaml")
    with pytest.raises(DataError, match=r"'question' is undefined; the document's columns are: text, label"):
        metrics(tmp_path, "./tasks/badcol.yaml")
    assert metrics(tmp_path, "./tasks/good.yaml") == ["acc"]


def test_a_name_that_two_files_share_is_refused_with_both(tasks: Path, tmp_path: Path) -> None:
    save(tasks, PLAIN, a="mine", b="mine", c="other")
    with pytest.raises(
        OptionError, match=r"tasks/a\.yaml and .*tasks/b\.yaml are both 'mine'; say the path of the file$"
    ):
        metrics(tmp_path, "tasks/mine")
    (tasks / "group.yaml").write_text("group: pair\ntask: [mine, other]\n")
    for task in ("./tasks/group.yaml", "./tasks/pair"):
        with pytest.raises(OptionError, match=r"a\.yaml and .*b\.yaml are both 'mine'; give one of them another name$"):
            metrics(tmp_path, task)
    assert metrics(tmp_path, "tasks/other") == ["acc"]
    (tasks / "b.yaml").unlink()
    assert metrics(tmp_path, "tasks/pair") == ["mine.acc", "other.acc"]


def test_files_beside_that_nothing_refers_to_do_not_count(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tasks, PLAIN, mine="mine")
    (tasks / "no_name.yaml").write_text("class: own.Task\ngroup: x\n")
    (tasks / "far.yaml").write_text("group: far\ntask: [arc_easy]\n")
    monkeypatch.setattr(task_index, "index", lambda: pytest.fail("the harness's tasks are read for another's group"))
    assert metrics(tmp_path, "tasks/mine.yaml") == ["acc"]


def test_a_file_beside_does_not_take_the_place_of_a_member_of_the_harness_s_group(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    save(library, NORM, far="far")
    (library / "all.yaml").write_text("group: all\ntask: [far]\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(task_index, "library", lambda: library)
    save(tasks, PLAIN.replace('"{{text}}"', "!function own.text"), beside="far")
    (tasks / "top.yaml").write_text("group: top\ntask: [all]\n")
    assert metrics(tmp_path, "tasks/top.yaml") == ["far.acc_norm"]


def test_members_of_a_group_within_a_group_are_read_for_code(tasks: Path, tmp_path: Path) -> None:
    save(tasks, PLAIN.replace('"{{text}}"', "!function own.text"), member="member")
    (tasks / "top.yaml").write_text("group: top\ntask:\n  - group: inner\n    task: [member]\n")
    with pytest.raises(JobError, match=r"member\.yaml, line 7: !function own\.text"):
        metrics(tmp_path, "tasks/top.yaml")


def test_code_is_found_under_the_name_that_the_harness_has_for_it(tasks: Path, tmp_path: Path) -> None:
    """A class is a task, with the key `group` too; and the file that is built is the one that is read for code."""
    (tasks / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Task: ...\n"
    )
    (tasks / "a.yaml").write_text("task: mine\ngroup: other\nclass: !function own.Task\n")
    for task in ("tasks/mine", "tasks/a.yaml"):
        with pytest.raises(JobError, match=r"job names \(a\.yaml, line 3: !function own\.Task"):
            metrics(tmp_path, task)
    assert not (tasks / "ran").exists()


def test_a_file_without_a_name_is_no_other_file_s_task(tasks: Path, tmp_path: Path) -> None:
    save(tasks, PLAIN, a="mine", b="''")
    with pytest.raises(DataError, match=r"b\.yaml: expected a task file with the key `task` or `group`"):
        metrics(tmp_path, "tasks/b.yaml")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "mine.yaml",
            r"no file mine\.yaml in .*; a path of your own has a slash or ends in \.yaml: say \./tasks/mine\.",
        ),
        ("mine", r"no task 'mine' in the harness; .* for your own file say \./tasks/mine\.yaml$"),
        ("./tasks/mien.yaml", r"no file mien\.yaml in .*tasks; there are: mine\.yaml, zebra\.yml$"),
        ("./tasks/quux", r"has no task 'quux'; there are: .*mine"),
        ("./tasks/pipe.yaml", r"no file pipe\.yaml in .*tasks; there are: "),
        ("./none/mien.yaml", r"no such file or folder \(.*none/mien\.yaml\)"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_what_is(
    task: str, message: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tasks, PLAIN, mine="mine")
    (tasks / "zebra.yml").write_text(PLAIN.replace("NAME", "zebra"))
    os.mkfifo(tasks / "pipe.yaml")
    (tmp_path / "library").mkdir()
    save(tmp_path / "library", PLAIN, mnli="mnli")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(task_index, "library", lambda: tmp_path / "library")
    with pytest.raises(OptionError, match=message):
        metrics(tmp_path, task)


def test_a_file_s_name_in_the_job_s_folder_needs_no_slash(tasks: Path, tmp_path: Path) -> None:
    save(tmp_path, PLAIN, mine="mine")
    assert metrics(tmp_path, "mine.yaml") == ["acc"]


def test_a_task_without_data_says_where_to_name_it(tasks: Path, tmp_path: Path) -> None:
    save(tasks, PLAIN.replace("dataset_path: json\n", ""), mine="mine")
    (tasks / "group.yaml").write_text("group: one\ntask: [mine]\n")
    for task in ("tasks/mine.yaml", "tasks/group.yaml"):
        with pytest.raises(DataError, match=r"'e': task 'mine' has no dataset_path; say data: FILE in the job"):
            made(tmp_path, task)
    assert metrics(tmp_path, "tasks/mine.yaml") == ["acc"]


def test_a_column_that_a_document_lacks_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    """In a template that is first rendered for prompts, too."""
    text = TASK.replace('doc_to_text: "{{text}}"', 'doc_to_text: "{{text if label == 0 else question}}"')
    found = own(tmp_path, [{"text": f"t {i}", "label": int(i > 0)} for i in range(8)], text)
    with pytest.raises(DataError, match=r"'question' is undefined; the document's columns are: text, label"):
        found.prepare(setting(base(tmp_path / "base", "chat")))


def test_columns_are_told_for_the_harness_s_own_tasks_over_the_user_s_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library").mkdir()
    save(tmp_path / "library", PLAIN.replace("{{text}}", "{{question}}"), far="far")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(task_index, "library", lambda: tmp_path / "library")
    write(tmp_path / "items.jsonl", rows(6, 1))
    with pytest.raises(DataError, match=r"'question' is undefined; the document's columns are: text, label"):
        metrics(tmp_path, "far")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"vllm": {"gpu_memory_utilisation": 0.6}},
            r"'e': unknown option 'vllm\.gpu_memory_utilisation'; did you mean 'gpu_memory_utilization'\? "
            r"known: gpu_memory_utilization, kv_cache_memory_bytes, max_model_len, max_num_seqs, enforce_eager$",
        ),
        ({"seeds": {"numpi": 1}}, r"'e': unknown option 'seeds\.numpi'; did you mean 'numpy'\? known: random, numpy,"),
        ({"data": {"calibratoin": "a"}}, r"calibratoin'; did you mean 'calibration'\? known: calibration, heldout$"),
        ({"limt": 3}, r"'e': unknown option 'limt'; did you mean 'limit'\? known: task, data,"),
    ],
)
def test_an_unknown_option_is_told_with_those_beside_it(
    options: dict[str, Any], message: str, tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        made(tmp_path, "tasks/mine.yaml", **options)


@pytest.mark.parametrize(
    ("metric", "told"),
    [("acc_nrom", r"did you mean 'acc_norm'\? "), ("exact_mtach", r"did you mean 'exact_match'\? "), ("zzz", "")],
)
def test_a_metric_that_looks_misspelt_is_told_with_the_nearest_before_code_is_spoken_of(
    metric: str, told: str, tasks: Path, tmp_path: Path
) -> None:
    save(tasks, PLAIN.replace("metric: acc,", f"metric: {metric},"), mine="mine")
    with pytest.raises(JobError, match=rf"metric: {metric} \({told}(as it is written, )?loaded by the library"):
        metrics(tmp_path, "tasks/mine.yaml")
