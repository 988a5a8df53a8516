"""What of a space that is valid may surprise who wrote its job? Told by `check`, from the job alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.jobs.job import Job
from optimizer.jobs.job_space import Searched
from searchspaces import CoefficientSpace, methods
from searchspaces.axis import told

Array = NDArray[np.float64]


def remarks(job: Job, space: CoefficientSpace) -> list[str]:
    """One sentence each: options that begin elsewhere than at their default, and values that say nothing."""
    return [*_moved(job, space), *_idle(space)]


def _moved(job: Job, space: CoefficientSpace) -> Iterator[str]:
    """Searched options whose default is outside of what is searched, or another method's is taken for them."""
    begins = {recipe.method: recipe.options for recipe in space.starts}
    for name, option, whose in space.searched:
        said = job.space.options[name]
        if isinstance(said, Searched) and said.start is not None:
            continue
        defaults = {method: methods.load(method).options[option].default for method in whose}
        if others := [f"{told(value)} of {m}" for m, value in defaults.items() if begins[m][option] != value]:
            yield (
                f"space.options.{name}: starting point and anchors have {told(begins[whose[0]][option])}, and not the "
                f"default, {' and '.join(others)}; {{start: VALUE}} says another"
            )


def _idle(space: CoefficientSpace) -> Iterator[str]:
    """Numbers that may be larger than what density leaves room for, where all larger ones are one merge."""
    found: Mapping[str, dict[str, list[Array]]] = defaultdict(lambda: defaultdict(list))
    for method, options in [*((recipe.method, recipe.options) for recipe in space.starts), *space.ends()]:
        for option, value in options.items():
            if not isinstance(value, str):
                grid = np.atleast_2d(np.asarray(value, dtype=np.float64))  # (groups, experts), (groups, 1) or (1, 1)
                found[method][option].append(np.broadcast_to(grid, (len(grid), len(space.experts))))
    for method, values in found.items():
        rooms: Mapping[str, Any] = getattr(getattr(methods.load(method), "sparsifier", None), "rooms", {})
        for option, room in rooms.items():
            most, densities = np.vstack(values[option]).max(axis=0), np.vstack(values["density"])
            # at density 1 everything stays by definition
            rows = densities.T.tolist()  # by expert
            left = [min(((room(d), d) for d in row if d < 1), default=(np.inf, 1.0)) for row in rows]
            over = max(range(len(left)), key=lambda k: float(most[k]) - left[k][0])
            if most[over] > left[over][0] + 1e-9:
                yield (
                    f"option {option} of {method} may be {most[over]:g}, and where density is {left[over][1]:g} only "
                    f"{left[over][0]:.3g} of that counts: larger values are the same merge there"
                )
