"""What does a recipe say of one group? Its coefficients, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from searchspaces.option import Number, Option, Spec


@dataclass(frozen=True, eq=False)
class Row:
    """Coefficients float64 `(K,)`, and options: numbers by expert are float64 `(K,)`, all others as they are."""

    coefficients: NDArray[np.float64]
    values: Mapping[str, Option]

    @classmethod
    def of(
        cls, specs: Mapping[str, Spec], coefficients: NDArray[np.float64], options: Mapping[str, Option], g: int
    ) -> Row:
        """Of group g, for coefficients `(G, K)` and complete options."""
        count, values = coefficients.shape[1], {}
        for name, value in options.items():
            spec = specs[name]
            if isinstance(spec, Number):
                numbers = np.broadcast_to(value[g] if isinstance(value, np.ndarray) else value, count)
                values[name] = np.asarray(numbers, dtype=np.float64) if spec.per == "expert" else numbers[0].item()
            else:
                values[name] = value
        return cls(coefficients[g], values)

    def number(self, name: str) -> float:
        """A number that is the same for all experts."""
        return self.values[name]  # type: ignore[return-value]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A number by expert, `(K,)`."""
        return self.values[name]  # type: ignore[return-value]

    def word(self, name: str) -> str:
        """One of several words."""
        return str(self.values[name])

    def flag(self, name: str) -> bool:
        return bool(self.values[name])
