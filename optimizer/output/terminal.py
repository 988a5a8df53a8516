"""How is text of others shown in a terminal? Without orders to it: what is no character of a text is replaced."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.wording import printable


class Terminal(Console):
    """A console whose texts, of cells, titles and lines alike, hold no control characters of their own."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)
