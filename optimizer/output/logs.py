"""What does a log say? One line a candidate at INFO, plain or as JSON, fit to be shown wherever logs end up."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from optimizer.wording import shown

if TYPE_CHECKING:
    from optimizer.answer import Answer

ROOMS = ("optimizer", "searchspaces", "evaluators")
LONGEST = 20_000  # characters of a message, or of a traceback
log = logging.getLogger("optimizer.candidates")
program = logging.getLogger("optimizer.program")  # of what is no candidate's


def answered(answer: Answer) -> None:
    """Log one answer that was committed: a line at INFO, whose values are the record's `fields`."""
    from optimizer.driver import WHOLE  # NumPy, which no start of a command waits for

    outcome = "scored" if answer.failure is None else answer.failure.kind
    fields: dict[str, Any] = {
        "candidate": answer.number % WHOLE if answer.number >= 0 else answer.number,
        "split": answer.split,
        "outcome": outcome,
        "seconds": round(answer.seconds, 3),
        "worker": answer.worker,
        "attempts": answer.attempts,
        "measures": {name: m.value for name, m in answer.measures.items()},
        **({} if answer.whole else {"share": answer.share}),
    }
    said = " ".join(f"{name} {m.value:.4g}" for name, m in answer.measures.items())
    if answer.failure is not None:
        fields["reason"] = said = answer.failure.reason
    kind = "gradient" if answer.split == "train" else "candidate"
    log.info(
        "%s %d on %s items %s in %.2f s by %s: %s",
        *(kind, fields["candidate"], answer.split, outcome, answer.seconds, answer.worker, said),
        extra={"fields": fields},
    )


def say(text: str, *values: object) -> None:
    """Something for people, on stderr; where the log is there as JSON, a line of that."""
    if program.isEnabledFor(logging.INFO):
        program.info(text, *values)
    else:
        print(shown(text % values, LONGEST), file=sys.stderr, flush=True)


class Plain(logging.Formatter):
    """Level, logger and message: printable, and without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return shown(text, LONGEST)


class Lines(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, and the fields of what is told."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": shown(record.getMessage(), LONGEST),
        }
        if record.exc_info:
            said["exception"] = shown(self.formatException(record.exc_info), LONGEST)
        return json.dumps({**_plain(getattr(record, "fields", {})), **said}, allow_nan=False)


@contextmanager
def to(stream: TextIO | None = None, as_json: bool = False) -> Iterator[None]:
    """While this is open, what the three rooms log goes to `stream` (stderr): warnings, or as JSON all from INFO on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines() if as_json else Plain())
    loggers = [logging.getLogger(room) for room in ROOMS]
    before = [(one.level, one.propagate, one.handlers[:]) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [handler], False
        one.setLevel(logging.INFO if as_json else logging.WARNING)
    try:
        yield
    finally:
        for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)


def _plain(value: Any) -> Any:
    """A value as JSON has it: texts fit to be shown, no NaN."""
    if isinstance(value, dict):
        return {shown(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return shown(value) if isinstance(value, str) else value
