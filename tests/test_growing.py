"""A run that is read while it grows: the same as one that is read whole, at every moment, and nothing read twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import Made

from optimizer.answer import Answer, Failure
from optimizer.driver import Items, Question
from optimizer.record import rows
from optimizer.record.front import Front
from optimizer.record.growth import Growth
from optimizer.record.results import Results


@pytest.fixture(params=["file", "server"])
def server(request: pytest.FixtureRequest) -> str | None:
    """Where the ledger lies: a database's URL, or None for a file in the run's folder."""
    return request.getfixturevalue("postgresql").url if request.param == "server" else None


def told(results: Results) -> object:
    """All that is known of a run, but for the places that were kept of its front."""
    candidates = [{**vars(c), "point": c.point.tolist()} for c in results.candidates.values()]
    front = (results.front.nondominated, results.front.numbers, results.front.hypervolume, results.front.by_mean())
    counts = (results.asked, results.heldout_asked, results.heldout_answered, results.times, results.finished)
    return candidates, sorted(results.references), front, counts, len(results.scored), results.event


def test_what_is_read_as_it_grows_is_what_is_read_whole(tmp_path: Path, server: str | None) -> None:
    made = Made(tmp_path / "run", server=server)
    growing = Results(made.folder)
    assert told(growing) == told(Results(made.folder)) and not growing.refresh()
    for count in (1, 3, 60, 130):
        made.more(count, batch=17)
        assert growing.refresh() and not growing.refresh()
        assert told(growing) == told(Results(made.folder))
        assert growing.growth.measured() and growing.growth.places[-1].answered == made.count
    before = growing.still()
    made.heldout(list(growing.front.nondominated))
    assert growing.refresh() and told(growing) == told(Results(made.folder))
    assert not any(c.heldout for c in before.on_front) and all(c.heldout for c in growing.on_front)
    assert growing.curve[-1][1] == growing.growth.places[-1].front.measured[0] == growing.front.hypervolume
    made.close()


def test_what_has_been_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "run")
    made.more(100)
    results, read = Results(made.folder), []
    original = rows.numbered

    def counted(*given: object) -> object:
        found = original(*given)  # type: ignore[arg-type]
        read.extend(found)
        return found

    monkeypatch.setattr(rows, "numbered", counted)
    made.more(3)
    assert results.refresh() and read == [100, 101, 102]
    made.close()


def test_an_answer_that_was_taken_back_is_no_longer_there(tmp_path: Path, server: str | None) -> None:
    made = Made(tmp_path / "run", server=server)
    made.more(10)
    question = Question(3, made.ledger.questions()[3].point, items=Items("heldout"))
    made.ledger.asked(0, [question], [f"{3:064x}"])
    made.ledger.answered([Answer(3, "heldout", failure=Failure("timeout", "late"))])
    results = Results(made.folder)
    assert results.heldout_answered == 1
    made.ledger.asked_again([], [])  # has what failed on the machine's side pending again
    assert results.refresh() and results.heldout_answered == 0
    made.heldout([3])
    assert results.refresh() and results.candidates[3].heldout and told(results) == told(Results(made.folder))
    made.close()


def test_copies_of_a_candidate_get_its_heldout_scores(tmp_path: Path, server: str | None) -> None:
    made = Made(tmp_path / "run", server=server)
    made.more(5)
    of = made.ledger.questions()[2]
    made.ledger.asked(1, [Question(5, of.point, stage="again")], [f"{2:064x}"])
    original = made.ledger.answers()[2]
    made.ledger.answered([Answer(5, "calibration", original.measures, of=2)])
    results = Results(made.folder)
    made.heldout([2])
    assert results.refresh()
    assert results.candidates[5].heldout is results.candidates[2].heldout and results.candidates[2].heldout
    assert told(results) == told(Results(made.folder))
    made.close()


def test_a_front_that_stands_still_does_not_change() -> None:
    front = Front(2)
    for number, losses in enumerate(([1.0, 0.0], [0.0, 1.0], [0.4, 0.4])):
        front.add(number, np.array(losses), number < 2)
    kept, moment = front.still(), front.now
    said = (kept.numbers, kept.nondominated, kept.hypervolume, moment.measured)
    front.add(3, np.array([0.1, 0.1]))
    assert said == (kept.numbers, kept.nondominated, kept.hypervolume, moment.measured)
    assert front.hypervolume > kept.hypervolume and 2 not in front.nondominated and 2 in kept.nondominated


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=1200), st.integers(5, 7))
def test_growth_keeps_the_last_and_counts_every_stage(stages: list[str], objectives: int) -> None:
    growth, front, draw = Growth(objectives), Front(objectives), np.random.default_rng(0)
    for number, stage in enumerate(stages):
        if number < 3:
            front.add(number, draw.uniform(size=objectives), anchor=True)
        growth.add(stage, front)
    assert growth.measured()
    places = growth.places
    assert places[-1].answered == len(stages) and places[0].answered >= 1 and len(places) <= 200
    assert [p.answered for p in places] == sorted({p.answered for p in places})
    found = {s.stage: s.count for s in growth.stages}
    assert found == {stage: stages.count(stage) for stage in stages}
    assert all(stages[p.answered - 1] == p.stage for p in places)
    assert sum(s.gain for s in growth.stages) == pytest.approx(front.hypervolume)


def test_growth_that_has_no_time_says_so_and_tells_the_latest_first() -> None:
    growth, front, draw = Growth(5), Front(5), np.random.default_rng(0)
    for number in range(60):
        front.add(number, draw.uniform(size=5), anchor=number < 4)
        growth.add("all", front)
    assert growth.places == [] and not growth.measured(-1.0)
    assert growth.places[-1].answered == 60 and len(growth.places) < 60  # what is the same front is known with it
    while not growth.measured(-1.0):
        assert growth.places[-1].answered == 60
    assert len(growth.places) == 60
