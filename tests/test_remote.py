"""What travels to a cluster and back, what is refused before it does, and how runs of this host are stopped."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import worlds
from filelock import FileLock

from optimizer import Job, Run
from optimizer.commands import cli, remote, results
from optimizer.doctor import ray_cluster
from optimizer.errors import ClusterError, JobError, RunError, RunLocked
from optimizer.output import show
from optimizer.record.results import Results
from optimizer.remote import control, following, head, orders, parcel, wire
from optimizer.remote.address import Endpoint
from optimizer.remote.shipping import shipped
from optimizer.remote.wire import Order


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, and no cluster, of whoever runs the tests."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "home").mkdir()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("world")
    run = Run.create(Job.load(worlds.classification(folder, evaluations=9)), folder / "runs")
    run.search()
    return run


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("localhost", "http://localhost:8265"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://127.0.0.5", "https://127.0.0.5:443"),
    ],
)
def test_an_address_of_this_host_needs_no_token(address: str, url: str) -> None:
    assert Endpoint.of(address) == Endpoint(url, None)


@pytest.mark.parametrize("address", ["http://10.0.0.7:8265", "head", "localhost.evil.org", "https://head", "0.0.0.0"])
def test_an_address_off_this_host_needs_a_token_that_was_meant_for_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*arguments: object) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket.socket, "connect", connect)
    (tmp_path / "home" / ".ray").mkdir()
    (tmp_path / "home" / ".ray" / "auth_token").write_text("of-this-host")
    with pytest.raises(ClusterError, match="nothing was sent") as refused:
        Endpoint.of(address)
    assert refused.value.exit_code == 69
    (tmp_path / "theirs").write_text("s3cret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "theirs"))
    endpoint = Endpoint.of(address)
    assert endpoint.headers == {"Authorization": "Bearer s3cret"} and "s3cret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "expected the job API"),
        ("http://", "expected the job API"),
        ("http://head:port", "a port from 1 to 65535"),
        ("http://127.0.0.1:99999", "a port from 1 to 65535"),
        ("127.0.0.1:0", "a port from 1 to 65535"),
        ("http://127.0.0.1:", "a port from 1 to 65535"),
        ("http://127.0.0.1:18298\nX: y", "control characters"),
        ("http://127.0.0.1:8265\x1b[2J", "control characters"),
        ("http://[::1", "expected http://HOST:PORT"),
        ("http://user:hunter2@[::1", "expected http://HOST:PORT"),
        ("http://user:hunter2@127.0.0.1", "is refused"),
        ("http://127.0.0.1:8265/api/jobs", "expected the job API"),
        ("auto", "no cluster of this host is running"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(address: str, said: str) -> None:
    with pytest.raises(ClusterError, match=said) as refused:
        Endpoint.of(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://h:99999", "h:0", "http://h:8265\nX: y", "http://u:hunter2@[::1"]
)
def test_the_doctor_reads_addresses_by_the_same_rules(address: str) -> None:
    with pytest.raises(ClusterError, match="a port from 1 to 65535") as refused:
        next(ray_cluster.examine(address))
    assert "hunter2" not in str(refused.value)


def test_a_token_that_cannot_be_read_is_no_reason_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(ClusterError, match="/nowhere/token cannot be read"):
        Endpoint.of("127.0.0.1")


def test_a_secret_is_in_a_file_that_was_never_anybody_elses(tmp_path: Path) -> None:
    (path := tmp_path / "token").write_text("of before, and readable")
    path.chmod(0o644)
    head._write_secret(path, "x")
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "x"


def test_a_job_with_relative_paths_is_sent_only_with_the_clusters_folder(tmp_path: Path) -> None:
    path = worlds.classification(tmp_path, executor="ray")
    with pytest.raises(JobError, match=r"models.base: base; .*name the folder there with --root"):
        shipped(path, None, None)
    with pytest.raises(JobError, match="expected an absolute folder of the cluster, got 'here'"):
        shipped(path, None, "here")
    job = shipped(path, "other", "/shared/me")
    assert job.name == "other" and job.root == "/shared/me" and job.executor.address == "auto"
    assert str(job.path(job.models.base)) == "/shared/me/base"
    text = path.read_text().replace("experts/", "/m/").replace("base: base", "base: org/m@0123").replace("data/", "/d/")
    path.write_text(text)
    assert str(shipped(path, None, None).path("/d/spam.jsonl")) == "/d/spam.jsonl"


def test_an_order_is_the_job_and_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-2")
    (tmp_path / "package").mkdir()
    job = shipped(worlds.classification(tmp_path), None, "/shared").yaml()
    sent = Order("run", "pico", "runs", job=job)
    sent.write(tmp_path / "package")
    files = sorted((tmp_path / "package").iterdir())
    assert [f.name for f in files] == ["job.yaml", "order.json"]
    assert "canary" not in "".join(f.read_text() for f in files) and str(tmp_path) not in files[0].read_text()
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)
    assert Order.read(tmp_path / "package") == sent


@pytest.mark.parametrize("size", [0, 1, wire.LINE, 3 * wire.LINE + 7])
def test_a_file_comes_back_through_a_log_whole_or_not_at_all(size: int) -> None:
    content = bytes((37 * i + 5) % 251 for i in range(size))
    lines = ["Ray says something", *wire.encode(io.BytesIO(content)), "and something more"]
    assert wire.decode([line.encode() for line in lines], into := io.BytesIO()) == size
    assert into.getvalue() == content and "Ray says something\n" in wire.said("\n".join(lines) + "\n")
    for broken in (lines[:-2], [lines[0], *lines[2:]], [line.replace("A", "B") for line in lines]):
        if broken != lines and size:
            with pytest.raises(ClusterError, match="fetch it again"):
                wire.decode([line.encode() for line in broken], io.BytesIO())


def test_the_last_answer_counts_and_a_torn_one_is_none_yet() -> None:
    assert wire.answered('x\nmergeopt-answer: {"a": 1}\nmergeopt-answer: {"a": 2}\nlog') == {"a": 2}
    assert wire.answered('mergeopt-answer: {"a"') is None and wire.answered("") is None


def order_at(folder: Path, monkeypatch: pytest.MonkeyPatch, order: Order) -> None:
    folder.mkdir()
    order.write(folder)
    monkeypatch.chdir(folder)


def test_the_clusters_side_answers_from_its_own_folder_of_runs(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home" / "mine").symlink_to(finished.folder.parent)
    order_at(tmp_path / "order", monkeypatch, Order("status", "pico", "mine"))
    orders.main()
    found = wire.answered(capsys.readouterr().out)
    assert found is not None and found["answered"] == 9 and found["finished"]


@pytest.mark.parametrize(
    ("order", "said", "code"),
    [
        (Order("status", "pico", "runs", version="0.0.1"), "this host 0.0.1; install the same on both", 69),
        (Order("status", "nobody", "runs"), "no run at", 2),
        (Order("resume", "nobody", "runs"), "no run at", 2),
        (Order("cancel", "pico", "{runs}"), "nobody drives this run", 2),
        (Order("run", "pico", "{runs}", job="x"), "has a run at .* already", 2),
    ],
)
def test_a_refusal_on_the_cluster_is_its_answer_with_its_exit_code(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    order: Order,
    said: str,
    code: int,
) -> None:
    runs = order.runs.format(runs=finished.folder.parent)
    order_at(tmp_path / "order", monkeypatch, replace(order, runs=runs))
    with pytest.raises(SystemExit) as ended:
        orders.main()
    found = wire.answered(capsys.readouterr().out)
    assert found is not None and ended.value.code == code == found["exit_code"]
    assert re.search(said, found["error"])


def test_a_run_that_was_fetched_reads_as_the_run_does(finished: Run, tmp_path: Path) -> None:
    parcel.copy_run(finished.folder, tmp_path / "copy")
    parcel.pack(tmp_path / "copy", tmp_path / "parcel")
    parcel.unpack(tmp_path / "parcel", tmp_path / "there" / "pico")
    theirs, ours = Results(finished.folder), Results(tmp_path / "there" / "pico")
    assert ours.front.nondominated == theirs.front.nondominated and len(ours.candidates) == 9
    with pytest.raises(RunError, match="exists already"):
        parcel.unpack(tmp_path / "parcel", tmp_path / "there" / "pico")


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "a\\..\\out", "folder/"])
def test_an_archive_that_leads_elsewhere_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "parcel", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ClusterError, match="which is refused"):
        parcel.unpack(tmp_path / "parcel", tmp_path / "in" / "made")
    assert list((tmp_path / "in").iterdir()) == []


def test_what_happened_in_a_run_is_a_line_for_each_answer(finished: Run) -> None:
    lines = list(following.answers(finished.folder, follow=True))
    assert len([line for line in lines if line.startswith("calibration ")]) == 9
    assert all("spam.accuracy" in line for line in lines) and lines[-1].startswith("heldout ")
    assert list(following.progress(finished.folder))[-1] == "finished"


DRIVER = """
import json, os, signal, socket, sys, time
from pathlib import Path
from filelock import FileLock
folder, seen = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
with FileLock(folder / "driver.lock"):
    (folder / "driver.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": "now"}))
    print("driving", flush=True)
    while len(seen) < int(sys.argv[2]):
        time.sleep(0.01)
