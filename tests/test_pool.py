"""Does the door hold? What a pool accepts, aligns and refuses, and what its hashes see."""

from __future__ import annotations

import errno
import json
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import base, expert
from safetensors.torch import load_file, save_file

from searchspaces import Pool
from searchspaces.errors import PoolError
from searchspaces.models import hashes
from searchspaces.models.headers import read_header
from searchspaces.models.pool import suggest_heads

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mergeopt" / "hashes.json"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first = base(tmp_path / "base")
    return first, expert(tmp_path / "math", first, 1, labels=3)


def rewrite(folder: Path, change: Change) -> None:
    path = folder / "model.safetensors"
    save_file({k: v.clone() for k, v in change(load_file(path)).items()}, path, {"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pool_sorts_tensors_into_merged_copied_and_heads(pair: tuple[Path, Path]) -> None:
    rewrite(pair[0], lambda t: {**t, "embeddings.position_ids": torch.arange(40)})
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"], exclude=["pooler.*"])
    assert {t.name for t in pool.copied} == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert pool.heads["math"]["classifier.weight"].shape == (3, 16)
    assert pool.names == ("math",) and "bert" in pool.describe()
    stored = load_file(pair[0] / "model.safetensors")
    assert {t.name for t in (*pool.merged, *pool.copied)} == stored.keys()
    assert pool.parameters == sum(t.numel() for t in stored.values() if t.is_floating_point())
    assert pool.bytes == sum(t.nbytes for t in stored.values())
    names = [t.name for t in pool.merged]
    assert names[0].startswith("embeddings.") and names == [t.name for t in pool.layout()[: len(names)]]
    halves = {t.name: t.dtype for t in pool.layout(torch.bfloat16)}
    assert halves["pooler.dense.bias"] == torch.bfloat16 and halves["embeddings.position_ids"] == torch.int64


@pytest.mark.parametrize("prefixed", ["base", "expert"])
def test_a_trunk_under_a_prefix_is_the_same_trunk(pair: tuple[Path, Path], prefixed: str) -> None:
    def prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k if k.startswith("classifier") else f"bert.{k}": v for k, v in tensors.items()}

    rewrite(pair[prefixed == "expert"], prefix)
    assert suggest_heads(pair[0], {"math": pair[1]}) == ["classifier.*"]
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    assert len(pool.merged) == 39 and set(pool.heads["math"]) == {"classifier.weight", "classifier.bias"}
    found = pool.experts["math"].tensor(pool.merged[0].name)
    assert torch.equal(
        found, load_file(pair[1] / "model.safetensors")[pool.experts["math"].stored[pool.merged[0].name].name]
    )


def test_a_repeated_tied_weight_is_counted_once(tmp_path: Path) -> None:
    first = base(tmp_path / "base", "llama", tie_word_embeddings=True)
    one, two = expert(tmp_path / "one", first, 1), expert(tmp_path / "two", first, 2)
    rewrite(one, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    pool = Pool.open(first, {"one": one, "two": two})
    assert "lm_head.weight" not in {t.name for t in pool.merged}
    # a head that was trained apart is no repetition
    rewrite(two, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(PoolError, match=r"expert '(one|two)' has a tensor 'lm_head.weight'"):
        Pool.open(first, {"one": one, "two": two})


def test_heads_are_suggested_for_what_not_all_have(tmp_path: Path) -> None:
    first = base(tmp_path / "base", "llama")
    plain, scored = expert(tmp_path / "plain", first, 1), expert(tmp_path / "scored", first, 2)
    rewrite(
        scored, lambda t: {**{k: v for k, v in t.items() if k != "lm_head.weight"}, "score.weight": torch.ones(2, 16)}
    )
    assert suggest_heads(first, {"plain": plain, "scored": scored}) == ["lm_head.*", "score.*"]
    pool = Pool.open(first, {"plain": plain, "scored": scored}, heads=["lm_head.*", "score.*"])
    assert [t.name for t in pool.copied] == ["lm_head.weight"] and set(pool.heads["scored"]) == {"score.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "pooler.dense.bias"}, r"no tensor '.*bias' \(base: \(16,\)\)"),
        (lambda t: {**t, "pooler.dense.bias": torch.zeros(7)}, r"bias' has shape \(7,\) \(base: \(16,\)\)"),
        (lambda t: {**t, "extra.weight": torch.zeros(7)}, r"'extra.weight' \(7,\) that the base lacks; add 'extra.\*'"),
        (lambda t: {**t, "pooler.dense.bias": torch.zeros(16).to(torch.float8_e4m3fn)}, "cannot be merged"),
    ],
)  # fmt: skip
def test_an_expert_unlike_the_base_is_refused_by_name(pair: tuple[Path, Path], change: Change, message: str) -> None:
    rewrite(pair[1], change)
    with pytest.raises(PoolError, match=message):
        Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"num_attention_heads": 4}, "num_attention_heads 4"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"quantization_config": {"bits": 4}}, "dequantise"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(pair: tuple[Path, Path], changes: dict, message: str) -> None:
    configure(pair[1], **changes)
    with pytest.raises(PoolError, match=message):
        Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])


