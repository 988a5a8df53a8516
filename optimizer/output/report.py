"""How does a run look? One standalone HTML file, Plotly inlined: front, progress, coefficients, table."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.objectives import values
from optimizer.record.files import write_new
from optimizer.record.results import Candidate, Results

TEMPLATES = Path(__file__).parent / "templates"
PAGE = Path(__file__).parent.parent / "service" / "page"
SHARED = ("format.js", "plot.js", "charts/heat.js")  # of the service's page, each after what it imports
SHOWN = 400  # candidates whose coefficients travel with the page: the front, the anchors, then the latest


def write_report(results: Results, path: Path) -> Path:
    """Write the report to `path` (replaced in one step) and return it. Needs no models."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["j2", "html"]))
    plotly, script, style = (
        get_plotlyjs(),
        "\n".join([*map(_inlined, SHARED), (TEMPLATES / "report.js").read_text()]),
        (TEMPLATES / "report.css").read_text(),
    )
    maps = re.search(r'getElementById\("([0-9a-f]{64})"\)', plotly)
    page = environment.get_template("report.html.j2").render(
        name=results.name,
        provenance=[(name, line) for name, lines in results.provenance.items() for line in lines],
        policy=policy((plotly, script), (style, "")),
        plotly=plotly,
        script=script,
        style=style,
        maps=maps and maps[1],
        # "<" would let a hostile name close the script element
        data=json.dumps(page_data(results), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
    write_new(path, page)
    return path


def _inlined(name: str) -> str:
    """A module of the service's page as part of one script: nothing to import, nothing to export."""
    text = (PAGE / name).read_text()
    return re.sub(r"^export ", "", re.sub(r"^import .*;\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The page's Content-Security-Policy: these scripts and styles run, nothing else does, and nothing is fetched.

    A name that got through as markup could run nothing. Plotly compiles what draws parallel coordinates (hence
    'unsafe-eval', for these scripts alone), and sets empty style attributes (hence 'unsafe-hashes').
    """

    def hashes(texts: Sequence[str]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src 'unsafe-eval' {hashes(scripts)}; style-src 'unsafe-hashes' {hashes(styles)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def page_data(results: Results) -> dict[str, Any]:
    """What the page's script draws from, as plain values; objectives in natural units."""
    front = {c.number for c in results.on_front}
    rank = {n: i for i, n in enumerate(results.front.by_mean())}
    met = set(results.front.feasible)
    scored = [c for c in results.scored if c.number in rank]
    with_coefficients = _shown(results, scored)
    groups, experts = _axes(results, scored)
    sure = results.confidence
    return {
        "name": results.name,
        "evaluations": results.evaluations,
        "answered": len(results.scored),
        "repeated": results.repeated,
        "failed": len(results.failures),
        "objectives": [{"name": o.name, "goal": o.goal} for o in results.objectives],
        "reference": _reference(results),
        "curve": [list(row) for row in zip(*results.curve, strict=True)] if results.curve else [[], [], []],
        "groups": groups,
        "experts": experts,
        "axes": _said(results, scored),
        "verdict": results.verdict,
        "constraints": [str(c) for c in results.feasible.constraints],
        "curse": [vars(g) for g in results.confidence.curse],
        "knee": results.front.knee(),
        "references": [_scores(results, c) for c in results.compared],
        "candidates": [
            {
                **_scores(results, c),
                "n": c.number,
                "recipe": c.recipe[:12],
                "front": c.number in front,
                "anchor": c.is_anchor,
                "feasible": c.number in met,
                "sure": [sure.seen.get(c.number), sure.unseen.get(c.number)],
                "rank": rank[c.number],
                **(_weights(results, c) if c.number in with_coefficients else {"coefficients": None, "from": None}),
            }
            for c in scored
        ],
        "failures": [
            {"n": c.label, "stage": c.stage, "reason": str(c.failure)}
            for c in (*results.failures, *results.references.values())
            if c.failure is not None
        ],
    }


def _scores(results: Results, c: Candidate) -> dict[str, Any]:
    """What is drawn of a candidate, and of a reference."""
    names = [o.name for o in results.objectives]
    return {
        "label": c.label,
        "stage": c.stage,
        "value": _rounded([c.measures[n].value for n in names]),
        "stderr": _rounded([c.measures[n].stderr for n in names]),
        "heldout": _rounded([c.heldout[n].value for n in names]) if c.heldout else None,
        "heldoutStderr": _rounded([c.heldout[n].stderr for n in names]) if c.heldout else None,
        "settings": [] if c.is_reference else _settings(results, c),
    }


def _settings(results: Results, c: Candidate) -> list[tuple[str, str]]:
    """Method and options where they are searched; of a method that picks models, how many groups each gives."""
    told, picked = results.settings(c), results.recipe(c).picked
    if picked is None:
        return list(told.items())
    counts = Counter(picked.values())
    kept = [(name, value) for name, value in told.items() if name.rpartition("|")[2] not in ("pick", "option pick")]
    return [*kept, ("groups", ", ".join(f"{name} {count}" for name, count in counts.most_common()))]


def _weights(results: Results, c: Candidate) -> dict[str, Any]:
    """Coefficients by group and expert, or the model that each group comes from: 0 is the base, k + 1 expert k."""
    recipe = results.recipe(c)
    if recipe.picked is None:
        return {"coefficients": _rounded(np.asarray(recipe.coefficients)), "from": None}
    models = ("base", *recipe.experts)
    return {"coefficients": None, "from": [models.index(name) for name in recipe.picked.values()]}


def _said(results: Results, scored: list[Candidate]) -> list[dict[str, Any]]:
    """Method and options where they are searched: by candidate a number, or the place of a label; None has none."""
    from searchspaces.axis import told

    rows = [results.searched(c) for c in scored]
    axes = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        words = [v for v in values if isinstance(v, bool | str)]
        labels = sorted({told(v) for v in words})
        numbers = [None if v is None else labels.index(told(v)) if words else v for v in values]
        axes.append({"name": name, "labels": labels if words else None, "values": _rounded(numbers)})
    return axes


def _shown(results: Results, scored: list[Candidate]) -> set[int]:
    wanted = (*results.on_front, *(c for c in scored if c.is_anchor), *reversed(scored))
    return set(list(dict.fromkeys(c.number for c in wanted))[:SHOWN])


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
