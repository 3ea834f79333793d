"""Parts of a message, text or picture, as OpenAI and Cohere write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from ..errors import InputError
from ..inputs import Thing
from .form import Form, Name
from .request import Pictures

Given = ParamSpec("Given")
Made = TypeVar("Made")


class ImageUrl(Form):
    """A picture. `detail` is taken for the sake of clients that send it, and changes nothing."""

    url: str
    detail: Name | None = None


class Part(Form):
    """A text, or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | str | None = None

    def thing(self, pictures: Pictures) -> Thing:
        """What it holds.

        Raises:
            InputError: it does not hold what its type says, or a picture that cannot be read.
        """
        if self.type == "text":
            if self.text is None or self.image_url is not None:
                raise InputError('a part of type "text" holds text, and nothing else')
            return self.text
        if self.image_url is None or self.text is not None:
            raise InputError('a part of type "image_url" holds image_url, and nothing else')
        return pictures(self.image_url if isinstance(self.image_url, str) else self.image_url.url)


def at(row: int, make: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
    """What `make` makes; an `InputError` of it is that of `row`."""
    try:
        return make(*given, **named)
    except InputError as error:
        error.item = row
        raise
