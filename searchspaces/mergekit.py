"""How would mergekit say it? A recipe as mergekit YAML, where mergekit can express it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from searchspaces.adapters.adapter import Adapter
from searchspaces.errors import Inexpressible
from searchspaces.mergekit_methods import SAID, Filters, Said
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.pool import Pool
from searchspaces.recipe import Recipe
from searchspaces.written import to_yaml

BROKEN = ("BertModel",)  # mergekit 0.1.5 ends with a TypeError where optional tensors have other names too


def to_mergekit(recipe: Recipe, pool: Pool) -> str:
    """YAML for `mergekit-yaml` (0.1.5) that gives the recipe's weights, to rounding, in the base's dtype.

    Raises Inexpressible, with the reason, where mergekit has no way to say it.
    """
    if recipe.method not in SAID:
        raise Inexpressible(f"mergekit has no method like {recipe.method}; recipe.yaml and the weights say it all")
    groups = pool.groups(recipe.granularity)
    if tuple(groups) != recipe.groups or set(recipe.experts) != set(pool.names):
        raise Inexpressible("the recipe is of another pool; give the pool that it was made for")
    copied = [t.name for t in pool.copied if t.dtype.is_floating_point]
    every = [t for tensors in groups.values() for t in tensors]
    _check_folders(pool)
    _check_names(pool, [*every, *copied])
    _check_buffers(pool)
    dtypes = {str(t.dtype).removeprefix("torch.") for t in (*pool.merged, *pool.copied) if t.dtype.is_floating_point}
    if len(dtypes) > 1:
        raise Inexpressible(f"the base's tensors are {' and '.join(sorted(dtypes))}; mergekit writes one dtype for all")
    document = SAID[recipe.method](Said(recipe, pool, _filters(groups, copied), copied))
    return to_yaml({**document, "out_dtype": dtypes.pop()})


def _check_folders(pool: Pool) -> None:
    """Raises Inexpressible for models that mergekit does not open as we do."""
    if pool.vocabulary:
        raise Inexpressible("rows of tokens were brought to one vocabulary, which mergekit does by rules of its own")
    known = pool.base.config.get("architectures") or []
    folders = {pool.base.folder.resolve(): "base"}
    for name, expert in pool.opened.items():
        if isinstance(expert, Adapter):
            raise Inexpressible(
                f"expert {name!r} is an adapter, and mergekit merges whole models; save it merged into its base "
                "(merge_and_unload() of PEFT) for that"
            )
        if (theirs := expert.config.get("architectures") or []) != known:
            raise Inexpressible(
                f"expert {name!r} has architectures {theirs} (base: {known}); mergekit wants equal ones"
            )
        if (twin := folders.setdefault(expert.folder.resolve(), name)) != name:
            raise Inexpressible(f"expert {name!r} is in the same folder as {twin!r}; mergekit wants each model once")
    if len(known) != 1 or known[0] in BROKEN:
        what = f"fails on {known[0]}" if len(known) == 1 else f"wants one architecture in config.json, not {known}"
        raise Inexpressible(f"mergekit {what}, which is the base's architecture")


def _check_names(pool: Pool, floats: Sequence[str]) -> None:
    """Raises Inexpressible for tensors that mergekit's filters or models name otherwise."""
    if odd := [t for t in floats if "*" in t]:
        raise Inexpressible(f"tensor name {odd[0]!r} has a '*', which mergekit's filters take for all tensors")
    if odd := [t for t in floats if t.endswith((".gamma", ".beta"))]:
        raise Inexpressible(f"tensor name {odd[0]!r} is an old one, which mergekit calls '.weight' or '.bias'")
    shapes = {t.name: t.shape for t in (*pool.merged, *pool.copied)}
    for name, expert in pool.opened.items():
        assert not isinstance(expert, Adapter)  # `_check_folders` has refused those
        for t in floats:
            if t not in expert.tensors:
                raise Inexpressible(f"expert {name!r} has no tensor {t!r}; mergekit wants it in all models")
            if expert.stored[t].name != pool.base.stored[t].name:
                raise Inexpressible(
                    f"expert {name!r} stores {t!r} as {expert.stored[t].name!r}; mergekit wants equal names"
                )
            if expert.tensors[t].shape != shapes[t]:
                raise Inexpressible(
                    f"expert {name!r} has {t!r} in shape {expert.tensors[t].shape} (base: {shapes[t]}); mergekit wants "
                    "equal shapes, of what the base keeps too"
                )
    for name, model in {"base": pool.base, **pool.opened}.items():
        assert isinstance(model, Checkpoint)  # adapters were refused
        whole = Checkpoint.open(model.folder, name)
        if twice := sorted(whole.tensors.keys() - {s.name for s in model.stored.values()}):
            raise Inexpressible(
                f"{name!r} stores {twice[0]!r} beside the embedding that it is tied to, and mergekit merges both; save "
                "it again with save_pretrained() for that"
            )


def _check_buffers(pool: Pool) -> None:
    """Raises Inexpressible where models differ in what is no float: mergekit does not choose."""
    for info in pool.copied:
        if info.dtype.is_floating_point:
            continue
        ours = pool.base.tensor(info.name)
        for name, expert in pool.opened.items():
            if info.name in expert.tensors and not torch.equal(ours, expert.tensor(info.name)):
                raise Inexpressible(f"{info.name!r} of expert {name!r} is not the base's; mergekit wants equal buffers")


def _filters(groups: Mapping[str, Sequence[str]], copied: Sequence[str]) -> Filters:
    """Filters under which each tensor falls to its own group, and each copied one to the group ''."""
    if len(groups) == 1 and not copied:
        return []  # one weight for all
    owner = {t: group for group, tensors in groups.items() for t in tensors} | dict.fromkeys(copied, "")
    short: Filters = []
    long: Filters = []
    for group, tensors in groups.items():
        # up to the last dot: `layer.1.` must not match `layer.11.`
        prefix = _common(tensors) + "."
        alone = len(tensors) > 1 and len(prefix) > 1 and all((prefix in t) == (g == group) for t, g in owner.items())
        if alone:
            short.append((prefix, group))
        else:
            long += [(t, group) for t in tensors]
    long += [(t, "") for t in copied]
    found = sorted(long, key=lambda f: (-len(f[0]), f[0])) + short
    if all(next((g for text, g in found if text in t), None) == group for t, group in owner.items()):
        return found
    # a full name is first found in itself when longer names come before it
    return sorted(owner.items(), key=lambda f: (-len(f[0]), f[0]))


def _common(names: Sequence[str]) -> str:
    """The dotted path that all names share."""
    parts = [name.split(".")[:-1] for name in names]
    shared = [level[0] for level in zip(*parts, strict=False) if len(set(level)) == 1]
    return ".".join(shared) if all(p[: len(shared)] == shared for p in parts) else ""
