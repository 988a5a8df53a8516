"""What travels to a cluster and back, what is refused before it does, and how runs of this host are stopped."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import worlds
from filelock import FileLock
from program import Quiet, mergeopt, serving

from optimizer import Run
from optimizer.commands import cluster, driving, results
from optimizer.commands.refusal import refusals
from optimizer.doctor import ray_cluster
from optimizer.errors import ClusterError, JobError, RunError, RunLocked
from optimizer.output import hints, plain, show
from optimizer.record.copied import no_copy
from optimizer.record.files import write_new
from optimizer.record.ledger import Ledger
from optimizer.record.owner import began, owner, owning
from optimizer.record.results import Results
from optimizer.remote import control, following, head, jobs, orders, parcel, wire
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
    return worlds.searched(worlds.classification(tmp_path_factory.mktemp("world"), evaluations=9))


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
    write_new(path, "x", mode=0o600)
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
    lines = ["Ray says something", *wire.encode(io.BytesIO(content), "well"), "and something more"]
    assert wire.decode([line.encode() for line in lines], into := io.BytesIO()) == size
    assert (wire.answered("\n".join(lines)) or {})["note"] == "well"
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


def test_what_the_clusters_system_refuses_is_an_answer_too(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = Path(shutil.copytree(finished.folder, tmp_path / "runs" / "pico"))
    (torn / "splits.json").unlink()
    order_at(tmp_path / "order", monkeypatch, Order("fetch", "pico", str(tmp_path / "runs")))
    with pytest.raises(SystemExit) as ended:
        orders.main()
    found = wire.answered(capsys.readouterr().out)
    assert found is not None and ended.value.code == 2 == found["exit_code"]
    assert found["error"] == f"cannot use {torn / 'splits.json'}: No such file or directory"


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


def test_a_copy_says_what_it_is_of_is_not_driven_and_gives_way_to_a_later_one(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, copy = Path(shutil.copytree(finished.folder, tmp_path / "there" / "pico")), tmp_path / "runs" / "pico"
    with closing(Ledger.open(there / "ledger.db")) as ledger:
        ledger.set_meta("evaluations", 12)  # not finished

    def fetched(source: Path) -> None:
        parcel.copy_run(source, tmp_path / "sent")
        parcel.pack(tmp_path / "sent", tmp_path / "parcel")
        shutil.rmtree(tmp_path / "sent")
        parcel.unpack(tmp_path / "parcel", copy, run=("pico", "http://far:8265"))

    fetched(there)
    with pytest.raises(RunError, match=r"'mergeopt resume pico --address http://far:8265' goes on with it there"):
        Run(copy).search()
    assert not (copy / "driver.lock").exists()
    assert mergeopt("status", copy) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not finished: there 'mergeopt resume pico --address http://far:8265' goes on" in said
    assert "of pico http://far:8265, as of 2" in said and "9 of 12" in said
    (copy / "report.html").write_text("mine")
    with closing(Ledger.open(there / "ledger.db")) as ledger:
        ledger.set_meta("evaluations", 13)
    fetched(there)
    assert Results(copy).evaluations == 13 and (copy / "report.html").read_text() == "mine"
    with closing(Ledger.open(there / "ledger.db")) as ledger:
        ledger.set_meta("id", "of another run of that name")
    with pytest.raises(RunError, match="is no copy of this run; name another folder"):
        fetched(there)
    assert Results(copy).evaluations == 13 and [p.name for p in copy.parent.iterdir()] == ["pico"]


@pytest.mark.parametrize("text", ["", "{}", "[" * 9000, json.dumps({"folder": 1, "name": 2, "host": 3, "at": 4})])
def test_a_mark_that_cannot_be_read_marks_all_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(RunError, match="is a copy of"):
        no_copy(tmp_path)


def test_an_export_that_is_fetched_has_the_name_that_it_gets_and_says_that_it_was_verified(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(orders, "KEPT_SECONDS", 0)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *said: None)  # or this process would stay deaf
    order = Order("fetch", "pico", str(finished.folder.parent), what="export", out="mine")
    order_at(tmp_path / "order", monkeypatch, order)
    orders.main()
    said = capsys.readouterr().out.encode().splitlines()
    with (tmp_path / "parcel").open("wb") as archive:
        wire.decode(said, archive)
    parcel.unpack(tmp_path / "parcel", tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert '.from_pretrained("mine")' in card and '"export' not in card
    assert "its scores on reload are those of the ledger" in (wire.answered(said[-1].decode()) or {})["note"]


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "/tmp/out", "a/b", "a\0b", "a" * 256])
def test_an_exports_name_is_that_of_one_folder(name: str) -> None:
    with pytest.raises(ClusterError, match="that of one folder"):
        _ = Order("fetch", "pico", "runs", out=name).export_name


def test_what_the_clusters_side_says_names_the_run_and_no_folder_of_its_own(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = SimpleNamespace(
        **{"reached": None, "ended": False, "stopped": True, "answered": 5, "evaluations": 9},
    )
    for away, said in (
        (False, ["mergeopt resume /", "report /", "mergeopt front /"]),
        (True, ["'mergeopt resume pico --address ADDRESS' goes on", "'mergeopt fetch pico report --address ADDRESS'"]),
    ):
        with pytest.raises(SystemExit), hints.from_afar("pico") if away else nullcontext():
            show.print_front(finished.results())
            driving._say_how_it_ended(finished, cast(Any, search))
        out = " ".join(capsys.readouterr().out.split())
        assert (str(finished.folder) not in out) == away
        assert all(text in out for text in said if "front" not in text or "--all" in out), out
    shutil.copytree(finished.folder, tmp_path / "runs" / "pico")
    with closing(Ledger.open(tmp_path / "runs" / "pico" / "ledger.db")) as ledger:
        ledger.set_meta("evaluations", 12)
    order_at(tmp_path / "order", monkeypatch, Order("cancel", "pico", str(tmp_path / "runs")))
    with pytest.raises(SystemExit):
        orders.main()
    assert "'mergeopt resume pico --address ADDRESS' goes on" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "a\\..\\out", "folder/"])
def test_an_archive_that_leads_elsewhere_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "parcel", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ClusterError, match="which is refused"):
        parcel.unpack(tmp_path / "parcel", tmp_path / "in" / "made")
    assert list((tmp_path / "in").iterdir()) == []


def parcel_of(entries: dict[str, str]) -> bytes:
    with zipfile.ZipFile(into := io.BytesIO(), "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return into.getvalue()


WHOLE = parcel_of({"job.yaml": "content " * 9})


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b"no archive at all", WHOLE[:-30], WHOLE.replace(b"content ", b"another ", 1)),
        WHOLE.replace(b"PK\x03\x04", b"PK\x03\x05", 1),
        *(WHOLE.replace(mark, mark + added) for mark, added in ((b"PK\x01\x02", b"\xff\x03"),)),
        WHOLE[: WHOLE.index(b"PK\x01\x02") + 8] + b"\x01" + WHOLE[WHOLE.index(b"PK\x01\x02") + 9 :],  # encrypted
        WHOLE.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff", 1),  # of a version yet to come
        *(parcel_of(e) for e in ({"a": "x", "a/b": "y"}, {"a" * 300: "x"}, {"a\x1bb": "x"}, {"a\x1b]0;b": "x"})),
        parcel_of({f"{n}": "" for n in range(parcel.MOST_ENTRIES + 1)}),
    ],
    ids=str.split("empty none short crc magic offset encrypted version nested long escape title many"),
)
def test_a_parcel_that_is_damaged_or_made_to_do_harm_is_one_clear_error(sent: bytes, tmp_path: Path) -> None:
    (tmp_path / "parcel").write_bytes(sent)
    with pytest.raises(ClusterError, match="what the cluster sent") as refused:
        parcel.unpack(tmp_path / "parcel", tmp_path / "in" / "made")
    assert list((tmp_path / "in").iterdir()) == [] and "\x1b" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_of_a_run_only_its_own_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / "parcel").write_bytes(parcel_of({"job.yaml": "x", "driver.json": "y"}))
    with pytest.raises(ClusterError, match=r"an entry 'driver\.json', which is refused"):
        parcel.unpack(tmp_path / "parcel", tmp_path / "made", run=("pico", "http://far:8265"))
    assert not (tmp_path / "made").exists()


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
    seen: list[str] = []

    class Between(Quiet):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{port}/stolen")
            self.end_headers()

    with serving(Between) as port:
        address = f"http://127.0.0.1:{port}"
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, address)
        with pytest.raises(ClusterError, match="answers, but not as a Ray cluster does"):
            jobs.Cluster(Endpoint(address, "canary"))
        assert seen == ["/api/version"]
        seen.clear()
        with pytest.raises(ClusterError, match="no cluster answers"):
            jobs.Cluster(Endpoint("http://127.0.0.1:1", "canary"))
    assert not seen


def test_a_head_that_starts_is_asked_itself_and_shown_its_token_through_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied: list[str] = []

    class Proxy(Quiet):
        def do_GET(self) -> None:
            proxied.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    head.folder().mkdir(parents=True)
    head.token_file().write_text("canary")
    (tmp_path / "log").write_text("it ended\n")
    with serving(Proxy) as port, subprocess.Popen(["/bin/sleep", "0.2"]) as process:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(ClusterError, match="the cluster did not start: it ended"):
            head._await(head.Head("http://127.0.0.1:1", process.pid, 0.0, ""), process, tmp_path / "log")
    assert not proxied


def test_a_report_that_a_full_disk_takes_half_of_leaves_nothing_there(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fdopen = os.fdopen

    def opened(number: int, mode: str = "r", **how: Any) -> object:
        if mode != "w":
            return fdopen(number, mode, **how)
        Path(f"/proc/self/fd/{number}").write_text("half of it")
        os.close(number)
        return nullcontext(SimpleNamespace(write=full))

    out = tmp_path / "made" / "page.html"
    out.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", opened)
        assert mergeopt("report", finished.folder, "--out", out) == 74
    assert capsys.readouterr().err == f"error: cannot use {out}: No space left on device\n"
    assert list(out.parent.iterdir()) == []
    with pytest.raises(SystemExit), refusals(lambda text, code: print(code, text)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert capsys.readouterr().out == "74 cannot use the disk: No space left on device\n"


def test_the_verbs_serve_runs_of_this_host(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where, name = ["--runs", str(finished.folder.parent)], "pico"
    for arguments, code, said in (
        (["logs", name, *where], 0, "calibration 8  "),
        (["watch", name, *where], 0, "9/9 candidates"),
        (["fetch", name, "--out", "mine", *where], 0, "fetched mine"),
        (["fetch", name, "--out", "mine", *where], 0, "fetched mine"),  # what is there is an earlier copy
        (["fetch", name, "report", "--out", "mine", *where], 2, "mine"),
        (["fetch", name, "--out", str(finished.folder), *where], 2, "exists already"),
        (["resume", "mine"], 2, f"'mergeopt resume {finished.folder}' goes on with it there"),
        (["status", "mine"], 0, "9 of 9"),
        (["stop", name, *where], 0, "pico is over already: finished"),
        (["cancel", name, *where], 0, "pico is over already: finished"),
        (["logs", "none", *where], 2, "no ledger at"),
        (["launch", "job.yaml", "--address", "auto"], 2, "no job file at"),
        (["status", name, "--address", "http://10.0.0.7"], 69, "nothing was sent"),
        (["cluster", "down"], 0, "no cluster of this host is running"),
    ):
        ended, out = mergeopt(*arguments), capsys.readouterr()
        assert ended == code and said in out.out + out.err, arguments


def test_a_status_from_afar_reads_as_one_of_here(
    finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = SimpleNamespace(
        url="http://far:8265",
        find=lambda name, runs: SimpleNamespace(id="pico-1", name=name, runs="runs", status="SUCCEEDED"),
        send=lambda order: "answer",
        answer=lambda sent: json.loads(json.dumps(plain.status(finished.results()))),
    )
    monkeypatch.setattr(cluster, "reached", lambda address: there)
    results.status("pico", finished.folder.parent)
    here = capsys.readouterr().out.splitlines()
    results.status("pico", address="http://far:8265")
    far = capsys.readouterr().out.splitlines()
    (process,) = [line for line in far if "pico-1 on http://far:8265: SUCCEEDED" in line]
    assert [line.split() for line in far if line != process] == [line.split() for line in here]
    results.status("pico", address="http://far:8265", json_out=True)
    assert json.loads(capsys.readouterr().out)["process"] == "SUCCEEDED"


def test_a_run_from_afar_is_found_by_its_name_and_where_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Known(jobs.Cluster):
        url, _endpoint = "http://far:8265", Endpoint("http://far:8265")

        def __init__(self) -> None: ...

        def sent(self) -> list[jobs.Sent]:  # the latest first
            named = [("fetch-1", "fetch", "/mine"), ("pico-2", "resume", "/mine"), ("pico-1", "run", "runs")]
            return [jobs.Sent(*one[:2], "pico", one[2], "RUNNING", 0) for one in named]

        def stop(self, order: str) -> bool:
            return True

    monkeypatch.setattr(cluster, "reached", lambda address: Known())
    for given, found in (((), "pico-2"), (("--runs", "/mine"), "pico-2"), (("--runs", "runs"), "pico-1")):
        assert mergeopt("stop", "pico", "--address", "far", *given) == 0
        assert capsys.readouterr().out.startswith(f"{found} is stopping")
    assert mergeopt("stop", "pico", "--address", "far", "--runs", "/theirs") == 69
    assert "knows no run 'pico' in '/theirs'; it knows: none" in capsys.readouterr().err
    monkeypatch.setattr(Known, "send", lambda self, order: "pico-3")
    monkeypatch.setattr(Known, "answer", lambda self, order: {"folder": "/mine/\x1b[2J"})
    assert mergeopt("resume", "pico", "--address", "far") == 0
    assert capsys.readouterr().out == "run pico-3\nin /mine/�[2J on the cluster\n"


def test_orders_that_are_over_are_told_so_by_stop_cancel_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drove = jobs.Sent("pico-1", "run", "pico", "runs", "SUCCEEDED", 0)
    there = SimpleNamespace(
        url="http://far:8265",
        find=lambda name, runs: drove,
        state=lambda order: drove,
        stop=lambda order: False,
        sent=lambda: [drove, jobs.Sent("fetch-1", "fetch", "pico", "runs", "STOPPED", 0)],
    )
    monkeypatch.setattr(cluster, "reached", lambda address: there)
    for verb in ("stop", "cancel"):
        assert mergeopt(verb, "pico", "--address", "far") == 0
        assert capsys.readouterr().out == "pico-1 is over already: SUCCEEDED\n"
    drove = replace(drove, status="STOPPED")
    assert mergeopt("cancel", "pico", "--address", "far") == 0
    assert "STOPPED; 'mergeopt resume pico --address far' goes on" in capsys.readouterr().out
    assert mergeopt("cluster", "status", "--address", "far") == 0
    (fetch,) = [line for line in capsys.readouterr().out.splitlines() if "fetch-1" in line]
    assert " done " in fetch and "STOPPED" not in fetch


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind((head.LOOPBACK, 0))
        taken.listen()
        with pytest.raises(ClusterError, match="is taken; name another with --port"):
            head.up(taken.getsockname()[1])
    assert not head.down()


def test_of_two_that_start_a_cluster_at_once_one_is_told_to_wait_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, another = subprocess.Popen, subprocess.Popen(["/bin/sleep", "60"])
    monkeypatch.setattr(subprocess, "Popen", lambda *said, **how: start(["/bin/sleep", "60"]))
    seen: list[int] = []

    def meanwhile(made: head.Head, process: subprocess.Popen[bytes], log: Path) -> None:
        seen.append(process.pid)
        for command in (lambda: head.up(head._free_port()), head.down):
            with pytest.raises(ClusterError, match="is just being started or ended; try again"):
                command()
        assert head.running() == made and head.token_file().exists()
        if len(seen) == 1:
            record = {"url": "http://x", "pid": another.pid, "began": began(another.pid), "files": "/nowhere"}
            (head.folder() / "head.json").write_text(json.dumps(record))
            raise ClusterError("it does not start")

    monkeypatch.setattr(head, "_await", meanwhile)
    with pytest.raises(ClusterError, match="it does not start"):
        head.up(head._free_port())
    assert not psutil.pid_exists(seen[0]) and another.poll() is None
    assert not (head.folder() / "head.json").exists() and not head.token_file().exists()
    made = head.up(head._free_port())
    assert head.running() == made and head.down() and not psutil.pid_exists(made.pid) and not head.down()
    another.kill()
    another.wait()


def test_an_old_record_of_a_head_ends_no_process_that_has_its_number_now(tmp_path: Path) -> None:
    head.folder().mkdir(parents=True)
    record = {"url": "http://x", "pid": os.getpid(), "began": 1.0, "files": str(tmp_path / "home")}
    (head.folder() / "head.json").write_text(json.dumps(record))
    assert head.running() is None and not head.down()
    assert (tmp_path / "home").is_dir()


def test_a_head_and_a_driver_are_known_after_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head.folder().mkdir(parents=True)
    record = {"url": "http://x", "pid": os.getpid(), "began": began(os.getpid()), "files": str(tmp_path / "home")}
    (head.folder() / "head.json").write_text(json.dumps(record))
    (tmp_path / "ledger.db").touch()
    with owning(tmp_path):
        told = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: told(self) + 86400)
        assert head.running() is not None
        found = owner(tmp_path)
        assert found is not None and found.alive
