"""What is set aside for one worker, and which machines could hold it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Share:
    """One worker's part of a machine. A worker is one process, so all of it lies on one machine: two GPUs of two
    machines hold no worker of two GPUs.

    `memory` is in bytes; 0 sets none aside. What is set aside is counted, not enforced: it keeps further workers away.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    @property
    def wants(self) -> dict[str, float]:
        """By Ray's names of resources, without those that are not asked for."""
        return {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus), ("memory", float(self.memory))) if v > 0}

    def held_by(self, machine: Mapping[str, float]) -> int:
        """How many such workers a machine with these resources could hold, if it were idle."""
        return int(min((machine.get(kind, 0.0) + 1e-9) // each for kind, each in self.wants.items()))

    def __str__(self) -> str:
        return said(self.wants)


def said(resources: Mapping[str, float]) -> str:
    """Resources for people: 4 CPU, 0.5 GPU, 16 GB of memory."""
    parts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / GB:.3g} GB of memory")
    return ", ".join(parts) or "nothing"


def shortage(share: Share, workers: int, machines: Sequence[Mapping[str, float]]) -> str | None:
    """What keeps that many workers from being placed at once on idle machines; None where nothing does."""
    holds = [share.held_by(machine) for machine in machines]
    if sum(holds) >= workers:
        return None
    there = "; ".join(said(machine) for machine in machines[:8]) + (" …" if len(machines) > 8 else "")
    many = f"{len(machines)} machines ({there})" if len(machines) > 1 else f"the machine there is ({there})"
    return f"{workers} workers of {share} each are wanted, and {many} can hold {sum(holds)}"
