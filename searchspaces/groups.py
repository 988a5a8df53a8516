"""Which tensors share a coefficient? Groups from the tensors' names and a model's blocks, for each granularity."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from searchspaces.errors import RecipeError

GRANULARITIES = ("model", "layer", "module", "tensor")
RULE = 1
"""Part of every recipe's hash, as the groups' names are: a change of the rules below that puts tensors into other
groups of the same names is a change of every recipe."""

_BLOCK = re.compile(r"^(?:(.+?)\.)?(\d+)\.")  # the first integer of a name: the index into a list of blocks
_KINDS = (
    ("norm", re.compile(r"norm|(?:^|\.)ln(?:_|\d|\.|$)", re.I)),
    ("attention", re.compile(r"att|(?:^|\.)[qkvo]_proj(?:\.|$)", re.I)),
    ("router", re.compile(r"(?:^|\.)(?:router|gate|\w+_expert_gate)(?:\.|$)", re.I)),
    ("mlp", re.compile(r"mlp|ffn|feed_?forward|intermediate|output|dense|(?:^|\.)(?:fc|w)_?\d|expert|moe", re.I)),
)
_EMBEDDING = re.compile(r"emb|(?:^|\.)(?:wte|wpe|shared|cls_token|mask_token|distillation_token)(?:\.|$)", re.I)


def group_tensors(
    tensors: Sequence[str], granularity: str, blocks: Sequence[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """Group name -> names of its tensors, in the order of the model: embeddings, blocks by number, then the rest.

    - `model`: one group, `model`.
    - `layer`: one per block (`model.layers.3`), one for all embeddings, and one per module outside (`pooler`,
      `model.norm`, `lm_head`).
    - `module`: each block in `.attention`, `.mlp` (all of a mixture's experts, shared ones too), `.router` and `.norm`;
      outside blocks as `layer`.
    - `tensor`: one per tensor.

    `blocks` are the prefixes of the blocks' tensors; where there are none, the first integer of a name marks its block.
    Raises RecipeError for another granularity.
    """
    if granularity not in GRANULARITIES:
        raise RecipeError(f"granularity {granularity!r} does not exist; there are: {', '.join(GRANULARITIES)}")
    return _group_tensors(tuple(tensors), granularity, tuple(blocks))


def layers_of(groups: Mapping[str, Sequence[str]], granularity: str, blocks: Sequence[str] = ()) -> dict[str, str]:
    """Group name -> the layer that it is of, for groups of that granularity; `model` has one layer, `model`."""
    if granularity == "model":
        return dict.fromkeys(groups, "model")
    every = [t for tensors in groups.values() for t in tensors]
    layer = {t: name for name, tensors in group_tensors(every, "layer", blocks).items() for t in tensors}
    return {group: layer[tensors[0]] for group, tensors in groups.items()}


@lru_cache(maxsize=16)
def _group_tensors(
    tensors: tuple[str, ...], granularity: str, blocks: tuple[str, ...]
) -> Mapping[str, tuple[str, ...]]:
    block = _finder(blocks)
    roots = {layer.split(".")[0] for t in tensors if (layer := block(t)) and "." in layer}
    groups: dict[str, list[str]] = {}
    for name in sorted(tensors, key=order):
        groups.setdefault(_group(granularity, name, block(name), roots), []).append(name)
    return MappingProxyType({group: tuple(names) for group, names in groups.items()})


def _finder(blocks: tuple[str, ...]) -> Callable[[str], str | None]:
    """From a tensor's name to the prefix of its block, if it is in one."""
    if not blocks:
        return lambda name: match[0][:-1] if (match := _BLOCK.match(name)) else None
    known = frozenset(blocks)
    return lambda name: next((p for p in _prefixes(name) if p in known), None)


def _prefixes(name: str) -> Iterator[str]:
    at = name.find(".")
    while at >= 0:
        yield name[:at]
        at = name.find(".", at + 1)


def order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key that puts tensors in the order of a model: embeddings, blocks by number (2 before 11), then the rest."""
    place = 1 if _BLOCK.match(name) else 0 if _EMBEDDING.search(name) else 2
    return place, [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _group(granularity: str, name: str, layer: str | None, roots: set[str]) -> str:
    if granularity in ("model", "tensor"):
        return "model" if granularity == "model" else name
    if layer is None:
        if _EMBEDDING.search(name):
            return "embeddings"
        parts = name.split(".")
        # `model.norm.weight` where blocks are `model.layers.N`: `model` alone would say nothing
        return ".".join(parts[: 2 if parts[0] in roots and len(parts) > 2 else 1])
    if granularity == "layer":
        return layer
    rest = name[len(layer) + 1 :]
    kind = next((kind for kind, pattern in _KINDS if pattern.search(rest)), rest.split(".")[0])
    return f"{layer}.{kind}"