def test_what_a_user_may_mistype_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "base").mkdir(parents=True)
    for experts, options, message in [
        ({}, {}, "at least one expert"),
        ({"../math": pair[1]}, {}, "letters, digits"),
        ({"m" * 65: pair[1]}, {}, "at most 64 letters"),
        ({"base": pair[1]}, {}, "give it another name"),
        ({"math": tmp_path / "nowhere"}, {}, "no folder"),
        ({"math": "~nosuch/model"}, {}, "no folder ~nosuch/model"),
        ({"math": "demo/bas"}, {}, "no folder 'demo/bas'; in demo there is: base"),
        ({"math": "org/name"}, {}, "not pinned"),
        ({"math": "org/name@main"}, {}, "not pinned"),
        ({"math": pair[1]}, {"heads": ["classifier.*"], "exclude": ["polar.*"]}, "'polar.*' matches no tensor"),
        ({"math": pair[1]}, {"heads": ["*"]}, "nothing is left to merge"),
    ]:
        with pytest.raises(PoolError, match=message.replace("*", r"\*")):
            Pool.open(pair[0], experts, **options)


def test_a_hub_id_is_fetched_at_its_commit_without_code_or_pickles(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def download(name: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.extend([name, revision, *allow_patterns])
        return str(pair[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    Pool.open(pair[0], {"math": f"org/name@{'a' * 40}"}, heads=["classifier.*"])
    assert asked[:2] == ["org/name", "a" * 40] and not [p for p in asked if str(p).endswith((".py", ".bin", ".pt"))]


def test_a_hub_id_without_a_network_is_one_clear_error(pair: tuple[Path, Path], cache: Path) -> None:
    with pytest.raises(PoolError, match="cannot be fetched"):
        Pool.open(pair[0], {"math": f"org/name@{'a' * 40}"})


def test_pickles_are_never_opened(pair: tuple[Path, Path]) -> None:
    (pair[1] / "model.safetensors").rename(pair[1] / "pytorch_model.bin")
    with pytest.raises(PoolError, match=r"pytorch_model\.bin.*only safetensors"):
        Pool.open(pair[0], {"math": pair[1]})


def shard(folder: Path, names: tuple[str, str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    table = {k: names[i >= len(keys) // 2] for i, k in enumerate(keys)}
    for name in names:
        if "/" not in name:
            save_file({k: tensors[k] for k in keys if table[k] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_shards_are_one_checkpoint(pair: tuple[Path, Path]) -> None:
    whole = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    wanted = {t.name: whole.experts["math"].tensor(t.name).clone() for t in whole.merged}
    shard(pair[1], ("model-1.safetensors", "model-2.safetensors"))
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    assert all(torch.equal(pool.experts["math"].tensor(n), t) for n, t in wanted.items())
    (pair[1] / "model-2.safetensors").write_bytes((pair[1] / "model-2.safetensors").read_bytes()[:-100])
    with pytest.raises(PoolError, match=r"model-2\.safetensors is truncated"):
        Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    (pair[1] / "model-2.safetensors").unlink()
    with pytest.raises(PoolError, match=r"model-2\.safetensors is missing"):
        Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "/etc/passwd", "a\0.safetensors", "evil.bin", ".safetensors", 7]
)
def test_a_shard_outside_the_folder_is_refused(pair: tuple[Path, Path], name: object) -> None:
    (pair[1] / "model.safetensors").unlink()
    (pair[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(PoolError, match="bare file name"):
        Pool.open(pair[0], {"math": pair[1]})


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int = 0, stop: int = 4, shape: object = (1,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header claims"),
        (file_of({}, length=1 << 60), "header claims"),
        (file_of({"a": entry()}, b"1234", length=30_000_000), "header claims"),
        (file_of(b"{nonsense"), "cannot be read"),
        (file_of(b"[" * 100_000), "cannot be read"),
        (file_of(b"[1]"), "expected an object"),
        (file_of(b'{"a": {}, "a": {}}'), "given twice"),
        (file_of({"a": entry()}, b"12"), "truncated: its header promises"),
        (file_of({"a": entry()}, b"12345678"), "too long"),
        (file_of({"a": entry(), "b": entry()}, b"1234"), "starts at byte"),
        (file_of({"a": entry(4, 8)}, b"12345678"), "starts at byte"),
        (file_of({"a": entry(shape=(2,))}, b"1234"), "needs 8 bytes"),
        (file_of({"a": entry(shape=(-1, -1))}, b"1234"), "whole numbers"),
        (file_of({"a": entry(shape="1")}, b"1234"), "whole numbers"),
        (file_of({"a": entry(dtype="F33")}, b"1234"), "dtype is not known"),
        (file_of({"a" * 300: entry()}, b"1234"), "longer than 256"),
        (file_of({"a": 7}), "dtype is not known"),
        (file_of({str(i): entry(0, 0, (0,)) for i in range(100_001)}), "at most 100000"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(PoolError, match=message):
        read_header(path, "base")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_a_pool_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(file_of({"a": entry(), "b": entry(4, 8)}, b"12345678"))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(content))
    try:
        found = read_header(path, "base")
    except PoolError as error:
        assert "safetensors" in str(error)
    else:
        assert sum(info.bytes for info, _ in found.values()) == 8


def test_hashes_are_of_content_and_cached(
    pair: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    first = pool.hashes(seen.append)
    assert seen == ["base", "math"] == list(first) and len(set(first.values())) == 2
    monkeypatch.setattr("searchspaces.models.hashes._scan", None)  # whoever reads a file again fails
    assert pool.hashes() == first
    monkeypatch.undo()
    rewrite(pair[1], lambda t: {**t, "pooler.dense.bias": t["pooler.dense.bias"] + 1})
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    again = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"]).hashes()
    assert again["base"] == first["base"] and again["math"] != first["math"]


def test_workers_of_a_host_that_start_together_read_each_file_once(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def slow(label: str, file: Path) -> str:
        read.append(file)
        time.sleep(0.05)
        return scan(label, file)

    scan = hashes._scan
    monkeypatch.setattr(hashes, "_scan", slow)
    pools = [Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"]) for _ in range(4)]
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(Pool.hashes, pools))
    assert all(f == found[0] for f in found) and len(read) == len(set(read)) == 4, "config and weights of two models"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 1}'])
def test_a_broken_cache_is_discarded(pair: tuple[Path, Path], cache: Path, content: bytes) -> None:
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    first = pool.hashes()
    cache.write_bytes(content)
    assert pool.hashes() == first and json.loads(cache.read_bytes())


def test_a_cache_that_cannot_be_written_costs_time_only(pair: tuple[Path, Path], cache: Path) -> None:
    cache.parent.parent.write_text("a file where a folder should be")
    assert len(Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"]).hashes()) == 2


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_costs_time_at_most(
    pair: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(code, "no locks here")

    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    with monkeypatch.context() as there:
        there.setattr("fcntl.flock", refuse)
        found = pool.hashes()
    assert cache.exists() is (code == errno.ENOSYS)  # which files that are locks stand in for
    assert pool.hashes() == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    pair: tuple[Path, Path], dtype: torch.dtype, wrong: float
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {k: v.to(dtype) for k, v in tensors.items()}
        tensors["encoder.layer.1.output.dense.weight"][3, 3] = wrong
        return tensors

    rewrite(pair[1], spoil)
    pool = Pool.open(pair[0], {"math": pair[1]}, heads=["classifier.*"])
    with pytest.raises(PoolError, match=r"expert 'math': tensor 'encoder\.layer\.1\.output\.dense\.weight' has NaN"):
        pool.hashes()
