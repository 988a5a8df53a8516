"""What must be survived of a ledger's server: it goes and comes back, it stays away, and two who want to write."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import postgres
import pytest
import worlds

from evaluators.evaluator import Measure
from optimizer import Job, Run
from optimizer.answer import Answer, Failure, Try
from optimizer.driver import Question
from optimizer.errors import LedgerBusy, RunError, RunLocked
from optimizer.record import connection
from optimizer.record.ledger import Ledger
from optimizer.record.postgres import Postgres

if TYPE_CHECKING:
    import psycopg

TLS_ASKED = b"\0\0\0\x08\x04\xd2\x16\x2f"  # the first that PostgreSQL's protocol says to a server


@pytest.fixture
def ledger(tmp_path: Path, postgresql: postgres.Server) -> Iterator[Ledger]:
    made = Ledger.create(tmp_path / "ledger.db", {"name": "test"}, postgresql.url)
    yield made
    made.close()


def asked(ledger: Ledger, *numbers: int) -> None:
    ledger.asked(len(numbers), [Question(n, np.zeros(2)) for n in numbers], ["r"] * len(numbers))


def answer(number: int) -> Answer:
    return Answer(number, "calibration", {"a.accuracy": Measure(0.5, 0.1, 10)})


def test_a_server_that_comes_back_is_told_of_and_nothing_is_lost_or_written_twice(
    ledger: Ledger, postgresql: postgres.Server, caplog: pytest.LogCaptureFixture
) -> None:
    asked(ledger, 0, 1)
    postgresql.stop()
    postgresql.start()
    assert [a.number for a in ledger.answered([answer(0)])] == [0]
    assert "lost the connection" in caplog.text and "again" in caplog.text
    assert [a.number for a in ledger.answers()] == [0] and [q.number for q in ledger.pending()] == [1]


def test_an_answer_whose_commit_arrived_as_the_connection_went_is_new_and_there_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    asked(ledger, 0, 1)
    db = ledger._db
    assert isinstance(db, Postgres)
    commit = Postgres._transaction

    @contextlib.contextmanager
    def cut(self: Postgres) -> Iterator[None]:
        with commit(self):
            yield
        monkeypatch.setattr(Postgres, "_transaction", commit)
        self._db.close()
        raise psycopg.OperationalError("the connection went after the commit")

    monkeypatch.setattr(Postgres, "_transaction", cut)
    assert [a.number for a in ledger.answered([answer(0)])] == [0], "the search has not heard of it yet"
    assert [a.number for a in ledger.answered([answer(0), answer(1)])] == [1]
    assert [a.number for a in ledger.answers()] == [0, 1]
    monkeypatch.setattr(Postgres, "_transaction", cut)
    ledger.tried(1, "calibration", [Try("w", "infrastructure", "killed")], 1)
    assert len(ledger.tries()[1]) == 1, "an attempt is counted once too"


def lost(ledger: Ledger) -> psycopg.Connection[Any]:
    """The network is cut: gone for us, and its server goes on holding the connection, which is given."""
    import psycopg

    db = ledger._db
    assert isinstance(db, Postgres)
    held, db.connection.db = db.connection.db, psycopg.connect(db.url)
    db.connection.db.close()
    return held


def test_a_cut_network_is_outlived_though_the_server_holds_our_own_lock_still(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg

    asked(ledger, 0, 1)
    for number in (0, 1):  # once more: what was made anew is known by the same name
        held = lost(ledger)
        assert [a.number for a in ledger.answered([answer(number)])] == [number]
        with pytest.raises(psycopg.OperationalError):
            held.execute("SELECT 1")
    assert [a.number for a in ledger.answers()] == [0, 1] and "again" in caplog.text


def test_one_who_wrote_while_the_network_was_cut_is_told_from_ourselves(ledger: Ledger, tmp_path: Path) -> None:
    asked(ledger, 0, 1)
    lost(ledger).close()
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as other:
        other.answered([answer(0)])
    with pytest.raises(RunLocked, match=r"has been written by another process .* resume"):
        ledger.answered([answer(1)])
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as reader:
        assert [a.number for a in reader.answers()] == [0]


def test_a_server_that_stays_away_ends_with_code_75_and_no_answer_is_counted(
    ledger: Ledger, tmp_path: Path, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.5)
    asked(ledger, 0)
    postgresql.stop()
    try:
        with pytest.raises(LedgerBusy, match=r"cannot reach the ledger at postgresql.*then resume") as caught:
            ledger.answered([answer(0)])
        assert caught.value.exit_code == 75
        with pytest.raises(LedgerBusy, match="cannot reach"):
            Ledger.open(tmp_path / "ledger.db", readonly=True)
    finally:
        postgresql.start()
    assert [q.number for q in ledger.pending()] == [0]
    assert ledger.answered([answer(0)])


def test_two_who_write_are_refused_by_the_name_of_the_first_and_readers_are_not(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOCK_SECONDS", 0.2)
    with pytest.raises(RunLocked, match=r"being written by 'mergeopt \S+ \d+' since 20") as caught:
        Ledger.open(tmp_path / "ledger.db")
    assert caught.value.exit_code == 73
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as reader:
        assert reader.meta("name") == "test"
    ledger.close()
    Ledger.open(tmp_path / "ledger.db").close()


def test_what_no_text_of_a_server_can_hold_is_kept_in_words_it_can(ledger: Ledger) -> None:
    asked(ledger, 0)
    ledger.answered([Answer(0, "calibration", failure=Failure("error", "a\0b \x1b[31m \ud800 " + "x" * 9000))])
    failure = ledger.answers()[0].failure
    assert failure is not None and failure.reason.startswith("a�b �[31m � x") and len(failure.reason) < 2100


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{}", "does not say where a ledger is"),
        ('{"server": "file:///etc/passwd", "run": "000000000000000000000000"}', "expected postgresql://"),
        ('{"server": "postgresql://a@b/c", "run": "x; DROP TABLE a"}', "is no run of a server"),
        ('{"server": "postgresql://a:canary@b/c", "run": "000000000000000000000000"}', "holds a password"),
        ('{"server": "postgresql://a@b/c?passfile=/etc/shadow", "run": "0"}', "unknown parameter 'passfile'"),
        ('{"server": 3, "run": "0"}', "expected postgresql://"),
        ("[" * 5000, "does not say where a ledger is"),
        ("\xff", "does not say where a ledger is"),
    ],
)
def test_a_note_of_somebody_elses_is_taken_on_no_trust(tmp_path: Path, note: str, message: str) -> None:
    (tmp_path / "ledger.json").write_text(note, encoding="latin-1")
    with pytest.raises(RunError, match=message) as caught:
        Ledger.open(tmp_path / "ledger.db", readonly=True)
    assert "canary" not in str(caught.value)


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[tuple[int, bytearray]]:
    """A server that has no TLS and gives everybody this answer; its port, and all that it was sent."""
    heard = bytearray()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(4096):
                heard.extend(data)
                self.request.sendall(b"N" if data == TLS_ASKED else answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], heard
        server.shutdown()


def test_a_server_that_wants_the_password_in_the_clear_does_not_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary-of-a-password")
    with listening(b"R\0\0\0\x08\0\0\0\x03") as (port, heard):  # AuthenticationCleartextPassword
        url = f"postgresql://mergeopt@127.0.0.1:{port}/mergeopt"
        with pytest.raises(RunError, match="cannot use the ledger at postgresql://mergeopt@") as caught:
            Postgres.usable(url)
        assert "mergeopt" in heard.decode(errors="replace") and b"canary" not in heard
        assert "password" in str(caught.value) and "canary" not in str(caught.value)
        heard.clear()
        with pytest.raises(RunError, match="SSL"):
            Postgres.usable(f"{url}?sslmode=require")
        assert bytes(heard) == TLS_ASKED, "nothing is said to a server without TLS where the job asks for it"


def test_check_says_whether_a_server_would_take_a_run(postgresql: postgres.Server) -> None:
    assert "answers, and mergeopt may make schemas in postgres" in Postgres.usable(postgresql.url)
    import psycopg

    with psycopg.connect(postgresql.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE poor LOGIN")
    with pytest.raises(RunError, match="user poor may not make schemas in postgres; GRANT CREATE ON DATABASE"):
        Postgres.usable(postgresql.url.replace("mergeopt@", "poor@"))


def test_a_run_that_the_server_does_not_have_is_refused(tmp_path: Path, postgresql: postgres.Server) -> None:
    (tmp_path / "ledger.json").write_text(json.dumps({"server": postgresql.url, "run": "0" * 24}))
    with pytest.raises(RunError, match=r"has no run 0{24}; restore the database"):
        Ledger.open(tmp_path / "ledger.db", readonly=True)


def test_a_whole_run_on_a_server_is_that_of_a_file_and_its_name_is_free_when_it_cannot_start(
    tmp_path: Path, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = worlds.classification(tmp_path, evaluations=8)
    plain = Run.create(Job.load(file), tmp_path / "plain")
    plain.search()
    file.write_text(f"{file.read_text()}ledger: {postgresql.url}\n")
    run = Run.create(Job.load(file), tmp_path / "runs")
    assert not (run.folder / "ledger.db").exists()
    run.search(evaluations=5)
    again = Run(run.folder)
    again.search(evaluations=8)
    told, expected = again.results(), plain.results()
    assert [c.recipe for c in told.on_front] == [c.recipe for c in expected.on_front]
    assert {n: (dict(c.measures), dict(c.heldout)) for n, c in told.candidates.items()} == {
        n: (dict(c.measures), dict(c.heldout)) for n, c in expected.candidates.items()
    }
    assert not again.discard(), "what has answers is kept"
    empty = Run.create(Job.load(file), tmp_path / "others")
    assert empty.discard() and not empty.folder.exists()
