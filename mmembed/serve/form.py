"""What every form of request has in common: JSON of bounded size, strict types, and fields that are known by name."""

from __future__ import annotations

import difflib
import json
import re
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .request import Limits, RequestError

Item = TypeVar("Item")
Read = TypeVar("Read", bound="Form")

VALUES = 32
"""Strings, numbers and brackets of a body for each thing and picture that a request may hold: a picture in a message has 11."""
_VALUE = re.compile(rb'[\s,:\]}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[^"\[\]{},:\s]++|[\[{]|\Z)', re.DOTALL)
"""The next of them; every part is possessive and every text has one, so that no body takes more than one pass."""
_BEFORE = (b"[", b"{", b",", b":")
"""What stands before each but the first: where there are few of these, within texts too, they need no telling apart."""


class _FailFast(FailFast):
    __hash__ = object.__hash__  # as a part of a union has to have one


Many: TypeAlias = Annotated[list[Item], _FailFast()]
"""A list that is refused at its first wrong item: errors of all of them would be many times as large as the body."""
Name: TypeAlias = Annotated[str, Field(max_length=4096)]
"""A name that is looked up or told, not read."""


class Form(BaseModel):
    """A form of request, or a part of one.

    Attributes:
        meant: the field that most mean who guess at a name.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    meant: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Refuses the first field of another name, and names the nearest one."""
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                short = name[:60]
                near = next(iter(difflib.get_close_matches(short, cls.model_fields, n=1, cutoff=0.5)), cls.meant)
                hint = "" if near is None else f" Did you mean {near!r}?"
                known = ", ".join(cls.model_fields)
                raise RequestError(f"no field is called {short!r}.{hint} Known: {known}.", param=short)
        return given


def parse(body: bytes, form: type[Read], limits: Limits) -> Read:
    """A body as a form. What a body may hold is counted before anything is built of it: a few bytes of it make hundreds.

    Raises:
        RequestError: it is no JSON, not of that form, which is told by the first place that is wrong, or of too many values.
    """
    most = VALUES * (limits.things + limits.images)
    if sum(map(body.count, _BEFORE)) >= most and next(islice(_VALUE.finditer(body), most, None), None) is not None:
        raise RequestError(
            f"more than {most} values in one request: it holds at most {limits.things} things, texts as texts and not as "
            "token ids",
            413,
        )
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise RequestError(f"{place}: {first['msg']}" if place else first["msg"], 400, place or None) from None


def _texts(given: Any, field: ValidationInfo) -> Any:
    """One text or many, as a list; what else there is is refused by its number, which pydantic does not say of a union."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        return given  # for pydantic to refuse
    if given and all(map(_is_ids, given)):
        # Ids of a client's own tokenizer mean other words to any other model.
        raise RequestError(
            f"{field.field_name} is texts here, not token ids: a client that tokenises by itself has a switch for it, such as "
            "check_embedding_ctx_length=False of langchain",
            param=field.field_name,
        )
    for row, one in enumerate(given):
        if not isinstance(one, str):
            raise RequestError(f"item {row}: a text is wanted, not {json.dumps(one)[:60]}", param=field.field_name)
    return given


def _is_ids(one: Any) -> bool:
    """Whether it is a token id, or a text as token ids."""
    return type(one) is int or (isinstance(one, list) and all(type(each) is int for each in one))


Texts: TypeAlias = Annotated[Many[str], BeforeValidator(_texts)]
"""A text, or a list of them."""
