"""Which items may the search see? Calibration and held-out items are told apart once, by content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.errors import DataError, OptionError
from evaluators.evaluator import Indices, Splits
from evaluators.items import Row, Table, read
from evaluators.options import Files, ItemOptions


@dataclass(frozen=True, eq=False)
class ItemSet:
    """All items of an evaluator: row numbers count through the tables, one after the other."""

    tables: tuple[Table, ...]
    splits: Splits

    @cached_property
    def rows(self) -> list[Row]:
        return [row for table in self.tables for row in table.rows]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for table in self.tables for file in table.files)

    @cached_property
    def used(self) -> list[int]:
        """The rows of either split, in ascending order; a limit leaves the others out."""
        return sorted([*self.splits.calibration.tolist(), *self.splits.heldout.tolist()])

    def check(self, name: str, items: Indices) -> None:
        """Raise `DataError` where evaluator `name` is asked for no rows, or for one that is in neither split."""
        if len(items) == 0:
            raise DataError(f"evaluator {name!r}: asked to score no items; ask for at least one")
        strangers = items[~np.isin(items, self.used)]
        if len(strangers):
            raise DataError(f"evaluator {name!r}: row {strangers[0]} is in neither split; ask for rows of `splits`")

    def locate(self, row: int) -> tuple[Table, int]:
        """The table of a row, and its number there."""
        for table in self.tables:
            if row < len(table.rows):
                return table, row
            row -= len(table.rows)
        raise IndexError(row)

    def where(self, row: int, column: str | None = None) -> str:
        """How an error names a row, and a column of it: file, number in the file."""
        table, number = self.locate(row)
        return table.where(number, column)


def load_items(options: ItemOptions, root: Path, columns: Sequence[str] | None) -> ItemSet:
    """Read and split the items of an evaluator; raises `DataError`, and `OptionError` for options that contradict."""
    if isinstance(options.data, Files):
        if "calibration" in options.model_fields_set:
            raise OptionError(
                "option 'calibration' says how to split one file, but `data` names a file per split; drop one of them"
            )
        pair = (read(options.data.calibration, root, columns), read(options.data.heldout, root, columns))
        return ItemSet(pair, keep_apart(pair[0], pair[1], options.seed, options.limit))
    table = read(options.data, root, columns)
    return ItemSet((table,), split(table, options.seed, options.calibration, options.limit))


def digest(seed: int, row: Row) -> bytes:
    """sha256 of the seed and of the row's canonical JSON (keys sorted, bytes by their own hash)."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def split(table: Table, seed: int, calibration: float | int, limit: int | None = None) -> Splits:
    """Rows in the order of their hash: the first `calibration` (a share or a count) are calibration, the rest held out.

    Which side a row falls on does not depend on its place in the file, and equal rows never fall on both: where the
    cut would part them, all of them are calibration. Raises `DataError` where a side is left without items.
    """
    keys = [digest(seed, row) for row in table.rows]
    order = sorted(range(len(keys)), key=lambda i: (keys[i], i))[:limit]
    cut = calibration if isinstance(calibration, int) else round(calibration * len(order))
    cut = after_equals([keys[i] for i in order], cut)
    if not 0 < cut < len(order):
        raise DataError(
            f"{table.name}: {len(order)} items and calibration: {calibration} make {min(cut, len(order))} calibration "
            f"and {max(len(order) - cut, 0)} held-out items; both need at least one (equal rows stay together): give "
            "more items or another `calibration`"
        )
    return Splits(_sorted(order[:cut]), _sorted(order[cut:]), alike=_numbered(keys))


def keep_apart(calibration: Table, heldout: Table, seed: int, limit: int | None = None) -> Splits:
    """The split that the user made, one file each; raises `DataError` where a row is in both files.

    Held-out rows are numbered on from the last calibration row.
    """
    keys = [[digest(seed, row) for row in table.rows] for table in (calibration, heldout)]
    seen = {key: number for number, key in reversed(list(enumerate(keys[0])))}
    for number, key in enumerate(keys[1]):
        if key in seen:
            raise DataError(
                f"{heldout.where(number)} is also row {seen[key]} of {calibration.name}; held-out items must not be "
                "seen by the search: remove it from one of the files"
            )
    kept = [sorted(range(len(side)), key=lambda i: (side[i], i))[:limit] for side in keys]
    sides = (_sorted(kept[0]), _sorted(len(keys[0]) + i for i in kept[1]))
    return Splits(*sides, alike=_numbered([*keys[0], *keys[1]]))


def _sorted(rows: Iterable[int]) -> Indices:
    return np.array(sorted(rows), dtype=np.int64)


def _numbered(keys: Sequence[bytes]) -> Indices:
    """A number for each key, the same for equal ones, in the order in which they first come."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _plain(value: Any) -> str:
    """Bytes by their hash; dates, decimals and the like as they print."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else f"{type(value).__name__} {value}"


def after_equals(keys: Sequence[Any] | NDArray[Any], cut: int) -> int:
    """Where to cut rows with these keys, in their order, at `cut` or later: equal rows stay together."""
    while 0 < cut < len(keys) and keys[cut] == keys[cut - 1]:
        cut += 1
    return cut
