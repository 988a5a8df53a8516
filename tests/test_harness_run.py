"""Does a job with a task of the harness run whole: checked, searched, exported, and told where its items are from?"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pico
import pytest

from optimizer import Job, Run
from optimizer.checking import check_job, print_check
from optimizer.errors import JobError

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
    line = "colours: calibration and held out are 10 and 10 documents of 'test', split by content"
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
    assert "calibration and held out are 10 and 10 documents of 'test'" in card
    assert np.isfinite(results.pick("best").heldout["colours.brier_score"].value)


def test_a_metric_that_the_task_lacks_is_refused_with_the_nearest(job: Path) -> None:
    job.write_text(job.read_text().replace("colours.acc,", "colours.accuracy,"))
    with pytest.raises(JobError, match=r"no evaluator reports 'colours\.accuracy'.*colours\.acc"):
        check_job(Job.load(job))
