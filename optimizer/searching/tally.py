"""What has a search learnt so far? Its front and its counts, and what its driver is told of each answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optimizer.answer import Answer, training_loss
from optimizer.conditions import Condition
from optimizer.driver import AGAIN, ANCHOR, FOREIGN, WHOLE, Driver, Outcome
from optimizer.errors import TooManyFailures
from optimizer.objectives import Objective, losses
from optimizer.record.feasible import Feasible
from optimizer.record.front import Front
from optimizer.searching.known import Known

FAILURE_WINDOW = 20
UNSEEN_WORST = 1e6  # loss told of a failure before anything has succeeded


class Tally:
    """Made of answers in their order; the same in a search and in its replay.

    `front` holds the calibration losses of all that did not fail, each recipe once. `answered` and `gradients` count
    what workers were asked for, `repeated` those that were known, `failed` the candidates without scores; `told` counts
    all answers on calibration items, a candidate's second one, on all of them, too; `gradient_failure` is that of the
    last gradient, if it failed. `tasks` are the evaluators whose losses gradients are taken of.

    Of a candidate that violates a constraint the driver is told, objective by objective, `worst + violation x unit`:
    the worst loss of an anchor, or of a candidate that violates none, so far; and the unit of the front's box. So it
    is worse than all until then that violate none, in proportion to the violation, whatever its own losses are.
    """

    def __init__(
        self,
        driver: Driver,
        known: Known,
        objectives: Sequence[Objective],
        tasks: Sequence[str],
        constraints: Sequence[Condition] = (),
    ) -> None:
        self.front = Front(len(objectives))
        self.feasible = Feasible(constraints)
        self.answered = self.repeated = self.failed = self.gradients = self.told = 0
        self.gradient_failure: str | None = None
        self._driver, self._known, self._objectives, self._tasks = driver, known, objectives, tasks
        self._recent: deque[bool] = deque(maxlen=FAILURE_WINDOW)
        self._worst: NDArray[np.float64] | None = None
        self._best: NDArray[np.float64] | None = None
        self._allowed: NDArray[np.float64] | None = None  # the worst losses of candidates that violate nothing

    def learn(self, answer: Answer) -> None:
        """Tell the driver and the front of one answer."""
        question = self._known.questions[answer.number]
        new = self._known.learn(answer)
        if question.wants != "scores":
            self._learn_gradient(answer)
            return
        self.told += 1
        self.answered += answer.of is None and answer.number < WHOLE
        self.repeated += answer.of is not None
        if answer.failure is None:
            loss, stderr = self._told(answer, new, anchor=question.stage.startswith(ANCHOR))
            self._worst = loss if self._worst is None else np.maximum(self._worst, loss)
            self._best = loss if self._best is None else np.minimum(self._best, loss)
            theirs = question.number < AGAIN
            question = question if theirs else replace(question, number=FOREIGN)
            self._driver.tell([Outcome(question, loss, stderr, share=answer.share)])
            return
        self.failed += answer.of is None
        if question.number < AGAIN:
            penalty = self._penalty()
            self._driver.tell([Outcome(question, penalty, np.full(len(penalty), np.nan), failure=str(answer.failure))])

    def _told(self, answer: Answer, new: bool, anchor: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses and standard errors that the driver is told of scores, which the front is told as they are."""
        loss, stderr = losses(self._objectives, answer.measures)
        if new and answer.whole:  # what is only thought of a candidate is on no front
            violation = self.feasible.learn(answer.number, answer.measures, anchor)
            self.front.add(answer.number, loss, anchor, feasible=violation == 0)
        else:
            violation = self.feasible.violation(answer.measures)
        if violation == 0:
            self._allowed = loss if self._allowed is None else np.maximum(self._allowed, loss)
            return loss, stderr
        worst, span = self.front.reference, self.front.span
        assert worst is not None and span is not None  # this one has been added, or whole ones before it
        if self._allowed is not None:
            worst = np.maximum(worst, self._allowed)
        return worst + violation * span, np.full(len(loss), np.nan)

    def watch(self, answer: Answer) -> None:
        """Raises TooManyFailures where more than half of the last 20 answers of workers were failures."""
        if answer.of is not None:
            return
        self._recent.append(answer.failure is not None)
        if sum(self._recent) > FAILURE_WINDOW // 2:
            raise TooManyFailures(
                f"{sum(self._recent)} of the last {len(self._recent)} candidates failed, the last with "
                f"{answer.failure}; mend the cause and resume: what was answered is kept"
            )

    def _learn_gradient(self, answer: Answer) -> None:
        question = self._known.questions[answer.number]
        self.gradients += answer.of is None
        failure = None if answer.failure is None else str(answer.failure)
        if question.wants != "grams":  # no walk ends by that
            self.gradient_failure = failure
        names = [training_loss(task) for task in self._tasks]
        found = np.array([answer.measures[n].value for n in names if n in answer.measures], dtype=np.float64)
        self._driver.tell([Outcome(question, found, np.full(len(found), np.nan), answer.gradient, failure)])

    def _penalty(self) -> NDArray[np.float64]:
        """A finite loss worse than all seen, so that a driver ranks failures last without breaking on infinity."""
        if self._worst is None or self._best is None:
            return np.full(len(self._objectives), UNSEEN_WORST)
        return self._worst + np.maximum(self._worst - self._best, 1e-3)
