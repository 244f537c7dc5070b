"""The agent's settings: one TOML file -> one frozen Config. Defaults stand here and nowhere else.

    load(path) -> Config          unknown keys are refused with the nearest known one
    write_default(path, data_dir) the file that `edge-agent init` makes, every key explained
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Http(_Part, frozen=True, kw_only=True):
    """Where the Open Inference Protocol is served."""

    enabled: bool = True
    host: Annotated[str, Meta(description="other machines reach it only if this is changed")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="0: any free port")] = 8000
    socket: Annotated[str, Meta(description="a unix socket instead of host and port")] = ""
    max_body_mb: Annotated[Positive, Meta(description="larger requests are refused")] = 64.0
    max_connections: Annotated[Count, Meta(description="further ones get 503")] = 128


class Serve(_Part, frozen=True, kw_only=True):
    """Limits of one model's requests; [models.NAME] overrides them."""

    queue: Annotated[Count, Meta(description="waiting requests; more are refused with 429")] = 64
    deadline_ms: Annotated[Positive, Meta(description="of a request that names none")] = 10_000.0
    instances: Annotated[Count, Meta(le=64, description="copies that run side by side")] = 1
    threads: Annotated[
        int, Meta(ge=0, le=256, description="of one inference; 0: what the installation measured")
    ] = 0
    cache: Annotated[bool, Meta(description="remember answers")] = False
    batching: Annotated[bool, Meta(description="where the installation saw that it pays")] = True
    max_batch_size: Annotated[Count, Meta(le=1024)] = 8
    min_batch_size: Annotated[Count, Meta(description="a smaller batch waits max_wait_ms")] = 1
    max_wait_ms: Annotated[float, Meta(ge=0)] = 2.0


class Cache(_Part, frozen=True, kw_only=True):
    """Bounds of each cache."""

    max_mb: Annotated[Positive, Meta(description="of each cache's file, 10^6 bytes")] = 64.0
    ttl_hours: Annotated[Positive, Meta(description="older answers are stale")] = 168.0
    audit_share: Annotated[
        float, Meta(ge=0, le=1, description="of near-duplicate hits that are computed after all")
    ] = 0.05


class Install(_Part, frozen=True, kw_only=True):
    """What an installation may cost."""

    cpu_share: Annotated[Share, Meta(description="share of the cores that one model may use")] = 1.0
    tune_s: Annotated[Positive, Meta(description="longest measurement of threads and batches")] = (
        20.0
    )
    self_test_s: Annotated[Positive, Meta(description="longest replay of the golden vectors")] = (
        300.0
    )


class Crash(_Part, frozen=True, kw_only=True):
    """When a model that brings the agent down is taken back."""

    max_crashes: Count = 3
    window_s: Positive = 600.0


class Config(_Part, frozen=True, kw_only=True):
    """All settings."""

    data_dir: str = "/var/lib/edge-agent"
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    http: Http = Http()
    serve: Serve = Serve()
    cache: Cache = Cache()
    install: Install = Install()
    crash: Crash = Crash()
    models: dict[str, Serve] = {}  # name -> [serve] with the model's own values on top

    @property
    def root(self) -> Path:
        """The data directory."""
        return Path(self.data_dir)

    def of(self, model: str) -> Serve:
        """The limits of one model."""
        return self.models.get(model, self.serve)
