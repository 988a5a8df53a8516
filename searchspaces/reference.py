"""What is one merged tensor, in plain torch? What the kernel must match, and the path for other devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CHUNK = 1 << 18  # elements: fp32 copies of a chunk stay small whatever the tensor


def merge(
    out: torch.Tensor,
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    base_scale: float,
    scales: Sequence[float],
) -> bool:
    """Write `base_scale * base + sum_k scales_k * (expert_k - base)` into `out`; says whether all of it is finite.

    All tensors are 1-D of equal length, of any floating dtype, base and experts on any device; sums are fp32 in the
    order of the experts, and rounded to out's dtype once. An expert whose scale is exactly 0 is not read.
    """
    finite = True
    active = [(e, s) for e, s in zip(experts, scales, strict=True) if s != 0.0]
    for at in range(0, len(out), CHUNK):
        part = slice(at, at + CHUNK)
        wide = base[part].to(out.device, torch.float32)
        total = wide * base_scale
        for expert, scale in active:
            # no addcmul or alpha=: those fuse multiply and add where the processor can, and round differently
            total += (expert[part].to(out.device, torch.float32) - wide) * scale
        out[part] = total.to(out.dtype)
        finite = finite and bool(torch.isfinite(out[part]).all())
    return finite
