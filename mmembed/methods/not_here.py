"""Methods of the survey that are known and left out, each with the reason that `apply` gives."""

from __future__ import annotations

from collections.abc import Mapping

_ABSTRACT = "its algorithm is known to us from an abstract alone, and there is no code of its authors to hold ours to"

NOT_HERE: Mapping[str, str] = {
    "kv-embedding": (
        f"arXiv 2601.01046: {_ABSTRACT}; which prompt, which attention bias and what mixture of mean and last token it takes "
        "is not said"
    ),
    "freeret": f"arXiv 2509.24621: {_ABSTRACT}; its prompt, and how many layers it leaves out, are not said",
    "retllm": f"a training-free retriever over vision-language models: {_ABSTRACT}",
    "htp": f"hierarchical text prompts, arXiv 2508.00955: {_ABSTRACT}; SaHa, its other half, mines negatives for training",
    "lmk-pooling": f"landmark tokens between chunks, arXiv 2601.21525: {_ABSTRACT}",
    "landmark-embedding": (
        "arXiv 2402.11573: its tokens after every sentence are trained, and neither weights nor code of its authors are released"
    ),
    "meaning-as-trajectories": (
        "ICLR 2024: no state of a backbone but likelihoods of sampled continuations, a comparison of two texts rather than a "
        f"vector of one; and {_ABSTRACT}"
    ),
    "inbedder": (
        "2024: it reads states of the answer that a model trained on abstractive questions generates, and embedding here "
        "generates nothing"
    ),
    "promptreps-several-words": (
        "the variants of PromptReps (arXiv 2404.18424) that read a state, or logits, for each of several words, which the model "
        "writes one after another: embedding here generates nothing"
    ),
    "autoprompt": "a search for trigger words by gradient on labelled pairs: training, which gives a prompt to use, not a method",
    "matryoshka-adaptor": "2024: a small network trained on vectors of one's own, to be cut short after it: training",
    "csr": "2025: a sparse autoencoder trained on frozen vectors; sentence-transformers' folders of it are not read",
    "cde": (
        "Contextual document embeddings: two stages, the second of which reads vectors of a corpus without positions; its layers "
        "are code of its own repository, and code from a hub is never run here"
    ),
    "prompteol-avg": (
        "the --avg of PromptEOL's code divides by the padded length, so that a vector hangs on its company; what it means, and "
        "gives for a text alone, is pooling='mean'"
    ),
}
