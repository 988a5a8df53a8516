"""Which question was this process itself at when it was killed? A file that says so while one is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optimizer.answer import Answer, Failure, Try
from optimizer.driver import Question
from optimizer.record.ledger import Ledger

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a question with which the driver itself died


class Attempt:
    """The one question that the driver's own process answers (`executor: {kind: inline}`); others die by themselves.

    The file is written before each and removed after it, however that ends: where it is found, its writer was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def at(self, question: Question) -> Iterator[None]:
        """While this is open, the question is being answered."""
        self.path.write_text(json.dumps([question.number, question.items.split]))
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit):  # an end in order is held against none
            self.path.unlink(missing_ok=True)
            raise
        self.path.unlink(missing_ok=True)

    def after_kill(self, ledger: Ledger, pending: Sequence[Question]) -> list[Answer]:
        """Record the attempt that a kill cut short, if one did; the third is the question's last: it has failed."""
        try:
            number, split = json.loads(self.path.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:  # torn by the kill: the worker had nothing yet
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
