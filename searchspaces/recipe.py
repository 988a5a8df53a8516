"""What exactly is a candidate? Method, models, coefficients and seed: frozen, hashed by content, YAML in and out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.errors import RecipeError
from searchspaces.groups import RULE
from searchspaces.option import Number, Option, finite
from searchspaces.written import to_yaml

FORMAT = 1
MAX_YAML = 16_000_000  # bytes
MAX_DEPTH = 50  # of values inside values


@dataclass(frozen=True, eq=False)
class Recipe:
    """One candidate. Recipes with equal hashes are equal.

    `coefficients` is read-only float64 of shape `(groups, experts)`; `options` are the method's, defaults filled in:
    plain values, and where a number differs read-only float64 arrays, `(groups, experts)` or `(groups, 1)`. One that is
    the same everywhere is kept as a plain number, and one that is the same for all experts as `(groups, 1)`.
    `models` holds content hashes (sha256) of `base` and of each expert; `seed` is 0 where the method draws nothing.
    Raises RecipeError for coefficients or options of another shape, and for NaN or infinity among them.
    """

    method: str
    options: Mapping[str, Option]
    granularity: str
    groups: tuple[str, ...]
    experts: tuple[str, ...]
    coefficients: NDArray[np.float64]
    models: Mapping[str, str]
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = (len(self.groups), len(self.experts))
        values = np.array(self.coefficients, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: one candidate, one hash
        if values.shape != wanted:
            raise RecipeError(f"coefficients must have shape {wanted} (groups, experts), got {values.shape}")
        if not np.isfinite(values).all():
            g, k = np.argwhere(~np.isfinite(values))[0]
            raise RecipeError(f"the coefficient of {self.groups[g]}|{self.experts[k]} is {values[g, k]}, not finite")
        values.setflags(write=False)
        object.__setattr__(self, "coefficients", values)
        options = {name: _canonical(self.method, name, value, wanted) for name, value in self.options.items()}
        object.__setattr__(self, "options", MappingProxyType(options))

    @cached_property
    def hash(self) -> str:
        """sha256 in hex over all that decides the merged weights: the candidate's identity."""
        arrays = {name: value for name, value in sorted(self.options.items()) if isinstance(value, np.ndarray)}
        plain = {name: list(arrays[name].shape) if name in arrays else value for name, value in self.options.items()}
        head = {
            "format": FORMAT,
            "rule": RULE,
            "method": self.method,
            "options": sorted(plain.items()),
            "granularity": self.granularity,
            "groups": self.groups,
            "experts": self.experts,
            "models": sorted(self.models.items()),
            "seed": self.seed,
        }
        digest = hashlib.sha256(json.dumps(head).encode())
        for values in (self.coefficients, *arrays.values()):
            digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` reads it back to the bit."""
        return to_yaml(
            {
                "format": FORMAT,
                "hash": self.hash,
                "method": self.method,
                "options": self.plain_options,
                "granularity": self.granularity,
                "experts": list(self.experts),
                "models": dict(self.models),
                "seed": self.seed,
                "coefficients": self._table(self.coefficients),
            }
        )

    @property
    def plain_options(self) -> dict[str, Any]:
        """The options as plain values: arrays are mappings from groups to numbers, or to mappings from experts."""
        return {n: self._table(v) if isinstance(v, np.ndarray) else v for n, v in self.options.items()}

    @property
    def picked(self) -> dict[str, str] | None:
        """Of a method that takes each group whole from one model, that model by group; None of any other."""
        if not methods.load(self.method).picks:
            return None
        names = ("base", *self.experts)
        codes = (self.coefficients @ np.arange(1, len(names))).astype(int)
        return {group: names[code] for group, code in zip(self.groups, codes, strict=True)}

    def _table(self, values: NDArray[np.float64]) -> dict[str, Any]:
        """A number by group, or by group and expert."""
        if values.shape[1] == len(self.experts):
            rows = zip(self.groups, values.tolist(), strict=True)
            return {group: dict(zip(self.experts, row, strict=True)) for group, row in rows}
        return dict(zip(self.groups, values[:, 0].tolist(), strict=True))

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """A recipe from YAML.

        Raises RecipeError for text that is no recipe, for aliases, for duplicate or unknown keys, and where `hash` is
        there and is not the hash of the rest; a recipe that was edited by hand has that line removed.
        """
        data = _parse(text)
        keys = {"format", "method", "options", "granularity", "experts", "models", "seed", "coefficients"}
        if odd := (data.keys() - {"hash"}) ^ keys:
            raise RecipeError(
                f"recipe: key {min(odd, key=str)!r} is odd or missing; expected {', '.join(sorted(keys))}"
            )
        if data["format"] != FORMAT:
            raise RecipeError(f"recipe: format {data['format']!r}, expected {FORMAT}; another version wrote it")
        made = _build(cls, data)
        if data.get("hash", made.hash) != made.hash:
            raise RecipeError(
                f"recipe: hash {str(data['hash'])[:12]} does not fit its content ({made.hash[:12]}); "
                "remove the line if the recipe was edited by hand"
            )
        return made


def _canonical(method: str, name: str, value: Option, shape: tuple[int, int]) -> Option:
    """A value as a recipe holds it: an array as small as says the same, without negative zeros, plain where it can be.

    Raises RecipeError for shapes and numbers that are none, and for an array of a method that there is not.
    """
    if not isinstance(value, np.ndarray):
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"option {name} is {value}, expected a finite number")
        return value
    values = np.array(value, dtype=np.float64) + 0.0
    if values.shape not in (shape, (shape[0], 1)):
        raise RecipeError(
            f"option {name} has shape {values.shape}, expected {shape} (groups, experts) or {(shape[0], 1)} (groups, 1)"
        )
    if not np.isfinite(values).all():
        raise RecipeError(f"option {name} has {values[~np.isfinite(values)][0]} in it, expected finite numbers")
    if values.size and (values == values.flat[0]).all():
        number, spec = float(values.flat[0]), methods.load(method).options.get(name)
        # in the option's own type; a broken number of a whole one is refused where options are checked
        return int(number) if isinstance(spec, Number) and spec.whole and number.is_integer() else number
    if (values == values[:, :1]).all():
        values = values[:, :1].copy()
    values.setflags(write=False)
    return values


def _parse(text: str) -> dict[Any, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    if len(text) > MAX_YAML:
        raise RecipeError(f"recipe: {len(text)} characters of YAML, expected at most {MAX_YAML}")
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                raise RecipeError("recipe: YAML aliases (*name) are refused; write the values out")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecipeError(
                    f"recipe: values inside values over {MAX_DEPTH} deep; a recipe has a handful of levels"
                )
        data = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"recipe: not valid YAML: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe: expected a mapping, got {type(data).__name__}; 'export' writes a recipe.yaml")
    return data


def _strings(data: dict[Any, Any], key: str) -> dict[str, Any]:
    table = data[key]
    if not isinstance(table, dict) or not all(isinstance(k, str) for k in table):
        raise RecipeError(f"recipe: {key} must map names to values, got {type(table).__name__}")
    return table


def _build(cls: type[Recipe], data: dict[Any, Any]) -> Recipe:
    experts, seed, table = data["experts"], data["seed"], _strings(data, "coefficients")
    if not isinstance(experts, list) or not all(isinstance(e, str) for e in experts):
        raise RecipeError(f"recipe: experts must be a list of names, got {experts!r:.80}")
    if type(seed) is not int or not isinstance(data["method"], str) or not isinstance(data["granularity"], str):
        raise RecipeError("recipe: method and granularity must be names, and seed a whole number")
    values = _rows("coefficients", table, experts)
    models = _strings(data, "models")
    options = {name: _option(name, value, list(table), experts) for name, value in _strings(data, "options").items()}
    if not all(isinstance(v, str) for v in models.values()):
        raise RecipeError("recipe: models must map base and experts to content hashes")
    return cls(data["method"], options, data["granularity"], tuple(table), tuple(experts), values, models, seed)


def _option(name: str, value: Any, groups: list[str], experts: list[str]) -> Option:
    """A plain value, or a number by group, `(G, 1)`, or by group and expert, `(G, K)`."""
    if isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, dict) or list(value) != groups:
        raise RecipeError(
            f"recipe: option {name!r} must be a plain value, or map the groups of the coefficients, in their order, to "
            f"numbers; got {value!r:.200}"
        )
    if any(isinstance(entry, dict) for entry in value.values()):
        return _rows(f"option {name!r}", value, experts)
    return _rows(f"option {name!r}", {group: {"it": entry} for group, entry in value.items()}, ["it"])


def _rows(what: str, table: dict[Any, Any], columns: list[str]) -> NDArray[np.float64]:
    """Numbers by group and column, float64 `(G, columns)`."""
    rows = []
    for group, row in table.items():
        if not isinstance(row, dict) or list(row) != columns:
            raise RecipeError(f"recipe: {what} of {group!r} must name the experts {columns} in this order")
        if not all(type(c) in (int, float) and finite(c) for c in row.values()):
            raise RecipeError(f"recipe: {what} of {group!r} must be finite numbers, got {list(row.values())!r:.200}")
        rows.append([float(c) for c in row.values()])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(columns))
