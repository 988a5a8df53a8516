"""What is in one checkpoint folder? Config and tensors: headers checked, bytes mapped lazily, nothing unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from searchspaces.errors import PoolError
from searchspaces.models.headers import REMEDY, Stored, TensorInfo, read_header

MAX_JSON = 25_000_000  # bytes
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_OTHERS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".safetensors"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One folder in Hugging Face layout. `label` is what messages call it: `base`, or `expert 'math'`."""

    label: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    stored: Mapping[str, Stored] = field(repr=False)
    cut: Mapping[str, int] = field(default_factory=dict, repr=False)  # tensors of which only so many rows are used
    opened: Checkpoint | None = field(default=None, repr=False)  # as it was before rows of tokens were moved

    @classmethod
    def open(cls, folder: Path, label: str) -> Checkpoint:
        """Read config and headers, and compare them with the files' sizes. No weights are read.

        Raises PoolError for a folder without config.json or safetensors, a malformed or truncated file, a shard name
        that is no bare file name, a config that wants remote code, and quantised weights.
        """
        config = _config(folder, label)
        tensors: dict[str, TensorInfo] = {}
        stored: dict[str, Stored] = {}
        for file, wanted in _weights(folder, label).items():
            found = read_header(file, label)
            if wanted is not None and wanted != found.keys():
                raise PoolError(
                    f"{label}: {file.name} and model.safetensors.index.json disagree on tensor "
                    f"{min(wanted ^ found.keys())!r}; fetch or save the checkpoint again"
                )
            for name, (info, place) in found.items():
                tensors[name], stored[name] = info, place
        if not tensors:
            raise PoolError(f"{label}: {folder} holds no tensors; save the checkpoint again with save_pretrained()")
        return cls(label, folder, config, tensors, stored)

    @property
    def config_file(self) -> Path:
        """The file that says what the tensors are of."""
        return self.folder / "config.json"

    @property
    def model_folder(self) -> Path:
        """The folder whose config.json says which model this is."""
        return self.folder

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, by name."""
        return tuple(sorted({s.file for s in self.stored.values()}))

    @property
    def bytes(self) -> int:
        """Size of all tensors together, in bytes."""
        return sum(t.bytes for t in self.tensors.values())

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same checkpoint with tensors under other names; `names` maps new name to old, and may leave some out."""
        return replace(
            self,
            tensors={new: self.tensors[old]._replace(name=new) for new, old in names.items()},
            stored={new: self.stored[old] for new, old in names.items()},
            cut={new: self.cut[old] for new, old in names.items() if old in self.cut},
        )

    def shortened(self, rows: Mapping[str, int]) -> Checkpoint:
        """The same checkpoint with only the first rows of some tensors; `rows` says how many."""
        infos = {n: self.tensors[n]._replace(shape=(count, *self.tensors[n].shape[1:])) for n, count in rows.items()}
        return replace(self, tensors={**self.tensors, **infos}, cut={**self.cut, **rows})

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor over the mapped file: pages are read when touched, and shared by processes. Never write to it.

        Raises PoolError where the file has changed, or is malformed in a way that only its reader sees.
        """
        place = self.stored[name]
        try:
            found: torch.Tensor = self._handles[place.file].get_tensor(place.name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise PoolError(
                f"{self.label}: tensor {name!r} of {place.file} cannot be read: {error}; {REMEDY}"
            ) from error
        return found[: self.cut[name]] if name in self.cut else found

    def source(self, name: str) -> torch.Tensor:
        """What a merge reads of one tensor: here the tensor itself."""
        return self.tensor(name)

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        handles = {}
        for file in self.files:
            try:
                handles[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise PoolError(f"{self.label}: {file} is no valid safetensors file: {error}; {REMEDY}") from error
        return handles


def read_json(path: Path, label: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; raises PoolError."""
    try:
        size = path.stat().st_size
        data = json.loads(path.read_bytes()) if size <= limit else None
    except (OSError, ValueError, RecursionError) as error:
        raise PoolError(f"{label}: {path} cannot be read as JSON: {error}; fetch or save it again") from error
    if not isinstance(data, dict):
        what = type(data).__name__ if size <= limit else f"{size} bytes"
        raise PoolError(
            f"{label}: {path} holds {what}, expected an object of at most {limit} bytes; fetch or save it again"
        )
    return data


def _config(folder: Path, label: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise PoolError(f"{label}: no folder {folder}; give a folder in Hugging Face layout, or org/name@commit")
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "an adapter can be an expert, not a base" if adapter else "save_pretrained() writes one"
        raise PoolError(f"{label}: {folder} has no config.json; {hint}")
    config = read_json(path, label)
    if "auto_map" in config:
        raise PoolError(
            f"{label}: config.json asks for Python code of its own (auto_map), which is never run; use a model that "
            "transformers knows by itself, or remove auto_map if it does"
        )
    if "quantization_config" in config:
        raise PoolError(f"{label}: quantised weights cannot be merged; dequantise the checkpoint first")
    return config


def _weights(folder: Path, label: str) -> dict[Path, set[str] | None]:
    """The weight files, each with the names that the index promises (None where there is no index)."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHERS)[:4]
        found = f" (found {', '.join(other)})" if other else ""
        raise PoolError(
            f"{label}: {folder} has no model.safetensors{found}; only "
            "safetensors are read: load the model once and call save_pretrained()"
        )
    table = read_json(index, label).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise PoolError(f"{label}: {index} has no weight_map; fetch or save it again")
    shards: dict[Path, set[str]] = {}
    for name, shard in table.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise PoolError(f"{label}: {index.name} names the shard {shard!r}; expected a bare file name *.safetensors")
        if not (folder / shard).is_file():
            raise PoolError(f"{label}: shard {shard} is missing from {folder}; fetch it again")
        shards.setdefault(folder / shard, set()).add(name)
    return {**shards}
