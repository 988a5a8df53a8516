"""How do the user's own documents take the place of a task's data set?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.errors import DataError
from evaluators.harness.task_files import BUILDERS
from evaluators.items import Table, read
from evaluators.options import Files


def replacement(data: str | Files | None, root: Path) -> tuple[dict[str, Any], list[Table]]:
    """What to override in a task's config for these documents to be its data set, and the tables of them.

    Raises `DataError` where a file cannot be read, or is no table.
    """
    if data is None:
        return {}, []
    if isinstance(data, Files):
        sides = {"validation": read(data.calibration, root), "test": read(data.heldout, root)}
    else:
        sides = {"test": read(data, root)}
    made = {name: _dataset(table) for name, table in sides.items()}
    overrides: dict[str, Any] = {
        "custom_dataset": lambda **_: made,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": "validation" if "validation" in made else None,
        "test_split": "test",
        "fewshot_split": "validation" if "validation" in made else "test",
    }
    return overrides, list(sides.values())


def _dataset(table: Table) -> Any:
    """The rows column by column; a value that a row lacks is None, whichever row has the column first."""
    import datasets
    import pyarrow

    columns = []
    for name in dict.fromkeys(key for row in table.rows for key in row):
        try:
            columns.append(datasets.Dataset.from_dict({name: [row.get(name) for row in table.rows]}))
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{table.name}: column {name!r} has values of several kinds ({error}); write all of one kind"
            ) from error
    if not columns:
        raise DataError(f"{table.name}: has no rows or no columns; an evaluator needs items to score on")
    return datasets.concatenate_datasets(columns, axis=1)


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether a task's config reads files of this machine and nothing else, so that they are the user's, and not a
    data set of the hub: `dataset_path` names a file format, and every one of `data_files` is an absolute path."""
    files = _strings((config.get("dataset_kwargs") or {}).get("data_files"))
    local = all("://" not in file and Path(file).is_absolute() for file in files)
    return config.get("dataset_path") in BUILDERS and bool(files) and local and not config.get("custom_dataset")


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [name for below in value.values() for name in _strings(below)]
    if isinstance(value, list | tuple):
        return [name for below in value for name in _strings(below)]
    return [] if value is None else [str(value)]
