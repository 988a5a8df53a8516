"""Where in a model does each stored tensor live? Found by sending its own tensors through transformers' saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Part:
    """A view of one of a model's parameters or buffers."""

    view: torch.Tensor
    owner: torch.Tensor  # the parameter or buffer
    name: str  # what the model calls it

    def of(self, other: torch.Tensor) -> torch.Tensor:
        """The same view of another tensor of the owner's shape, such as its gradient."""
        if other.stride() != self.owner.stride():
            like = torch.empty_strided(self.owner.shape, self.owner.stride(), dtype=other.dtype, device=other.device)
            other = like.copy_(other)
        start = other.storage_offset() + self.view.storage_offset() - self.owner.storage_offset()
        return other.as_strided(self.view.shape, self.view.stride(), start)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a model keeps one stored tensor: the whole of a parameter, a part of one, or parts of several.

    Several parts follow each other along the stored tensor's first dimension, as queries, keys and values that are
    stored as one tensor.
    """

    parts: tuple[Part, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The stored tensor's."""
        first = self.parts[0].view.shape
        return (sum(p.view.shape[0] for p in self.parts), *first[1:]) if len(self.parts) > 1 else tuple(first)

    @property
    def device(self) -> torch.device:
        """Where it lies, and what is made of its gradient."""
        return self.parts[0].view.device

    @cached_property
    def flat(self) -> torch.Tensor | None:
        """The model's own storage for all elements in their stored order, `(n,)`; None where they do not lie so."""
        whole = self.parts[0].view
        return whole.view(-1) if len(self.parts) == 1 and whole.is_contiguous() else None

    @property
    def trained(self) -> bool:
        """Whether all of it is parameters, so that a gradient reaches it."""
        return all(isinstance(p.owner, torch.nn.Parameter) for p in self.parts)

    def write(self, tensor: torch.Tensor) -> None:
        """Copy a tensor with as many elements, in the stored order, into the model."""
        rows = [p.view.shape[0] for p in self.parts] if len(self.parts) > 1 else None
        shaped = tensor.reshape(self.shape)
        for part, piece in zip(self.parts, torch.split(shaped, rows) if rows else (shaped,), strict=True):
            part.view.copy_(piece)

    def read(self) -> torch.Tensor:
        """What the model holds, in the stored order and shape; a view where it can be."""
        views = [p.view for p in self.parts]
        return torch.cat(views) if len(views) > 1 else views[0]

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient in the stored tensor's shape; a view where it can be. None where no part has one."""
        grads = [p.owner.grad for p in self.parts]
        if all(g is None for g in grads):
            return None
        views = [torch.zeros_like(p.view) if g is None else p.of(g) for p, g in zip(self.parts, grads, strict=True)]
        return torch.cat(views) if len(views) > 1 else views[0]

    def forget(self) -> None:
        """Drop the gradient of what the parts belong to."""
        for part in self.parts:
            part.owner.grad = None

    def requires_grad_(self, wanted: bool) -> None:
        """As a parameter's own: what the parts belong to requires a gradient, or no longer does."""
        for part in self.parts:
            part.owner.requires_grad_(wanted)


def renamed(model: Any) -> dict[str, str]:
    """Checkpoint name -> the model's own, of the tensors that transformers stores whole under another name."""
    kept = model.state_dict().keys()
    places = _reverted(model, {name: owner for name, owner in _owners(model) if name in kept})
    whole = {name: p.parts[0] for name, p in places.items() if len(p.parts) == 1}
    return {name: part.name for name, part in whole.items() if part.view.shape == part.owner.shape}


def finder(model: Any) -> Callable[[str], Place | None]:
    """From a checkpoint's tensor name to its place in a model, which may be one on the meta device.

    Names with and without the prefix of the model's trunk are the same. None for a name that leads nowhere, and for a
    tensor that transformers makes from what is stored by other means than cutting, stacking, joining and transposing.
    """
    owners = dict(_owners(model))
    state = {name: owners[name] for name in model.state_dict() if name in owners}
    places = {**_reverted(model, state), **{n: Place((Part(t.detach(), t, n),)) for n, t in state.items()}}
    prefix = f"{model.base_model_prefix}."

    def find(name: str) -> Place | None:
        return next((places[n] for n in (name, prefix + name, name.removeprefix(prefix)) if n in places), None)

    return find


def _owners(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _reverted(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    """Places by the names under which transformers would save the model, where they are others than the model's.

    On the way in it renames, stacks the experts of a layer, joins or parts projections; the way out undoes that, and
    its results are views of what went in.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 names in files and models were the same
        return {}
    sent = {name: tensor.detach().as_subclass(_Followed) for name, tensor in state.items()}
    by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in state.items():
        by_storage.setdefault(_storage(tensor), []).append((name, tensor))
    found = {}
    for name, tensor in revert_weight_conversion(model, sent).items():
        views = getattr(tensor, "joined", (tensor,))
        parts = [part for view in views if (part := _part(view, by_storage)) is not None]
        if len(parts) == len(views):
            found[name] = Place(tuple(parts))
    return found


def _part(view: torch.Tensor, by_storage: Mapping[int, list[tuple[str, torch.Tensor]]]) -> Part | None:
    """What a view is a view of; None for a copy."""
    at = view.storage_offset()
    for name, owner in by_storage.get(_storage(view), ()):
        if owner.storage_offset() <= at < owner.storage_offset() + max(owner.numel(), 1):
            return Part(view.as_subclass(torch.Tensor), owner, name)
    return None


def _storage(tensor: torch.Tensor) -> int:
    """What tells storages apart, those of the meta device too, where every address is 0."""
    return int(tensor.untyped_storage()._cdata)


class _Followed(torch.Tensor):
    """A tensor that stays a view of what it was cut from, and remembers what it was joined from."""

    joined: tuple[torch.Tensor, ...]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As for any tensor, but that making one contiguous copies nothing, and joining keeps the parts."""
        kwargs = kwargs or {}
        if func is torch.Tensor.contiguous:
            return args[0]
        if func is torch.cat and (args[1] if len(args) > 1 else kwargs.get("dim", 0)) == 0:
            # the shape is all that is asked of the whole, so it is made where it takes no memory
            whole = torch.cat([t.as_subclass(torch.Tensor).to("meta") for t in args[0]]).as_subclass(cls)
            whole.joined = tuple(p for t in args[0] for p in getattr(t, "joined", (t,)))
            return whole
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
