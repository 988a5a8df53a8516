"""What does paper say before anything is loaded? A 7 B pool of holes, and what is refused while it is still cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import sparse
import torch
import worlds
from program import mergeopt

from optimizer import Job, Run
from optimizer.errors import JobError
from optimizer.executors import bandwidth
from optimizer.jobs import needs, paper
from optimizer.jobs.checking import check_job
from optimizer.jobs.needs import Host, Needs
from optimizer.jobs.problem import open_pool
from optimizer.output.needs import rows_on_paper
from searchspaces import Resident
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.weights import kernel

SEVEN = 2 * 6_738_415_616  # bytes of Llama 2 7B in bf16


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse.job(tmp_path_factory.mktemp("seven"))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(size: float) -> None:
        monkeypatch.setattr("optimizer.jobs.needs.psutil.virtual_memory", lambda: SimpleNamespace(available=int(size)))

    return of


def changed(job: Path, name: str, *pairs: tuple[str, str]) -> Job:
    text = job.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    (job.parent / name).write_text(text)
    return Job.load(job.parent / name)


def test_seven_billion_parameters_and_eight_experts_are_planned_without_reading_one(
    seven: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sum(f.stat().st_blocks * 512 for f in seven.parent.rglob("*.safetensors")) < 10_000_000, "no disk is used"

    def read(self: Checkpoint, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "tensor", read)
    memory(64e9)
    assert mergeopt("check", str(seven), "--paper", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model_bytes"] == SEVEN and found["pool_bytes"] == 9 * SEVEN and found["moved_bytes"] == 10 * SEVEN
    assert found["gradient_bytes"] == 0 and found["chunk_bytes"] == 2 * 32000 * 4096
    assert 0 < found["forward_bytes_about"] < 4e9 and found["process_bytes_about"] == needs.PROCESS
    parts = ("model_bytes", "gradient_bytes", "chunk_bytes", "forward_bytes_about", "process_bytes_about")
    assert found["worker_bytes"] == sum(found[part] for part in parts)
    assert found["left_for_pages_bytes"] == 64e9 - 2 * found["worker_bytes"]
    assert found["refusal"] is None and found["place"] == "disk"
    assert found["bandwidth"]["sparse"] and found["merge_seconds"] is None, "holes say nothing of the disk"
    memory(256e9)
    assert mergeopt("check", str(seven), "--paper", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["place"] == "cache"
    assert found["merge_seconds"] == pytest.approx(10 * SEVEN / found["bandwidth"]["memory"])
    assert found["said"] == rows_on_paper(found) and "candidates: " in found["said"]["all merges"]
    memory(20e9)
    monkeypatch.setenv("COLUMNS", "400")
    assert mergeopt("check", str(seven), "--paper") == 0, "who plans on a laptop is told, not refused"
    said = capsys.readouterr().out
    assert (
        "about 0.35 GB for its process" in said
        and "a model of 13.48 GB in bfloat16" in said
        and "121.29 GB on disk" in said
    )
    assert "does not fit here: 2 workers need" in said and "fewer executor.workers" in said


def test_gradients_take_the_model_twice_and_fp32_doubles_it(seven: Path) -> None:
    walk = changed(seven, "walk.yaml", ("objectives:", "driver: {name: supervised, steps: 5}\nobjectives:"))
    plain, twice = (Needs.of(job, open_pool(job)) for job in (Job.load(seven), walk))
    assert twice.gradients == plain.model == SEVEN and twice.forward > plain.forward
    wide = changed(seven, "wide.yaml", ("base: base", "dtype: float32, base: base"))
    assert Needs.of(wide, open_pool(wide)).model == 2 * SEVEN


def test_a_job_that_cannot_fit_is_refused_before_its_model_is_loaded(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    job = Job.load(worlds.language(tmp_path))
    needed = Needs.of(job, open_pool(job)).certain
    memory(needed - 1)
    with monkeypatch.context() as patch:
        patch.setattr("optimizer.executors.worker.Resident", load)
        for refused in (lambda: check_job(job), lambda: Run.create(job, tmp_path / "runs")):
            with pytest.raises(JobError, match=r"does not fit here: a worker needs .*bfloat16") as caught:
                refused()
            assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()
    memory(needed)
    Run.create(job, tmp_path / "runs")
    memory(needed - 1)  # on the host that goes on with it
    with pytest.raises(JobError, match="does not fit here"):
        Run(tmp_path / "runs" / job.name).search()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_of_a_host_share_its_memory_and_those_of_a_cluster_may_not(seven: Path, workers: int) -> None:
    pool = open_pool(Job.load(seven))
    here = changed(seven, "here.yaml", ("workers: 2", f"workers: {workers}"))
    there = changed(seven, "there.yaml", ("workers: 2", f"workers: {workers}, address: auto"))
    host = Host(2 * SEVEN)
    assert (needs.refusal(here, Needs.of(here, pool), host) is None) == (workers == 1)
    assert needs.refusal(there, Needs.of(there, pool), host) is None


@pytest.mark.parametrize(
    ("gigabytes", "wanted", "place", "refused"),
    [
        (200, "auto", "device", False),
        (144, "auto", "device", False),
        (141, "auto", "stream", False),
        (200, "stream", "stream", False),
        (13, "auto", "stream", True),
    ],
)
def test_on_an_accelerator_the_pool_lives_there_where_it_fits(
    seven: Path, gigabytes: int, wanted: str, place: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (gigabytes * 10**9, gigabytes * 10**9))
    monkeypatch.setattr(bandwidth, "device", lambda _: 4e12)
    monkeypatch.setattr(bandwidth, "to_device", lambda _: 1e9)
    job = changed(seven, "gpu.yaml", ("workers: 2", f"workers: 2, gpus: 1, device: cuda, pool: {wanted}"))
    found = paper.on_paper(job)
    assert found["place"] == place and found["device_available_bytes"] == gigabytes * 10**9
    assert found["process_bytes_about"] == 0, "which no device holds"
    wide = (8 * 20 + 18) * SEVEN // 2  # a difference and a sum for each expert, in fp32
    seconds = (10 * SEVEN + wide) / 4e12 if place == "device" else 9 * SEVEN / 1e9
    assert found["merge_seconds"] == pytest.approx(seconds, rel=1e-6)
    assert (found["refusal"] is not None) == refused
    if refused:
        assert "device: auto, which lays one model over several devices" in found["refusal"]
    how = "copied" if place == "device" else "streamed"
    assert f"it is {how} to the device" in paper.rows_of(found)["the pool"]


def test_an_accelerator_that_is_elsewhere_is_said_to_be(seven: Path) -> None:
    found = paper.on_paper(changed(seven, "away.yaml", ("workers: 2", "workers: 2, device: 'cuda:99'")))
    assert found["device_available_bytes"] is None and found["refusal"] is None
    assert "is not here" in paper.rows_of(found)["a worker"]
    assert "unknown time" in paper.rows_of(found)["one merge"] and "all merges" not in paper.rows_of(found)


def test_the_pieces_that_are_planned_are_those_of_the_kernels() -> None:
    assert needs.PIECE == kernel.CHUNK


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_model_on_paper_is_the_model_in_memory(tmp_path: Path, dtype: str | None) -> None:
    job = Job.load(worlds.language(tmp_path))
    job = job.model_copy(update={"models": job.models.model_copy(update={"dtype": dtype})})
    pool = open_pool(job)
    model = Resident(pool, dtype=getattr(torch, dtype) if dtype else None).model
    assert Needs.of(job, pool).model == sum(p.nbytes for p in model.parameters())


def test_of_an_adapter_its_factors_are_read(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "llama")
    pico.adapter(tmp_path / "lora", base, 1)
    worlds.items(tmp_path / "data" / "text.jsonl", 40, 3)
    (tmp_path / "job.yaml").write_text("""
