"""What can go wrong between a point and the weights?

SpaceError
├── PoolError     a checkpoint that is missing, broken, hostile, or does not match the base   (exit code 2)
│   ├── VocabularyError   one whose tokens are not those of the base, and no option says what to do
│   └── CacheError        what is made once on a host cannot be kept there, or read: no candidate's failure
│       └── CacheFull     there is no room for it                                             (exit code 74)
├── RecipeError   a point, recipe, bound or pattern that does not fit                         (exit code 2)
├── Inexpressible mergekit, or one adapter, has no way to say this recipe                     (exit code 2)
└── NonFinite     NaN or infinity among merged weights                                        (a failed candidate)
"""


class SpaceError(ValueError):
    """Anything that this room refuses. The message says what was expected, what arrived, and what to do."""

    exit_code = 2


class PoolError(SpaceError):
    """A checkpoint that is missing, broken, hostile, or does not match the base."""


class VocabularyError(PoolError):
    """A checkpoint whose tokens are not the base's, where no option says what to do with them."""


class CacheError(PoolError):
    """What is made once on a host cannot be kept there, or read. The host's fault: a run ends, no candidate fails."""


class CacheFull(CacheError):
    """No room for what is made once on a host."""

    exit_code = 74


class RecipeError(SpaceError):
    """A point, recipe, bound or pattern that does not fit."""


class Inexpressible(SpaceError):
    """mergekit, or one adapter, has no way to say this recipe."""


class NonFinite(SpaceError):
    """NaN or infinity among merged weights: the candidate has failed."""

    exit_code = 1


def said(error: BaseException) -> str:
    """What an exception of somebody else's says, where its own text can be made."""
    try:
        return str(error)
    except Exception as worse:
        return f"its text cannot be made ({type(worse).__name__})"


def first_line(error: BaseException) -> str:
    """The same in a line: its class where it says nothing."""
    return (said(error).strip().splitlines() or [type(error).__name__])[0]
