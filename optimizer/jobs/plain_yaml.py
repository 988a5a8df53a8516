"""What does a YAML file say? Values as YAML 1.2 means them; what no job needs of YAML is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from optimizer.errors import JobError
from optimizer.wording import shown
from searchspaces.errors import first_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 50  # of values inside values


def read_yaml(path: Path) -> Any:
    """YAML 1.2 values (`1e-3` is a number, `no` a string). Aliases, duplicate keys and files over 1 MB are refused."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise JobError(f"{path}: {path.stat().st_size} bytes; a job file has at most {MAX_BYTES}")
        decoded = text.decode()
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(decoded):
            if isinstance(event, AliasEvent):
                raise JobError(f"{path}: YAML aliases (*{event.anchor}) are refused; write the values out")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise JobError(f"{path}: values inside values over {MAX_DEPTH} deep; a job has a handful of levels")
        return YAML(typ="safe", pure=True).load(decoded)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise JobError(f"{path}{line}: not valid YAML: {problem}") from error
    except JobError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # how a tag's constructor says what is no value
        raise JobError(f"{path}: a value is none of its kind: {shown(str(error), 200)}; write it plainly") from error
