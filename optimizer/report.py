"""How does a run look? One standalone HTML file, Plotly inlined: front, progress, coefficients, table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.objectives import values
from optimizer.results import Candidate, Results

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 400  # candidates whose coefficients travel with the page: the front, the anchors, then the latest


def write_report(results: Results, path: Path) -> Path:
    """Write the report to `path` (replaced in one step) and return it. Needs no models."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["j2", "html"]))
    page = environment.get_template("report.html.j2").render(
        name=results.name,
        provenance=[(name, line) for name, lines in results.provenance.items() for line in lines],
        plotly=get_plotlyjs(),
        script=(TEMPLATES / "report.js").read_text(),
        style=(TEMPLATES / "report.css").read_text(),
        # "<" would let a hostile name close the script element
        data=json.dumps(page_data(results), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def page_data(results: Results) -> dict[str, Any]:
    """What the page's script draws from, as plain values; objectives in natural units."""
    front = {c.number for c in results.on_front}
    rank = {n: i for i, n in enumerate(results.front.by_mean())} if front else {}
    scored = [c for c in results.candidates.values() if c.failure is None]
    with_coefficients = _shown(results, scored, front)
    groups, experts = _axes(results, scored)
    return {
        "name": results.name,
        "evaluations": results.evaluations,
        "answered": len(results.candidates),
        "failed": len(results.failures),
        "objectives": [{"name": o.name, "goal": o.goal} for o in results.objectives],
        "reference": _reference(results),
        "curve": [list(row) for row in zip(*results.curve, strict=True)] if results.curve else [[], [], []],
        "groups": groups,
        "experts": experts,
        "candidates": [
            {
                "n": c.number,
                "label": c.label,
                "stage": c.stage,
                "recipe": c.recipe[:12],
                "front": c.number in front,
                "anchor": c.is_anchor,
                "rank": rank[c.number],
                "value": _rounded([c.measures[o.name].value for o in results.objectives]),
                "stderr": _rounded([c.measures[o.name].stderr for o in results.objectives]),
                "heldout": _rounded([c.heldout[o.name].value for o in results.objectives]) if c.heldout else None,
                "heldoutStderr": _rounded([c.heldout[o.name].stderr for o in results.objectives])
                if c.heldout
                else None,
                "settings": list(results.settings(c).items()),
                "coefficients": _rounded(results.coefficients(c)[2]) if c.number in with_coefficients else None,
            }
            for c in scored
        ],
        "failures": [{"n": c.number, "stage": c.stage, "reason": str(c.failure)} for c in results.failures],
    }


def _shown(results: Results, scored: list[Candidate], front: set[int]) -> set[int]:
    first = [c.number for c in results.on_front] + [c.number for c in scored if c.is_anchor]
    rest = [c.number for c in reversed(scored) if c.number not in front]
    return set([*first, *rest][:SHOWN])


def _axes(results: Results, scored: list[Candidate]) -> tuple[list[str], list[str]]:
    if not scored:
        return [], []
    groups, experts, _ = results.coefficients(scored[0])
    return groups, experts


def _reference(results: Results) -> list[float] | None:
    reference = results.front.reference
    return None if reference is None else _rounded(values(results.objectives, reference))


def _rounded(numbers: Any) -> Any:
    """Six significant figures are more than a picture shows, and a third of the bytes."""
    if isinstance(numbers, np.ndarray) and numbers.ndim > 1:
        return [_rounded(row) for row in numbers]
    return [None if x is None else float(f"{x:.6g}") for x in numbers]
