"""How is YAML written that reads back as it was? In order, on long lines, and with odd line breaks escaped."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

BREAKS = frozenset("\x85\u2028\u2029")
"""Line breaks to YAML, beside the usual ones: read as a space where they are not escaped."""


def to_yaml(document: Mapping[str, Any]) -> str:
    """Plain values as YAML 1.2, in the order of the document."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Escaping(SafeRepresenter):
        pass

    Escaping.add_representer(str, _text)
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = Escaping
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100_000  # a long name stays on its line
    out = io.StringIO()
    yaml.dump(dict(document), out)
    return out.getvalue()


def _text(representer: Any, text: str) -> Any:
    style = '"' if BREAKS & set(text) else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)