models: {base: base, experts: {lora: lora}}
evaluators: [{kind: language, name: l, data: data/text.jsonl, text: text}]
objectives: [l.loss]
executor: {kind: inline}
""")
    job = Job.load(tmp_path / "job.yaml")
    pool = open_pool(job)
    assert Needs.of(job, pool).read == pool.base.bytes + pool.adapters["lora"].bytes


def test_check_has_paper_beside_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = worlds.language(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert mergeopt("check", str(job)) == 0
    said = capsys.readouterr().out
    for words in ("one merge", "at memory bandwidth", "one candidate", "(measured on one)", "mapped from its files"):
        assert words in said


def test_the_process_that_is_planned_is_about_as_large_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optimizer", "check", str(worlds.language(tmp_path)), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < found["empty_worker_private_bytes"] / needs.PROCESS < 2
    assert found["worker_private_bytes"] == pytest.approx(found["paper"]["worker_bytes"], rel=0.5)


def test_a_sample_of_real_files_is_read_from_the_disk_and_from_the_cache(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        with file.open("wb") as out:
            out.write(os.urandom(12_000_001))
            out.flush()
            os.fsync(out.fileno())
    found = bandwidth.files(files)
    assert found.sample == 24_000_002 and not found.sparse
    assert found.cached is None or found.cached == 1.0, "it has just been written"
    assert found.cache is not None and found.cache > 1e8
    assert found.disk is None or 0 < found.disk < 1e12


def test_the_sample_is_bounded_and_spread_and_holes_are_seen(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, 10**12)
    blocks = bandwidth._spread([(big, 10**12)])
    assert sum(size for _, _, size in blocks) <= bandwidth.SAMPLE
    assert blocks[0][1] == 0 and blocks[-1][1] > 0.9e12
    found = bandwidth.files([big])
    assert found.sparse and found.disk is None


def test_memory_moves_at_a_plausible_rate_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    assert 1e8 < bandwidth.memory(2) < 1e13
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_moves_at_a_plausible_rate() -> None:
    device = torch.device("cuda:0")
    assert bandwidth.device(device) > bandwidth.to_device(device) > 1e8
