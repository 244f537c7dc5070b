"""Damage for fuzz tests: seeded, so that a case can be repeated; as long as EDGE_FUZZ_S says."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from typing import Any

SECONDS = float(os.environ.get("EDGE_FUZZ_S", "5"))
SEED = int(os.environ.get("EDGE_FUZZ_SEED", "1"))
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64,
    -(2**63), 10**30, 0.0, -0.0, 0.5, 1e300, "", "x", "x" * 5000, "\0", "../../etc/passwd",
    "\ud7ff\uffff", "1", [], [[]], [0], [None], [[[[[[[[0]]]]]]]], {}, {"": 0},
    {"binary_data_size": 2**40}, {"a": {"a": {"a": 0}}},
)  # fmt: skip
PIECES = (
    b"", b"\0", b"\xff" * 8, b"[" * 2000, b'{"a":' * 2000, b"9" * 400, b"-", b"e999", b"NaN", b'"',
    b"\\u0000", b"\\ud800", b"\r\n", b"\r\n\r\n", b"\n", b": ", b",", b"0x", b"\xc0\x80",
    b"%00", b"../",
)  # fmt: skip


class Fuzzer(random.Random):
    """Random choices that hurt."""

    def cases(self) -> Iterator[int]:
        """Numbers of cases until the time is over; at least 50."""
        end = time.monotonic() + SECONDS
        case = 0
        while case < 50 or time.monotonic() < end:
            yield case
            case += 1

    def damage(self, raw: bytes) -> bytes:
        """The bytes with one to four places flipped, cut, doubled, swapped or overwritten."""
        out = bytearray(raw)
        for _ in range(self.randint(1, 4)):
            at, to = sorted(self.randint(0, len(out)) for _ in range(2))
            match self.randint(0, 6):
                case 0 if out:
                    out[min(at, len(out) - 1)] ^= 1 << self.randint(0, 7)
                case 1:
                    del out[at : min(to, at + self.choice((1, 9, 512, 10**6)))]
                case 2:
                    out[at:at] = out[at : min(to, at + 600)]
                case 3:
                    out[at : at + self.randint(0, 9)] = self.choice(PIECES)
                case 4:
                    out[at:at] = self.choice(PIECES)
                case 5:
                    out[at : at + 512], out[to : to + 512] = out[to : to + 512], out[at : at + 512]
                case _:
                    out[at : at + 4] = self.randbytes(4)
        return bytes(out)

    def change(self, document: Any) -> Any:
        """The JSON document with one to three of its values replaced, dropped, added or wrapped."""
        changed = [copy.deepcopy(document)]
        for _ in range(self.randint(1, 3)):
            places = list(_places(changed))
            where, key = self.choice(places)
            match self.randint(0, 4):
                case 0 | 1:
                    where[key] = copy.deepcopy(self.choice(NASTY))
                case 2 if isinstance(where, dict):
                    del where[key]
                case 3 if isinstance(where, dict):
                    where[self.choice(("a", key + "s", "\0", "data"))] = self.choice(NASTY)
                case 3 if where is not changed:
                    where.append(copy.deepcopy(where[key]))
                case _:
                    where[key] = [where[key]]
        return changed[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
