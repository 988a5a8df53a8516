"""Which merge methods are there? One literal table: a new method is one file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from searchspaces.errors import RecipeError

if TYPE_CHECKING:
    from searchspaces.method import Method

METHODS: dict[str, str] = {
    "linear": "searchspaces.methods.linear:Linear",
    "task_arithmetic": "searchspaces.methods.generalised:TaskArithmetic",
    "ties": "searchspaces.methods.generalised:Ties",
    "dare_linear": "searchspaces.methods.generalised:DareLinear",
    "dare_ties": "searchspaces.methods.generalised:DareTies",
    "della": "searchspaces.methods.generalised:Della",
    "della_linear": "searchspaces.methods.generalised:DellaLinear",
    "breadcrumbs": "searchspaces.methods.generalised:Breadcrumbs",
    "breadcrumbs_ties": "searchspaces.methods.generalised:BreadcrumbsTies",
    "consensus": "searchspaces.methods.consensus:Consensus",
    "magmax": "searchspaces.methods.magmax:MagMax",
    "sce": "searchspaces.methods.sce:Sce",
    "model_stock": "searchspaces.methods.model_stock:ModelStock",
    "slerp": "searchspaces.methods.slerp:Slerp",
    "nuslerp": "searchspaces.methods.nuslerp:NuSlerp",
    "multislerp": "searchspaces.methods.multislerp:MultiSlerp",
    "karcher": "searchspaces.methods.karcher:Karcher",
    "layer_swap": "searchspaces.methods.layer_swap:LayerSwap",
    "ties_once": "searchspaces.methods.ties_once:TiesOnce",
    "pcb": "searchspaces.methods.pcb:PCB",
    "tsv_m": "searchspaces.methods.tsv_m:TsvM",
    "iso_c": "searchspaces.methods.iso_c:IsoC",
    "iso_cts": "searchspaces.methods.iso_cts:IsoCTS",
    "fisher": "searchspaces.methods.fisher:Fisher",
    "regmean": "searchspaces.methods.regmean:RegMean",
    "mats": "searchspaces.methods.mats:Mats",
}
"""Name -> `module:Class`. Other people's come in through entry points of the group `mergeopt.methods`."""


def table() -> dict[str, str]:
    """`METHODS` and the entry points of installed packages; raises RecipeError where one takes a name of ours."""
    found = dict(METHODS)
    for entry in metadata.entry_points(group="mergeopt.methods"):
        if found.setdefault(entry.name, entry.value) != entry.value:
            owner = entry.dist.name if entry.dist else "an installed package"
            raise RecipeError(
                f"{owner} offers a method {entry.name!r} ({entry.value}), which already means "
                f"{found[entry.name]}; uninstall one of the two"
            )
    return found


@lru_cache
def load(name: str) -> type[Method]:
    """The class of a method, imported now; raises RecipeError for a name that is not in the table."""
    known = table()
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"no merge method {name!r}; {hint}there are: {', '.join(sorted(known))} ('mergeopt methods' tells of each)"
        )
    module, _, attribute = known[name].partition(":")
    found: type[Method] = getattr(import_module(module), attribute)
    return found


def _others(kind: type[Method]) -> str:
    """Names of like methods that merge any number of experts."""
    return "" if kind.experts[1] is None else " (nuslerp merges two; multislerp and karcher any number)"


def load_all(method: str | Sequence[str], experts: Sequence[str]) -> dict[str, type[Method]]:
    """The classes of one method or several. Raises RecipeError for none, repetitions, and experts too few or many."""
    names = [method] if isinstance(method, str) else list(method)
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"space.method is {names}, expected one name or several that differ")
    kinds = {name: load(name) for name in names}
    for name, kind in kinds.items():
        least, most = kind.experts
        if len(experts) < least or (most is not None and len(experts) > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise RecipeError(
                f"method {name} merges {wanted} expert{'s' * (wanted != '1')}, got {len(experts)}: "
                f"{', '.join(experts)}; change models.experts, or take another method{_others(kind)}"
            )
    return kinds
