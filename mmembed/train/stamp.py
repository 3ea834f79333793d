"""What tells whether a run goes on with what it began with: short stamps of a model's weights and of files of data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

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
    """Another for other files: of a file what it says, of a folder the names of pictures, which may be mended, and names and
    sizes of texts and tables. What else lies in it, a run perhaps, is no data."""
    told = hashlib.sha256()
    for path in files:
        told.update(path.name.encode())
        if path.is_dir():
            kinds = (*PICTURES, *TABLES)
            inside = sorted(own for own in path.rglob("*") if own.suffix.lower() in kinds and own.is_file())
            sizes = [own.stat().st_size if own.suffix.lower() in TABLES else None for own in inside]
            names = [str(own.relative_to(path)) for own in inside]
            told.update(repr([*zip(names, sizes, strict=True)]).encode())
        else:
            _read(path, told)
    return told.hexdigest()[:16]


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
