"""The agent's settings: one TOML file -> one frozen Config. Defaults live here and nowhere else.

find_config(path) -> Path       --config, EDGE_AGENT_CONFIG, the system's file, the user's
load_config(path) -> Config     unknown keys are refused; the hint is the nearest known one
write_default(path, data_dir)   the file that `edge-agent init` writes, every key explained
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomli_w
from msgspec import Meta
from msgspec import inspect as mi

from edge_core import toml_schema
from edge_core.errors import InputError
from edge_core.files import storage_error, write_atomic

ENVIRONMENT = "EDGE_AGENT_CONFIG"
SYSTEM = Path("/etc/edge-agent/config.toml")
MAX_BYTES = 256 * 1024

Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Http(_Part, frozen=True, kw_only=True):
    """Where the Open Inference Protocol is served."""

    enabled: Annotated[bool, Meta(description="false: only in-process calls")] = True
    host: Annotated[str, Meta(description="reachable only from this machine unless changed")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="0: any free port")] = 8000
    socket: Annotated[str, Meta(description="a Unix socket instead of host and port")] = ""
    max_body_mb: Annotated[Positive, Meta(description="larger requests are refused")] = 64.0
    max_connections: Annotated[Count, Meta(description="additional ones get 503")] = 128


class Serve(_Part, frozen=True, kw_only=True):
    """Limits of one model's requests; [models.NAME] overrides them."""

    queue: Annotated[Count, Meta(description="waiting requests; more are refused with 429")] = 64
    deadline_ms: Annotated[Positive, Meta(description="for requests without one of their own")] = (
        10_000.0
    )
    instances: Annotated[Count, Meta(le=64, description="copies that run in parallel")] = 1
    threads: Annotated[
        int, Meta(ge=0, le=256, description="per inference; 0: as measured at installation")
    ] = 0
    cache: Annotated[bool, Meta(description="reuse stored answers")] = False
    batching: Annotated[bool, Meta(description="where it was faster at installation")] = True
    max_batch_size: Annotated[Count, Meta(le=1024, description="requests per inference")] = 8
    min_batch_size: Annotated[
        Count, Meta(description="a smaller batch waits up to max_wait_ms")
    ] = 1
    max_image_mpixels: Annotated[
        Positive,
        Meta(description="larger images are refused; an image takes at least 3 bytes per pixel"),
    ] = 16.0
    max_wait_ms: Annotated[
        float, Meta(ge=0, description="how long a batch waits for more requests")
    ] = 2.0


class Cache(_Part, frozen=True, kw_only=True):
    """Bounds of each cache."""

    max_mb: Annotated[float, Meta(ge=4, description="size of each cache's file, 10^6 bytes")] = 64.0
    ttl_hours: Annotated[Positive, Meta(description="older answers are stale")] = 168.0
    audit_share: Annotated[
        float,
        Meta(ge=0, le=1, description="share of near-duplicate hits that are computed after all"),
    ] = 0.05


class Install(_Part, frozen=True, kw_only=True):
    """Limits of an installation."""

    cpu_share: Annotated[Share, Meta(description="share of the cores for one model")] = 1.0
    tune_s: Annotated[
        Positive, Meta(description="time limit for measuring threads and batches")
    ] = 20.0
    self_test_s: Annotated[
        Positive, Meta(description="time limit for replaying the golden vectors")
    ] = 300.0


class Crash(_Part, frozen=True, kw_only=True):
    """When a model that crashes the agent is rolled back."""

    max_crashes: Annotated[Count, Meta(description="within window_s, before the rollback")] = 3
    window_s: Annotated[Positive, Meta(description="older crashes are forgotten")] = 600.0
    hang_s: Annotated[Positive, Meta(description="a longer inference counts as hung")] = 120.0


class Config(_Part, frozen=True, kw_only=True):
    """All settings."""

    data_dir: Annotated[
        str, Meta(description="packages, caches, journal; private to its owner")
    ] = "/var/lib/edge-agent"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="less severe events are not logged"),
    ] = "info"
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

    def limits_of(self, model: str) -> Serve:
        """The limits of one model."""
        return self.models.get(model, self.serve)


