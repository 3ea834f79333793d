"""Vision-language models of transformers: how a picture becomes what their own tower takes, and what their forward is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..batch import Picture
from ..errors import InputError, SpecError, check_known
from ..nn.precision import alike
from .backbone import decoder
from .image_features import ImageFeatures

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "qwen_vl"),
    "llava_next": "llava_next",
    "paligemma": "paligemma",
    "llava_onevision": "llava_onevision",
    "mllama": "mllama",
    "qwen2_5_omni_thinker": "qwen_omni",
    "embedding_gemma2": "gemma",
}
"""model_type of transformers -> the file `native_<family>.py` that says how its forward is called."""
SETTINGS = ("library", "processor", "first", "text")

Resize = Callable[["PIL.Image.Image"], "PIL.Image.Image"]


def _to(width: int, height: int) -> Resize:
    """Always to one size."""
    return lambda image: image.resize((width, height))


def _square_if_below(side: int, to: int) -> Resize:
    """A picture with a side below `side` becomes a square of `to`."""
    return lambda image: image.resize((to, to)) if min(image.size) < side else image


def _at_least(side: int) -> Resize:
    """A side below `side` becomes `side`, the other stays."""
    return lambda image: image.resize((max(image.width, side), max(image.height, side)))


def _whole(factor: int, min_pixels: int, max_pixels: int) -> Resize:
    """Both sides multiples of `factor`, the area between the two: `smart_resize` of qwen_vl_utils, which unlike that of
    transformers never rounds a side to nothing."""

    def resized(image: PIL.Image.Image) -> PIL.Image.Image:
        width, height = image.size
        sides = [max(factor, round(side / factor) * factor) for side in (width, height)]
        if math.prod(sides) > max_pixels:
            scale = math.sqrt(height * width / max_pixels)
            sides = [max(factor, math.floor(side / scale / factor) * factor) for side in (width, height)]
        elif math.prod(sides) < min_pixels:
            scale = math.sqrt(min_pixels / (height * width))
            sides = [math.ceil(side * scale / factor) * factor for side in (width, height)]
        return image.resize((sides[0], sides[1]))

    return resized


class _Handed(Exception):
    """Ends a forward before its decoder runs."""


STEPS: Mapping[str, Callable[..., Resize]] = {
    "to": _to,
    "square_if_below": _square_if_below,
    "at_least": _at_least,
    "whole": _whole,
}


@dataclass(frozen=True)
class NativeTower:
    """What a vision-language model needs of a picture. It has no weights: tower and projector are the backbone's.

    Attributes:
        config: the model's configuration. processor: its image processor, the one over Pillow, whose pixels are those
            that released embedders were trained on (the one over torchvision rounds otherwise).
        first: what is done to a picture before it. text: how an image is written in a template; "" is its token alone.
        positions: as `ModelSpec` says. family: the file of `FAMILIES`.
        packed: whether tower and decoder are called one after the other; if not, the model's own forward calls both.
    """

    config: PreTrainedConfig
    processor: Any
    first: tuple[Resize, ...]
    text: str
    positions: str
    family: ModuleType
    packed: bool

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], config: PreTrainedConfig, positions: str, packed: bool = False
    ) -> NativeTower:
        """From a spec's `vision`.

        Args:
            settings: `processor`, the dict of an image processor of transformers; `first`, a list of `{"kind": one of
                STEPS, ...}`; `text`.

        Raises:
            UnknownName: a setting, a step or a model that is not known here.
        """
        for key in settings:
            check_known("setting of a native tower", key, SETTINGS)
        kind = config.model_type
        check_known("vision-language model", kind, FAMILIES)
        family = import_module(f"{__package__}.native_{FAMILIES[kind]}")
        processor = _processor(settings.get("processor", {}))
        if type(processor).__name__ != family.PROCESSOR:
            raise SpecError(f"a {kind} model takes the pixels of {family.PROCESSOR}, not of {type(processor).__name__}")
        return cls(
            config,
            processor,
            tuple(_step(each) for each in settings.get("first", ())),
            settings.get("text", ""),
            positions,
            family,
            packed,
        )

    @property
    def token(self) -> int:
        """Number of the token that stands for an image in a text."""
        return int(self.config.image_token_id)

    @property
    def brackets(self) -> tuple[list[int], list[int]]:
        """The tokens that open and close a picture, where the model has some: Omni tells pictures by them."""
        ends = (getattr(self.config, f"vision_{end}_token_id", None) for end in ("start", "end"))
        opening, closing = ([] if number is None else [int(number)] for number in ends)
        return opening, closing

    @property
    def apart(self) -> bool:
        """Whether items of other numbers of images change an item's vector: such a family's file says APART = True."""
        return bool(getattr(self.family, "APART", False))

    @property
    def most(self) -> int | None:
        """Images of an item at most; None is any number."""
        return getattr(self.family, "MOST", None)

    def prepare(self, rgb: NDArray[np.uint8]) -> Picture:
        """(H, W, 3) uint8 -> pixels as the processor lays them out, still uint8: they are normalised on the device.

        Raises:
            InputError: a picture of a shape that the model does not take.
        """
        from PIL import Image

        image = Image.fromarray(rgb)
        for step in self.first:
            image = step(image)
        try:
            pixels, also = getattr(self.family, "pixels", _pixels)(self, image)
        except ValueError as error:
            raise InputError(f"the picture does not fit this model: {error}") from None
        numbered = self.packed and self.positions != "sequential" and hasattr(self.family, "numbers")
        return Picture(pixels, also, self.family.numbers(self, also) if numbered else None)

    def image_ids(self, picture: Picture) -> list[int]:
        """The tokens that stand for a picture in the row."""
        return self.family.image_ids(self, picture)

    def look(self, model: PreTrainedModel, pictures: Sequence[Picture]) -> list[ImageFeatures]:
        """What the tower inside the model makes of pictures."""
        seen = self.family.seen(self, pictures, model.device)
        out: Any = model.get_image_features(
            **{**seen, "pixel_values": seen["pixel_values"].to(model.dtype)}, return_dict=True
        )
        deep = getattr(out, "deepstack_features", None) or ()
        return [ImageFeatures(tokens, tuple(part[k] for part in deep)) for k, tokens in enumerate(out.pooler_output)]

    def beside(self, ids: Int[Tensor, "1 T"], features: Sequence[ImageFeatures]) -> dict[str, Any]:
        """What the decoder is told besides tokens and their numbers, of a packed row and what is seen in it, in order."""
        if not features[0].deep:
            return {}
        return {
            "visual_pos_masks": ids == self.token,
            "deepstack_visual_embeds": [
                torch.cat(parts) for parts in zip(*(each.deep for each in features), strict=True)
            ],
        }

    def lighten(self, model: PreTrainedModel) -> None:
        """Make the tower inside the model do what it does with less work, where its family knows how."""
        if self.packed and hasattr(self.family, "lighten"):
            self.family.lighten(model)

    def handed(self, model: PreTrainedModel, ids: Int[Tensor, "1 T"], pictures: Sequence[Picture]) -> dict[str, Any]:
        """What the model's own forward hands its decoder of an item; the decoder does not run."""
        given: dict[str, Any] = {}

        def stop(_: Any, __: Any, told: dict[str, Any]) -> None:
            given.update(told)
            raise _Handed

        handle = decoder(model).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **self.inputs(ids, pictures, model.dtype))
        except _Handed:
            pass
        finally:
            handle.remove()
        return given

    def alike(self, ours: Mapping[str, Any], due: Mapping[str, Any]) -> bool:
        """Whether a decoder that is handed `ours` computes what it does of `due`: positions may begin elsewhere."""

        def near(a: Tensor, b: Tensor) -> bool:
            return a.shape == b.shape and alike(a, b, (1e-4, 0.02))

        numbers, own = (
            torch.arange(t["inputs_embeds"].shape[1]) if t.get("position_ids") is None else t["position_ids"].cpu()
            for t in (ours, due)
        )
        deep, deep_due = (told.get("deepstack_visual_embeds") or [] for told in (ours, due))
        return (
            near(ours["inputs_embeds"], due["inputs_embeds"])
            and bool((numbers - numbers.min() == own - own.min()).all())
            and len(deep) == len(deep_due)
            and all(near(a, b) for a, b in zip(deep, deep_due, strict=True))
            and (not deep or torch.equal(ours["visual_pos_masks"], due["visual_pos_masks"]))
        )

    def inputs(
        self, ids: Int[Tensor, "B T"], pictures: Sequence[Picture], dtype: torch.dtype
    ) -> dict[str, Tensor | None]:
        """What the model's forward is told besides tokens and mask, of right-padded `ids` and their pictures in order."""
        told = self.family.inputs(self, ids, pictures)
        told["pixel_values"] = told["pixel_values"].to(dtype)
        rows = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        return {**told, "position_ids": rows if self.positions == "sequential" else None}

    def normalised(self, pixels: Tensor, channels: int) -> Tensor:
        """uint8 -> as the processor rescales and normalises them, with the channels at dimension `channels`."""
        x = pixels.float()  # of its own memory: all below happens in it
        if self.processor.do_rescale:
            x *= self.processor.rescale_factor
        if self.processor.do_normalize:
            shape = [1] * x.ndim
            shape[channels] = -1
            mean, std = (
                torch.tensor(values, dtype=x.dtype, device=x.device).view(shape)
                for values in (self.processor.image_mean, self.processor.image_std)
            )
            x.sub_(mean).div_(std)
        return x


def _pixels(tower: NativeTower, image: PIL.Image.Image) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """What the processor itself makes of a picture, still uint8."""
    out = tower.processor(image, do_rescale=False, do_normalize=False)
    pixels = np.asarray(out.pop("pixel_values")).astype(np.uint8)
    return pixels, {name: np.asarray(value) for name, value in out.items()}


def _step(settings: Mapping[str, Any]) -> Resize:
    given = dict(settings)
    kind = given.pop("kind", None)
    check_known("step before an image processor", kind, STEPS)
    try:
        return STEPS[kind](**given)
    except TypeError as error:
        raise SpecError(f"step {kind!r} before an image processor: {error}") from None


def _processor(settings: Mapping[str, Any]) -> Any:
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    given = dict(settings)
    name = str(given.pop("image_processor_type", ""))
    made = get_image_processor_class_from_name(name.removesuffix("Fast").removesuffix("Pil") + "Pil")
    if made is None:
        raise SpecError(f"transformers has no image processor {name!r} over Pillow")
    return made(**given)
