"""Which entries of a task vector stay? The sparsifiers that methods are composed of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from searchspaces.composition import Keep
from searchspaces.facts.facts import Facts
from searchspaces.option import Number, Spec
from searchspaces.row import Row

TINY = 1e-7  # sums of magnitudes below it are not brought back to each other by a factor, as in mergekit
LARGEST = "The share of a task vector's entries, the largest ones, that are dropped as outliers."
SPREAD = "How much likelier than density, at most, large entries stay, and small ones go."


@dataclass(frozen=True)
class Sparsifier:
    """`keep(row, facts, k)` says what stays of expert k's task vector; `options` are what it reads of a row.

    A `random` one draws from the recipe's seed. All keep everything of an expert at a density of 1. `rooms`: of
    options that density leaves only so much room for, how much, by density; more is the same.
    """

    keep: Callable[[Row, Facts, int], Keep]
    options: Mapping[str, Spec]
    random: bool = False
    rooms: Mapping[str, Callable[[float], float]] = field(default_factory=dict)


def _density(default: float, low: float, high: float) -> Number:
    said = "The share of each task vector's entries that stay; 1 keeps all."
    return Number(default, 0.0, 1.0, search=(low, high), per="expert", above=True, says=said)


def _part(default: float, most: float, high: float, says: str) -> Number:
    return Number(default, 0.0, most, search=(0.0, high), per="expert", says=says)


def _trim(row: Row, facts: Facts, k: int) -> Keep:
    """The `max(1, int(density n))` entries of largest magnitude."""
    density = row.numbers("density")[k]
    if density >= 1 or not facts.size:
        return Keep()
    return _band(row, facts, k, 1, max(1, int(density * facts.size)))


def _outliers(row: Row, facts: Facts, k: int) -> Keep:
    """`int(density n)` entries: those below the `int(gamma n)` largest, as long as there are as many.

    So few entries that `int(density n)` is 0 are all dropped; a density of 1 keeps the largest too.
    """
    density, size = row.numbers("density")[k], facts.size
    if density >= 1 or not size:
        return Keep()
    count = int(density * size)
    if not count:
        return Keep(least=math.inf)
    last = min(size, int(row.numbers("gamma")[k] * size) + count)  # the rank of the least one that stays
    return _band(row, facts, k, last - count + 1, last)


def _band(row: Row, facts: Facts, k: int, first: int, last: int) -> Keep:
    """The entries of ranks `first` to `last` by magnitude, 1 being the largest.

    In bf16 a task vector has few magnitudes, and a rank falls among thousands of equal ones. Draws put these in an
    order, by place, tensor and expert, so that what stays is nested in the ranks; as many stay as were asked for up to
    the draws' chance, of those at a bound alone. With `rescale`, what is expected to stay is brought back to the task
    vector's sum of magnitudes.
    """
    least, most = facts.magnitude(k, last), facts.magnitude(k, first) if first > 1 else math.inf
    until, after, beyond = 1.0, 0.0, 0.0  # `beyond`: the sum of magnitudes at the bounds that does not stay
    if least > 0:  # which zeros stay makes no difference
        above, equal = facts.tied(k, least)
        until = (last - above) / equal
        beyond += least * (equal + above - last)
    if 0 < most < math.inf:
        above, equal = facts.tied(k, most)
        after = (first - 1 - above) / equal
        beyond += most * (first - 1 - above)
    key = facts.key(k, seeded=False) if until < 1 or after > 0 else 0
    factor = 1.0
    if row.flag("rescale"):
        inside, whole = facts.mass(k, least, most)
        kept = inside - beyond
        factor = whole / kept if min(kept, whole) >= TINY else 1.0
    return Keep(least=least, most=most, until=until, after=after, key=key, factor=factor)


def _drop(row: Row, facts: Facts, k: int) -> Keep:
    """Each entry with probability `density`, over which it is divided with `rescale`: unbiased, as in the paper."""
    density = float(row.numbers("density")[k])
    return Keep() if density >= 1 else Keep(share=density, key=facts.key(k), rescale=row.flag("rescale"))


def _spread(density: float) -> float:
    """The most that chances can differ from a density by."""
    return min(1 - density, 0.9 * density)


def _magnitude_drop(row: Row, facts: Facts, k: int) -> Keep:
    """Each entry with a probability that rises with its rank by magnitude within its row.

    It rises from `density - epsilon` to `density + epsilon`; where those would leave (0, 1], epsilon is what there is
    room for: `1 - density`, or 0.9 density, so that no entry is divided by less than a tenth of the density. The
    authors' `window_size` is twice epsilon.
    """
    density, epsilon = float(row.numbers("density")[k]), float(row.numbers("epsilon")[k])
    if density >= 1:
        return Keep()
    slope = min(epsilon, _spread(density))
    ranks = facts.ranks(k) if slope else None
    return Keep(share=density, slope=slope, ranks=ranks, key=facts.key(k), rescale=row.flag("rescale"))


# Defaults (mergekit's own densities are 1, and drop nothing): what TIES's paper recommends, what mergekit's manual does
# for Breadcrumbs, and what the authors of DARE and of DELLA merge with in the examples of their code.
WHOLE = Sparsifier(lambda row, facts, k: Keep(), {})
TRIM = Sparsifier(_trim, {"density": _density(0.2, 0.05, 1.0)})
OUTLIERS = Sparsifier(
    _outliers,
    {"density": _density(0.9, 0.05, 1.0), "gamma": _part(0.01, 1.0, 0.05, LARGEST)},
    rooms={"gamma": lambda density: 1 - density},
)
DROP = Sparsifier(_drop, {"density": _density(0.8, 0.05, 1.0)}, random=True)
MAGNITUDE_DROP = Sparsifier(
    _magnitude_drop,
    {"density": _density(0.7, 0.2, 0.8), "epsilon": _part(0.07, 0.5, 0.15, SPREAD)},
    random=True,
    rooms={"epsilon": _spread},
)
