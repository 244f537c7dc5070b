"""The device's agent. `from agent import Agent` serves installed packages in process."""

from agent.config import Config
from agent.serving.agent import Agent
from agent.serving.backend import EncodedImage
from agent.serving.requests import Answer
from agent.serving.status import ModelStatus, Status

__all__ = ["Agent", "Answer", "Config", "EncodedImage", "ModelStatus", "Status"]