def find_config(user_path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The settings file in effect; raises InputError if there is none."""
    path = user_path or (Path(environ[ENVIRONMENT]) if environ.get(ENVIRONMENT) else None)
    if path:
        if not path.is_file():
            raise InputError(f"no settings at {path}", hint=f"edge-agent init --config {path}")
        return path
    for path in (SYSTEM, user_config_path()):
        if path.is_file():
            return path
    raise InputError(f"no settings at {SYSTEM} or {user_config_path()}", hint="edge-agent init")


def user_config_path() -> Path:
    """The settings file of a user who does not administer the machine."""
    return Path.home() / ".config" / "edge-agent" / "config.toml"


def load_config(path: Path) -> Config:
    """The settings in ``path``; raises InputError with the file, the key and what is allowed."""
    where = str(path)
    doc = toml_schema.read(path, MAX_BYTES)
    toml_schema.check(doc, Config, where)
    serve = doc.get("serve", {})
    own = {name: {**serve, **table} for name, table in doc.get("models", {}).items()}
    config = toml_schema.build({**doc, "models": own}, Config, where)
    if not config.root.is_absolute():
        raise InputError(f"{where}: data_dir: expected an absolute path, got {config.data_dir!r}")
    return config


def write_default(path: Path, data_dir: Path) -> None:
    """Write every setting with its default, and make ``data_dir``, private to its owner.

    Raises InputError for a file that exists or a data_dir that others may read, and StorageError.
    """
    if path.exists():
        raise InputError(f"{path} exists", hint="edit it, or remove it first")
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(data_dir.stat().st_mode) & 0o077:
            raise InputError(f"{data_dir} is open to others", hint=f"chmod 700 {data_dir}")
    except OSError as e:
        raise storage_error(e, data_dir) from e
    text = default_text(Config(data_dir=str(data_dir.absolute())))
    write_atomic(path, text.encode())


def default_text(config: Config) -> str:
    """``config`` as TOML, every key explained by its description and limits."""
    lines = [
        "# Settings of edge-agent. A missing key has the value shown here.",
        "",
        *_explain(config),
    ]
    for name, part in msgspec.structs.asdict(config).items():
        if isinstance(part, msgspec.Struct):
            lines += [f"# {part.__doc__}", f"[{name}]", *_explain(part)]
    lines += [
        "# Limits of one model: any key of [serve]; missing keys have the values from there.",
        "# [models.NAME]",
        f"# queue = {config.serve.queue}",
        "",
    ]
    return "\n".join(lines)


def _explain(part: msgspec.Struct) -> Iterator[str]:
    kinds = {f.name: f.type for f in mi.type_info(type(part)).fields}  # type: ignore[attr-defined]
    for key, value in msgspec.structs.asdict(part).items():
        if isinstance(value, (msgspec.Struct, dict)):  # a table of its own
            continue
        limits = _range(kinds[key])
        yield f"# {_description(kinds[key])}{f' ({limits})' if limits else ''}"
        yield tomli_w.dumps({key: value}).rstrip()
        yield ""


def _description(kind: mi.Type) -> str:
    """What the field's Meta says; Meta of Meta is nested, the outermost one counts."""
    if not isinstance(kind, mi.Metadata):
        return ""
    return str((kind.extra_json_schema or {}).get("description", "")) or _description(kind.type)


def _range(kind: mi.Type) -> str:
    """The values that a field takes, where only some are allowed."""
    kind = kind.type if isinstance(kind, mi.Metadata) else kind
    if isinstance(kind, mi.LiteralType):
        return ", ".join(map(str, kind.values))
    if not isinstance(kind, (mi.IntType, mi.FloatType)):
        return ""
    if kind.ge is not None and kind.le is not None:
        return f"{kind.ge:g} to {kind.le:g}"
    words = (("more than", kind.gt), ("at least", kind.ge), ("at most", kind.le))
    return ", ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)
