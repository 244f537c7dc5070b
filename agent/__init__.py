"""The device's agent. `from agent import Agent` serves installed packages in process."""

from agent.config import Config
from agent.serving.agent import Agent, ModelStatus, Status
from agent.serving.loaded_model import EncodedImage
from agent.serving.requests import Answer

__all__ = ["Agent", "Answer", "Config", "EncodedImage", "ModelStatus", "Status"]
