"""Which options does every evaluator have, and what does a wrong one say? Validated once, at the door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evaluators.errors import OptionError, meant

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Files(BaseModel):
    """One data file for each split."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    calibration: str
    """What the search sees."""
    heldout: str
    """What the front is scored on when the search is over."""


class ItemOptions(BaseModel):
    """Where the items are, and how they are split. Unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    data: str | Files
    """A file (`.jsonl`, `.json`, `.csv`, `.parquet`), a folder saved by `datasets`, `datasets:NAME...`, or
    `{calibration: FILE, heldout: FILE}`"""
    calibration: Share | Count = 0.5
    """The share (below 1) or count of items that the search sees; the rest is held out, split by content hash. Only
    where `data` is one file."""
    seed: int = 0
    """Which items those are."""
    limit: Count | None = None
    """At most so many items of each file, drawn by content hash and not from its top. Default: all."""


Model = TypeVar("Model", bound=BaseModel)


def expanded(text: str) -> Path:
    """A path, `~` being this user's home; as it stands where it begins with a user that there is not."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def parse(model: type[Model], name: str, options: Model | Mapping[str, Any]) -> Model:
    """The validated options of evaluator `name`; raises `OptionError` that names the key, the value and the remedy."""
    if isinstance(options, model):
        return options
    try:
        return model.model_validate(options)
    except ValidationError as error:
        lines = [_explain(model, dict(problem), options) for problem in error.errors(include_url=False)]
        raise OptionError(f"evaluator {name!r}: " + "; ".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], problem: Mapping[str, Any], options: object) -> str:
    where = ".".join(_keys(problem["loc"], options))
    if problem["type"] == "extra_forbidden":
        *above, key = map(str, problem["loc"])
        known = _inside(model, above).model_fields
        return f"unknown option {where!r}; {meant(key, known)}known: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"option {where!r} is missing; add it"
    return f"option {where!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _keys(place: Sequence[int | str], options: Any) -> list[str]:
    """The parts of a place that are keys of the options, or one that is missing there.

    The others are pydantic's names for the types that a value may have.
    """
    found = []
    for part in place:
        try:
            options = options[part]
        except (KeyError, IndexError, TypeError):
            continue
        found.append(str(part))
    return found or [str(part) for part in place]


def _inside(model: type[BaseModel], parts: Sequence[str]) -> type[BaseModel]:
    """The options that these parts of a place lead to: names of fields, and of a class where a field has several."""
    for part in parts:
        field = model.model_fields.get(part)
        models = [] if field is None else list(_models(field.annotation))
        model = models[0] if len(models) == 1 else model
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of options in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
