"""The survey's methods without training: a prompt, a layer and what is counted, put on any embedder.

`apply(embedder, "prompteol")` gives an embedder that shares the weights and differs in its spec; it can be saved like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..embedder import Embedder
from ..errors import SpecError, UnknownName, check_known
from ..model import EmbeddingModel
from ..nn.precision import is_fitted
from . import (
    contrastive_prompting,
    echo,
    geneol,
    in_one_word,
    layers,
    llama2vec,
    long_positions,
    masks,
    position_weighted,
    promptreps,
    token_prepending,
)
from .method import Method
from .not_here import NOT_HERE

FILES = (
    in_one_word,
    promptreps,
    echo,
    geneol,
    token_prepending,
    contrastive_prompting,
    masks,
    llama2vec,
    long_positions,
    position_weighted,
    layers,
)
BESIDE: Mapping[str, str] = {
    "late-chunking": "mmembed.Embedder.encode_chunks",
    "long-late-chunking": "mmembed.Embedder.encode_chunks",
    "chunk-and-average": "mmembed.methods.chunk_and_average.encode",
    "moee": "mmembed.methods.moee.fitted",
    "whitening": "mmembed.methods.whitening.whitened",
    "matryoshka": "mmembed.Embedder.encode",
    "quantization": "mmembed.Quantizer",
}
"""Methods that are no spec to put on an embedder, for they take things to fit on or give something else, and where they are.
(GenEOL is both: its prompt is among `METHODS`, its rewrites in `mmembed.methods.geneol.encode`.)"""
METHODS: Mapping[str, Method] = {method.name: method for file in FILES for method in file.METHODS}


def apply(embedder: Embedder, name: str, **changed: Any) -> Embedder:
    """The embedder under a method of the survey, weights shared.

    Args:
        embedder: any; the prompts were thought out for causal backbones.
        name: one of `METHODS`.
        changed: fields of `ModelSpec` to set otherwise, such as `layers=(-3,)`.

    Raises:
        UnknownName: no such method, no such field, or a token that the method needs and the tokenizer does not have.
        SpecError: the backbone is not of the kind that the method needs, or a head was fitted on what it gives without the
            method; or a method that is known and left out, with the reason.
    """
    if name in NOT_HERE:
        raise SpecError(f"{name} is not here: {NOT_HERE[name]}")
    if name in BESIDE:
        raise SpecError(f"{name} takes more than an embedder: see {BESIDE[name]}")
    try:
        method = METHODS[name]
    except KeyError:
        raise UnknownName("method", name, (*METHODS, *BESIDE)) from None
    known = {f.name for f in dataclasses.fields(embedder.spec)}
    for key in changed:
        check_known("field of the spec", key, known)
    if not isinstance(embedder.model, EmbeddingModel):
        raise SpecError(
            f"{name} is of one backbone, and this is a dual encoder, whose towers read and pool as they were trained"
        )
    heads = zip(embedder.spec.heads, embedder.model.heads, strict=True)
    fitted = [said["kind"] for said, head in heads if is_fitted(head)]
    if fitted and method.positions is None:
        raise SpecError(
            f"{name} gives other vectors than those that the head {fitted[0]!r} was fitted on: apply it first, and fit then"
        )
    if method.causal and embedder.spec.mask == "bidirectional":
        raise SpecError(f"{name} reads the last token of a causal backbone; this one reads both ways")
    for token in method.needs:
        embedder.tokenizer.id_of(token)
    if method.packed and embedder.model.layout != "packed":
        raise SpecError(f"{name} changes attention itself, which only a packed backbone lets us; this one runs padded")
    sparse = {"sparse": method.sparse} if method.sparse and embedder.model.language_head is not None else {}
    return embedder.respecified(**{**method.fields(), **sparse, **changed})
