"""What goes in: typed parts (`Text`, `Image`) and items made of them; nothing is guessed from a string."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .errors import InputError
from .images import Image, is_pil

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True)
class Text:
    """A text. A plain `str` means the same everywhere."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InputError(f"Text takes a str, not {type(self.text).__name__}")


Each = TypeVar("Each")
Part: TypeAlias = "Text | Image"
Item: TypeAlias = tuple[Part, ...]
Thing: TypeAlias = "str | Text | Image | PIL.Image.Image | tuple[Thing, ...] | Mapping[str, Thing] | InputError"


def to_item(thing: Thing) -> Item:
    """One thing as a caller writes it -> its typed parts, in order.

    A `str` is text, always: never a path, never a URL. A tuple, or a dict with "text" and / or "image", is one
    mixed item; the value of "image" may be anything `Image` takes, or a list of such. An `InputError` stands for a thing
    that could not be read, and is raised where that would be embedded.

    Raises:
        InputError: the thing is of no known type; the message says how to wrap it.
    """
    if isinstance(thing, (Text, Image)):
        return (thing,)
    if isinstance(thing, InputError):
        raise type(thing)(thing.reason) from thing.__cause__
    if isinstance(thing, str):
        return (Text(thing),)
    if isinstance(thing, tuple):
        if not thing:
            raise InputError("an empty tuple holds no part; a mixed item is e.g. ('a red car', Image(path))")
        return tuple(part for element in thing for part in to_item(element))
    if isinstance(thing, Mapping):
        return _from_mapping(thing)
    if is_pil(thing):
        return (Image(thing),)
    if isinstance(thing, list):
        raise InputError("a list is always many items; one item of several parts is a tuple or a dict")
    raise InputError(
        f"a {type(thing).__name__} is not guessed at: write mmembed.Image(...) for a picture "
        "(path, bytes, array, data URI) or a str for a text"
    )


def ordered(given: Iterable[Each], what: str, *one: type) -> Iterable[Each]:
    """Many of `what`, as things, ids and metadata are, which belong together by their order.

    Args:
        one: types that are one of them, beside texts.

    Raises:
        InputError: one of them, whose letters, parts or keys would be taken for many; a table, whose names would; or a set.
    """
    if isinstance(given, (str, bytes, *one)) or not isinstance(given, Iterable):
        raise InputError(f"many {what} are taken; one {type(given).__name__} goes in a list")
    if isinstance(given, (set, frozenset)):
        raise InputError(f"a set has no order, and {what} come in theirs: give a list of them")
    if getattr(given, "ndim", 1) == 2 and hasattr(given, "columns"):
        raise InputError(f"a {type(given).__name__} gives its columns by name: give {what} as one of them, table[name]")
    return given


def as_now(thing: Thing) -> Thing:
    """The thing as it is now: whoever makes things one by one, as a camera or a loader of batches does, may make the next in the
    same array, picture or dict. One that cannot be read is its error."""
    if isinstance(thing, (str, Text)):
        return thing
    try:
        return tuple(part if isinstance(part, Text) else part.as_now() for part in to_item(thing))
    except InputError as error:
        return error


def _from_mapping(thing: Mapping[str, Thing]) -> Item:
    unknown = [key for key in thing if key not in ("text", "image")]
    if unknown or not thing:
        raise InputError(f"a mixed item has the keys 'text' and 'image', not {list(thing)}")
    parts: list[Part] = []
    for key, value in thing.items():
        many: list[Any] = value if isinstance(value, list) else [value]
        for element in many:
            if key == "text":
                parts.append(element if isinstance(element, Text) else Text(element))
            else:
                parts.append(element if isinstance(element, Image) else Image(element))
    if not parts:
        raise InputError("the item holds no part: its lists are empty")
    return tuple(parts)


MODALITIES = ("text", "image", "image+text")


def modality(item: Item) -> str:
    """The modality of an item, one of `MODALITIES`, as prompts and balanced search name it."""
    if len(item) == 1:
        return "image" if isinstance(item[0], Image) else "text"
    kinds = {"image" if isinstance(part, Image) else "text" for part in item}
    return "+".join(sorted(kinds))
