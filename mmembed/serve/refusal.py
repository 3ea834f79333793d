"""How a refusal is told: in the words of the form that is spoken at a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import cohere, openai, tei
from .asked import Refused

_WORDS: dict[str, Callable[[Refused], Any]] = {"/v2/embed": cohere.error, "/embed": tei.error}


def tell(path: str, refused: Refused) -> Any:
    """A refusal as whoever asks at `path` reads it: OpenAI's words, where no other form is spoken."""
    return _WORDS.get(path, openai.error)(refused)
