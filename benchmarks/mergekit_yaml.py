"""What does mergekit 0.1.5 make of each YAML of a folder? To be run by a Python that has it, not by ours.

    python benchmarks/mergekit_said.py --mergekit /tmp/mergekit/bin/python

`mergekit-yaml`, on the CPU, of every `NAME.yaml`: the model goes to `NAME/`, what it says instead of merging to
`NAME.txt`.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch
from mergekit.scripts.run_yaml import main as mergekit_yaml


def main() -> None:
    """One process for all: mergekit takes much longer to be imported than to merge models as small as these."""
    torch.set_num_threads(1)
    for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
        try:
            mergekit_yaml([str(path), str(path.with_suffix("")), "--quiet"], standalone_mode=False)
        except Exception:
            path.with_suffix(".txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main()
