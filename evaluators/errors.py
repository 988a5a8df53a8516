"""What can go wrong in an evaluator?

EvaluatorError
├── DataError     items that cannot be read, are empty, or lack a column   (the user's: exit code 2)
├── OptionError   an evaluator asked for something that is not there       (the user's: exit code 2)
└── NonFinite     NaN or infinity in logits or losses                      (a failed candidate)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvaluatorError(ValueError):
    """Anything that an evaluator refuses. The message says what was expected, what arrived, and what to do."""

    exit_code = 2


class DataError(EvaluatorError):
    """Items that cannot be read, are empty, or lack a column."""


class OptionError(EvaluatorError):
    """An option, head, metric or function that does not exist or does not fit."""


class NonFinite(EvaluatorError):
    """NaN or infinity in logits, losses or scores: the candidate has failed."""

    exit_code = 1


def meant(said: str, known: Iterable[str]) -> str:
    """For the middle of a message: which of the known names was probably meant; nothing where none is near."""
    near = difflib.get_close_matches(said, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
