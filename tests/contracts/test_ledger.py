"""What a ledger owes: order kept to the bit, an answer counted once and at once, readers never blocked."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, Told, Try
from optimizer.driver import Items, Question, reference
from optimizer.errors import LedgerBusy, RunError
from optimizer.record import sqlite
from optimizer.record.ledger import Ask, Ledger, Tell


@pytest.fixture(params=["file", "server"])
def server(request: pytest.FixtureRequest) -> str | None:
    """Where the record lies: the URL of a server, None for a file of the run's own."""
    return request.getfixturevalue("postgresql").url if request.param == "server" else None


@pytest.fixture
def ledger(tmp_path: Path, server: str | None) -> Iterator[Ledger]:
    made = Ledger.create(tmp_path / "ledger.db", {"name": "test"}, server)
    yield made
    made.close()


@pytest.fixture
def in_file(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.db", {"name": "test"})


def reading(folder: Path) -> contextlib.closing[Ledger]:
    """The ledger as another process sees it, closed afterwards."""
    return contextlib.closing(Ledger.open(folder / "ledger.db", readonly=True))


def question(number: int, split: str = "calibration") -> Question:
    point = np.random.default_rng(number).normal(size=5)
    return Question(number, point, items=Items(split), stage=f"stage {number}")


def answer(number: int, value: float = 0.5, split: str = "calibration") -> Answer:
    measures = {"a.accuracy": Measure(value, 0.1, 10)}
    return Answer(number, split, measures, {"a.accuracy": np.arange(10, dtype=np.float32)}, seconds=1.5, worker="w")


def read(ledger: Ledger) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for event in ledger.history():
        if isinstance(event, Ask):
            found.append(
                ("ask", (event.requested, tuple((q.number, q.point.tobytes(), q.stage) for q in event.questions)))
            )
        else:
            found.append(("tell", (event.answer.number, event.answer.failure, dict(event.answer.measures))))
    return found


def test_what_is_asked_again_is_pending_after_what_was_asked_before(ledger: Ledger) -> None:
    again = question(10**9)
    ledger.asked(2, [question(0), question(1)], ["r0", "r1"])
    failed = Answer(0, "calibration", failure=Failure("timeout", "gone"), worker="w")
    unseen = Answer(1, "heldout", failure=Failure("timeout", "gone"), worker="w")
    ledger.asked(0, [question(1, "heldout")], ["r1"])
    ledger.answered([failed, unseen])
    ledger.asked_again([again], ["r0"])
    ledger.asked(1, [question(2)], ["r2"])
    assert [q.number for q in ledger.pending()] == [1, 10**9, 2], "by place, and within one ask by number"
    assert [q.number for q in ledger.pending("heldout")] == [1]
    assert ledger.tries("heldout") == {1: [Try("w", "timeout", "gone")]}
    assert [a.number for a in ledger.answers()] == [0], "its driver has heard of it"
    before = read(ledger)
    ledger.asked_again([], [])
    ledger.answered([answer(2)])
    assert read(ledger) == [*before, ("tell", (2, None, dict(answer(2).measures)))]


def test_history_is_the_order_of_asks_and_tells_to_the_bit(ledger: Ledger, tmp_path: Path) -> None:
    ledger.asked(4, [question(0), question(1)], ["r0", "r1"])
    ledger.answered([answer(1)])
    ledger.asked(1, [question(2)], ["r2"])
    ledger.answered([Answer(2, "calibration", failure=Failure("nonfinite", "NaN")), answer(0)])
    expected = [
        ("ask", (4, tuple((i, question(i).point.tobytes(), f"stage {i}") for i in (0, 1)))),
        ("tell", (1, None, {"a.accuracy": Measure(0.5, 0.1, 10)})),
        ("ask", (1, ((2, question(2).point.tobytes(), "stage 2"),))),
        ("tell", (2, Failure("nonfinite", "NaN"), {})),
        ("tell", (0, None, {"a.accuracy": Measure(0.5, 0.1, 10)})),
    ]
    assert read(ledger) == expected
    ledger.close()
    with reading(tmp_path) as reader:
        assert read(reader) == expected


def test_what_was_answered_is_there_for_another_process_at_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.asked(1, [question(0)], ["r0"])
    ledger.answered([answer(0)])
    with reading(tmp_path) as reader:
        assert [a.number for a in reader.answers()] == [0]


def test_pending_is_what_was_asked_and_not_answered(ledger: Ledger) -> None:
    ledger.asked(2, [question(0), question(1)], ["r0", "r1"])
    ledger.asked(0, [question(0, "heldout")], ["r0"])
    ledger.answered([answer(0)])
    assert [q.number for q in ledger.pending()] == [1]
    assert [q.number for q in ledger.pending("heldout")] == [0]


def test_item_values_come_back_to_the_bit(ledger: Ledger) -> None:
    ledger.asked(1, [question(0)], ["r0"])
    ledger.answered([answer(0)])
    assert np.array_equal(ledger.item_values(0, "calibration")["a.accuracy"], np.arange(10, dtype=np.float32))


def test_the_same_answer_again_is_ignored_and_a_different_one_refused(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.asked(1, [question(0)], ["r0"])
    assert len(ledger.answered([answer(0, 0.5)])) == 1
    assert ledger.answered([answer(0, 0.5)]) == []
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert ledger.answered([answer(0, 0.9)]) == []
    assert "answered twice" in caplog.text
    assert ledger.answers()[0].measures["a.accuracy"].value == 0.5


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.1, 0.2])), max_size=20))
def test_the_first_answer_wins_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, server: str | None, order: list[tuple[int, float]]
) -> None:
    ledger = Ledger.create(tmp_path_factory.mktemp("l") / "ledger.db", {}, server)
    ledger.asked(6, [question(i) for i in range(6)], ["r"] * 6)
    first: dict[int, float] = {}
    for number, value in order:
        first.setdefault(number, value)
        ledger.answered([answer(number, value)])
    assert {a.number: a.measures["a.accuracy"].value for a in ledger.answers()} == first
    assert [e.answer.number for e in ledger.history() if isinstance(e, Tell)] == list(first)
    ledger.close()


