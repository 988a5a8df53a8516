"""What can go wrong in an evaluator?

EvaluatorError
├── DataError     items that cannot be read, are empty, or lack a column   (the user's: exit code 2)
├── OptionError   an evaluator asked for something that is not there       (the user's: exit code 2)
└── NonFinite     NaN or infinity in logits or losses                      (a failed candidate)
"""


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
