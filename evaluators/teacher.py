"""What did the expert itself say? Its outputs on every item, kept in one mapped file: no second model in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluators.batches import Batch
from evaluators.errors import DataError
from evaluators.evaluator import Indices

_DTYPES = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32", np.dtype("<i8"): "I64"}


class Notes:
    """A safetensors file that is filled batch by batch, so that it may be larger than memory.

    `counts`: how many rows each item has in a table, by row number; `tables`: columns and dtype. `rows` are kept beside
    them, for `Outputs` to check. Raises DataError where the disk has no room.
    """

    def __init__(
        self, file: Path, rows: Indices, counts: Mapping[str, Indices], tables: Mapping[str, tuple[int, np.dtype]]
    ) -> None:
        self._file, self._partial = file, file.with_name(f".{file.name}.{os.getpid()}")
        arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {"rows": (rows.shape, np.dtype("<i8"))}
        self._starts = {name: starts(rows, count) for name, count in counts.items()}
        for name, (columns, dtype) in tables.items():
            arrays[name] = ((int(counts[name][rows].sum()), columns), dtype)
        header: dict[str, object] = {}
        places, offset = {}, 0
        for name, (shape, dtype) in arrays.items():
            size = int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            places[name] = offset
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        free = shutil.disk_usage(file.parent).free
        if free < 1.05 * offset:
            raise DataError(
                f"{file.parent}: {free / 1e9:.2f} GB free, the expert's outputs on {len(rows)} items need "
                f"{offset / 1e9:.2f} GB; free some, or give the evaluator fewer items with `limit`"
            )
        with self._partial.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + offset)
        self._arrays = {
            name: np.memmap(self._partial, dtype, "r+", 8 + len(text) + places[name], shape)
            for name, (shape, dtype) in arrays.items()
        }
        self._arrays["rows"][:] = rows

    def put(self, name: str, row: int, values: Tensor) -> None:
        """The outputs `(n, columns)` of one item."""
        start = self._starts[name][row]
        self._arrays[name][start : start + len(values)] = values.cpu().numpy()

    def close(self) -> None:
        """Write all of it to the disk, and give the file its name."""
        for array in self._arrays.values():
            array.flush()
        self._arrays.clear()
        with self._partial.open("rb") as out:
            os.fsync(out.fileno())
        self._partial.rename(self._file)

    def discard(self) -> None:
        """Leave nothing."""
        self._arrays.clear()
        self._partial.unlink(missing_ok=True)


def write(
    file: Path,
    batches: Iterable[Batch],
    counts: Mapping[str, Indices],
    dtypes: Mapping[str, np.dtype],
    step: Callable[[Mapping[str, Tensor]], Mapping[str, Sequence[Tensor]]],
) -> None:
    """Keep what `step` gives for each batch: by table, `(n, columns)` for each of the batch's items."""
    every = list(batches)
    rows = np.sort(np.concatenate([batch.rows for batch in every]))
    notes: Notes | None = None
    try:
        for batch in every:
            found = step(batch.inputs)
            if notes is None:
                tables = {name: (values[0].shape[1], dtypes[name]) for name, values in found.items()}
                notes = Notes(file, rows, {name: counts[name] for name in tables}, tables)
            for name, values in found.items():
                for row, value in zip(batch.rows.tolist(), values, strict=True):
                    notes.put(name, row, value)
        if notes is not None:
            notes.close()
    except BaseException:
        if notes is not None:
            notes.discard()
        raise


class Outputs:
    """What `Notes` wrote, mapped. Raises DataError for a file that is not of these items."""

    def __init__(self, file: Path, rows: Indices, counts: Mapping[str, Indices]) -> None:
        self._starts = {name: starts(rows, count) for name, count in counts.items()}
        self._counts = counts
        try:
            self._tensors = cast(Any, safe_open)(file, "pt")
            names = set(self._tensors.keys())
            self._slices = {name: self._tensors.get_slice(name) for name in names & set(counts)}
            same = np.array_equal(self._tensors.get_tensor("rows").numpy(), rows) and all(
                kept.get_shape()[0] == int(counts[name][rows].sum()) for name, kept in self._slices.items()
            )
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: cannot be read ({error}); remove it, and it is made again") from error
        if not same:
            raise DataError(f"{file}: an expert's outputs on other items than these; remove it, and it is made again")
        self.file = file

    def __contains__(self, name: str) -> bool:
        return name in self._slices

    def of(self, name: str, items: Sequence[int]) -> list[Tensor]:
        """The outputs `(n, columns)` of each item, float32."""
        starts, counts, kept = self._starts[name], self._counts[name], self._slices[name]
        return [torch.as_tensor(kept[int(starts[i]) : int(starts[i] + counts[i])]).float() for i in items]


def starts(rows: Indices, counts: Indices) -> NDArray[np.int64]:
    """Where the outputs of each row begin, when those of `rows` follow each other; by row number."""
    found = np.full(len(counts), -1, dtype=np.int64)
    found[rows] = np.concatenate([[0], np.cumsum(counts[rows])[:-1]])
    return found
