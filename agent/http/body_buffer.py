"""A body as it arrives: chunks of any size, joined once, at the address that a tensor needs."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64  # bytes; of the widest vector registers
SMALL = 4096  # bytes; a list of smaller objects would take many times their size


class BodyBuffer:
    """Has what uvicorn does with the bytearray that it gathers a body in: +=, len() and bytes()."""

    def __init__(self) -> None:
        self._chunks: list[bytes | bytearray] = []
        self._size = 0

    def __iadd__(self, chunk: bytes) -> BodyBuffer:
        self._size += len(chunk)
        if len(chunk) >= SMALL:
            self._chunks.append(chunk)
        elif self._chunks and isinstance(self._chunks[-1], bytearray):
            self._chunks[-1] += chunk
        else:
            self._chunks.append(bytearray(chunk))
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._chunks)

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._size = 0

    def join(self, aligned_offset: int) -> memoryview:
        """All in one buffer, in which the byte at ``aligned_offset`` has an aligned address."""
        space = np.empty(self._size + ALIGNMENT, np.uint8)
        start = -(int(space.__array_interface__["data"][0]) + aligned_offset) % ALIGNMENT
        data = space[start : start + self._size].data
        end = 0
        for chunk in self._chunks:
            data[end : end + len(chunk)] = chunk
            end += len(chunk)
        return data
