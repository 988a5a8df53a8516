"""Which class does a label mean? Names, or numbers, become rows of a task's head."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.errors import DataError, OptionError, meant
from evaluators.splits import ItemSet

Label = str | int


def check_labels(items: ItemSet, column: str) -> dict[int, Label]:
    """The label of every used row; raises `DataError` for one that is neither text nor a whole number."""
    rows = items.rows
    found: dict[int, Label] = {}
    for row in items.used:
        value = rows[row][column]
        if isinstance(value, float) and value.is_integer():  # a whole number that went through a table of floats
            value = int(value)
        if not isinstance(value, str | int) or value == "":
            raise DataError(
                f"{items.where(row, column)}: expected a label (text or a whole number), got {value!r}; "
                "correct the cell"
            )
        found[row] = int(value) if isinstance(value, bool) else value
    return found


def class_list(name: str, asked: list[Label] | None, config: Any, labels: dict[int, Label], rows: int) -> list[Label]:
    """The class of each row of a head with `rows` rows.

    `classes` if the job names them; else the head's own `id2label`, where it says more than LABEL_0, LABEL_1, ...; else
    0, 1, ... where the labels are such numbers; else the sorted labels. Raises `OptionError` where their number is not
    the head's.
    """
    own = [str(text) for _, text in sorted((int(k), v) for k, v in (config.id2label or {}).items())]
    if asked is not None:
        classes = list(asked)
    elif len(own) == rows and not all(re.fullmatch(r"LABEL_\d+", text) for text in own):
        classes = list(own)
    elif all(isinstance(label, int) for label in labels.values()):
        classes = list(range(rows))
    elif set(labels.values()) <= set(own):
        classes = list(own)
    else:
        classes = sorted(set(labels.values()), key=lambda label: (isinstance(label, str), label))
    if len(classes) != rows:
        raise OptionError(
            f"evaluator {name!r}: {len(classes)} classes ({_some(classes)}) but a head of {rows} rows; name every "
            "class under `classes`, in the head's order"
        )
    return classes


def numbers(items: ItemSet, column: str, labels: dict[int, Label], classes: list[Label]) -> NDArray[np.int64]:
    """Class number by row, int64, -1 for rows in neither split.

    A label is a class's name; where no class is called by a number, a whole number is a place in `classes`, from 0.
    Raises `DataError` for a label that is no class.
    """
    place: dict[Label, int] = dict(zip(classes, range(len(classes)), strict=True))
    place |= {str(c): i for i, c in enumerate(classes)}
    if not any(isinstance(c, int) or c.lstrip("-").isdecimal() for c in classes):
        place |= {i: i for i in range(len(classes))}
    found = np.full(len(items.rows), -1, dtype=np.int64)
    for row, label in labels.items():
        at = place.get(label, place.get(str(label)))
        if at is None:
            raise DataError(
                f"{items.where(row, column)}: unknown label {label!r}; {meant(str(label), map(str, classes))}"
                f"the {len(classes)} classes are: {_some(classes)}"
            )
        found[row] = at
    return found


def _some(classes: list[Label]) -> str:
    return ", ".join(repr(c) for c in classes[:12]) + (", ..." if len(classes) > 12 else "")
