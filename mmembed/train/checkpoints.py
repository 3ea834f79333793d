"""Where a run stands, on disk: one safetensors file a checkpoint, there whole or not at all, the last two kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LoadError
from ..files import whole

KEPT = 2
STATE = "state"


def save(folder: Path, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write checkpoint `number`; only when it is on disk as a whole do older ones go.

    Raises:
        OSError: it cannot be written (disk full); earlier ones are as they were.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:08d}.safetensors"
    for part in folder.glob("*.safetensors.*.part"):
        part.unlink()  # of a run that was killed while it wrote
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as fresh:
        fresh.write_bytes(to_bytes(plain, {STATE: json.dumps(state)}))
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote.

    Raises:
        LoadError: a broken file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})[STATE])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise LoadError(f"{path} is no whole checkpoint: {error}; remove it, and the one before is taken") from None
