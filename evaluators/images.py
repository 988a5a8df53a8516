"""How do images become tensors? Nested numbers are used as they are; files and bytes go through the image processor."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.errors import DataError, OptionError
from evaluators.splits import ItemSet

SAFE = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's EPS reader would run another program
TOGETHER = 64


@dataclass(frozen=True, eq=False)
class Images:
    """The image column of the used rows: arrays float32 `(C, H, W)`, or files and bytes that are yet to be read."""

    kind: Literal["numbers", "pictures"]
    cells: dict[int, Any]  # by row
    files: tuple[Path, ...]


def read_images(items: ItemSet, column: str) -> Images:
    """Check and gather the image column; raises `DataError` naming the row whose cell is no image, or unlike others."""
    rows, cells, files = items.rows, {}, []
    kinds: dict[str, int] = {}
    for row in items.used:
        value = rows[row][column]
        if isinstance(value, dict) and {"bytes", "path"} & set(value):  # how `datasets` stores images
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str):
            value = items.locate(row)[0].folder / value
            if not value.is_file():
                raise DataError(f"{items.where(row, column)}: no such image file: {value}; correct the path")
            files.append(value)
        elif not isinstance(value, bytes):
            value = _array(items.where(row, column), value)
        kinds.setdefault("numbers" if isinstance(value, np.ndarray) else "pictures", row)
        cells[row] = rows[row][column] = value  # nested lists take eight times the memory: let them go
        if len(kinds) > 1:
            raise DataError(
                f"{items.where(row, column)}: expected {next(iter(kinds))} as in the rows before; use one kind"
            )
    kind: Literal["numbers", "pictures"] = "numbers" if "numbers" in kinds else "pictures"
    first = next(iter(cells.values()))
    for row, value in cells.items():
        if kind == "numbers" and value.shape != first.shape:
            raise DataError(
                f"{items.where(row, column)}: expected an image of shape {first.shape} as in the rows before, got "
                f"{value.shape}; resize it"
            )
    return Images(kind, cells, tuple(files))


def _array(where: str, value: Any) -> NDArray[np.float32]:
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected an image (nested numbers, a path, bytes), {error}; correct the cell"
        ) from None
    if array.ndim not in (2, 3) or array.size == 0:
        raise DataError(f"{where}: expected an image of shape (H, W) or (C, H, W), got {array.shape}; correct the cell")
    if not np.isfinite(array).all():
        raise DataError(f"{where}: expected finite pixel values, got NaN or infinity; correct the cell")
    return array[None] if array.ndim == 2 else array


def standardise(
    images: Images, rows: Sequence[int], scale: float, mean: float | list[float], std: float | list[float]
) -> Tensor:
    """`(x * scale - mean) / std` of these rows, float32 `(b, C, H, W)`; mean and std one number, or one per channel."""
    pixels = np.stack([images.cells[row] for row in rows])
    shape = (1, -1, 1, 1)
    shift, spread = (np.asarray(value, dtype=np.float32).reshape(shape) for value in (mean, std))
    return torch.from_numpy((pixels * np.float32(scale) - shift) / spread)


def check_channels(
    name: str, images: Images, config: Any, mean: float | Sequence[float], std: float | Sequence[float]
) -> None:
    """Raise an error where images given as numbers, or options of evaluator `name`, have other channels than a model.

    `DataError` for the images, `OptionError` for `mean` and `std`.
    """
    channels = next(iter(images.cells.values())).shape[0]
    wanted = getattr(config, "num_channels", channels)
    if channels != wanted:
        raise DataError(
            f"evaluator {name!r}: images have {channels} channels, the model reads {wanted}; convert the images"
        )
    for key, given in (("mean", mean), ("std", std)):
        if not isinstance(given, float) and len(given) not in (1, channels):
            raise OptionError(
                f"evaluator {name!r}: option {key!r} has {len(given)} numbers for {channels} channels; "
                "give one a channel"
            )


def load_processor(folder: Path) -> Any:
    """The image processor in a model's folder; raises `OptionError` where there is none."""
    from transformers import AutoImageProcessor

    try:
        # Pillow and not torchvision, whose resizing gives other bits: a score must not depend on what is installed.
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise OptionError(
            f"{folder}: images are files, so an image processor (preprocessor_config.json) is needed beside the base "
            f"model ({error}); save one there, or give the images as nested numbers"
        ) from error


def process(images: Images, items: ItemSet, column: str, processor: Any) -> dict[int, Tensor]:
    """Pixel values float32 `(C, H, W)` of every row, by the base model's own image processor."""
    done: dict[int, Tensor] = {}
    rows = list(images.cells)
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        pictures = list(_open(images, items, column, part))
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        done.update(zip(part, pixels.float(), strict=True))
    return done


def _open(images: Images, items: ItemSet, column: str, rows: Sequence[int]) -> Iterator[Any]:
    from PIL import Image

    for row in rows:
        cell = images.cells[row]
        try:
            with Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell, formats=SAFE) as picture:
                yield picture.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{items.where(row, column)}: not a readable image ({error}); expected one of {', '.join(SAFE)}"
            ) from error
