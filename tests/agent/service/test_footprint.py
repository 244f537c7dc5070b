"""What the idle agent keeps in memory: no command line, no decoder, no database, no runtime."""

from __future__ import annotations

import json
import subprocess
import sys

from agent.config import Config, Http
from benchmarks import agent_footprint
from tests.agent.process import Service

# What commands, decoding, updates and caches need. The daemon imports each of them when it is used.
NOT_NEEDED = (
    "PIL", "agent.commands.app", "agent.packages.install", "ai_edge_litert", "cryptography",
    "onnxruntime", "paho",
    "pygments", "pydantic", "rich", "sqlite3", "sqlite_utils", "typer", "zstandard",
)  # fmt: skip


def test_the_daemon_imports_nothing_that_it_may_never_use():
    script = "import json, sys, agent.service.daemon; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert {"agent.service.daemon", "agent.http.server", "uvicorn"} <= loaded
    assert sorted(loaded & set(NOT_NEEDED)) == []


def test_the_idle_agent_is_small(tmp_path):
    config = Config(data_dir=str(tmp_path / "data"), http=Http(socket=str(tmp_path / "s")))
    config.root.mkdir(mode=0o700)
    with Service(config) as service:
        memory = agent_footprint.memory(service.process.pid)
        assert 10 < memory.pss_mb <= memory.rss_mb < agent_footprint.IDLE_MB
