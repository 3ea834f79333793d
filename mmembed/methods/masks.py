"""Causal backbones that read both ways: in all layers (LLM2Vec, GritLM), or in the last ones (BeLLM).

All three were trained for it; put on a backbone that was not, they give what the formula says and little sense. BeLLM needs a
path of its own through the engine, a mask by layer: the door of attention opens the layers from one on.
"""

from __future__ import annotations

from .method import Method

GRITLM = "<|user|>\n{instruction}\n<|embed|>\n{content}"

METHODS = (
    Method(
        name="llm2vec",
        paper="LLM2Vec, arXiv 2404.05961",
        templates={"any": "{content}"},
        besides={"instructed": {"any": "{instruction} {content}"}},
        mask="bidirectional",
        counted="content",
        pooling="mean",
        causal=False,
    ),
    Method(
        name="gritlm",
        paper="GritLM, arXiv 2402.09906",
        templates={"any": "<|embed|>\n{content}"},
        besides={"instructed": {"any": GRITLM}},
        mask="bidirectional",
        counted="content",
        pooling="mean",
        causal=False,
    ),
    Method(
        name="bellm",
        paper="BeLLM, NAACL 2024",
        templates={
            "text": 'The representative word for sentence {text} is:"',
            "image": 'The representative word for image {image} is:"',
            "image+text": 'The representative word for {content} is:"',
        },
        bidirectional_from=-1,
        pooling="mean",
        packed=True,
    ),
)
