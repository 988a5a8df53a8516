"""What is asked that no driver asks? Models as they are, held-out scores, and what failed and may do so no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from optimizer.driver import AGAIN, ANCHOR, WHOLE, Items, Question, Split, reference
from optimizer.record.front import Front
from optimizer.record.ledger import Ledger
from optimizer.searching.known import Known


def reported(known: Known, front: Front, nearest: int | None) -> list[int]:
    """Candidates that are scored on held-out items: the front and the anchors, those that did not fail.

    Where none meets the constraints, the `nearest` to that is in the front's place.
    """
    anchors = {n for n, q in known.questions.items() if q.stage.startswith(ANCHOR)}
    shown = front.nondominated
    if not shown and nearest is not None:
        shown = (nearest,)
    return sorted({*shown, *(anchors & set(front.numbers))})


def unscored(ledger: Ledger, known: Known, reported: Sequence[int]) -> list[Question]:
    """Questions on held-out items: those that were in flight at a crash, then the reported ones not asked yet."""
    asked = {q.number for q in ledger.questions("heldout")}
    new = [replace(known.questions[n], items=Items("heldout")) for n in reported if n not in asked]
    waiting = ledger.pending("heldout")
    if new:
        ledger.asked(0, new, [known.recipe(q.number) for q in new])
    return [*waiting, *new]


def unscored_references(
    ledger: Ledger,
    references: Mapping[str, str],  # `base` or an expert's name -> content hash
    split: Split,
) -> list[Question]:
    """References that have no answer on these items yet; on held-out ones only those that did not fail before."""
    failed = {a.number for a in ledger.answers(references=True) if a.failure is not None}
    asked = {q.number for q in ledger.questions(split, references=True)} | failed
    wanted = (reference(i, model, split) for i, model in enumerate(references))
    new = [question for question in wanted if question.number not in asked]
    waiting = ledger.pending(split, references=True)
    if new:
        ledger.asked(0, new, [references[str(question.model)] for question in new])
    return [*waiting, *new]


def ask_finalists(
    ledger: Ledger,
    known: Known,
    choose: Callable[[int], Sequence[int]],
    answered: int,  # candidates
) -> list[Question]:
    """Have candidates scored on all items that were told from some: those that `choose` names, once for so many.

    The choice is kept before it is asked: with what all items said, others would be chosen, and a resume would go on
    for ever where the run had ended.
    """
    chosen: dict[str, list[int]] = ledger.meta("finalists", {})
    if str(answered) not in chosen:
        chosen[str(answered)] = [int(number) for number in choose(answered)]
        ledger.set_meta("finalists", chosen)
    numbers = [n for n in chosen[str(answered)] if n + WHOLE not in known.questions]
    new = [replace(known.questions[n], number=n + WHOLE) for n in numbers]
    if new:
        recipes = [known.recipe(n) for n in numbers]
        ledger.asked(0, new, recipes)
        known.asked(new, recipes)
    return new


def ask_failed_again(ledger: Ledger, known: Known) -> None:
    """Have all pending whose failures may not come again. A driver has heard of its candidates': these are new ones."""
    failed = [known.questions[n] for n in known.passing()]
    new = [replace(q, number=q.number + AGAIN) for q in failed]
    recipes = [known.recipe(q.number) for q in failed]
    ledger.asked_again(new, recipes)
    known.asked(new, recipes)
