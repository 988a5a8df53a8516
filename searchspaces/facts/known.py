"""What is known of a pool's tensors? The facts that methods ask for, computed once on a host, kept and mapped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import RLock

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.errors import PoolError
from searchspaces.facts import streams
from searchspaces.facts.deltas import Deltas
from searchspaces.facts.orders import Order, knots
from searchspaces.facts.tables import Columns, kept
from searchspaces.facts.variances import Gap, Variances
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import TensorInfo
from searchspaces.models.pool import Pool

REMEMBERED = 16
"""For each tensor and expert, the gaps between knots whose numbers stay in memory: what a search asks again is free."""

BLOCK = 1 << 20  # elements whose ranks are found at a time


class KnownFacts:
    """Facts of each merged tensor of a pool, as it was opened, whatever is done to its task vectors before a merge.

    `hashes` are the models', `pool.hashes()` where they are not given; `seed` is the recipe's. A table is made for all
    tensors when one of it is first asked for, on `threads` threads; `progress` is then called with each tensor's name.
    May be asked from several threads. What is found has the same bits in every process, whatever their number.

    Tables of one expert are named by the contents of it and of the base, so that all pools with the two share them.
    Methods raise PoolError where a table has no room on the disk, and where they see that weights are not those hashed.
    """

    def __init__(
        self,
        pool: Pool,
        hashes: Mapping[str, str] | None = None,
        seed: int = 0,
        threads: int = 1,
        progress: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.pool = pool.original
        self.seed = seed
        self._hashes = hashes
        self._threads = threads
        self._progress = progress
        self._lock = RLock()
        self._tables: dict[tuple[str, int | None], Checkpoint] = {}
        self._of = {info.name: TensorFacts(self, i, info) for i, info in enumerate(self.pool.merged)}

    def of(self, name: str) -> TensorFacts:
        """Of one merged tensor; raises KeyError for another name."""
        return self._of[name]

    def table(
        self,
        kind: str,
        k: int | None,
        columns: Callable[[TensorInfo], Columns],
        make: Callable[[TensorFacts], list[torch.Tensor]],
    ) -> Checkpoint:
        """The table of a kind for expert k, or for all of them; made at first need. Raises PoolError as `kept` does."""
        with self._lock:
            if (kind, k) not in self._tables:
                if self._hashes is None:
                    self._hashes = self.pool.hashes()
                experts = self.pool.names if k is None else (self.pool.names[k],)
                self._tables[kind, k] = kept(
                    kind,
                    [self._hashes["base"], *(self._hashes[e] for e in experts)],
                    self.pool.merged,
                    columns,
                    lambda info: make(self._of[info.name]),
                    self._threads,
                    self._progress,
                )
            return self._tables[kind, k]


class TensorFacts:
    """`facts.Facts` of one tensor, the `place`-th of its pool."""

    def __init__(self, known: KnownFacts, place: int, info: TensorInfo) -> None:
        self.name, self.shape, self.size = info.name, info.shape, info.numel
        self.count = len(known.pool.names)
        self._known, self._place = known, place
        self._between = lru_cache(REMEMBERED * self.count)(self._look_between)
        self._gap = lru_cache(REMEMBERED)(self._look_into_gap)
        self._orders: dict[int, Order] = {}
        self._varied: Variances | None = None

    def magnitude(self, k: int, rank: int) -> float:
        """As of `Facts`; raises ValueError for a rank that no entry has."""
        if not 1 <= rank <= self.size:
            raise ValueError(f"tensor {self.name!r} has no entry of rank {rank}; expected 1 to {self.size}")
        return self._order(k).at(rank, lambda j: self._between(k, j))

    def tied(self, k: int, magnitude: float) -> tuple[int, int]:
        """As of `Facts`; exact, of magnitudes in fp32."""
        return self._order(k).count(magnitude, lambda j: self._between(k, j))

    def mass(self, k: int, least: float, most: float) -> tuple[float, float]:
        """As of `Facts`, float64; the bounds are rounded to fp32, as magnitudes are."""
        order, first, last = self._order(k), float(np.float32(least)), float(np.float32(most))
        numbers = [
            order.sum(first, lambda j: self._between(k, j)),
            order.sum(last, lambda j: self._between(k, j), strictly=True),
            order.sum(0.0, lambda j: self._between(k, j)),
        ]
        return max(0.0, numbers[0] - numbers[1]), numbers[2]

    def ranks(self, k: int) -> torch.Tensor:
        """As of `Facts`, mapped; an entry that is alone in its row has 255, and of equal ones the first the least."""
        return self._kept("ranks", k, lambda t: [("ranks", (t.numel,), torch.uint8)], lambda f: [f._make_ranks(k)])[0]

    def spread(self, share: float) -> float:
        """As of `Facts`; the variance of an entry is that of `streams.fill`."""
        return 0.0 if share >= 1 else self._variances().at(share, self._gap)

    def energies(self, spread: float) -> NDArray[np.float64]:
        """As of `Facts`; sums are float64."""
        return self._variances().energies(spread, self._gap) / max(1, self.size)

    def gram(self) -> NDArray[np.float64]:
        """As of `Facts`; products of fp32 numbers, exact and summed in float64."""
        side = self.count + 1
        found = self._kept("grams", None, lambda t: [("gram", (side, side), torch.float64)], TensorFacts._make_gram)
        return found[0].numpy().copy()

    def row_grams(self, columns: bool = False) -> NDArray[np.float64]:
        """As of `Facts`, mapped and read-only; with `columns`, of each position in all but the first dimension."""
        side = self.count + 1
        if columns:
            found = self._kept(
                "column_grams",
                None,
                lambda t: [("grams", (_period(t.shape), side, side), torch.float64)],
                TensorFacts._make_column_grams,
            )
        else:
            found = self._kept(
                "row_grams",
                None,
                lambda t: [("grams", (_rows(t.shape), side, side), torch.float64)],
                TensorFacts._make_row_grams,
            )
        return found[0].numpy()

    def key(self, k: int, seeded: bool = True) -> int:
        """As of `Facts`: the first 32 bits of the sha256 of seed, expert and tensor, or of these two."""
        said = json.dumps([*([self._known.seed] if seeded else []), self._known.pool.names[k], self.name])
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "little")

    def _kept(
        self,
        kind: str,
        k: int | None,
        columns: Callable[[TensorInfo], Columns],
        make: Callable[[TensorFacts], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """This tensor's arrays of a table."""
        table = self._known.table(kind, k, columns, make)
        info = TensorInfo(self.name, self.shape, torch.float32)
        return [table.tensor(f"{self._place}.{c}") for c, _, _ in columns(info)]

    def _order(self, k: int) -> Order:
        """Of expert k's magnitudes."""
        if k not in self._orders:
            arrays = self._kept("magnitudes", k, _order_columns, lambda f: f._make_order(k))
            self._orders[k] = Order(*(a.numpy() for a in arrays))
        return self._orders[k]

    def _variances(self) -> Variances:
        if self._varied is None:
            count = self.count
            arrays = self._kept("variances", None, lambda t: _variance_columns(t, count), TensorFacts._make_variances)
            *order, squares, bins = (a.numpy() for a in arrays)
            self._varied = Variances(Order(*order), squares, bins)
        return self._varied

    def _deltas(self, k: int | None = None) -> Deltas:
        names = self._known.pool.names
        return Deltas.of(self._known.pool, self.name, names if k is None else (names[k],))

    def _numbers(self, k: int | None, start: int, stop: int) -> NDArray[np.float32]:
        """Magnitudes of expert k, or variances, of elements `start` to `stop`."""
        out = np.empty(stop - start, np.float32)
        for piece in self._deltas(k).pieces(start, stop):
            streams.fill(*piece, k is None, out[piece[4] - start : piece[5] - start])
        return out

    def _look_between(self, k: int, j: int) -> NDArray[np.float32]:
        """The magnitudes between knots j and j + 1, ascending: one pass, and memory for what is found."""
        order = self._order(k)
        out = np.empty(int(order.above[j + 1] - order.until[j]), np.float32)
        found = 0
        for piece in self._deltas(k).pieces():
            found = streams.between(*piece, order.values[j + 1], order.values[j], out, found)
            if found < 0:
                break
        if found != len(out):
            raise self._changed()
        out.sort()
        return out

    def _look_into_gap(self, j: int) -> Gap:
        """What lies between knots j and j + 1 of the variances: a pass over their bins, few weights."""
        gap = self._variances().look(self._deltas().pieces(), j)
        if gap is None:
            raise self._changed()
        return gap

    def _changed(self) -> PoolError:
        return PoolError(
            f"tensor {self.name!r}: the weights are not those whose hashes were given; a file changed: start again"
        )

    def _make_order(self, k: int) -> list[torch.Tensor]:
        order = Order.of(self._numbers(k, 0, self.size))
        return [torch.from_numpy(a) for a in (order.values, order.above, order.until, order.sums)]

    def _make_variances(self) -> list[torch.Tensor]:
        made = Variances.of(self._numbers(None, 0, self.size), self._deltas().pieces(), self.count)
        order = made.order
        arrays = (order.values, order.above, order.until, order.sums, made.squares, made.bins)
        return [torch.from_numpy(a) for a in arrays]

    def _make_ranks(self, k: int) -> torch.Tensor:
        out, width = np.empty(self.size, np.uint8), _width(self.shape)
        places = np.arange(width, dtype=np.uint64)
        step = max(1, BLOCK // max(1, width)) * width
        for at in range(0, self.size, step or 1):
            stop = min(at + step, self.size)
            bits = self._numbers(k, at, stop).view(np.uint32).astype(np.uint64)
            rows = ((bits << np.uint64(32)).reshape(-1, width)) | places  # sorts by magnitude, then by place
            rows.sort(axis=1)
            streams.place_ranks(rows, out[at:stop].reshape(-1, width))
        return torch.from_numpy(out)

    def _make_gram(self) -> list[torch.Tensor]:
        out = np.zeros((1, self.count + 1, self.count + 1))
        for piece in self._deltas().pieces():
            streams.row_grams(*piece, max(1, self.size), out)
        return [torch.from_numpy(out[0])]

    def _make_row_grams(self) -> list[torch.Tensor]:
        out = np.zeros((_rows(self.shape), self.count + 1, self.count + 1))
        for piece in self._deltas().pieces():
            streams.row_grams(*piece, max(1, _width(self.shape)), out)
        return [torch.from_numpy(out)]

    def _make_column_grams(self) -> list[torch.Tensor]:
        side, period = self.count + 1, _period(self.shape)
        pairs = np.zeros((side * (side + 1) // 2, period))
        for piece in self._deltas().pieces():
            streams.column_grams(*piece, max(1, period), pairs)
        out = np.empty((period, side, side))
        for pair, i, j in zip(pairs, *np.tril_indices(side), strict=True):
            out[:, i, j] = out[:, j, i] = pair
        return [torch.from_numpy(out)]


def _order_columns(info: TensorInfo) -> Columns:
    count = len(knots(info.numel))
    return [
        ("values", (count,), torch.float32),
        ("above", (count,), torch.int64),
        ("until", (count,), torch.int64),
        ("sums", (count,), torch.float64),
    ]


def _variance_columns(info: TensorInfo, count: int) -> Columns:
    order = _order_columns(info)
    knots = order[0][1][0]
    bins = info.numel if knots < info.numel else 0
    return [*order, ("squares", (knots, count), torch.float64), ("bins", (bins,), torch.uint16)]


def _width(shape: tuple[int, ...]) -> int:
    """The length of a row: the last dimension."""
    return shape[-1] if shape else 1


def _rows(shape: tuple[int, ...]) -> int:
    """How many rows there are: all but the last dimension."""
    return math.prod(shape[:-1])


def _period(shape: tuple[int, ...]) -> int:
    """How many positions all but the first dimension have."""
    return math.prod(shape[1:])
