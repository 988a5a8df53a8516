"""Which linear layers multiply a stored tensor, and along which of its dimensions?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from searchspaces.models.layout import Part, Place


@dataclass(frozen=True, eq=False)
class Reading:
    """Linear layers that are called with inputs of `width` numbers, and multiply them by a stored tensor.

    `first`: the inputs are the tensor's first dimension, `x W`, as GPT-2's Conv1D stores it; else its last, `x W^T`.
    """

    modules: tuple[torch.nn.Module, ...]
    width: int
    first: bool


def readings(model: Any, places: Mapping[str, Place]) -> dict[str, Reading]:
    """By name, of those stored tensors whose inputs can be told from a module's.

    These are matrices that are the weight of a `Linear` or a `Conv1D`, or a range of its outputs (queries, keys and
    values that the model keeps together). Others have no entry: embeddings, and output layers tied to them; a stored
    tensor whose rows are several layers'; weights of convolutions; experts that the model stacks in one parameter;
    biases, norms.
    """
    holders: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, attribute))
    found = {}
    for name, place in places.items():
        if len(place.parts) == 1 and place.parts[0].view.dim() == 2:
            reading = _reading(place.parts[0], holders.get(id(place.parts[0].owner), []))
            if reading is not None:
                found[name] = reading
    return found


def _reading(part: Part, holders: list[tuple[torch.nn.Module, str]]) -> Reading | None:
    """How the holders of a parameter read a part of it, where all of them read it in one way."""
    dimensions = {_inputs(module) if attribute == "weight" else None for module, attribute in holders}
    inputs = dimensions.pop() if len(dimensions) == 1 else None
    owner, view = part.owner, part.view
    if inputs is None or owner.dim() != 2:
        return None
    width = owner.shape[inputs]
    for dimension in (inputs, 1 - inputs):  # a view may be turned round
        strides = view.stride(dimension), view.stride(1 - dimension)
        if view.shape[dimension] == width and strides == (owner.stride(inputs), owner.stride(1 - inputs)):
            return Reading(tuple(module for module, _ in holders), width, dimension == 0)
    return None


def _inputs(module: torch.nn.Module) -> int | None:
    """Which dimension of a module's weight its inputs are; None where it is no linear layer."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return 1
    return 0 if isinstance(module, Conv1D) else None
