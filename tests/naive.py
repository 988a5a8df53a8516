"""What is a composition, said as plainly as it can be? Dense float32 tensors, nothing streamed, nothing kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.algebra.draws import UNIT, draws
from searchspaces.composition import Composition, Keep
from searchspaces.method import Method
from searchspaces.option import Option, complete
from searchspaces.row import Row
from searchspaces.weights import kernel
from searchspaces.weights.packed import Packed
from searchspaces.weights.sources import Sources


@dataclass
class NaiveFacts:
    """`searchspaces.facts.facts.Facts` of one tensor, by sorting."""

    name: str
    base: torch.Tensor
    experts: Sequence[torch.Tensor]
    seed: int = 0

    def __post_init__(self) -> None:
        self.shape, self.size, self.count = tuple(self.base.shape), self.base.numel(), len(self.experts)
        self.deltas = torch.stack([e.float() - self.base.float() for e in self.experts])
        self._sorted = [d.abs().flatten().sort(descending=True).values for d in self.deltas]

    def magnitude(self, k: int, rank: int) -> float:
        return float(self._sorted[k][rank - 1])

    def tied(self, k: int, magnitude: float) -> tuple[int, int]:
        found = self.deltas[k].abs()
        return int((found > magnitude).sum()), int((found == magnitude).sum())

    def mass(self, k: int, least: float, most: float) -> tuple[float, float]:
        found = self.deltas[k].abs().double()
        return float(found[(found >= least) & (found <= most)].sum()), float(found.sum())

    def ranks(self, k: int) -> torch.Tensor:
        rows = _rows(self.deltas[k].abs())
        ranks = rows.argsort(dim=1, stable=True).argsort(dim=1)
        if rows.shape[1] == 1:
            return torch.full((self.size,), 255, dtype=torch.uint8)
        return (ranks * 255 / (rows.shape[1] - 1)).round().to(torch.uint8).flatten()

    def spread(self, share: float) -> tuple[float, float]:
        if share >= 1:
            return 0.0, 1.0
        varied = variance(self.deltas).flatten().sort(descending=True).values
        count = int(int((varied != 0).sum()) * share)
        if not count:
            return float("inf"), 1.0
        last = varied[count - 1]
        return float(last), (count - int((varied > last).sum())) / int((varied == last).sum())

    def energies(self, spread: float) -> NDArray[np.float64]:
        kept = self.deltas.double() * (variance(self.deltas) >= spread)
        return kept.square().reshape(self.count, -1).mean(dim=1).numpy()

    def gram(self) -> NDArray[np.float64]:
        flat = torch.cat([self.base.float()[None], self.deltas]).reshape(self.count + 1, -1).double()
        return (flat @ flat.T).numpy()

    def row_grams(self, columns: bool = False) -> NDArray[np.float64]:
        whole = torch.cat([self.base.float()[None], self.deltas]).double()
        whole = torch.stack([_columns(t) if columns else _rows(t) for t in whole], dim=1)  # (rows, K + 1, n)
        return (whole @ whole.transpose(1, 2)).numpy()

    def key(self, k: int | None, seeded: bool = True) -> int:
        said = f"{self.seed if seeded else 'any'} {k} {self.name}"
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "little")


def company(count: int, *shape: int, seed: int = 0) -> NaiveFacts:
    """A random tensor of base and experts."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw)
    return NaiveFacts("layer.weight", base, [base + 0.2 * torch.randn(shape, generator=draw) for _ in range(count)])


def made(method: str, options: dict[str, Option] | None = None) -> Method:
    """A method, its defaults filled in."""
    kind = methods.load(method)
    return kind(complete(method, kind.options, options or {}))


def composed(
    method: str, facts: NaiveFacts, weights: Sequence[float], options: dict[str, Option] | None = None
) -> Composition:
    """What becomes of one tensor; options by expert are arrays `(1, K)`."""
    specs = methods.load(method).options
    row = Row.of(specs, np.array([weights], dtype=np.float64), complete(method, specs, options or {}), 0)
    return made(method, options).compose(row, facts)


