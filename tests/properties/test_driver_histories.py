"""Does any history, killed anywhere and replayed, go on to the bit?"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from driver_rows import ROWS, Event, Row, answer, foreign, replayed, signature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.driver import Driver, Question


@dataclass
class Ask:
    n: int


@dataclass
class Tell:
    which: int  # of those on their way, modulo their number
    count: int
    failed: bool


@dataclass
class Foreign:
    seed: int


STEPS = st.lists(
    st.one_of(
        st.builds(Ask, st.integers(0, 12)),
        st.builds(Tell, st.integers(0, 50), st.integers(1, 12), st.booleans()),
        st.builds(Tell, st.integers(0, 50), st.integers(1, 12), st.just(False)),
        st.builds(Foreign, st.integers(0, 5)),
    ),
    min_size=4,
    max_size=24,
)


def played(driver: Driver, row: Row, steps: list[Ask | Tell | Foreign], waiting: list[Question]) -> list[Event]:
    """What happens: asks that returned something, and tells one by one, as a ledger keeps them."""
    events: list[Event] = []
    for step in steps:
        match step:
            case Ask(n):
                if questions := driver.ask(n):
                    events.append((n, questions))
                    waiting += questions
            case Tell(which, count, failed):
                for _ in range(min(count, len(waiting))):
                    question = waiting.pop(which % len(waiting))
                    outcome = answer(row.domain(), question, row.objectives, failure="broken" if failed else None)
                    driver.tell([outcome])
                    events.append(outcome)
            case Foreign(seed):
                outcome = foreign(row.domain(), seed, row.objectives)
                driver.tell([outcome])
                events.append(outcome)
    return events


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(before=STEPS, after=STEPS)
def test_killed_anywhere_replayed_and_on_to_the_bit(row: Row, before: list, after: list) -> None:
    driver = row.make(row.domain(), 5)
    waiting: list[Question] = []
    events = played(driver, row, before, waiting)
    resumed, still_waiting = replayed(row.make(row.domain(), 5), events), list(waiting)
    went_on = played(driver, row, after, waiting)
    resumed_went_on = played(resumed, row, after, still_waiting)
    assert signature(waiting) == signature(still_waiting)
    assert len(went_on) == len(resumed_went_on)
    assert signature(driver.ask(3)) == signature(resumed.ask(3))
