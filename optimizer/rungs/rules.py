"""Does a candidate go on to more items? Two rules, for any number of objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm, qmc

from optimizer.rungs.whole import Known
from optimizer.volume import Volume

Array = NDArray[np.float64]

DRAWS = 16  # of true losses, for the volume that a candidate is expected to add
WINDOW = 100  # candidates at a rung that the next is compared with: a search that gets better forgets


def promise(
    losses: Array,  # (n, m), estimates in box units
    stderr: Array,  # (n, m)
    front: Array,  # (k, m), losses of whole candidates
) -> Array:
    """The hypervolume that each is expected to add to the front, `(n,)`: the mean over its true losses, normal around
    the estimates."""
    n, m = losses.shape
    volume = Volume(m)
    volume.add(front)
    normal = norm.ppf(0.998 * qmc.Sobol(m, rng=np.random.default_rng(0)).random(DRAWS) + 0.001)  # (draws, m)
    drawn = losses + stderr * normal[:, None]
    return np.asarray(volume.gain(drawn.reshape(-1, m)).reshape(DRAWS, n).mean(axis=0))


def chosen(
    losses: Array,  # (n, m), estimates in box units
    stderr: Array,  # (n, m)
    front: Array,  # (k, m)
    met: Array,  # (n,), how likely each meets the constraints
    count: int,
) -> list[int]:
    """Which to score on all items, at most `count`: each adds most to what the front and those before it dominate.

    Promises are weighed by `met`, as in constrained expected improvement (Gardner et al. 2014). Greedy, since volume is
    submodular; of many only the most promising are looked at again.
    """
    first = met * promise(losses, stderr, front)
    left = list(np.argsort(-first, kind="stable")[: max(WINDOW, 5 * count)])
    found: list[int] = []
    while left and len(found) < count:
        gains = met[left] * promise(losses[left], stderr[left], np.vstack([front, losses[found]]))
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        found.append(int(left.pop(best)))
    return found


def among_the_best(promises: Array, keep: float) -> bool:
    """Whether the last is among the best `keep` of all, rounded up; what promises nothing is not.

    Successive halving without a barrier (Li et al. 2020, arXiv:1810.05934), decided once: when it arrives.
    """
    better = int((promises > promises[-1]).sum())
    return bool(promises[-1] > 0 and better < part(keep, len(promises)))


def part(share: float, count: int) -> int:
    """How many of `count` a share is, rounded up; 7 in 100 are 7, though `.07 * 100` is a little more."""
    return max(math.ceil(share * count - 1e-9), int(share > 0 and count > 0))


def dominated(
    seen: Mapping[str, tuple[NDArray[np.int64], Array]],  # by objective: places (n,), and losses there (n,)
    rivals: Sequence[Known],
    signs: Mapping[str, float],
) -> float:
    """The greatest probability that one of the rivals is better in every objective, over all N items.

    Differences are taken item by item: of n of N items their mean has the standard error
    `sqrt(var / n (1 - n / N))`. Objectives are taken to be independent.
    """
    most = 0.0
    for rival in rivals:
        all_of_them = 1.0
        for name, (places, losses) in seen.items():
            theirs = signs[name] * rival.items[name]
            d = losses - theirs[places]
            n, total = len(d), len(theirs)
            error = math.sqrt(float(d.var(ddof=1)) / n * (1 - n / total)) if n > 1 else math.inf
            mean = float(d.mean())
            all_of_them *= float(ndtr(mean / error)) if error > 0 else 0.5 * (1 + np.sign(mean))
        most = max(most, all_of_them)
    return most
