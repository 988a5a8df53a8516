"""What is in one adapter folder? A LoRA as PEFT saves it, read as low-rank task vectors of a base, never densified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from searchspaces.adapters.adapter_config import LoraConfig
from searchspaces.adapters.adapter_reader import Factors, Reader
from searchspaces.adapters.lowrank import LowRank
from searchspaces.errors import PoolError
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """An expert that is the base but for what an adapter's folder changes. Looks like a `Checkpoint` of a whole model.

    `low` are the tensors with a task vector of low rank, `full` those stored whole (modules_to_save, biases), by the
    base's names; a head that the base lacks keeps the name that the file gives it.
    """

    label: str
    folder: Path
    config: Mapping[str, Any]  # of the adapter
    tensors: Mapping[str, TensorInfo]
    low: Mapping[str, Factors]
    full: Mapping[str, str]  # name -> its name in the file
    _base: Checkpoint = field(repr=False)
    _file: Checkpoint = field(repr=False)  # the weights under the names that they have there

    @classmethod
    def open(cls, folder: Path, label: str, base: Checkpoint) -> Adapter:
        """Read an adapter's config and header against its base. No weights are read, but for tied or repeated ones.

        Raises PoolError for what is no LoRA, what cannot be read as a low-rank task vector, tensors that the base
        lacks, factors of other shapes, and files that are missing, malformed or truncated.
        """
        config = LoraConfig.read(folder / CONFIG, label)
        path = folder / WEIGHTS
        if not path.is_file():
            raise PoolError(f"{label}: {folder} has no {WEIGHTS}; only safetensors are read: save it with PEFT")
        found = read_header(path, label)
        file = Checkpoint(
            label, folder, {}, {n: t for n, (t, _) in found.items()}, {n: s for n, (_, s) in found.items()}
        )
        said = Reader(label, config, file, base).read()
        return cls(label, folder, config.raw, said.tensors, said.low, said.full, base, file)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({f.rank for f in self.low.values()}))

    @property
    def bytes(self) -> int:
        """Size of the adapter's own tensors together, in bytes."""
        return self._file.bytes

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that holds the tensors."""
        return self._file.files

    @property
    def config_file(self) -> Path:
        """The file that says what the tensors are of."""
        return self.folder / CONFIG

    @property
    def model_folder(self) -> Path:
        """The folder whose config.json says which model this is: its own where it has one, or the base's."""
        return self.folder if (self.folder / "config.json").is_file() else self._base.folder

    @property
    def opened(self) -> None:
        """Its file is as it was opened, whatever becomes of the base's rows of tokens."""
        return None

    def rebased(self, base: Checkpoint) -> Adapter:
        """The same adapter of a base whose rows of tokens were moved; raises PoolError where it changes them too."""
        moved = [t for t, place in base.stored.items() if self._base.stored.get(t) != place]
        if odd := [t for t in moved if t in self.low or t in self.full]:
            raise PoolError(
                f"{self.label} changes {odd[0]!r}, whose rows models.vocabulary moves; merge the adapter into its base "
                "first, or leave models.vocabulary out"
            )
        infos = {t: base.tensors[t] for t in moved if t in self.tensors}
        return replace(self, tensors={**self.tensors, **infos}, _base=base) if moved else self

    def describe(self) -> str:
        """Ranks, tensors and size, for people."""
        ranks = ", ".join(map(str, self.ranks)) or "0"
        whole = f", {len(self.full)} stored whole" if self.full else ""
        return f"rank {ranks}, {len(self.low)} tensors of low rank{whole}, {self.bytes / 1e6:.1f} MB"

    def source(self, name: str) -> torch.Tensor | LowRank | None:
        """What a merge reads of one tensor: the tensor, its task vector, or nothing where it is the base's."""
        if name in self.full:
            return self._file.tensor(self.full[name])
        return self._low[name] if name in self.low else None

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor of the expert: float32 where its task vector is of low rank, and made when asked for."""
        found = self.source(name)
        if isinstance(found, LowRank):
            return found.added(self._base.tensor(name))
        return self._base.tensor(name) if found is None else found

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in ...) and B (out, r ...) of a tensor in `low`, as they are stored."""
        found = self.low[name]
        a, b = self._file.tensor(found.a), self._file.tensor(found.b)
        return (a, b) if found.piece is None else found.piece.cut(a, b)

    @cached_property
    def _low(self) -> dict[str, LowRank]:
        made = {}
        for name, factors in self.low.items():
            a, b = self.factors(name)
            a, b = a.reshape(factors.rank, -1), b.reshape(-1, factors.rank)
            left, right = (a.T, b.T) if factors.turned else (b, a)
            made[name] = LowRank(left, right, factors.scale)
        return made


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return (folder / CONFIG).is_file() and not whole
