"""Weights on disk: written beside their spec, filled into a model again, and told apart by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

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

    dtype, twins = dtype_of(spec.weights), _tied(model)
    state = {
        name: (t.to(dtype) if t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in model.state_dict().items()
        if name not in twins
    }
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it to its owner alone
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")


def fill(model: nn.Module, path: Path) -> None:
    """Load a file that must hold exactly the weights of `model`; of two that are one tensor, the first.

    Raises:
        LoadError: no such file, or weights that do not fit; nothing is dropped silently.
    """
    state = tensors(path)
    if isinstance(model, nn.Linear):  # sentence-transformers' Dense holds its one layer by that name
        state = {key.removeprefix("linear."): value for key, value in state.items()}
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise LoadError(f"{path} does not fit its spec: {error}") from None
    twins = _tied(model)
    lacking = [key for key in found.missing_keys if key not in twins]
    if lacking or found.unexpected_keys:
        missing, unexpected = (keys or "none" for keys in (lacking, found.unexpected_keys))
        raise LoadError(f"{path} does not fit its spec: missing {missing}, unexpected {unexpected}")


def tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, or a torch file where a released checkpoint has nothing else: that one is opened by
    the reader that takes tensors and runs no code of the file's.

    Raises:
        LoadError: no such file, or one that holds other things.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LoadError(f"{path.parent} holds no {path.name}") from None
    except SafetensorError as error:
        raise LoadError(f"{path} is broken: {error}") from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise LoadError(f"{path} is broken, or holds more than tensors: {str(error).splitlines()[0]}") from None


def _tied(model: nn.Module) -> set[str]:
    """Names of weights that are one tensor with another before them: a language head's and the embeddings'."""
    seen: set[int] = set()
    tied = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in seen:
            tied.add(name)
        seen.add(id(weight))
    return tied
