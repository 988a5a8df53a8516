"""How is one model laid over several devices? By accelerate, which brings activations to where the next layer lives."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch

from searchspaces.errors import PoolError, first_line
from searchspaces.models.architecture import skeleton

Where: TypeAlias = str | torch.device | Mapping[str, str | int]
"""One device, `auto` (over all that there are, by their free memory), or module -> device as for `from_pretrained`."""


def map_of(where: Where, folder: Path) -> str | dict[str, str | int] | None:
    """What `from_pretrained(device_map=...)` takes; None for one device, which needs none of this.

    Raises PoolError where accelerate is missing, for modules that a folder's model does not have, and for parameters
    that no module of the map holds.
    """
    if where != "auto" and not isinstance(where, Mapping):
        return None
    if find_spec("accelerate") is None:
        raise PoolError(
            f"executor.device: {where if isinstance(where, str) else 'a map'} lays the model over several devices, "
            "which takes accelerate; pip install 'mergeopt[devices]', or name one device"
        )
    if not isinstance(where, Mapping):
        return "auto"
    model = skeleton(folder)
    known = {name for name, _ in model.named_modules()}
    for name in where:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0) or [""]
            raise PoolError(f"executor.device: the model has no module {name!r}; the nearest is {near[0]!r}")
    for name, _ in model.named_parameters():
        if not any(not module or name.startswith(f"{module}.") for module in where):
            raise PoolError(
                f"executor.device gives no device for {name!r}; name its module, or '' for all that is not named"
            )
    return dict(where)


def dispatch(model: Any, devices: str | dict[str, str | int]) -> Any:
    """Lay a model that is on the CPU over devices. Raises PoolError where they do not hold it."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = model._no_split_modules
    try:
        if isinstance(devices, str):
            room = get_balanced_memory(model, no_split_module_classes=whole)
            devices = dict(infer_auto_device_map(model, room, no_split_module_classes=whole))
        laid = dispatch_model(model, devices, skip_keys=model._skip_keys_device_placement)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise PoolError(f"the model cannot be laid over {devices}: {first_line(error)}; see executor.device") from error
    return settled(laid)


def settled(model: Any) -> Any:
    """A model that was laid over devices, for whoever uses it in parts.

    What the trunk and the output layer give comes back to where their input was: evaluators call the two by themselves,
    and hold their targets there. Raises PoolError naming a parameter that is kept off every device, where no merge
    reaches it.
    """
    _refuse_offloaded(model)
    if getattr(model, "_hf_hook", None) is None:  # it lies on one device after all
        return model
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for part in (model.base_model, model.get_output_embeddings()):
        if part is None or part is model:
            continue
        hook = getattr(part, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook):
            hook.io_same_device = True
        else:
            first = next(part.parameters()).device
            skipped = model._skip_keys_device_placement
            add_hook_to_module(part, AlignDevicesHook(first, io_same_device=True, skip_keys=skipped), append=True)
    return model


def _refuse_offloaded(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise PoolError(
                f"executor.device: {name!r} was left to the CPU or the disk, to be fetched at each forward pass, where "
                "no merge reaches it; give the worker more devices, or models.dtype: bfloat16, or device: cpu"
            )
