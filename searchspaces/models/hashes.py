"""Which bytes are these? Content hashes of checkpoints, in one pass that also refuses NaN and infinity, cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from searchspaces.adapters.adapter import Adapter
from searchspaces.cache.limit import root
from searchspaces.errors import PoolError
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import read_header

CHUNK = 1 << 20  # bytes: hashed, then checked while still in cache
KEPT = 4096  # files that the cache remembers
LOCKS = 64  # at most as many files are read at once on a host
_EXPONENT = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


def content_hash(checkpoint: Checkpoint | Adapter) -> str:
    """sha256 in hex over the names and contents of a checkpoint's or adapter's config and weight files.

    Files whose (path, size, times) were seen before are not read again. Raises PoolError, naming the tensor, where a
    weight is NaN or infinite, and where a file changes under the reader.
    """
    total = hashlib.sha256()
    cache = _Cache()
    for file in (checkpoint.config_file, *checkpoint.files):
        stat = file.stat()
        # ctime too: copies that keep times, and archives whose files are all of one second, do not keep that one
        key = json.dumps([str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
        digest = cache.get(key)
        if digest is None:
            with cache.alone(key):  # a host's workers start together: one reads, the others wait for what it finds
                digest = cache.get(key)
                if digest is None:
                    digest = _scan(checkpoint.label, file)
                    cache.put(key, digest)
        total.update(f"{file.name}\0{digest}\n".encode())
    return total.hexdigest()


def _scan(label: str, file: Path) -> str:
    """sha256 of a file; in safetensors each tensor is checked to be finite on the way."""
    digest = hashlib.sha256()
    found = list(read_header(file, label).values()) if file.suffix == ".safetensors" else []
    with file.open("rb", buffering=0) as stream:
        # the header, then the tensors, which follow each other without holes
        origin = min((place.start for _, place in found), default=file.stat().st_size)
        digest.update(_read(stream, origin, label, file))
        for info, place in sorted(found, key=lambda f: (f[1].start, f[1].stop)):
            for at in range(place.start, place.stop, CHUNK):
                block = _read(stream, min(CHUNK, place.stop - at), label, file)
                digest.update(block)
                if not _finite(block, info.dtype):
                    raise PoolError(
                        f"{label}: tensor {info.name!r} has NaN or infinity among its weights ({file}); "
                        "take another checkpoint of it, or leave it out"
                    )
    return digest.hexdigest()


def _read(stream: FileIO, count: int, label: str, file: Path) -> bytes:
    parts: list[bytes] = []
    while count:
        part = stream.read(count)
        if not part:
            raise PoolError(f"{label}: {file} was truncated while it was read; fetch or save it again")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _finite(block: bytes, dtype: torch.dtype) -> bool:
    if dtype in _EXPONENT:
        mask = np.uint16(_EXPONENT[dtype])
        bits: NDArray[np.uint16] = np.frombuffer(block, np.uint16) & mask
        return not bool((bits == mask).any())
    if dtype in (torch.float32, torch.float64):
        return bool(np.isfinite(np.frombuffer(block, np.float32 if dtype == torch.float32 else np.float64)).all())
    return True


class _Cache:
    """Digests by (path, size, times), in a JSON file of the user's; where it cannot be kept, files are read again."""

    def __init__(self) -> None:
        self._path = root() / "hashes.json"

    def get(self, key: str) -> str | None:
        found = self._load().get(key)
        return found if isinstance(found, str) and len(found) == 64 else None

    def put(self, key: str, digest: str) -> None:
        # a full or read-only disk costs time at the next start, nothing else
        with contextlib.suppress(OSError, Timeout):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._path.with_suffix(".lock"), timeout=10):
                table = self._load()
                table[key] = digest
                fresh = self._path.with_suffix(".new")
                fresh.write_text(json.dumps(dict(list(table.items())[-KEPT:]), indent=0))
                fresh.replace(self._path)

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """While no other process of this host reads the same file; at once where no lock can be had."""
        # a lock that many files share makes their readers wait for each other, and nothing else
        lock = self._path.with_name(f"hashes-{zlib.crc32(key.encode()) % LOCKS}.lock")
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # of a file system without locks
                lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                held.enter_context(FileLock(lock))
            yield

    def _load(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
