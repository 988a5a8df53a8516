"""Does a front fit into a terminal? Every cell whole, every line within its width, for any number of objectives."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from evaluators.evaluator import Measure
from optimizer.output.fronts import FOLDED, GAP, Line, blocks, folded, lines_of, short, tables
from optimizer.output.terminal import Terminal

TASKS = [
    "sst2",
    "mnli",
    "tweet_emotion",
    "cola",
    "qnli",
    "dbpedia_14",
    "financial_phrasebank_long",
    "rte",
    "mrpc",
    "boolq",
    "ag_news",
    "trec",
]
NAMES = ("4", "base (0)", "expert: financial_phrasebank_long, global 1.0 (1)")


def front(objectives: list[str]) -> list[Line]:
    """Three candidates, whose scores are all different."""
    return [
        line
        for i, name in enumerate(NAMES)
        for line in lines_of(
            name,
            objectives,
            [
                (items, {o: Measure((200 * i + 10 * j + s) / 700, 0.078, 40) for j, o in enumerate(objectives)}, ">.99")
                for s, items in enumerate(("calibration", "held-out"))
            ],
            None,
        )
    ]


def printed(objectives: list[str], width: int) -> tuple[str, int, bool]:
    """What is shown, in how many tables, and whether with errors."""
    console = Terminal(width=width, file=StringIO())
    lines = front(objectives)
    found, exact = tables("run: 3 candidates on the front", objectives, lines, console.width)
    for table in found:
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    measures = [f"{m.value:.3f}" + ("±.078" if exact else "") for line in lines for m in line.scores]
    words = shown.split()
    assert len(set(measures)) == len(measures) and all(words.count(m) == 1 for m in measures), "every score is whole"
    assert words.count("held-out") == len(NAMES) * len(found) and words.count(">.99") == 2 * len(NAMES)
    assert all(cell_len(line) <= width for line in shown.splitlines()) and "…" not in shown
    return shown, len(found), exact


@pytest.mark.parametrize(
    ("width", "count", "several", "exact"),
    [
        (80, 2, 1, True),
        (80, 7, 2, False),
        (80, 12, 4, False),
        (120, 2, 1, True),
        (120, 7, 2, True),
        (120, 12, 2, False),
        (200, 7, 1, True),
    ],
)
def test_every_score_is_whole_in_as_few_tables_as_there_is_room_for(
    width: int, count: int, several: int, exact: bool
) -> None:
    shown, found, errors = printed([f"{task}.accuracy" for task in TASKS[:count]], width)
    assert (found, errors) == (several, exact)
    assert shown.count("accuracy") == 1 and "all scores: accuracy" in shown
    assert all(shown.split().count(task) == 1 for task in TASKS[:count] if len(task) <= FOLDED)


def test_errors_are_shown_where_they_take_no_further_table() -> None:
    names = [f"{task}.accuracy" for task in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    assert [printed(names, width)[1:] for width in (80, 200)] == [(2, False), (1, True)]
    assert printed(["a_long_name_of_one.x", "b_long_name_of_one.x", "c_long_name_of_one.x"], 80)[1:] == (2, True)


@pytest.mark.parametrize(
    ("names", "heads", "shared"),
    [
        (["a.accuracy", "b.accuracy"], ["a", "b"], "accuracy"),
        (["harness.a.em", "harness.b.em"], ["harness.a", "harness.b"], "em"),
        (["own.x", "own.y"], ["x", "y"], "own"),
        (["a.accuracy", "b.loss"], ["a\naccuracy", "b\nloss"], ""),
        (["a.accuracy"], ["a\naccuracy"], ""),
    ],
)
def test_what_all_names_have_in_common_is_said_once(names: list[str], heads: list[str], shared: str) -> None:
    assert short(names) == (heads, shared)


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        ("sst2", ["sst2"]),
        ("tweet_emotion", ["tweet_", "emotion"]),
        ("tweet_emotion\naccuracy", ["tweet_", "emotion", "accuracy"]),
        ("pneumonoultramicroscopic", ["pneumonoult", "ramicroscop", "ic"]),
        ("语言模型评测数据集", ["语言模型评", "测数据集"]),
    ],
)
def test_long_heads_are_folded_where_words_end(head: str, lines: list[str]) -> None:
    assert folded(head).split("\n") == lines


@given(st.text(min_size=1, max_size=40))
def test_folding_loses_no_character(head: str) -> None:
    found = folded(head)
    assert all(cell_len(line) <= FOLDED for line in found.split("\n"))
    assert len(found.replace("\n", "")) == len(head.replace("\n", ""))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 90))
def test_columns_keep_their_order_and_fit(widths: list[int], room: int) -> None:
    found = blocks(widths, room)
    assert [j for block in found for j in block] == list(range(len(widths)))
    used = [sum(widths[j] + GAP for j in block) for block in found]
    assert all(u <= room or len(block) == 1 for u, block in zip(used, found, strict=True))
    assert all(u + widths[after[0]] + GAP > room for u, (_, after) in zip(used, pairwise(found), strict=False))
