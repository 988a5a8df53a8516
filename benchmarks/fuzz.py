"""Do the doors hold against bytes that learn from coverage? Atheris over tests/doors.py, bounded by seconds.

    pip install atheris                                     # beside the project: no other part needs it
    python benchmarks/fuzz.py --door job --seconds 60       # one door a process; see --help for their names

Each input is taken or refused in the project's own words; anything else ends the run with the input's file. Seeds are
what a door takes. Prints executions and seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris
import torch  # noqa: F401  large libraries are imported before the instrumenting, which looks at each module
import transformers  # noqa: F401

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["optimizer", "searchspaces", "evaluators"]):
    import doors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--door", choices=sorted(doors.DOORS), required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="A folder that keeps what was found interesting.")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        corpus = chosen.corpus or Path(place) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / "seed").write_bytes(doors.DOORS[chosen.door][1])
        inside = Path(place) / "run"
        inside.mkdir()
        doors.knock(chosen.door, inside, doors.DOORS[chosen.door][1])  # what is imported lazily is imported now
        # libFuzzer writes an input that broke something into the present folder
        flags = [f"-max_total_time={chosen.seconds}", "-max_len=4096", "-timeout=30", "-print_final_stats=1"]
        atheris.Setup(
            [sys.argv[0], *flags, os.fspath(corpus)], lambda data: doors.knock(chosen.door, inside, data) and None
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
