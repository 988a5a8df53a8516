"""How do a resident trunk and one task's head give logits? No second trunk is ever in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from evaluators.errors import OptionError
from evaluators.evaluator import Head

Pooling = Literal["model", "cls", "mean"]
Forward = Callable[[Any, Mapping[str, Tensor], Sequence[int]], tuple[Tensor, list[Tensor]]]
"""`forward(model, inputs, layers)` -> logits float32 `(b, classes)` of the resident model as it is now, and its hidden
states `(b, t, d)` at these layers, counted as transformers does: 0 are the embeddings, -1 is the last."""


@dataclass(frozen=True)
class HeadUse:
    """How an evaluator reads a task's head, for whoever loads the merged model later.

    `auto` is the transformers class of a whole classifier (pooling `model`); else `weight` and `bias` name the tensors
    of a linear head on vectors pooled by `pooling` and, with `normalize`, scaled to length 1.
    """

    expert: str
    pooling: Pooling
    normalize: bool
    auto: str | None = None
    weight: str | None = None
    bias: str | None = None

    @classmethod
    def of(cls, expert: str, head: Head, pooling: Pooling, unit: bool, reads: Literal["text", "image"]) -> HeadUse:
        if pooling == "model":
            return cls(expert, pooling, unit, AUTO[reads])
        parts = {match[2]: key for key in head.tensors if (match := LINEAR.search(key))}
        return cls(expert, pooling, unit, None, parts.get("weight"), parts.get("bias"))


AUTO = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
LINEAR = re.compile(r"(?:^|\.)(classifier|score|head)\.(weight|bias)$")


def read_config(folder: Path) -> Any:
    """The config in a model's folder, from that folder alone; raises `OptionError` where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"{folder}: expected a config.json that transformers knows ({error})") from error


def default_pooling(config: Any, reads: Literal["text", "image"]) -> Pooling:
    """`model` where the expert was saved as a classifier; else the mean of a text's tokens, an image's first token."""
    wanted = "ForSequenceClassification" if reads == "text" else "ForImageClassification"
    if any(name.endswith(wanted) for name in config.architectures or ()):
        return "model"
    return "mean" if reads == "text" else "cls"


def trunk_of(model: Any) -> Any:
    """The model without any head of its own: transformers' `base_model`."""
    return model.base_model


