"""What does a gradient search promise? The same trajectory whatever the workers and the kills, and honest items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from program import Program

from optimizer import Job, Run
from optimizer.commands import cli
from optimizer.driver import Items, Question
from optimizer.errors import JobError
from optimizer.executors.worker import Worker, specification
from optimizer.jobs.job import EvaluatorEntry
from optimizer.jobs.paper import on_paper
from optimizer.record.ledger import Ledger
from optimizer.training.training import minibatch
from searchspaces.cache import limit
from searchspaces.models.loading import load_model

DRIVER = "supervised, steps: 12, every: 4, batch: 8, lr: 0.05"


def job(folder: Path, driver: str | dict[str, Any] = DRIVER, **changes: Any) -> Job:
    """The two-task world with a gradient driver; changes replace whole entries of the job."""
    made = Job.load(worlds.classification(folder, evaluations=60))
    if isinstance(driver, str):
        name, _, rest = driver.partition(", ")
        pairs = (pair.partition(": ") for pair in rest.split(", ") if pair)
        driver = {"name": name, **{k: json.loads(v) for k, _, v in pairs}}
    data = made.model_dump(mode="json") | {"driver": driver} | changes
    return Job.parse(data, folder)


def trajectory(run: Run) -> list[tuple[int, bytes, str, bytes]]:
    """Questions and answers of the gradients, to the bit."""
    ledger = Ledger.open(run.folder / "ledger.db", readonly=True)
    answers = {a.number: a for a in ledger.answers("train")}
    found = []
    for q in ledger.questions("train"):
        gradient = answers[q.number].gradient
        assert gradient is not None, answers[q.number].failure
        found.append((q.items.draw, q.point.tobytes(), q.stage, gradient.tobytes()))
    ledger.close()
    return found


class Killed(Exception):
    """Stands for a process that is gone: nothing after it is run."""


def test_a_search_killed_at_any_gradient_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = Run.create(job(tmp_path), tmp_path / "whole")
    whole.search()
    expected = trajectory(whole)
    assert len(expected) == 12
    for kill in (0, 1, 5, 11):
        run = Run.create(job(tmp_path), tmp_path / f"killed-{kill}")

        def stop(search: Any, answer: Any, at: int = kill) -> None:
            if search.gradients > at:
                raise Killed

        with pytest.raises(Killed):
            run.search(stop)
        run.search()
        assert trajectory(run) == expected
        assert {n: c.measures for n, c in run.results().candidates.items()} == {
            n: c.measures for n, c in whole.results().candidates.items()
        }


@pytest.mark.slow
def test_one_worker_and_four_walk_the_same_way_to_the_bit(tmp_path: Path) -> None:
    found = []
    for workers in (1, 4):
        executor = {"kind": "ray", "workers": workers, "cpus": 0.25}
        run = Run.create(job(tmp_path, executor=executor), tmp_path / f"with-{workers}")
        run.search()
        found.append(trajectory(run))
    assert found[0] == found[1] and len(found[0]) == 12


def test_gradients_see_no_item_that_candidates_are_scored_on(tmp_path: Path) -> None:
    run = Run.create(job(tmp_path), tmp_path / "runs")
    splits = json.loads((run.folder / "splits.json").read_text())
    for rows in splits.values():
        parts = [set(rows[k]) for k in ("train", "calibration", "heldout")]
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts)) == 60
    problem = run.open_problem()
    for evaluator in problem.evaluators:
        train = set(splits[evaluator.name]["train"])
        epoch = [r for d in range(3) for r in problem.rows(evaluator, Items("train", 8, d)).tolist()]
        assert set(epoch[: len(train)]) == train, "successive minibatches go through all items first"
    run.search()
    counts = {k: m.count for k, m in run.results().candidates[0].measures.items()}
    assert counts["spam.accuracy"] == len(splits["spam"]["calibration"])


def test_a_minibatch_is_a_function_of_its_number() -> None:
    rows = np.arange(100, 110)
    drawn = [minibatch(rows, Items("train", 4, d), 0, "spam") for d in range(5)]
    assert sorted(np.concatenate(drawn).tolist()) == sorted([*rows.tolist()] * 2)
    assert np.array_equal(minibatch(rows, Items("train", 4, 3), 0, "spam"), drawn[3])
    assert not np.array_equal(minibatch(rows, Items("train", 4, 3), 1, "spam"), drawn[3])
    assert np.array_equal(minibatch(rows, Items("train", 99, 3), 0, "spam"), rows)


@pytest.mark.parametrize("driver", ["supervised", "adamerging"])
def test_a_search_lowers_its_loss_on_unseen_items(tmp_path: Path, driver: str) -> None:
    loss = "cross_entropy" if driver == "supervised" else "entropy"
    made = job(
        tmp_path,
        f"{driver}, steps: 30, every: 10, batch: 16, lr: 0.05, anchors: false",
        objectives=[f"spam.{loss}", f"mood.{loss}"],
    )
    run = Run.create(made, tmp_path / "runs")
    run.search()
    found = list(run.results().candidates.values())
    means = [np.mean([c.measures[f"{t}.{loss}"].value for t in ("spam", "mood")]) for c in found]
    assert len(means) == 4 and min(means[1:]) < means[0] - 0.01
    assert run.results().done


def test_the_gradient_of_a_question_is_the_slope_of_its_loss(tmp_path: Path) -> None:
    worker = Worker(specification(job(tmp_path), False), "w")
    start = worker.space.domain.start
    items = Items("train")

    def ask(point: np.ndarray, wants: Any, part: tuple[int, int] = (0, 1)) -> Any:
        answer = worker.answer(Question(0, point, wants, items, part=part))
        assert answer.failure is None, answer.failure
        return answer

    each, whole = ask(start, "gradients"), ask(start, "gradient")
    assert each.gradient.shape == (2, len(start))
    np.testing.assert_allclose(each.gradient.mean(axis=0), whole.gradient[0], rtol=1e-4, atol=1e-7)
    cut = [ask(start, "gradient", (i, 5)) for i in range(5)]
    np.testing.assert_allclose(sum(a.gradient for a in cut), whole.gradient, rtol=1e-4, atol=1e-7)
    step = np.random.default_rng(0).normal(size=len(start)) * 1e-2
    losses = [
        np.mean([m.value for m in ask(start + sign * step, "gradient").measures.values()]) for sign in (1.0, -1.0)
    ]
    assert (losses[0] - losses[1]) / 2 == pytest.approx(float(whole.gradient[0] @ step), rel=0.02)
    sizes, cosines = ask(start, "sizes").gradient, ask(start, "cosines").gradient
    assert sizes.shape == cosines.shape == (1, len(start)) and (sizes > 0).all()
    assert (np.abs(cosines) > 0).any()


def test_teachers_are_asked_once_and_alignment_needs_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    evaluators = [
        {
            **{"kind": "classification", "name": name, "data": f"data/{name}.jsonl", "text": "text"},
            **{"label": None, "classes": ["neg", "pos"], "pooling": "mean", "teacher": name},
        }
        for name in ("spam", "mood")
    ]
    made = job(
        tmp_path,
        "supervised, steps: 4, every: 2, batch: 8, anchors: false",
        evaluators=evaluators,
        objectives=["spam.kl", "mood.kl"],
    )
    data = made.model_dump(mode="json")
    data["evaluators"] = evaluators
    data["driver"]["gradients"] = {"loss": {"kl": 1.0, "hidden": 0.1}}
    run = Run.create(Job.parse(data, tmp_path), tmp_path / "runs")
    run.search()
    kept = sorted((tmp_path / "cache" / "mergeopt" / "teachers").glob("*/*.safetensors"))
    assert len(kept) == 2 and limit.sizes()["teachers"] >= sum(file.stat().st_size for file in kept)
    times = [file.stat().st_mtime_ns for file in kept]
    exported = run.export("best", tmp_path / "merged")
    assert (exported / "model.safetensors").is_file()
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert all(set(c.measures) == {f"{t}.{m}" for t in ("spam", "mood") for m in ("entropy", "kl")}
               for c in run.results().candidates.values())  # fmt: skip


@pytest.mark.parametrize(
    ("gradients", "match"),
    [
        ({"loss": "KL"}, r"loss 'KL', which evaluator 'spam' does not offer .*; did you mean 'kl'\? name one"),
        ({"loss": {"kl": 1, "cross_entropy": 1}}, r"loss 'cross_entropy', which evaluator 'mood' does not offer"),
        ({"tasks": ["span"]}, r"gradients\.tasks: no evaluator 'span'"),
    ],
)
def test_paper_refuses_losses_that_nobody_offers(tmp_path: Path, gradients: dict[str, Any], match: str) -> None:
    made = job(tmp_path, {"name": "supervised", "gradients": gradients})
    spam, mood = made.model_dump(mode="json")["evaluators"]
    (tmp_path / "data" / "spam.jsonl").unlink()  # nothing is read
    unlabelled = Job.parse(made.model_dump(mode="json") | {"evaluators": [spam, mood | {"label": None}]}, tmp_path)
    with pytest.raises(JobError, match=match):
        on_paper(unlabelled)


def test_paper_refuses_gradients_of_what_has_no_loss(tmp_path: Path) -> None:
    said = job(tmp_path, {"name": "supervised", "gradients": {}}).model_dump(mode="json")
    own = {
        "kind": "function",
        "name": "mood",
        "function": "mine.py:f",
        "metrics": {"m": "max"},
        "data": "data/mood.jsonl",
    }
    spam = next(e for e in said["evaluators"] if e["name"] == "spam")
    with pytest.raises(JobError, match="evaluator 'mood' can be scored and not differentiated"):
        on_paper(Job.parse(said | {"evaluators": [spam, own], "objectives": ["spam.accuracy", "mood.m"]}, tmp_path))


def refused(tmp_path: Path, match: str, driver: str | dict[str, Any] = DRIVER, **changes: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        Run.create(job(tmp_path, driver, **changes), tmp_path / "runs")
    assert getattr(caught.value, "exit_code", None) == 2
    assert not (tmp_path / "runs").exists()


def test_a_learning_rate_of_zero_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "lr: Input should be greater than 0", "supervised, lr: 0")


def test_a_frozen_space_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "nothing is left to search", space={"frozen": ["*"]})


def test_an_evaluator_without_the_loss_is_named(tmp_path: Path) -> None:
    match = r"loss 'hinge', which evaluator 'spam' does not offer \(its losses: .*entropy"
    refused(tmp_path, match, driver='supervised, gradients: {"loss": "hinge"}')


def test_an_evaluator_that_can_only_score_is_named_with_those_that_can_be_differentiated(tmp_path: Path) -> None:
    made = job(tmp_path, "supervised")
    (tmp_path / "own.py").write_text("def score(model, rows, tokenizer): return {'value': 0.5}\n")
    own: dict[str, Any] = {"kind": "function", "name": "own", "data": "data/spam.jsonl", "function": "own.py:score"}
    own |= {"metrics": {"value": "max"}}
    mixed = made.model_copy(update={"evaluators": [*made.evaluators, EvaluatorEntry.model_validate(own)]})
    with pytest.raises(ValueError, match=r"'own' can be scored and not differentiated: say .*tasks: \[spam, mood\]"):
        Run.create(mixed, tmp_path / "runs", allow_code=True)


def test_gradients_for_a_driver_that_asks_for_none_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "'cma' asks for no gradients; remove", driver='cma, gradients: {"train": 0.5}')


@pytest.mark.parametrize("driver", ["frank_wolfe", "dam", "expert_merging"])
def test_a_driver_of_plain_coefficients_refuses_a_simplex(tmp_path: Path, driver: str) -> None:
    refused(tmp_path, "works on the coefficients themselves; set space.simplex: false", driver, space={"simplex": True})


def test_too_few_items_to_part_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        "leaves 30 for gradients and 0 .*: give more items, or another share as driver.gradients.train",
        driver=DRIVER + ', gradients: {"train": 0.99}',
    )


def test_a_loss_that_is_not_finite_at_the_start_is_told_as_such(tmp_path: Path) -> None:
    made = job(tmp_path, "supervised, steps: 5, lr: 0.1, anchors: false", space={"start": 1e30, "bounds": [0, 1e31]})
    with pytest.raises(ValueError, match="nonfinite") as caught:
        Run.create(made, tmp_path / "runs").search()
    assert getattr(caught.value, "exit_code", None) is not None


def test_parts_of_a_language_gradient_add_up_though_texts_differ_in_length(tmp_path: Path) -> None:
    made = Job.load(worlds.language(tmp_path)).model_dump(mode="json")
    losses = {"cross_entropy": 1.0, "entropy": 0.5, "kl": 1.0, "hidden": 0.2}
    made["evaluators"] = [
        {"kind": "language", "name": "text", "data": "data/text.jsonl", "text": "text", "teacher": "one"}
    ]
    made["driver"] = {"name": "supervised", "gradients": {"loss": losses}}
    worker = Worker(specification(Job.parse(made, tmp_path), False), "w")
    start = worker.space.domain.start

    def ask(part: tuple[int, int] = (0, 1)) -> Any:
        answer = worker.answer(Question(0, start, "gradient", Items("train"), part=part))
        assert answer.failure is None, answer.failure
        return answer

    whole = ask()
    for count in (2, 4, 7):
        parts = [ask((i, count)) for i in range(count)]
        np.testing.assert_allclose(sum(a.gradient for a in parts), whole.gradient, rtol=2e-4, atol=1e-6)
        loss = sum(a.measures["text.training_loss"].value for a in parts)
        assert loss == pytest.approx(whole.measures["text.training_loss"].value, rel=1e-5)


def test_equal_rows_are_all_seen_by_gradients_or_none_is(tmp_path: Path) -> None:
    made = job(tmp_path)
    for name in ("spam", "mood"):
        path = tmp_path / "data" / f"{name}.jsonl"
        path.write_text("".join(line * 3 for line in path.read_text().splitlines(keepends=True)))
    run = Run.create(made, tmp_path / "runs")
    for evaluator in run.open_problem().evaluators:
        splits = evaluator.splits
        train, scored = (set(splits.alike[rows].tolist()) for rows in (splits.train, splits.calibration))
        assert train and scored and not train & scored


def test_a_head_of_the_model_itself_is_the_teachers_own(tmp_path: Path) -> None:
    """Where the output layer is kept per expert, a language teacher still is the expert whole."""
    made = Job.load(worlds.language(tmp_path)).model_dump(mode="json")
    made["models"]["heads"] = ["lm_head*"]
    made["evaluators"] = [
        {"kind": "language", "name": "text", "data": "data/text.jsonl", "text": "text", "teacher": "one"}
    ]
    worker = Worker(specification(Job.parse(made, tmp_path), False), "w")
    worker.resident.write_expert("one", heads=True)
    expert = load_model(tmp_path / "experts" / "one")
    for name, tensor in expert.state_dict().items():
        assert torch.equal(worker.resident.model.state_dict()[name], tensor), name
    answer = worker.problem.evaluators[0].score(worker.resident.model, worker.problem.evaluators[0].splits.heldout)
    assert answer.measures["kl"].value == pytest.approx(0, abs=1e-4)


def test_tasks_named_twice_are_refused(tmp_path: Path) -> None:
    driver = {"name": "supervised", "gradients": {"tasks": ["spam", "spam"]}}
    refused(tmp_path, "'spam' is listed twice", driver)


def test_ends_of_a_path_for_other_tasks_are_refused(tmp_path: Path) -> None:
    driver = {"name": "pareto", "ends": [[1, 0, 0]]}
    refused(tmp_path, r"driver\.ends: expected 2 non-negative numbers", driver)


def test_the_best_anchor_needs_anchors(tmp_path: Path) -> None:
    driver = {"name": "supervised", "start": "best", "anchors": False}
    refused(tmp_path, "start: best is the best anchor", driver)


def test_a_walk_whose_gradients_all_fail_says_so_and_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise MemoryError("no room for the gradient")

    monkeypatch.setattr(Worker, "_backward", no_memory)
    (tmp_path / "mine.yaml").write_text(job(tmp_path).yaml())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mergeopt", "run", "mine.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "its last gradients failed: oom: no room for the gradient" in capsys.readouterr().err


def test_a_walk_that_its_steps_ended_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mergeopt: Program
) -> None:
    (tmp_path / "mine.yaml").write_text(job(tmp_path, "supervised, steps: 4, every: 4, batch: 8, lr: 0.05").yaml())
    monkeypatch.chdir(tmp_path)
    said = mergeopt("run", "mine.yaml", "--name", "walk")
    assert said.code == 0 and "its 4 steps are done; a run with more of driver.steps goes further" in said.out
    assert "nothing left to ask" not in said.out
    assert "its 4 steps are done" in " ".join(mergeopt("status", "walk").out.split())
