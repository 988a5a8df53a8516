"""Which tensor of an expert is which of the base's? Prefixes, tied duplicates, and heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch

from searchspaces.models.checkpoint import Checkpoint

# where architectures keep an output layer that may be tied to an embedding
OUTPUTS = ("lm_head.weight", "decoder.weight", "embed_out.weight", "output_projection.weight")
EMBEDDING = ("emb", "wte", "shared")


def canonical(expert: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The expert with its trunk under the base's names (see `aligned`)."""
    return expert.renamed(aligned(expert.tensors, base.tensors))


def aligned(names: Collection[str], base: Collection[str]) -> dict[str, str]:
    """Name as the base has it -> name as it is among `names`, for each of them.

    A model with a head keeps its trunk under a prefix (`bert.encoder...`) that the bare model does not have: whichever
    of adding, stripping or leaving the first component of names gives most names in common is taken.
    """
    added = {f"{p}." for p in _firsts(base)}
    stripped = {f"{p}." for p in _firsts(names)}
    changes = [("", ""), *((p, "") for p in sorted(added)), *(("", p) for p in sorted(stripped))]
    best, most = ("", ""), -1
    for add, strip in changes:
        common = sum(add + name.removeprefix(strip) in base for name in names if name.startswith(strip))
        if common > most:
            best, most = (add, strip), common
    add, strip = best
    found: dict[str, str] = {}
    for old in names:
        new = add + old.removeprefix(strip) if old.startswith(strip) else old
        # a name that leads nowhere in the base stays as it is: a head is known by the name that its file gives it
        found[new if new in base and new not in names else old] = old
    return found


def _firsts(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names if "." in name}


def untie(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """All of them without tensors that repeat an embedding to which they are tied.

    A tensor is left out only where each checkpoint that stores it stores the embedding's very values: a head that was
    trained apart is nobody's copy.
    """
    if base.config.get("tie_word_embeddings") is False:
        return base, dict(experts)
    every = (base, *experts.values())
    suspects = {name for c in every for name in c.tensors if any(_embeddings(c, name))}
    double = {name for name in suspects if all(name not in c.tensors or _repeats(c, name) for c in every)}

    def kept(c: Checkpoint) -> Checkpoint:
        return c.renamed({n: n for n in c.tensors if n not in double}) if double & c.tensors.keys() else c

    return kept(base), {name: kept(c) for name, c in experts.items()}


def _embeddings(c: Checkpoint, name: str) -> Iterator[str]:
    """What `name` may be tied to: an output layer to an embedding, an encoder's to a shared one."""
    output, part = name.endswith(OUTPUTS), name.endswith("embed_tokens.weight")
    for other, info in c.tensors.items() if output or part else ():
        embedding = any(word in other for word in EMBEDDING) and not other.endswith(OUTPUTS)
        if info.shape == c.tensors[name].shape and (embedding if output else other.endswith("shared.weight")):
            yield other


def _repeats(c: Checkpoint, name: str) -> bool:
    return any(torch.equal(c.tensor(name), c.tensor(other)) for other in _embeddings(c, name))


def head_patterns(models: Sequence[Iterable[str]]) -> list[str]:
    """Patterns, as for `heads`, that take the tensors which not all models have, and no tensor that all have."""
    counts = Counter(name for names in models for name in names)
    shared = [name for name, count in counts.items() if count == len(models)]
    found: dict[str, None] = {}
    for name in sorted(counts.keys() - set(shared)):
        parts = name.split(".")
        prefixes = [".".join(parts[:n]) + "." for n in range(1, len(parts))]
        free = [p for p in prefixes if not any(s.startswith(p) for s in shared)]
        found[f"{free[0]}*" if free else name] = None
    return list(found)
