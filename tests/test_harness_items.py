"""Does the search see what it may, of the harness's tasks and of the user's? What is refused, and in which words?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from own_task import TASK, TEST, TRAIN, own, rows, setting, write
from pico import base

from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Setting
from evaluators.harness import task_index
from evaluators.harness.evaluator import Harness


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("model") / "base", "chat", initializer_range=0.3)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library in the place of the harness's own, which takes a quarter of a minute to read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "library"
    home.mkdir()
    files = {"TEST": write(tmp_path / "test.jsonl", rows(12, 1)), "TRAIN": write(tmp_path / "train.jsonl", rows(8, 2))}
    for name, splits in {"both": TRAIN + TEST, "only_test": TEST, "sealed": "validation_split: test\n"}.items():
        text = TASK.replace("NAME", name).replace("SPLITS", splits)
        for key, path in files.items():
            text = text.replace(f" {key}", f" {path}")
        (home / f"{name}.yaml").write_text(text)
    (home / "pair.yaml").write_text("group: pair\ntask: [both, sealed]\n")
    monkeypatch.setattr(task_index, "library", lambda: home)
    return home


def test_calibration_is_train_and_heldout_what_the_harness_reports_on(library: Path, tmp_path: Path) -> None:
    made = Harness("e", {"task": "both"}, tmp_path)
    assert (len(made.splits.calibration), len(made.splits.heldout)) == (8, 12)
    assert made.provenance == (
        "both: calibration is 8 documents of 'train', held out 12 of 'test' (what the harness reports on)",
    )
    fewer = Harness("e", {"task": "both", "calibration": 3, "limit": 6}, tmp_path)
    assert (len(fewer.splits.calibration), list(fewer.splits.heldout)) == (3, [6, 7, 8, 9, 10, 11])


@pytest.mark.parametrize("task", ["only_test", "sealed", "pair"])
def test_a_benchmark_s_only_documents_are_not_searched_on_in_silence(task: str, library: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"would see 'test' of task .* no other documents.*allow_test: true"):
        Harness("e", {"task": task}, tmp_path)
    made = Harness("e", {"task": task, "allow_test": True}, tmp_path)
    assert "(what the harness reports on), split by content" in made.provenance[-1]


def test_the_reported_split_is_refused_by_name_too(library: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'test' of task 'both'.* take calibration_split from train"):
        Harness("e", {"task": "both", "calibration_split": "test", "heldout_split": "train"}, tmp_path)
    with pytest.raises(OptionError, match="has no validation split; it has: train, test"):
        Harness("e", {"task": "both", "calibration_split": "validation"}, tmp_path)


def test_documents_that_are_held_out_too_are_never_calibration(library: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(8, 2) + rows(12, 1)[:5])
    made = Harness("e", {"task": "both"}, tmp_path)
    assert list(made.splits.calibration) == list(range(8)) and len(made.splits.heldout) == 12
    assert "; 5 that are among the held-out ones too were left out" in made.provenance[0]


def test_an_example_is_never_its_own_document(library: Path, tmp_path: Path, model: Path) -> None:
    """With 7 examples out of 8 documents, a document drawn for its own prompt would stand in it twice."""
    made = Harness("e", {"task": "both", "num_fewshot": 7, "truncate": True, "max_length": 900}, tmp_path)
    made.prepare(setting(model))
    decode = hf.AutoTokenizer.from_pretrained(model).decode
    texts = [row["text"] for row in rows(8, 2)]
    for row in range(8):
        for request, answers in made.answers(row):
            prompt = decode(request.pairs[0][0])
            assert prompt.count(texts[row]) == 1 and all(text in prompt for text in texts) and answers == []


def test_own_files_need_no_flag_and_are_split_by_content(tmp_path: Path) -> None:
    made = own(tmp_path, calibration=0.25)
    again = own(tmp_path, rows(20, 5)[::-1], calibration=0.25)
    assert len(made.splits.calibration) == 5
    assert sorted(19 - again.splits.calibration) == list(made.splits.calibration)
    two = {"calibration": "items.jsonl", "heldout": str(write(tmp_path / "other.jsonl", rows(4, 9)))}
    assert list(own(tmp_path, data=two).splits.heldout) == [20, 21, 22, 23]
    write(tmp_path / "other.jsonl", rows(4, 9) + rows(20, 5)[:1])
    with pytest.raises(DataError, match="must not be seen by the search"):
        own(tmp_path, data=two)


def test_unknown_names_offer_the_nearest(library: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no task 'onli_test' in the harness; did you mean 'only_test'"):
        Harness("e", {"task": "onli_test"}, tmp_path)
    with pytest.raises(OptionError, match=r"a folder with 2 tasks; name one: ./library/only_test, ./library/pair"):
        Harness("e", {"task": "./library"}, tmp_path)
    (library / "only_test.yaml").unlink()  # the index was kept: names are told without reading the library again
    with pytest.raises(OptionError, match="did you mean 'only_test'"):
        Harness("e", {"task": "onli_test"}, tmp_path)
    with pytest.raises(OptionError, match=r"no such file or folder .*gone"):
        Harness("e", {"task": "gone/task.yaml"}, tmp_path)
    with pytest.raises(OptionError, match=r"library has no task 'bot'; did you mean 'both'"):
        Harness("e", {"task": "library/bot"}, tmp_path)


def test_a_first_document_with_an_empty_choice_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'mine' cannot be made: IndexError.*may have an empty choice"):
        own(tmp_path, text=TASK.replace("bad one", ""))


def test_tasks_that_run_what_a_model_writes_are_refused_before_their_code_is_read(
    library: Path, tmp_path: Path
) -> None:
    text = (library / "both.yaml").read_text().replace("task: both", "task: runs")
    (library / "runs.yaml").write_text(f"{text}tag: some\nunsafe_code: true\nprocess_docs: !function gone.docs\n")
    (library / "many.yaml").write_text("group: many\ntask: [both, runs]\n")
    (library / "safe.yaml").write_text(text.replace("task: runs", "task: safe") + "tag: some\n")
    assert Harness("e", {"task": "safe"}, tmp_path).metrics, "whatever else has its tag"
    for task in ("runs", "many", "some"):
        with pytest.raises(OptionError, match="task 'runs' runs the code that a model writes"):
            Harness("e", {"task": task}, tmp_path)


def test_a_data_set_that_needs_the_network_says_so(library: Path, tmp_path: Path) -> None:
    text = TASK.replace("NAME", "far").replace("dataset_path: json", "dataset_path: somebody/something")
    (library / "far.yaml").write_text(text.replace("SPLITS", TEST).replace("dataset_kwargs", "metadata"))
    with pytest.raises(DataError, match=r"its data set is not on this machine, and HF_\w+_OFFLINE is set .*fetch it"):
        Harness("e", {"task": "far"}, tmp_path)


def test_relative_data_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TASK.replace("NAME", "t").replace("SPLITS", TEST))
    with pytest.raises(DataError, match="data_files: expected an absolute path, got 'TEST'"):
        Harness("e", {"task": "./t.yaml"}, tmp_path)


def test_a_change_of_the_data_is_a_change_of_the_files(library: Path, tmp_path: Path) -> None:
    made = Harness("e", {"task": "./library/both"}, tmp_path)
    assert {p.name for p in made.files} == {"both.yaml", "train.jsonl", "test.jsonl"}


BAD: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any], str]] = {
    "long prompt": (
        [{"text": "a b " * 100, "label": 0}, *rows(5, 1)],
        TASK,
        {},
        r"document 0: a prompt of \d+ tokens, in a context of 256 tokens; .*truncate: true",
    ),
    "empty choice": (
        [
            {"text": "a", "label": 0, "choices": ["a", "b"]},
            {"text": "b", "label": 0, "choices": ["a", ""]},
            *[{**row, "choices": ["a", "b"]} for row in rows(5, 1)],
        ],
        TASK.replace('["A", "bad one", "C"]', '"{{choices}}"'),
        {},
        "document 1: an answer is empty",
    ),
    "empty text": (
        [{"text": "", "label": 0}, *rows(5, 1)],
        TASK.split("output_type")[0] + "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'",
        {},
        "document 0: the answer is empty",
    ),
    "long answer": (
        rows(6, 1),
        TASK.split("output_type")[0] + "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: 'x'\n"
        "generation_kwargs: {until: [x], max_gen_toks: 300}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
        {},
        "an answer of up to 300, in a context of 256 tokens; lower max_gen_toks",
    ),
    "missing column": (
        [{"text": "a", "label": 0}, {"text": None, "label": 0}, *rows(5, 1)],
        TASK.replace("{{text}}", "{{text.strip()}}"),
        {},
        r"document 1: no prompt can be made of it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_documents_that_cannot_be_asked_are_named_before_the_search(
    case: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, text, options, message = BAD[case]
    made = own(tmp_path, found, text, **options)
    with pytest.raises(DataError, match=message):
        made.prepare(setting(model))


def test_equal_choices_tie_and_blank_ones_are_choices(tmp_path: Path, model: Path) -> None:
    same = own(tmp_path, None, TASK.replace('["A", "bad one", "C"]', '["bad one", "bad one", "bad one"]'))
    asked = setting(model)
    same.prepare(asked)
    scores = same.score(asked.model, same.splits.heldout)
    labels = [row["label"] for row in rows(20, 5)]
    # the harness takes the first of equals
    assert scores.measures["acc"].value == sum(labels[i] == 0 for i in same.splits.heldout) / 10
    (tmp_path / "blank").mkdir()
    blank = own(tmp_path / "blank", None, TASK.replace('["A", "bad one", "C"]', '["\\t", "\\n", "C"]'))
    blank.prepare(asked)
    assert 0 <= blank.score(asked.model, blank.splits.heldout).measures["acc"].value <= 1


@pytest.mark.parametrize("body", ["raise KeyError('boom')", "return 3"])
def test_a_task_that_cannot_score_an_answer_is_named(body: str, tmp_path: Path, model: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/scoring.py").write_text(f"def score(doc, results):\n    {body}\n")
    made = own(tmp_path, None, TASK + "process_results: !function scoring.score\n")
    asked = setting(model)
    made.prepare(asked)
    with pytest.raises(DataError, match=r"evaluator 'e': task 'mine', document \d+: its answer cannot be scored"):
        made.score(asked.model, made.splits.heldout)


def test_models_and_tokenizers_that_cannot_be_asked_are_refused(tmp_path: Path, model: Path) -> None:
    made = own(tmp_path)
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=300, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    )
    with pytest.raises(OptionError, match="needs a causal language model, the base is a T5ForConditionalGeneration"):
        made.prepare(Setting(t5, model, torch.device("cpu")))
    with pytest.raises(OptionError, match="has neither; set eos_token"):
        made.prepare(setting(base(tmp_path / "plain", "llama")))
    plain = base(tmp_path / "chatless", "chat")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(OptionError, match="has no chat template"):
        own(tmp_path, apply_chat_template=True).prepare(setting(plain))


GENERATE = BAD["long answer"][1].replace("max_gen_toks: 300", "max_gen_toks: 6")


def test_nan_logits_while_generating_fail_the_candidate(tmp_path: Path, model: Path) -> None:
    made, at = own(tmp_path, None, GENERATE), setting(model)
    made.prepare(at)
    made.score(at.model, made.splits.heldout)
    with torch.no_grad():
        at.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFinite, match=r"'e': the logits of \d of \d prompts are NaN"):
        made.score(at.model, made.splits.heldout)


def test_sampling_repeats_itself_and_touches_no_global_generator(tmp_path: Path, model: Path) -> None:
    kwargs = {"do_sample": True, "temperature": 1.5, "until": []}
    made, at = own(tmp_path, None, GENERATE, gen_kwargs=kwargs), setting(model)
    made.prepare(at)
    rows_of = made.splits.heldout

    def texts() -> list[str]:
        made.score(at.model, rows_of)
        return [answers[0] for row in rows_of for _, answers in made.answers(row)]

    before = torch.get_rng_state()
    first = texts()
    assert texts() == first and torch.equal(torch.get_rng_state(), before)
    greedy = own(tmp_path, None, GENERATE, gen_kwargs={"until": []})
    greedy.prepare(at)
    greedy.score(at.model, rows_of)
    assert [answers[0] for row in rows_of for _, answers in greedy.answers(row)] != first
