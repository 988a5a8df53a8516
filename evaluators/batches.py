"""In which batches are items scored? Fixed once, so that an item's result never depends on what else is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from evaluators.evaluator import Indices, Splits


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that go through the model together, and what goes in: tensors whose first dimension is the rows'."""

    rows: Indices  # (b,)
    inputs: Mapping[str, Tensor]


class Batches:
    """The fixed batches of an evaluator's items.

    Results of a batched forward differ in the last bits with the batch's composition. So a subset runs the whole
    batches that hold one of its items, and gives what a full run gives, to the bit.
    """

    def __init__(self, batches: Sequence[Batch], pad_id: int = 0) -> None:
        self._batches, self._pad_id = batches, pad_id
        self._at = {row: number for number, batch in enumerate(batches) for row in batch.rows.tolist()}
        self._place = {row: place for batch in batches for place, row in enumerate(batch.rows.tolist())}

    @cached_property
    def rows(self) -> Indices:
        """All rows, sorted."""
        return np.sort(np.concatenate([batch.rows for batch in self._batches]))

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of what goes in for each row: its number and tensors without padding, however batched."""
        found = hashlib.sha256()
        for row in self.rows.tolist():
            for column, values in sorted(self._one(row).items()):
                found.update(f"{row} {column} {values.dtype} {tuple(values.shape)}\n".encode())
                found.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def run(self, items: Indices, step: Callable[[Batch], Tensor]) -> Tensor:
        """`step`'s results, one row an item, in the order of `items` (n,), which are rows of the batches."""
        chosen = sorted({self._at[row] for row in items.tolist()})
        rows = np.concatenate([self._batches[number].rows for number in chosen])
        place = np.empty(int(rows.max()) + 1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        out = torch.cat([step(self._batches[number]) for number in chosen])
        return out[torch.from_numpy(place[items]).to(out.device)]

    def take(self, rows: Indices) -> dict[str, Tensor]:
        """What goes in for these rows, in their order, as one batch: texts padded to the longest of them."""
        found = [self._one(row) for row in rows.tolist()]
        columns = found[0].keys()
        if "attention_mask" not in columns:
            return {column: torch.stack([inputs[column] for inputs in found]) for column in columns}
        return {
            column: torch.nn.utils.rnn.pad_sequence(
                [inputs[column] for inputs in found],
                batch_first=True,
                padding_value=self._pad_id if column == "input_ids" else 0,
            )
            for column in columns
        }

    def unpadded(self, rows: Indices, size: int) -> list[Indices]:
        """These rows (n,) in groups of one length, at most `size` each: the shortest first, then by row number."""
        by_length: dict[int, list[int]] = {}
        for row in sorted(rows.tolist()):
            by_length.setdefault(len(next(iter(self._one(row).values()))), []).append(row)
        return [np.array(c, dtype=np.int64) for _, group in sorted(by_length.items()) for c in _chunks(group, size)]

    def _one(self, row: int) -> dict[str, Tensor]:
        """One row's inputs, without padding."""
        inputs, place = self._batches[self._at[row]].inputs, self._place[row]
        mask = inputs.get("attention_mask")
        length = None if mask is None else int(mask[place].sum())
        return {
            column: values[place] if length is None else values[place, :length] for column, values in inputs.items()
        }

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def by_item(states: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Hidden states `(b, t, d)` of each item, `(n, d)`, without padding; those of an image in one row, `(1, t * d)`."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return list(states.flatten(1).unsqueeze(1))
    return [state[:n] for state, n in zip(states, mask.sum(dim=1).tolist(), strict=True)]


def by_length(splits: Iterable[Indices], lengths: Mapping[int, int], size: int) -> list[Indices]:
    """Rows of one split, or block, `size` at a time, of similar length: little is spent on padding."""
    return [
        np.array(rows, dtype=np.int64)
        for split in splits
        for rows in _chunks(sorted(split.tolist(), key=lambda row: (lengths[row], row)), size)
    ]


def in_order(splits: Splits, size: int) -> list[Indices]:
    """Rows of one split, `size` at a time."""
    return [np.array(rows, dtype=np.int64) for split in splits for rows in _chunks(split.tolist(), size)]


def pad(
    rows: Indices, encoded: Mapping[int, Mapping[str, Sequence[int]]], pad_id: int, device: torch.device
) -> dict[str, Tensor]:
    """Token fields of these rows, padded on the right to the longest: `input_ids` with `pad_id`, others with 0."""
    columns = encoded[int(rows[0])].keys()
    return {
        column: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(encoded[row][column], dtype=torch.int64) for row in rows.tolist()],
            batch_first=True,
            padding_value=pad_id if column == "input_ids" else 0,
        ).to(device)
        for column in columns
    }


def _chunks(rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
