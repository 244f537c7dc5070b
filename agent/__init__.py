"""The device's agent. `from agent import Agent` serves installed packages in process.

Names are imported when they are asked for, so that the command line stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.config import Config
    from agent.serving.agent import Agent, ModelStatus, Status
    from agent.serving.loaded_model import EncodedImage
    from agent.serving.requests import Answer

__all__ = ["Agent", "Answer", "Config", "Image", "ModelStatus", "Status"]
_WHERE = {
    "Agent": "agent.serving.agent",
    "Answer": "agent.serving.requests",
    "Config": "agent.config",
    "Image": "agent.serving.loaded_model",
    "ModelStatus": "agent.serving.agent",
    "Status": "agent.serving.agent",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'agent' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
