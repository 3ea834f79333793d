"""The form of text-embeddings-inference: texts in, bare lists of numbers out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .content import at
from .form import Form, Name, Texts
from .request import EmbedRequest, EmbedResponse, RequestError, text


class Request(Form):
    """`inputs` and how they are read; a text that is too long is an error unless `truncate`."""

    meant = "inputs"
    inputs: Texts
    normalize: bool = True
    truncate: bool | None = False
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: Name | None = None
    dimensions: int | None = Field(default=None, ge=1)


def read(request: Request) -> EmbedRequest:
    """What a client of text-embeddings-inference asks.

    Raises:
        RequestError, InputError: as in `mmembed.serve.openai.read`.
    """
    if not request.normalize:
        raise RequestError("normalize=false is not offered: vectors are as the model's own spec gives them")
    if request.truncate and request.truncation_direction.lower() == "left":
        raise RequestError("truncation_direction=Left is not offered")
    return EmbedRequest(
        things=tuple(at(row, text, one) for row, one in enumerate(request.inputs)),
        prompt_name=request.prompt_name,
        truncate_dim=request.dimensions,
        truncate="end" if request.truncate else "error",
    )


def write(answer: EmbedResponse) -> list[Any]:
    """Rows of numbers."""
    return list(answer.vectors)


def error(refused: RequestError) -> dict[str, Any]:
    """A refusal in its words."""
    kinds = {413: "Validation", 422: "Tokenizer", 429: "Overloaded"}
    return {
        "error": refused.reason,
        "error_type": kinds.get(refused.status, "Validation" if refused.status < 500 else "Backend"),
    }
