"""What the shard writer owes: files that safetensors and transformers read back to the bit, one tensor at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from searchspaces.models import headers, shards

DTYPES = sorted(shards.DTYPES, key=str)


@settings(max_examples=40)
@given(
    shapes=st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=8
    ),
    limit=st.integers(1, 400),
)
def test_what_is_written_reads_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[list[int], torch.dtype]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": (torch.randn(shape) * 9).to(dtype) for i, (shape, dtype) in enumerate(shapes)}
    specs = [shards.Spec(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
    files = [p for p in shards.write(folder, specs, iter(tensors.items()), limit) if p.suffix == ".safetensors"]
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].view(-1), tensor.view(-1))
    for shard in shards.plan(specs, limit):
        assert len(shard) == 1 or sum(s.bytes for s in shard) <= limit


def test_no_more_than_one_tensor_is_held_besides_the_one_that_comes(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(5):
            tensor = torch.zeros(4)
            made.append(weakref.ref(tensor))
            assert sum(ref() is not None for ref in made) <= 2
            yield f"t{i}", tensor

    shards.write(tmp_path, [shards.Spec(f"t{i}", (4,), torch.float32) for i in range(5)], stream())
    assert len(made) == 5


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected Spec"):
        shards.write(tmp_path, [shards.Spec("a", (2,), torch.float32)], iter([("a", torch.zeros(3))]))


def test_no_shard_holds_more_than_a_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = shards.MOST
    specs = [shards.Spec(f"{i:06d}" + "\1" * (headers.MAX_NAME - 6), (), torch.uint8) for i in range(most)]
    (path,) = shards.write(tmp_path, specs, ((s.name, torch.zeros((), dtype=torch.uint8)) for s in specs))
    assert len(headers.read_header(path, "the longest names")) == most
    monkeypatch.setattr(shards, "MOST", 3)
    cut = shards.plan([shards.Spec(f"{i}", (i % 3,), torch.uint8) for i in range(8)], 5)
    assert [len(shard) for shard in cut] == [3, 3, 2]
