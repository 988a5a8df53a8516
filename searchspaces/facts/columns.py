"""What does each kind of table hold of a tensor? Names, shapes and dtypes of arrays, before any is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from searchspaces.facts.orders import knots
from searchspaces.facts.tables import Columns
from searchspaces.models.headers import TensorInfo
from searchspaces.models.shards import Spec


def magnitudes(info: TensorInfo, count: int) -> Columns:
    """Knots of the order of one expert's magnitudes, as `orders.Order`."""
    kept = len(knots(info.numel))
    return [
        ("values", (kept,), torch.float32),
        ("above", (kept,), torch.int64),
        ("until", (kept,), torch.int64),
        ("sums", (kept,), torch.float64),
    ]


def variances(info: TensorInfo, count: int) -> Columns:
    """Knots of the order of the variances over `count` experts, and each entry's bin, as `variances.Variances`."""
    order = magnitudes(info, count)
    kept = order[0][1][0]
    bins = info.numel if kept < info.numel else 0
    return [*order, ("squares", (kept, count), torch.float64), ("bins", (bins,), torch.uint16)]


def ranks(info: TensorInfo, count: int) -> Columns:
    """Each entry's rank within its row."""
    return [("ranks", (info.numel,), torch.uint8)]


def grams(info: TensorInfo, count: int) -> Columns:
    """Inner products of base and task vectors."""
    return [("gram", (count + 1, count + 1), torch.float64)]


def row_grams(info: TensorInfo, count: int) -> Columns:
    """The same row by row."""
    return [("grams", (rows_of(info.shape), count + 1, count + 1), torch.float64)]


def column_grams(info: TensorInfo, count: int) -> Columns:
    """The same position by position of all but the first dimension."""
    return [("grams", (period_of(info.shape), count + 1, count + 1), torch.float64)]


TABLES: Mapping[str, Callable[[TensorInfo, int], Columns]] = {
    "magnitudes": magnitudes,
    "ranks": ranks,
    "variances": variances,
    "grams": grams,
    "row_grams": row_grams,
    "column_grams": column_grams,
}
"""Kind -> columns of a tensor's table, for K experts in all."""

OF_ONE_EXPERT = frozenset({"magnitudes", "ranks"})
"""Kinds that have a table for each expert; the others have one for all."""


def bytes_of(kind: str, info: TensorInfo, count: int) -> int:
    """What a pool of `count` experts keeps of a tensor in tables of a kind."""
    one = sum(Spec(name, shape, dtype).bytes for name, shape, dtype in TABLES[kind](info, count))
    return one * count if kind in OF_ONE_EXPERT else one


def width_of(shape: tuple[int, ...]) -> int:
    """The length of a row: the last dimension."""
    return shape[-1] if shape else 1


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows there are: all but the last dimension."""
    return math.prod(shape[:-1])


def period_of(shape: tuple[int, ...]) -> int:
    """How many positions all but the first dimension have."""
    return math.prod(shape[1:])
