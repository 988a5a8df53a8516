"""Which entries are drawn? Hashes of a key and a place: the same in any order, process and worker."""

from __future__ import annotations

import hashlib
import json

import torch

UNIT = 1 << 24
"""Draws are whole numbers below it, which fp32 holds exactly; shares of entries are compared with them times it."""

FIRST, SECOND, THIRD = 0xED5AD4BB, 0xAC4C1B51, 0x31848BAB
"""Multipliers of the hash that draws: Wellons' triple32, its last shift left out, which the upper 24 bits hardly see.

The key comes in after the first round, which is so the same for all experts. With two rounds in all, entries that are a
power of two apart were visibly dependent; with one round behind the key, pairs of experts were.
"""

WORD = 0xFFFFFFFF


def key_of(*said: int | str) -> int:
    """A key, 32 bits: the first of the sha256 of what is said, numbers and names."""
    return int.from_bytes(hashlib.sha256(json.dumps(said).encode()).digest()[:4], "little")


def draws(key: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
    """The whole numbers in [0, UNIT) that a key draws for places `start` to `stop`, float32, as the kernels'.

    An entry stays where its draw is below p times UNIT. A hash of place and key: each key is another
    permutation of the places' words, and the same whatever else is drawn.
    """
    place = torch.arange(start, stop, device=device)
    high, last = start >> 32, (stop - 1) >> 32
    if high != last and stop > start:
        edge = last << 32
        return torch.cat([draws(key, start, edge, device), draws(key, edge, stop, device)])
    return draws_at(key, place, high)


def draws_at(key: int, places: torch.Tensor, upper: int) -> torch.Tensor:
    """The same of some places, int64, all of whose upper 32 bits are `upper`."""
    # the key comes in after a round of the place alone
    x = (places & WORD) ^ _mixed((upper + 0x9E3779B9) & WORD)
    x = _times(x ^ (x >> 17), FIRST)
    x = _times(x ^ (x >> 11) ^ _mixed(key & WORD), SECOND)
    return (_times(x ^ (x >> 15), THIRD) >> 8).to(torch.float32)


def _times(x: torch.Tensor, by: int) -> torch.Tensor:
    """The lower 32 bits of a product. Less 2 ** 32, a multiplier has the same, and 64 bits do not overflow."""
    return (x * (by - (1 << 32) if by >> 31 else by)) & WORD


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 17)) * FIRST) & WORD
    x = ((x ^ (x >> 11)) * SECOND) & WORD
    x = ((x ^ (x >> 15)) * THIRD) & WORD
    return x ^ (x >> 14)
