"""Does a task file run nothing that the user did not allow, and is it read without harm?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluators.errors import DataError
from optimizer.errors import JobError
from optimizer.jobs.job import EvaluatorEntry, Job
from optimizer.jobs.problem import _evaluator

PLAIN = """
task: mine
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: [a, b]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef text(doc): return doc['text']\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.py").write_text(CODE)
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(6)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def made(home: Path, text: str, allow_code: bool = False, **options: Any) -> Any:
    """The evaluator as a job makes it."""
    (home / "tasks" / "mine.yaml").write_text(text)
    entry = EvaluatorEntry.model_validate(
        {"kind": "harness", "name": "e", "task": "tasks/mine.yaml", "data": "items.jsonl", **options}
    )
    return _evaluator(entry, Job.model_construct(root=str(home)), allow_code)


def ran(home: Path) -> bool:
    return (home / "tasks" / "ran").exists()


NAMING = {
    "function": (
        'doc_to_text: "{{text}}"',
        "doc_to_text: !function own.text",
        r"mine\.yaml, line 6: !function own\.text",
    ),
    "verbatim tag": ('doc_to_text: "{{text}}"', "doc_to_text: !<!function> own.text", r"line 6: !function own\.text"),
    "class": ("task: mine", "task: mine\nclass: own.Task", r"mine\.yaml: class: own\.Task"),
    "prompt file": ("task: mine", "task: mine\nuse_prompt: own.yaml:x", "use_prompt: own.yaml:x"),
    "metric of the hub": ("metric: acc", "metric: somebody/evil", "metric: somebody/evil .*runs its code"),
    "metric by `evaluate`": ("metric: acc", "metric: acc, hf_evaluate: true", r"metric: acc \(loaded"),
}


@pytest.mark.parametrize("case", NAMING)
def test_code_is_named_and_does_not_run_before_it_is_allowed(case: str, home: Path) -> None:
    before, after, message = NAMING[case]
    with pytest.raises(JobError, match=rf"runs Python code that the job names \(.*{message}.*--allow-code"):
        made(home, PLAIN.replace(before, after))
    assert not ran(home)


def test_code_of_an_included_file_is_found_and_runs_where_allowed(home: Path) -> None:
    (home / "tasks" / "_head.yaml").write_text("doc_to_text: !function own.text\n")
    text = PLAIN.replace('doc_to_text: "{{text}}"', "include: _head.yaml")
    with pytest.raises(JobError, match=r"_head\.yaml, line 1: !function"):
        made(home, text)
    assert not ran(home)
    found = made(home, text, allow_code=True)
    assert ran(home) and {"mine.yaml", "_head.yaml", "own.py", "items.jsonl"} <= {p.name for p in found.files}


def test_code_of_a_group_s_member_is_found(home: Path) -> None:
    (home / "tasks" / "member.yaml").write_text(
        PLAIN.replace("task: mine", "task: member").replace('"{{text}}"', "!function own.text")
    )
    with pytest.raises(JobError, match=r"member\.yaml, line 6: !function"):
        made(home, "group: mine\ntask: [member]\n")
    with pytest.raises(JobError, match=r"mine\.yaml, line 4: !function"):
        made(home, "group: mine\ntask:\n  - task: member\n    doc_to_text: !function own.text\n")
    assert not ran(home)


def test_a_file_beside_it_that_is_not_used_is_none_of_its_business(home: Path) -> None:
    (home / "tasks" / "other.yaml").write_text("task: other\ndoc_to_text: !function own.text\n")
    (home / "tasks" / "broken.yaml").write_text("a: [")
    assert made(home, PLAIN).metrics[0].name == "acc" and not ran(home)


ESCAPES = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
    "change": "{% set _ = [1].append(2) %}x",
    "endless": "{% for i in range(10**9) %}x{% endfor %}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_templates_are_rendered_in_a_sandbox(case: str, home: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be made: (SecurityError|OverflowError|UndefinedError)"):
        made(home, PLAIN.replace("{{text}}", ESCAPES[case]))
    assert not (Path.cwd() / "ran").exists()


def test_a_template_that_only_scoring_renders_is_in_the_sandbox_too(home: Path) -> None:
    """`doc_to_target` of a later document is rendered when results are processed."""
    from lm_eval import utils

    text = PLAIN.replace("doc_to_target: label", "doc_to_target: \"{{ label if label == 0 else ''.__class__ }}\"")
    found = made(home, text)
    before = utils.env
    with pytest.raises(Exception, match="unsafe"), found._sandbox():
        utils.apply_template(found._parts[0].view.config.doc_to_target, {"label": 1})
    assert utils.env is before


MALFORMED = {
    "alias": ("a: &x [1]\nb: *x\n", "line 2: aliases are refused"),
    "include from outside": ("include: ../secret.yaml\n", r"mine\.yaml: includes .*secret\.yaml, which is not in"),
    "include by absolute path": ("include: /etc/passwd\n", "includes /etc/passwd, which is not in"),
    "include of itself": ("include: mine.yaml\n", "includes itself"),
    "include that is not there": ("include: gone.yaml\n", r"gone\.yaml: not a task file"),
    "no YAML": ("a: [", "not a task file"),
    "a list": ("[1, 2]", "not a task file"),
    "no name": ("doc_to_text: x\n", "expected a task file with the key `task` or `group`"),
    "too large": ("#" + "x" * 1_000_001, "at most 1000000 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_one_clear_error(case: str, home: Path) -> None:
    (home / "secret.yaml").write_text("doc_to_text: x\n")
    text, message = MALFORMED[case]
    with pytest.raises(DataError, match=message):
        made(home, text)


def test_a_link_out_of_the_folder_is_outside(home: Path) -> None:
    (home / "secret.yaml").write_text("doc_to_text: x\n")
    (home / "tasks" / "near.yaml").symlink_to(home / "secret.yaml")
    with pytest.raises(DataError, match="which is not in"):
        made(home, "include: near.yaml\n" + PLAIN)
