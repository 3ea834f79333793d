"""How a refusal is told: in the words of the form that is spoken at a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import cohere, openai, tei
from .request import RequestError

_WORDS: dict[str, Callable[[RequestError], Any]] = {"/v2/embed": cohere.error, "/embed": tei.error}


def error_body(path: str, refused: RequestError) -> Any:
    """A refusal as whoever asks at `path` reads it: OpenAI's words, where no other form is spoken."""
    return _WORDS.get(path, openai.error)(refused)
