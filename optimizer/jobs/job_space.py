"""What does a job say of its search space? Methods, their options, and the coefficients that share a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StrictBool,
    StringConstraints,
    Tag,
    model_serializer,
    model_validator,
)

from searchspaces.option import finite, no_number

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Strict(BaseModel):
    """Refuses unknown keys, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _number(value: object) -> int | float:
    if type(value) not in (int, float) or not finite(value):
        raise ValueError(f"expected a finite number{no_number(value)}")
    return value  # type: ignore[return-value]


def _value(value: object) -> bool | int | float | str:
    if not isinstance(value, bool | str):
        try:
            return _number(value)
        except ValueError:
            raise ValueError(
                "expected a value, 'search', a mapping with low, high, per, start or values, or a number by expert"
            ) from None
    return value


def _methods(value: object) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError("expected the name of a merge method, or a list of such names")
    if len(set(names)) < len(names):
        raise ValueError("a method is listed twice; list each once")
    return value  # type: ignore[return-value]


def _options(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError("expected options and their values, such as {density: 0.5}")
    return value


def _by_expert(value: object, one: Callable[[object], Any], expected: str) -> Any:
    """`one` of a value for all experts, or of each expert's."""
    try:
        return {name: one(own) for name, own in value.items()} if isinstance(value, dict) and value else one(value)
    except ValueError as error:
        raise ValueError(f"expected {expected}{'; write numbers without quotes' * ('quotes' in str(error))}") from None


def _pair(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected two numbers")
    low, high = map(_number, value)
    return float(low), float(high)


def _bounds(value: object) -> Any:
    return _by_expert(value, _pair, "[low, high], or {EXPERT: [low, high], ...}")


def _begin(value: object) -> Any:
    return None if value is None else _by_expert(value, _one_start, "a number, or {EXPERT: number, ...}")


def _one_start(value: object) -> float | dict[str, float]:
    """An expert's start: one number, or numbers by patterns of groups."""
    if isinstance(value, dict) and value and all(isinstance(pattern, str) for pattern in value):
        return {pattern: float(_number(one)) for pattern, one in value.items()}
    return float(_number(value))


Pair = tuple[float, float]
Number = Annotated[int | float, PlainValidator(_number, json_schema_input_type=int | float)]
Value = Annotated[bool | int | float | str, PlainValidator(_value, json_schema_input_type=bool | int | float | str)]


class Searched(Strict):
    """How an option is searched: from `low` to `high`, or among `values`."""

    low: Number | None = None
    """The least value. Default: what the method says is worth it."""
    high: Number | None = None
    """The largest value. Default: what the method says is worth it."""
    per: Literal["model", "expert", "group", "both"] = "model"
    """What the option may differ by."""
    start: Value | None = None
    """Its value at the starting point and in the anchors. Default: the method's own."""
    values: list[Value] | None = Field(None, min_length=2)
    """Search among these, instead of between `low` and `high`."""

    @model_validator(mode="after")
    def _range_or_list(self) -> Searched:
        if self.values is not None and (self.low is not None or self.high is not None):
            raise ValueError("a list of values has no low and no high; remove them, or the values")
        return self

    @model_serializer
    def _said(self) -> dict[str, Any]:
        """Without what was left out: `per` stays, so that it is read back as what it is."""
        named = {name: getattr(self, name) for name in ("low", "high", "per", "start", "values")}
        return {name: value for name, value in named.items() if value is not None}


def _form(value: object) -> str:
    """Which of its forms an option has; no option and no expert has such a name."""
    if isinstance(value, Searched):
        return "(searched)"
    if isinstance(value, dict):
        known = Searched.model_fields.keys()
        return "(searched)" if not value or not known.isdisjoint(value) else "(by expert)"
    return "(value)"


OptionEntry = Annotated[
    Annotated[Value, Tag("(value)")]
    | Annotated[Searched, Tag("(searched)")]
    | Annotated[dict[Name, Number], Tag("(by expert)")],
    Discriminator(_form),
]


class Space(Strict):
    """What is searched: the merge method or methods, their options, and the coefficients that share a group."""

    method: Annotated[str | list[str], PlainValidator(_methods, json_schema_input_type=str | list[str])] = (
        "task_arithmetic"
    )
    """A merge method, or a list of methods to choose from."""
    options: Annotated[dict[str, OptionEntry], BeforeValidator(_options)] = {}
    """The method's own options: a value, `search`, how it is searched, or a number for each expert. `density` is that
    of all methods that have it, `ties.density` of that one alone: docs/job.md#options-of-methods-and-searching-them"""
    granularity: Literal["model", "layer", "module", "tensor"] = "layer"
    """Which tensors share a coefficient: docs/architectures.md#groups"""
    bounds: Annotated[Pair | dict[Name, Pair], BeforeValidator(_bounds)] = (0.0, 1.0)
    """Of coefficients: for all experts, or `{NAME: [low, high], ...}`"""
    start: Annotated[float | dict[Name, float | dict[str, float]] | None, BeforeValidator(_begin)] = None
    """Where the search starts, for all or `{NAME: value, ...}`; a value may be `{GROUP: number, "*": number}`: of a
    group's own name, whatever it looks like, else of the longest pattern that matches it. A start by group is an anchor
    too, `start`. Default: `0.3`."""
    frozen: list[str] = []
    """Patterns of groups or tensors whose groups keep their start."""
    simplex: StrictBool = False
    """Coefficients of a group are positive and sum to at most 1; the rest stays with the base."""

    @property
    def methods(self) -> list[str]:
        return [self.method] if isinstance(self.method, str) else self.method

    @property
    def said(self) -> dict[str, Any]:
        """The options as plain values, as a space takes them."""
        dumped: dict[str, Any] = self.model_dump(mode="json")["options"]
        return dumped

    @property
    def searched(self) -> list[str]:
        """The options that are coordinates, by their names in the job."""
        return [name for name, value in self.options.items() if isinstance(value, Searched) or value == "search"]
