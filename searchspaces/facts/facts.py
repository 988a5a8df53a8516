"""What does a method know of one tensor, beside the coefficients? Statistics that depend on models alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Facts(Protocol):
    """Of one merged tensor; experts are numbered as in the pool. What is asked often is made once and kept."""

    name: str
    shape: tuple[int, ...]
    size: int  # elements
    count: int  # K

    def magnitude(self, k: int, rank: int) -> float:
        """The magnitude of rank `rank` (1 is the largest, at most `size`) in expert k's task vector: exact, fp32."""
        ...

    def tied(self, k: int, magnitude: float) -> tuple[int, int]:
        """How many entries of expert k's task vector are larger than a magnitude, and how many are equal to it."""
        ...

    def mass(self, k: int, least: float, most: float) -> tuple[float, float]:
        """`sum |tau_k|` over entries of magnitude in `[least, most]`, and over all entries."""
        ...

    def ranks(self, k: int) -> torch.Tensor:
        """Each entry's rank by magnitude within its row (all but the last dimension are rows), as `Keep.ranks`."""
        ...

    def spread(self, share: float) -> tuple[float, float]:
        """The variance over experts (of their task vectors, biased) such that `int(share * n)` entries have as much, n
        being the entries where it is not 0; infinity where that is none, 0 for a share of 1 or more. Of entries of just
        that variance there may be more: which share of these it takes, in (0, 1]."""
        ...

    def energies(self, spread: float) -> NDArray[np.float64]:
        """The mean over all entries of `tau_k^2`, those with a variance below `spread` counting as 0; `(K,)`."""
        ...

    def gram(self) -> NDArray[np.float64]:
        """Inner products of `theta_0, tau_1, ... tau_K`, `(K + 1, K + 1)`."""
        ...

    def row_grams(self, columns: bool = False) -> NDArray[np.float64]:
        """The same for each row (all but the last dimension are rows), `(rows, K + 1, K + 1)`."""
        ...

    def key(self, k: int | None, seeded: bool = True) -> int:
        """32 bits that are a function of the expert's name and the tensor's alone, with `seeded` of the recipe's seed
        too; None for the tensor's alone."""
        ...
