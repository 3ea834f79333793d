"""Echo embeddings: the text is said twice and only the second time is pooled, where every token has seen all of it.

The authors tokenise the pieces of their templates each by itself, and pool the token that closes them too.
"""

from __future__ import annotations

from .method import Method

_PAPER = "Repetition Improves Language Model Embeddings, arXiv 2402.15449"
_TEMPLATES = {
    "text": "Document:{border}{text}{border}\nDocument again:{border}{text}",
    "image": "Picture:{image}\nPicture again:{image}",
    "image+text": "Document:{border}{content}{border}\nDocument again:{border}{content}",
}
_ASKED = {
    "query": {
        "text": "Instruct:{border}{instruction},{border}\nQuery:{border}{text}{border}\nQuery again:{border}{text}"
    }
}
_SAID = {"query": "Retrieve passages that answer the question"}  # in the authors' example

METHODS = tuple(
    Method(
        name=name,
        paper=_PAPER,
        templates=_TEMPLATES,
        besides=_ASKED,
        instructions=_SAID,
        counted="repeat",
        pooling=pooling,
        closed=True,
    )
    for name, pooling in (("echo", "mean"), ("echo-last", "last"))
)
