"""Llama2Vec (LLARA): a text, and eight tokens in which the model was trained to say it over, or what follows it.

Only inference is here, where a text has one of the two questions. In its pre-training it has both, the second of which does not
see the first and has the same positions; that is part of training.
"""

from __future__ import annotations

from .method import Method

_SELF, _NEXT = (tuple(f"<s{k}>" for k in range(first, first + 8)) for first in (1, 9))
# The authors tokenise what stands before, the text, and what stands behind it each by itself.
_ABOVE = '"{border}{text}{border}", summarize the above passage within eight words: {counted}' + "".join(_SELF)
_FOLLOWING = '"{border}{text}{border}", predict the following passage within eight words: {counted}' + "".join(_NEXT)

METHODS = (
    Method(
        name="llama2vec",
        paper="Llama2Vec, arXiv 2312.15503 (FlagOpen/FlagEmbedding, research/LLARA)",
        templates={"text": _ABOVE},
        besides={"document": {"text": _ABOVE}, "query": {"text": _FOLLOWING}},
        counted="marked",
        pooling="mean",
        needs=(*_SELF, *_NEXT),
    ),
)
