"""Do precision, long prompts, repeats, tags and broken candidates go as in the harness?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from harness_world import HEAD, TASKS, items, made, ours, theirs
from own_task import TASK, own, rows, setting
from transformers import AutoModelForCausalLM

from evaluators.errors import NonFinite
from evaluators.evaluator import Setting
from evaluators.harness.evaluator import Harness

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task files over small data, and a pico base that has opinions."""
    return made(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def per_item(scores: Any, found: dict[str, Any], task: str) -> Iterator[tuple[str, Any, Any]]:
    for name, values in scores.per_item.items():
        yield name, values, items(found, task, name, "none")


@pytest.mark.parametrize(("softmax", "rounding"), [(None, 1e-2), ("float32", 3e-3)])
def test_rolling_losses_in_half_precision_are_the_harness_s(world: Path, softmax: str | None, rounding: float) -> None:
    """The harness sums a document's tokens in the precision of its log-probabilities, and we keep the sum's digits."""
    scores = ours(world, "rolling", dtype=BF16, softmax_dtype=softmax)
    found = theirs(world, "rolling", dtype=BF16, lm={"softmax_dtype": softmax} if softmax else None)
    wanted = items(found, "rolling", "bits_per_byte", "none")
    np.testing.assert_allclose(scores.per_item["bits_per_byte"], wanted, rtol=rounding)


def test_choices_in_half_precision_are_the_harness_s_but_for_ties(world: Path) -> None:
    scores, found = ours(world, "endings", dtype=BF16), theirs(world, "endings", dtype=BF16)
    wanted = items(found, "endings", "acc", "none")
    assert (scores.per_item["acc"] == wanted).mean() >= 0.9 and 0 < wanted.mean() < 1


@pytest.mark.parametrize("softmax", [None, "float32"])
def test_log_probabilities_of_half_precision_are_rounded_unless_asked_for_in_float32(
    world: Path, softmax: str | None
) -> None:
    made = Harness("e", {"task": "tasks/choices", "softmax_dtype": softmax}, world)
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=BF16)
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, 5))
    made.score(model, made.splits.heldout)
    asked = [one for row in made.splits.heldout for one in made.answers(int(row))]
    said = torch.tensor([answers[0][0] for request, answers in asked if len(request.pairs[0][1]) == 1])
    assert len(said) > 20
    assert torch.equal(said.to(BF16).float(), said) is (softmax is None)


@pytest.mark.parametrize("task", ["choices", "endings", "last_word"])
def test_prompts_that_are_cut_are_the_harness_s(world: Path, task: str) -> None:
    options = {"num_fewshot": 3, "max_length": 60}
    scores = ours(world, task, truncate=True, **options)
    found = theirs(world, task, lm={"max_length": 60}, num_fewshot=3)
    for name in scores.per_item:
        np.testing.assert_allclose(scores.per_item[name], items(found, task, name, "none"), rtol=1e-4)
    whole = ours(world, task, num_fewshot=3, truncate=True)
    assert any((whole.per_item[name] != scores.per_item[name]).any() for name in whole.per_item), "nothing was cut"


def test_generation_after_a_prompt_that_is_cut_is_the_harness_s(world: Path) -> None:
    scores = ours(world, "echo", truncate=True, max_length=60)
    found = theirs(world, "echo", lm={"max_length": 60})
    for name, measure in scores.measures.items():
        assert measure.value == pytest.approx(found["results"]["echo"][f"{name},none"], rel=1e-5)
    assert scores.measures["chrf"].value != ours(world, "echo", truncate=True).measures["chrf"].value


def test_a_text_of_several_windows_is_the_harness_s(world: Path) -> None:
    scores, found = ours(world, "rolling", max_length=50), theirs(world, "rolling", lm={"max_length": 50})
    for name, values, wanted in per_item(scores, found, "rolling"):
        np.testing.assert_allclose(values, wanted, rtol=1e-4, err_msg=name)
    assert (scores.per_item["bits_per_byte"] != ours(world, "rolling").per_item["bits_per_byte"]).any()


