"""Checkpoints that are known and left out, each with the reason that `load` gives."""

from __future__ import annotations

from collections.abc import Mapping

_OWN_CODE = "its layers are code of its own repository, and code from a hub is never run here"
_ADAPTERS = "it holds one low-rank adapter a task beside its body, in a layout of its own"

_CONTEXT = (
    "a text's vector hangs on vectors of its corpus, which go before it as tokens without positions: code of its own"
)

_COLPALI_ENGINE = (
    "its layer for tokens is a class of colpali_engine or code of its repository, which transformers does not have"
)
_ONE_SIDED = "its queries are weights of a table (a Router of sentence-transformers), which are not read yet"

NOT_HERE: Mapping[str, str] = {
    "ModernVBERT/colmodernvbert": "its pictures go in tiles through a tower that has no file here yet",
    "vidore/colqwen2.5-v0.2": _COLPALI_ENGINE,
    "vidore/colSmol-500M": _COLPALI_ENGINE,
    "nomic-ai/colnomic-embed-multimodal-7b": _COLPALI_ENGINE,
    "nvidia/llama-nemoretriever-colembed-3b-v1": _OWN_CODE,
    "colbert-ir/colbertv2.0": "its queries are filled up with [MASK] tokens that others do not see, which no layout here does",
    "lightonai/GTE-ModernColBERT-v1": "its queries are filled up with [MASK] tokens, which no template here does",
    "naver/splade-v3-doc": _ONE_SIDED,
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v2-distill": _ONE_SIDED,
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill": _ONE_SIDED,
    "naver/splade-code-0.6B": "no source of ours tells its prompts and its mask",
    "naver/v-splade": "no source of ours tells how its pictures become terms",
    "jinaai/jina-embeddings-v4": (
        "three adapters lie in layers that are code of its own; its authors' merged repositories run, such as "
        "jinaai/jina-embeddings-v4-vllm-retrieval"
    ),
    **{
        f"Sony/VIRTUE-{size}-SCaR": "its segments come from a second tower (SAM 2) in code of its own"
        for size in ("2B", "7B")
    },
    **{f"zhibinlan/UME-R1-{size}": "its vector is a state of words that it writes first" for size in ("2B", "7B")},
    "qihoo360/RzenEmbed": "no source of ours tells the words around its inputs",
    **{
        f"zhibinlan/LLaVE-{size}": (
            "its weights and settings are named as LLaVA-NeXT's own code has them; nobody has shown that the LLaVA-OneVision "
            "of transformers gives its vectors"
        )
        for size in ("0.5B", "2B", "7B")
    },
    **dict.fromkeys(
        ("DeepGlint-AI/UniME-Phi3.5-V-4.2B", "TIGER-Lab/VLM2Vec-Full", "TIGER-Lab/VLM2Vec-LoRA"),
        f"{_OWN_CODE}: Phi-3-V, which no version of transformers has",
    ),
    "openbmb/VisRAG-Ret": f"{_OWN_CODE}: MiniCPM-V 2.0",
    "BAAI/BGE-VL-Screenshot": "no source of ours tells the words around its inputs",
    "Tevatron/OmniEmbed-v0.1": (
        "its card closes an item where the assistant's turn has begun, its training code before; the vectors differ"
    ),
    "nvidia/omni-embed-nemotron-3b": (
        f"{_OWN_CODE}, and no source of ours tells whether it reads both ways and what stands before its inputs"
    ),
    "nvidia/llama-nemotron-embed-vl-1b-v2": (
        f"{_OWN_CODE}; no source of ours tells how its pages are cut into tiles and written in the text"
    ),
    "nvidia/MM-Embed": (
        f"{_OWN_CODE}: a LLaVA-NeXT over the decoder and the head of NV-Embed-v1, and no source of ours tells the names of "
        "its tensors"
    ),
    **{
        f"tencent/WeMM-Embedding-{size}": (
            f"{_OWN_CODE}, and its pixels are those of one version of transformers, which has changed since"
        )
        for size in ("2B", "4B", "9B")
    },
    **{
        f"Alibaba-NLP/UEmbed-{size}": "no source of ours tells which tokens end an item, and how many"
        for size in ("2B", "4B", "9B")
    },
    **{
        f"jinaai/jina-embeddings-v5-omni-{size}": f"{_ADAPTERS}, and towers by code of its own"
        for size in ("small", "nano")
    },
    "BidirLM/BidirLM-Omni-2.5B-Embedding": _OWN_CODE,
    "Alibaba-NLP/gte-multilingual-base": (
        f"{_OWN_CODE}; the class of transformers that is nearest turns its positions by another base (160000 with no divisor; "
        "the original and TEI divide by 8^(2/d)), so its vectors would differ"
    ),
    "Snowflake/snowflake-arctic-embed-m-v2.0": _OWN_CODE,
    "Snowflake/snowflake-arctic-embed-m-long": (
        "its settings have the names of its repository's own code, which transformers' nomic_bert does not read"
    ),
    "jinaai/jina-clip-v1": _OWN_CODE,
    "jinaai/jina-clip-v2": _OWN_CODE,
    "nomic-ai/nomic-embed-text-v2-moe": (f"{_OWN_CODE}; transformers' nomic_bert has no mixture of experts"),
    "nomic-ai/nomic-embed-code": "no source of ours tells its pooling and whether its repository's code reads both ways",
    "nomic-ai/CodeRankEmbed": "no source of ours tells its pooling and whether its settings have the names of transformers",
    "jinaai/jina-embeddings-v3": (
        f"{_ADAPTERS}; jinaai/jina-embeddings-v3-hf has its body in transformers' class, without the adapters"
    ),
    "jinaai/jina-embeddings-v5-text-small": f"{_ADAPTERS}, and no source of ours tells the names of its files and tensors",
    "jinaai/jina-embeddings-v5-text-nano": f"{_ADAPTERS}, and no source of ours tells the names of its files and tensors",
    "jxm/cde-small-v1": _CONTEXT,
    "jxm/cde-small-v2": _CONTEXT,
    "Salesforce/SFR-Embedding-Code-2B_R": f"{_OWN_CODE}; it imports only under transformers 4",
    **{
        f"McGill-NLP/LLM2Vec-Meta-Llama-31-8B-Instruct-mntp{stage}": (
            "its authors' code wraps a text for Llama 3 but not for 3.1, and no source of ours tells how it was measured"
        )
        for stage in ("", "-supervised", "-unsup-simcse")
    },
    **{f"codesage/codesage-{size}-v2": _OWN_CODE for size in ("small", "base", "large")},
    **{f"codefuse-ai/C2LLM-{size}": f"{_OWN_CODE}: its tokens are pooled by attention" for size in ("0.5B", "7B")},
    **{
        f"NovaSearch/stella_en_{size}_v5": (
            "its dense layers lie in a folder a width, and its repository puts code of its own in the place of its body"
        )
        for size in ("400M", "1.5B")
    },
}
