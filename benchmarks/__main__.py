"""Every benchmark, one after the other; exit code 2 if one misses a figure it is held to.

python -m benchmarks
"""

from __future__ import annotations

import subprocess
import sys

# ort_facts is not among them: it rewrites a data file.
ALL = ("convert_vs_peers", "accuracy", "build_overhead", "devset")


def main() -> int:
    worst = 0
    for name in ALL:
        print(f"\n== benchmarks.{name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
