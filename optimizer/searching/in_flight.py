"""What is asked and has no answer yet? And where does one wait that the ledger cannot take: in the spool."""

from __future__ import annotations

import time
from collections.abc import Sequence

from optimizer.answer import Answer
from optimizer.driver import Question
from optimizer.errors import LedgerBusy, RunLocked
from optimizer.executors.executor import Executor
from optimizer.record.ledger import Ledger
from optimizer.record.spool import Spool


class InFlight:
    """Questions that workers are at, by number and split, until their answers count."""

    def __init__(self, ledger: Ledger, spool: Spool | None) -> None:
        self._ledger, self._spool = ledger, spool
        self._questions: dict[tuple[int, str], Question] = {}

    def __len__(self) -> int:
        return len(self._questions)

    @property
    def candidates(self) -> int:
        """How many of them count towards the budget."""
        return sum(q.is_candidate for q in self._questions.values())

    def add(self, question: Question) -> None:
        """It is asked now."""
        self._questions[question.number, question.items.split] = question

    def over(self, answer: Answer) -> Question | None:
        """It has its answer; the question, where it was in flight."""
        return self._questions.pop((answer.number, answer.split), None)

    def recover(self, metrics: Sequence[str]) -> None:
        """Commit what an earlier process left in the spool."""
        if self._spool is not None:
            self._ledger.answered(self._spool.fitting(self._ledger.unanswered(), metrics))
            self._spool.clear()

    def commit(self, answers: Sequence[Answer]) -> list[Answer]:
        """Those that are new, now on the disk; of a locked ledger its error, when all are in the spool."""
        try:
            return self._ledger.answered(answers)
        except (LedgerBusy, RunLocked):
            self._put(answers)
            raise

    def keep(self, executor: Executor, seconds: float) -> None:
        """What workers are still at is waited for, at most so long, and goes to the spool."""
        end = time.monotonic() + seconds
        executor.drain()
        while self._spool is not None and executor.busy and time.monotonic() < end:
            self._put(executor.collect(timeout=0.5))

    def _put(self, answers: Sequence[Answer]) -> None:
        """Into the spool: these have been answered, and the ledger cannot say so."""
        if self._spool is not None:
            self._spool.put(answers)
            for answer in answers:
                self.over(answer)
