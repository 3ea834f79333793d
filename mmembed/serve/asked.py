"""What a request asks and what answers it, whatever form it came in; and the pictures of a request, within its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import ImageError, InputError
from ..images import Image, measure
from ..inputs import Thing
from .fetch import fetch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Literal["query", "document"]


class Refused(Exception):
    """A request that is not served: why, in words for whoever sent it, and the HTTP status that says so."""

    def __init__(self, reason: str, status: int = 400, param: str | None = None, wait: int | None = None):
        super().__init__(reason)
        self.reason, self.status, self.param, self.wait = reason, status, param, wait


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Things to embed.

    Attributes:
        things: what each vector is of. side: takes the model's prompt of that side; prompt_name: names it; neither: the model's
            default prompt. instruction: what the prompt's {instruction} says. truncate_dim: numbers of a vector.
        truncate: what becomes of texts that are too long.
    """

    things: tuple[Thing, ...]
    side: Side | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    truncate_dim: int | None = None
    truncate: Literal["end", "error"] = "error"


@dataclass(frozen=True)
class Answer:
    """Vectors (N, D), float32, in the order of the things, and how many tokens all of them took."""

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may hold.

    Attributes:
        things: vectors. images, megapixels: pictures, and their pixels as their headers say them, before any is decoded.
        allow_url: whether pictures are fetched by URL, and then from the public internet only.
    """

    things: int = 2048
    images: int = 32
    megapixels: int = 128
    allow_url: bool = False


@dataclass
class Pictures:
    """The pictures of one request; each is measured when it is taken in, and none is decoded here. Those that are fetched come
    by `until`, of `time.monotonic`, all of them."""

    limits: Limits
    until: float = math.inf
    count: int = 0
    pixels: int = field(default=0)

    def __call__(self, reference: str) -> Image:
        """A picture by what a client writes for one: a data URI, or a URL where these are allowed; never a path.

        Raises:
            ImageError: it is neither, or no picture. Refused: the request holds too much.
        """
        self.count += 1
        if self.count > self.limits.images:
            raise Refused(f"more than {self.limits.images} pictures in one request", 413)
        if reference[:5].lower() == "data:":
            image = Image(reference)
        elif not self.limits.allow_url:
            raise ImageError("a picture is sent as a data URI, data:image/png;base64,...; this server fetches no URL")
        else:
            image = Image(fetch(reference, self.until))
        width, height = measure(image)
        self.pixels += width * height
        if self.pixels > self.limits.megapixels * 10**6:
            raise Refused(f"the pictures of one request have more than {self.limits.megapixels} million pixels", 413)
        return image


def text(value: str) -> str:
    """A text that holds something.

    Raises:
        InputError: an empty one, for which no client expects a vector.
    """
    if not value.strip():
        raise InputError("an empty text has no vector")
    return value
