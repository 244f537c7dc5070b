"""The values that travel between the stages of a build; every one prints as JSON.

read -> Model    plan -> Plan    convert -> Artifact    measure -> Measurement
judge -> Verdict    package -> BuildResult
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from converters.spec import Ceiling, Description, Spec
from edge_core.errors import InputError
from edge_core.profile import Runtime
from edge_core.runtimes.xnnpack import Delegation
from edge_core.tensors import TensorSpec

T = TypeVar("T")
Outcome = Literal["pass", "fail", "inconclusive"]


class Model(Description, frozen=True, kw_only=True):
    """What 'read' found in the user's file."""

    path: Path
    format: str  # "onnx", "pt2", "tflite" or one of another package's
    sha256: str
    bytes: int


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to ship the model to one device, with all that it takes."""

    spec: Spec  # of the converter
    runtime: Runtime  # of the device: the first of the converter's that it has
    ceiling: Ceiling  # of that runtime
    arch: str  # of the device

    @property
    def name(self) -> str:
        """As in plans, reports and on the command line."""
        return self.spec.name


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate, in or out, and why."""

    candidate: str
    title: str
    verdict: Literal["in", "out"]
    reason: str
    rule: str = ""  # id of the policy rule that decided
    evidence: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Every candidate for one profile."""

    model: str
    profile: str
    runtime: str  # "onnxruntime 1.23.2"
    decisions: tuple[Decision, ...]
    chosen: tuple[Candidate, ...]  # of the decisions that say "in", in their order


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One converted file."""

    candidate: str
    path: Path
    fixed: Path | None = None  # the same for one row, where the batch of ``path`` is dynamic
    sha256: str
    bytes: int
    written_for: dict[str, str]  # {"opset": "17", "ir": "8"}, or {"min_runtime": "2.14.0"}
    options: dict[str, str]
    inputs: tuple[TensorSpec, ...]  # layouts and types are the file's, names the model's
    outputs: tuple[TensorSpec, ...]
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    precision: str = ""  # where it is not the recipe's
    quantised_share: float | None = None
    seconds: float = 0.0  # of conversion


class Quantity(msgspec.Struct, frozen=True):
    """One number and how it is known. ``low``..``high`` bounds it; equal when exact."""

    kind: Literal["measured", "predicted", "unknown"]
    value: float | None
    unit: str
    where: str  # "onnxruntime 1.23.2 on x86_64 (this host)"
    low: float | None = None
    high: float | None = None
    note: str = ""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of one candidate for one profile. ``error`` is set when it could not run."""

    candidate: str
    values: dict[str, Quantity] = {}  # by the names of GATES and of the report's columns
    error: str = ""
    delegation: Delegation | None = None  # of a TFLite file, on the device's runtime version


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One limit checked against one value."""

    gate: str
    limit: float
    value: Quantity
    outcome: Outcome
    why: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate after all gates."""

    candidate: str
    outcome: Outcome
    gates: tuple[GateResult, ...]
    reason: str = ""  # why it is not the winner; empty for the winner
    figures: str = ""  # of the comparison that it lost
    pareto: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision for one profile."""

    profile: str
    outcome: Outcome
    winner: str  # candidate; empty when nothing fits
    judgements: tuple[Judgement, ...]
    relaxation: str = ""  # for "nothing fits": the smallest change of a budget that would


def to_json(value: object, *, indent: int = 0) -> bytes:
    """Any stage's value as JSON, keys in a fixed order."""
    raw = msgspec.json.encode(value, enc_hook=str, order="sorted")
    return msgspec.json.format(raw, indent=indent) if indent else raw


def from_json(raw: bytes, kind: type[T]) -> T:
    """What to_json() wrote; raises InputError if it is not a ``kind``."""
    try:
        return msgspec.json.decode(raw, type=kind, dec_hook=lambda target, value: target(value))
    except msgspec.MsgspecError as error:
        raise InputError(f"not a {kind.__name__}: {error}") from error
