"""Checkpoints that are known and left out, each with the reason that `load` gives."""

from __future__ import annotations

from collections.abc import Mapping

_OWN_CODE = "its layers are code of its own repository, and code from a hub is never run here"
_ADAPTERS = "it holds one low-rank adapter a task beside its body, in a layout of its own"
_BRACKETS = (
    "its brackets go around an item as single tokens after tokenisation, others for queries than for documents; "
    "as text they would merge with the words beside them"
)
_LLM2VEC = "it is two low-rank adapters to be merged one after the other; merge them with peft and load that folder"

NOT_HERE: Mapping[str, str] = {
    "jinaai/jina-embeddings-v4": (
        "three adapters lie in layers that are code of its own; its authors' merged repositories run, such as "
        "jinaai/jina-embeddings-v4-vllm-retrieval"
    ),
    **{
        f"Sony/VIRTUE-{size}-SCaR": "its segments come from a second tower (SAM 2) in code of its own"
        for size in ("2B", "7B")
    },
    **{f"zhibinlan/UME-R1-{size}": "its vector is a state of words that it writes first" for size in ("2B", "7B")},
    **{
        f"qihoo360/RzenEmbed{version}": "no source of ours tells the words around its inputs"
        for version in ("", "-v1-2B", "-v2-7B")
    },
    "nvidia/NV-Embed-v1": f"{_OWN_CODE}; that code no longer imports either",
    "nvidia/NV-Embed-v2": f"{_OWN_CODE}; that code no longer imports either",
    "BAAI/bge-code-v1": "it runs through code of its own repository, whose attention no source of ours tells",
    "Alibaba-NLP/gte-multilingual-base": (
        f"{_OWN_CODE}; the class of transformers that is nearest may turn its positions otherwise (unverified)"
    ),
    "Snowflake/snowflake-arctic-embed-m-v2.0": _OWN_CODE,
    "Snowflake/snowflake-arctic-embed-m-long": _OWN_CODE,
    "jinaai/jina-clip-v1": _OWN_CODE,
    "jinaai/jina-clip-v2": _OWN_CODE,
    "jinaai/jina-embeddings-v3": _ADAPTERS,
    "jinaai/jina-embeddings-v5-text-small": _ADAPTERS,
    "jinaai/jina-embeddings-v5-text-nano": _ADAPTERS,
    **{
        f"Muennighoff/SGPT-{size}-weightedmean-msmarco-specb-bitfit": _BRACKETS
        for size in ("125M", "1.3B", "2.7B", "5.8B")
    },
    **{
        f"McGill-NLP/LLM2Vec-{body}-mntp{stage}": _LLM2VEC
        for body in (
            "Sheared-LLaMA",
            "Llama-2-7b-chat-hf",
            "Mistral-7B-Instruct-v2",
            "Meta-Llama-3-8B-Instruct",
            "Meta-Llama-31-8B-Instruct",
        )
        for stage in ("", "-supervised", "-unsup-simcse")
    },
}
