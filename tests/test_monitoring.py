"""What can be seen of a search from outside: metrics on a port, a log of JSON lines, and nothing that is secret."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest
import worlds
from program import mergeopt

from optimizer.answer import Answer, Failure
from optimizer.errors import JobError
from optimizer.output import logs
from optimizer.wording import printable, redacted, shown

CANARY = "canary" + "0123456789" * 3  # a secret of the environment, looked for in all that a run leaves


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("at https://user:s3cret@host/x", "https://user:***@host/x", "s3cret"),
        ("postgresql://me:a@b/c:d@host:5432/db", "postgresql://me:***@host:5432/db", "a@b"),
        ("https://abcdefghijklmnopqrst@host/x", "https://***@host/x", "abcdefg"),
        ("GET /x?token=s3cret&a=1", "/x?token=***&a=1", "s3cret"),
        ("https://s3/x?X-Amz-Signature=s3cret&b", "X-Amz-Signature=***&b", "s3cret"),
        ("host=h password=s3cret user=u", "password=*** user=u", "s3cret"),
        ("Authorization: Bearer s3cret.s3cret", "Bearer ***", "s3cret"),
        ("key hf_abcdefghijklmnopqrstuvwx here", "key *** here", "hf_abc"),
        ("https://host:8080/a/b", "https://host:8080/a/b", "***"),
        ("postgresql://me@host/db and me@example.org", "postgresql://me@host/db and me@example.org", "***"),
        ("the token=abc", "token=***", "abc"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text: str, kept: str, gone: str) -> None:
    assert kept in redacted(text) and gone not in redacted(text)


def test_what_is_shown_is_printable_and_has_an_end() -> None:
    assert printable("a\x1b[2Jb\x07\u202ec\nd") == "a�[2Jb��c\nd"
    assert shown("x" * 5000) == "x" * 2000 + "…"
    assert "s3cret" not in shown("x" * 1990 + " https://u:s3cret@h/"), "cut after it is redacted"


def test_a_line_of_the_log_is_one_json_object_whatever_is_in_it() -> None:
    out = io.StringIO()
    failed = Answer(3, "calibration", failure=Failure("error", 'a\n\x1b]0;"b\u2028https://u:s3cret@h'), worker="w")
    before = logging.getLogger("optimizer").handlers[:]
    with logs.to(out, as_json=True):
        logs.answered(failed)
        try:
            raise ValueError("https://u:s3cret@h")
        except ValueError:
            logging.getLogger("evaluators.x").exception("it broke")
    assert logging.getLogger("optimizer").handlers == before
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["candidate"], first["outcome"], first["level"], first["worker"]) == (3, "error", "INFO", "w")
    assert first["reason"].startswith("a\n�]0;") and "\x1b" not in first["message"]
    assert "Traceback" in second["exception"] and second["message"] == "it broke"
    assert "s3cret" not in out.getvalue()


def test_without_json_only_warnings_are_told_and_they_are_printable() -> None:
    out = io.StringIO()
    with logs.to(out):
        logs.answered(Answer(0, "calibration"))
        logging.getLogger("searchspaces.x").warning("model \x1b[31m%s", "https://u:s3cret@h")
    assert out.getvalue() == "warning: model �[31mhttps://u:***@h\n"


def test_a_run_is_watched_while_it_goes_and_leaves_no_secret_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = pytest.importorskip("optimizer.output.metrics")
    pytest.importorskip("prometheus_client", reason="--metrics-port needs the extra 'metrics'")
    for name in ("HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    worlds.classification(tmp_path, evaluations=7)
    capsys.readouterr()  # what making the models says
    monkeypatch.chdir(tmp_path)
    pages: list[str] = []

    class Watched(metrics.Metrics):  # type: ignore[misc,name-defined]
        def on_answer(self, search: object, answer: object) -> None:
            super().on_answer(search, answer)
            with urlopen(self.address, timeout=10) as page:
                pages.append(page.read().decode())

    monkeypatch.setattr(metrics, "Metrics", Watched)
    code = mergeopt("run", "job.yaml", "--metrics-port", "0", "--log-json")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert any('mergeopt_candidates{run="pico"} 3.0' in page for page in pages)  # references are answered between
    assert 'mergeopt_best{objective="spam.accuracy",run="pico"}' in pages[-1]
    assert 'mergeopt_answers_total{kind="scores",outcome="scored",run="pico",split="heldout"}' in pages[-1]
    lines = [json.loads(line) for line in said.err.splitlines()]  # all of them
    told = [line["message"] for line in lines]
    assert "reading base" in told and any(text.startswith("metrics at http://127.0.0.1:") for text in told)
    scored = [line for line in lines if line["logger"] == "optimizer.candidates"]
    numbers = [line["candidate"] for line in scored if line["split"] == "calibration"]
    assert [n for n in numbers if n >= 0] == list(range(7))  # a reference's is below 0
    assert all(line["measures"].keys() >= {"spam.accuracy"} and line["outcome"] == "scored" for line in scored)
    assert len(scored) == len(pages)
    left = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert {"job.yaml", "ledger.db", "report.html"} <= {p.name for p in left}
    assert CANARY not in said.out + said.err and not [p for p in left if CANARY.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "no job file at none.yaml"),
        (["run", "job.yaml", "--runs", "taken"], "cannot use "),  # what the system says, and not mergeopt
    ],
)
def test_a_refusal_is_a_line_of_the_json_log_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    worlds.classification(tmp_path)
    (tmp_path / "taken").touch()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert mergeopt(*arguments, "--log-json") == 2
    *_, line = map(json.loads, capsys.readouterr().err.splitlines())
    assert line["level"] == "ERROR" and message in line["message"]


def test_metrics_are_for_who_asks_by_name_and_a_port_that_is_taken_is_one_clear_error() -> None:
    pytest.importorskip("prometheus_client", reason="--metrics-port needs the extra 'metrics'")
    from optimizer.output.metrics import Metrics

    metrics = Metrics("pico", 0)
    for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("rebound.example", 421)):
        asked = http.client.HTTPConnection("127.0.0.1", int(metrics.address.split(":")[2].split("/")[0]), timeout=10)
        asked.request("GET", "/metrics", headers={"Host": host})
        answer = asked.getresponse()
        assert answer.status == status and (b"mergeopt_" in answer.read()) == (status == 200)
        asked.close()
    metrics.close()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(JobError, match=f"--metrics-port: port {port} of 127.0.0.1 is taken; name another, or 0"):
            Metrics("pico", port)
