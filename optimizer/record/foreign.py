"""What may be believed of a run's folder? It may be damaged, or somebody else's: types are checked, nothing is run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, ValidationError

from evaluators.evaluator import Measure
from optimizer.errors import RunError
from optimizer.record.sqlite import locked
from optimizer.wording import shown

if TYPE_CHECKING:
    from optimizer.record.ledger import Ledger


class Meta(BaseModel):
    """What a ledger says of its run as a whole. Other keys are not its readers' concern."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    name: StrictStr
    evaluations: StrictInt
    objectives: list[tuple[StrictStr, Literal["min", "max"]]]
    metrics: dict[str, StrictStr | None]
    space: dict[str, Any]
    steps: StrictInt
    done: StrictBool
    reached: StrictStr | None = None
    spent: dict[str, float] = {}
    parent: dict[str, Any] | None = None
    references: list[StrictStr] = []
    finalists: dict[StrictStr, list[StrictInt]] = {}
    job: dict[str, Any] = {}
    constraints: list[StrictStr] = []

    @property
    def evaluators(self) -> list[str]:
        """The names of the job's evaluators."""
        entries = self.job.get("evaluators", [])
        found = [e.get("name") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        return [name for name in found if isinstance(name, str)]

    @classmethod
    def of(cls, ledger: Ledger) -> Meta:
        """Raises RunError for what no run of ours says of itself."""
        absent = object()
        said = {key: value for key in cls.model_fields if (value := ledger.meta(key, absent)) is not absent}
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RunError(f"{ledger.path} is not a run's: {shown(where, 80)}: {first['msg']}; {RESTORE}") from None


RESTORE = "restore the folder from a copy"


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turns what fails inside, on values of the folder that are none of ours, into a RunError that says so."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if locked(error):
            raise
        raise RunError(f"{folder}: its ledger cannot be read ({error}); {RESTORE}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if hasattr(error, "exit_code"):
            raise
        what = shown(f"{type(error).__name__}: {error}", 200)
        raise RunError(f"{folder}: a value there is none that a run has ({what}); {RESTORE}") from error


def numbers(values: Sequence[object]) -> None:
    """Raises TypeError where one is no number: SQLite keeps a text in a column of numbers."""
    for value in values:
        if not isinstance(value, int | float):
            raise TypeError(f"expected a number, got {value!r}")


def texts(values: Sequence[object]) -> None:
    """Raises TypeError where one is no text."""
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"expected a text, got {value!r}")


def measured(measures: Mapping[str, Measure]) -> Mapping[str, Measure]:
    """The measures; raises TypeError where one holds what is no number."""
    texts(list(measures))
    for m in measures.values():
        numbers([m.value, 0 if m.stderr is None else m.stderr, m.count])
    return measures
