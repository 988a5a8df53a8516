"""Which row of which model is a token's? Tokenizers matched by text, padding and added tokens told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import PoolError
from searchspaces.vocabularies.tokens import FILE, Tokens

VERSION = 2
"""Part of what decides merged weights: a change of the rules below is a change of every pool that they touch."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A model's tensors of tokens: their names, how many rows each has, and the tokenizer beside them, if any."""

    label: str
    tensors: tuple[str, ...]
    count: int
    tokens: Tokens | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Where each row of the merged tensors of tokens comes from.

    `maps` gives for the base ("") and each expert the row of its own that is each merged row, or -1 where it has none:
    int64 `(rows,)`. `fresh` are tokens that the base lacks, each an entry of tokenizer.json; `new` are their rows, and
    those of the base's tokens that its embeddings have no row for; `fixed` maps a row to the model ("" for the base)
    whose row it is whatever the coefficients.
    """

    axes: Mapping[str, int]  # the base's tensors of tokens, and their dimension of tokens
    rows: int
    maps: Mapping[str, NDArray[np.int64]]
    fresh: tuple[Mapping[str, Any], ...]
    new: tuple[int, ...]
    fixed: Mapping[int, str]
    held: Mapping[str, tuple[str, ...]]  # the tensors that are merged of each expert

    @classmethod
    def of(
        cls, axes: Mapping[str, int], base: Rows, experts: Mapping[str, Rows], union: bool, sources: Mapping[str, str]
    ) -> Plan:
        """The plan for these models; raises PoolError where union or a source needs what is not there."""
        fresh = _fresh(base, experts) if union else ()
        new = (*(_without(base, experts) if union else ()), *(int(entry["id"]) for entry in fresh))
        rows = max([base.count, *(row + 1 for row in new)])
        placed = {token: int(e["id"]) for token, e in (base.tokens.added if base.tokens else {}).items()}
        placed |= {str(e["content"]): int(e["id"]) for e in fresh}
        maps = {name: _map(model, base, rows, placed, new) for name, model in {"": base, **experts}.items()}
        plan = cls(axes, rows, maps, fresh, new, {}, {name: model.tensors for name, model in experts.items()})
        ids = {**(base.tokens.ids if base.tokens else {}), **placed}
        return replace(plan, fixed={row: name for row, name in plan._fixed(sources, ids)})

    def tensors(self, name: str) -> tuple[str, ...]:
        """An expert's tensors of tokens that are merged."""
        return self.held[name]

    @cached_property
    def changes(self) -> bool:
        """Whether any row is another than the base's own, or not where an expert has it."""
        moved = any(not np.array_equal(rows, np.arange(self.rows)) for rows in self.maps.values())
        return moved or bool(self.new or self.fixed)

    @cached_property
    def text(self) -> str:
        """All that decides the merged rows, beside the models' own weights."""
        maps = {name: hashlib.sha256(rows.tobytes()).hexdigest() for name, rows in self.maps.items()}
        fixed = sorted(self.fixed.items())
        return json.dumps([VERSION, self.rows, maps, [dict(e) for e in self.fresh], self.new, fixed], sort_keys=True)

    def _fixed(self, sources: Mapping[str, str], ids: Mapping[str, int]) -> list[tuple[int, str]]:
        found = []
        for token, source in sources.items():
            where = "" if source == "base" else source
            if where not in self.maps:
                there = ", ".join(["base", *(n for n in self.maps if n)])
                raise PoolError(f"models.sources: token {token!r} is to come from {source!r}; there are: {there}")
            if token not in ids:
                raise PoolError(
                    f"models.sources: {token!r} is no token of the merged vocabulary; check its spelling, and say "
                    "models.vocabulary: union to have the experts' tokens"
                )
            if ids[token] >= self.rows or self.maps[where][ids[token]] < 0:
                raise PoolError(f"models.sources: {source!r} has no row for token {token!r}; name a model that has one")
            found.append((ids[token], where))
        return found


def _fresh(base: Rows, experts: Mapping[str, Rows]) -> tuple[Mapping[str, Any], ...]:
    """The tokens that experts added, by expert and id, each with its id in the union: those after the base's last."""
    for model in (base, *experts.values()):
        older = model.tokens is None or not model.tokens.kind
        more = model.count > base.count or bool(model.tokens and model.tokens.added)
        if older and (model is base or more):
            raise PoolError(
                f"{model.label} has no {FILE}, and models.vocabulary: union matches tokens by their text; load its "
                "tokenizer with transformers, and save it there with save_pretrained()"
            )
    ids = base.tokens.ids if base.tokens else {}
    following = max(ids.values(), default=-1) + 1
    fresh: dict[str, Mapping[str, Any]] = {}
    for model in experts.values():
        for token, entry in model.tokens.by_id() if model.tokens else ():
            if token not in ids and token not in fresh and int(entry["id"]) < model.count:
                fresh[token] = {**entry, "id": following + len(fresh)}
    return tuple(fresh.values())


def _without(base: Rows, experts: Mapping[str, Rows]) -> tuple[int, ...]:
    """The ids of the base's tokens for which it has no row, and an expert has."""
    beyond = {token: row for token, row in (base.tokens.ids if base.tokens else {}).items() if row >= base.count}
    known = [(model.tokens.ids, model.count) for model in experts.values() if model.tokens]
    return tuple(sorted({row for t, row in beyond.items() if any(ids.get(t, n) < n for ids, n in known)}))


def _map(model: Rows, base: Rows, rows: int, placed: Mapping[str, int], new: Sequence[int]) -> NDArray[np.int64]:
    """The model's row for each merged row, -1 where it has none."""
    found = np.arange(rows)
    found[model.count :] = -1
    if model.tokens is None or not model.tokens.kind:
        found[list(new)] = -1  # a row there is padding, of a model that does not say which tokens it knows
    own, first = model.tokens, base.tokens
    if own is None or first is None:
        return found
    theirs = {int(entry["id"]): token for token, entry in first.added.items()}
    for token, entry in own.added.items():
        at = int(entry["id"])
        if at < rows and theirs.get(at) != token and first.trained.get(token) != at:
            found[at] = -1  # a token of its own lies where the base has another, or none
    ids = own.ids
    for token, row in placed.items():
        if row < rows and (own.kind or token in own.added):
            found[row] = ids[token] if ids.get(token, model.count) < model.count else -1
    return found


def counted(names: Sequence[str]) -> str:
    """How many tokens, for a message."""
    return f"{len(names)} token{'s' * (len(names) != 1)}"


def some(names: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(repr(n) for n in names[:3]) + (", ..." if len(names) > 3 else "")
