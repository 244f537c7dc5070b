"""The `edge-agent` command on a device: this module assembles the groups; each has its own module.

Results on stdout, progress and errors on stderr. Exit codes: 0 pass, 1 error, 2 a gate failed,
130 interrupted.
"""

from __future__ import annotations

from agent.commands import caches, device, models, service
from edge_core import console

app = console.new_app("Installs packages on this device and serves them, offline.")
for group in (service, models, device):
    app.add_typer(group.app)
app.add_typer(caches.app, name="cache")


def main() -> None:
    """Entry point."""
    console.main(app, "edge-agent")


if __name__ == "__main__":
    main()
