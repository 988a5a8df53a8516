"""Who must not get in: code beside a model, pickles wherever bytes are read, and jobs that want too much."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import worlds
from program import Program

from optimizer import Job, Run
from optimizer.errors import JobError

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"
CONFIGS = {
    "config.json": {"auto_map": {"AutoModel": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Config"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["modeling_mine.Slow", "modeling_mine.Fast"]}},
}


class Payload:
    """What touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


@pytest.mark.parametrize("where", ["base", "experts/spam"])
@pytest.mark.parametrize("name", CONFIGS)
def test_code_that_lies_beside_a_model_is_never_run(
    tmp_path: Path, marker: Path, mergeopt: Program, name: str, where: str
) -> None:
    job = worlds.classification(tmp_path, evaluations=8)
    folder = tmp_path / where
    for file in ("modeling_mine.py", "__init__.py", "setup.py"):
        (folder / file).write_text(CODE.format(marker=str(marker)))
    path = folder / name
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **CONFIGS[name]}))
    told = mergeopt("check", job)
    assert not marker.exists()
    assert told.code == 0 or (told.code == 2 and "auto_map" in told.err and "never run" in told.err), told.err


def test_a_pickle_in_any_slot_is_never_read_as_one(
    tmp_path: Path, marker: Path, mergeopt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = worlds.classification(tmp_path, evaluations=8)
    run = Run.create(Job.load(job), tmp_path / "runs")
    run.search()
    payload = pickle.dumps(Payload(marker))
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    slots = [
        *(p for p in run.folder.iterdir() if p.is_file()),
        *(run.folder / name for name in ("spool.jsonl", "ledger.json", "driver.json", "attempt.json", "report.pkl")),
        *((tmp_path / "base").iterdir()),
        *((tmp_path / "experts" / "spam").iterdir()),
        *(tmp_path / "base" / name for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl")),
        *tmp_path.glob("*.jsonl"),
        job,
    ]
    assert {"ledger.db", "model.safetensors", "tokenizer.json", "job.yaml"} <= {s.name for s in slots}
    for path in kept:  # what is kept on a host is made anew, or refused
        path.write_bytes(payload)
    again = Run.create(Job.load(job).model_copy(update={"name": "again"}), tmp_path / "runs")
    shutil.rmtree(again.folder)
    for slot in slots:
        before = slot.read_bytes() if slot.exists() else None
        slot.write_bytes(payload)
        commands = [("status", run.folder), ("doctor", run.folder), ("report", run.folder), ("check", job, "--paper")]
        for command in commands if slot.parent == run.folder else [("check", job, "--paper"), ("check", job)]:
            said = mergeopt(*command)
            assert said.code in (0, 1, 2, 75) and "Traceback" not in said.err, (slot, command, said.err)
        assert not marker.exists(), slot
        slot.unlink() if before is None else slot.write_bytes(before)
    assert mergeopt("status", run.folder).code == 0, "all is as it was"


@pytest.mark.parametrize(
    ("section", "key", "most", "over"),
    [
        ("budget", "evaluations", 1_000_000, 1_000_001),
        ("budget", "hours", 100_000, 100_001),
        ("budget", "gpu_hours", 100_000_000, 100_000_001),
        ("budget", "money", 1e9, 1e10),
        ("executor", "workers", 4096, 4097),
        ("executor", "memory", 1e6, 1e7),
        ("executor", "cpus", 4096, 5000),
        ("executor", "gpus", 1024, 2000),
    ],
)
def test_a_job_over_a_cap_is_refused_and_one_at_it_is_not(
    tmp_path: Path, section: str, key: str, most: float, over: float
) -> None:
    said = {
        "name": "large",
        "models": {"base": "base", "experts": {"a": "a"}},
        "evaluators": [{"kind": "language", "name": "text", "data": "text.jsonl", "text": "text"}],
        "objectives": ["text.loss"],
        "budget": {"price_per_hour": 1.0} if key == "money" else {},
        "executor": {"kind": "ray", "gpus": 1},
    }
    Job.parse({**said, section: {**said[section], key: most}}, tmp_path)
    with pytest.raises(JobError, match=f"{section}.{key}"):
        Job.parse({**said, section: {**said[section], key: over}}, tmp_path)
