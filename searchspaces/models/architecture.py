"""What does transformers make of a config? The model without its weights, and the blocks it is built of."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from searchspaces.errors import PoolError, first_line
from searchspaces.models.checkpoint import read_json
from searchspaces.models.layout import finder


def model_class(config: Mapping[str, Any]) -> Any:
    """The transformers class that a config names, or AutoModel where it names none that there is."""
    import transformers

    kind = getattr(transformers, str((config.get("architectures") or ["AutoModel"])[0]), None)
    return kind if hasattr(kind, "from_pretrained") else transformers.AutoModel


@lru_cache(maxsize=4)
def skeleton(folder: Path) -> Any:
    """The model of a folder on the meta device: every module and shape, no memory, no weights read.

    Raises PoolError where transformers cannot make it.
    """
    import torch
    import transformers

    kind = model_class(read_json(folder / "config.json", "base"))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except Exception as error:  # a config's values go into the constructors of hundreds of architectures
        raise PoolError(
            f"base: transformers cannot make a model of {folder}: {first_line(error)}; check its config.json"
        ) from error


def input_embeddings(model: Any) -> Any:
    """A model's input embeddings: a module, Perceiver's bare parameter, or None of one with two towers (CLIP)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def vocabulary(names: Sequence[str], folder: Path) -> dict[str, int]:
    """The stored tensors with one entry for each token, and along which dimension: what transformers resizes.

    Nothing for a model without tokens, and for one whose embeddings transformers cannot resize by itself.
    """
    import torch

    model = copy.deepcopy(skeleton(folder))
    find = finder(model)
    owners = {name: place.parts[0].name for name in names if (place := find(name)) is not None}
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    embeddings = input_embeddings(model)
    if not isinstance(embeddings, torch.nn.Embedding):  # but of patches (ViT), or none
        return {}
    try:
        with torch.device("meta"):
            model.resize_token_embeddings(embeddings.num_embeddings + 1, mean_resizing=False)
    except NotImplementedError:  # transformers refuses to: I-BERT, and two models joined in one (EncoderDecoderModel)
        return {}
    after = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {}
    for name, own in owners.items():
        grown = [axis for axis, (a, b) in enumerate(zip(before[own], after[own], strict=True)) if a != b]
        if grown:
            found[name] = grown[0]
    return found


def stored_blocks(names: Sequence[str], model: Any) -> tuple[str, ...]:
    """The blocks of a model, in its order, each as the prefix that its tensors among `names`, and no others, share.

    A block is an item of a list of modules (`torch.nn.ModuleList`, `Sequential`) that is not a single layer; of nested
    lists, as of a mixture's experts in its layers, the outermost. `names` are those of a checkpoint, which may be
    others than the model's. Nothing where some block's tensors have no prefix of their own.
    """
    find = finder(model)
    places = {name: place.parts[0].name for name in names if (place := find(name)) is not None}
    found = []
    for block in _blocks(model, ""):
        inside = [name for name, own in places.items() if own.startswith(f"{block}.")]
        if not inside:
            continue
        prefix = _prefix(inside, set(names) - set(inside))
        if prefix is None:
            return ()
        found.append(prefix)
    return tuple(found)


def _blocks(module: Any, path: str) -> Iterator[str]:
    from torch.nn import ModuleList, Sequential

    for name, child in module.named_children():
        at = f"{path}.{name}" if path else name
        listed = isinstance(child, ModuleList | Sequential)
        for part, item in child.named_children() if listed else ():
            if isinstance(item, ModuleList | Sequential):  # a list of lists: the blocks are the inner one's
                yield from _blocks(child, at)
                break
            if next(item.children(), None) is not None:
                yield f"{at}.{part}"
        if not listed:
            yield from _blocks(child, at)


def _prefix(inside: Sequence[str], outside: set[str]) -> str | None:
    """The shortest dotted prefix, a number last, that all names inside have and none outside."""
    parts = inside[0].split(".")
    for n, part in enumerate(parts[:-1], 1):
        start = ".".join(parts[:n]) + "."
        if not all(name.startswith(start) for name in inside):
            return None
        if part.isdecimal() and not any(name.startswith(start) for name in outside):
            return start[:-1]
    return None
