"""What makes two inputs near: a short vector of length 1, and the nearest of the stored ones.

    describe_image(tensor, layout)   the 8 x 8 slowest waves of each channel, without brightness
    unit(vector)                     an embedding as it is, scaled to length 1
    Index(limit).nearest(vector)     exact: every stored vector is compared

The slowest waves of the discrete cosine transform are what is left of a picture after a strong
blur: a shift by a few pixels and noise hardly move them. The mean of each channel is left out and
the length is scaled away, so a change of brightness or contrast, the recipe's mean and scale, and
an integer tensor's scale make no difference.

The distance is the chord between two points of the unit sphere: 0 same, 2 opposite;
distance^2 = 2 - 2 cosine.

One look-up among n vectors of 192 numbers reads 768 n bytes: see docs/caches.md for its time.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np

from edge_core.tensors import Array, Feeds

WAVES = 8  # a side; more of them gave no more hits at the same error rate
FLAT = 1e-4  # share of a picture's energy outside its mean below which it has no features


class InputDescriptor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a vector is made of a model's inputs."""

    kind: Literal["image", "vector"]
    input: str = ""  # name of the tensor; "" for vectors that the application brings
    layout: Literal["NCHW", "NHWC", ""] = ""  # of an image


class Described(msgspec.Struct, frozen=True):
    """An input as the cache sees it. Only entries with the same tag are compared."""

    vector: Array  # float32, length 1
    tag: str = ""


def describe(descriptor: InputDescriptor, feeds: Feeds) -> Described | None:
    """The input's vector; None for one that cannot be compared (a batch, a blank picture).

    Every other input of the model must be the same to the last bit: it goes into the tag.
    """
    tensor = feeds.get(descriptor.input)
    if tensor is None or tensor.ndim < 2 or tensor.shape[0] != 1 or tensor.dtype.kind not in "fiu":
        return None
    if descriptor.kind == "image":
        vector = describe_image(tensor, descriptor.layout) if tensor.ndim == 4 else None
    else:
        vector = unit(tensor)
    if vector is None:
        return None
    return Described(vector, _others(descriptor.input, feeds))


def describe_image(tensor: Array, layout: str) -> Array | None:
    """The features of one picture (1, C, H, W) or (1, H, W, C); None if it has none."""
    image = tensor[0]
    if image.dtype != np.float32:
        image = image.astype(np.float32)
    channels_last = layout == "NHWC"
    height, width = image.shape[:2] if channels_last else image.shape[1:]
    rows, columns = _waves(height), _waves(width)
    if channels_last:
        flat = rows @ image.reshape(height, -1)
        slow = flat.reshape(len(rows), width, -1).transpose(2, 0, 1) @ columns.T
    else:
        slow = (rows @ image) @ columns.T
    energy = float(np.vdot(slow, slow))
    slow[:, 0, 0] = 0.0  # brightness
    left = float(np.vdot(slow, slow))
    if not math.isfinite(energy) or left <= energy * FLAT**2:
        return None
    return np.ravel(slow) / np.float32(math.sqrt(left))


def unit(vector: Array) -> Array | None:
    """``vector`` in one dimension and with length 1; None for zeros, NaN or infinity."""
    flat = np.asarray(vector, np.float32).ravel()
    length = float(np.linalg.norm(flat))
    if not math.isfinite(length) or length == 0:
        return None
    return flat / np.float32(length)


@lru_cache(maxsize=16)
def _waves(size: int) -> Array:
    """The first rows of the orthonormal cosine transform of ``n`` points."""
    count = min(WAVES, size)
    angles = np.pi * np.outer(np.arange(count), (np.arange(size) + 0.5) / size)
    waves = np.cos(angles) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.astype(np.float32)


def _others(name: str, feeds: Feeds) -> str:
    if len(feeds) == 1:
        return ""
    hasher = hashlib.blake2b(digest_size=8)
    for other in sorted(set(feeds) - {name}):
        array = feeds[other]
        hasher.update(f"{other}\0{array.dtype.str}\0{array.shape}\0".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


class Index:
    """At most ``limit`` vectors of one length in memory, and the nearest of them. Not thread-safe.

    Memory: 4 bytes a number; what is not filled yet takes none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: dict[bytes, int] = {}  # key -> row of the matrix
        self._keys: list[bytes] = []  # row -> key
        self._matrix: Array = np.zeros((0, 0), np.float32)
        self._tagged: Array = np.zeros(limit, np.int64)  # the tag's hash
        self._used: Array = np.zeros(limit, np.int64)  # when a row was stored or found last
        self._reach: Array = np.zeros(limit)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, item: Described, reach: float = 1.0) -> bytes | None:
        """Store a vector; returns the key that had to go, used longest ago, if it was full.

        A vector of another length than those that are there is not stored.
        """
        evicted = None
        if key in self._rows:
            self.remove(key)
        elif len(self._keys) == self.limit:
            evicted = self._keys[int(self._used.argmin())]
            self.remove(evicted)
        row, width = len(self._keys), len(item.vector)
        if row == 0 and self._matrix.shape[1] != width:
            self._matrix = np.zeros((self.limit, width), np.float32)
        if self._matrix.shape[1] != width:
            return evicted
        self._matrix[row] = item.vector
        self._tagged[row] = hash(item.tag)
        self._reach[row] = reach
        self._keys.append(key)
        self._rows[key] = row
        self.touch(key)
        return evicted

    def touch(self, key: bytes) -> None:
        """It was of use just now, if it is still there."""
        if key in self._rows:
            self._clock += 1
            self._used[self._rows[key]] = self._clock

    def remove(self, key: bytes) -> None:
        """Forget a vector, if it is there; the last row takes its place."""
        row = self._rows.pop(key, None)
        if row is None:
            return
        last = len(self._keys) - 1
        moved = self._keys.pop()
        if moved != key:
            self._keys[row] = moved
            self._rows[moved] = row
            for column in (self._matrix, self._tagged, self._used, self._reach):
                column[row] = column[last]

    def nearest(self, item: Described) -> tuple[bytes, float, float] | None:
        """Key, distance and reach of the nearest vector with the same tag."""
        count = len(self._keys)
        if count == 0 or self._matrix.shape[1] != len(item.vector):
            return None
        # Not with @: its threads wait for each other, which on a busy machine took 28 ms in one
        # look-up of ten (4000 x 192) instead of 0.1.
        cosines = np.einsum("ij,j->i", self._matrix[:count], item.vector)
        cosines[self._tagged[:count] != hash(item.tag)] = -np.inf
        row = int(cosines.argmax())
        best = float(cosines[row])
        if best == -math.inf:
            return None
        return self._keys[row], math.sqrt(max(0.0, 2 - 2 * best)), float(self._reach[row])
