"""What was written to a folder of the cache? Its arrays by name, mapped; what cannot be read names the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from searchspaces.errors import CacheError, PoolError
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import REMEDY, read_header

T = TypeVar("T")


class Kept(Checkpoint):
    """The arrays of a folder's safetensors files, whatever their number; such a folder has no config and no index.

    It is made again once it is removed, and so all that cannot be read raises CacheError that says so.
    """

    @classmethod
    def open(cls, folder: Path, label: str) -> Kept:
        files = sorted(folder.glob("*.safetensors"))
        found = read_again(folder, lambda: {n: e for file in files for n, e in read_header(file, label).items()})
        infos = {name: info for name, (info, _) in found.items()}
        return cls(label, folder, {}, infos, {name: place for name, (_, place) in found.items()})

    def tensor(self, name: str) -> torch.Tensor:
        return read_again(self.folder, lambda: super(Kept, self).tensor(name))


def read_again(folder: Path, read: Callable[[], T]) -> T:
    """What `read` gives of a cached folder; raises CacheError where it raises PoolError."""
    try:
        return read()
    except PoolError as error:
        what = str(error).removesuffix(f"; {REMEDY}")
        raise CacheError(f"{what}; remove the folder {folder}, and it is made again") from error