def linear_head(
    name: str, head: Head, pooling: Literal["cls", "mean"], unit: bool, device: torch.device
) -> tuple[Forward, int]:
    """A forward of the trunk, pooled, through the head's one linear layer; and the number of its rows.

    `last_hidden_state` (b, t, d) is pooled to (b, d): its first position (`cls`), or the mean over positions, padding
    left out (`mean`). With `unit` it is then scaled to length 1. Pooling and head are computed in float32.
    Raises `OptionError` where the head is not a single linear layer.
    """
    found = {key: match[2] for key in head.tensors if (match := LINEAR.search(key))}
    by_part = {part: head.tensors[key] for key, part in found.items()}
    if sorted(found.values()) not in (["bias", "weight"], ["weight"]) or by_part["weight"].dim() != 2:
        raise OptionError(
            f"evaluator {name!r}: pooling {pooling!r} needs a head with one linear layer (classifier, score or "
            f"head: weight, and bias or none), but {head.folder.name} has: "
            f"{', '.join(sorted(head.tensors)) or 'none'}; set pooling: model"
        )
    weight = by_part["weight"].to(device, torch.float32)
    bias = by_part["bias"].to(device, torch.float32) if "bias" in by_part else None

    def forward(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        output = trunk_of(model)(**inputs, **wanting(layers))
        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask")
        if hidden.dim() != 3 or hidden.shape[2] != weight.shape[1]:
            raise OptionError(
                f"evaluator {name!r}: the head reads vectors of {weight.shape[1]} numbers at each position, but the "
                f"model gives {tuple(hidden.shape)}; set pooling: model"
            )
        if pooling == "cls":
            pooled = hidden[:, 0]
        elif mask is None:
            pooled = hidden.mean(1)
        else:
            # Padding is left out by `where` and not by a product: 0 * NaN would be NaN.
            kept = mask[..., None].bool()
            pooled = hidden.where(kept, hidden.new_zeros(())).sum(1) / kept.sum(1)
        return linear(normalize(pooled, dim=-1) if unit else pooled, weight, bias), states(name, output, layers)

    return forward, int(weight.shape[0])


def model_head(
    name: str, head: Head, config: Any, reads: Literal["text", "image"], model: Any, pad_id: int
) -> tuple[Forward, int]:
    """A forward of the architecture's own classifier around the resident trunk; and the number of its classes.

    The classifier is built on the meta device from the expert's config, so it takes no memory; the trunk is plugged in
    at `base_model_prefix`, and the head's tensors are assigned. Tensors of the head inside the trunk (a pooler that the
    base does not have) go into a copy of the trunk that shares every weight. Raises `OptionError` where that leaves a
    tensor out, or one over.
    """
    import transformers

    auto = getattr(transformers, AUTO[reads])
    parameter = next(model.parameters())
    try:
        with torch.device("meta"):
            classifier = auto.from_config(config, dtype=parameter.dtype)
    except (ValueError, KeyError) as error:
        raise OptionError(
            f"evaluator {name!r}: no {reads} classifier for a {config.model_type} model ({error}); "
            "set pooling: cls or mean"
        ) from error
    classifier.eval()
    prefix = classifier.base_model_prefix
    if getattr(classifier.config, "pad_token_id", None) is None:
        classifier.config.pad_token_id = pad_id  # classifiers that read the last token look for it
    inner = _assign(name, head, classifier, set(trunk_of(model).state_dict()), parameter.device)

    def forward(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        setattr(classifier, prefix, _with(trunk_of(model), inner))
        output = classifier(**inputs, **wanting(layers))
        return output.logits.float(), states(name, output, layers)

    return forward, int(config.num_labels)


def wanting(layers: Sequence[int]) -> dict[str, bool]:
    """What to call a model with for `states` of these layers."""
    return {"output_hidden_states": True} if layers else {}


def states(name: str, output: Any, layers: Sequence[int]) -> list[Tensor]:
    """The hidden states of these layers; raises `OptionError` for one that the model does not have."""
    if not layers:
        return []
    found = output.hidden_states
    for layer in layers:
        if not -len(found) <= layer < len(found):
            raise OptionError(f"evaluator {name!r}: hidden_layers has {layer}; the model's are 0 to {len(found) - 1}")
    return [found[layer] for layer in layers]


def _assign(
    name: str, head: Head, classifier: Any, resident: set[str], device: torch.device
) -> dict[str, torch.nn.Module]:
    """Give the classifier the head's tensors; returns modules of the trunk that belong to the head, by name.

    `resident` are the names of the trunk's own tensors. A module inside the trunk is the head's as a whole, or not.
    """
    prefix = classifier.base_model_prefix
    shapes = {key: value for key, value in classifier.state_dict().items()}
    given: dict[str, Tensor] = {}
    for key, tensor in head.tensors.items():
        target = key if key in shapes else f"{prefix}.{key}"
        if target not in shapes or shapes[target].shape != tensor.shape:
            expected = tuple(shapes[target].shape) if target in shapes else "no such tensor"
            raise OptionError(
                f"evaluator {name!r}: head tensor {key} has shape {tuple(tensor.shape)}, {type(classifier).__name__} "
                f"expects {expected}; set pooling: cls or mean, or correct the expert's config.json"
            )
        given[target] = tensor.to(device, shapes[target].dtype)
    inner = {key.removeprefix(f"{prefix}.").partition(".")[0] for key in given if key.startswith(f"{prefix}.")}
    missing = []
    for key in shapes.keys() - given.keys():
        inside = key.removeprefix(f"{prefix}.")
        if inside == key or inside.partition(".")[0] in inner or inside not in resident:
            missing.append(key)
    if missing:
        raise OptionError(
            f"evaluator {name!r}: {type(classifier).__name__} needs tensors that the head of {head.folder.name} lacks: "
            f"{', '.join(sorted(missing))}; set pooling: cls or mean, or give the expert they come from as `head`"
        )
    classifier.load_state_dict(given, strict=False, assign=True)
    return {part: getattr(getattr(classifier, prefix), part) for part in inner}


def _with(trunk: Any, inner: Mapping[str, torch.nn.Module]) -> Any:
    """The trunk, with some of its modules exchanged in a shallow copy: the resident model itself is left as it is."""
    if not inner:
        return trunk
    shared = copy.copy(trunk)
    shared.__dict__["_modules"] = {**trunk._modules, **inner}
    for part in inner:
        shared.__dict__.pop(part, None)  # a module that a trunk was made without is a plain None
    return shared
