"""What is known of a pool's tensors? The facts that methods ask for, computed once on a host, kept and mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from weakref import proxy

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.algebra.draws import key_of
from searchspaces.errors import CacheError
from searchspaces.facts.columns import TABLES, period_of, rows_of, width_of
from searchspaces.facts.deltas import Deltas
from searchspaces.facts.orders import Order
from searchspaces.facts.tables import Tables
from searchspaces.facts.variances import Gap, Variances
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
    Methods raise CacheError where a table has no room on the disk, and where they see that it is not of these weights.
    """

    def __init__(
        self,
        pool: Pool,
        hashes: Mapping[str, str] | None = None,
        seed: int = 0,
        threads: int = 1,
        progress: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.pool, self.seed = pool.original, seed
        tables = Tables(self.pool, hashes, threads, progress)
        self._of = {info.name: TensorFacts(tables, seed, i, info) for i, info in enumerate(self.pool.merged)}

    def of(self, name: str) -> TensorFacts:
        """Of one merged tensor; raises KeyError for another name."""
        return self._of[name]


class TensorFacts:
    """`facts.Facts` of one tensor, the `place`-th of its pool."""

    def __init__(self, tables: Tables, seed: int, place: int, info: TensorInfo) -> None:
        self.name, self.shape, self.size = info.name, info.shape, info.numel
        self.count = len(tables.pool.names)
        self._tables, self._pool, self._seed, self._place = tables, tables.pool, seed, place
        me = proxy(self)  # what remembers a method's answers would else hold on to it, and it to a pool
        self._between = lru_cache(REMEMBERED * self.count)(lambda k, j: TensorFacts._look_between(me, k, j))
        self._gap = lru_cache(REMEMBERED)(lambda j: TensorFacts._look_into_gap(me, j))
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
        return self._kept("ranks", k, lambda f: [f._make_ranks(k)])[0]

    def spread(self, share: float) -> tuple[float, float]:
        """As of `Facts`; the variance of an entry is that of `streams.fill`."""
        return (0.0, 1.0) if share >= 1 else self._variances().at(share, self._gap)

    def energies(self, spread: float) -> NDArray[np.float64]:
        """As of `Facts`; sums are float64."""
        return self._variances().energies(spread, self._gap) / max(1, self.size)

    def gram(self) -> NDArray[np.float64]:
        """As of `Facts`; products of fp32 numbers, exact and summed in float64."""
        return self._kept("grams", None, TensorFacts._make_gram)[0].numpy().copy()

    def row_grams(self, columns: bool = False) -> NDArray[np.float64]:
        """As of `Facts`, mapped and read-only; with `columns`, of each position in all but the first dimension."""
        if columns:
            return self._kept("column_grams", None, TensorFacts._make_column_grams)[0].numpy()
        return self._kept("row_grams", None, TensorFacts._make_row_grams)[0].numpy()

    def key(self, k: int | None, seeded: bool = True) -> int:
        """As of `Facts`: of seed, expert and tensor, or of those of them that are meant."""
        expert = [] if k is None else [self._pool.names[k]]
        return key_of(*([self._seed] if seeded else []), *expert, self.name)

    def _kept(self, kind: str, k: int | None, make: Callable[[TensorFacts], list[torch.Tensor]]) -> list[torch.Tensor]:
        """This tensor's arrays of a table."""
        tables, seed, count = self._tables, self._seed, self.count
        table = tables.of(
            kind,
            k,
            lambda info: TABLES[kind](info, count),
            lambda place, info: make(TensorFacts(tables, seed, place, info)),
        )
        info = TensorInfo(self.name, self.shape, torch.float32)
        return [table.tensor(f"{self._place}.{c}") for c, _, _ in TABLES[kind](info, self.count)]

    def _order(self, k: int) -> Order:
        """Of expert k's magnitudes."""
        if k not in self._orders:
            arrays = self._kept("magnitudes", k, lambda f: f._make_order(k))
            self._orders[k] = Order(*(a.numpy() for a in arrays))
        return self._orders[k]

    def _variances(self) -> Variances:
        if self._varied is None:
            arrays = self._kept("variances", None, TensorFacts._make_variances)
            *order, squares, bins = (a.numpy() for a in arrays)
            self._varied = Variances(Order(*order), squares, bins)
        return self._varied

    def _deltas(self, k: int | None = None) -> Deltas:
        names = self._pool.names
        return Deltas.of(self._pool, self.name, names if k is None else (names[k],))

    def _numbers(self, k: int | None, start: int, stop: int) -> NDArray[np.float32]:
        """Magnitudes of expert k, or variances, of elements `start` to `stop`."""
        from searchspaces.facts import streams

        out = np.empty(stop - start, np.float32)
        for piece in self._deltas(k).pieces(start, stop):
            streams.fill(*piece, k is None, out[piece[4] - start : piece[5] - start])
        return out

    def _look_between(self, k: int, j: int) -> NDArray[np.float32]:
        """The magnitudes between knots j and j + 1, ascending: one pass, and memory for what is found."""
        from searchspaces.facts import streams

        order = self._order(k)
        out = np.empty(int(order.above[j + 1] - order.until[j]), np.float32)
        found = 0
        for piece in self._deltas(k).pieces():
            found = streams.between(*piece, order.values[j + 1], order.values[j], out, found)
            if found < 0:
                break
        if found != len(out):
            raise self._changed("magnitudes", k)
        out.sort()
        return out

    def _look_into_gap(self, j: int) -> Gap:
        """What lies between knots j and j + 1 of the variances: a pass over their bins, few weights."""
        gap = self._variances().look(self._deltas().pieces(), j)
        if gap is None:
            raise self._changed("variances", None)
        return gap

    def _changed(self, kind: str, k: int | None) -> CacheError:
        return CacheError(
            f"tensor {self.name!r}: its weights do not fit the table in {self._tables.folder(kind, k)}: a file of the "
            "models was changed since it was opened, or the table was; start again, and if it comes again remove the "
            "folder, and it is made again"
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
        from searchspaces.facts import streams

        out, width = np.empty(self.size, np.uint8), width_of(self.shape)
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
        return [self._grams_of(1, self.size)[0]]

    def _make_row_grams(self) -> list[torch.Tensor]:
        return [self._grams_of(rows_of(self.shape), width_of(self.shape))]

    def _grams_of(self, rows: int, width: int) -> torch.Tensor:
        """Of each of so many rows of the flat tensor."""
        from searchspaces.facts import streams

        out = np.zeros((rows, self.count + 1, self.count + 1))
        for piece in self._deltas().pieces():
            streams.row_grams(*piece, max(1, width), out)
        return torch.from_numpy(out)

    def _make_column_grams(self) -> list[torch.Tensor]:
        from searchspaces.facts import streams

        side, period = self.count + 1, period_of(self.shape)
        pairs = np.zeros((side * (side + 1) // 2, period))
        for piece in self._deltas().pieces():
            streams.column_grams(*piece, max(1, period), pairs)
        out = np.empty((period, side, side))
        for pair, i, j in zip(pairs, *np.tril_indices(side), strict=True):
            out[:, i, j] = out[:, j, i] = pair
        return [torch.from_numpy(out)]
