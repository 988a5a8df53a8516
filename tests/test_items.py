"""Are rows read alike from every format, and does a broken file say where it is broken?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from evaluators.errors import DataError
from evaluators.items import read

ROWS: list[dict[str, Any]] = [
    {"text": 'good red, "quoted"', "label": 0},
    {"text": "NA", "label": 1},
    {"text": "zwölf\nzeilen", "label": 2},
]


def jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")


def listed(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def csv(path: Path) -> None:
    pandas.DataFrame(ROWS).to_csv(path, index=False)


def parquet(path: Path) -> None:
    pandas.DataFrame(ROWS).to_parquet(path)


def saved(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


FORMATS = {"a.jsonl": jsonl, "a.json": listed, "a.csv": csv, "a.parquet": parquet, "folder": saved}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    table = read(name, tmp_path)
    assert table.rows == ROWS
    assert table.files and all(file.is_file() for file in table.files)
    assert read(name, tmp_path, ["label"]).rows == [{"label": i} for i in range(3)]
    assert read(str(tmp_path / name), Path("/")).rows == ROWS


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_column_names_file_row_and_the_nearest(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    with pytest.raises(
        DataError, match=rf"{name}: row 0 has no column 'lable'; did you mean 'label'\? it has: text, label"
    ):
        read(name, tmp_path, ["text", "lable"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', r"a\.jsonl: row 1: expected an object .* got list"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl: line 1 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', r"a\.jsonl: row 1, column 'text': expected a value, got none"),
        ("a.jsonl", "", r"a\.jsonl: expected rows, found none"),
        ("a.json", '{"text": "x"}', r"a\.json: expected a list of objects, got dict"),
        ("a.csv", "text,label\nx,1\ny,2,3\n", r"a\.csv: not a table"),
        ("a.csv", "text,label\nx,1,9\ny,2,3\n", r"a\.csv: not a table"),
        ("a.csv", "", r"a\.csv: expected rows, found none"),
        ("a.parquet", "no", r"a\.parquet: not a Parquet file"),
        ("a.xlsx", "no", r"a\.xlsx: cannot read \.xlsx; expected \.jsonl"),
    ],
)
def test_a_broken_file_says_where(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(name, tmp_path, ["text"])


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "ä"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.jsonl: expected UTF-8"):
        read("a.jsonl", tmp_path)


def test_a_folder_that_datasets_did_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: expected a folder written by `datasets`"):
        read("folder", tmp_path)


def test_a_folder_of_several_splits_lists_them(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "folder")
    with pytest.raises(DataError, match="name one of them: folder/train, folder/test"):
        read("folder", tmp_path)
    assert read("folder/test", tmp_path).rows == ROWS


def test_a_data_set_of_the_hub_without_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"datasets:nobody/nothing:test: cannot be loaded .* use a local file"):
        read("datasets:nobody/nothing:test", tmp_path)
    with pytest.raises(DataError, match=r"expected datasets:NAME"):
        read("datasets:", tmp_path)
