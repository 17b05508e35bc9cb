"""`fracture --help` against importing sae-lens: heavy imports must wait until they are needed.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.timing import interleaved

REPEATS = 5


def main() -> None:
    """Prints the median seconds of both and their ratio."""
    fracture = Path(sys.executable).with_name("fracture")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    seconds = interleaved(
        {
            "help": lambda: run(str(fracture), "--help"),
            "sae_lens": lambda: run(sys.executable, "-c", "import sae_lens"),
        },
        REPEATS,
    )
    ours, theirs = (statistics.median(seconds[name]) for name in ("help", "sae_lens"))
    print(f"fracture --help {ours:.2f} s, import sae_lens {theirs:.2f} s: {ours / theirs:.3f} of its time")


if __name__ == "__main__":
    main()
