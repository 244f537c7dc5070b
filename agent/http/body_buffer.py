"""A body as it comes: pieces of any size, put together once, where a tensor wants to lie."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64  # bytes; of the widest vector registers
SMALL = 4096  # bytes; a list of smaller objects would take many times their size


class BodyBuffer:
    """Has what uvicorn does with the bytearray that it gathers a body in: +=, len() and bytes()."""

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> BodyBuffer:
        self._size += len(piece)
        if len(piece) >= SMALL:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._size = 0

    def joined(self, lead: int) -> memoryview:
        """All in one buffer, in which the byte at ``lead`` has an address of ALIGNMENT's."""
        space = np.empty(self._size + ALIGNMENT, np.uint8)
        start = -(int(space.__array_interface__["data"][0]) + lead) % ALIGNMENT
        data = space[start : start + self._size].data
        at = 0
        for piece in self._pieces:
            data[at : at + len(piece)] = piece
            at += len(piece)
        return data
