"""What tells whether a run goes on with what it began with: short stamps of weights, of files and rows of data, of settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ImageError
from ..images import Image, is_pil
from ..shards import PICTURES
from ..spec import ModelSpec

WHOLE = 2**28
"""Bytes of a file that are read whole; of a longer one its ends and places between."""
PLACES, PIECE = 64, 2**20
"""How many places of a longer file are read, and bytes of each."""
TABLES = (".txt", ".arrow")
"""Files of a folder of data that say something themselves."""
NUMBERS = 64
"""Numbers of a weight that are looked at."""


def of_model(model: nn.Module, spec: ModelSpec) -> str:
    """Another for another spec, or another training of the weights; one number among millions that was changed by hand may
    pass."""
    told = hashlib.sha256(spec.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // NUMBERS)].cpu().contiguous()
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        told.update(some.view(torch.uint8).numpy().tobytes() if len(some) else b"")
    return told.hexdigest()[:16]


def of_files(files: Sequence[Path]) -> str:
    """Another for other files: of a file what it says, of a picture its name below the folder of them all, for it may be mended;
    of a folder the names of pictures, names and sizes of texts and tables. What else lies in it, a run perhaps, is no data."""
    told = hashlib.sha256()
    pictures = {path for path in files if path.suffix.lower() in PICTURES}
    above = Path(os.path.commonpath([path.parent for path in pictures])) if pictures else Path()
    for path in files:
        told.update(
            str(path.relative_to(above) if path in pictures else path.name).encode()
        )  # their folders may be labels
        if path.is_dir():
            kinds = (*PICTURES, *TABLES)
            inside = sorted(own for own in path.rglob("*") if own.suffix.lower() in kinds and own.is_file())
            sizes = [own.stat().st_size if own.suffix.lower() in TABLES else None for own in inside]
            names = [str(own.relative_to(path)) for own in inside]
            told.update(repr([*zip(names, sizes, strict=True)]).encode())
        elif path not in pictures:
            _read(path, told)
    return told.hexdigest()[:16]


def of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Another for rows that say something else. Of a path it is the name: the picture there may be mended."""
    told = hashlib.sha256()
    for row in rows:
        _tell(row, told)
    return told.hexdigest()[:16]


def of_settings(value: Any) -> str:
    """Another for other settings: dataclasses, tables and lists of plain values."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, default=str).encode()).hexdigest()


def _tell(value: Any, told: hashlib._Hash) -> None:
    """What a cell says; each thing behind its kind and length, so that no two say the same."""
    value = value.source if isinstance(value, Image) else value
    if is_pil(value):
        try:
            value = Image(value).load()
        except ImageError as error:  # whoever reads the row is told
            value = error.reason
    if isinstance(value, Mapping):
        value = [each for pair in value.items() for each in pair]
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OV":
        told.update(f"array {value.dtype} {value.shape} ".encode())
        told.update(value.tobytes())
    elif isinstance(value, (list, tuple, np.ndarray)):
        told.update(f"list {len(value)} ".encode())
        for each in value:
            _tell(each, told)
    else:
        said = (
            value if isinstance(value, (bytes, bytearray, memoryview)) else str(value).encode("utf-8", "surrogatepass")
        )
        told.update(f"{type(value).__name__} {len(said)} ".encode())
        told.update(said)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A setting at its default is as if it were not there: one that a later version has does not part a run from its recipe.
        said = [f.name for f in dataclasses.fields(value) if getattr(value, f.name) != _default(f)]
        fields = {name: _plain(getattr(value, name)) for name in said}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _read(path: Path, told: hashlib._Hash) -> None:
    size = path.stat().st_size
    told.update(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            told.update(hashlib.file_digest(file, "sha256").digest())
            return
        for place in range(PLACES):
            file.seek((size - PIECE) * place // (PLACES - 1))
            told.update(file.read(PIECE))
