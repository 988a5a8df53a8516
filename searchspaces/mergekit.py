"""How would mergekit say it? A recipe as mergekit YAML, where mergekit can express it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.adapter import Adapter
from searchspaces.errors import Inexpressible
from searchspaces.pool import Pool
from searchspaces.recipe import Recipe

_METHODS = ("linear", "task_arithmetic")
Filters = list[tuple[str, str]]  # (substring of tensor names, group); the first that is in a name counts


def to_mergekit(recipe: Recipe, pool: Pool) -> str:
    """YAML for `mergekit-yaml` that gives the recipe's weights, summed in fp32, in the base's dtype.

    Raises Inexpressible, with the reason, where mergekit has no way to say it.
    """
    groups = pool.groups(recipe.granularity)
    copied = [t.name for t in pool.copied if t.dtype.is_floating_point]
    if recipe.method not in _METHODS:
        raise Inexpressible(f"mergekit has no method like {recipe.method}; recipe.yaml and the weights say it all")
    if pool.vocabulary:
        raise Inexpressible("rows of tokens were brought to one vocabulary, which mergekit does by rules of its own")
    if tuple(groups) != recipe.groups or set(recipe.experts) != set(pool.names):
        raise Inexpressible("the recipe is of another pool; give the pool that it was made for")
    every = [t for tensors in groups.values() for t in tensors]
    if odd := [t for t in (*every, *copied) if "*" in t]:
        raise Inexpressible(f"tensor name {odd[0]!r} has a '*', which mergekit's filters take for all tensors")
    for name, expert in pool.experts.items():
        if isinstance(expert, Adapter):
            raise Inexpressible(
                f"expert {name!r} is an adapter, and mergekit merges whole models; save it merged into its base "
                "(merge_and_unload() of PEFT) for that"
            )
        if moved := [t for t in every if expert.stored[t].name != pool.base.stored[t].name]:
            raise Inexpressible(
                f"expert {name!r} stores {moved[0]!r} as {expert.stored[moved[0]].name!r}; mergekit wants equal names"
            )
    base, experts = pool.base.folder, {name: expert.folder for name, expert in pool.experts.items()}
    dtypes = {str(t.dtype).removeprefix("torch.") for t in pool.merged}
    filters = _filters(groups, copied)
    base_scale, scales = methods.load(recipe.method)(recipe.options).mix(recipe.coefficients)
    options: dict[str, Any] = {}
    if recipe.method == "task_arithmetic":
        options = {"normalize": False, "lambda": recipe.options["lambda"]}
        weights = {e: recipe.coefficients[:, k] for k, e in enumerate(recipe.experts)}
        models = [{"model": str(base)}]
        models += [_model(experts[e], filters, recipe.groups, w, 0.0) for e, w in weights.items()]
    else:
        # normalised weights are written out: they sum to 1 already, and a group that stays the base has weight 1 on it
        options = {"normalize": False}
        models = [_model(base, filters, recipe.groups, base_scale - scales.sum(axis=1), 1.0)]
        models += [_model(experts[e], filters, recipe.groups, scales[:, k], 0.0) for k, e in enumerate(recipe.experts)]
    document: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.method == "task_arithmetic":
        document["base_model"] = str(base)
    document |= {"models": models, "parameters": options, "dtype": "float32"}
    if len(dtypes) == 1:
        document["out_dtype"] = dtypes.pop()
    return _dump(document)


def _model(
    where: str | Path, filters: Filters, groups: tuple[str, ...], weight: NDArray[np.float64], rest: float
) -> dict[str, Any]:
    row = dict(zip(groups, weight.tolist(), strict=True))
    if not filters:
        return {"model": str(where), "parameters": {"weight": row[groups[0]]}}
    listed: list[dict[str, Any]] = [{"filter": text, "value": row[group] if group else rest} for text, group in filters]
    # what no filter names is no tensor of ours: it stays as the base has it
    return {"model": str(where), "parameters": {"weight": [*listed, {"value": rest}]}}


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


def _dump(document: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100_000
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
