"""How does a folder become a model, and where in it does each tensor live? Transformers' loader, quiet and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from searchspaces.checkpoint import read_json
from searchspaces.errors import PoolError
from searchspaces.pool import Pool
from searchspaces.skeleton import model_class, renamed


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The transformers model of a local folder, for evaluation: no gradients, no remote code, no network, no output.

    `dtype` None keeps the checkpoint's. Parameters that the checkpoint does not store are filled with NaN: a random
    pooler would score differently in each worker. Raises PoolError where transformers cannot load the folder.
    """
    kind = model_class(read_json(folder / "config.json", "base"))
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype or "auto",
                output_loading_info=True,
            )
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PoolError(f"transformers cannot load {folder}: {reason}; check its config.json") from error
    state = model.state_dict()
    for name in report["missing_keys"]:
        if name in state and state[name].is_floating_point():
            state[name].fill_(float("nan"))
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no load report: who runs thousands of workers reads neither."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def targets(pool: Pool, model: Any) -> dict[str, torch.Tensor]:
    """Merged tensor name -> the model's own storage for it, flat. Raises PoolError where there is no such storage."""
    find = _finder(model)
    found: dict[str, torch.Tensor] = {}
    taken: dict[int, str] = {}
    for info in pool.merged:
        name = info.name
        target = find(name)
        if target is None or tuple(target.shape) != info.shape or not target.is_contiguous():
            raise PoolError(
                f"base: transformers loads {type(model).__name__} with no parameter for tensor {name!r} {info.shape}: "
                "it converts this layout; list it under models.exclude, or save the model with save_pretrained()"
            )
        if (other := taken.setdefault(target.data_ptr(), name)) != name and info.numel:
            raise PoolError(
                f"base: {other!r} and {name!r} are tied in the model but stored twice with different values; "
                "list one of them under models.exclude"
            )
        found[name] = target.view(-1)
    _verify(pool, found)
    return found


def copied_targets(pool: Pool, model: Any) -> dict[str, torch.Tensor]:
    """Name -> the model's own storage, in its shape, of the float tensors that merges take from the base."""
    find = _finder(model)
    places = {info.name: (info, find(info.name)) for info in pool.copied if info.dtype.is_floating_point}
    return {name: place for name, (info, place) in places.items() if place is not None and place.shape == info.shape}


def _finder(model: Any) -> Callable[[str], torch.Tensor | None]:
    """From a checkpoint's tensor name to the model's own storage for it, if there is any."""
    state: dict[str, torch.Tensor] = model.state_dict()
    renaming = renamed(model, state)
    prefix = f"{model.base_model_prefix}."

    def find(name: str) -> torch.Tensor | None:
        near = (name, prefix + name, name.removeprefix(prefix))
        return next((state[n] for m in near for n in (m, renaming.get(m, "")) if n in state), None)

    return find


def _verify(pool: Pool, targets: dict[str, torch.Tensor]) -> None:
    """The model was loaded from the base: each target must hold the base's values, or names lead astray."""
    for name, target in targets.items():
        wanted = pool.base.tensor(name).view(-1)
        same = wanted.dtype == target.dtype and target.device.type == "cpu"
        if same and not torch.equal(target, wanted) and bool(torch.isfinite(wanted).all()):
            raise PoolError(
                f"base: transformers changes the values of tensor {name!r} while loading; list it under models.exclude"
            )