"""  # a driver as the others see it: the lock, the record, and what it does with signals


@pytest.mark.parametrize(("verb", "signals"), [(control.drain, 1), (control.cancel, 2)])
def test_a_run_of_this_host_is_stopped_by_its_own_process(
    verb: Callable[[Path], int], signals: int, tmp_path: Path
) -> None:
    (tmp_path / "ledger.db").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(signals)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "driving\n"
    assert control.driven(tmp_path)
    with pytest.raises(RunLocked, match="is being driven already"):
        control.nobody_drives(tmp_path)
    assert verb(tmp_path) == process.pid
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    with pytest.raises(RunError, match="nobody drives this run"):
        verb(tmp_path)


def test_a_run_that_another_host_drives_is_not_stopped_from_here(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    (tmp_path / "driver.json").write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "since": "now"}))
    with FileLock(tmp_path / "driver.lock"), pytest.raises(RunError, match="on elsewhere, which is not this host"):
        control.drain(tmp_path)


def test_no_proxy_sees_a_clusters_token_and_no_redirect_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.remote.jobs import Cluster

    seen: list[str] = []

    class Between(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}/stolen")
            self.end_headers()

        def log_message(self, *said: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, address)
    with pytest.raises(ClusterError, match="answers, but not as a Ray cluster does"):
        Cluster(Endpoint(address, "canary"))
    assert seen == ["/api/version"]
    seen.clear()
    with pytest.raises(ClusterError, match="no cluster answers"):
        Cluster(Endpoint("http://127.0.0.1:1", "canary"))
    server.shutdown()
    server.server_close()
    assert not seen


def test_the_verbs_serve_runs_of_this_host(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where, name = ["--runs", str(finished.folder.parent)], "pico"
    for arguments, code, said in (
        (["logs", name, *where], 0, "calibration 8  "),
        (["watch", name, *where], 0, "9/9 candidates"),
        (["fetch", name, "--out", "mine", *where], 0, "fetched mine"),
        (["fetch", name, "--out", "mine", *where], 2, "exists already"),
        (["status", "mine"], 0, "9 of 9"),
        (["stop", name, *where], 2, "nobody drives this run"),
        (["cancel", name, *where], 2, "nobody drives this run"),
        (["logs", "none", *where], 2, "no ledger at"),
        (["launch", "job.yaml", "--address", "auto"], 2, "no job file at"),
        (["status", name, "--address", "http://10.0.0.7"], 69, "nothing was sent"),
        (["cluster", "down"], 0, "no cluster of this host is running"),
    ):
        monkeypatch.setattr(sys, "argv", ["mergeopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        assert (ended.value.code or 0) == code and said in out.out + out.err, arguments


def test_a_status_from_afar_reads_as_one_of_here(
    finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = SimpleNamespace(
        url="http://far:8265",
        find=lambda name: SimpleNamespace(id="pico-1", name=name, runs="runs", status="SUCCEEDED"),
        send=lambda order: "answer",
        answer=lambda sent: json.loads(json.dumps(show.status(finished.results()))),
    )
    monkeypatch.setattr(remote, "_cluster", lambda address: there)
    results.status("pico", finished.folder.parent)
    here = capsys.readouterr().out.splitlines()
    results.status("pico", address="http://far:8265")
    far = capsys.readouterr().out.splitlines()
    (process,) = [line for line in far if "pico-1 on http://far:8265: SUCCEEDED" in line]
    assert [line.split() for line in far if line != process] == [line.split() for line in here]
    results.status("pico", address="http://far:8265", json_out=True)
    assert json.loads(capsys.readouterr().out)["process"] == "SUCCEEDED"


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind((head.LOOPBACK, 0))
        taken.listen()
        with pytest.raises(ClusterError, match="is taken; name another with --port"):
            head.up(taken.getsockname()[1])
    assert not head.down()


def test_an_old_record_of_a_head_ends_no_process_that_has_its_number_now(tmp_path: Path) -> None:
    head.folder().mkdir(parents=True)
    record = {"url": "http://x", "pid": os.getpid(), "began": 1.0, "files": str(tmp_path / "home")}
    (head.folder() / "head.json").write_text(json.dumps(record))
    assert head.running() is None and not head.down()
    assert (tmp_path / "home").is_dir()
