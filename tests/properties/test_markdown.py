"""Does text of others mean what it says in Markdown, and nothing else?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from optimizer.output import markdown

# `&` alone is left as it is: at its worst it is read as a character that it names
TEXTS = st.text(st.characters(exclude_characters="&") | st.sampled_from("`'[]_*\\<>#|! "), max_size=30)


@pytest.mark.parametrize("written", [markdown.plain, markdown.sentence])
@given(text=TEXTS)
@example(text="tensor 'a`b' of tsv_m: ['x', 'y']\\'z'")
@example(text="\\`'a''b'")
@example(text="[a](b)'c'_d_")
def test_it_is_read_as_it_was_said(written: Callable[[object], str], text: str) -> None:
    (_, inline, _) = MarkdownIt("commonmark").parse(f"it: {written(text)}.")
    assert {token.type for token in inline.children or ()} <= {"text", "text_special", "code_inline"}
    said = "".join(token.content for token in inline.children or ())
    assert said == f"it: {''.join(c if c.isprintable() else ' ' for c in text)}."


def test_what_is_quoted_is_code() -> None:
    said = markdown.sentence("mergekit has no method like tsv_m; expert 'a' has ['B'] [and more")
    assert said == "mergekit has no method like `tsv_m`; expert `'a'` has `['B']` \\[and more"
