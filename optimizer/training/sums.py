"""How far did the gathering of statistics come, and what did it sum up? A folder of work that a kill does not harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from searchspaces.models import shards


class Work:
    """Passes over the items, each for some tensors: those that are done, each with its file, and the one under way.

    Every file is there as a whole or not at all. `state.json` holds the passes' tensors and how many passes are done;
    `sums.safetensors` the sums of the pass under way, its number, and how many steps they are of.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._state, self._sums = folder / "state.json", folder / "sums.safetensors"
        self._passes: list[list[str]] = []
        self._done = 0
        try:
            found = json.loads(self._state.read_text())
            self._passes, self._done = found["passes"], found["done"]
        except (FileNotFoundError, ValueError, KeyError):  # nothing was done yet, or a disk's fault: all is done anew
            for file in folder.iterdir():
                file.unlink()

    def next(self, names: Sequence[str], plan: Callable[[Sequence[str]], Sequence[str]]) -> list[str] | None:
        """The tensors of the pass under way, or of the next: those that `plan` takes of what is left of `names`."""
        if self._done == len(self._passes):
            taken = {name for part in self._passes for name in part}
            left = [name for name in names if name not in taken]
            if not left:
                return None
            self._passes.append(list(plan(left)))
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
        self._write(self.folder / f"model-{self._done:05d}.safetensors", specs, found)
        self._done += 1
        self._note()
        self._sums.unlink(missing_ok=True)

    def leave(self, home: Path) -> None:
        """Move what all passes found to the folder `home`; nothing is left of the work."""
        for number in range(self._done):
            name = f"model-{number:05d}.safetensors"
            (self.folder / name).replace(home / name)
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def _note(self) -> None:
        partial = self._state.with_suffix(".new")
        shards.write_text(partial, json.dumps({"passes": self._passes, "done": self._done}))
        self._settle(partial, self._state)

    def _write(self, file: Path, specs: Sequence[shards.Spec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        partial = file.with_suffix(".new")
        shards.write_file(partial, specs, iter(tensors))
        self._settle(partial, file)

    def _settle(self, partial: Path, file: Path) -> None:
        partial.replace(file)
        shards.sync_folder(self.folder)
