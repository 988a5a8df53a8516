"""Which candidates does a ledger have, and which of them are new since it was read last?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Try
from optimizer.driver import WHOLE, Question
from optimizer.record.candidate import Candidate
from optimizer.record.foreign import measured, numbers, texts
from optimizer.record.ledger import Ledger, Mark


class Reading:
    """What was read of a ledger so far: each row once, however often it is looked at.

    Answers that were there are taken back only where a user has what failed on the machine's side asked again: then
    what was read counts no more (`stale`), and a new reading begins.
    """

    def __init__(self) -> None:
        self.mark = Mark()
        self._heldout: dict[int, tuple[Mapping[str, Measure], int]] = {}
        self._known: dict[int, Candidate] = {}
        self._copies: dict[int, list[int]] = {}  # by the candidate whose answer they have

    def stale(self, ledger: Ledger) -> bool:
        """Whether an answer that was read has been taken back."""
        return ledger.mark(self.mark.event) != self.mark

    def more(self, ledger: Ledger) -> Iterator[Candidate]:
        """What is new, in the order told: candidates, references, then those that have held-out scores now.

        The ledger is to be read at one moment (`Ledger.snapshot`).
        """
        mark, after = ledger.mark(), self.mark.event
        held = self._scored_unseen(ledger, after)
        tries, places = ledger.tries(), ledger.places("calibration", after)
        for references in (False, True):
            found = ledger.answers("calibration", references, after)
            span = [a.number for a in found]
            asked = ledger.asked_of(min(span), max(span)) if found else {}
            for a in found:
                c = self._candidate(a, *asked[a.number], places[a.number], tries.get(a.number, ()))
                if a.number >= WHOLE:
                    c = _in_place_of(self._known[a.number - WHOLE], c)
                self._known[a.number] = c
                if a.of is not None:
                    self._copies.setdefault(a.of, []).append(a.number)
                yield c
        for number in held:
            unseen, event = self._heldout[number]
            for one in (number, *self._copies.get(number, ())):
                known = self._known.get(one)
                if known is not None and known.heldout is not unseen:
                    self._known[one] = replace(known, heldout=unseen, event=max(known.event, event))
                    yield self._known[one]
        self.mark = mark

    def _scored_unseen(self, ledger: Ledger, after: int) -> list[int]:
        """Take in what was scored on held-out items; by number."""
        places = ledger.places("heldout", after)
        found = [a for references in (False, True) for a in ledger.answers("heldout", references, after)]
        self._heldout |= {a.number: (measured(a.measures), places[a.number]) for a in found}
        return [a.number for a in found]

    def _candidate(self, a: Answer, q: Question, recipe: str, place: int, tries: Sequence[Try]) -> Candidate:
        unseen, event = self._heldout.get(a.number if a.of is None else a.of, ({}, -1))
        numbers([a.number, a.seconds, a.attempts, place])
        texts([q.stage, recipe, a.worker])
        return Candidate(
            *(a.number, q.stage, recipe, q.point, measured(a.measures), unseen, a.failure),
            *(a.seconds, a.attempts, a.worker, tries, a.of, a.share, a.told),
            event=max(place, event),
        )


def _in_place_of(before: Candidate, now: Candidate) -> Candidate:
    """A candidate that was told from some items, as it was scored on all in the end."""
    return replace(now, number=before.number, told=before.told, seconds=before.seconds + now.seconds, row=now.number)
