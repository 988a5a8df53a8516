"""What does a safetensors header promise? Parsed with caps and held against the file's size."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from searchspaces.errors import PoolError

MAX_HEADER = 25_000_000  # bytes
MAX_TENSORS = 100_000
MAX_NAME = 256  # bytes

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
REMEDY = "fetch or save it again"
MERGEABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class TensorInfo(NamedTuple):
    """What a header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """Where one tensor's bytes lie: the file, the name in it, and the byte range in the file."""

    file: Path
    name: str
    start: int
    stop: int


def read_header(file: Path, label: str) -> dict[str, tuple[TensorInfo, Stored]]:
    """The tensors that a safetensors file declares, checked against the format's rules, our caps and the file's size.

    Raises PoolError naming the file: header over 25 MB, over 100,000 tensors, names over 256 bytes, unknown dtypes,
    duplicate names, byte ranges that do not fit shapes, overlap or leave holes, files shorter or longer than promised.
    """

    def broken(why: str) -> PoolError:
        return PoolError(f"{label}: {file} is no valid safetensors file: {why}; {REMEDY}")

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if length < 2 or length > MAX_HEADER or 8 + length > size:
                raise broken(f"its header claims {length} bytes (file: {size} bytes, header at most {MAX_HEADER})")
            header = _parse(stream.read(length))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, _Malformed, RecursionError) as error:
        raise broken(f"its header cannot be read: {error}") from error
    if len(header) > MAX_TENSORS:
        raise broken(f"it declares {len(header)} tensors (at most {MAX_TENSORS})")
    found = {}
    for name, entry in header.items():
        try:
            found[name] = _entry(file, name, entry, 8 + length)
        except (_Malformed, ValueError, TypeError, KeyError) as error:
            raise broken(f"tensor {name[:MAX_NAME]!r}: {error}") from error
    at = 8 + length
    for place in sorted((s for _, s in found.values()), key=lambda s: (s.start, s.stop)):
        if place.start != at:
            raise broken(f"tensor {place.name!r} starts at byte {place.start}, expected {at}")
        at = place.stop
    if at != size:
        raise PoolError(
            f"{label}: {file} is {'truncated' if size < at else 'too long'}: its header promises {at} bytes, "
            f"the file has {size}; {REMEDY}"
        )
    return found


class _Malformed(Exception):
    """A header that breaks the format's rules; becomes a PoolError that names the file."""


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Malformed("a name is given twice")
        return found

    header = json.loads(text.decode(), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise _Malformed(f"expected an object, got {type(header).__name__}")
    header.pop("__metadata__", None)
    return header


def _entry(file: Path, name: str, entry: Any, origin: int) -> tuple[TensorInfo, Stored]:
    if len(name.encode(errors="surrogatepass")) > MAX_NAME:
        raise _Malformed(f"its name is longer than {MAX_NAME} bytes")
    if not isinstance(entry, dict) or entry["dtype"] not in DTYPES:
        raise _Malformed(f"its dtype is not known: {entry!r:.80}")
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise _Malformed(f"shape and byte range must be whole numbers: {entry!r:.80}")
    info = TensorInfo(name, tuple(shape), DTYPES[entry["dtype"]])
    if stop - start != info.bytes:
        raise _Malformed(f"shape {shape} needs {info.bytes} bytes, its byte range has {stop - start}")
    return info, Stored(file, name, origin + start, origin + stop)
