"""mmembed: texts in any language and images in one embedding space, on a shared LLM backbone.

Names are imported when they are first used, so `import mmembed` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "loading",
    "compose": "loading",
    "Embedder": "embedder",
    "Replicas": "replicas",
    "Report": "embedder",
    "Text": "inputs",
    "Image": "images",
    "ModelSpec": "spec",
    "EmbeddingModel": "model",
    "SentencePieceTokenizer": "tokenizer",
    "Index": "search.index",
    "Hits": "search.hits",
    "Query": "search.query",
    "Quantizer": "search.quantizer",
}
_ROOMS = ("display", "errors", "methods", "search", "serve", "testing", "train")
"""Modules that are there by their name, without an import of their own."""
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .embedder import Embedder, Report
    from .images import Image
    from .inputs import Text
    from .loading import compose, load
    from .model import EmbeddingModel
    from .replicas import Replicas
    from .search.hits import Hits
    from .search.index import Index
    from .search.quantizer import Quantizer
    from .search.query import Query
    from .spec import ModelSpec
    from .tokenizer import SentencePieceTokenizer


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module 'mmembed' has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
