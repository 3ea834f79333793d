"""OpenAI's form of embeddings, with vLLM's `messages` for pictures beside `input`."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from ..errors import InputError
from ..inputs import Thing
from .content import Part, at
from .form import Form, Many, Name, Texts
from .request import EmbedRequest, EmbedResponse, Pictures, RequestError, Side, text


class Message(Form):
    """What one side of a conversation says. `name` is taken for the sake of clients that send it, and changes nothing."""

    role: Literal["system", "user"]
    content: str | Many[Part]
    name: Name | None = None


def _many(given: Any) -> Any:
    """Conversations, where one alone is given too."""
    one = isinstance(given, list) and not (given and isinstance(given[0], list))
    return [given] if one else given


class Request(Form):
    """`input` or `messages`, one conversation or many; the rest says how.

    What OpenAI has no word for goes by extra fields (`extra_body` of its client): `input_type`, `prompt_name`, `instruction`.
    `user` is taken for the sake of clients that send it, and changes nothing; so are, beside messages, words that vLLM's clients
    say of their template, where they say what it does here.
    """

    meant = "input"
    model: Name | None = None
    input: Texts | None = None
    messages: Annotated[Many[Many[Message]], BeforeValidator(_many)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: Name | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    add_special_tokens: bool = True
    continue_final_message: bool = False
    add_generation_prompt: bool = False
    input_type: Literal["query", "document", "passage"] | None = None
    prompt_name: Name | None = None
    instruction: str | None = None


def read(request: Request, pictures: Pictures, longest: int) -> EmbedRequest:
    """What an OpenAI client asks of a model that reads `longest` tokens.

    Raises:
        RequestError: it cannot be asked of any model here. InputError: a thing that cannot be embedded, by its row.
    """
    if (request.input is None) == (request.messages is None):
        raise RequestError("give either input or messages", param="input")
    if not request.add_special_tokens and request.input is not None:
        raise RequestError("add_special_tokens=false is no vector of this model", param="add_special_tokens")
    for name in ("continue_final_message", "add_generation_prompt"):
        if getattr(request, name):
            raise RequestError(f"{name}=true is no vector of this model", param=name)
    cut = request.truncate_prompt_tokens
    if cut is not None and -1 < cut < longest:
        raise RequestError(
            f"items are cut at the {longest} tokens that the model reads, no sooner: truncate_prompt_tokens is that, -1 or "
            "absent",
            param="truncate_prompt_tokens",
        )
    instruction = request.instruction
    if request.messages is not None:
        said = [_conversation(row, messages, pictures) for row, messages in enumerate(request.messages)]
        things = [thing for thing, _ in said]
        told = {own for _, own in said}
        if len(told) > 1:
            raise RequestError(
                "conversations with different system messages go in requests of their own", param="messages"
            )
        if told != {None} and instruction is not None:
            raise RequestError("give instruction or a system message", param="instruction")
        instruction = instruction or next(iter(told), None)
    else:
        things = [at(row, text, one) for row, one in enumerate(request.input or ())]
    sides: dict[str | None, Side | None] = {"query": "query", "document": "document", "passage": "document", None: None}
    return EmbedRequest(
        things=tuple(things),
        side=sides[request.input_type],
        prompt_name=request.prompt_name,
        instruction=instruction,
        truncate_dim=request.dimensions,
        truncate="error" if cut is None else "end",
    )


def _conversation(row: int, messages: list[Message], pictures: Pictures) -> tuple[Thing, str | None]:
    """One item, and what the system message tells of all."""
    system = [m for m in messages if m.role == "system"]
    users = [m for m in messages if m.role == "user"]
    if len(users) != 1 or len(system) > 1 or (system and messages[0].role != "system"):
        raise InputError("a conversation is one user message, after a system message if any", row)
    told = None
    if system:
        content = system[0].content
        if not isinstance(content, str) and any(part.type != "text" for part in content):
            raise InputError(
                "the system message says what is to be done, in words: a picture goes into the user message", row
            )
        told = content if isinstance(content, str) else " ".join(part.text or "" for part in content)
    content = users[0].content
    parts: list[Thing] = [content] if isinstance(content, str) else [at(row, p.thing, pictures) for p in content]
    if not parts:
        raise InputError("the user message is empty", row)
    if all(isinstance(part, str) for part in parts):
        at(row, text, "".join(map(str, parts)))
    return tuple(parts), told


def write(request: Request, answer: EmbedResponse, model: str) -> dict[str, Any]:
    """The answer as OpenAI's clients read it."""
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": row, "embedding": _coded(vector, request.encoding_format)}
            for row, vector in enumerate(answer.vectors)
        ],
        "model": model,
        "usage": usage,
    }


def _coded(vector: np.ndarray, form: str) -> Any:
    return vector if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()


def error(refused: RequestError) -> dict[str, Any]:
    """A refusal in OpenAI's words."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.reason, "type": kind, "param": refused.param, "code": refused.status}}
