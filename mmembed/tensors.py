"""Files of tensors, safetensors or torch's own, read without running anything that lies in them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import LoadError


def tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, or a torch file where a released checkpoint has nothing else: that one is opened by
    the reader that takes tensors and runs no code of the file's.

    Raises:
        LoadError: no such file, or one that holds other things.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([nn.Linear]):  # some put a whole layer there
            held = torch.load(path, map_location="cpu", weights_only=True)
        return held.state_dict() if isinstance(held, nn.Linear) else held
    except FileNotFoundError:
        raise LoadError(f"{path.parent} holds no {path.name}") from None
    except SafetensorError as error:
        raise LoadError(f"{path} is broken: {error}") from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise LoadError(f"{path} is broken, or holds more than tensors: {str(error).splitlines()[0]}") from None
