"""How is text of others written in Markdown?"""

from __future__ import annotations

import re

_ESCAPED = str.maketrans({**{c: f"\\{c}" for c in "\\`*_{}[]|#"}, "<": "&lt;", ">": "&gt;"})
_CODE = re.compile(r"((?:\[[^\[\]`]*\]|'[^'`]*'|(?<!\w)\w+_\w+)+)")  # one span where several touch


def plain(text: object) -> str:
    """Text that means nothing to Markdown or HTML, on one line."""
    return _one_line(text).translate(_ESCAPED)


def sentence(text: object) -> str:
    """The same, but that lists, what is quoted, and words with `_` are code: nothing has a meaning there either."""
    parts = _CODE.split(_one_line(text))
    return "".join(f"`{part}`" if i % 2 else part.translate(_ESCAPED) for i, part in enumerate(parts))


def _one_line(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))
