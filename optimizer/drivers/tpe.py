"""Where next, when good and bad points each have a density? TPE (Bergstra 2011, arXiv:2304.11127) by Optuna."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain
from optimizer.drivers.searches.study import Space, StudyDriver, ToldItsSpace

STRAY = 10  # one in so many questions (or in as many as there are choices) draws a choice evenly


class _Sampler(ToldItsSpace, TPESampler):  # type: ignore[misc]  # optuna's types are not followed
    """A TPE sampler that now and then draws a choice evenly.

    Where one joint density is searched for its best ratio, a value that its first few trials made look bad is never
    proposed again.
    """

    def __init__(self, space: Space, options: TPE.Options, seed: int) -> None:
        super().__init__(
            n_startup_trials=options.startup,
            n_ei_candidates=options.candidates,
            multivariate=options.multivariate,
            constant_liar=True,
            seed=seed,
        )
        self.space = space if options.multivariate else {}
        self._choices = {n: d.choices for n, d in space.items() if isinstance(d, CategoricalDistribution)}
        self._stray = np.random.Generator(np.random.PCG64(seed))

    def sample_relative(self, study: Any, trial: Any, search_space: Space) -> dict[str, Any]:
        found: dict[str, Any] = super().sample_relative(study, trial, search_space)
        for name in (name for name in self._choices if name in found):  # in the order of the space
            found[name] = self._drawn(name, found[name])
        return found

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        found = super().sample_independent(study, trial, name, distribution)
        return self._drawn(name, found) if name in self._choices else found

    def _drawn(self, name: str, proposed: int) -> int:
        """What was proposed of a choice, or one of its values, all alike."""
        stray, which = self._stray.random(2)
        if stray >= 1 / max(STRAY, len(self._choices)):
            return proposed
        return int(self._choices[name][int(which * len(self._choices[name]))])


class TPE(StudyDriver):
    """Optuna's TPE for one objective or several (MOTPE), over a study in memory.

    A question is a function of (seed, its number) and of the answers so far, so a replay computes nothing. Questions
    without an answer yet repel new ones (constant liar).
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        startup: int = Field(10, ge=1, description="Answers before the densities are used.")
        candidates: int = Field(
            24, ge=1, description="Samples for a question, of which the best is asked; more trust the densities more."
        )
        multivariate: bool = Field(
            True,
            description="One joint density in place of one for each coefficient, which is also several times faster.",
        )

    name = "tpe"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(domain, objectives, seed)
        self._options = options

    def _sampler(self, seed: int) -> _Sampler:
        return _Sampler(self._space, self._options, seed)
