"""Do base and experts read the same tokens? Refused where they do not, or brought to one vocabulary where asked."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from searchspaces.adapters.adapter import Adapter
from searchspaces.errors import PoolError, VocabularyError
from searchspaces.models.architecture import vocabulary
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.vocabularies import tokens
from searchspaces.vocabularies.embeddings import aligned
from searchspaces.vocabularies.token_rows import Plan, Rows, counted, some
from searchspaces.vocabularies.tokens import Tokens

Mode = Literal["base", "union"]
_TOKENIZER = (tokens.FILE, *tokens.OLDER, "added_tokens.json")


def align(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    mode: Mode | None,
    sources: Mapping[str, str],
    apart: Callable[[str], bool],
    adapters: Mapping[str, Adapter] | None = None,
) -> tuple[Checkpoint, dict[str, Checkpoint], str]:
    """Base and experts whose tensors of tokens have one row for each token of one vocabulary; and what was done.

    `base`: the base's tokens; an expert's others are left out. `union`: the tokens that experts added come behind them,
    matched by their text. None: every tokenizer must be the base's. Whatever the mode, rows that no token has (padding)
    are the base's where an expert has other rows, and a token that an expert lacks is the base's there.

    A token that the base lacks has as the base's row the mean of those that experts have for it, so that one expert's
    own token is that expert's whatever the coefficients, and each of several has its own row at coefficient 1.
    `sources` maps a token to the expert, or `base`, whose row it has whatever the coefficients.

    `apart` says of a tensor's name that experts' are not merged. Of `adapters` only the tokenizers beside them are
    compared: their rows are the base's. Only tensors of tokens are written anew, to the user's
    cache, and only those of models that need it. What was done is empty where nothing was. Raises PoolError for
    tokenizers that were trained apart, and VocabularyError for differences where `mode` is None.
    """
    if sources and mode is None:
        raise PoolError("models.sources says where tokens come from; say models.vocabulary: base or union with it")
    every: list[Checkpoint | Adapter] = [*experts.values(), *(adapters or {}).values()]
    misshapen = _misshapen(base, experts, apart)
    if not (sources or misshapen) and all(_alike(base.folder, e.folder) for e in every):
        return base, dict(experts), ""
    first = Tokens.of(base.folder, base.label)
    found = {name: Tokens.of(e.folder, e.label) for name, e in experts.items()}
    for expert in (*found.values(), *(Tokens.of(a.folder, a.label) for a in (adapters or {}).values())):
        if expert is not None and first is not None:
            expert.check(first)
            if mode is None:
                _refuse(expert, first)
    if mode is None and not misshapen:
        return base, dict(experts), ""
    axes = {t: axis for t, axis in vocabulary(list(base.tensors), base.folder).items() if t in base.tensors}
    if not axes:
        if mode is None:  # nothing of this is about tokens: the pool says what is wrong
            return base, dict(experts), ""
        raise PoolError(
            f"models.vocabulary: transformers cannot resize the embeddings of a {base.config.get('model_type')} model; "
            "remove the key, and take experts with the base's tokens"
        )
    own = _rows(base, axes, first, lambda t: False)
    theirs = {name: _rows(e, axes, found[name], apart) for name, e in experts.items()}
    for rows in theirs.values():
        if mode is None and rows.count != own.count and (first is None or rows.tokens is None):
            raise VocabularyError(
                f"{rows.label} has embeddings of {rows.count} rows (base: {own.count}), and no tokenizer says which "
                "are which; say models.vocabulary: base if they are the base's, with more behind or fewer"
            )
    plan = Plan.of(axes, own, theirs, mode == "union", sources)
    if not plan.changes and all(rows.count == own.count for rows in theirs.values()):
        return base, dict(experts), ""
    return (*aligned(plan, base, experts), plan.text)


def _alike(a: Path, b: Path) -> bool:
    """Whether two folders have the same tokenizer's files, byte for byte, or one has none."""
    pairs = [(a / name, b / name) for name in _TOKENIZER]
    if not any(x.is_file() for x, _ in pairs) or not any(y.is_file() for _, y in pairs):
        return True
    return all(x.is_file() == y.is_file() and (not x.is_file() or filecmp.cmp(x, y, shallow=False)) for x, y in pairs)


def _misshapen(base: Checkpoint, experts: Mapping[str, Checkpoint], apart: Callable[[str], bool]) -> bool:
    """Whether a tensor that base and expert share has another shape."""
    shared = ((base.tensors[n], info) for e in experts.values() for n, info in e.tensors.items() if n in base.tensors)
    return any(one.shape != other.shape and not apart(one.name) for one, other in shared)


def _refuse(expert: Tokens, base: Tokens) -> None:
    """Raise VocabularyError where the expert's tokens are others than the base's."""
    ours, theirs = expert.beside(base), base.beside(expert)
    fresh, lost = sorted(ours.keys() - base.ids.keys(), key=ours.__getitem__), sorted(theirs.keys() - expert.ids.keys())
    moved = [t for t in ours if t in theirs and ours[t] != theirs[t]]
    if fresh:
        raise VocabularyError(
            f"{expert.label} has {counted(fresh)} that the base lacks ({some(fresh)}); say models.vocabulary: base "
            "to leave them out, or union to keep their rows"
        )
    if lost or moved:
        what = f"lacks {counted(lost)} of the base ({some(lost)})"
        if moved:
            what = f"has token {moved[0]!r} at id {ours[moved[0]]} (base: {theirs[moved[0]]})"
        raise VocabularyError(f"{expert.label} {what}; say models.vocabulary: base to match rows by their tokens")


def _rows(model: Checkpoint, axes: Mapping[str, int], found: Tokens | None, apart: Callable[[str], bool]) -> Rows:
    """A model's tensors of tokens; raises PoolError where they do not agree on their rows."""
    names = tuple(t for t in axes if t in model.tensors and not apart(t))
    odd = [t for t in names if len(model.tensors[t].shape) <= axes[t]]
    counts = {model.tensors[t].shape[axes[t]] for t in names if t not in odd}
    if odd or len(counts) > 1:
        raise PoolError(
            f"{model.label}: its tensors of tokens ({some(names)}) have {' and '.join(map(str, sorted(counts)))} rows, "
            "expected one number; save it again after resize_token_embeddings()"
        )
    return Rows(model.label, names, counts.pop() if counts else 0, found)
