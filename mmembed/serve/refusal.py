"""How a refusal is told: in the words of the form that is spoken at a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response

from . import cohere, openai, tei
from .request import RequestError

_WORDS: dict[str, Callable[[RequestError], Any]] = {"/v2/embed": cohere.error, "/embed": tei.error}


def refusal(path: str, refused: RequestError, *, close: bool = False) -> Response:
    """A refusal as whoever asks at `path` reads it: OpenAI's words, where no other form is spoken.

    Args:
        close: nothing more is said over this connection, as where the rest of a request is not read.
    """
    headers = {"Connection": "close"} if close else {}
    if refused.wait is not None:
        headers["Retry-After"] = str(refused.wait)
    return JSONResponse(_WORDS.get(path, openai.error)(refused), refused.status, headers)
