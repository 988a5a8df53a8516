"""Which experts are worth averaging? The greedy soup: from the best on, each that improves the average stays in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain
from optimizer.drivers.shared.criterion import Criterion
from optimizer.drivers.shared.experts import average, checked_vertices, names
from optimizer.drivers.shared.rounds import Plan, Rounds, Wish


class GreedySoup(Rounds):
    """The greedy soup (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Experts are scored alone, and sorted; the best is the soup. Then, from the second best on, the average of the soup
    and one expert more is scored: where that is better than the soup, the expert is in. So the soup is never worse than
    the best expert on the items that it was chosen by. Better is less of the mean of the objectives, each in units of
    its range among the anchors (among the experts where none was asked). Experts that failed are left out, and so is
    one whose average fails. After the experts there is one question at a time: each depends on the last.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        equal: bool = Field(
            False, description="Whether an expert is in, too, where the average is just as good, as in the paper."
        )

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._objectives_count, self._options = domain, objectives, options
        self._vertices = checked_vertices("greedy_soup", domain)
        super().__init__("greedy_soup", domain, objectives, self._plan_of)

    def _plan_of(self, anchors: list[NDArray[np.float64]]) -> Plan:
        called = names(self._domain)
        found = yield [Wish(f"expert {called[k]}", v) for k, v in enumerate(self._vertices)]
        alone = {k: outcome.losses for k, outcome in enumerate(found) if outcome.failure is None}
        criterion = Criterion.among(anchors or list(alone.values()), self._objectives_count)
        order = sorted(alone, key=lambda k: (criterion(alone[k]), k))
        soup = order[:1]
        best = min((criterion(losses) for losses in alone.values()), default=np.inf)
        for k in order[1:]:
            more = [*soup, k]
            point = average(self._domain, self._vertices[more], np.full(len(more), 1 / len(more)))
            (outcome,) = yield [Wish(f"{len(soup)} in, with {called[k]}", point)]
            value = criterion.of(outcome)
            if value < best or (self._options.equal and value == best):
                soup, best = more, value
