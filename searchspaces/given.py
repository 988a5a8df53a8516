"""What is a method given of one tensor, to process its task vectors?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class Given:
    """One tensor of base and experts (by name), in their dtypes, and what was gathered of it on data, by expert.

    An expert without statistics of this tensor is not in `statistics`.
    """

    name: str
    base: torch.Tensor
    experts: Mapping[str, torch.Tensor]
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def averaged(self) -> Iterator[torch.Tensor]:
        """Each expert's part of the average: its task vector over K, float32."""
        base = self.base.float()
        return ((expert.float() - base) / len(self.experts) for expert in self.experts.values())
