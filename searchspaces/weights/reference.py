"""What is one merged tensor, and its derivative, in plain torch? What the kernels must match, for other dtypes too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

CHUNK = 1 << 18  # elements: fp32 copies of a chunk stay small whatever the tensor


def merge(
    out: torch.Tensor,
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    base_scale: float,
    scales: Sequence[float],
    difference: torch.Tensor | None = None,
    differ: Sequence[bool] = (),
) -> bool:
    """Write `base_scale * base + sum_k scales_k * (expert_k - base) + difference` to `out`; says whether it is finite.

    All tensors are 1-D of equal length, of any floating dtype, base and experts on any device, `difference` float32 on
    out's; sums are fp32 in the order of the experts, and rounded to out's dtype once. An expert whose scale is exactly
    0 is not read; those that `differ` are differences from the base already.
    """
    finite = True
    apart = differ or (False,) * len(experts)
    active = [(e, s, d) for e, s, d in zip(experts, scales, apart, strict=True) if s != 0.0]
    for at in range(0, len(out), CHUNK):
        part = slice(at, at + CHUNK)
        wide = base[part].to(out.device, torch.float32)
        total = wide * base_scale
        for expert, scale, apart_already in active:
            found = expert[part].to(out.device, torch.float32)
            # no addcmul or alpha=: those fuse multiply and add where the processor can, and round differently
            total += (found if apart_already else found - wide) * scale
        if difference is not None:
            total += difference[part]
        out[part] = total.to(out.dtype)
        finite = finite and bool(torch.isfinite(out[part]).all())
    return finite


def products(
    grad: torch.Tensor, base: torch.Tensor, experts: Sequence[torch.Tensor], differ: Sequence[bool] = ()
) -> list[float]:
    """`<grad, expert_k - base>` for each k, then `<grad, base>` and `<grad, grad>`.

    1-D tensors of equal length, of any floating dtype, base and experts on any device; products are fp32, their sums
    float64. Experts that `differ` are differences from the base already.
    """
    apart = differ or (False,) * len(experts)
    out = [0.0] * (len(experts) + 2)
    for at in range(0, len(grad), CHUNK):
        part = slice(at, at + CHUNK)
        slope = grad[part].float()
        wide = base[part].to(grad.device, torch.float32)
        for k, expert in enumerate(experts):
            found = expert[part].to(grad.device, torch.float32)
            out[k] += float((slope * (found if apart[k] else found - wide)).sum(dtype=torch.float64))
        out[-2] += float((slope * wide).sum(dtype=torch.float64))
        out[-1] += float((slope * slope).sum(dtype=torch.float64))
    return out


def multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """`out = left @ right`, float32 on one device; the order of its sums is the device's library's."""
    torch.matmul(left, right, out=out)


def size(expert: torch.Tensor, base: torch.Tensor | None) -> float:
    """`sum |expert - base|` of two 1-D tensors, the differences fp32, their sum float64; no base: `sum |expert|`."""
    total = 0.0
    for at in range(0, len(expert), CHUNK):
        part = slice(at, at + CHUNK)
        found = expert[part].float()
        total += float((found if base is None else found - base[part].float()).abs().sum(dtype=torch.float64))
    return total


def norm(tensor: torch.Tensor, base: torch.Tensor | None = None) -> float:
    """The Euclidean norm of a 1-D tensor, added to a base if given; squares fp32, their sum float64."""
    total = 0.0
    for at in range(0, len(tensor), CHUNK):
        part = slice(at, at + CHUNK)
        found = tensor[part].float()
        total += float((found if base is None else found + base[part].float()).square().sum(dtype=torch.float64))
    return math.sqrt(total)
