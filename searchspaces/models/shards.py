"""How is a checkpoint written that is larger than memory? Sharded safetensors, one tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from searchspaces.models import headers

DTYPES = {dtype: name for name, dtype in headers.DTYPES.items()}

MOST = 10_000
"""Tensors of a shard: with names of any length, a header of these is within what `headers` reads."""


@dataclass(frozen=True)
class Spec:
    """A tensor that is to be written: name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count * self.dtype.itemsize


def plan(specs: Sequence[Spec], shard_bytes: int) -> list[list[Spec]]:
    """Tensors in order, cut into shards of at most `shard_bytes` (a larger tensor has its own), and `MOST` tensors."""
    shards: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if len(shards[-1]) == MOST or (shards[-1] and size + spec.bytes > shard_bytes):
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.bytes
    return shards


def write(
    folder: Path, specs: Sequence[Spec], tensors: Iterator[tuple[str, torch.Tensor]], shard_bytes: int = 5_000_000_000
) -> list[Path]:
    """Write `tensors`, which come in the order of `specs`, as `model*.safetensors` and, if sharded, their index.

    Memory: one tensor. Every file is synced. Raises ValueError where a tensor is not what its spec announced.
    """
    shards = plan(specs, shard_bytes)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, tensors)
    paths = [folder / n for n in names]
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(s.bytes for s in specs)},
            "weight_map": {s.name: n for n, shard in zip(names, shards, strict=True) for s in shard},
        }
        paths.append(folder / "model.safetensors.index.json")
        write_text(paths[-1], json.dumps(index, indent=2))
    return paths


def write_text(path: Path, text: str) -> None:
    """Write a text file and sync it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, shard: Sequence[Spec], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write one safetensors file of `tensors`, which come in the order of `shard`; otherwise as `write`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in shard:
        header[spec.name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data to start at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for spec in shard:
            name, tensor = next(tensors)
            if (name, tuple(tensor.shape), tensor.dtype) != (spec.name, spec.shape, spec.dtype):
                raise ValueError(f"expected {spec}, got {name} {tuple(tensor.shape)} {tensor.dtype}")
            if tensor.numel():  # torch gives no bytes of none
                file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
