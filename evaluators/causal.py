"""What must a causal language model offer, and where does its head begin?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evaluators.errors import OptionError

CHUNK = 2**24
"""Logits made at once: 64 MB in float32, and a few such copies more while a loss is computed."""


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
    """Whether logits are the output layer of the last hidden state and no more (no soft cap, no scale); how many."""
    model.eval()
    probe = {key: value[:1, :8] for key, value in inputs.items()}
    whole = model(**probe).logits.float()
    apart = model.get_output_embeddings()(model.base_model(**probe).last_hidden_state).float()
    same = whole.shape == apart.shape and torch.allclose(whole, apart, rtol=1e-3, atol=1e-4)
    return same, int(whole.shape[-1])
