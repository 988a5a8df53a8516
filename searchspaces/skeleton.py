"""Which modules does an architecture have? The model of a config without any weights, and what it calls each tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from searchspaces.align import aligned


@dataclass(frozen=True)
class Skeleton:
    """What transformers makes of a config.

    `names` maps the model's own tensor names to those in its checkpoints; `turned` are weights stored (in, out).
    """

    names: Mapping[str, str]
    turned: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> Skeleton | None:
        """Of a folder's config.json, on no device; None where transformers does not know the architecture."""
        from transformers import AutoConfig
        from transformers.pytorch_utils import Conv1D

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                kind = model_class(config.to_dict())
                model = kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
        except (ValueError, OSError, KeyError, RuntimeError, ImportError, TypeError, AttributeError):
            return None
        state = model.state_dict()
        stored = {own: name for name, own in renamed(model, state).items()}
        turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        return cls({own: stored.get(own, own) for own in state}, frozenset(turned))

    def placed(self, stored: Collection[str]) -> dict[str, str]:
        """The model's own name -> the name in a checkpoint with these names, for the tensors that it has."""
        prefixed = {old: new for new, old in aligned(list(self.names.values()), stored).items()}
        return {own: prefixed[name] for own, name in self.names.items() if prefixed[name] in stored}


def model_class(config: Mapping[str, Any]) -> Any:
    """The transformers class that a config names first; AutoModel where it names none that there is."""
    import transformers

    names = config.get("architectures") or ["AutoModel"]
    kind = getattr(transformers, str(names[0]), None)
    return kind if kind is not None and hasattr(kind, "from_pretrained") else transformers.AutoModel


def renamed(model: Any, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Checkpoint name -> the model's name, where transformers renames on the way in (as it does for ViT)."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 names in files and models were the same
        return {}
    own = {id(tensor): name for name, tensor in state.items()}
    reverted = revert_weight_conversion(model, dict(state))
    # what is converted and not only renamed comes back as a new tensor, and has no name here
    return {name: own[id(tensor)] for name, tensor in reverted.items() if id(tensor) in own}
