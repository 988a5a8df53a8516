"""Which losses can be differentiated? Each kind in a few lines, one value an item or a position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from evaluators.errors import NonFinite, OptionError
from evaluators.evaluator import Loss

if TYPE_CHECKING:
    from evaluators.teacher import Outputs

KINDS = {
    "entropy": "mean softmax entropy: how undecided the model is; needs no labels",
    "cross_entropy": "mean negative log likelihood of what is true, in nats",
    "kl": "mean KL divergence from the teacher's predictions",
    "hidden": "mean squared distance to the teacher's hidden states, relative to their mean square",
}


def check_kinds(name: str, offered: Mapping[str, str], loss: Loss) -> None:
    """Raise `OptionError` where evaluator `name` is asked for a kind of loss that it does not offer."""
    for kind in loss.weights:
        if kind not in offered:
            raise OptionError(f"evaluator {name!r} offers no loss {kind!r}; its losses are: {', '.join(offered)}")


def check_finite(name: str, value: Tensor, outputs: Outputs | None) -> None:
    """Raise `NonFinite` where the loss of evaluator `name` is not finite; `outputs` are the teacher's that it read."""
    if not torch.isfinite(value):
        kept = f" (its teacher's outputs are kept in {outputs.file}, safe to remove)" if outputs is not None else ""
        raise NonFinite(f"evaluator {name!r}: the loss is {value.item()}{kept}; the candidate has failed")


def entropy(logits: Tensor) -> Tensor:
    """`-sum p log p` of p = softmax(logits), in nats: `(n, classes)` to `(n,)`."""
    log = log_softmax(logits.float(), dim=-1)
    return -(log.exp() * log).sum(dim=-1)


def kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(logits / T))`, both `(n, classes)`, to `(n,)` (Hinton et al. 2015)."""
    wanted = log_softmax(teacher.float() / temperature, dim=-1)
    found = log_softmax(logits.float() / temperature, dim=-1)
    return (wanted.exp() * (wanted - found)).sum(dim=-1) * temperature**2


def hidden(states: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`|h - h'|^2 / |h'|^2` of each item's hidden states h and its teacher's h', both `(t, d)`, to `(n,)`.

    Relative, so that layers and architectures of any scale weigh alike.
    """
    tiny = torch.finfo(torch.float32).tiny
    found = []
    for own, kept in zip(states, teacher, strict=True):
        wanted = kept.to(own.device).float()
        found.append((own.float() - wanted).square().sum() / wanted.square().sum().clamp_min(tiny))
    return torch.stack(found)
