"""What the server tells of itself and its models, as the protocol's JSON documents. No I/O.

Server and model metadata, Triton's model repository index and its statistics extension.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import msgspec

from agent.http import validate
from agent.serving.agent import ModelStatus
from agent.serving.timing import Stage
from edge_core import __version__
from edge_core.package.manifest import Manifest
from edge_core.tensors import TensorSpec

NAME = "edge-agent"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics")
# Triton's words for the agent's stages of a request.
_STAGES = {
    "queue": "wait",
    "compute_input": "prepare",
    "compute_infer": "infer",
    "compute_output": "finish",
}
_STATES = {"ready": "READY", "failed": "UNAVAILABLE"}


class Tally(msgspec.Struct):
    """Requests of one model over HTTP since the server started."""

    success: int = 0
    success_ns: int = 0
    fail: int = 0
    fail_ns: int = 0
    cached: int = 0
    cached_ns: int = 0
    last_ms: int = 0  # since 1970


def server() -> dict[str, Any]:
    """$metadata_server_response."""
    return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}


def model(manifest: Manifest) -> dict[str, Any]:
    """$metadata_model_response."""
    form = PurePath(manifest.file).suffix.removeprefix(".")
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"{manifest.runtime.name}_{form}",
        "inputs": [_tensor(s) for s in manifest.inputs],
        "outputs": [_tensor(s) for s in manifest.outputs],
    }


def index(models: tuple[ModelStatus, ...], *, ready: bool) -> list[dict[str, str]]:
    """$repository_index_response; ``ready`` leaves out what cannot answer."""
    return [
        {"name": m.name, "version": m.version, "state": _STATES[m.state], "reason": m.why}
        for m in models
        if m.state == "ready" or not ready
    ]


def stats(found: tuple[ModelStatus, ...], tallies: dict[str, Tally]) -> dict[str, Any]:
    """$stats_model_response: requests over HTTP, stages since the model was loaded."""
    return {"model_stats": [_stats(m, tallies.get(m.name, Tally())) for m in found]}


def _stats(m: ModelStatus, t: Tally) -> dict[str, Any]:
    stages = {name: _sum(m.stages.get(ours)) for name, ours in _STAGES.items()}
    return {
        "name": m.name,
        "version": m.version,
        "last_inference": t.last_ms,
        "inference_count": stages["compute_infer"]["count"],
        "execution_count": m.inferences,
        "inference_stats": {
            "success": {"count": t.success, "ns": t.success_ns},
            "fail": {"count": t.fail, "ns": t.fail_ns},
            **stages,
            "cache_hit": {"count": t.cached, "ns": t.cached_ns},
        },
        "batch_stats": [],
    }


def _sum(stage: Stage | None) -> dict[str, int]:
    if stage is None:
        return {"count": 0, "ns": 0}
    return {"count": stage.n, "ns": round(stage.n * stage.mean_ms * 1e6)}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else -1 for d in spec.shape]
    return {"name": spec.name, "datatype": validate.shown(spec), "shape": shape}
