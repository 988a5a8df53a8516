"""Which tensor of an expert is which of the base's? Prefixes, tied duplicates, and heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from searchspaces.checkpoint import Checkpoint

# where architectures keep an output layer that may be tied to an embedding
OUTPUTS = ("lm_head.weight", "decoder.weight", "embed_out.weight", "output_projection.weight")
EMBEDDING = ("emb", "wte", "shared")


def canonical(expert: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The expert with its trunk under the base's names.

    A model with a head keeps its trunk under a prefix (`bert.encoder...`) that the bare model does not have: whichever
    of adding, stripping or leaving the first component of names gives most names in common is taken.
    """
    added = {f"{p}." for p in _firsts(base.tensors)}
    stripped = {f"{p}." for p in _firsts(expert.tensors)}
    changes = [("", ""), *((p, "") for p in sorted(added)), *(("", p) for p in sorted(stripped))]
    best, most = ("", ""), -1
    for add, strip in changes:
        common = sum(
            add + name.removeprefix(strip) in base.tensors for name in expert.tensors if name.startswith(strip)
        )
        if common > most:
            best, most = (add, strip), common
    add, strip = best
    names: dict[str, str] = {}
    for old in expert.tensors:
        new = add + old.removeprefix(strip) if old.startswith(strip) else old
        # a name that leads nowhere in the base stays as it is: a head is known by the name that its file gives it
        names[new if new in base.tensors and new not in expert.tensors else old] = old
    return expert.renamed(names)


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


def head_patterns(base: Checkpoint, experts: Sequence[Checkpoint]) -> list[str]:
    """Patterns, as for `heads`, that take the tensors which not all have, and no tensor that all have."""
    counts = Counter(name for c in (base, *experts) for name in c.tensors)
    shared = [name for name, count in counts.items() if count == len(experts) + 1]
    found: dict[str, None] = {}
    for name in sorted(counts.keys() - set(shared)):
        parts = name.split(".")
        prefixes = [".".join(parts[:n]) + "." for n in range(1, len(parts))]
        free = [p for p in prefixes if not any(s.startswith(p) for s in shared)]
        found[f"{free[0]}*" if free else name] = None
    return list(found)
