"""What was gathered of an expert on its data? One tensor of statistics a merged tensor, mapped from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from searchspaces.errors import CacheError


@dataclass(frozen=True, eq=False)
class Gathered:
    """A folder's statistics by the merged tensor's name; a tensor that nothing was gathered of has none.

    A diagonal Fisher has the merged tensor's shape. A Gram of inputs `x` is the mean of `x x^T` over positions,
    `(n, n)` where they are the tensor's last dimension and `(n, n, 1)` where they are its first.
    """

    folder: Path
    _handles: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Gathered:
        """Raises CacheError where the folder's files cannot be read."""
        handles: dict[str, Any] = {}
        try:
            for file in sorted(folder.glob("*.safetensors")):
                handle = cast(Any, safe_open)(file, "pt")
                handles |= dict.fromkeys(handle.keys(), handle)
        except (SafetensorError, OSError) as error:
            raise _unreadable(folder, error) from error
        return cls(folder, handles)

    def get(self, name: str) -> torch.Tensor | None:
        """One tensor's statistics, float32; None where there are none. Raises CacheError where it cannot be read."""
        if name not in self._handles:
            return None
        try:
            found: torch.Tensor = self._handles[name].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _unreadable(self.folder, error) from error
        return found


def statistics_of(name: str, gathered: Mapping[str, Gathered]) -> dict[str, torch.Tensor]:
    """What was gathered of one tensor, by expert, as `Processing.process` takes it."""
    every = {expert: found.get(name) for expert, found in gathered.items()}
    return {expert: tensor for expert, tensor in every.items() if tensor is not None}


def _unreadable(folder: Path, error: Exception) -> CacheError:
    return CacheError(f"{folder}: statistics that cannot be read ({error}); remove the folder, and they are made again")
