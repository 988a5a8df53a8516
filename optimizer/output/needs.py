"""How is what a job needs told in a terminal? Each finding a row, and warnings after them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optimizer.jobs.needs import gb
from optimizer.jobs.paper import rows_of
from optimizer.output.progress import duration
from optimizer.rungs.whole import LEAST

FURTHER_SHOWN = 12  # coordinates of options and methods


def print_check(found: dict[str, Any]) -> None:
    """The findings as a table."""
    steps = f" and {found['gradients']} gradients" if found["gradients"] else ""
    once, unseen = found["candidate_seconds"], found["heldout_seconds"]
    rows = {
        "job": f"{found['name']}: valid",
        "pool": f"{len(found['experts'])} experts of {_millions(found['parameters'])} parameters, "
        f"{gb(found['pool_bytes'])} on disk in all",
        "dimension": f"{found['coefficients']} coefficients in {found['groups']} groups"
        + _and_further(found["further"]),
        "objectives": ", ".join(found["objectives"]),
        **({"constraints": ", ".join(found["constraints"])} if found["constraints"] else {}),
        "items": ", ".join(f"{name} {_counts(n)}" for name, n in found["items"].items()),
        **({"split": "\n".join(found["provenance"])} if found["provenance"] else {}),
        "memory": f"{gb(found['worker_private_bytes'])} private in each of {found['workers']} workers, beside the "
        f"shared pool (measured); {gb(found['available_bytes'])} free here",
        **rows_of(found["paper"]),
        "read from": "\n".join(found["reads"].values()),
        **({"layers": "\n".join(found["layers"])} if len(found["layers"]) > 1 else {}),
        "one candidate": f"{once:.3g} s, and {unseen:.3g} s on held-out items (measured on one)",
        "search": f"{found['evaluations']} candidates ({found['anchors']} of them anchors){steps}: "
        f"about {duration(found['search_seconds'])}{' at most' if found['ends_by_itself'] else ''}",
        **({"fidelity": _fidelity(found)} if found["rungs"] else {}),  # of time, where paper has items
        **({"references": _references(found["references"])} if found["references"] else {}),
        "kernels": f"compiled just now, in {duration(kernels)}, and kept: later starts do without"
        if (kernels := found["kernels_seconds"])
        else "compiled before, and read from the disk",
        "held-out": f"at most {duration(found['heldout_seconds_at_most'])}, if every candidate were on the front",
    }
    if found["ledger"]:
        rows["ledger"] = found["ledger"]
    if said := _spends(found["spends"]):
        rows["spends"] = said
    if found["taught_bytes"]:
        rows["teachers"] = f"the experts' outputs on items take {gb(found['taught_bytes'])} of the cache"
    for name, adapter in found["adapters"].items():
        ranks = ", ".join(map(str, adapter["ranks"]))
        rows[f"adapter {name}"] = f"rank {ranks}, {gb(adapter['bytes'])}; merged without being made whole"
    if found["gradient_seconds"] is not None:
        rows["one gradient"] = f"{found['gradient_seconds']:.3g} s (measured on one, in one process)"
    short = [f"the budget ends the search before that: {found['reached']}"] if found["reached"] else []
    _print(rows, [*found["warnings"], *short])


def print_paper(found: dict[str, Any]) -> None:
    """What `on_paper` found, as a table."""
    refused = [f"does not fit here: {found['refusal']}"] if found["refusal"] else []
    refused += [f"cannot run here: {why}" for why in found["missing"]]
    _print(rows_on_paper(found), [*refused, *found["warnings"]])


def rows_on_paper(found: dict[str, Any]) -> dict[str, str]:
    """What `on_paper` found, in sentences by what they are of."""
    models = f"base and {len(found['experts'])} experts of {_millions(found['parameters'])} parameters"
    return {"models": models, **rows_of(found), "not checked on paper": "; ".join(found["unchecked"])}


def _print(rows: dict[str, str], warnings: list[str]) -> None:
    table = Table(show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(name, escape(text))
    console = Console()
    console.print(table)
    for warning in warnings:
        console.print(f"warning: {escape(warning)}", style="yellow", highlight=False)


def _fidelity(found: dict[str, Any]) -> str:
    """What rungs save, for people."""
    share = found["usual_share"]
    in_all = f", so with those of the end the search takes about {found['search_share']:.2f} of it" if share < 1 else ""
    takes = f"about {share:.2f} of" if share < 1 else "at most"
    return (
        f"{', '.join(map(str, found['rungs']))} items of each task before all: a candidate takes {takes} the time that "
        f"all items take; anchors are scored on all, and the first candidates until {LEAST} have been{in_all}"
    )


def _references(names: list[str]) -> str:
    """What is scored beside the budget, for people."""
    return f"{', '.join(names)}: scored once as they are, beside the budget, as no anchor is exactly that model"


def _spends(spends: dict[str, float]) -> str:
    """What the search comes to beside its time, where the job says what that is."""
    said = [f"{spends['gpu_hours']:.3g} GPU hours"] if spends["gpu_hours"] else []
    said += [f"{spends['money']:.3g} at budget.price_per_hour"] if spends["money"] else []
    return ", ".join([*said, "held-out scores come on top"]) if said else ""


def _and_further(lines: list[str]) -> str:
    if not lines:
        return ""
    left = len(lines) - FURTHER_SHOWN
    more = [f"and {left} more"] if left > 0 else []
    return f", and {len(lines)} of method and options:\n" + "\n".join([*lines[:FURTHER_SHOWN], *more])


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e8 else f"{count / 1e6:.3g} M"


def _counts(items: dict[str, int]) -> str:
    train = f" + {items['train']} that gradients see" if items["train"] else ""
    return f"{items['calibration']}{train} + {items['heldout']} held out"
