"""Every benchmark, one after the other; exit code 2 if one misses a figure it is held to.

python -m benchmarks
"""

from __future__ import annotations

import subprocess
import sys

# Two are not among them: ort_facts rewrites a data file, agent_soak takes half an hour.
ALL = (
    "convert_vs_peers", "accuracy", "build_overhead", "devset", "agent_overhead", "agent_batching",
    "agent_pipeline", "agent_swap", "agent_caches", "near_duplicates", "agent_footprint",
    "agent_kills", "http_servers",
)  # fmt: skip


def main() -> int:
    worst = 0
    for name in ALL:
        print(f"\n== benchmarks.{name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
