"""What is a candidate? From points to recipes to merged weights. Names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchspaces.facts.process import processed
    from searchspaces.methods import METHODS
    from searchspaces.models.pool import Pool
    from searchspaces.recipe import Recipe
    from searchspaces.space import CoefficientSpace
    from searchspaces.weights.materialise import Resident

__all__ = ["METHODS", "CoefficientSpace", "Pool", "Recipe", "Resident", "processed"]

_HOMES = {
    "METHODS": "searchspaces.methods",
    "CoefficientSpace": "searchspaces.space",
    "Pool": "searchspaces.models.pool",
    "Recipe": "searchspaces.recipe",
    "Resident": "searchspaces.weights.materialise",
    "processed": "searchspaces.facts.process",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'searchspaces' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