def test_a_reader_sees_the_ledger_while_it_is_written(ledger: Ledger, tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        with reader.snapshot():
            assert reader.answers() == []
            ledger.asked(1, [question(0)], ["r0"])
            ledger.answered([answer(0)])
            assert reader.answers() == [] == reader.questions(), "all that is read is of one moment"
        assert [a.number for a in reader.answers()] == [0]
        with pytest.raises(RunError, match=r"read-?only"):
            reader.set_meta("name", "other")


def test_of_what_is_answered_while_it_is_read_no_half_is_seen(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.asked(2, [question(0), question(1)], ["r0", "r1"])
    ledger.answered([answer(0)])
    with reading(tmp_path) as reader:
        execute = reader._db.execute

        def meanwhile(*statement: Any) -> Any:
            found = execute(*statement)
            ledger.answered([answer(1)])
            return found

        monkeypatch.setattr(reader._db, "execute", meanwhile)
        assert all(a.measures for a in reader.answers())


def test_a_locked_ledger_is_waited_for_aloud_and_then_told_with_exit_code_75(
    in_file: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = in_file
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite, "PATIENCE_SECONDS", 1.2)
    start = time.monotonic()
    with pytest.raises(LedgerBusy, match="locked by another process") as caught, caplog.at_level(logging.WARNING):
        ledger.asked(1, [question(0)], ["r0"])
    assert caught.value.exit_code == 75 and time.monotonic() - start > 1.2
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/ledger.db is locked by another process; waiting up to 1.2 s for it"
    ], "said once, while it waits"
    other.execute("ROLLBACK")
    ledger.asked(1, [question(0)], ["r0"])
    assert len(ledger.questions()) == 1


def test_a_missing_a_foreign_and_an_existing_ledger_are_refused(
    ledger: Ledger, tmp_path: Path, server: str | None
) -> None:
    with pytest.raises(RunError, match="no ledger at"):
        Ledger.open(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("this is not a database, " * 100)
    with pytest.raises(RunError, match="not a ledger"):
        Ledger.open(tmp_path / "text.db")
    with pytest.raises(RunError, match="exists already"):
        Ledger.create(tmp_path / "ledger.db", {}, server)


def test_a_ledger_that_is_removed_is_gone_and_its_name_free(ledger: Ledger, tmp_path: Path, server: str | None) -> None:
    ledger.close()
    Ledger.remove(tmp_path / "ledger.db")
    Ledger.remove(tmp_path / "ledger.db")
    with pytest.raises(RunError, match="no ledger at"):
        Ledger.open(tmp_path / "ledger.db")
    again = Ledger.create(tmp_path / "ledger.db", {"name": "again"}, server)
    assert again.meta("name") == "again" and not again.questions()
    again.close()


def test_gradients_are_kept_to_the_bit_in_the_order_of_asks_and_tells(ledger: Ledger) -> None:
    asked = Question(1, np.zeros(5), "gradients", Items("train", batch=16, draw=3), "step 3")
    derivatives = np.random.default_rng(0).normal(size=(2, 5))
    told = Answer(1, "train", {"a.training_loss": Measure(0.7, 0.0, 16)}, gradient=derivatives)
    ledger.asked(2, [question(0), asked], ["r0", "r1"])
    assert [q.number for q in ledger.pending("calibration", "train")] == [0, 1]
    ledger.answered([told])
    ledger.answered([answer(0)])
    asks, first, second = ledger.history()
    assert isinstance(asks, Ask) and isinstance(first, Tell) and isinstance(second, Tell)
    kept = asks.questions[1]
    assert (kept.wants, kept.items, kept.stage) == ("gradients", Items("train", 16, 3), "step 3")
    assert first.answer.gradient is not None and first.answer.gradient.tobytes() == derivatives.tobytes()
    assert first.answer.agrees(told) and second.answer.gradient is None
    assert not ledger.pending("calibration", "train")
    assert [q.number for q in ledger.questions()] == [0], "a gradient is no candidate"


def test_another_gradient_for_an_answered_question_is_refused(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.asked(1, [Question(0, np.zeros(2), "gradient", Items("train"))], ["r0"])
    told = Answer(0, "train", {}, gradient=np.ones((1, 2)))
    assert ledger.answered([told]) and not ledger.answered([told])
    assert not caplog.records
    ledger.answered([Answer(0, "train", {}, gradient=np.zeros((1, 2)))])
    assert "answered twice and differently" in caplog.text


def test_a_value_is_kept_under_any_key_and_read_with_something_instead(ledger: Ledger) -> None:
    assert ledger.meta("spent", None) is None
    for hours in (1.5, 2.5):
        ledger.set_meta("spent", {"hours": hours})
    assert ledger.meta("spent") == {"hours": 2.5}
    with pytest.raises(KeyError):
        ledger.meta("nothing")


def test_a_standard_error_that_is_not_known_is_none_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.asked(1, [question(0)], ["r0"])
    told = Answer(0, "calibration", {"a.accuracy": Measure(0.5, None, 10)})
    assert ledger.answered([told]) and not ledger.answered([told])
    with reading(tmp_path) as reader:
        (kept,) = reader.answers()
    assert kept.agrees(told)


def test_attempts_that_gave_no_answer_are_kept_in_their_order(ledger: Ledger, tmp_path: Path) -> None:
    ledger.asked(2, [question(0), question(1)], ["r0", "r1"])
    killed, died, slow = (
        Try("", "infrastructure", "killed"),
        Try("w1", "infrastructure", "died"),
        Try("w2", "timeout", ""),
    )
    ledger.tried(0, "calibration", [killed], 1)
    told = Answer(0, "calibration", failure=Failure("timeout", "slow"), worker="w3", attempts=4, tries=[died, slow])
    ledger.answered([told, answer(1)])
    with reading(tmp_path) as reader:
        assert reader.tries() == {0: [killed, died, slow]} and reader.tries("heldout") == {}


BEFORE = {
    2: """
CREATE TABLE old (
    number INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL,
    value REAL NOT NULL, stderr REAL NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (number, split, metric)
) WITHOUT ROWID;
INSERT INTO old SELECT * FROM measures; DROP TABLE measures; ALTER TABLE old RENAME TO measures;
""",
    3: "",
    4: "",
}
LATER = {"copies": 4, "tries": 4, "shares": 5, "estimates": 5}  # tables, and the version that brought them


@pytest.mark.parametrize("version", BEFORE)
def test_a_ledger_of_an_earlier_version_is_read_and_goes_on(in_file: Ledger, tmp_path: Path, version: int) -> None:
    ledger = in_file
    ledger.asked(2, [question(0), question(1)], ["r0", "r1"])
    ledger.answered([answer(0)])
    ledger.close()
    path = tmp_path / "ledger.db"
    dropped = " ".join(f"DROP TABLE {name};" for name, since in LATER.items() if version < since)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            f"BEGIN; {BEFORE[version]} {dropped} UPDATE meta SET value = '{version}' WHERE key = 'version'; COMMIT;"
        )
    reader = Ledger.open(path, readonly=True)
    assert reader.meta("version") == version and reader.answers()[0].agrees(answer(0)) and reader.tries() == {}
    assert reader.meta("references", []) == [] and reader.answers(references=True) == []
    reader.close()
    again = Ledger.open(path)
    told = Answer(1, "calibration", {"a.accuracy": Measure(0.5, None, 10)})
    again.answered([told])
    assert again.meta("version") == 5 and [a.measures for a in again.answers()] == [answer(0).measures, told.measures]
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE meta SET value = '9' WHERE key = 'version'")
        raw.commit()
    again.close()
    with pytest.raises(RunError, match="version 9, this program reads 2 to 5; update mergeopt") as refused:
        Ledger.open(path)
    assert refused.tb and not [f for f in psutil.Process().open_files() if f.path == str(path)], "nothing is left open"


def test_estimates_are_kept_with_the_share_of_items_that_they_are_of(ledger: Ledger) -> None:
    steps = [Told(0.1, {"a.accuracy": (0.4, 0.2)}), Told(0.25, {"a.accuracy": (0.5, 0.1)})]
    partly = replace(answer(0), share=0.25, told=steps)
    whole = replace(answer(1), told=steps[:1])
    ledger.asked(3, [question(n) for n in range(3)], ["r0", "r1", "r2"])
    ledger.answered([partly, whole, answer(2)])
    assert [(a.share, a.whole, list(a.told)) for a in ledger.answers()] == [
        (0.25, False, steps),
        (1.0, True, steps[:1]),
        (1.0, True, []),
    ]


def test_references_are_kept_apart_from_what_a_driver_asked(ledger: Ledger, tmp_path: Path) -> None:
    asked = reference(1, "spam", "calibration")
    ledger.asked(0, [asked, reference(1, "spam", "heldout")], ["h1", "h1"])
    ledger.asked(1, [question(0)], ["r0"])
    ledger.answered([answer(asked.number, 0.7), answer(0)])
    with reading(tmp_path) as reader:
        assert [type(event) for event in reader.history()] == [Ask, Tell]
        assert [a.number for a in reader.answers()] == [0] and [q.number for q in reader.questions()] == [0]
        (kept,) = reader.questions(references=True)
        assert kept.model == "spam" and kept.number == asked.number and len(kept.point) == 0
        assert reader.answers(references=True)[0].agrees(answer(asked.number, 0.7))
        assert [q.model for q in reader.pending("heldout", references=True)] == ["spam"]
        assert reader.pending() == [] and reader.pending("heldout") == [] and reader.times()[0][0] == 0


def test_a_copy_says_whose_answer_it_is_and_has_its_item_values(ledger: Ledger, tmp_path: Path) -> None:
    ledger.asked(2, [question(0), question(1)], ["r", "r"])
    copy = Answer(1, "calibration", answer(0).measures, attempts=0, of=0)
    assert len(ledger.answered([answer(0), copy])) == 2 and ledger.answered([copy]) == []
    with reading(tmp_path) as reader:
        assert [a.of for a in reader.answers()] == [None, 0]
        assert np.array_equal(
            reader.item_values(1, "calibration")["a.accuracy"], reader.item_values(0, "calibration")["a.accuracy"]
        )
