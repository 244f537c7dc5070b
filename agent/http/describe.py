"""What the server reports about itself and its models, as the protocol's JSON documents. No I/O.

Server and model metadata, Triton's model repository index and its statistics extension.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from agent.http import validate
from agent.serving.status import ModelStatus
from agent.serving.timing import Stage
from edge_core import __version__
from edge_core.package.manifest import PackagedModel
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


def server_metadata() -> dict[str, Any]:
    """$metadata_server_response."""
    return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}


def model_metadata(model: PackagedModel) -> dict[str, Any]:
    """$metadata_model_response."""
    form = PurePath(model.entry).suffix.removeprefix(".")
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"{model.runtime.name}_{form}",
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def repository_index(models: tuple[ModelStatus, ...], *, ready: bool) -> list[dict[str, str]]:
    """$repository_index_response; ``ready`` leaves out what cannot answer."""
    return [
        {
            "name": model.name,
            "version": model.version,
            "state": _STATES[model.state],
            "reason": model.why,
        }
        for model in models
        if model.state == "ready" or not ready
    ]


def statistics(models: tuple[ModelStatus, ...]) -> dict[str, Any]:
    """$stats_model_response: requests since the agent started, stages since the model was loaded.

    Requests are those of every caller: over HTTP and from programs in the agent's process.
    """
    return {"model_stats": [_model_statistics(model) for model in models]}


def _model_statistics(model: ModelStatus) -> dict[str, Any]:
    counts = model.counts
    stages = {name: _duration(model.stages.get(ours)) for name, ours in _STAGES.items()}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_ms,
        "inference_count": stages["compute_infer"]["count"],
        "execution_count": model.inferences,
        "inference_stats": {
            "success": {"count": counts.success, "ns": counts.success_ns},
            "fail": {"count": counts.fail, "ns": counts.fail_ns},
            **stages,
            "cache_hit": {"count": counts.cached, "ns": counts.cached_ns},
        },
        "batch_stats": [],
    }


def _duration(stage: Stage | None) -> dict[str, int]:
    if stage is None:
        return {"count": 0, "ns": 0}
    return {"count": stage.n, "ns": round(stage.n * stage.mean_ms * 1e6)}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": validate.client_datatype(spec), "shape": shape}
