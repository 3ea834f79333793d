"""Echo embeddings: the text is said twice and only the second time is pooled, where every token has seen all of it.

The authors tokenise the pieces of their templates each by itself.
"""

from __future__ import annotations

from .method import Method

_PAPER = "Repetition Improves Language Model Embeddings, arXiv 2402.15449"
_TEMPLATES = {
    "text": "Document:{border}{text}{border}\nDocument again:{border}{text}",
    "image": "Picture:{image}\nPicture again:{image}",
    "image+text": "Document:{border}{content}{border}\nDocument again:{border}{content}",
}

METHODS = (
    Method(name="echo", paper=_PAPER, templates=_TEMPLATES, counted="repeat", pooling="mean"),
    Method(name="echo-last", paper=_PAPER, templates=_TEMPLATES, counted="repeat", pooling="last", closed=True),
)
