"""What a driver's end costs: killed at any write, locked out of its ledger, out of budget, its clock a day off."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from simulated import Bowl
from test_search import OBJECTIVES, Box

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure, Told, Try
from optimizer.driver import AGAIN, Driver, Outcome, Question
from optimizer.drivers import DRIVERS
from optimizer.drivers.anchors import Anchored
from optimizer.drivers.scalarised import Scalarised
from optimizer.errors import LedgerBusy, RunLocked
from optimizer.executors.executor import Executor, Inline
from optimizer.record import sqlite
from optimizer.record.attempt import Attempt
from optimizer.record.ledger import Ledger
from optimizer.record.spool import Spool
from optimizer.record.sqlite import SQLite
from optimizer.searching import known
from optimizer.searching.budget import Limits, Meter
from optimizer.searching.search import Search


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def driver(name: str = "cma") -> Driver:
    kind = DRIVERS[name].load()
    inner = Scalarised(Box(), 2, 7, lambda seed: kind(Box(), 1, seed, kind.Options()))
    return Anchored(Box(), [("base", np.zeros(6)), ("uniform", np.full(6, 0.5))], inner, 7)


def searching(
    folder: Path,
    evaluations: int = 8,
    asks: Driver | None = None,
    on_answer: Callable[[Search, Answer], None] = lambda search, answer: None,
    meter: Meter | None = None,
    models: dict[str, str] | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
    recipe_of: Callable[[np.ndarray], str] = lambda p: p.tobytes().hex()[:16],
    **spec: object,
) -> Search:
    path = folder / "ledger.db"
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path, {})
    attempt = Attempt(folder / "attempt.json")
    search = Search(
        *(asks or driver(), executor or Inline(Bowl.TARGET, json.dumps(spec), attempt), ledger, OBJECTIVES),
        *(evaluations, recipe_of, on_answer),
        references=models,
        meter=meter,
        spool=Spool(folder / "spool.jsonl"),
        attempt=attempt,
    )
    try:
        search.run(retry_failed=retry_failed)
    finally:
        ledger.close()
    return search


def content(folder: Path) -> list[object]:
    """Every question and answer in the order of the ledger; no times."""
    ledger = Ledger.open(folder / "ledger.db", readonly=True)
    found: list[object] = []
    for split in ("calibration", "heldout"):
        found += [(q.number, q.point.tobytes(), q.stage, split) for q in ledger.questions(split)]
        found += [(a.number, split, dict(a.measures), a.failure) for a in ledger.answers(split)]
    ledger.close()
    return found


def test_killed_before_or_after_any_write_it_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SQLite.write
    left, after, writes = [10**9], [False], [0]

    def dying(self: SQLite, work: Callable[[], Any], landed: Callable[[], bool]) -> Any:
        writes[0] += 1
        left[0] -= 1
        if left[0] == 0 and not after[0]:
            raise Killed
        done = write(self, work, landed)
        if left[0] == 0:
            raise Killed
        return done

    monkeypatch.setattr(SQLite, "write", dying)
    searching(tmp_path, 5)
    whole, most = content(tmp_path), writes[0]
    assert most > 15
    for at in range(1, most + 1):
        for after[0] in (False, True):
            folder = tmp_path / f"{at}{after[0]}"
            folder.mkdir()
            left[0] = at
            with pytest.raises(Killed):
                searching(folder, 5)
            left[0] = 10**9
            searching(folder, 5)
            assert content(folder) == whole, f"killed {'after' if after[0] else 'before'} write {at}"


@pytest.mark.parametrize("locked_after", [1, 4, 8])
def test_answers_that_a_locked_ledger_could_not_take_are_spooled_and_count_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked_after: int
) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE_SECONDS", 0.3)
    whole, folder = tmp_path / "whole", tmp_path / "locked"
    for home in (whole, folder):
        home.mkdir()
    searching(whole)
    Ledger.create(folder / "ledger.db", {}).close()
    other = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    asked = []

    class Locks(Bowl):
        def answer(self, question: Question, halved: bool = False) -> Answer:
            asked.append((question.number, question.items.split))
            if len(asked) == locked_after:
                other.execute("BEGIN IMMEDIATE")
            return super().answer(question)

    monkeypatch.setattr("simulated.Locks", Locks, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Locks")
    with pytest.raises(LedgerBusy, match="nothing answered is lost"):
        searching(folder)
    other.execute("ROLLBACK")
    assert [a.number for a in Spool(folder / "spool.jsonl").read()] == [locked_after - 1]
    searching(folder)
    other.close()
    assert content(folder) == content(whole) and not (folder / "spool.jsonl").exists()
    assert len(asked) == len(set(asked)), "what is in the spool is not asked again"


def test_answers_of_a_run_that_another_process_took_over_are_spooled_and_count_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole := tmp_path / "whole").mkdir()
    searching(whole)
    with monkeypatch.context() as patch:
        answered = Ledger.answered

        def taken(self: Ledger, answers: Sequence[Answer]) -> list[Answer]:
            if any(a.number == 3 for a in answers):
                raise RunLocked("taken over")
            return answered(self, answers)

        patch.setattr(Ledger, "answered", taken)
        with pytest.raises(RunLocked):
            searching(tmp_path)
    assert [a.number for a in Spool(tmp_path / "spool.jsonl").read()] == [3]
    searching(tmp_path)
    assert content(tmp_path) == content(whole) and not (tmp_path / "spool.jsonl").exists()


def test_a_spooled_answer_comes_back_to_the_bit_and_a_torn_line_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    assert not list(spool.read())
    rng = np.random.default_rng(0)
    scored = Answer(
        *(3, "calibration", {"a.m": Measure(0.1 + 0.2, None, 7)}, {"a.m": rng.normal(size=7).astype(np.float32)}),
        *(None, 1.5, "w", 2, rng.normal(size=(2, 5))),
        tries=[Try("v", "timeout", "no answer")],
    )
    failed = Answer(4, "train", failure=Failure("oom", "tab\tand é"))
    spool.put([scored])
    spool.put([failed])
    text = spool.path.read_bytes()
    spool.path.write_bytes(text + text[:50])
    first, second = spool.read()
    assert first.agrees(scored) and second.agrees(failed) and list(first.tries) == list(scored.tries)
    assert first.per_item["a.m"].tobytes() == scored.per_item["a.m"].tobytes()
    assert "line 3 is torn" in caplog.text
    spool.clear()
    assert not list(spool.read())


def test_a_spool_forgets_no_field(tmp_path: Path) -> None:
    full = Answer(
        *(
            1,
            "train",
            {"a.m": Measure(0.5, 0.1, 3)},
            {"a.m": np.zeros(3, np.float32)},
            Failure("oom", "full"),
            2.0,
            "w",
            3,
        ),
        *(np.ones((1, 2)), (1, 2), [Try("v", "oom", "full")], 0),
        *(0.2, [Told(0.1, {"a.m": (0.4, 0.2)}), Told(0.2, {"a.m": (0.5, 0.1)})]),
    )
    plain = Answer(1, "train")
    spool = Spool(tmp_path / "spool.jsonl")
    spool.put([full])
    (back,) = spool.read()
    for field in fields(Answer):
        if field.name not in ("number", "split"):
            assert repr(getattr(full, field.name)) != repr(getattr(plain, field.name)), "a field that this test forgets"
        assert repr(getattr(back, field.name)) == repr(getattr(full, field.name)), field.name


def test_a_spool_that_does_not_fit_its_ledger_bricks_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = {f"task{i}.accuracy": Measure(0.5, 0.1, 3) for i in range(2)}
    spool = Spool(tmp_path / "spool.jsonl")
    with closing(Ledger.create(tmp_path / "ledger.db", {})) as ledger:
        question = driver().ask(1)
        ledger.asked(1, question, ["r"])
    strange = [
        Answer(7, "calibration", scores),  # nobody asked
        Answer(0, "heldout", scores),
        Answer(0, "calibration", {"task0.accuracy": Measure(0.5, 0.1, 3)}),  # the other is missing
        Answer(0, "calibration", {**scores, "task0.accuracy": Measure(float("nan"), 0.1, 3)}),
        Answer(0, "calibration", failure=Failure("nonsense", "who knows")),  # type: ignore[arg-type]
    ]
    spool.put(strange)
    lines = spool.path.read_text().replace('"measures": {"task0.accuracy": [0.5, 0.1, 3]}', '"measures": []')
    spool.path.write_text(spool.path.read_text() + lines + "[]\nnull\n")
    searching(tmp_path)
    (whole := tmp_path / "whole").mkdir()
    searching(whole)
    assert content(tmp_path) == content(whole) and not spool.path.exists()
    assert "nobody waits for this answer to question 7 (calibration)" in caplog.text


class Script:
    """Asks for what it is given, one after another."""

    def __init__(self, points: list[float]) -> None:
        self.points, self.number = points, 0

    @property
    def done(self) -> bool:
        return self.number >= len(self.points)

    def ask(self, n: int) -> list[Question]:
        found = [Question(self.number + i, np.full(6, p)) for i, p in enumerate(self.points[self.number :][:n])]
        self.number += len(found)
        return found

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        self.number += len(questions)

    def tell(self, outcomes: Sequence[Outcome]) -> None: ...


def test_a_copy_that_was_spooled_is_still_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Ledger.answered

    def busy(self: Ledger, answers: Sequence[Answer]) -> list[Answer]:
        if any(a.of is not None for a in answers):
            raise LedgerBusy("locked")
        return record(self, answers)

    with monkeypatch.context() as patch, pytest.raises(LedgerBusy):
        patch.setattr(Ledger, "answered", busy)
        searching(tmp_path, 3, Script([0.1, 0.1, 0.2, 0.3]))
    resumed = searching(tmp_path, 3, Script([0.1, 0.1, 0.2, 0.3]))
    assert (resumed.answered, resumed.repeated) == (3, 1)


def test_a_locked_ledger_waits_for_no_question_that_no_worker_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Ledger, answers: Sequence[Answer]) -> list[Answer]:
        if answers:
            raise LedgerBusy("locked")
        return []

    class Two(Inline):
        slots = 2

    monkeypatch.setattr(Ledger, "answered", busy)
    asked: list[int] = []
    monkeypatch.setattr(
        Bowl, "answer", lambda self, question: asked.append(question.number) or Answer(0, "calibration")
    )
    began = time.monotonic()
    with pytest.raises(LedgerBusy):  # the second waits for the first, and the third for its turn
        searching(tmp_path, 3, Script([0.1, 0.1, 0.2]), executor=Two(Bowl.TARGET, "{}"))
    assert time.monotonic() - began < 10 and asked == [0]


@pytest.mark.parametrize("name", ["cma", "random"])
def test_killed_with_two_workers_it_is_told_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Repeats are told at once, and more is asked then, before anything else is told: as in a resume."""

    class Two(Inline):
        slots = 2

    def coarse(point: np.ndarray) -> str:
        return str(np.rint(point[:2] * 4).tolist())

    def told(folder: Path) -> list[object]:
        with closing(Ledger.open(folder / "ledger.db", readonly=True)) as ledger:
            asks = [(q.number, q.point.tobytes()) for q in ledger.questions()]
            return [asks, [(a.number, a.of) for a in ledger.answers()]]

    monkeypatch.setattr(known, "REPEATS", 15)
    commit = Ledger._write
    left = [10**9]

    def dying(self: Ledger, work: Callable[[], object]) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return commit(self, work)

    def once(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        searching(folder, 12, driver(name), recipe_of=coarse, executor=Two(Bowl.TARGET, "{}"))

    monkeypatch.setattr(Ledger, "_write", dying)
    once(tmp_path / "whole")
    writes = 10**9 - left[0]
    for at in range(9, writes, 9):
        left[0] = at
        with pytest.raises(Killed):
            once(tmp_path / str(at))
        left[0] = 10**9
        once(tmp_path / str(at))
        assert told(tmp_path / str(at)) == told(tmp_path / "whole"), f"killed before write {at}"


class Deadly(Bowl):
    """Kills the process that it is in at one question."""

    at = (4, "calibration")

    def answer(self, question: Question, halved: bool = False) -> Answer:
        if (question.number, question.items.split) == Deadly.at:
            raise Killed
        return super().answer(question, halved)


@pytest.mark.parametrize("at", [(4, "calibration"), (-2, "calibration"), (0, "heldout")], ids=str)
def test_a_question_with_which_the_driver_is_killed_three_times_is_asked_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[int, str]
) -> None:
    """An inline worker dies with its driver, whatever it is asked: a candidate, a reference, held-out items."""
    monkeypatch.setattr("simulated.Deadly", Deadly, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Deadly")
    monkeypatch.setattr(Deadly, "at", at)
    for _ in range(3):
        with pytest.raises(Killed):
            searching(tmp_path, 12, driver("sobol"), models={"base": "h"})
    search = searching(tmp_path, 12, driver("sobol"), models={"base": "h"})
    number, split = at
    assert search.answered == 12 and search.failed == (at == (4, "calibration"))
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        (failed,) = [a for a in ledger.answers(split, references=number < 0) if a.number == number]
        assert str(failed.failure).startswith("infrastructure: the driver was killed 3 times") and failed.attempts == 3
        assert ledger.tries(split) == {number: [Try("inline", "infrastructure", "the driver was killed")] * 3}
    searching(tmp_path, 12, driver("sobol"), models={"base": "h"})
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        assert len(ledger.tries(split)[number]) == 3, "nothing was under way: nobody is blamed"


def test_a_kill_blames_only_what_this_process_was_at(tmp_path: Path) -> None:
    """A worker of its own cannot have killed its driver, and before a worker has a question that is innocent too."""

    class Starts(Inline):
        def start(self) -> None:
            raise Killed

    class Elsewhere(Inline):
        def collect(self, timeout: float) -> list[Answer]:
            raise Killed

    for executor in (Elsewhere, Starts, Starts, Starts):
        with pytest.raises(Killed):
            searching(tmp_path, executor=executor(Bowl.TARGET, "{}"))
    assert searching(tmp_path).failed == 0
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        assert ledger.tries() == {}


def test_an_attempt_is_recorded_once_and_a_torn_or_foreign_note_blames_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = Attempt(tmp_path / "attempt.json")
    with closing(Ledger.create(tmp_path / "ledger.db", {})) as ledger:
        for note in ("", "[1", "7", '{"a": 1}', '[7, "calibration"]', "[[], null]"):
            attempt.path.write_text(note)
            assert attempt.after_kill(ledger, [Question(0, np.zeros(6))]) == [] and not attempt.path.exists()
        assert ledger.tries() == {} and "no question is blamed" in caplog.text
        for _ in range(2):  # a commit whose reply was lost is made again
            ledger.tried(0, "calibration", [Try("w", "oom", "full")], 1)
        assert ledger.tries() == {0: [Try("w", "oom", "full")]}


def test_a_kill_in_a_drain_is_held_against_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ends a service asks it to first, and kills it when that takes too long: the candidate is merely slow."""
    running: list[Search] = []
    run = Search.run

    def started(self: Search, *arguments: bool, **options: bool) -> None:
        running.append(self)
        run(self, *arguments, **options)

    monkeypatch.setattr(Search, "run", started)

    class Stopped(Bowl):
        def answer(self, question: Question, halved: bool = False) -> Answer:
            if question.number == 2:
                running[-1].stop()
                raise Killed
            return super().answer(question, halved)

    monkeypatch.setattr("simulated.Stopped", Stopped, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Stopped")
    for _ in range(4):
        with pytest.raises(Killed):
            searching(tmp_path)
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        assert ledger.tries() == {} and [q.number for q in ledger.pending()] == [2]


def test_an_orderly_end_is_held_against_no_question(tmp_path: Path) -> None:
    def interrupt(search: Search, answer: Answer) -> None:
        if search.answered == 4:
            raise KeyboardInterrupt

    for _ in range(4):
        with suppress(KeyboardInterrupt):
            searching(tmp_path, on_answer=interrupt)
    assert searching(tmp_path).failed == 0
    assert Ledger.open(tmp_path / "ledger.db", readonly=True).tries() == {}


class Timed(Bowl):
    """Fails as one does whose worker had to be killed."""

    asked = 0

    def answer(self, question: Question, halved: bool = False) -> Answer:
        Timed.asked += 1
        return Answer(question.number, question.items.split, failure=Failure("timeout", "no answer within 5 s"))


def test_what_failed_is_told_again_without_a_worker_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "REPEATS", 30)
    monkeypatch.setattr("simulated.Timed", Timed, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Timed")
    monkeypatch.setattr(Timed, "asked", 0)
    for evaluations in (6, 9):
        same = searching(tmp_path, evaluations, recipe_of=lambda p: "one recipe for all points")
        assert same.failed == same.answered == 1 and same.repeated >= 30 and same.ended
        assert Timed.asked == 1, "in a resume too"
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        assert {(a.of, str(a.failure)) for a in ledger.answers()[1:]} == {(0, "timeout: no answer within 5 s")}


class Flaky(Bowl):
    """Loses what is asked on some days."""

    lost: ClassVar[set[tuple[int, str]]] = set()
    kind = "timeout"

    def answer(self, question: Question, halved: bool = False) -> Answer:
        if (key := (question.number, question.items.split)) in Flaky.lost:
            return Answer(*key, failure=Failure(Flaky.kind, "gone"), worker="w")  # type: ignore[arg-type]
        return super().answer(question, halved)


def test_what_failed_by_the_machine_is_asked_again_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulated.Flaky", Flaky, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Flaky")
    monkeypatch.setattr(Flaky, "lost", {(0, "calibration"), (5, "calibration"), (-2, "calibration"), (1, "heldout")})
    models = {"base": "h"}
    first = searching(tmp_path, 12, models=models)
    again = searching(tmp_path, 12, models=models)
    assert (again.failed, again.answered) == (first.failed, first.answered) == (2, 12), "no resume does by itself"
    asked = content(tmp_path)
    monkeypatch.setattr(Flaky, "lost", {(AGAIN + 5, "calibration")})
    retried = searching(tmp_path, 12, models=models, retry_failed=True)
    assert retried.answered == 14 and retried.failed == 3 and AGAIN in retried.front.numbers
    with closing(Ledger.open(tmp_path / "ledger.db", readonly=True)) as ledger:
        assert [a.failure for a in ledger.answers(references=True)] == [None]
        assert [a.number for a in ledger.answers("heldout", references=True)] == [-2]
        assert {a.number: a.failure for a in ledger.answers("heldout")}.items() >= {1: None, AGAIN: None}.items()
        assert ledger.tries("heldout") == {1: [Try("w", "timeout", "gone")]}
    assert [q for q in asked if len(q) == 4 and q[3] == "calibration"] == [
        q for q in content(tmp_path) if len(q) == 4 and q[3] == "calibration" and isinstance(q[2], str) and q[0] < AGAIN
    ]
    monkeypatch.setattr(Flaky, "lost", set())
    last = searching(tmp_path, 12, models=models, retry_failed=True)
    assert {2 * AGAIN + 5} < set(last.front.numbers) and last.answered == 15
    more = searching(tmp_path, 20, models=models)
    assert more.answered == 20 and more.failed == 3, "its driver goes on, and a replay of it too"
    assert searching(tmp_path, 20, models=models, retry_failed=True).answered == 20, "nothing is left that failed"


def test_killed_at_any_write_while_failures_are_asked_again_it_is_told_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver asks for what failed once more while a worker is at it: whose copy that is may not change."""

    class Two(Inline):
        slots = 2

    def again(folder: Path, retry_failed: bool = True) -> None:
        asks = Script([0.1, 0.3, 0.5, 0.1, 0.7, 0.9])
        searching(folder, 6, asks, models={"base": "h"}, executor=Two(Bowl.TARGET, "{}"), retry_failed=retry_failed)

    def told(folder: Path) -> list[object]:
        with closing(Ledger.open(folder / "ledger.db", readonly=True)) as ledger:
            copies = [(a.number, a.of) for a in ledger.answers()]
            return [*content(folder), copies, ledger.tries("heldout"), len(ledger.answers(references=True))]

    monkeypatch.setattr("simulated.Flaky", Flaky, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Flaky")
    monkeypatch.setattr(Flaky, "lost", {(0, "calibration"), (1, "heldout"), (-2, "calibration")})
    (failed := tmp_path / "failed").mkdir()
    searching(failed, 3, Script([0.1, 0.3, 0.5]), models={"base": "h"})
    monkeypatch.setattr(Flaky, "lost", set())
    write, left, after = Ledger._write, [10**9], [False]

    def dying(self: Ledger, work: Callable[[], Any]) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after[0]:
            raise Killed
        done = write(self, work)
        if left[0] == 0:
            raise Killed
        return done

    monkeypatch.setattr(Ledger, "_write", dying)
    again(shutil.copytree(failed, tmp_path / "whole"))
    whole, most = told(tmp_path / "whole"), 10**9 - left[0]
    assert (AGAIN, None) in whole[-3] and (3, AGAIN) in whole[-3] and most > 12
    for at in range(1, most + 1):
        for after[0] in (False, True):
            folder = shutil.copytree(failed, tmp_path / f"{at}{after[0]}")
            left[0] = at
            with pytest.raises(Killed):
                again(folder)
            left[0] = 10**9
            with closing(Ledger.open(folder / "ledger.db", readonly=True)) as ledger:
                heard = any(q.number == AGAIN for q in ledger.questions())
            again(folder, retry_failed=not heard)  # what is in the ledger needs no second word
            assert told(folder) == whole, f"killed {'after' if after[0] else 'before'} write {at}"


def test_what_would_fail_again_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulated.Flaky", Flaky, raising=False)
    monkeypatch.setattr(Bowl, "TARGET", "simulated:Flaky")
    monkeypatch.setattr(Flaky, "lost", {(3, "calibration")})
    monkeypatch.setattr(Flaky, "kind", "nonfinite")
    searching(tmp_path)
    before = content(tmp_path)
    searching(tmp_path, retry_failed=True)
    assert content(tmp_path) == before


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


LIMITS = [
    (Limits(hours=2), "budget.hours: 2 of 2 h"),
    (Limits(gpu_hours=4, gpus=2), "budget.gpu_hours: 4 of 4 GPU h"),
    (Limits(money=5, price_per_hour=2.5), "budget.money: 5 of 5"),
]


@pytest.mark.parametrize(("limits", "said"), LIMITS, ids=["hours", "gpu_hours", "money"])
def test_a_budget_that_is_reached_ends_the_search_scores_the_front_and_says_which(
    tmp_path: Path, limits: Limits, said: str
) -> None:
    clock = Clock()

    def passes(search: Search, answer: Answer) -> None:
        clock.now += 900  # a quarter of an hour for each candidate

    def spent() -> dict[str, float]:
        path = tmp_path / "ledger.db"
        return dict(Ledger.open(path, readonly=True).meta("spent", {})) if path.exists() else {}

    first = searching(tmp_path, 40, on_answer=passes, meter=Meter(limits, spent(), clock))
    assert first.answered == 8 and first.reached == said and not first.stopped
    ledger = Ledger.open(tmp_path / "ledger.db", readonly=True)
    assert ledger.meta("reached") == said and not ledger.pending() and not ledger.pending("heldout")
    assert len(ledger.answers("heldout")) == len(first.reported())
    before = spent()
    assert before["hours"] == pytest.approx((8 + len(first.reported())) / 4)
    again = searching(tmp_path, 40, on_answer=passes, meter=Meter(limits, before, clock))
    assert again.answered == 8, "hours of all resumes count together"
    more = searching(tmp_path, 12, on_answer=passes, meter=Meter(Limits(hours=100), before, clock))
    assert more.answered == 12 and more.reached is None
    assert Ledger.open(tmp_path / "ledger.db", readonly=True).meta("reached") is None


def test_hours_without_a_worker_are_not_spent(tmp_path: Path) -> None:
    """All workers have gone, and somebody waits for machines: that ends no search, and costs nothing."""

    class Gone(Inline):
        """Works, but for a day in the middle of it in which there is no worker."""

        ready = 1

        def collect(self, timeout: float) -> list[Answer]:
            if not self._queue or self._queue[0].number != 3 or clock.now > 50_000:
                self.ready = 1
                return super().collect(timeout)
            clock.now += 8_640
            self.ready = 0
            return []

    clock = Clock()
    limits = Limits(hours=2, gpu_hours=2, money=2, price_per_hour=1, gpus=1)
    meter = Meter(limits, {}, clock)
    search = searching(tmp_path, 12, driver("sobol"), meter=meter, executor=Gone(Bowl.TARGET, "{}"))
    assert clock.now > 50_000 and search.answered == 12 and search.reached is None
    assert meter.spent == {"hours": 0, "gpu_hours": 0, "money": 0}
    clock.now += 3_600
    meter.tick(2)
    assert meter.spent == {"hours": 1, "gpu_hours": 2, "money": 1}


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_jumps_by_a_day_changes_nothing_but_what_is_displayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "jumped"
    for home in (whole, folder):
        home.mkdir()
    searching(whole, 12)
    now = time.time
    meter = Meter(Limits(hours=1), {})

    def leap(search: Search, answer: Answer) -> None:
        if search.answered == 5:
            monkeypatch.setattr(time, "time", lambda: now() + jump)

    search = searching(folder, 12, on_answer=leap, meter=meter)
    assert search.reached is None and not search.stopped and meter.spent["hours"] < 0.1
    assert content(folder) == content(whole)
    stamps = [at for _, at in Ledger.open(folder / "ledger.db", readonly=True).times()]
    assert abs(stamps[-1] - stamps[0]) > 80_000, "the clock did jump"


def test_in_a_drain_what_waits_for_a_worker_is_not_begun(tmp_path: Path) -> None:
    class Two(Inline):
        slots = 2

    def stop(search: Search, answer: Answer) -> None:
        search.stop()

    search = searching(tmp_path, on_answer=stop, executor=Two(Bowl.TARGET, "{}"))
    assert search.answered == 1 and search.waiting == 1
    assert searching(tmp_path).answered == 8, "it is asked again"


def test_a_stop_drains_thirty_seconds_by_the_monotonic_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight never comes: after the drain the search ends, and the question is pending."""

    class Never(Inline):
        busy = True

        def collect(self, timeout: float) -> list[Answer]:
            if len(self._queue) and self._queue[0].number == 3:
                clock.now += 31
                return []
            return super().collect(timeout)

    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger.db", {})
    search = Search(
        *(driver("sobol"), Never(Bowl.TARGET, "{}"), ledger, OBJECTIVES, 12, lambda p: p.tobytes().hex()[:16]),
        lambda running, answer: running.stop() if running.answered == 3 else None,
    )
    monkeypatch.setattr("optimizer.searching.search.time.monotonic", clock)
    search.run()
    assert search.stopped and search.answered == 3
