"""What does the doctor say of one thing? Whether it is well, what was seen, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rich.markup import escape

from optimizer.output.terminal import Terminal

State: TypeAlias = Literal["well", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `warning` may cost time or room; `wrong` stops or endangers a run."""

    about: str
    state: State
    said: str
    mend: str = ""

    @classmethod
    def of(cls, about: str, well: bool, said: str, mend: str, otherwise: State = "wrong") -> Finding:
        """A finding whose `mend` is only said where it is not well."""
        return cls(about, "well" if well else otherwise, said, "" if well else mend)


COLOURS = {"well": "green", "warning": "yellow", "wrong": "red"}


def print_findings(findings: list[Finding]) -> None:
    """One line each, and below it how to mend what is not well."""
    console = Terminal()
    for f in findings:
        console.print(
            f"[{COLOURS[f.state]}]{f.state:<8}[/] {escape(f'{f.about}: {f.said}')}", highlight=False, soft_wrap=True
        )
        if f.mend:
            console.print(f"         {escape(f.mend)}", highlight=False, soft_wrap=True)