def merged(
    method: str, facts: NaiveFacts, weights: Sequence[float], options: dict[str, Option] | None = None
) -> torch.Tensor:
    """One tensor, float32."""
    return run(composed(method, facts, weights, options), facts.base.float(), facts.deltas)


def shipped(
    method: str, facts: NaiveFacts, weights: Sequence[float], options: dict[str, Option] | None = None
) -> torch.Tensor:
    """The same by what merges models, float32."""
    composition, out = composed(method, facts, weights, options), torch.empty(facts.size)
    base, *full = (t.float().flatten().contiguous() for t in (facts.base, *facts.experts))
    none, every = np.zeros(0, dtype=np.int64), np.arange(facts.count)
    addresses, codes = np.array([t.data_ptr() for t in full]), np.full(facts.count, kernel.CODES[torch.float32])
    differ = (False,) * facts.count
    sources = Sources(base, facts.count, tuple(full), every, differ, (), none, addresses, codes, True)
    sources.merge(out, composition if composition.plain else Packed.of(composition, facts.shape), 0, facts.size)
    return out.reshape(facts.shape)


def run(c: Composition, base: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """The merged tensor; `deltas` are the raw task vectors, stacked."""
    if c.weights.ndim == 2:
        return _by_rows(c, base, deltas)
    weights = _wide(c.weights, deltas)
    kept = torch.stack([_kept(k, d) for k, d in zip(c.keeps, deltas, strict=True)]) if c.keeps else deltas
    varied, order = variance(deltas), draws(c.key, 0, base.numel()).reshape(base.shape) / UNIT
    agree = _agree(c, kept, deltas, weights).float() * ((varied > c.spread) | (varied == c.spread) & (order < c.until))
    divisor = (agree * _wide(c.divisors, deltas)).sum(0) if c.divisors is not None else torch.ones_like(base)
    gains = _wide(c.gains if c.gains is not None else np.ones(len(deltas)), deltas)
    added = weights * gains * agree * kept * c.scale / torch.where(divisor == 0, 1.0, divisor)
    return float(c.base) * base + added.sum(0)


def variance(deltas: torch.Tensor) -> torch.Tensor:
    """Over experts, biased."""
    return (deltas - deltas.mean(0)).square().mean(0)


def _agree(c: Composition, kept: torch.Tensor, deltas: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if c.consensus in ("weighted", "equal"):
        votes = kept * weights if c.consensus == "weighted" else kept
        return votes.sign() == torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    if c.consensus == "largest":
        return torch.nn.functional.one_hot(kept.abs().argmax(0), len(kept)).movedim(-1, 0)
    if c.consensus == "shared":
        masks = deltas.abs() > c.threshold * (deltas.sum(0) - deltas).abs()
        return (masks.sum(0) >= c.least).expand(deltas.shape)
    return torch.ones_like(kept)


def _kept(keep: Keep, delta: torch.Tensor) -> torch.Tensor:
    share = torch.full_like(delta, keep.share)
    if keep.ranks is not None:
        share += keep.slope * (2 * keep.ranks.float().reshape(delta.shape) / 255 - 1)
    drawn = draws(keep.key, 0, delta.numel()).reshape(delta.shape) / UNIT
    stays = (delta.abs() >= keep.least) & (delta.abs() <= keep.most) & (drawn < share)
    if keep.tied:
        stays &= (delta.abs() != keep.least) | (drawn < keep.until)
        stays &= (delta.abs() != keep.most) | (drawn >= keep.after)
    return keep.factor * stays * delta / (share if keep.rescale else 1.0)


def _by_rows(c: Composition, base: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    rows = [_columns(t) if c.columns else _rows(t) for t in (base, *deltas)]
    scales = np.concatenate([np.asarray(c.base)[:, None], c.weights], axis=1)
    found = sum(torch.from_numpy(np.float32(scales[:, k : k + 1])) * r for k, r in enumerate(rows))
    return (found.T if c.columns else found).reshape(base.shape)


def _wide(values: NDArray[np.floating], deltas: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.float32(values)).reshape(-1, *[1] * (deltas.dim() - 1))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)


def _columns(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(tensor.shape[0], -1).T
