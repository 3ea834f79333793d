"""Token Prepending: a placeholder before the quoted sentence carries the last token's state through the early layers.

It needs a path of its own through the engine, an intervention between layers: what the placeholder holds at a layer is a state
of that very forward, which no prompt, mask or pooling can give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .in_one_word import _META, BOTH, KNOWLEDGE, PICTURE, PRETENDED_COT, PROMPTEOL
from .method import Method

_PAPER = "Token Prepending, arXiv 2412.11556"


def prepended(template: str) -> str:
    """A one-word prompt with the placeholder before its quoted sentence."""
    return template.replace('"{text}"', '{placeholder} "{text}"')


def _asked(text: str | tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
    """The authors' prompts for texts; for pictures, which they do not try, the same before E5-V's questions."""
    texts = prepended(text) if isinstance(text, str) else tuple(map(prepended, text))
    return {"text": texts, "image": "{placeholder}" + PICTURE, "image+text": "{placeholder}" + BOTH}


def _method(name: str, text: str | tuple[str, ...]) -> Method:
    return Method(
        name=name,
        paper=_PAPER,
        templates=_asked(text),
        cleaning="one_sentence",
        layers=(-2,),
        intervention={"kind": "token_prepending", "start": 1, "stop": 7},
    )


METHODS = (
    _method("token-prepending", PROMPTEOL),
    _method("token-prepending-cot", PRETENDED_COT),
    _method("token-prepending-ke", KNOWLEDGE),
    _method("token-prepending-metaeol", _META),
)


def _setting(stop: int, layer: int) -> dict[str, Any]:
    return {"layers": (layer,), "intervention": {"kind": "token_prepending", "start": 1, "stop": stop}}


SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Llama-2-7b": ("token-prepending", _setting(7, 27)),
    "Llama-2-13b": ("token-prepending-cot", _setting(7, -2)),
    "Llama-3-8B": ("token-prepending-cot", _setting(3, -2)),
    "Qwen2-7B": ("token-prepending-cot", _setting(6, -2)),
    "gemma-2-9b": ("token-prepending-cot", _setting(6, -2)),
}
"""The authors' choice for a backbone (their config.yaml): a method, and what `apply(embedder, method, **choice)` changes."""
