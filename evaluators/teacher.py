"""What did the expert itself say? Its outputs on every item, kept in one mapped file: no second model in memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluators.batches import Batch, Batches
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import TAUGHT, Indices

_DTYPES = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32"}

LIMIT = 60_000.0
"""What is kept in float16, which ends at 65,504, is cut here: a logit so far below the maximum has no probability."""

Pieces = Iterable[tuple[int, Tensor]]
"""Rows, and outputs `(n, columns)` of each. A row may come in several pieces, one after the other."""


class Notes:
    """A safetensors file that is filled piece by piece, so that it may be larger than memory.

    `counts`: how many rows each item has in a table, by row number; `tables`: columns and dtype; `room` is asked to
    make room for so many bytes. Raises `DataError` where the disk has none even so.
    """

    def __init__(
        self,
        file: Path,
        batches: Batches,
        counts: Mapping[str, Indices],
        tables: Mapping[str, tuple[int, np.dtype]],
        room: Callable[[int], None],
    ) -> None:
        self._file, self._partial = file, file.with_name(f".{file.name}.{os.getpid()}")
        for left in file.parent.glob(f".{file.name}.*"):  # of processes that were killed: whoever writes has the lock
            left.unlink(missing_ok=True)
        self._dtypes = {name: dtype for name, (_, dtype) in tables.items()}
        header: dict[str, object] = {"__metadata__": {"items": batches.digest}}
        self._at: dict[str, NDArray[np.int64]] = {}  # by table and row: the byte where its next outputs go
        offset = 0
        for name, (columns, dtype) in tables.items():
            shape = [int(counts[name][batches.rows].sum()), columns]
            size = int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
            self._at[name] = offset + starts(batches.rows, counts[name]) * columns * dtype.itemsize
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        room(offset)
        free = shutil.disk_usage(file.parent).free
        if free < 1.05 * offset:
            raise DataError(
                f"{file.parent}: {free / 1e9:.2f} GB free, the expert's outputs on {len(batches.rows)} items need "
                f"{offset / 1e9:.2f} GB; free some, or give the evaluator fewer items with `limit`"
            )
        for at in self._at.values():
            at += 8 + len(text)
        # written and not mapped: a mapped file kills its process where the disk runs full
        self._out = self._partial.open("wb")
        self._out.write(len(text).to_bytes(8, "little") + text)
        self._out.truncate(8 + len(text) + offset)

    def put(self, name: str, row: int, values: Tensor) -> None:
        """The next outputs `(n, columns)` of one item."""
        dtype = self._dtypes[name]
        plain = values.float() if dtype.itemsize > 2 else values.float().clamp(-LIMIT, LIMIT)
        raw = plain.cpu().numpy().astype(dtype).tobytes()
        self._out.seek(int(self._at[name][row]))
        self._out.write(raw)
        self._at[name][row] += len(raw)

    def close(self) -> None:
        """Write all of it to the disk, and give the file its name."""
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        self._partial.rename(self._file)

    def discard(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(OSError):  # what is still to be written has no room either
            self._out.close()
        self._partial.unlink(missing_ok=True)


def write(
    file: Path,
    whose: str,
    batches: Batches,
    counts: Mapping[str, Indices],
    dtypes: Mapping[str, np.dtype],
    step: Callable[[Batch], Mapping[str, Pieces]],
    room: Callable[[int], None],
) -> None:
    """Keep what `step` gives for each batch, by table; `whose` outputs they are is for errors.

    `room` is called with the bytes that they take, before they are written: the place to make room for them. Raises
    `NonFinite` where they are not finite, `DataError` where the disk has no room.
    """
    notes: Notes | None = None
    try:
        for batch in batches:
            found = {name: iter(pieces) for name, pieces in step(batch).items()}
            first = {name: next(pieces) for name, pieces in found.items()}
            if notes is None:
                notes = Notes(file, batches, counts, {n: (v.shape[1], dtypes[n]) for n, (_, v) in first.items()}, room)
            for name, pieces in found.items():
                for row, values in chain([first[name]], pieces):
                    if not torch.isfinite(values).all():
                        raise NonFinite(f"{whose} are not finite")
                    notes.put(name, row, values)
        if notes is not None:
            notes.close()
    except OSError as error:
        raise DataError(
            f"{file.parent}: {whose} cannot be written ({error}); free some disk, or make the folder writable"
        ) from error
    finally:
        if notes is not None:
            notes.discard()


class Outputs:
    """What `write` wrote, mapped; `logits` have so many `columns`. Raises `DataError` for a file of other items."""

    def __init__(self, file: Path, batches: Batches, counts: Mapping[str, Indices], columns: int) -> None:
        self._starts = {name: starts(batches.rows, count) for name, count in counts.items()}
        self._counts = counts
        self.file = file
        try:
            tensors = cast(Any, safe_open)(file, "pt")
            self._slices = {name: tensors.get_slice(name) for name in set(tensors.keys()) & set(counts)}
            items = (tensors.metadata() or {}).get("items")
            shapes = {name: kept.get_shape() for name, kept in self._slices.items()}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: cannot be read ({error}); remove it, and it is made again") from error
        if items != batches.digest or any(n != counts[name][batches.rows].sum() for name, (n, _) in shapes.items()):
            raise DataError(f"{file}: an expert's outputs on other items than these; remove it, and it is made again")
        if "logits" not in shapes or shapes["logits"][1] != columns:
            raise DataError(
                f"{file}: expected logits of {columns} classes or tokens, got {shapes.get('logits', [0, 0])[1]}; "
                "remove it, and it is made again"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._slices

    def of(self, name: str, items: Sequence[int]) -> list[Tensor]:
        """The outputs `(n, columns)` of each item, float32."""
        return [torch.as_tensor(piece).float() for piece in self._read(name, items, 0, None)]

    def cut(self, name: str, items: Sequence[int], start: int, stop: int | None, device: torch.device) -> Tensor:
        """Rows `start` to `stop` of these items' outputs, one after the other: float32 `(stop - start, columns)`."""
        pieces = list(self._read(name, items, start, stop))
        return torch.cat(pieces).to(device).float()

    def _read(self, name: str, items: Sequence[int], start: int, stop: int | None) -> Iterator[Tensor]:
        first, counts, kept = self._starts[name], self._counts[name], self._slices[name]
        begin = 0
        for item in items:
            end = begin + int(counts[item])
            low, high = max(start, begin), end if stop is None else min(stop, end)
            if low < high:
                at = int(first[item]) - begin
                yield kept[at + low : at + high]
            begin = end


def learned(name: str, outputs: Outputs | None, table: str, whose: str | None) -> Outputs:
    """The outputs, with that table; raises `OptionError` where evaluator `name` has none of its teacher `whose`."""
    if outputs is None or table not in outputs:
        expert = "an expert" if whose is None else f"the expert {whose!r}"
        remedy = "name one under `teacher`" if whose is None else "`teach` computes them"
        raise OptionError(
            f"evaluator {name!r}: {' and '.join(TAUGHT)} need the outputs of {expert}, which are not there; {remedy}"
        )
    return outputs


def starts(rows: Indices, counts: Indices) -> NDArray[np.int64]:
    """Where the outputs of each row begin, when those of `rows` follow each other; by row number."""
    found = np.full(len(counts), -1, dtype=np.int64)
    found[rows] = np.concatenate([[0], np.cumsum(counts[rows])[:-1]])
    return found
