"""Which rows does an evaluator read? JSONL, CSV, Parquet and `datasets` become one list of rows, checked by column."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import DataError, meant
from evaluators.options import expanded

Row = dict[str, Any]

FORMATS = ".jsonl, .json (a list of objects), .csv, .parquet, a folder saved by `datasets`, or datasets:NAME"

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SAVED = ("state.json", "dataset_dict.json")  # one of them is in each folder that `datasets` saved


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one source, in the order of the file, with the columns that were asked for."""

    name: str  # as the user wrote it
    rows: list[Row]
    files: tuple[Path, ...]  # what was read, for content hashes
    folder: Path  # where relative paths inside the rows start

    def where(self, row: int, column: str | None = None) -> str:
        """How an error names a row (numbered from 0) and, if given, a column of it."""
        return f"{self.name}: row {row}" + (f", column {column!r}" if column is not None else "")


def read(source: str, root: Path, columns: Sequence[str] | None = None) -> Table:
    """The rows of a source, with these columns only (None: all of them).

    `source` is a path (relative ones start at `root`) or `datasets:NAME[@REVISION][:CONFIG][:SPLIT]` for a data set of
    the hub; no code that comes with data is ever run. Raises `DataError` for a file that is missing, broken, empty, of
    an unknown format, or that lacks a column or a value.
    """
    if source.startswith("datasets:"):
        rows, files = _hub(source)
        folder = root
    else:
        path = there(source, root)
        rows, files = _local(source, path)
        folder = path if path.is_dir() else path.parent
    if not rows:
        raise DataError(f"{source}: expected rows, found none; an evaluator needs items to score on")
    table = Table(source, rows, files, folder)
    return table if columns is None else Table(source, list(_select(table, columns)), files, folder)


def there(source: str, root: Path) -> Path:
    """The file or folder of a source; whatever else a path may name is not opened, where it could wait for ever.

    Raises `DataError` where there is none.
    """
    path = root / expanded(source)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder ({path.resolve()}); correct the path under `data`")
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{source}: expected a file or a folder, got a pipe, a device or a socket; correct the path")
    return path


def missing(source: str, root: Path) -> str | None:
    """Why a source of this host's cannot be read, without reading it; None where it may, and for one of the hub."""
    if source.startswith("datasets:"):
        return None
    try:
        path = there(source, root)
        if path.is_dir() and not any((path / name).is_file() for name in SAVED):
            raise DataError(
                f"{source}: expected a folder written by `datasets` save_to_disk; or name a file: {FORMATS}"
            )
        if not (path.is_dir() or path.suffix.lower() in SUFFIXES):
            raise DataError(_unreadable(source, path))
    except (DataError, OSError) as error:
        return str(error)
    return None


def _unreadable(source: str, path: Path) -> str:
    return f"{source}: cannot read {path.suffix or 'a file without an extension'}; expected {FORMATS}"


def _select(table: Table, columns: Sequence[str]) -> Iterator[Row]:
    """The rows with these columns only, every value there."""
    for number, row in enumerate(table.rows):
        for column in columns:
            if column not in row:
                raise DataError(
                    f"{table.where(number)} has no column {column!r}; {meant(column, row)}"
                    f"it has: {', '.join(map(str, row)) or 'none'}"
                )
            if row[column] is None:
                raise DataError(
                    f"{table.where(number, column)}: expected a value, got none; fill it in or drop the row"
                )
        yield {column: row[column] for column in columns}


def _local(source: str, path: Path) -> tuple[list[Row], tuple[Path, ...]]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.is_dir():
        return _saved(source, path), tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(_unreadable(source, path))
    try:
        return reader(source, path), (path,)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: expected UTF-8 text, {error}; convert the file") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error}); check the file and its permissions") from error


def _object(source: str, value: Any, row: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{source}: row {row}: expected an object with named columns, got {type(value).__name__}")
    return value


def _jsonl(source: str, path: Path) -> list[Row]:
    # The standard library and not pandas: it guesses no dates or types, and an error can name its line.
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_object(source, json.loads(line), len(rows)))
            except DataError:
                raise
            except (ValueError, RecursionError) as error:  # of JSON, and of numbers of thousands of digits
                raise DataError(
                    f"{source}: line {number} is not JSON ({error}); expected one object per line"
                ) from error
    return rows


def _json(source: str, path: Path) -> list[Row]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON ({error}); for one object per line use the extension .jsonl") from error
    if not isinstance(found, list):
        raise DataError(f"{source}: expected a list of objects, got {type(found).__name__}")
    return [_object(source, value, row) for row, value in enumerate(found)]


def _csv(source: str, path: Path) -> list[Row]:
    import pandas

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # a row longer than the header loses cells
            # "NA" and "null" are words like any other; an empty cell is an empty text, which the evaluators refuse
            frame = pandas.read_csv(
                path, keep_default_na=False, index_col=False, low_memory=False, encoding="utf-8-sig"
            )
    except pandas.errors.EmptyDataError:
        return []
    except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        raise DataError(
            f"{source}: not a table ({str(error).strip()}); every row needs the header's columns"
        ) from error
    cells = frame.astype(object).where(frame.notna(), None)
    rows: list[Row] = cells.to_dict("records")
    return rows


def _parquet(source: str, path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{source}: not a Parquet file ({error}); write it again") from error
    return rows


def _saved(source: str, path: Path) -> list[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"{source}: expected a folder written by `datasets` save_to_disk ({error}); or name a file: {FORMATS}"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(f"{source.rstrip('/')}/{split}" for split in found)
        raise DataError(f"{source}: holds several splits; name one of them: {splits}")
    return _arrow_rows(found)


def _hub(source: str) -> tuple[list[Row], tuple[Path, ...]]:
    import datasets

    name, *rest = source.removeprefix("datasets:").split(":")
    name, _, revision = name.partition("@")
    if not name or len(rest) > 2:
        raise DataError(f"{source}: expected datasets:NAME[@REVISION][:CONFIG][:SPLIT]")
    try:
        found = datasets.load_dataset(name, rest[0] if len(rest) == 2 else None, revision=revision or None)
    except Exception as error:  # the library raises whatever its network stack does
        raise DataError(f"{source}: cannot be loaded ({type(error).__name__}: {error}); use a local file") from error
    split = rest[-1] if rest else next(iter(found))
    if split not in found or (not rest and len(found) > 1):
        raise DataError(f"{source}: expected a split; append one of: {', '.join(':' + key for key in found)}")
    chosen = found[split]
    return _arrow_rows(chosen), tuple(sorted(Path(file["filename"]) for file in chosen.cache_files))


def _arrow_rows(found: Any) -> list[Row]:
    """Plain Python values: an image column stays `{bytes, path}`, and is decoded where it is used."""
    rows: list[Row] = found.with_format(None).to_list()
    return rows
