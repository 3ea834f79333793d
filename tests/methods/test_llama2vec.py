"""Llama2Vec's inference against its authors' formula: three pieces tokenised apart, the mean of the last eight states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmembed.errors import UnknownName
from mmembed.methods import apply

from .plain import BACKBONES, LAYOUTS, TEXTS, Plain, Reference, embedder

SELF = '", summarize the above passage within eight words: <s1><s2><s3><s4><s5><s6><s7><s8>'
NEXT = '", predict the following passage within eight words: <s9><s10><s11><s12><s13><s14><s15><s16>'
SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "llama2vec"}


def eight(plain: Plain, text: str, suffix: str) -> Tensor:
    ids = torch.cat([plain.ids(piece) for piece in ('"', text, suffix)], 1)
    with torch.inference_mode():
        return plain.model(ids, output_hidden_states=True).hidden_states[-1][0, -8:].mean(0)


REFERENCE: dict[str, Reference] = {"llama2vec": lambda p, t: eight(p, t, SELF)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_queries_and_documents_are_asked_otherwise(kind, layout, held):
    ours = apply(embedder(kind, layout), "llama2vec", normalize=False)
    for told, suffix in ((ours.encode_query(TEXTS), NEXT), (ours.encode_document(TEXTS), SELF)):
        due = torch.stack([eight(Plain(kind), text, suffix) for text in TEXTS])
        held("llama2vec", told, due, relative=True, **SAYS)


def test_a_tokenizer_without_its_tokens_is_refused(tiny):
    with pytest.raises(UnknownName, match="<s1>"):
        apply(tiny, "llama2vec")
