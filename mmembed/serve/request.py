"""What a request asks and what answers it, whatever form it came in; and the pictures of a request, within its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import ImageError, InputError
from ..images import MAX_BYTES, Image, measure
from ..inputs import Thing
from .fetch import fetch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Literal["query", "document"]


class RequestError(Exception):
    """A request that is not served: why, in words for whoever sent it, and the HTTP status that says so."""

    def __init__(self, reason: str, status: int = 400, param: str | None = None, wait: int | None = None):
        super().__init__(reason)
        self.reason, self.status, self.param, self.wait = reason, status, param, wait


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Things to embed.

    Attributes:
        things: what each vector is of. side: takes the model's prompt of that side; prompt_name: names it; neither: the model's
            default prompt. instruction: what the prompt's {instruction} says. truncate_dim: numbers of a vector.
        truncate: what becomes of texts that are too long. names: what messages call the things, where they are no items of a
            list.
    """

    things: tuple[Thing, ...]
    side: Side | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    truncate_dim: int | None = None
    truncate: Literal["end", "error"] = "error"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbedResponse:
    """Vectors (N, D), float32, in the order of the things, and how many tokens all of them took."""

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may hold.

    Attributes:
        things: vectors. characters, all_characters: of the texts of one thing, and of all, the instruction counted with each,
            before any is tokenised, which takes a microsecond and hundreds of bytes a character, however few tokens are read.
        images, megapixels: pictures, and their pixels as their headers say them, before any is decoded.
        allow_url: whether pictures are fetched by URL, and then from the public internet only. fetched: bytes of all that are.
    """

    things: int = 2048
    characters: int = 2**18
    all_characters: int = 2**22
    images: int = 32
    megapixels: int = 128
    allow_url: bool = False
    fetched: int = MAX_BYTES

    def check(self, asked: EmbedRequest) -> None:
        """Look at what is asked before it is prepared.

        Raises:
            RequestError: nothing, or more than these.
        """
        if not asked.things:
            raise RequestError("nothing to embed: the list is empty")
        if len(asked.things) > self.things:
            raise RequestError(f"{len(asked.things)} things in one request; at most {self.things}", 413)
        told = len(asked.instruction or "")
        counts = [told + _characters(thing) for thing in asked.things]
        longest = max(range(len(counts)), key=counts.__getitem__)
        if counts[longest] > self.characters:
            name = asked.names[longest] if asked.names else f"item {longest}"
            also = f", {told} of them the instruction's" if told else ""
            raise RequestError(f"{name}: {counts[longest]} characters{also}; at most {self.characters} are read", 413)
        if sum(counts) > self.all_characters:
            also = ", the instruction counted with each thing" if told else ""
            raise RequestError(f"{sum(counts)} characters in one request{also}; at most {self.all_characters}", 413)


class Waits(Exception):
    """A picture has to be fetched first."""


@dataclass
class Pictures:
    """The pictures of one request; each is measured when it is taken in, and none is decoded here. Those that are fetched come
    by `until`, of `time.monotonic`, all of them; None: whoever reads here has no time to wait for any."""

    limits: Limits
    until: float | None = None
    count: int = 0
    pixels: int = 0
    fetched: int = 0

    def __call__(self, reference: str) -> Image:
        """A picture by what a client writes for one: a data URI, or a URL where these are allowed; never a path.

        Raises:
            ImageError: it is neither, or no picture. RequestError: the request holds too much. Waits: it is a URL, and there is
                no time to fetch it.
        """
        self.count += 1
        if self.count > self.limits.images:
            raise RequestError(f"more than {self.limits.images} pictures in one request", 413)
        if reference[:5].lower() == "data:":
            image = Image(reference)
        elif not self.limits.allow_url:
            raise ImageError("a picture is sent as a data URI, data:image/png;base64,...; this server fetches no URL")
        elif self.until is None:
            raise Waits
        else:
            data = fetch(reference, self.until)
            self.fetched += len(data)
            if self.fetched > self.limits.fetched:
                raise RequestError(f"the pictures of one request are over {self.limits.fetched} bytes", 413)
            image = Image(data)
        width, height = measure(image)
        self.pixels += width * height
        if self.pixels > self.limits.megapixels * 10**6:
            raise RequestError(
                f"the pictures of one request have more than {self.limits.megapixels} million pixels", 413
            )
        return image


def _characters(thing: Thing) -> int:
    return sum(map(_characters, thing)) if isinstance(thing, tuple) else len(thing) if isinstance(thing, str) else 0


def text(value: str) -> str:
    """A text that holds something.

    Raises:
        InputError: an empty one, for which no client expects a vector.
    """
    if not value.strip():
        raise InputError("an empty text has no vector")
    return value
