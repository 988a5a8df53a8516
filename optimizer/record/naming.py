"""Which candidate does a name mean? A number, a hash, an anchor, a reference, or what stands out on the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluators.errors import meant
from optimizer.conditions import Condition
from optimizer.errors import JobError
from optimizer.wording import shown

if TYPE_CHECKING:
    from optimizer.record.results import Candidate, Results

NAMES_SHOWN = 12


def pick(results: Results, text: str) -> Candidate:
    """See `Results.pick`."""
    if text not in results.references and not results.front.numbers:
        raise JobError(f"{results.folder}: no candidate has been scored yet; run or resume the search first")
    if text in ("best", "knee", "surest") or text.startswith("best:"):
        _some_are_feasible(results)
    if text == "best":
        return results.candidates[results.front.by_mean()[0]]
    if text.startswith("best:"):
        return best_of(results, text.removeprefix("best:"))
    if text == "knee":
        return _knee(results)
    if text == "surest":
        return _surest(results)
    found = []
    if text.isascii() and text.isdecimal() and len(text) < 20:
        found = [c for c in results.candidates.values() if c.number == int(text)]
    if not found and not (text.isdecimal() and len(text) < 8):
        found = [c for c in results.candidates.values() if len(text) >= 8 and c.recipe.startswith(text)]
        named = _plain_name(text)
        found = found[:1] or [c for c in results.candidates.values() if named in _names(c)]
        found = found or [c for c in results.references.values() if named in _names(c)]
    if not found:
        there = [c.label for c in (*results.candidates.values(), *results.references.values()) if _names(c)]
        hint = meant(text, ["best", "knee", "surest", *there])
        raise JobError(
            f"no candidate {text!r} in {results.folder}; {hint}give a candidate's number, a recipe hash, 'best', "
            f"'best:METRIC', 'knee', 'surest', or one of: {', '.join(there[:NAMES_SHOWN])}"
            f"{', ...' * (len(there) > NAMES_SHOWN)}"
        )
    return found[0]


def best_of(results: Results, metric: str) -> Candidate:
    """The candidate that is best in one metric, of those that meet the constraints; of equals the first."""
    sign = results.objective(metric).sign
    scored = [results.candidates[n] for n in results.front.feasible]
    return min(scored, key=lambda c: (sign * c.measures[metric].value, c.number))


def unknown_metric(results: Results, metric: str) -> JobError:
    """What is said of a metric that there is not: which was meant, and those there are; of an evaluator its own."""
    own = [name for name in results.goals if name.startswith(f"{metric}.")]
    first = [o.name for o in results.objectives if o.name in own] or own
    hint = f"did you mean {first[0]!r}? " if first else meant(metric, results.goals)
    there = ", ".join(sorted(own or results.goals))
    return JobError(f"no metric {metric!r} in {results.folder}; {hint}there are: {there}")


def preferred(results: Results, where: Sequence[Condition], metric: str | None = None) -> Candidate:
    """Of the candidates that meet all conditions on calibration items the best in a metric; without one the best mean.

    They meet the job's constraints too. Of equals it is the one of better mean. Raises JobError for an unknown metric,
    and, naming the nearest candidate, where none meets them.
    """
    for name in [c.name for c in where] + ([] if metric is None else [metric]):
        results.objective(name)
    if not results.front.numbers:
        raise JobError(f"{results.folder}: no candidate has been scored yet; run or resume the search first")
    _some_are_feasible(results)
    met_all = set(results.front.feasible)
    order = [results.candidates[n] for n in results.front.by_mean() if n in met_all]
    missed = np.array([[w.missed(c.measures[w.name].value) for w in where] for c in order]).reshape(len(order), -1)
    met = [c for c, row in zip(order, missed, strict=True) if not row.any()]
    if not met:
        unit = np.where(missed.max(axis=0) > 0, missed.max(axis=0), 1.0)
        nearest = order[int((missed / unit).sum(axis=1).argmin())]
        has = ", ".join(f"{w.name} {told(nearest, w.name)}" for w in where)
        raise JobError(
            f"{results.folder}: no candidate has {shown(' and '.join(map(str, where)))}; the nearest, candidate "
            f"{nearest.number}, has {shown(has)}; {_share_hint(results, order, where) or 'ask for less'}"
        )
    if metric is None:
        return met[0]
    sign = results.objective(metric).sign
    return min(met, key=lambda c: sign * c.measures[metric].value)


def _share_hint(results: Results, scored: Sequence[Candidate], where: Sequence[Condition]) -> str | None:
    """Where a percentage was asked for of what is a share: how that is written."""
    for w in where:
        shares = all(0 <= c.measures[w.name].value <= 1 for c in scored) and results.goals[w.name] == "max"
        if shares and w.at_least and 1 < w.bound <= 100:
            such = f"such as {w.bound / 100:g} for {w.bound:g} %"
            return f"{shown(w.name, 80)} is a share from 0 to 1 in all of them; give a bound in there, {such}"
    return None


def _some_are_feasible(results: Results) -> None:
    if results.nearest is not None:
        raise JobError(
            f"{results.folder}: {shown(str(results.verdict))} Name it by its number, resume with more evaluations, or "
            "fork the run with other constraints"
        )


def told(c: Candidate, metric: str) -> str:
    """What a candidate scored on calibration items, with its standard error where that is known."""
    m = c.measures[metric]
    return f"{m.value:.4g}" if m.stderr is None else f"{m.value:.4g} ± {m.stderr:.2g}"


def _knee(results: Results) -> Candidate:
    number = results.front.knee()
    if number is None:
        raise JobError(
            f"{results.folder}: the front has no knee: none of its {len(results.on_front)} candidates lies below the "
            "line (the plane) through those that are best in one objective each; name one by 'best' or by number"
        )
    return results.candidates[number]


def _surest(results: Results) -> Candidate:
    sure = results.confidence.seen
    if not sure:
        raise JobError(
            f"{results.folder}: how sure the front is cannot be told, since a standard error is not known; name a "
            "candidate by 'best' or by number"
        )
    return max(results.on_front, key=lambda c: sure[c.number])  # of equals the best mean


def _plain_name(label: str) -> str:
    """An expert as it is has two labels: `expert: NAME` as an anchor, `expert NAME` as a reference. Both mean it."""
    return label.replace("expert: ", "expert ", 1) if label.startswith("expert: ") else label


def _names(c: Candidate) -> list[str]:
    """By which names an anchor or a reference may be asked for."""
    if c.is_reference:
        return [_plain_name(c.label)]
    return [_plain_name(label) for label in c.label.split(", ")] if c.is_anchor else []
