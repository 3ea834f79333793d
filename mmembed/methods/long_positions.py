"""Longer texts than a backbone was made for: its positions interpolated, grouped, begun anew, or turned by another base.

Each changes the positions of an embedder and nothing else; `max_length` is for the caller to raise. SelfExtend needs a path of
its own through the engine: two numbers for every token, by the distance of who looks, so it is done in the door of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .method import Method

_PAPER = "LongEmbed, arXiv 2404.12096"


def _method(name: str, *, packed: bool = False, **positions: Any) -> Method:
    return Method(name=name, paper=_PAPER, positions=positions, causal=packed, packed=packed)


METHODS = (
    _method("position-interpolation", kind="interpolated", factor=8.0),
    _method("ntk", kind="ntk", times=10.0),
    _method("self-extend", kind="self_extend", group=9, near=512, packed=True),
    _method("grouped-positions", kind="grouped"),
    _method("recurrent-positions", kind="recurrent"),
    _method("stretched-positions", kind="stretched", factor=8),
)

SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "e5-mistral-7b-instruct": ("ntk", {"positions": {"kind": "ntk", "base": 100_000.0}, "max_length": 32768}),
    "e5-mistral-7b-instruct by groups": (
        "self-extend",
        {
            "positions": {"kind": "self_extend", "group": 9, "near": 512, "original": 4096, "log_base": 4096.0},
            "max_length": 32768,
        },
    ),
    "e5-base-4k": ("stretched-positions", {"positions": {"kind": "stretched", "factor": 8, "original": 512}}),
    "jina-embeddings-v5-text-small": ("ntk", {"positions": {"kind": "ntk", "base": 3_500_000.0, "windows": True}}),
    "jina-embeddings-v5-text-nano": ("ntk", {"positions": {"kind": "ntk", "base": 1_000_000.0, "windows": True}}),
}
"""The authors' choice for a checkpoint: a method, and what `apply(embedder, method, **choice)` changes."""
