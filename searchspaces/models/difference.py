"""What is an expert whose task vectors were processed? The base, and differences that are kept as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import TensorInfo
from searchspaces.models.kept import Kept


@dataclass(frozen=True, eq=False)
class Difference:
    """`theta'_k - theta_0` of one tensor itself: added to a base, it would lose digits in a narrow dtype."""

    tensor: torch.Tensor


@dataclass(frozen=True, eq=False)
class Processed:
    """An expert as a method merges it: the base plus processed task vectors, which are mapped like any checkpoint."""

    label: str
    config: Mapping[str, Any]
    base: Checkpoint
    kept: Kept  # the differences, under the base's names

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is kept of each tensor."""
        return self.kept.tensors

    @property
    def folder(self) -> Path:
        """Where the differences lie, all experts' together."""
        return self.kept.folder

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the differences."""
        return self.kept.files

    @property
    def bytes(self) -> int:
        """Size of all differences together, in bytes."""
        return self.kept.bytes

    def source(self, name: str) -> Difference:
        """What a merge reads of one tensor."""
        return Difference(self.kept.tensor(name))

    def tensor(self, name: str) -> torch.Tensor:
        """Base and processed task vector together, a new float32 tensor."""
        return self.base.tensor(name).float() + self.kept.tensor(name).float()
