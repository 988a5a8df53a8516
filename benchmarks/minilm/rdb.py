"""What does an R package's lazy-load database (Rdata.rdx beside Rdata.rdb) hold? Read without R."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read(folder: Path, name: str) -> Any:
    """The R object `name` of the database in `folder`: a data frame comes as a pandas DataFrame.

    Raises:
        SystemExit: the database has no such object, or a chunk's length is not the one recorded.
    """
    index = _convert(_inflate((folder / "Rdata.rdx").read_bytes()))["variables"]
    if name not in index:
        raise SystemExit(f"{folder}: expected an object {name!r}, found {sorted(index)}; fetch the pinned version")
    offset, length = (int(number) for number in index[name])
    with (folder / "Rdata.rdb").open("rb") as stream:
        stream.seek(offset)
        return _convert(_chunk(stream.read(length)))


def _convert(content: bytes) -> Any:
    import rdata

    with warnings.catch_warnings():  # classes that rdata has no constructor for (tibbles) come as what they extend
        warnings.simplefilter("ignore")
        return rdata.conversion.convert(rdata.parser.parse_data(content))


def _inflate(content: bytes) -> bytes:
    """Index files come in any of R's compressions, each with its own magic bytes."""
    table: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
        (b"\x1f\x8b", gzip.decompress),
        (b"BZh", bz2.decompress),
        (b"\xfd7zXZ", lzma.decompress),
        (b"\x78", zlib.decompress),
    )
    return next((inflate(content) for magic, inflate in table if content.startswith(magic)), content)


def _chunk(chunk: bytes) -> bytes:
    """A chunk: its length in 4 big-endian bytes; for all but zlib a byte that names the compression; the data."""
    (length,) = struct.unpack(">I", chunk[:4])
    kind, rest = chunk[4:5], chunk[5:]
    if kind == b"2":
        content = bz2.decompress(rest)
    elif kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        content = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters).decompress(rest)
    elif kind == b"0":
        content = rest
    else:
        content = zlib.decompress(chunk[4:])
    if len(content) != length:
        raise SystemExit(f"expected {length} bytes in an R database's chunk, found {len(content)}; fetch it again")
    return content
