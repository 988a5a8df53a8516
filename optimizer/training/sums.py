"""How far did the gathering of statistics come, and what did it sum up? A folder of work that a kill does not harm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from searchspaces.cache.once import file_sum, made_once
from searchspaces.models import shards


class _State(BaseModel):
    """What `state.json` says: each pass's tensors, and of each pass that is done its file's size and sum."""

    model_config = ConfigDict(extra="forbid", strict=True)

    passes: list[list[str]] = []
    done: list[tuple[int, str]] = []


class Work:
    """Passes over the items, each for some of the tensors `names`: those that are done, and the one under way.

    Every file is there as a whole or not at all: the state, what each pass has found, and `sums.safetensors`, the sums
    of the pass under way with its number and how many steps they are of. Where the state cannot be read, or is of other
    tensors, all is done anew; where the file of a pass is missing or cut short, all from that pass on.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self._names = folder, names
        self._state, self._sums = folder / "state.json", folder / "sums.safetensors"
        try:
            found = _State.model_validate_json(self._state.read_bytes())
        except (OSError, ValueError):
            found = _State()
        known = {name for part in found.passes for name in part} <= set(names)
        if not found.passes or len(found.passes) < len(found.done) or not known:
            shutil.rmtree(folder, ignore_errors=True)
            found = _State()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._passes, self._finished = found.passes, list[tuple[int, str]]()
        for number, said in enumerate(found.done):
            if _written(self._found(number)) != said:
                break
            self._finished.append(said)

    @property
    def left(self) -> list[str]:
        """The tensors that no pass has done."""
        done = {name for part in self._passes[: len(self._finished)] for name in part}
        return [name for name in self._names if name not in done]

    def next(self, plan: Callable[[Sequence[str]], Sequence[str]]) -> list[str] | None:
        """The tensors of the pass under way, or of the next: those that `plan` takes of what is left."""
        if self._done == len(self._passes):
            if not self.left:
                return None
            self._passes.append(list(plan(self.left)))
            self._note()
        return self._passes[self._done]

    def take_up(self, sums: Mapping[str, torch.Tensor]) -> int:
        """Fill in the sums that were kept, and say how many steps they are of: 0, and nothing filled in, for none."""
        try:
            with cast(Any, safe_open)(self._sums, "pt") as kept:
                if int(kept.get_tensor("pass")) != self._done or sums.keys() | {"pass", "steps"} != set(kept.keys()):
                    return 0
                for name, tensor in sums.items():
                    tensor.copy_(kept.get_tensor(name))
                return int(kept.get_tensor("steps"))
        except FileNotFoundError:
            return 0
        except (SafetensorError, RuntimeError):  # a disk's fault: what was summed up is lost, and nothing else
            for tensor in sums.values():
                tensor.zero_()
            return 0

    def keep(self, sums: Mapping[str, torch.Tensor], steps: int) -> None:
        """Write down the sums of the pass under way after so many steps."""
        every = {**sums, "pass": torch.tensor(self._done), "steps": torch.tensor(steps)}
        specs = [shards.Spec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in every.items()]
        self._write(self._sums, specs, every.items())

    def finish(self, shapes: Mapping[str, tuple[int, ...]], found: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write down what the pass under way has found, float32 tensors in the order of their shapes."""
        specs = [shards.Spec(name, shape, torch.float32) for name, shape in shapes.items()]
        file = self._found(self._done)
        self._write(file, specs, found)
        self._finished.append((file.stat().st_size, file_sum(file)))
        self._note()
        self._sums.unlink(missing_ok=True)

    def give(self, home: Path) -> None:
        """Put what all passes found into the folder `home` too: here it stays until that folder is whole."""
        for number in range(self._done):
            file = self._found(number)
            try:
                os.link(file, home / file.name)
            except OSError:  # a disk without links
                shutil.copyfile(file, home / file.name)

    @property
    def _done(self) -> int:
        return len(self._finished)

    def _found(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors"

    def _note(self) -> None:
        partial = self._state.with_suffix(".new")
        shards.write_text(partial, _State(passes=self._passes, done=self._finished).model_dump_json())
        self._settle(partial, self._state)

    def _write(self, file: Path, specs: Sequence[shards.Spec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        partial = file.with_suffix(".new")
        shards.write_file(partial, specs, iter(tensors))
        self._settle(partial, file)

    def _settle(self, partial: Path, file: Path) -> None:
        partial.replace(file)
        shards.sync_folder(self.folder)


def worked_once(home: Path, what: str, make: Callable[[Path, Path], None]) -> None:
    """`made_once` by `make(work, partial)`, where the folder `work` outlives a kill, and goes once `home` is whole."""
    work = home.with_name(f".{home.name}.work")
    made_once(home, what, 0, lambda partial: make(work, partial))
    shutil.rmtree(work, ignore_errors=True)


def _written(file: Path) -> tuple[int, str] | None:
    """A file's size and sum; None where there is none."""
    return (file.stat().st_size, file_sum(file)) if file.is_file() else None
