"""Weights on disk: written beside their spec, filled into a model again, and told apart by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from .errors import LoadError
from .nn.precision import dtype_of
from .spec import FILE as SPEC_FILE
from .spec import ModelSpec

WEIGHTS_FILE = "weights.safetensors"


def fingerprint(spec: ModelSpec, model: nn.Module) -> str:
    """sha256 of the spec and of every weight as it is held: equal exactly when vectors are."""
    said = json.loads(spec.to_json())
    for key in ("name", "languages", "licence", "summary", "weights"):
        said.pop(key)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(spec: ModelSpec, model: nn.Module, folder: Path) -> None:
    """Write spec.json and weights.safetensors, weights rounded to `spec.weights`."""
    from safetensors.torch import save_file

    dtype = dtype_of(spec.weights)
    state = {
        name: (t.to(dtype) if t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it to its owner alone
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")


def fill(model: nn.Module, path: Path) -> None:
    """Load a safetensors file that must hold exactly the weights of `model`.

    Raises:
        LoadError: no such file, or weights that do not fit; nothing is dropped silently.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError:
        raise LoadError(f"{path.parent} holds no {path.name}") from None
    except SafetensorError as error:
        raise LoadError(f"{path} is broken: {error}") from None
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise LoadError(f"{path} does not fit its spec: {error}") from None
    if found.missing_keys or found.unexpected_keys:
        missing, unexpected = (keys or "none" for keys in (found.missing_keys, found.unexpected_keys))
        raise LoadError(f"{path} does not fit its spec: missing {missing}, unexpected {unexpected}")
