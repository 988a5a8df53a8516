"""What becomes of one tensor in a candidate? Which entries of task vectors stay, which agree, with what weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Consensus = Literal["none", "weighted", "equal", "largest", "shared"]
"""Which entries of the kept task vectors `tau'_k` agree, and go into the sum.

- `none`: all.
- `weighted`: those whose `w_k tau'_k` has the sign of `sum_j w_j tau'_j`, a sum of 0 counting as positive (mergekit's
  TIES); what is 0 agrees with nothing. Depends on the weights: the merge is not linear in them.
- `equal`: the same of `tau'_k` and `sum_j tau'_j`, whatever the weights.
- `largest`: the entry of largest magnitude; of equal ones the first expert's.
- `shared`: an expert's mask is where `|tau_k| > threshold |sum_j tau_j - tau_k|`; entries in at least `least` masks
  stay, of all experts (TALL masks, Wang et al. 2024, equation 5, and section 4.2).
"""


@dataclass(frozen=True, eq=False)
class Keep:
    """Which entries of one expert's task vector `tau` stay: `tau' = factor * mask * tau`, or `mask * tau / p`.

    An entry stays where its magnitude is in `[least, most]`, and `draw(key, place) < p`: a random number in [0, 1) that
    is a function of the key and of the entry's place in the flat tensor alone, so that masks are nested in p. Of
    entries whose magnitude equals a bound, which many may, only a share stays: those of `least` where `draw(key, place)
    < until`, those of `most` where it is at least `after`; one draw decides, so that p is 1 then. p is `share`, plus
    `slope * (2 rank - 1)` where there are `ranks`: each entry's rank by magnitude within its row, 0 for the least and
    255 for the largest, as a flat uint8 tensor; `rank` is that over 255. Where p varies or is below 1, what stays is
    divided by it with `rescale`.
    """

    least: float = 0.0
    most: float = math.inf
    until: float = 1.0
    after: float = 0.0
    share: float = 1.0
    slope: float = 0.0
    ranks: torch.Tensor | None = None
    key: int = 0  # 32 bits
    rescale: bool = True
    factor: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether the task vector stays as it is."""
        banded = self.least > 0 or self.most < math.inf or self.tied
        return not banded and self.share >= 1 and self.ranks is None and self.factor == 1

    @property
    def tied(self) -> bool:
        """Whether draws decide which of the entries at a bound stay."""
        return self.until < 1 or self.after > 0


@dataclass(frozen=True, eq=False)
class Composition:
    """`W = base theta_0 + sum_k weights_k u_k`, entry by entry, with `u_k = gains_k agree_k tau'_k scale / divisor`.

    `weights` are of shape `(K,)` (a kernel rounds them to float32), or `(rows, K)` where each row of the tensor (all
    but its last dimension are rows) has its own, or `(columns, K)` with `columns` (all but its first dimension are
    columns); then `base` too is an array, `(rows,)` or `(columns,)`, and there is nothing else. `gains` `(K,)` are 1
    where there are none; signs are elected without them. `divisor` is `sum_j agree_j divisors_j` where there are
    `divisors` `(K,)`, and 1 where it is 0 or there are none. Entries whose variance over the experts' raw task vectors
    is below `spread` are nobody's (agree is 0), and of those whose variance equals it all but the ones where `draw(key,
    place) < until`, as in `Keep`. Where `consensus` is not `weighted`, `u_k` does not depend on the
    weights, and W is linear in them.
    """

    base: float | NDArray[np.floating]
    weights: NDArray[np.floating]
    keeps: tuple[Keep, ...] | None = None  # (K,); None: all whole
    consensus: Consensus = "none"
    threshold: float = 0.0  # of `shared`
    least: int = 2  # of `shared`
    divisors: NDArray[np.floating] | None = None
    gains: NDArray[np.floating] | None = None
    spread: float = 0.0
    until: float = 1.0
    key: int = 0  # 32 bits
    scale: float = 1.0
    columns: bool = False

    @cached_property
    def sums(self) -> tuple[float, NDArray[np.float32]]:
        """Of a plain one, the scales of the base and of the task vectors, `(K,)`."""
        with np.errstate(over="ignore"):  # beyond fp32: the weights become infinite, and are refused as such
            return float(self.base), np.asarray(self.weights * self.scale, dtype=np.float32)

    @property
    def plain(self) -> bool:
        """Whether it is a sum of base and task vectors by their scales, and nothing else."""
        whole = self.keeps is None or all(k.whole for k in self.keeps)
        return (
            whole
            and self.weights.ndim == 1
            and self.consensus == "none"
            and self.divisors is None
            and self.gains is None
            and not self.spread
        )
