"""Which modules does an architecture have? The model of a config without any weights, and what it calls each tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from searchspaces.errors import PoolError
from searchspaces.models.align import aligned
from searchspaces.models.architecture import skeleton
from searchspaces.models.layout import renamed


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
        from transformers.pytorch_utils import Conv1D

        try:
            model = skeleton(folder)
        except PoolError:
            return None
        state = model.state_dict()
        stored = {own: name for name, own in renamed(model).items()}
        turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        return cls({own: stored.get(own, own) for own in state}, frozenset(turned))

    def placed(self, stored: Collection[str]) -> dict[str, str]:
        """The model's own name -> the name in a checkpoint with these names, for the tensors that it has."""
        prefixed = {old: new for new, old in aligned(list(self.names.values()), stored).items()}
        return {own: prefixed[name] for own, name in self.names.items() if prefixed[name] in stored}
