"""How does a folder become a model, and where in it does each tensor live? Transformers' loader, quiet and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from searchspaces.errors import PoolError, first_line
from searchspaces.models.architecture import input_embeddings, model_class
from searchspaces.models.checkpoint import read_json
from searchspaces.models.layout import Place, finder
from searchspaces.models.pool import Pool
from searchspaces.vocabularies.embeddings import rows_of
from searchspaces.weights.spread import Where, dispatch, map_of, settled


def load_model(folder: Path, device: Where = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The transformers model of a local folder, for evaluation: no gradients, no remote code, no network, no output.

    `device` is one device, `auto`, or a map from modules to devices. `dtype` None keeps the checkpoint's. Parameters
    that the checkpoint does not store are filled with NaN: a random pooler would score differently in each worker.
    Raises PoolError where transformers cannot load the folder.
    """
    kind = model_class(read_json(folder / "config.json", "base"))
    several = map_of(device, folder)
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype or "auto",
                output_loading_info=True,
                **({"device_map": several} if several is not None else {}),
            )
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
        where = "its config.json" if several is None else "its config.json, and executor.device"
        raise PoolError(f"transformers cannot load {folder}: {first_line(error)}; check {where}") from error
    state = model.state_dict()
    for name in report["missing_keys"]:
        if name in state and state[name].is_floating_point():
            state[name].fill_(float("nan"))
    model.eval().requires_grad_(False)
    return _moved(model, device) if several is None else settled(model)


def load_base(pool: Pool, device: Where = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The base's model, as `load_model`, with the pool's rows of tokens where those are others than the base's own."""
    opened = pool.base.opened
    if opened is None:
        return load_model(pool.base.folder, device, dtype)
    several = map_of(device, opened.folder)
    model = load_model(opened.folder, "cpu", dtype)
    moved = [name for name, place in pool.base.stored.items() if place != opened.stored[name]]
    model.resize_token_embeddings(rows_of(pool.base.config), mean_resizing=False)
    find = finder(model)
    with torch.no_grad():
        for name in moved:
            if (place := find(name)) is not None:
                place.write(pool.base.tensor(name))
    model.eval().requires_grad_(False)
    return _moved(model, device) if several is None else dispatch(model, several)


def input_device(model: Any) -> torch.device:
    """Where a model's inputs belong: the device of its input embeddings, or of its first parameter."""
    embeddings = input_embeddings(model)
    first = next(embeddings.parameters(), None) if isinstance(embeddings, torch.nn.Module) else None
    found: torch.device = (next(model.parameters()) if first is None else first).device
    return found


def _moved(model: Any, device: Any) -> Any:
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise PoolError(
            f"the model cannot be moved to {str(device)!r}: {first_line(error)}; see executor.device"
        ) from error


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


def targets(pool: Pool, model: Any) -> dict[str, Place]:
    """Merged tensor name -> where the model keeps it. Raises PoolError where it keeps no such tensor."""
    find = finder(model)
    found: dict[str, Place] = {}
    taken: dict[int, str] = {}
    for info in pool.merged:
        name = info.name
        place = find(name)
        if place is None or place.shape != info.shape:
            kept = "no parameter" if place is None else f"a parameter of shape {place.shape}"
            raise PoolError(
                f"base: transformers loads {type(model).__name__} with {kept} for tensor {name!r} {info.shape}: "
                "it converts this layout; list it under models.exclude, or save the model with save_pretrained()"
            )
        for part in place.parts if info.numel else ():
            if (other := taken.setdefault(part.view.data_ptr(), name)) != name:
                raise PoolError(
                    f"base: {other!r} and {name!r} are tied in the model but stored twice with different values; "
                    "list one of them under models.exclude"
                )
        found[name] = place
    _verify(pool, found)
    return found


def copied_targets(pool: Pool, model: Any) -> dict[str, Place]:
    """Name -> where the model keeps it, of the float tensors that merges take from the base."""
    find = finder(model)
    places = {info.name: (info, find(info.name)) for info in pool.copied if info.dtype.is_floating_point}
    return {name: place for name, (info, place) in places.items() if place is not None and place.shape == info.shape}


def _verify(pool: Pool, targets: dict[str, Place]) -> None:
    """The model was loaded from the base: each target must hold the base's values, or names lead astray."""
    for name, place in targets.items():
        wanted, held = pool.base.tensor(name), place.read()
        if not torch.equal(held.cpu(), wanted.to(held.dtype)) and bool(torch.isfinite(wanted).all()):
            raise PoolError(
                f"base: transformers changes the values of tensor {name!r} while loading; list it under models.exclude"
            )
