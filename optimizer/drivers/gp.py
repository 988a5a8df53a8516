"""Where next, when each evaluation is dear? A Gaussian process and expected improvement (of hypervolume), by Optuna."""

from __future__ import annotations

from typing import Any

import moocore
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import GPSampler, RandomSampler
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain, random_stream
from optimizer.drivers.searches.study import Space, StudyDriver, ToldItsSpace


class _Sampler(ToldItsSpace, GPSampler):  # type: ignore[misc]  # optuna's types are not followed
    def __init__(self, space: Space, startup: int, seed: int) -> None:
        # the sampler's own random points would repeat the stream of its search
        evenly = RandomSampler(int(random_stream(seed, "evenly").integers(2**32)))
        super().__init__(
            seed=seed, independent_sampler=evenly, n_startup_trials=startup, warn_independent_sampling=False
        )
        self.space = space


class GP(StudyDriver):
    """A Gaussian process for each objective (Matern 5/2, a length scale for each coordinate), over a study in memory.

    Asks where the logarithm of the expected improvement, for several objectives that of their front's hypervolume, is
    largest (Ament et al. 2023, arXiv:2310.20708; Daulton et al. 2020, arXiv:2006.05078), questions without an answer
    yet taken as answered. The fits begin afresh at each question, so that it is a function of (seed, its number) and
    of the answers so far, and a replay computes nothing.

    For budgets of up to about 150 evaluations: a question costs half a second to seconds, growing with the cube of the
    answers. From `most` answers on it looks at so many: half of them the best, front by front, the others the newest.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        startup: int = Field(
            10,
            ge=1,
            description="Answers before the process is used, the anchors among them; the others are at random.",
        )
        most: int = Field(
            150, ge=10, description="Answers that the process looks at; more know more, and a question takes longer."
        )

    name = "gp"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(domain, objectives, seed)
        self._options = options

    def _sampler(self, seed: int) -> Any:
        return _Sampler(self._space, self._options.startup, seed)

    def _seen(self) -> optuna.Study:
        if len(self._completed) <= self._options.most:
            return self._study
        trials = self._frozen()
        losses = np.array([trials[i].values for i in self._completed])  # (n, m), in the order told
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        few = optuna.create_study(directions=self._study.directions)
        few.add_trials([*(trials[self._completed[i]] for i in looked_at(losses, self._options.most)), *running])
        return few


def looked_at(losses: NDArray[np.float64], most: int) -> list[int]:
    """Which of the answers, losses `(n, m)` in the order told: half of `most` the best, and of the rest the newest."""
    best = set(layers(losses, most // 2).tolist())
    newest = [i for i in range(len(losses) - 1, -1, -1) if i not in best][: most - len(best)]
    return sorted([*best, *newest])


def layers(
    losses: NDArray[np.float64],  # (n, m)
    count: int,
) -> NDArray[np.int64]:
    """Rows front by front, the best first, until there are `count` of them or no more; equal ones in fronts apart."""
    left, chosen = np.arange(len(losses)), np.empty(0, dtype=np.int64)
    while len(left) and len(chosen) < count:
        best = np.asarray(moocore.is_nondominated(losses[left]))
        chosen, left = np.concatenate([chosen, left[best]]), left[~best]
    return chosen[:count]
