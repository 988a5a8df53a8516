"""How do models come to have one row for each token? Tensors of tokens written anew, once on a host."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from searchspaces.cache.once import cache, made_once
from searchspaces.models import shards
from searchspaces.models.checkpoint import Checkpoint, read_json
from searchspaces.models.hashes import content_hash
from searchspaces.models.kept import read_again
from searchspaces.vocabularies import tokens
from searchspaces.vocabularies.token_rows import Plan

_KEPT = {".json", ".txt", ".model", ".jinja"}


def aligned(
    plan: Plan, base: Checkpoint, experts: Mapping[str, Checkpoint]
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Base and experts with their tensors of tokens as planned; those that are so already are left as they are.

    A base with other rows than its own has a folder of its own in the user's cache: config and tokenizer of the merged
    model. An expert with more rows behind the base's is cut, not copied.
    """
    whole = np.arange(plan.rows)
    wanted: dict[str, Sequence[str]] = {"": list(plan.axes)} if plan.new or plan.fixed else {}
    found = dict(experts)
    for name, expert in experts.items():
        here = plan.tensors(name)
        longer = [t for t in here if expert.tensors[t].shape[plan.axes[t]] != plan.rows]
        if plan.fixed or not np.array_equal(plan.maps[name], whole) or any(plan.axes[t] for t in longer):
            wanted[name] = here
        elif longer:
            found[name] = expert.shortened(dict.fromkeys(longer, plan.rows))
    if not any(wanted.values()):
        return base, found
    kept = _Writer(plan, {"": base, **experts}, wanted).kept()
    for name in wanted.keys() - {""}:
        found[name] = _with(experts[name], kept, name, wanted[name])
    if "" in wanted:
        config = read_json(kept.folder / "config.json", "base")
        base = replace(_with(base, kept, "", wanted[""]), folder=kept.folder, config=config)
    return base, found


def _with(model: Checkpoint, kept: Checkpoint, name: str, tensors: Sequence[str]) -> Checkpoint:
    """The model with these tensors as they were kept under its name."""
    return replace(
        model,
        tensors={**model.tensors, **{t: kept.tensors[f"{name}/{t}"]._replace(name=t) for t in tensors}},
        stored={**model.stored, **{t: kept.stored[f"{name}/{t}"] for t in tensors}},
        opened=model,
    )


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes the tensors that are `wanted`, by model: of the base (""), and of experts."""

    plan: Plan
    models: Mapping[str, Checkpoint]
    wanted: Mapping[str, Sequence[str]]

    def kept(self) -> Checkpoint:
        """The folder that holds them, made if it is not there."""
        base, axes = self.models[""].folder, self.plan.axes
        specs = [
            shards.Spec(f"{name}/{tensor}", self._shape(tensor), self.models[name].tensors[tensor].dtype)
            for tensor in axes
            for name in self.wanted
            if tensor in self.wanted[name]
        ]
        read = {name: content_hash(model) for name, model in self.models.items()}
        beside = [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in _beside(base)]
        said = json.dumps([self.plan.text, sorted(axes.items()), [s.name for s in specs], read, beside], sort_keys=True)
        home = cache("vocabulary") / hashlib.sha256(said.encode()).hexdigest()[:32]

        def make(partial: Path) -> None:
            shards.write(partial, specs, self._tensors())
            for file in _beside(base):
                shutil.copyfile(file, partial / file.name)
            config = json.dumps(_resized(self.models[""].config, self.plan.rows), indent=2)
            shards.write_text(partial / "config.json", config)
            if self.plan.fresh:
                tokens.extend(base, partial, self.plan.fresh)

        made_once(home, "embeddings of one vocabulary", int(1.05 * sum(s.bytes for s in specs)), make)
        return read_again(home, lambda: Checkpoint.open(home, "embeddings of one vocabulary"))

    def _shape(self, tensor: str) -> tuple[int, ...]:
        shape, axis = self.models[""].tensors[tensor].shape, self.plan.axes[tensor]
        return (*shape[:axis], self.plan.rows, *shape[axis + 1 :])

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """One after the other; memory: the base's, an expert's, and what is read of it."""
        for tensor, axis in self.plan.axes.items():
            first = self._base(tensor)
            for name in (n for n, held in self.wanted.items() if tensor in held):
                rows = self._expert(name, tensor, first) if name else first
                yield f"{name}/{tensor}", rows.movedim(0, axis).contiguous()

    def _base(self, tensor: str) -> torch.Tensor:
        """The base's rows, tokens first: its own, means of the experts' where it has none, and those of `sources`."""
        own = self._read("", tensor)
        out = own.new_zeros((self.plan.rows, *own.shape[1:]))
        out[: len(own)] = own
        for row in self.plan.new:
            having = [n for n, rows in self.plan.maps.items() if n and rows[row] >= 0 and self._has(n, tensor)]
            if having:
                out[row] = torch.stack([self._row(n, tensor, row).double() for n in having]).mean(0)
        for row, name in self.plan.fixed.items():
            if self._has(name, tensor):
                out[row] = self._row(name, tensor, row)
        return out

    def _expert(self, name: str, tensor: str, base: torch.Tensor) -> torch.Tensor:
        """An expert's rows, tokens first; the base's, as above, where it has none or none of its own counts."""
        rows = self.plan.maps[name]
        own = rows >= 0
        own[list(self.plan.fixed)] = False
        out = base.to(self.models[name].tensors[tensor].dtype, copy=True)
        here = torch.from_numpy(np.flatnonzero(own))
        out[here] = self._read(name, tensor)[torch.from_numpy(rows[own])]
        return out

    def _has(self, name: str, tensor: str) -> bool:
        return not name or tensor in self.plan.tensors(name)

    def _row(self, name: str, tensor: str, row: int) -> torch.Tensor:
        return self._read(name, tensor)[int(self.plan.maps[name][row])]

    def _read(self, name: str, tensor: str) -> torch.Tensor:
        return self.models[name].tensor(tensor).movedim(self.plan.axes[tensor], 0)


def _beside(folder: Path) -> list[Path]:
    """What lies beside the weights: tokenizer, settings, templates."""
    found = (f for f in folder.iterdir() if f.suffix in _KEPT and f.is_file())
    return sorted(f for f in found if not f.name.endswith(".index.json"))


def rows_of(config: Mapping[str, Any]) -> int:
    """How many rows the embeddings of a config's model have."""
    return int(config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"])


def _resized(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A config whose model has embeddings of `rows` rows."""
    text = config.get("text_config")
    if "vocab_size" not in config and isinstance(text, dict):
        return {**config, "text_config": {**text, "vocab_size": rows}}
    return {**config, "vocab_size": rows}