@pytest.mark.parametrize("task", ["echo", "say", "endings", "rolling"])
def test_a_batch_gives_what_each_document_gives_alone(world: Path, task: str) -> None:
    """Prompts are padded on the left, other sequences on the right."""
    many, one = ours(world, task, batch_size=23), ours(world, task, batch_size=1)
    for name, values in one.per_item.items():
        np.testing.assert_allclose(many.per_item[name], values, rtol=1e-4, err_msg=name)


REPEATED = (
    TASK.split("output_type")[0]
    + """output_type: generate_until
doc_to_text: '{{text}}'
doc_to_target: 'x'
repeats: 3
generation_kwargs: {until: [], max_gen_toks: 6KWARGS}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
)


@pytest.mark.parametrize(("sampled", "kwargs"), [(False, ""), (True, ", do_sample: true, temperature: 2.0")])
def test_repeats_are_answers_of_their_own_where_they_are_sampled(
    sampled: bool, kwargs: str, tmp_path: Path, world: Path
) -> None:
    made = own(tmp_path, None, REPEATED.replace("KWARGS", kwargs))
    at = setting(world / "base")
    made.prepare(at)
    with mock.patch.object(at.model, "generate", wraps=at.model.generate) as generate:
        made.score(at.model, made.splits.heldout)
    assert {len(call.kwargs["input_ids"]) for call in generate.call_args_list} <= {1, 2, 3, 4}, "no more than a batch"
    said = [answers for row in made.splits.heldout for _, answers in made.answers(row)]
    assert all(len(answers) == 3 for answers in said)
    assert all((len(set(answers)) > 1) is sampled for answers in said)


def test_a_tag_is_its_tasks_side_by_side(world: Path, tmp_path: Path) -> None:
    home = tmp_path / "tagged"
    home.mkdir()
    files = {"DATA": world / "test.jsonl", "TRAIN": world / "train.jsonl"}
    for name in ("choices", "endings"):
        text = HEAD.replace("DATA", str(files["DATA"])).replace("TRAIN", str(files["TRAIN"])) + TASKS[name]
        (home / f"{name}.yaml").write_text(f"{text}tag: some\n")
    made = Harness("e", {"task": f"{home}/some", "bootstrap_iters": 100}, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, 5))
    scores = made.score(model, np.sort(np.concatenate(list(made.splits))))
    assert len(made.provenance) == 2
    for task in ("choices", "endings"):
        results = theirs(world, task)["results"][task]
        for metric in ("acc", "acc_norm"):
            measure = scores.measures[f"{task}.{metric}"]
            assert measure.value == pytest.approx(results[f"{metric},none"], rel=1e-6) and measure.count == 23


@pytest.mark.parametrize("task", ["choices", "endings", "last_word", "rolling", "echo"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinite_logits_fail_the_candidate(world: Path, task: str, value: float) -> None:
    made = Harness("e", {"task": f"tasks/{task}"}, world)
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    made.prepare(Setting(model, world / "base", torch.device("cpu"), {}, 5))
    model.lm_head.register_forward_hook(lambda module, args, output: torch.full_like(output, value))
    with pytest.raises(NonFinite, match="the candidate has failed"):
        made.score(model, made.splits.calibration)


def test_one_infinite_logit_of_a_token_that_is_not_asked_for_fails_the_candidate_too(
    tmp_path: Path, world: Path
) -> None:
    """A softmax over plus infinity is no number for any token, so nothing is the best by accident."""
    made, at = own(tmp_path, rows(12, 1)), setting(world / "base")
    made.prepare(at)

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[..., 7] = torch.inf
        return output

    at.model.lm_head.register_forward_hook(spoil)
    with pytest.raises(NonFinite, match="NaN or infinite"):
        made.score(at.model, made.splits.heldout)
