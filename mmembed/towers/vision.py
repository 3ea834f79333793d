"""Vision towers: how a picture becomes pixels, and pixels become features on a grid, whatever the library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import SpecError, check_known
from ..memory import is_out_of_memory
from ..nn.precision import alike
from ..nn.transfer import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESIZES = ("square", "shortest", "patches")
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers."""
ROUNDINGS = ("down", "even")
LIBRARIES = ("timm", "open_clip", "transformers")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an RGB picture becomes pixels; part of the spec, since other pixels are other vectors.

    Attributes:
        resize: "square" to `size` x `size`, whatever the shape; "shortest": the shorter side to `size`, then the middle
            `crop` x `crop`; "patches": the shape kept, both sides whole patches, at most `max_patches` (SigLIP 2).
        size, crop, patch: pixels. rounding: of half an odd margin that the crop leaves, "down" (transformers) or to the
            "even" number (torchvision, and so open_clip): one pixel, and other vectors.
        interpolation: by Pillow, on uint8, as the reference processors do.
        mean, std: of the channels in 0..1, applied on the device.
    """

    resize: str
    size: int = 0
    crop: int | None = None
    rounding: str = "down"
    patch: int | None = None
    max_patches: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_known("resize", self.resize, RESIZES)
        check_known("interpolation", self.interpolation, INTERPOLATIONS)
        check_known("rounding of a crop", self.rounding, ROUNDINGS)
        if self.crop is not None and self.crop > self.size:
            raise SpecError(f"a crop of {self.crop} pixels is wider than the {self.size} that the picture has")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Preprocess:
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            check_known("setting of preprocess", key, known)
        given = dict(values)
        given["mean"], given["std"] = tuple(given["mean"]), tuple(given["std"])
        return cls(**given)

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 -> (3, H', W') uint8."""
        from PIL import Image

        image = Image.fromarray(rgb)
        resample = Image.Resampling(INTERPOLATIONS.index(self.interpolation))
        width, height = self.target(*image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        if self.crop is not None:
            whole = math.floor if self.rounding == "down" else round
            left, top = (whole((side - self.crop) / 2) for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture of this size is resized to, before any crop."""
        if self.resize == "square":
            return self.size, self.size
        if self.resize == "shortest":
            short, long = min(width, height), max(width, height)
            other = int(self.size * long / short)
            return (self.size, other) if width <= height else (other, self.size)
        assert self.patch is not None
        assert self.max_patches is not None
        return _whole_patches(width, height, self.patch, self.max_patches)


def _whole_patches(width: int, height: int, patch: int, most: int, eps: float = 1e-5) -> tuple[int, int]:
    """The largest size of this shape whose sides are whole patches, `most` at most, by bisection on the scale, as the
    authors of NaFlex and transformers' Siglip2ImageProcessor search it."""

    def side(scale: float, pixels: int) -> int:
        return max(patch, math.ceil(scale * pixels / patch) * patch)

    low, high = eps / 10, 100.0
    while high - low >= eps:
        scale = (low + high) / 2
        if side(scale, width) // patch * (side(scale, height) // patch) <= most:
            low = scale
        else:
            high = scale
    return side(low, width), side(low, height)


class Seeing(nn.Module):
    """A module that looks at pictures: a picture becomes pixels on the host, and pixels become numbers on the device.

    Attributes:
        preprocess: picture -> pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess):
        super().__init__()
        self.preprocess = preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1) * 255, persistent=False)

    def preprocessing(self, preprocess: Preprocess) -> Self:
        """The same weights behind other pixels, of another size above all; normalised as before.

        Raises:
            SpecError: another mean or standard deviation.
        """
        if (preprocess.mean, preprocess.std) != (self.preprocess.mean, self.preprocess.std):
            raise SpecError("mean and std are what the tower was trained with: they stay as they are")
        other = copy.copy(self)
        other.preprocess = preprocess
        return other

    def prepare(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 -> pixels (3, H', W') uint8."""
        return self.preprocess(rgb)

    def normalised(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Pixels with the mean and standard deviation that the model was trained with, in its own dtype."""
        dtype = next(self.parameters()).dtype
        return ((pixels.float() - self.mean.float()) / self.std.float()).to(dtype)


class VisionTower(Seeing):
    """A vision model of some library, with its own preprocessing and feature layer.

    Attributes:
        model: the library's module. width: channels C of its features. preprocess: picture -> pixels.
    """

    def __init__(self, model: nn.Module, width: int, preprocess: Preprocess):
        super().__init__(preprocess)
        self.model = model
        self.width = width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of features for pixels of a size."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P C"]:
        """Features row by row of normalised pixels, without class or register tokens."""
        raise NotImplementedError

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P C"]:
        try:
            out = self.features(self.normalised(pixels))
        except AssertionError as error:  # timm's word for pictures of a size that its positions are not for
            height, width = pixels.shape[-2:]
            raise SpecError(f"the tower does not take pictures of {height} x {width} pixels: {error}") from None
        rows, columns = self.grid(*pixels.shape[-2:])
        if out.shape[1] != rows * columns:
            raise SpecError(f"the tower gave {out.shape[1]} features where {rows} x {columns} were due")
        if out.shape != (len(pixels), rows * columns, self.width):
            due = f"{len(pixels)} x {rows * columns} x {self.width}"
            told = " x ".join(map(str, out.shape))
            raise SpecError(f"the tower gave {told} numbers where {due} were due")
        return out

    def preprocessing(self, preprocess: Preprocess) -> Self:
        other = super().preprocessing(preprocess)
        other.check()
        return other

    def check(self) -> None:
        """Hold what the tower gives of a picture beside another to what it gives of it alone.

        Raises:
            SpecError: it is something else, or there are no features of such pictures on the grid.
        """
        noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
        pixels = to_device(torch.from_numpy(np.stack([self.prepare(rgb) for rgb in noise])), self.mean.device)
        name, size = type(self.model).__name__, " x ".join(map(str, pixels.shape[-2:]))
        with torch.no_grad():
            try:
                both, one = self(pixels), self(pixels[:1])
                self.check_places(pixels)
            except SpecError as error:
                raise SpecError(f"{name} is no tower for pictures of {size} pixels: {error}") from None
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise SpecError(f"{name} is no tower for pictures of {size} pixels: {error}") from error
        if not alike(both[:1], one):
            raise SpecError(f"{name} gives a picture other features in other company, or each time others")

    def check_places(self, pixels: UInt8[Tensor, "2 3 H W"]) -> None:
        """Raise `SpecError` where features are of no place of a picture, as far as the library leaves that open."""


def by_size(
    see: Callable[[UInt8[Tensor, "N 3 H W"]], Tensor], pictures: Sequence[NDArray[np.uint8]], device: torch.device
) -> list[Tensor]:
    """What `see` makes of each picture (3, H, W), in their order, on the device; those of one size go through it together."""
    of_size: dict[tuple[int, ...], list[int]] = {}
    for number, pixels in enumerate(pictures):
        of_size.setdefault(pixels.shape, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in of_size.values():
        stacked = to_device(torch.from_numpy(np.stack([pictures[number] for number in numbers])), device)
        found |= dict(zip(numbers, see(stacked), strict=True))
    return [found[number] for number in range(len(pictures))]


def build_vision(settings: Mapping[str, Any]) -> VisionTower:
    """The tower that a spec describes, with fresh weights.

    Args:
        settings: `library` ("timm", "open_clip" or "transformers"); `name` or `config`, what the library builds it
            from; `options` for timm; `layer`: "last", or -2, -3, ... for an earlier block's states without the final
            norm; `preprocess`, see `Preprocess`.
    """
    given = dict(settings)
    library = _library(given)
    if "preprocess" not in given:
        raise SpecError("vision needs 'preprocess'; mmembed.compose fills it in from the library's own settings")
    preprocess = Preprocess.of(given.pop("preprocess"))
    return _call(library.build, preprocess=preprocess, **given)


def compose_vision(settings: Mapping[str, Any]) -> tuple[VisionTower, dict[str, Any]]:
    """A tower as a caller describes it, pretrained weights included, and its entry in the spec.

    Args:
        settings: as for `build_vision`, where `preprocess` may hold only what differs from the library's own; besides
            `pretrained` and `weights` as the library's `compose` says.

    Raises:
        SpecError: what the library gives is no tower, which two pictures of noise tell.
    """
    given = dict(settings)
    library = _library(given)
    changed = given.pop("preprocess", {})
    model, entry = _call(library.compose, **given)
    entry["preprocess"] = {**entry["preprocess"], **changed}
    tower = library.tower(model, Preprocess.of(entry["preprocess"]), entry["layer"]).eval()
    tower.check()
    return tower, entry


def _library(given: dict[str, Any]) -> Any:
    name = given.pop("library", None)
    check_known("vision library", name, LIBRARIES)
    return import_module(f"{__package__}.vision_{name}")


def _call(part: Callable[..., Any], **given: Any) -> Any:
    known = inspect.signature(part).parameters
    for key in given:
        check_known(f"setting of {part.__module__.rpartition('.')[2]}", key, known)
    return part(**given)


def level_of(layer: str | int, levels: int) -> int:
    """Which of a tower's levels, counted from 0, `layer` means.

    Raises:
        SpecError: it is neither "last" nor a negative number, or the tower is not that deep.
    """
    if layer != "last" and not (isinstance(layer, int) and layer < 0):
        raise SpecError(f"layer is 'last', or -2, -3, ... counted from the end, not {layer!r}")
    level = levels - 1 if layer == "last" else levels + int(layer)
    if level < 0:
        raise SpecError(f"layer {layer}: the tower has {levels} levels")
    return level
