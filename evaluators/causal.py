"""What must a causal language model offer, and where does its head begin?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evaluators.errors import OptionError

CHUNK = 2**24
"""Logits made at once: 64 MB in float32, and a few such copies more while a loss is computed."""

LARGE = 1e4
"""Logits that no model gives, for a look at what is done to them; float16 still has them."""


def check_causal(name: str, model: Any, what: str) -> None:
    """Raise `OptionError` where the model of evaluator `name` is no causal language model; `what` is what needs one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = type(model).__name__
    if found not in CAUSAL.values():
        raise OptionError(
            f"evaluator {name!r}: {what} needs a causal language model, the base is a {found}; "
            "use a base saved as ...ForCausalLM, or another kind of evaluator"
        )


@torch.inference_mode()
def probe_head(model: Any, inputs: Mapping[str, Tensor]) -> tuple[bool, int]:
    """Whether logits are the output layer of the last hidden state and no more (no soft cap, no scale); how many.

    A soft cap does next to nothing to small logits, and a candidate's may be larger than the base's: what is done to
    them is seen on logits of up to `LARGE`, which the output layer is made to give for once.
    """
    model.eval()
    probe = {key: value[:1, :8] for key, value in inputs.items()} | uncached(model)
    read: list[Tensor] = []
    given: list[Tensor] = []

    def enlarge(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read.append(args[0])
        given.append(output * (LARGE / output.abs().max().clamp(min=1e-6)))
        return given[-1]

    hook = model.get_output_embeddings().register_forward_hook(enlarge)
    try:
        whole = model(**probe).logits
    finally:
        hook.remove()
    same = len(given) == 1 and _equal(whole, given[0])
    if same:
        states = getattr(model.base_model(**probe), "last_hidden_state", None)  # Llama 4 is its own base model
        same = states is not None and _equal(read[0], states, rtol=1e-3, atol=1e-4)
    return same, int(whole.shape[-1])


def _equal(left: Tensor, right: Tensor, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Whether these are the same, wherever they lie, in whatever precision."""
    one, other = left.float().cpu(), right.float().cpu()
    return one.shape == other.shape and torch.allclose(one, other, rtol=rtol, atol=atol)


def uncached(module: Any) -> dict[str, bool]:
    """What to call a model (or its base model) with, so that it keeps no keys and values: nothing generates here."""
    takes = inspect.signature(module.forward).parameters.values()
    return {"use_cache": False} if any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in takes) else {}
