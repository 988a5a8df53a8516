"""Which question was this process itself at when it was killed? A file that says so while one is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optimizer.answer import Answer, Failure, Try
from optimizer.driver import Question
from optimizer.record import files
from optimizer.record.ledger import Ledger

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a question with which the driver itself died
MOST_BYTES = 4096  # of the file, which may be somebody else's


class DrainOver(KeyboardInterrupt):
    """What ends a question that the driver's own process is still at when nobody waits for it any longer."""


class Attempt:
    """The one question that the driver's own process answers (`executor: {kind: inline}`); others die by themselves.

    The file is written before each and removed after it, however that ends: where it is found, its writer was killed.
    `under_way` says whether a question is being answered now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.under_way = False
        self._forgiven = False

    @contextmanager
    def at(self, question: Question) -> Iterator[None]:
        """While this is open, the question is being answered."""
        files.write_new(self.path, json.dumps([question.number, question.items.split]))
        if self._forgiven:  # after it was written: a signal may come just before
            self.path.unlink(missing_ok=True)
        try:
            self.under_way = True
            yield
            self.under_way = False
        except (Exception, KeyboardInterrupt, SystemExit):  # an end in order is held against none
            self.under_way = False
            self.path.unlink(missing_ok=True)
            raise
        self.path.unlink(missing_ok=True)

    def forgive(self) -> None:
        """Blame no question for a kill from now on: this process was asked to end. Safe in a signal handler."""
        self._forgiven = True
        self.path.unlink(missing_ok=True)

    def after_kill(self, ledger: Ledger, pending: Sequence[Question]) -> list[Answer]:
        """Record the attempt that a kill cut short, if one did; the third is the question's last: it has failed."""
        try:
            number, split = json.loads(files.read(self.path, MOST_BYTES))
        except FileNotFoundError:
            return []
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
        ) as error:  # torn by the kill: nothing was done yet
            log.warning("%s is torn (%s); no question is blamed", self.path, error)
            number, split = None, None
        found = []
        if any((q.number, q.items.split) == (number, split) for q in pending):
            tries = len(ledger.tries(split).get(number, ())) + 1
            ledger.tried(number, split, [Try("inline", "infrastructure", "the driver was killed")], tries)
            if tries >= ATTEMPTS:
                reason = f"the driver was killed {tries} times while it was at it"
                found = [Answer(number, split, failure=Failure("infrastructure", reason), attempts=tries)]
        self.path.unlink(missing_ok=True)
        return found
