"""Which stored tensors are one stacked parameter's? A layer's experts, apart in files and together in the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from searchspaces.errors import PoolError
from searchspaces.models.architecture import skeleton
from searchspaces.models.layout import Part, finder


@dataclass(frozen=True)
class Piece:
    """One stored tensor of a stacked parameter: rows `start` to `stop` of the matrix of one of its experts."""

    expert: int
    experts: int
    start: int
    stop: int

    def cut(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of what is this piece's of PEFT's factors of the parameter: `(r, in)` and `(rows, r)`.

        Of `a` (experts r, in) the experts' rows follow each other, of `b` (out, r experts) their columns take turns.
        """
        rank = len(a) // self.experts
        return a[self.expert * rank : (self.expert + 1) * rank], b[self.start : self.stop, self.expert :: self.experts]


@dataclass(frozen=True)
class Stack:
    """A parameter `(experts, rows, columns)`, and its pieces by the names that they are stored under.

    No pieces where it is not stored as matrices of rows in their order: as one tensor, say, whose task vector would be
    no product of two thin matrices.
    """

    name: str
    shape: tuple[int, int, int]
    pieces: Mapping[str, Piece]


def stacks(folder: Path, stored: Collection[str]) -> dict[str, list[Stack]]:
    """The stacked parameters of a folder's model, by the module that holds them; `stored` are its tensors' names.

    Nothing where transformers cannot make the model.
    """
    try:
        model = skeleton(folder)
    except PoolError:
        return {}
    owned: dict[str, dict[str, Part]] = {}
    find = finder(model)
    for name in stored:
        place = find(name)
        for part in place.parts if place is not None else ():
            owned.setdefault(part.name, {})[name] = part
    found: dict[str, list[Stack]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            home = name.rpartition(".")[0]
            # where a layer says so, PEFT takes its parameter for (experts, in, out)
            turned = getattr(model.get_submodule(home), "is_transposed", False)
            pieces = {} if turned else _pieces(owned.get(name, {}))
            found.setdefault(home, []).append(Stack(name, tuple(parameter.shape), pieces))
    return found


def _pieces(parts: Mapping[str, Part]) -> dict[str, Piece]:
    """Pieces that are all of the parameter together; nothing where these parts are not."""
    found = {}
    for name, part in parts.items():
        experts, rows, columns = part.owner.shape
        at = part.view.storage_offset() - part.owner.storage_offset()
        if part.view.dim() != 2 or part.view.stride() != (columns, 1) or part.view.shape[1] != columns or at % columns:
            return {}
        expert, start = divmod(at // columns, rows)
        found[name] = Piece(expert, experts, start, start + part.view.shape[0])
    whole = sum(part.view.numel() for part in parts.values())
    return found if all(whole == part.owner.numel() for part in parts.values()) else {}
