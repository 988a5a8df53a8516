"""How do the modules of the page become one script? Each gives what it exports, after what it imports."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent / "page"

_IMPORT = re.compile(
    r'^import (?:\* as (?P<all>\w+)|\{ (?P<some>[\w, ]+) \}) from "(?P<path>\./|\.\./)(?P<name>[\w/]+\.js)";\n', re.M
)
_EXPORT = re.compile(r"^export (?:const|let|class|function|async function) (\w+)", re.M)


def bundled(entry: str, page: Path = PAGE) -> str:
    """`entry` of the page's folder and all that it imports, as one script that asks for no file.

    A module imports in its first lines, one import a line, and exports what it declares by name; ValueError for what
    is written otherwise, and for modules that import one another.
    """
    found: dict[str, str] = {}
    _take(entry, page, found, ())
    parts = "\n".join(f'modules["{name}"] = (() => {{\n{text}}})();' for name, text in found.items())
    return f'"use strict";\n{{\nconst modules = {{}};\n{parts}\n}}\n'


def _take(name: str, page: Path, found: dict[str, str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import one another: {' -> '.join((*above, name))}")
    if name in found:
        return
    text = (page / name).read_text("utf-8")

    def given(match: re.Match[str]) -> str:
        there = _named(name, match["path"] + match["name"])
        _take(there, page, found, (*above, name))
        taken = match["all"] or "{ " + match["some"].replace(" as ", ": ") + " }"
        return f'const {taken} = modules["{there}"];\n'

    exports = _EXPORT.findall(text)
    body = re.sub(r"^export (?=const|let|class|function|async)", "", _IMPORT.sub(given, text), flags=re.M)
    if left := re.search(r"^(import|export)\b.*", body, re.M) or re.search(r"\bimport\(", body):
        raise ValueError(f"{name}: expected imports and exports of one line each by name, got {left[0]!r}")
    found[name] = f"{body}return {{ {', '.join(exports)} }};\n"


def _named(name: str, path: str) -> str:
    """What `path` means in the module `name`, from the page's folder."""
    folder = Path(name).parent
    there = folder.parent / path[3:] if path.startswith("../") else folder / path[2:]
    return there.as_posix()
