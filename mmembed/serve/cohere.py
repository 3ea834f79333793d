"""Cohere's form of embeddings, version 2."""

from __future__ import annotations

import base64
import uuid
from typing import Any, Literal

from pydantic import Field

from ..errors import InputError
from ..inputs import Thing
from ..search.quantizer import Quantizer
from .content import Part, at
from .form import Form, Many, Name
from .request import EmbedRequest, EmbedResponse, Pictures, RequestError, Side, text

Kind = Literal["float", "base64", "binary", "ubinary", "int8", "uint8"]


class Input(Form):
    meant = "content"
    content: Many[Part]


class Request(Form):
    """One of `texts`, `images` (data URIs) and `inputs` (texts and images mixed)."""

    meant = "texts"
    model: Name | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering", "image"]
    texts: Many[str] | None = None
    images: Many[str] | None = None
    inputs: Many[Input] | None = None
    embedding_types: Many[Kind] = Field(default=["float"], min_length=1)
    output_dimension: int | None = Field(default=None, ge=1)
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: int | None = None


def read(request: Request, pictures: Pictures, prompts: frozenset[str], width: int) -> EmbedRequest:
    """What a Cohere client asks of a model with these prompts and vectors of so many numbers.

    Raises:
        RequestError, InputError: as in `mmembed.serve.openai.read`. SpecError: binary codes of numbers that fill no whole bytes.
    """
    if sum(given is not None for given in (request.texts, request.images, request.inputs)) != 1:
        raise RequestError("give one of texts, images and inputs")
    if request.truncate == "START":
        raise RequestError("truncate=START is not offered: END or NONE", param="truncate")
    if request.max_tokens is not None:
        raise RequestError("max_tokens is not offered", param="max_tokens")
    if {"int8", "uint8"} & set(request.embedding_types):
        raise RequestError(
            "int8 and uint8 need the ranges of a collection, which one request does not have: ask for float, base64, "
            "binary or ubinary",
            param="embedding_types",
        )
    for kind in {"binary", "ubinary"} & set(request.embedding_types):
        Quantizer(kind, request.output_dimension or width)
    things: list[Thing]
    if request.texts is not None:
        things = [at(row, text, one) for row, one in enumerate(request.texts)]
    elif request.images is not None:
        things = [at(row, pictures, one) for row, one in enumerate(request.images)]
    else:
        things = [at(row, _mixed, one, pictures) for row, one in enumerate(request.inputs or ())]
    sides: dict[str, Side] = {"search_query": "query", "search_document": "document", "image": "document"}
    return EmbedRequest(
        things=tuple(things),
        side=sides.get(request.input_type),
        prompt_name=request.input_type if request.input_type in prompts else None,
        truncate_dim=request.output_dimension,
        truncate="error" if request.truncate == "NONE" else "end",
    )


def _mixed(one: Input, pictures: Pictures) -> Thing:
    if not one.content:
        raise InputError("its content is empty")
    parts = tuple(part.thing(pictures) for part in one.content)
    if all(isinstance(part, str) for part in parts):
        text("".join(map(str, parts)))
    return parts


def write(request: Request, answer: EmbedResponse) -> dict[str, Any]:
    """The answer as Cohere's clients read it; binary codes are signs, packed eight to a byte, as theirs are."""
    made: dict[str, Any] = {}
    for kind in dict.fromkeys(request.embedding_types):
        if kind == "float":
            made[kind] = list(answer.vectors)
        elif kind == "base64":
            made[kind] = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in answer.vectors]
        else:
            made[kind] = Quantizer(kind, answer.vectors.shape[1]).encode(answer.vectors).tolist()
    return {
        "id": str(uuid.uuid4()),
        "embeddings": made,
        "texts": request.texts or [],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.tokens}},
        "response_type": "embeddings_by_type",
    }


def error(refused: RequestError) -> dict[str, Any]:
    """A refusal in Cohere's words."""
    return {"message": refused.reason}
