"""Who gets in at the service's door? Nobody by a foreign name, nobody writes without the token; names run nothing."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ledgers import Made
from served import TOKEN, Served, serving

from optimizer.errors import JobError
from optimizer.service import bodies
from optimizer.service.serving import serve, token, token_file

HOSTILE = (
    "=cmd|'/c calc'!A1",
    "<img src=x onerror=alert(1)>",
    "\x1b]0;title\x07",
    "a\u202eb",
    "'; DROP TABLE answers; --",
)
WRITES = {
    "/api/jobs/check": {"yaml": "{}"},
    "/api/jobs/draft": {"base": "b", "experts": {"a": "a"}},
    "/api/jobs": {"yaml": "{}", "name": "new"},
    "/api/runs/made/stop": {},
    "/api/runs/made/cancel": {},
    "/api/runs/made/resume": {},
    "/api/runs/made/exports": {"candidate": "best"},
}
READS = ("/api/version", "/api/runs", "/api/runs/made", "/api/runs/made/candidates", "/api/events", "/api/exports")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("guarded")
    made = Made(home / "runs" / "made")
    made.more(30)
    made.close()
    with serving(home / "runs") as served:
        yield served


def untouched(service: Served) -> bool:
    """Whether nothing was started."""
    return sorted(p.name for p in service.runs.iterdir()) == ["made"]


def test_the_table_of_writes_is_whole(service: Served) -> None:
    described = service.told("/api/openapi.json")["paths"]
    writes = {p.replace("{run}", "made") for p, methods in described.items() if set(methods) - {"get"}}
    assert writes == set(WRITES)


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "null"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1.evil.example:80"}, 403),
    ],
)
def test_nothing_is_changed_without_the_token_or_from_elsewhere(
    service: Served, path: str, headers: dict[str, str], status: int
) -> None:
    answer = service.ask(path, method="POST", json=WRITES[path], headers=headers)
    assert answer.status_code == status and list(answer.json()) == ["error"]
    assert untouched(service)


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_another_page_is_no_request(service: Served, path: str, kind: str) -> None:
    body = json.dumps(WRITES[path] or {"a": 1})
    answer = service.ask(path, method="POST", data=body, token=TOKEN, headers={"Content-Type": kind})
    assert answer.status_code == 400 and "JSON" in answer.json()["error"] and untouched(service)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_do_nothing(service: Served, method: str) -> None:
    assert service.ask("/api/runs/made", method=method).status_code == 401
    answer = service.ask("/api/runs/made", method=method, token=TOKEN)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil.example:8421", "0x7f000001", ""])
def test_nobody_reads_by_a_foreign_name(service: Served, path: str, host: str) -> None:
    answer = service.ask(path, headers={"Host": host}, token=TOKEN)
    assert answer.status_code == 403 and "mergeopt serve" in answer.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9000", "[::1]:8421"])
def test_this_host_reads_by_its_names(service: Served, host: str) -> None:
    assert service.ask("/api/version", headers={"Host": host}).status_code == 200


def test_two_hosts_are_none(service: Served) -> None:
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    connection.putrequest("GET", "/api/runs", skip_host=True)
    for host in (parts.netloc, "evil.example"):
        connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


def test_where_another_name_leads_here_reading_wants_the_token_too(service: Served, tmp_path: Path) -> None:
    with serving(tmp_path, names=("lab.example",)) as proxied:  # by a proxy of this very host
        for host in ("lab.example", "127.0.0.1"):
            assert proxied.ask("/api/runs", headers={"Host": host}).status_code == 401
            assert proxied.ask("/api/runs", headers={"Host": host}, token=TOKEN).status_code == 200


def test_a_page_of_elsewhere_makes_the_service_do_nothing(service: Served) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert service.ask("/api/runs", headers=elsewhere).status_code == 403
    assert service.ask("/", headers=elsewhere).status_code == 200, "a link to the page is followed"


def test_on_an_address_that_others_reach_reading_wants_the_token_too(service: Served, tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    made.close()
    with serving(tmp_path, host="0.0.0.0", names=("lab.example",)) as open_to_all:
        for path in READS:
            assert open_to_all.ask(path).status_code == 401
        assert open_to_all.told("/api/runs", token=TOKEN)["runs"]
        assert open_to_all.ask("/").status_code == 200, "the page itself says nothing of runs"
        told = {"token": TOKEN}
        assert open_to_all.ask("/api/runs", headers={"Host": "lab.example:8421"}, **told).status_code == 200
        assert open_to_all.ask("/api/runs", headers={"Host": "10.1.2.3"}, **told).status_code == 200
        assert open_to_all.ask("/api/runs", headers={"Host": "evil.example"}, **told).status_code == 403


@pytest.mark.parametrize("path", ["/", "/plotly.js", "/api/runs", "/api/nothing", "/api/runs/made/table.csv"])
def test_a_browser_is_told_to_run_nothing_else(service: Served, path: str) -> None:
    said = service.ask(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in said["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == "'self'" and policy["connect-src"] == "'self'"
    assert "'unsafe-inline'" not in said["content-security-policy"] and "http" not in said["content-security-policy"]
    assert said["x-content-type-options"] == "nosniff" and said["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in said


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".", "../made", "..%2fmade", "%2e%2e", "%2fetc", "made%00", "made%2f..", ".service", "a" * 65),
        *("made/../../made", "-made", "made\\", "%0amade", "~", "linked"),
    ],
)
@pytest.mark.parametrize("rest", ["", "/candidates", "/job", "/log", "/events", "/table.csv"])
def test_no_name_leads_out_of_the_runs(service: Served, tmp_path: Path, name: str, rest: str) -> None:
    outside = Made(tmp_path / "outside")
    outside.close()
    link = service.runs / "linked"
    link.symlink_to(outside.folder)
    try:
        parts = urlsplit(service.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
        connection.request(
            "GET", f"/api/runs/{name}{rest}", headers={"Host": parts.netloc}
        )  # as it is: nothing is mended
        answer = connection.getresponse()
        assert answer.status in (400, 404), answer.read()
        connection.close()
        assert service.ask(f"/api/runs/{name}/stop", method="POST", token=TOKEN).status_code in (404, 405)
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "name", ["..", "../made", "/etc", "", ".hidden", "a b", "--allow-code", "a\0b", "x" * 65, "made"]
)
def test_no_search_is_started_under_a_name_that_is_none_or_taken(service: Served, name: str) -> None:
    yaml = (service.runs / "made" / "job.yaml").read_text()
    answer = service.ask("/api/jobs", method="POST", token=TOKEN, json={"yaml": yaml, "name": name})
    assert answer.status_code in (409, 422) and untouched(service)


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"candidate": "../x"}, 404),
        ({"candidate": "best", "name": "../x"}, 422),
        ({"candidate": "best", "name": "/tmp/x"}, 422),
        ({"candidate": "best", "name": "--lora"}, 422),
        ({"candidate": "29", "name": ""}, 422),
        ({"candidate": "best", "out": "/tmp/x"}, 422),
    ],
)
def test_no_export_leaves_its_folder(service: Served, wanted: dict[str, str], status: int) -> None:
    answer = service.ask("/api/runs/made/exports", method="POST", token=TOKEN, json=wanted)
    assert answer.status_code == status and untouched(service)


def test_a_ledger_that_is_a_link_is_nobodys(tmp_path: Path) -> None:
    victim = Made(tmp_path / "elsewhere")
    victim.close()
    (tmp_path / "runs" / "evil").mkdir(parents=True)
    (home,) = [p for p in (tmp_path / "elsewhere").rglob("ledger.db")]
    (tmp_path / "runs" / "evil" / "ledger.db").symlink_to(home)
    with serving(tmp_path / "runs") as served:
        assert served.ask("/api/runs/evil").status_code == 404
        assert (
            served.ask("/api/runs/evil/resume", method="POST", token=TOKEN, json={"evaluations": 99}).status_code == 404
        )


def test_an_exports_folder_that_is_a_link_is_not_followed(service: Served, tmp_path: Path) -> None:
    link = service.runs / "made" / "exports"
    link.symlink_to(tmp_path)
    try:
        answer = service.ask("/api/runs/made/exports", method="POST", token=TOKEN, json={"candidate": "best"})
        assert answer.status_code == 409 and "link" in answer.json()["error"] and untouched(service)
    finally:
        link.unlink()


def test_a_job_that_wants_more_than_it_may_is_refused(service: Served) -> None:
    said = {
        "code": "name: x\nmodels: !!python/object/apply:os.system [id]\n",
        "alias": "a: &a [1]\nb: *a\n",
        "unknown": "allow_code: true\n",
    }
    for name, yaml in said.items():
        found = service.done("/api/jobs/check", yaml=yaml)
        assert not found["ok"] and found["problems"] and found["plan"] is None, name
    large = service.ask("/api/jobs/check", method="POST", token=TOKEN, json={"yaml": "#" * 1_000_001})
    assert large.status_code == 422 and "1000000" in large.json()["error"]
    long = service.ask("/api/jobs/check", method="POST", token=TOKEN, json={"yaml": "x" * 3_000_000})
    assert long.status_code == 413 and "2097152 bytes" in long.json()["error"]


def test_a_body_that_does_not_say_how_long_it_is_has_an_end(service: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    headers = {"Content-Type": "application/json"}
    answer = service.ask("/api/jobs/check", method="POST", token=TOKEN, data=endless(), headers=headers)
    assert answer.status_code == 413 and "2097152 bytes" in answer.json()["error"] and untouched(service)


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(
    ("length", "begun"),
    [("Content-Length: 10", b""), ("Content-Length: 10", b'{"yaml"'), ("Transfer-Encoding: chunked", b"1\r\n{\r\n")],
)
def test_a_body_that_never_comes_is_not_waited_for(
    service: Served, method: str, length: str, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    parts = urlsplit(service.url)
    path = "/api/jobs/check" if method == "POST" else "/api/version"
    lines = (f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", f"Authorization: Bearer {TOKEN}", length)
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + begun)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # until the service closes it
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.split()[1] == b"408" and "0.3 s" in json.loads(body)["error"] and untouched(service)


def test_no_request_may_ask_for_code(service: Served) -> None:
    schemas = service.told("/api/openapi.json")["components"]["schemas"]
    assert not [name for name, s in schemas.items() if any("code" in field for field in s.get("properties", {}))]


def test_names_of_others_are_text_in_every_answer(tmp_path: Path) -> None:
    made = Made(tmp_path / "hostile")
    made.more(20)
    names = iter(HOSTILE * 20)
    for number in range(2, 20):
        made.ledger._db.execute("UPDATE questions SET stage = ? WHERE number = ?", (next(names), number))
        made.ledger._db.execute("UPDATE answers SET worker = ? WHERE number = ?", (next(names), number))
    made.close()
    with serving(tmp_path) as service:
        for path in ("", "/candidates", "/candidates/3", "/log", "/curve"):
            answer = service.ask(f"/api/runs/hostile{path}")
            assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
            json.loads(answer.content)
        table = service.ask("/api/runs/hostile/table.csv")
        cells = [cell for row in csv.reader(io.StringIO(table.text)) for cell in row]
        assert any(cell.startswith("'=cmd") for cell in cells) and not any(
            cell.startswith(("=", "@")) for cell in cells
        )


@pytest.mark.parametrize("value", ["'text'", "x'00ff'", "9e999"])
@pytest.mark.parametrize(
    "column", ["measures.value", "answers.seconds", "questions.point", "answers.event", "meta.value"]
)
def test_a_ledger_of_another_is_a_line_that_says_what_is_wrong(tmp_path: Path, column: str, value: str) -> None:
    made = Made(tmp_path / "damaged")
    made.more(8)
    table, name = column.split(".")
    one = (
        "WHERE rowid = 4"
        if table in ("answers", "questions")
        else "WHERE key = 'objectives'"
        if table == "meta"
        else ""
    )
    made.ledger._db.execute(f"UPDATE {table} SET {name} = {value} {one}")
    made.close()
    other = Made(tmp_path / "whole")
    other.close()
    with serving(tmp_path) as service:
        lines = {line["name"]: line for line in service.told("/api/runs")["runs"]}
        assert lines["whole"]["error"] is None
        answer = service.ask("/api/runs/damaged/candidates")
        assert answer.status_code in (200, 409)
        assert (lines["damaged"]["error"] is None) == (answer.status_code == 200)


def test_the_token_is_new_each_time_and_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.umask(0)
    try:
        with token(8421) as first:
            file = token_file(8421)
            assert file.read_text() == first and len(first) >= 32
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert not file.exists()
    finally:
        os.umask(before)
    with token(8421) as second:
        assert second != first


def test_a_port_that_is_taken_is_said(service: Served, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="name another --port"):
        serve(tmp_path, "127.0.0.1", urlsplit(service.url).port or 0, (), False, print)
