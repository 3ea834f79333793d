"""`Quantizer`: float vectors as codes of one byte or one bit a number, by ranges that were fitted once and are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, LoadError, SpecError, check_known
from .vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "quantizer.json"
FORMAT = 1
KINDS: Mapping[str, type[np.generic]] = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
"""Kinds of codes and what holds them: a byte a number, or eight numbers a byte by their signs; as sentence-transformers
names them ("binary" is "ubinary" less 128)."""
LEVELS = 255


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Vectors of `dimension` numbers <-> codes.

    int8 and uint8: `floor((x - low) / step)`, step = (high - low) / 255 of each number, values outside their range
    clipped; binary and ubinary: the signs, packed. Codes are bit for bit those of `quantize_embeddings` of
    sentence-transformers at the same ranges. Ranges are never those of whatever vectors happen to be coded together: they
    are fitted once, on vectors like those to come, and kept, so a vector has one code whatever its company.

    Made by `fit`, `load`, or, where there are no ranges, `Quantizer("ubinary", 256)`. Shorten vectors first where that is
    wanted: `embedder.encode(things, truncate_dim=256)`.

    Args:
        kind: one of `KINDS`. dimension: numbers of a vector. ranges: float32 (2, D), the least and the greatest of each.

    Raises:
        UnknownName: another kind. SpecError: ranges that do not fit, or binary codes of a dimension that fills no bytes.
    """

    kind: str
    dimension: int
    ranges: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check_known("kind of code", self.kind, KINDS)
        if self.packed:
            if self.ranges is not None:
                raise SpecError(f"{self.kind} codes are signs: they have no ranges")
            if self.dimension < 8 or self.dimension % 8:
                raise SpecError(
                    f"{self.kind} codes pack eight numbers a byte, and {self.dimension} fill no whole bytes; shorten "
                    "the vectors with truncate_dim"
                )
            return
        if self.ranges is None:
            raise SpecError(f"{self.kind} codes need ranges: Quantizer.fit(vectors, {self.kind!r})")
        ranges = np.array(self.ranges, dtype=np.float32)
        if ranges.shape != (2, self.dimension) or not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
            raise SpecError(f"ranges are the least and the greatest of {self.dimension} numbers, (2, {self.dimension})")
        object.__setattr__(self, "ranges", ranges)

    @classmethod
    def fit(cls, vectors: NDArray[Any], kind: str = "int8") -> Quantizer:
        """A quantizer for vectors like these.

        Args:
            vectors: (N, D) floats, for int8 and uint8 at least two, better thousands; each number's range is what they span.
        """
        floats = _floats(vectors)
        if kind in ("binary", "ubinary"):
            return cls(kind, floats.shape[1])
        if len(floats) < 2:
            raise InputError(f"ranges are fitted on many vectors, not on {len(floats)}")
        return cls(kind, floats.shape[1], np.stack([floats.min(0), floats.max(0)]))

    @property
    def packed(self) -> bool:
        """Whether eight numbers share a byte."""
        return self.kind in ("binary", "ubinary")

    @property
    def width(self) -> int:
        """Bytes of a code."""
        return self.dimension // 8 if self.packed else self.dimension

    def encode(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Codes of vectors: floats (N, D) -> (N, width), int8 or uint8.

        Raises:
            InputError: vectors of another dimension, or with a number that is none, by row.
        """
        floats = _floats(vectors, self.dimension)
        if self.packed:
            bits = np.packbits(floats > 0, axis=-1)
            return bits if self.kind == "ubinary" else (bits ^ 0x80).view(np.int8)
        low, step = self._steps()
        levels = np.clip(np.floor((floats - low) / step), 0, LEVELS)
        return levels.astype(np.uint8) if self.kind == "uint8" else (levels - 128).astype(np.int8)

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """What codes stand for: (N, width) -> float32 (N, D), the middle of each step; of signs, vectors of length one."""
        if self.packed:
            bits = np.unpackbits(self._bits(codes), axis=-1).astype(np.float32)
            return (2 * bits - 1) * np.float32(self.dimension**-0.5)
        assert self.ranges is not None
        low, high = self.ranges
        levels = self._codes(codes).astype(np.float32) + (128.5 if self.kind == "int8" else 0.5)
        return levels * ((high - low) / np.float32(LEVELS)) + low  # a number that never changed is that number

    def similarity(self, queries: NDArray[Any], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Cosine of every float query (N, D) with what every code (M, width) stands for: (N, M), for rescoring what a
        search over codes found."""
        left, right = _floats(queries, self.dimension), self.decode(codes)
        return unit(left) @ unit(right).T

    def hamming(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
        """How many signs differ between every code of `a` (N, width) and every code of `b` (M, width): (N, M).

        Raises:
            SpecError: codes that are no signs.
        """
        if not self.packed:
            raise SpecError(f"{self.kind} codes are no signs; compare them by similarity")
        left, right = self._bits(a), self._bits(b)
        return np.stack([np.bitwise_count(row ^ right).sum(-1, dtype=np.int64) for row in left])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write quantizer.json into a folder, that of the embedder for one."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        said = {"mmembed": FORMAT, "kind": self.kind, "dimension": self.dimension}
        # A float32 goes through JSON and back unchanged.
        ranges = {} if self.ranges is None else {"ranges": self.ranges.astype(np.float64).tolist()}
        (path / FILE).write_text(json.dumps({**said, **ranges}) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Quantizer:
        """Read what `save` wrote.

        Raises:
            LoadError: no such file, or another one.
        """
        path = Path(folder) / FILE
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LoadError(f"{folder} holds no {FILE}") from None
        except ValueError as error:
            raise LoadError(f"{path} is broken: {error}") from None
        if not isinstance(said, dict) or said.pop("mmembed", None) != FORMAT:
            raise LoadError(f"{path} is no quantizer of format {FORMAT}")
        try:
            return cls(**said)
        except (TypeError, ValueError) as error:
            raise LoadError(f"{path} is broken: {error}") from None

    def _steps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert self.ranges is not None
        step = (self.ranges[1] - self.ranges[0]) / np.float32(LEVELS)
        return self.ranges[0], np.where(step == 0, np.float32(1), step)

    def _codes(self, codes: NDArray[Any]) -> NDArray[Any]:
        given = np.asarray(codes)
        if given.dtype != KINDS[self.kind] or given.ndim != 2 or given.shape[1] != self.width:
            due = f"{np.dtype(KINDS[self.kind])} (N, {self.width})"
            raise InputError(
                f"{self.kind} codes of {self.dimension} numbers are {due}, not {given.dtype} {given.shape}"
            )
        return given

    def _bits(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        given = self._codes(codes)
        return given if self.kind == "ubinary" else given.view(np.uint8) ^ np.uint8(0x80)


def _floats(vectors: NDArray[Any], dimension: int | None = None) -> NDArray[np.float32]:
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind != "f":
        raise InputError(f"vectors are floats (N, D), not {given.dtype} {given.shape}")
    if dimension is not None and given.shape[1] != dimension:
        raise InputError(f"the quantizer takes vectors of {dimension} numbers, and these have {given.shape[1]}")
    bad = np.flatnonzero(~np.isfinite(given).all(1))
    if len(bad):
        raise InputError("a vector with a number that is none has no code (a skipped item?)", int(bad[0]))
    return given.astype(np.float32, copy=False)
