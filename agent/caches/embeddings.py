"""Embeddings of texts (or of any input) by model, and the nearest of them to a vector.

    put(model, "how warm is it?", vector, result=b"21 C")       get(model, "how  warm is it?")
    nearest(model, vector, limit=3) -> what the application stored with the most similar vectors

A text's key is its normal form: NFKC, white space collapsed, case kept. A value is a sentence
vector, as a model gives it: (n,) or (1, n), or a token matrix: (tokens, n). nearest() looks at
vectors. It says how similar they are and leaves the decision to the application: opposite
sentences have similar vectors.

The first nearest() of a model reads its vectors into memory (4 bytes a number); until then, and in
an application that never asks, they stay on disk.
"""

from __future__ import annotations

import math
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec
import numpy as np

from agent.caches.results import input_key
from agent.caches.store import Store
from edge_core.errors import InputError
from edge_core.tensors import Array, Feeds


class Match(msgspec.Struct, frozen=True):
    """One stored embedding near a query."""

    text: str  # normalised; "" if the input was no text
    result: bytes  # what the application stored with it
    similarity: float  # cosine, 1.0 = same direction


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    text: str
    result: bytes
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def vector(self) -> Array:
        return np.ndarray(self.shape, self.dtype, self.data).copy()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


def normalise_text(text: str) -> str:
    """The form under which a text is remembered: NFKC, white space collapsed, case kept."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


class EmbeddingCache:
    """Vectors by input. Raises InputError for a wrong argument, never because of the disk."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = Store(path, max_bytes=max_bytes, ttl_s=ttl_s, clock=clock)
        self._lock = threading.Lock()
        self._indexes: dict[str, _Index] = {}

    def key(self, model: str, inputs: str | Feeds) -> bytes:
        """16 bytes that stand for this input to this model."""
        if isinstance(inputs, str):
            return input_key(self.store.secret, model, normalise_text(inputs).encode())
        return input_key(self.store.secret, model, inputs)

    def get(self, model: str, inputs: str | Feeds) -> Array | None:
        """The vector or token matrix of this input, or None."""
        packed = self.store.get(model, self.key(model, inputs))
        return None if packed is None else _decode(packed).vector

    def put(
        self, model: str, inputs: str | Feeds, embedding: Array, *, result: bytes = b""
    ) -> None:
        """Remember a vector or a token matrix, and with it the application's own ``result``."""
        if embedding.ndim == 0 or embedding.dtype.kind != "f":
            raise InputError(
                f"not an embedding: {embedding.dtype} of shape {embedding.shape}",
                hint="a sentence vector or a token matrix of floats",
            )
        entry = _Entry(
            normalise_text(inputs) if isinstance(inputs, str) else "",
            result,
            embedding.dtype.str,
            embedding.shape,
            embedding.tobytes(),
        )
        self.store.put(model, self.key(model, inputs), _encode(entry))

    def nearest(self, model: str, query: Array, limit: int = 1) -> tuple[Match, ...]:
        """The stored vectors most similar to ``query`` by cosine, at most ``limit``, best first.

        Raises InputError for a query whose length is not that of the model's vectors.
        """
        if query.dtype.kind != "f" or not _is_vector(query.shape) or limit < 1:
            raise InputError("nearest() takes one vector of floats and limit >= 1")
        if self.store.database.pending:
            self.store.flush()
        with self._lock:
            index = self._index(model)
            if index.keys and index.width != query.size:
                raise InputError(
                    f"the query has {query.size} numbers; this model's vectors {index.width}"
                )
            return self._matches(model, index, query, limit)

    def keep_only(self, models: Collection[str]) -> int:
        """Remove every other model's entries, now and in future; how many were removed."""
        with self._lock:
            self._indexes = {m: i for m, i in self._indexes.items() if m in models}
        return self.store.keep_only(models)

    def _index(self, model: str) -> _Index:
        """The model's vectors in memory, brought up to date."""
        lost = self.store.loss_count()
        index = self._indexes.get(model)
        if index is None or lost - index.loss_count > len(index.keys) // 8:
            index = self._indexes[model] = _Index(lost)
        for place, key, value in self.store.walk(model, index.place):
            entry = _decode(value)
            if _is_vector(entry.shape):
                index.add(key, entry.vector)
            index.place = place
        return index

    def _matches(self, model: str, index: _Index, query: Array, limit: int) -> tuple[Match, ...]:
        matches: list[Match] = []
        missing: list[bytes] = []
        for key, similarity in index.rank(query):
            value = self.store.peek(model, key)  # it may be stale or evicted by now
            if value is None:
                missing.append(key)
                continue
            entry = _decode(value)
            matches.append(Match(entry.text, entry.result, similarity))
            if len(matches) == limit:
                break
        for key in missing:
            index.remove(key)
        return tuple(matches)


class _Index:
    """One model's unit vectors as the rows of a matrix."""

    def __init__(self, lost: int) -> None:
        self.loss_count = lost  # Store.loss_count() when it was built
        self.place = 0  # the last entry that it has seen
        self.width = 0
        self.keys: list[bytes] = []
        self._row: dict[bytes, int] = {}
        self._matrix = np.empty((0, 0), np.float32)

    def add(self, key: bytes, vector: Array) -> None:
        if not self.keys:
            self.width = vector.size
            self._matrix = np.empty((16, vector.size), np.float32)
        if vector.size != self.width:
            return
        row = self._row.setdefault(key, len(self.keys))
        if row == len(self.keys):
            self.keys.append(key)
            if row == len(self._matrix):
                self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        self._matrix[row] = _unit(vector)

    def remove(self, key: bytes) -> None:
        """The last row takes its place."""
        row = self._row.pop(key)
        last = self.keys.pop()
        if last != key:
            self.keys[row] = last
            self._row[last] = row
            self._matrix[row] = self._matrix[len(self.keys)]

    def rank(self, query: Array) -> Iterator[tuple[bytes, float]]:
        """All keys with their cosine similarity, the most similar first."""
        if self.keys:
            similarity = self._matrix[: len(self.keys)] @ _unit(query)
            for row in np.argsort(-similarity):
                yield self.keys[row], float(similarity[row])


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) > 0 and math.prod(shape) == shape[-1]


def _unit(vector: Array) -> Array:
    flat = vector.ravel().astype(np.float32)
    length = float(np.linalg.norm(flat))
    return flat / np.float32(length) if length else flat
