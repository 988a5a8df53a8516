"""Is every item on one side only, whatever the file's order, and are calibration and held-out never mixed?"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.errors import DataError, OptionError
from evaluators.items import Table
from evaluators.options import ItemOptions, parse
from evaluators.splits import load_items, split

cells = st.one_of(st.integers(), st.text(max_size=4), st.booleans(), st.binary(max_size=3))
tables = st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=2, max_size=30)


def table(rows: list[dict[str, Any]]) -> Table:
    return Table("items.jsonl", rows, (), Path())


def sides(rows: list[dict[str, Any]], seed: int, calibration: float | int, limit: int | None = None) -> list[list[str]]:
    found = split(table(rows), seed, calibration, limit)
    return [sorted(repr(rows[i]) for i in side) for side in (found.calibration, found.heldout)]


@given(tables, st.integers(0, 5), st.floats(0.1, 0.9), st.randoms(use_true_random=False))
def test_sides_do_not_depend_on_the_order_of_the_file(
    rows: list[dict[str, Any]], seed: int, share: float, draw: random.Random
) -> None:
    shuffled = draw.sample(rows, len(rows))
    try:
        before = sides(rows, seed, share)
    except DataError:
        with pytest.raises(DataError):
            sides(shuffled, seed, share)
        return
    assert sides(shuffled, seed, share) == before
    assert not set(before[0]) & set(before[1])
    assert len(before[0]) + len(before[1]) == len(rows)


def test_key_order_means_nothing_and_the_seed_draws_others() -> None:
    rows = [{"a": i, "b": "x"} for i in range(50)]
    turned = [{"b": row["b"], "a": row["a"]} for row in rows]
    first, second = split(table(rows), 0, 0.5), split(table(turned), 0, 0.5)
    assert first.calibration.tolist() == second.calibration.tolist()
    assert split(table(rows), 1, 0.5).calibration.tolist() != first.calibration.tolist()


def test_calibration_is_a_share_or_a_count_and_limit_draws_from_all() -> None:
    rows = [{"a": i} for i in range(100)]
    assert len(split(table(rows), 0, 0.3).calibration) == 30
    assert len(split(table(rows), 0, 7).calibration) == 7
    limited = split(table(rows), 0, 0.5, limit=20)
    kept = [*limited.calibration, *limited.heldout]
    assert len(kept) == 20 and max(kept) > 50


@pytest.mark.parametrize(
    ("rows", "calibration", "message"),
    [
        ([{"a": 1}], 0.5, "1 items and calibration: 0.5"),
        ([{"a": 1}, {"a": 2}], 2, "make 2 calibration and 0 held-out items"),
        ([{"a": 1}, {"a": 2}], 5, "make 2 calibration and 0 held-out items"),
        ([{"a": 1}, {"a": 1}], 0.5, "equal rows stay together"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], 0.01, "make 0 calibration and 3 held-out"),
    ],
)
def test_an_empty_side_is_refused_with_counts(rows: list[dict[str, Any]], calibration: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(table(rows), 0, calibration)


def two_files(root: Path, calibration: list[int], heldout: list[int]) -> dict[str, Any]:
    for name, numbers in (("c", calibration), ("h", heldout)):
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"a": i, "id": f"{name}{i}"}) for i in numbers))
    return {"data": {"calibration": "c.jsonl", "heldout": "h.jsonl"}}


def test_a_file_for_each_split_is_kept(tmp_path: Path) -> None:
    items = load_items(parse(ItemOptions, "mine", two_files(tmp_path, [1, 2, 2], [3, 4])), tmp_path, ["a"])
    assert items.splits.calibration.tolist() == [0, 1, 2] and items.splits.heldout.tolist() == [3, 4]
    assert [row["a"] for row in items.rows] == [1, 2, 2, 3, 4]
    assert items.where(4, "a") == "h.jsonl: row 1, column 'a'"
    assert [file.name for file in items.files] == ["c.jsonl", "h.jsonl"]


def test_a_row_in_both_files_is_refused_by_what_is_read_of_it(tmp_path: Path) -> None:
    options = parse(ItemOptions, "mine", two_files(tmp_path, [1, 2], [3, 2]))
    with pytest.raises(DataError, match=r"h\.jsonl: row 1 is also row 1 of c\.jsonl"):
        load_items(options, tmp_path, ["a"])
    assert len(load_items(options, tmp_path, ["a", "id"]).rows) == 4


def test_a_share_beside_two_files_is_a_contradiction(tmp_path: Path) -> None:
    options = parse(ItemOptions, "mine", {**two_files(tmp_path, [1], [2]), "calibration": 0.5})
    with pytest.raises(OptionError, match="names a file per split"):
        load_items(options, tmp_path, ["a"])


@pytest.mark.parametrize("value", [0, 1.0, -0.1, 1.5, True, "half"])
def test_a_calibration_that_is_neither_share_nor_count_is_refused(value: object) -> None:
    with pytest.raises(OptionError, match="option 'calibration"):
        parse(ItemOptions, "mine", {"data": "a.csv", "calibration": value})


def test_a_refused_option_is_called_as_the_job_calls_it() -> None:
    with pytest.raises(OptionError, match=r"option 'calibration': ") as refused:
        parse(ItemOptions, "spam", {"data": "a", "calibration": "x"})
    assert "constrained" not in str(refused.value)
    with pytest.raises(OptionError, match=r"option 'data\.heldout' is missing|option 'data': "):
        parse(ItemOptions, "spam", {"data": {"calibration": "a"}})
