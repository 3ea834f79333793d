"""Pictures changed by chance before the tower sees them: where, how and in what colours a thing is drawn, and not what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFilter

from ..errors import ImageError, SpecError
from ..images import Image
from ..inputs import Item
from ..registry import Registry

Picture = PillowImage.Image
"""Always RGB; what comes in from outside its frame is white."""
Change = Callable[..., Picture]
"""change(picture, rng, *, settings) -> a picture."""
WHITE = (255, 255, 255)

augmentations: Registry[Change] = Registry("augmentation")


def augmented(
    item: Item, settings: Sequence[Mapping[str, Any]], rng: np.random.Generator, *, ease: float = 0.0
) -> Item:
    """An item whose pictures went through the changes, one after the other, each with its `chance`; texts stay.

    With an `ease` above 0 the chances of a picture are times u ** ease, u drawn for it between 0 and 1.

    A picture that cannot be read stays as it is, for whoever reads it next to say so.
    """
    if not settings:
        return item
    return tuple(_changed(part, settings, rng, ease) if isinstance(part, Image) else part for part in item)


def _changed(image: Image, settings: Sequence[Mapping[str, Any]], rng: np.random.Generator, ease: float) -> Image:
    try:
        picture = PillowImage.fromarray(image.load())
    except ImageError:
        return image
    share = rng.random() ** ease if ease else 1.0
    for each in settings:
        given = dict(each)
        change, chance = augmentations[given.pop("kind")], given.pop("chance", 1.0)
        if rng.random() < chance * share:
            picture = change(picture, rng, **given)
    return Image(picture)


def _within(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    low, high = bounds
    return float(rng.uniform(low, high))


@augmentations.register("shrink")
def shrink(picture: Picture, rng: np.random.Generator, *, side: Sequence[int] = (32, 128)) -> Picture:
    """Its longer side brought to a length within `side`, where it is longer: what comes after costs less and sees less."""
    longest = int(rng.integers(side[0], side[-1] + 1))
    out = picture.copy()
    out.thumbnail((longest, longest), PillowImage.Resampling.BICUBIC)
    return out


@augmentations.register("affine")
def affine(
    picture: Picture,
    rng: np.random.Generator,
    *,
    degrees: float = 15.0,
    scale: Sequence[float] = (0.8, 1.2),
    aspect: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.1,
) -> Picture:
    """Turned by up to `degrees`, made larger or smaller within `scale`, longer one way by up to exp(`aspect`), sheared, and moved
    by up to `shift` of its side."""
    angle, size = np.deg2rad(rng.uniform(-degrees, degrees)), _within(rng, scale)
    long, slant = np.exp(rng.uniform(-aspect, aspect)), rng.uniform(-shear, shear)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    way = np.linalg.inv(size * turn @ np.array([[long, slant], [0, 1 / long]]))  # from what is shown to what was there
    sides = np.array([picture.width, picture.height])
    start = sides / 2 - way @ (sides * (0.5 + rng.uniform(-shift, shift, 2)))
    places = (*way[0], start[0], *way[1], start[1])
    return picture.transform(
        picture.size, PillowImage.Transform.AFFINE, places, PillowImage.Resampling.BILINEAR, fillcolor=WHITE
    )


@augmentations.register("elastic")
def elastic(picture: Picture, rng: np.random.Generator, *, cells: int = 4, by: float = 0.05) -> Picture:
    """The corners of `cells` x `cells` cells, of a pixel at least, moved by up to `by` of the side, what lies between bent
    along."""
    if cells < 1:
        raise SpecError(f"cells={cells}: at least one")
    sides = np.array([picture.width, picture.height])
    counts = np.minimum(cells, sides)
    ticks = (np.linspace(0, side, count + 1) for side, count in zip(sides, counts, strict=True))
    corners = np.stack(np.meshgrid(*ticks, indexing="ij"), -1)
    moved = corners + rng.uniform(-by, by, corners.shape) * sides
    mesh = []
    for x in range(counts[0]):
        for y in range(counts[1]):
            box = tuple(int(v) for v in (*corners[x, y], *corners[x + 1, y + 1]))
            around = (moved[x, y], moved[x, y + 1], moved[x + 1, y + 1], moved[x + 1, y])
            mesh.append((box, tuple(float(v) for corner in around for v in corner)))
    return picture.transform(
        picture.size, PillowImage.Transform.MESH, mesh, PillowImage.Resampling.BILINEAR, fillcolor=WHITE
    )


@augmentations.register("colour")
def colour(
    picture: Picture,
    rng: np.random.Generator,
    *,
    hue: float = 0.1,
    saturation: float = 0.4,
    contrast: float = 0.2,
    brightness: float = 0.1,
) -> Picture:
    """Hue turned by up to `hue` of half a circle, saturation and contrast times 1 - s to 1 + s, each channel lighter or darker by
    up to `brightness`. White stays white where only hue and saturation change."""
    angle = np.pi * rng.uniform(-hue, hue)
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    near = (1 - cos) / 3
    turn = np.array(
        [
            [cos + near, near - sin, near + sin],
            [near + sin, cos + near, near - sin],
            [near - sin, near + sin, cos + near],
        ]
    )
    full = 1 + rng.uniform(-saturation, saturation)
    matrix = (full * np.eye(3) + (1 - full) / 3) @ turn * (1 + rng.uniform(-contrast, contrast))
    moved = np.c_[matrix, 255 * rng.uniform(-brightness, brightness, 3)]
    return picture.convert("RGB", tuple(float(v) for v in moved.ravel()))


@augmentations.register("flat")
def flat(
    picture: Picture, rng: np.random.Generator, *, windows: Sequence[int] = (3, 5), colours: Sequence[int] = (4, 12)
) -> Picture:
    """In few flat colours, as posters and pictographs are: smoothed in one of `windows` by the median or the commonest value, or
    dark lines closed, and brought to a number of colours within `colours`."""
    window = int(rng.choice(windows))
    smooth = int(rng.integers(3))
    if smooth < 2:
        picture = picture.filter((ImageFilter.MedianFilter, ImageFilter.ModeFilter)[smooth](window))
    else:
        picture = picture.filter(ImageFilter.MaxFilter(window)).filter(ImageFilter.MinFilter(window))
    left = int(rng.integers(colours[0], colours[-1] + 1))
    return picture.quantize(left, PillowImage.Quantize.MEDIANCUT, kmeans=0, dither=PillowImage.Dither.NONE).convert(
        "RGB"
    )


@augmentations.register("outline")
def outline(picture: Picture, rng: np.random.Generator, *, strength: Sequence[float] = (0.3, 1.0)) -> Picture:
    """Edges drawn over in a dark line, or in a light one."""
    edges = np.asarray(picture.convert("L").filter(ImageFilter.FIND_EDGES), np.float32) / 255
    edges[[0, -1]] = edges[:, [0, -1]] = 0  # the filter leaves the frame as it was
    line = np.minimum(edges * 3, 1)[..., None] * _within(rng, strength)
    drawn = np.asarray(picture, np.float32) * (1 - line) + line * (255 if rng.random() < 0.3 else 0)
    return PillowImage.fromarray(drawn.astype(np.uint8))


@augmentations.register("blur")
def blur(picture: Picture, rng: np.random.Generator, *, radius: Sequence[float] = (0.5, 2.0)) -> Picture:
    """By a Gaussian of a radius in pixels."""
    return picture.filter(ImageFilter.GaussianBlur(_within(rng, radius)))


@augmentations.register("noise")
def noise(picture: Picture, rng: np.random.Generator, *, by: float = 0.05) -> Picture:
    """Normal noise of up to so much of the range."""
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(255 * rng.uniform(0, by))
    return PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


@augmentations.register("hole")
def hole(picture: Picture, rng: np.random.Generator, *, sides: Sequence[float] = (0.1, 0.35)) -> Picture:
    """A rectangle of one colour laid over it, its sides within `sides` of the picture's (arXiv 1708.04896)."""
    size = [max(1, int(_within(rng, sides) * side)) for side in picture.size]
    at = [int(rng.integers(side - own + 1)) for side, own in zip(picture.size, size, strict=True)]
    out = picture.copy()
    shade = tuple(int(v) for v in rng.integers(0, 256, 3))
    out.paste(shade, (at[0], at[1], at[0] + size[0], at[1] + size[1]))
    return out
