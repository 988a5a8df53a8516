"""Does a job with a task of the harness run whole: checked, searched, exported, and told where its items are from?"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pico
import pytest

from optimizer import Job, Run
from optimizer.errors import JobError, RunError
from optimizer.jobs.checking import check_job
from optimizer.output.needs import print_check

TASK = """
task: colours
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: [" red one", " blue", " in the other"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = pico.base(tmp_path / "base", "chat")
    for seed, name in enumerate(("one", "two"), 1):
        pico.expert(tmp_path / name, base, seed, scale=0.3)
    draw = random.Random(0)
    rows = [{"text": f"thing {draw.random()}", "label": draw.randrange(3)} for _ in range(24)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(TASK)
    file = tmp_path / "job.yaml"
    file.write_text("""
name: colours
models: {base: base, experts: {one: one, two: two}}
evaluators:
  - {kind: harness, name: colours, task: ./colours.yaml, data: items.jsonl, seeds: {fewshot: 7}, limit: 20}
objectives: [colours.acc, colours.brier_score]
driver: {name: sobol}
budget: {evaluations: 12}
executor: {kind: inline}
""")
    return file


def test_a_search_over_a_task_is_checked_run_and_exported(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_job(Job.load(job))
    line = "colours: calibration and held out are 10 and 10 documents of data, split by content"
    assert found["items"] == {"colours": {"calibration": 10, "heldout": 10, "train": 0}} and found["provenance"] == [
        line
    ]
    print_check(found)
    assert "colours: calibration and held out are 10 and 10" in " ".join(capsys.readouterr().out.split())

    run = Run.create(Job.load(job), tmp_path / "runs")
    run.search()
    results = run.results()
    assert len(results.candidates) == 12 and not results.failures
    assert len({c.measures["colours.brier_score"].value for c in results.candidates.values()}) > 5
    folder = run.export("best:colours.brier_score", tmp_path / "out")  # scored again, or it would not be there
    card = (folder / "README.md").read_text()
    assert "calibration and held out are 10 and 10 documents of data" in card
    assert json.loads((run.folder / "splits.json").read_text())["colours"]["provenance"] == [line]
    told = json.loads(run.report().read_text().split('id="data">')[1].split("</script>")[0])
    assert told["run"]["provenance"]["colours"] == [line]
    assert not Run(run.folder).search().stopped
    assert np.isfinite(results.pick("best").heldout["colours.brier_score"].value)


def test_a_metric_that_the_task_lacks_is_refused_with_the_nearest(job: Path) -> None:
    job.write_text(job.read_text().replace("colours.acc,", "colours.accuracy,"))
    with pytest.raises(JobError, match=r"no evaluator reports 'colours\.accuracy'.*colours\.acc"):
        check_job(Job.load(job))


def hub(job: Path, tmp_path: Path) -> dict[str, Path]:
    """The task over data that no one names as a file: a pattern, as good as a data set of the hub."""
    (tmp_path / "data").mkdir()
    draw = random.Random(1)
    files = {}
    for split, count in {"train": 6, "validation": 8, "test": 10}.items():
        rows = [{"text": f"{split} {draw.random()}", "label": draw.randrange(3)} for _ in range(count)]
        files[split] = tmp_path / "data" / f"{split}-0.jsonl"
        files[split].write_text("\n".join(map(json.dumps, rows)))
    patterns = ", ".join(f'{split}: "{tmp_path}/data/{split}-*.jsonl"' for split in files)
    splits = "training_split: train\nvalidation_split: validation\nfewshot_split: train\nnum_fewshot: 2\n"
    (tmp_path / "colours.yaml").write_text(f"{TASK}{splits}dataset_kwargs: {{data_files: {{{patterns}}}}}\n")
    text = job.read_text().replace("data: items.jsonl, ", "calibration_split: validation, ")
    job.write_text(text.replace(", limit: 20", "").replace("evaluations: 12", "evaluations: 2"))
    return files


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_data_set_that_is_another_is_noticed_when_a_run_goes_on(job: Path, tmp_path: Path, split: str) -> None:
    files = hub(job, tmp_path)
    run = Run.create(Job.load(job), tmp_path / "runs")
    run.open_problem()
    rows = files[split].read_text()
    files[split].write_text(rows.replace(f"{split} 0.", f"{split} 1."))
    assert files[split].read_text() != rows
    with pytest.raises(
        RunError, match=r"data 'colours: documents of colours': sha256 was .* it has changed since the run was made"
    ):
        Run(run.folder).search()
    files[split].write_text(rows)
    Run(run.folder).open_problem()


def test_a_run_from_before_documents_were_compared_goes_on(job: Path, tmp_path: Path) -> None:
    hub(job, tmp_path)
    made = Run.create(Job.load(job), tmp_path / "runs")
    assert made.job.hashes is not None and set(made.job.hashes.data) > {"colours: documents of colours"}
    old = made.job.hashes.data.copy()
    del old["colours: documents of colours"]
    job_before = made.job.model_copy(update={"hashes": made.job.hashes.model_copy(update={"data": old})})
    (made.folder / "job.yaml").write_text(job_before.yaml())
    splits = json.loads((made.folder / "splits.json").read_text())
    splits["colours"].pop("provenance")
    (made.folder / "splits.json").write_text(json.dumps(splits))
    run = Run(made.folder)
    run.search()
    assert run.results().provenance == {} and "h-items" not in run.report().read_text()
