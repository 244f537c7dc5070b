"""The `edge` command: this module assembles the groups; each has a module of its own.

Results on stdout, progress and errors on stderr. Exit codes: 0 pass, 1 error, 2 a gate failed,
130 interrupted.
"""

from __future__ import annotations

from edge_core import console
from edge_sdk.commands import build, doctor, package, profiles

app = console.new_app("One model and a device profile in, a measured and verified package out.")
for group in (build, package, doctor):
    app.add_typer(group.app)
app.add_typer(profiles.app, name="profiles")


def main() -> None:
    """Entry point."""
    console.main(app, "edge")


if __name__ == "__main__":
    main()
