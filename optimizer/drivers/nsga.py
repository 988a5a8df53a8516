"""Where next, when a population spreads over the front? NSGA-II (Deb 2002) and NSGA-III (Deb & Jain 2014) by Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain, random_stream
from optimizer.drivers.searches.study import Space, StudyDriver, ToldItsSpace

SPREAD = 20.0  # eta of crossover and of mutation, as in the paper's experiments


class _Bred(ToldItsSpace):
    """For a genetic sampler that is told its parents, or, to choose them, the generations that they come from.

    Optuna keeps both in attributes of the study, which a replay would have to compute again.
    """

    def given(self, space: Space, parents: Sequence[FrozenTrial], children: Sequence[FrozenTrial], seed: int) -> Any:
        self.space, self._parents, self._children = space, list(parents), list(children)
        # the sampler's own repeats the stream of its crossover, whose first number is below 0.9 in nearly each child
        self._evenly = RandomSampler(int(random_stream(seed, "evenly").integers(2**32)))
        return self

    def get_trial_generation(self, study: Any, trial: Any) -> int:
        return 1 if self._parents else 0

    def get_population(self, study: Any, generation: int) -> list[FrozenTrial]:
        return self._children

    def get_parent_population(self, study: Any, generation: int) -> list[FrozenTrial]:
        return self._parents

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        return self._evenly.sample_independent(study, trial, name, distribution)


class _Two(_Bred, NSGAIISampler):  # type: ignore[misc]  # optuna's types are not followed
    pass


class _Three(_Bred, NSGAIIISampler):  # type: ignore[misc]  # optuna's types are not followed
    pass


class NSGA2(StudyDriver):
    """NSGA-II for any number of objectives: parents by rank of domination, and by crowding within a rank.

    The first `population` answers to come back, in the order told, are a generation, whoever asked for them: foreign
    ones (the anchors) are in the first, and nobody waits for a slow answer. Parents are the best `population` of a
    generation and of its own parents. Children come of simulated binary crossover (of choices: either parent's value)
    and polynomial mutation (of integers and choices: any value). Parents are chosen when first needed, and a child is
    a function of (seed, question number) and of its parents, so a replay computes nothing. Needs about a thousand
    evaluations to be worth it.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        population: int | None = Field(
            None,
            ge=4,
            description="Answers of a generation; more look wider, and learn more slowly. Default: 12 + 4 for each"
            " objective, at most 60.",
        )
        crossover: float = Field(
            0.9, ge=0, le=1, description="The share of children that have two parents, and not one alone."
        )
        mutation: float | None = Field(
            None, ge=0, le=1, description="The chance of each coordinate of a child to be changed. Default: 1 / dim."
        )

    name = "nsga2"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(domain, objectives, seed)
        self._options = options
        self._population = options.population or min(12 + 4 * objectives, 60)
        self._parents: list[list[int]] = [[]]  # of each generation, as far as they have been chosen

    @property
    def _generation(self) -> int:
        return len(self._completed) // self._population

    def _stage(self) -> str:
        return f"{self.name}: generation {self._generation}"

    def _sampler(self, seed: int) -> BaseSampler:
        return self._made(seed, self._chosen(self._generation), [])

    def _chosen(self, generation: int) -> list[int]:
        """The parents of a generation, by their trials' numbers."""
        for g in range(len(self._parents), generation + 1):
            children = self._completed[(g - 1) * self._population : g * self._population]
            sampler = self._made(self._drawn("parents", g), self._parents[g - 1], children)
            self._parents.append([trial.number for trial in sampler.select_parent(self._study, g)])
        return self._parents[generation]

    def _made(self, seed: int, parents: Sequence[int], children: Sequence[int]) -> Any:
        trials = self._frozen() if parents or children else []
        made = self._kind(
            population_size=self._population,
            crossover=SBXCrossover(eta=SPREAD),
            crossover_prob=self._options.crossover,
            mutation=PolynomialMutation(eta=SPREAD),
            mutation_prob=self._options.mutation,
            seed=seed,
        )
        return made.given(self._space, [trials[i] for i in parents], [trials[i] for i in children], seed)

    def _kind(self, **settings: Any) -> Any:
        return _Two(**settings)


class NSGA3(NSGA2):
    """NSGA-III: as NSGA-II, but within a rank those count that lie nearest to directions spread over the objectives.

    Better than NSGA-II from about four objectives on, where crowding says little. There are as many directions as a
    simplex of equal divisions has that fits into the population (Das & Dennis 1998).
    """

    name = "nsga3"

    def _kind(self, **settings: Any) -> Any:
        return _Three(dividing_parameter=divisions(self._objectives, self._population), **settings)


def divisions(objectives: int, most: int) -> int:
    """The largest p for which a simplex in `objectives` dimensions has at most so many points of step 1/p; at least 1.

    There are C(objectives + p - 1, p) of them.
    """
    if objectives == 1:
        return 1
    p = 1
    while comb(objectives + p, p + 1) <= most:
        p += 1
    return p
