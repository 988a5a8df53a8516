"""How does a run look? One standalone HTML file: the views of the service's page, what they draw, and Plotly."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from optimizer.record.files import write_new
from optimizer.record.results import Results
from optimizer.views.bundle import PAGE, bundled
from optimizer.views.kept import kept

TEMPLATES = Path(__file__).parent / "templates"


def write_report(results: Results, path: Path) -> Path:
    """Write the report to `path` (replaced in one step) and return it. Needs no models, and no service."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["j2", "html"]))
    plotly, script, style = get_plotlyjs(), bundled("report.js"), (PAGE / "style.css").read_text("utf-8")
    maps = re.search(r'getElementById\("([0-9a-f]{64})"\)', plotly)
    page = environment.get_template("report.html.j2").render(
        name=results.name,
        policy=policy((plotly, script), (style, "")),
        plotly=plotly,
        script=script,
        style=style,
        maps=maps and maps[1],
        icon=base64.b64encode((PAGE / "icon.svg").read_bytes()).decode(),
        # "<" would let a hostile name close the script element
        data=json.dumps(kept(results), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
    write_new(path, page)
    return path


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The page's Content-Security-Policy: these scripts and styles run, nothing else does, and nothing is fetched.

    A name that got through as markup could run nothing. Plotly sets empty style attributes (hence 'unsafe-hashes').
    """

    def hashes(texts: Sequence[str]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src 'unsafe-hashes' {hashes(styles)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
