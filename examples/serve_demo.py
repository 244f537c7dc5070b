"""The second half of the demo: the packages that suit this machine, installed and served.

    serve(out, packages, photo) -> exit code        packages: by profile

Every step is a command that a person would type; what it prints is printed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from edge_core import console
from edge_core.machine import detect

# Which of the demo's profiles has this processor; a package for another one is refused.
PROFILES = {"x86_64": "x86-gateway-n100", "aarch64": "raspberry-pi-5"}
START_S = 30.0


def serve(out: Path, packages: Mapping[str, tuple[Path, ...]], photo: Path) -> int:
    """Install this machine's packages below ``out``, run the agent, ask it; the exit code."""
    profile = PROFILES.get(detect.detect_platform().arch, "")
    if not packages.get(profile):
        console.stdout().print("no profile of the demo has this machine's processor")
        return 0
    home = out / "agent"
    shutil.rmtree(home, ignore_errors=True)
    settings = str(home / "config.toml")
    edge_agent("init", "--data-dir", str(home / "data"), config=settings)
    text = Path(settings).read_text("utf-8")
    # Any free port: 8000 may be taken.
    Path(settings).write_text(text.replace("port = 8000", "port = 0"), "utf-8")
    for package in packages[profile]:
        edge_agent("install", str(package), config=settings)
    show_command("run", "&")
    with subprocess.Popen([*AGENT, "run", "--config", settings]) as agent:
        try:
            wait(settings)
            edge_agent("infer", "efficientnet-lite0", str(photo), config=settings)
            edge_agent("status", config=settings)
        finally:
            agent.terminate()
    return agent.returncode


AGENT = (sys.executable, "-m", "agent")


def edge_agent(*arguments: str, config: str) -> None:
    """Run one command, show it and what it prints; raises CalledProcessError."""
    show_command(*arguments)
    subprocess.run([*AGENT, *arguments, "--config", config], check=True)


def wait(config: str) -> None:
    """Until the agent answers."""
    deadline = time.monotonic() + START_S
    command = [*AGENT, "status", "--json", "--config", config]
    while not json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["agent"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the agent does not answer after {START_S:g} s")
        time.sleep(0.2)


def show_command(*arguments: str) -> None:
    """Show a command as a person would type it."""
    print(f"\n$ edge-agent {' '.join(arguments)}", flush=True)
