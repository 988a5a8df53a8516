"""How good are points that learn from nothing? Random and Sobol sampling: baselines, and designs to start from."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from scipy.stats import qmc

from optimizer.driver import Domain, DriverError, Outcome, Point, Question, at, random_stream


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Random:
    """Uniform points in the domain. Question number i is a function of (seed, i) alone, so a replay only counts."""

    Options = _Options
    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: _Options) -> None:
        self._domain, self._seed = domain, seed
        self._number = 0

    def ask(self, n: int) -> list[Question]:
        """n independent questions."""
        numbers = range(self._number, self._number + n)
        self._number += n
        return [Question(i, self._point(i), stage="random") for i in numbers]

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """O(1)."""
        self._number += len(questions)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learns nothing."""

    def _point(self, number: int) -> Point:
        unit = random_stream(self._seed, "random", number).random(len(self._domain.low))
        return at(self._domain, unit)


class Sobol:
    """A Sobol sequence scrambled by the seed (Owen 1998); a replay skips ahead in it without drawing.

    Raises DriverError above 21,201 dimensions, where no direction numbers are known.
    """

    Options = _Options
    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: _Options) -> None:
        dim = len(domain.low)
        if dim > qmc.Sobol.MAXDIM:
            raise DriverError(
                f"driver.name: sobol has at most {qmc.Sobol.MAXDIM} dimensions, this space has {dim};"
                " take the driver random, or a coarser space.granularity"
            )
        self._domain = domain
        self._number = 0
        # 32 bits: the sequence lasts for 2^32 points, and is 2^-32 of the range fine
        self._sequence = qmc.Sobol(dim, scramble=True, bits=32, rng=random_stream(seed, "sobol"))

    def ask(self, n: int) -> list[Question]:
        """The next n points of the sequence."""
        if n < 1:
            return []
        if behind := self._number - self._sequence.num_generated:
            self._sequence.fast_forward(behind)
        # one by one, for scipy warns of a first draw that is no power of two
        units = [self._sequence.random(1)[0] for _ in range(n)]
        numbers = range(self._number, self._number + n)
        self._number += n
        return [Question(i, at(self._domain, unit), stage="sobol") for i, unit in zip(numbers, units, strict=True)]

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """O(1)."""
        self._number += len(questions)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learns nothing."""
