"""Run single scenarios with both libraries and print where they differ.

    python -m tests.parity.diff [--self] SCENARIO …

`--self` compares transformers with itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .compare import differences
from .harness import Pair


def main() -> int:
    """Print the differences of each named scenario; the number of scenarios that differ."""
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    second = "transformers" if "--self" in sys.argv else "onward"
    differing = 0
    with tempfile.TemporaryDirectory() as folder, Pair(Path(folder), names, second=second) as pair:
        for name in names or pair.names:
            theirs, ours = pair.records(name)
            errors = [
                f"{side}: {record['error']}"
                for side, record in zip(pair.libraries, (theirs, ours), strict=True)
                if "error" in record
            ]
            lines = errors or differences(theirs, ours)
            differing += bool(lines)
            print(f"{name}: {'equal' if not lines else 'DIFFERENT'}", *lines[:25], sep="\n    ", flush=True)
            if "--show" in sys.argv:
                print(json.dumps(theirs, indent=1))
    return differing


if __name__ == "__main__":
    sys.exit(main())
