"""What every kind of model has: a spec, heads behind its vectors, weights on disk, and a fingerprint of them all."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import LoadError, SpecError
from .nn.heads import build_head
from .nn.int8 import Int8Linear
from .nn.precision import INT8, PRECISIONS, cast, dtype_of, in_full, is_fitted
from .spec import FILE as SPEC_FILE
from .spec import ModelSpec
from .tensors import tensors

WEIGHTS_FILE = "weights.safetensors"
DRAWING = {
    *("normal_", "uniform_"),
    *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"),
}
"""What fresh weights are drawn by, as methods of tensors and in `torch.nn.init`."""


@contextmanager
def making() -> Iterator[None]:
    """While parts are made: on the host and in fp32, wherever and in whatever a caller has torch make things, and outside his
    autocast, which would round what they are tried out on, and his inference mode, in which weights would be of a kind that
    nobody may count the changes of, nor learn from."""
    default = torch.get_default_dtype()
    with ExitStack() as left:
        left.enter_context(torch.inference_mode(False))
        left.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                left.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class Model(nn.Module):
    """What every kind of model has: a spec, heads behind its vectors, and a place on disk.

    Args:
        spec: what it is.

    Attributes:
        autocasts: whether it computes under a caller's autocast, as long as weights that are trained, in fp32, stand beside
            others in half precision.
    """

    autocasts: bool = False

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.heads = nn.ModuleList()

    def add_heads(self, width: int) -> None:
        """The spec's heads, behind vectors of `width` numbers.

        Raises:
            SpecError: they do not end in the dimension that the spec says.
        """
        for settings in self.spec.heads:
            head = build_head(settings, width)
            self.heads.append(head)
            width = int(head.out)  # type: ignore[arg-type]
        if width != self.spec.dimension:
            raise SpecError(f"the parts give vectors of {width} numbers, the spec says dimension={self.spec.dimension}")

    @property
    def shares(self) -> bool:
        """Whether tokens with which several items of a batch begin may be computed once."""
        return False

    @property
    def padded(self) -> bool:
        """Whether items of a batch lie beside each other, filled up to the longest."""
        return False

    @property
    def price(self) -> float:
        """What it costs a token to look up shared ones, in tokens, see `mmembed.prefix_tree.tree`."""
        return 0.0

    @property
    def token_sizes(self) -> tuple[int, int, int]:
        """Numbers of a token between layers and inside an MLP, and bytes of one: what a token takes."""
        return self.spec.dimension, 4 * self.spec.dimension, self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        trained = (part for part in self.modules() if not is_fitted(part))
        return next(weight.dtype for part in trained for weight in part.parameters(recurse=False))

    @property
    def precision(self) -> str:
        """What it computes in, by the name that `load` takes; one that has none there goes by torch's, such as "float64"."""
        if any(isinstance(part, Int8Linear) for part in self.modules()):
            return INT8
        own = self.dtype
        return next((name for name, dtype in PRECISIONS.items() if dtype == own), str(own).removeprefix("torch."))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def through_heads(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Vectors as the last head leaves them, in fp32."""
        for head in self.heads:
            own = next((p.dtype for p in head.parameters()), vectors.dtype)
            vectors = head(vectors.to(own)).float()
        return vectors

    @making()
    def with_head(self, settings: Mapping[str, Any], fitted: Mapping[str, Tensor]) -> Self:
        """The same parts and one head more, behind the others, with weights that were fitted, not trained; shorter
        dimensions are forgotten, for the numbers are others now."""
        head = build_head(settings, self.spec.dimension)
        head.load_state_dict(dict(fitted))
        model = copy.copy(self)
        model._modules = dict(self._modules)
        model.heads = nn.ModuleList([*self.heads, cast(head, self.dtype).to(self.device).eval()])
        behind = (*self.spec.heads, dict(settings))
        width = int(head.out)  # type: ignore[arg-type]
        model.spec = dataclasses.replace(self.spec, heads=behind, dimension=width, dimensions=())
        return model

    def fingerprint(self) -> str:
        """sha256 of the spec and of every weight as it is held: equal exactly when vectors of the same tokens are. What a
        tokenizer writes of itself is no part of it, for that changes when it is saved, pads, or is read by another version."""
        said = json.loads(self.spec.to_json())
        for key in ("name", "languages", "licence", "summary", "weights"):
            said.pop(key)
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_whole(self) -> None:
        """Raise `SpecError` for a model whose weights were rounded to int8: nothing would bring them back."""
        if self.precision == INT8:
            raise SpecError(
                "weights in int8 are not written: load in fp32 to save, and with precision='int8' to encode"
            )

    def save(self, folder: Path) -> None:
        """Write spec.json and weights.safetensors, weights rounded to `spec.weights`, but for those that `cast` leaves in fp32.

        Raises:
            SpecError: a model in int8.
        """
        self.check_whole()
        dtype, twins = dtype_of(self.spec.weights), tied(self)
        own = {name: t for name, t in self.state_dict(keep_vars=True).items() if name not in twins}
        rounded = {id(t) for t in own.values() if t.is_floating_point()} - in_full(self, dtype)
        state = {
            name: (t.to(dtype) if id(t) in rounded else t).detach().cpu().contiguous().clone()
            for name, t in own.items()
        }
        write_tensors(folder / WEIGHTS_FILE, state)
        (folder / SPEC_FILE).write_text(self.spec.to_json(), encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file that whoever may read other new files may read, or might read the one that it takes the place of:
    safetensors leaves it to its owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


class Undrawn(TorchFunctionMode):
    """While this context lasts, and in its thread, weights are not drawn: each is the mean of what it would be drawn from, until
    it is read. To draw them takes longer than to read them, 2.8 s for 0.6 billion on two cores.

    Parameters alone are spared: whoever draws again what lies outside of some bounds draws it into a tensor of its own, and would
    do so for ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")
        if name not in DRAWING or not isinstance(tensor, nn.Parameter):
            return func(*args, **kwargs)
        told = [*args[1:], *(kwargs[key] for key in ("mean", "std", "from", "a", "to", "b") if key in kwargs)]
        with torch.no_grad():
            if name == "normal_":
                return tensor.fill_(told[0] if told else 0)
            return tensor.fill_(sum(told[:2]) / 2 if name == "uniform_" and told else 0)


def fill(model: nn.Module, path: Path, under: str = "") -> None:
    """Load a file that must hold exactly the weights of `model`; of two that are one tensor, the first.

    Args:
        under: what stands before their names there; others are not read.

    Raises:
        LoadError: no such file, or weights that do not fit; nothing is dropped silently.
    """
    state = {name.removeprefix(under): held for name, held in tensors(path).items() if name.startswith(under)}
    if isinstance(model, nn.Linear):  # sentence-transformers' Dense holds its one layer by that name
        state = {key.removeprefix("linear."): value for key, value in state.items()}
    _fit(model, state, path, under)


def fill_over(model: nn.Module, below: Mapping[str, Tensor], path: Path) -> None:
    """Load a file that holds some weights of `model`; the others are those of the same name in `below`.

    Raises:
        LoadError: no such file, or weights that do not fit.
    """
    own = model.state_dict().keys() - tied(model)  # by its second name a tensor of the file would be written over
    _fit(model, {**{name: tensor for name, tensor in below.items() if name in own}, **tensors(path)}, path)


def fill_by_name(model: nn.Module, folder: Path, names: Mapping[str, str]) -> None:
    """Load the weights of `model` from among those in the safetensors files of a folder; `names` are theirs by ours.

    Raises:
        LoadError: weights that are not there, or do not fit.
    """
    from safetensors import safe_open

    theirs: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            theirs |= {name: file.get_tensor(name) for name in set(file.keys()) & set(names.values())}
    missing = sorted(set(names.values()) - theirs.keys())
    if missing:
        raise LoadError(f"{folder} lacks weights: {', '.join(missing)}")
    _fit(model, {ours: theirs[name] for ours, name in names.items()}, folder)


def _fit(model: nn.Module, state: Mapping[str, Tensor], path: Path, under: str = "") -> None:
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise LoadError(f"{path} does not fit its spec: {error}") from None
    twins = tied(model)
    lacking = [key for key in found.missing_keys if key not in twins]
    if lacking or found.unexpected_keys:
        missing, unexpected = ([under + key for key in keys] or "none" for keys in (lacking, found.unexpected_keys))
        raise LoadError(f"{path} does not fit its spec: missing {missing}, unexpected {unexpected}")


def tied(model: nn.Module) -> set[str]:
    """Names of weights that are one tensor with another before them: a language head's and the embeddings'."""
    seen: set[int] = set()
    twins = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in seen:
            twins.add(name)
        seen.add(id(weight))
    return twins
