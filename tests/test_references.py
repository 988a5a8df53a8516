"""What is a run compared with? Base and experts as they are, where no anchor is exactly that model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import worlds
from program import Program
from safetensors.torch import load_file, save_file

from evaluators.evaluator import Measure
from optimizer import Job, Run
from optimizer.driver import Question, reference
from optimizer.errors import ExportError
from optimizer.executors.worker import Worker, specification
from optimizer.jobs.checking import check_job
from optimizer.jobs.problem import Problem
from optimizer.jobs.references import references
from optimizer.output.needs import print_check
from optimizer.views.kept import kept

TIES = "{granularity: layer, method: ties, options: {density: {low: 0.1, high: 0.9, start: 0.2}}}"


def job(folder: Path, space: str = TIES, **replaced: str) -> Job:
    path = folder / "job.yaml"
    if not path.exists():
        worlds.classification(folder, evaluations=16)
    text = path.read_text().replace("space: {granularity: layer}", f"space: {space}")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return Job.parse({**Job.load(_written(folder, text)).model_dump(mode="json")}, folder)


def _written(folder: Path, text: str) -> Path:
    path = folder / "changed.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.classification(folder, evaluations=16)
    return folder


@pytest.fixture(scope="module")
def finished(world: Path) -> Run:
    run = Run.create(job(world), world / "runs")
    run.search()
    return run


@pytest.fixture(scope="module")
def plain(world: Path) -> Worker:
    """A worker of plain task vectors, whose anchors are the experts."""
    return Worker(specification(job(world, "{granularity: layer}"), False), "w")


def needed(made: Job) -> list[str]:
    problem = Problem.open(made)
    return references(problem, problem.space(problem.pool.hashes()))


EVERY = ["base", "spam", "mood"]


@pytest.mark.parametrize(
    ("space", "replaced", "expected"),
    [
        ("{granularity: layer}", {}, []),
        (TIES, {}, ["spam", "mood"]),
        ("{method: [ties, task_arithmetic]}", {}, []),
        ("{method: tsv_m}", {}, ["spam", "mood"]),
        ("{method: layer_swap}", {}, []),
        ("{method: linear}", {}, []),
        ("{frozen: [pooler]}", {}, EVERY),
        ("{bounds: [0, 0.5]}", {}, ["spam", "mood"]),
        ("{granularity: layer}", {"name: sobol": "name: sobol, anchors: false"}, EVERY),
        ("{granularity: layer}", {"evaluations: 16": "evaluations: 6"}, ["mood"]),
        ("{granularity: layer}", {'heads: ["classifier.*"]': 'heads: ["classifier.*", "pooler.*"]'}, []),
        ("{granularity: layer}", {'heads: ["classifier.*"]': 'heads: ["classifier.*"]\n  exclude: ["pooler.*"]'},
         ["spam", "mood"]),
    ],
)  # fmt: skip
def test_what_no_anchor_is_exactly_is_a_reference(
    world: Path, space: str, replaced: dict[str, str], expected: list[str]
) -> None:
    assert needed(job(world, space, **replaced)) == expected


def test_a_reference_scores_what_the_plain_anchor_does_on_both_splits(finished: Run, plain: Worker) -> None:
    results = finished.results()
    assert list(results.references) == ["expert spam", "expert mood"] and "alone: spam" in results.pick("1").label
    anchors = dict(plain.space.anchors())
    for label, c in results.references.items():
        for split, measures in (("calibration", c.measures), ("heldout", c.heldout)):
            asked = Question(0, anchors[label.replace("expert ", "expert: ")], items=reference(0, "", split).items)
            wanted = plain.answer(asked).measures
            assert measures.keys() == wanted.keys() and len(measures) > 4
            for name, m in measures.items():
                assert m.value == pytest.approx(wanted[name].value, abs=1e-5) and m.count == wanted[name].count


def test_models_as_they_are_leave_no_trace_in_what_comes_after(plain: Worker) -> None:
    asked = Question(0, plain.space.domain.start)
    before = plain.answer(asked)
    found = [plain.answer(reference(i, name, "calibration")) for i, name in enumerate(EVERY)]
    assert plain.answer(asked).agrees(before) and all(a.failure is None for a in found)
    base = plain.answer(Question(0, plain.space.domain.base))
    assert base.measures == found[0].measures, "to the bit"
    assert found[1].measures != found[2].measures
    missing = plain.answer(reference(3, "nobody", "calibration"))
    assert missing.failure is not None and "nobody" in missing.failure.reason


def test_heads_of_an_expert_come_with_it_where_no_evaluator_brings_one(tmp_path: Path) -> None:
    path = worlds.language(tmp_path)
    path.write_text(path.read_text().replace("two: experts/two}", 'two: experts/two}, heads: ["lm_head.*"]'))
    assert needed(Job.load(path)) == ["one", "two"]  # the anchors have the base's
    worker = Worker(specification(Job.load(path), False), "w")
    shutil.copytree(tmp_path / "experts" / "one", tmp_path / "experts" / "headless")
    anchor = worker.answer(Question(0, dict(worker.space.anchors())["expert: one"]))
    own = worker.answer(reference(0, "one", "calibration"))
    loss = "text.loss"
    assert abs(own.measures[loss].value - anchor.measures[loss].value) > 1e-4
    head = load_file(tmp_path / "experts" / "one" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(worker.resident.model.lm_head.weight.data, head)
    worker.answer(reference(1, "base", "calibration"))
    base = load_file(tmp_path / "base" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(worker.resident.model.lm_head.weight.data, base)


def test_they_are_told_in_front_show_status_json_and_report(
    finished: Run, monkeypatch: pytest.MonkeyPatch, mergeopt: Program
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(finished.folder.parent.parent)

    front = mergeopt("front", "pico").out
    front = " ".join(front.split())
    assert "expert spam" in front and "models of the pool as they are" in front
    rows = [row for row in json.loads(mergeopt("front", "pico", "--json").out) if row["reference"]]
    assert {row["label"] for row in rows} == {"expert spam", "expert mood"}
    assert all(row["candidate"] is None and not row["front"] and row["heldout"] for row in rows)
    shown = mergeopt("show", "pico", "expert mood").out
    assert "expert mood, as it is: no candidate" in shown and "spam.accuracy" in shown and "embeddings" not in shown
    assert "coefficients" not in json.loads(mergeopt("show", "pico", "expert mood", "--json").out)
    status = json.loads(mergeopt("status", "pico", "--json").out)
    assert status["references"] == {"models": 2, "scored": 2, "failed": 0} and status["finished"]
    assert "2 of 2 models of the pool as they are" in mergeopt("status", "pico").out
    told = kept(finished.results())["run"]["references"]
    assert [c["label"] for c in told] and all(c["heldout"] for c in told)
    with pytest.raises(ExportError, match="expert mood is a model of the pool as it is, and no merge"):
        finished.export("expert mood")


def test_a_reference_with_the_best_mean_is_said_to_have_it(finished: Run) -> None:
    results = finished.results()
    best = results.pick("best")
    for c in results.references.values():  # none is any good
        for o in results.objectives:
            c.measures[o.name] = Measure(-1e9 if o.goal == "max" else 1e9, None, 1)  # type: ignore[index]
    assert results.unbeaten is (best if best.is_anchor else None)
    results.references["expert spam"].measures.update(best.measures)  # type: ignore[attr-defined]
    assert results.unbeaten is results.references["expert spam"]
    assert results.verdict == "No merge has a better mean than expert spam." == kept(results)["run"]["verdict"]


def test_check_says_what_is_scored_beside_the_budget(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_job(job(world))
    assert found["references"] == ["spam", "mood"] and found["evaluations"] == 16
    print_check(found)
    assert "spam, mood: scored once as they are, beside the budget" in " ".join(capsys.readouterr().out.split())


def test_layer_swap_is_told_by_the_model_that_each_group_comes_from(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.output.plain import candidate
    from optimizer.output.show import print_candidate, print_front

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    made = job(world, "{method: [task_arithmetic, layer_swap], options: {lambda: search}}").model_copy(
        update={"name": "swap"}
    )
    run = Run.create(made, "runs")
    run.search(evaluations=24)
    results = run.results()
    one = next(c for c in results.scored if results.recipe(c).method == "layer_swap" and not c.is_anchor)
    said = candidate(results, one)
    groups, experts, coefficients = results.coefficients(one)
    wanted = {g: ("base", *experts)[int(row @ [1, 2])] for g, row in zip(groups, coefficients, strict=True)}
    assert said["models"] == wanted and "coefficients" not in said and len(set(wanted.values())) > 1
    print_front(results)
    assert "with 'mergeopt front swap --all'" in capsys.readouterr().out
    monkeypatch.chdir("/")
    print_front(results)
    assert f"with 'mergeopt front {run.folder} --all'" in capsys.readouterr().out
    print_candidate(results, one)
    shown = capsys.readouterr().out
    assert "comes from" in shown and "1.000" not in shown
    drawn = kept(results)["details"][one.number]
    assert drawn["coefficients"] is None and drawn["picked"] == wanted
    assert drawn["settings"]["method"] == "layer_swap"


def test_an_expert_whose_excluded_tensors_are_the_bases_needs_no_reference(tmp_path: Path) -> None:
    made = job(tmp_path, "{granularity: layer}", **{'["classifier.*"]': '["classifier.*"]\n  exclude: ["pooler.*"]'})
    base = load_file(tmp_path / "base" / "model.safetensors")
    path = tmp_path / "experts" / "spam" / "model.safetensors"
    same = {n: base[n] if n.startswith("pooler.") else t for n, t in load_file(path).items()}
    save_file(same, path, metadata={"format": "pt"})
    assert needed(made) == ["mood"] and np.all([same[n].shape == base[n].shape for n in base])
