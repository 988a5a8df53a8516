"""What is merged? A base and experts, opened lazily and checked against each other at the door."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch

from searchspaces.adapters.adapter import Adapter, is_adapter
from searchspaces.errors import PoolError
from searchspaces.groups import group_tensors, order
from searchspaces.models.align import canonical, head_patterns, untie
from searchspaces.models.architecture import skeleton, stored_blocks
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.difference import Processed
from searchspaces.models.hashes import content_hash
from searchspaces.models.headers import MERGEABLE, TensorInfo
from searchspaces.models.hub import folder_of
from searchspaces.vocabularies.vocabulary import Mode, align

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAME = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_size")


Opened: TypeAlias = Checkpoint | Adapter
Expert: TypeAlias = Opened | Processed


@dataclass(frozen=True, eq=False)
class Pool:
    """A base and its experts, all under the base's tensor names.

    `merged` are the float tensors that all share, in the model's natural order; `copied` are the base's other tensors,
    which go into every merge as they are: integer buffers, excluded ones, the base's own head.
    """

    base: Checkpoint
    experts: Mapping[str, Expert]
    merged: tuple[TensorInfo, ...]
    copied: tuple[TensorInfo, ...]
    _head_names: Mapping[str, tuple[str, ...]] = field(repr=False)
    vocabulary: str = (
        ""  # what was done to tensors of tokens (see `searchspaces.vocabularies.vocabulary`); nothing where empty
    )
    processing: str = ""  # what was done to the task vectors (see `searchspaces.facts.process`); nothing where empty
    _original: Pool | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        base: str | Path,
        experts: Mapping[str, str | Path],
        heads: Sequence[str] = (),
        exclude: Sequence[str] = (),
        vocabulary: Mode | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> Pool:
        """Open folders in Hugging Face layout, or hub ids `org/name@commit`; weights are mapped, not read.

        An expert may be a LoRA as PEFT saves it (adapter_config.json, adapter_model.safetensors): it stays one.
        `heads` and `exclude` are fnmatch patterns of tensor names: a head belongs to one expert and is kept per task;
        what is excluded comes from the base. `vocabulary` and `sources` are for experts with tokens of their own (see
        `searchspaces.vocabularies.vocabulary.align`). Raises PoolError for what is missing, malformed or unlike the
        base.
        """
        if not experts:
            raise PoolError("a pool needs at least one expert; list them under models.experts")
        for name in experts:
            if not NAME.fullmatch(name):
                raise PoolError(
                    f"expert name {name[:80]!r} must be at most 64 letters, digits, '.', '_' and '-', the first a "
                    "letter or digit"
                )
            if name == "base":  # hashes, and with them caches and resumed runs, would take it for the base
                raise PoolError("an expert is called 'base', as the base itself is; give it another name")
        first, others = _open_all(base, experts)
        for name, expert in others.items():
            _same_architecture(first, expert, name)
        _check_patterns(exclude, (first, *others.values()))
        whole = {name: expert for name, expert in others.items() if isinstance(expert, Checkpoint)}
        adapters = {name: expert for name, expert in others.items() if isinstance(expert, Adapter)}
        first, whole, aligned = align(
            first, whole, vocabulary, sources or {}, lambda n: _matches(n, (*heads, *exclude)), adapters
        )
        others = {name: whole[name] if name in whole else adapters[name].rebased(first) for name in others}
        merged: list[TensorInfo] = []
        copied: list[TensorInfo] = []
        for info in sorted(first.tensors.values(), key=lambda t: order(t.name)):
            kept = not info.dtype.is_floating_point or _matches(info.name, exclude) or _matches(info.name, heads)
            (copied if kept else merged).append(info)
        head_names = {
            name: _check_expert(name, expert, first, merged, heads, exclude) for name, expert in others.items()
        }
        if not merged:
            raise PoolError(
                "nothing is left to merge: every tensor is excluded, a head or no float; see models.exclude"
            )
        return cls(
            first,
            MappingProxyType(others),
            tuple(merged),
            tuple(copied),
            MappingProxyType(head_names),
            vocabulary=aligned,
        )

    @property
    def original(self) -> Pool:
        """The pool as it was opened, its task vectors unprocessed."""
        return self._original or self

    @property
    def opened(self) -> Mapping[str, Opened]:
        """The experts as they were opened."""
        return {n: e for n, e in self.original.experts.items() if not isinstance(e, Processed)}

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The experts that are low-rank adapters of the base, as they were opened."""
        return {n: e for n, e in self.opened.items() if isinstance(e, Adapter)}

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order in which they were given."""
        return tuple(self.experts)

    @property
    def parameters(self) -> int:
        """Number of elements of the base's float tensors, those of tied weights once."""
        return sum(t.numel for t in (*self.merged, *self.copied) if t.dtype.is_floating_point)

    @property
    def bytes(self) -> int:
        """Size of one merged model, in bytes, in the base's dtypes."""
        return sum(t.bytes for t in (*self.merged, *self.copied))

    @cached_property
    def heads(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """Each expert's head tensors by name, mapped, read-only by agreement; an expert without one is left out."""
        return MappingProxyType(
            {
                name: MappingProxyType({t: self.opened[name].tensor(t) for t in names})
                for name, names in self._head_names.items()
                if names
            }
        )

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Prefixes of the blocks' tensors, from the model's module tree; nothing where the names say as much.

        What transformers cannot make a model of is refused where weights are loaded; here its names must do.
        """
        names = [t.name for t in self.merged]
        try:
            blocks = stored_blocks(names, skeleton(self.base.folder))
        except PoolError:
            return ()
        same = dict(group_tensors(names, "layer", blocks)) == dict(group_tensors(names, "layer"))
        return () if same else blocks

    def groups(self, granularity: str) -> Mapping[str, tuple[str, ...]]:
        """Group name -> its merged tensors (see `searchspaces.groups`); raises RecipeError for another granularity."""
        blocks = () if granularity in ("model", "tensor") else self.blocks
        return group_tensors([t.name for t in self.merged], granularity, blocks)

    def layout(self, dtype: torch.dtype | None = None) -> list[TensorInfo]:
        """Every tensor of a merged checkpoint in the order of `merged_tensors`, the float ones in `dtype` if given."""
        return [
            t._replace(dtype=dtype) if dtype and t.dtype.is_floating_point else t for t in (*self.merged, *self.copied)
        ]

    def hashes(self, progress: Callable[[str], None] | None = None) -> dict[str, str]:
        """Content hash (sha256 in hex) of `base` and of each expert, cached on disk by path, size and times.

        `progress` is called with each name before its files are read. Raises PoolError, naming expert and tensor, for
        weights that are NaN or infinite.
        """
        found = {}
        for name, checkpoint in {"base": self.base, **self.opened}.items():
            if progress is not None:
                progress(name)
            found[name] = content_hash(checkpoint.opened or checkpoint)
        if self.vocabulary:  # rows that the base lacks follow from the experts that have them
            said = [found.pop("base"), self.vocabulary, *(f"{name} {found[name]}" for name in sorted(found))]
            found = {"base": hashlib.sha256(" ".join(said).encode()).hexdigest(), **found}
        return found

    def describe(self) -> str:
        """The pool in a few lines, for people."""
        heads = {name: len(names) for name, names in self._head_names.items() if names}
        lines = [
            f"base {self.base.folder.name}: {self.base.config.get('model_type', 'unknown type')}, "
            f"{self.parameters / 1e6:.1f} M parameters, {self.bytes / 1e6:.0f} MB",
            f"{len(self.experts)} experts: {', '.join(self.names)}",
            f"{len(self.merged)} tensors merged, {len(self.copied)} taken from the base",
        ]
        if self.vocabulary:
            lines.append("embeddings brought to one vocabulary")
        lines += [f"adapter {name}: {adapter.describe()}" for name, adapter in self.adapters.items()]
        if heads:
            lines.append("heads: " + ", ".join(f"{name} ({count} tensors)" for name, count in heads.items()))
        return "\n".join(lines)


def suggest_heads(base: str | Path, experts: Mapping[str, str | Path]) -> list[str]:
    """Patterns for `heads` under which these checkpoints match: the modules that not all of them have.

    Raises PoolError for folders that cannot be opened.
    """
    first, others = _open_all(base, experts)
    return head_patterns(
        [[n for n, t in c.tensors.items() if t.dtype.is_floating_point] for c in (first, *others.values())]
    )


def _open_all(base: str | Path, experts: Mapping[str, str | Path]) -> tuple[Checkpoint, dict[str, Opened]]:
    """Base and experts, in the order given, without tensors that repeat tied ones, under the base's names."""
    first = Checkpoint.open(folder_of(base, "base"), "base")
    folders = {name: folder_of(where, f"expert {name!r}") for name, where in experts.items()}
    whole = {
        name: canonical(Checkpoint.open(folder, f"expert {name!r}"), first)
        for name, folder in folders.items()
        if not is_adapter(folder)
    }
    first, whole = untie(first, whole)
    return first, {n: whole[n] if n in whole else Adapter.open(f, f"expert {n!r}", first) for n, f in folders.items()}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(exclude: Sequence[str], checkpoints: Sequence[Expert]) -> None:
    for pattern in exclude:
        if not any(_matches(name, [pattern]) for c in checkpoints for name in c.tensors):
            example = next(iter(checkpoints[0].tensors))
            raise PoolError(f"models.exclude: {pattern!r} matches no tensor; names are like {example!r}")


def _same_architecture(base: Checkpoint, expert: Expert, name: str) -> None:
    for key in _SAME:
        ours, theirs = base.config.get(key), expert.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise PoolError(
                f"expert {name!r} has {key} {theirs!r} (base: {ours!r}); drop it, it is no fine-tune of this base"
            )


def _check_expert(
    name: str,
    expert: Expert,
    base: Checkpoint,
    merged: Sequence[TensorInfo],
    heads: Sequence[str],
    exclude: Sequence[str],
) -> tuple[str, ...]:
    """The names of an expert's head tensors; raises PoolError where the rest is not the base's."""
    for info in merged:
        found = expert.tensors.get(info.name)
        if found is None:
            raise PoolError(
                f"expert {name!r} has no tensor {info.name!r} (base: {info.shape}); "
                "list it under models.exclude or drop the expert"
            )
        if found.shape != info.shape:
            raise PoolError(
                f"expert {name!r}: tensor {info.name!r} has shape {found.shape} (base: {info.shape}); "
                "list it under models.exclude, under models.heads if it is a task's own, or drop the expert"
            )
        for owner, dtype in ((f"expert {name!r}", found.dtype), ("base", info.dtype)):
            if dtype not in MERGEABLE:
                raise PoolError(f"{owner}: tensor {info.name!r} is {dtype}, which cannot be merged; convert it first")
    names = tuple(sorted(n for n in expert.tensors if _matches(n, heads)))
    for odd in sorted(expert.tensors.keys() - base.tensors.keys() - set(names)):
        info = expert.tensors[odd]
        if info.dtype.is_floating_point and not _matches(odd, exclude):
            pattern = odd.rpartition(".")[0] + ".*" if "." in odd else odd
            raise PoolError(
                f"expert {name!r} has a tensor {odd!r} {info.shape} that the base lacks; add {pattern!r} to "
                "models.heads to keep it for this expert's task, or to models.exclude to leave it out"
            )
    return names
