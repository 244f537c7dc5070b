"""What each line of ONNX Runtime loads and computes on the CPU. Data: ort_facts.json.

    ceiling("1.19.2")                                        -> Ceiling(opset=21, ir=10)
    missing_ops("1.19.2", {"Conv": 49, "RMSNormalization": 1}, 21)  -> ("RMSNormalization",)

benchmarks/ort_facts.py measures it again: it installs every version and asks it. Measured on
x86-64; the kernels of the wheels for other processors are registered by the same source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import msgspec

from converters.spec import Ceiling
from edge_core.errors import InputError

STANDARD = ("", "ai.onnx")
Line = tuple[int, int]  # (major, minor)


class _Facts(msgspec.Struct, frozen=True):
    measured: dict[str, Ceiling]  # "1.23.2"
    published: dict[str, Ceiling]  # "1.14": the vendor's compatibility table
    kernels: tuple[str, ...]  # lines whose operators were asked, oldest first
    # domain -> operator -> version of the operator -> lines that run it: "*" all, "" none,
    # "1.21-" from 1.21 on, "1.16-1.20" both included
    cpu: dict[str, dict[str, dict[int, str]]]


def find_ceiling(version: str) -> Ceiling:
    """The highest opset and IR version that ONNX Runtime ``version`` loads.

    Taken from its own line (1.23) or else from the nearest older line that is known. Raises
    InputError for text that is no version and for versions before the oldest known.
    """
    return _load_ceilings()[_find_line(version)]


def find_missing_ops(version: str, ops: Iterable[str], opset: int) -> tuple[str, ...]:
    """The ``ops`` ("Conv", "com.microsoft:MatMulNBits") that ``version`` cannot run on the CPU.

    An operator that is inlined from its function body runs. Lines older than the oldest one that
    could be asked (1.16) are checked against its list: what it lacks, they lack. Type constraints
    are not looked at: an operator may be listed and still refuse, say, fp16.
    """
    oldest = _parse_line(_load_facts().kernels[0])
    line = max(_parse_line(version), oldest)
    return tuple(sorted(op for op in ops if not _can_run(op, opset, line)))


def describe_provenance(version: str) -> str:
    """Who says what ceiling() answers for ``version``."""
    line = _find_line(version)
    asked = next(
        (release for release in _load_facts().measured if _parse_line(release) == line), ""
    )
    if asked:
        return f"measured on onnxruntime {asked} (benchmarks/ort_facts.py)"
    return f"the vendor's compatibility table for {line[0]}.{line[1]}"


@cache
def _load_facts() -> _Facts:
    raw = files("converters.onnx").joinpath("ort_facts.json").read_bytes()
    return msgspec.json.decode(raw, type=_Facts)


@cache
def _load_ceilings() -> dict[Line, Ceiling]:
    rows = {**_load_facts().published, **_load_facts().measured}  # what was measured wins
    return {_parse_line(version): row for version, row in rows.items()}


def _find_line(version: str) -> Line:
    wanted = _parse_line(version)
    older = [line for line in _load_ceilings() if line <= wanted]
    if not older:
        first = ".".join(map(str, min(_load_ceilings())))
        raise InputError(
            f"nothing is known of onnxruntime {version}", hint=f"the oldest known line is {first}"
        )
    return max(older)


def _parse_line(version: str) -> Line:
    """'1.22.1', '1.22' or '1.22.0+cu126' -> (1, 22)."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?![0-9])", version)
    if not match:
        raise InputError(f"'{version}' is no version of onnxruntime", hint="such as 1.23.2")
    return int(match[1]), int(match[2])


def _can_run(name: str, opset: int, line: Line) -> bool:
    domain, _, op = name.rpartition(":")
    versions = _load_facts().cpu.get("" if domain in STANDARD else domain, {}).get(op, {})
    if domain not in STANDARD:  # their opset is not given: any version of the operator will do
        return any(_is_within(lines, line) for lines in versions.values())
    since = max((since for since in versions if since <= opset), default=None)
    return since is not None and _is_within(versions[since], line)


def _is_within(lines: str, line: Line) -> bool:
    if lines in ("", "*"):
        return lines == "*"
    for span in lines.split(","):
        first, _, last = span.partition("-")
        if (not first or _parse_line(first) <= line) and (not last or line <= _parse_line(last)):
            return True
    return False
