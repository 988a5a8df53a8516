"""What exactly is a candidate? Method, models, coefficients and seed: frozen, hashed by content, YAML in and out."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import RecipeError
from searchspaces.groups import RULE
from searchspaces.method import Option

FORMAT = 1
MAX_YAML = 16_000_000  # bytes


@dataclass(frozen=True, eq=False)
class Recipe:
    """One candidate. Recipes with equal hashes are equal.

    `coefficients` is read-only float64 of shape `(groups, experts)`; `options` are the method's, defaults filled in;
    `models` holds content hashes (sha256) of `base` and of each expert; `seed` is 0 where the method draws nothing.
    Raises RecipeError for coefficients of another shape, and for NaN or infinity among them.
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

    @cached_property
    def hash(self) -> str:
        """sha256 in hex over all that decides the merged weights: the candidate's identity."""
        head = {
            "format": FORMAT,
            "rule": RULE,
            "method": self.method,
            "options": sorted(self.options.items()),
            "granularity": self.granularity,
            "groups": self.groups,
            "experts": self.experts,
            "models": sorted(self.models.items()),
            "seed": self.seed,
        }
        digest = hashlib.sha256(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(self.coefficients, dtype="<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` reads it back to the bit."""
        table = {
            group: dict(zip(self.experts, row, strict=True))
            for group, row in zip(self.groups, self.coefficients.tolist(), strict=True)
        }
        out = io.StringIO()
        yaml = _yaml()
        yaml.dump(
            {
                "format": FORMAT,
                "hash": self.hash,
                "method": self.method,
                "options": dict(self.options),
                "granularity": self.granularity,
                "experts": list(self.experts),
                "models": dict(self.models),
                "seed": self.seed,
                "coefficients": table,
            },
            out,
        )
        return out.getvalue()

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


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100_000  # a long name stays on its line
    return yaml


def _parse(text: str) -> dict[Any, Any]:
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    if len(text) > MAX_YAML:
        raise RecipeError(f"recipe: {len(text)} characters of YAML, expected at most {MAX_YAML}")
    try:
        if any(isinstance(event, AliasEvent) for event in _yaml().parse(text)):
            raise RecipeError("recipe: YAML aliases (*name) are refused; write the values out")
        data = _yaml().load(text)
    except (YAMLError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"recipe: not valid YAML: {str(error).splitlines()[0]}") from error
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
    rows = []
    for group in table:
        row = table[group]
        if not isinstance(row, dict) or list(row) != experts:
            raise RecipeError(f"recipe: coefficients of {group!r} must name the experts {experts} in this order")
        if not all(type(c) in (int, float) and math.isfinite(c) for c in row.values()):
            raise RecipeError(f"recipe: coefficients of {group!r} must be finite numbers, got {row!r:.200}")
        rows.append([float(c) for c in row.values()])
    options, models = _strings(data, "options"), _strings(data, "models")
    if not all(isinstance(v, bool | int | float | str) for v in options.values()):
        raise RecipeError(f"recipe: options must be plain values, got {options!r:.200}")
    if not all(isinstance(v, str) for v in models.values()):
        raise RecipeError("recipe: models must map base and experts to content hashes")
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(experts))
    return cls(data["method"], options, data["granularity"], tuple(table), tuple(experts), values, models, seed)
