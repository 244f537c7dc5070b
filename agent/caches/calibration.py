"""What a near-duplicate cache may do for one model, and the JSON file that turns the cache on.

calibrate_model.py makes a calibration from a model and the user's samples; threshold_search.py
finds and proves its threshold.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.caches.descriptors import InputDescriptor
from agent.caches.rules import AnswerRule
from edge_core.errors import InputError
from edge_core.files import read_limited, write_atomic

FORMAT = 1
MAX_BYTES = 1_000_000  # of the file


class ThresholdEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the test groups showed at one threshold."""

    threshold: float
    groups: int  # with at least one reuse
    hits: int
    wrong: int
    rate: float  # of wrong reuses: of a random request of a random group, if it is reused
    upper: float  # one-sided bound of that rate


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a near-duplicate cache may do for one model, and why."""

    format: int = FORMAT
    model: str  # digest and variant of the package, or an application's own name for its model
    descriptor: InputDescriptor
    rule: AnswerRule
    text_guard: bool = False  # texts must agree in agent.caches.text_guard.text_signature()
    epsilon: float
    confidence: float
    threshold: float = 0.0  # distance / reach; 0.0 = the cache stays off
    why: str = ""  # it is off
    samples: int = 0
    groups: int = 0
    evidence: ThresholdEvidence | None = None  # for the threshold


def to_bytes(calibration: Calibration) -> bytes:
    """The file beside the cache: JSON for people to read."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"


def from_bytes(raw: bytes) -> Calibration:
    """Parse a calibration file; raises InputError for anything else, or another format version."""
    try:
        calibration = msgspec.json.decode(raw, type=Calibration)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"the calibration is not readable: {error}", hint="calibrate again"
        ) from error
    if calibration.format != FORMAT:
        raise InputError(f"calibration format {calibration.format}; this version reads {FORMAT}")
    return calibration


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the calibration file, whole or not at all; raises StorageError."""
    write_atomic(path, to_bytes(calibration), 0o600)


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file; raises InputError if it is missing or unusable."""
    return from_bytes(read_limited(path, MAX_BYTES))
