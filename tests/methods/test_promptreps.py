"""PromptReps, held to its authors' script written out: the state of the last token, and its logits within the text's words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmembed
from mmembed import prompts
from mmembed.errors import SpecError, UnknownName
from mmembed.methods import METHODS, apply
from mmembed.prompts import english_words
from mmembed.search.fusion import fuse_scores
from mmembed.testing import byte_tokenizer, tiny_embedder

from ..test_kinds import language_model
from .plain import SPECIAL, Plain, Reference

SPLADE = {"head": {"kind": "splade"}}
TEXTS = ["A man is playing a guitar", 'she said "no"', "the of and", "Two dogs don't run", "x"]
PREFIX = {
    "promptreps": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are an AI assistant that can understand "
    'human language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nPassage: "',
    "promptreps-phi3": "<s><|system|>\nYou are an AI assistant that can understand human language.<|end|>\n<|user|>\n"
    'Passage: "',
    "promptreps-mistral": '<s>[INST] You are an AI assistant that can understand human language. Passage: "',
}
SUFFIX = {
    "promptreps": '". Use one word to represent the passage in a retrieval task. Make sure your word is in lowercase.<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\nThe word is: "',
    "promptreps-phi3": '". Use one word to represent the passage in a retrieval task. Make sure your word is in lowercase.'
    '<|end|>\n<|assistant|>\nThe word is: "',
    "promptreps-mistral": '". Use one word to represent the passage in a retrieval task. Make sure your word is in lowercase. '
    '[/INST]The word is: "',
}


def _dense(name: str) -> Reference:
    return lambda plain, text: plain.hidden(PREFIX[name] + text + SUFFIX[name])[-1][0, -1]


REFERENCE: dict[str, Reference] = {name: _dense(name) for name in PREFIX}


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and pairs over the border between a quotation mark and a letter, as Llama 3's has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [('"', "A"), ("T", "w"), ('"', "x"), ("g", "u"), ("r", '"')]
    vocabulary = {symbol: k for k, symbol in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    core = Tokenizer(models.BPE(vocabulary, pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", *SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def authors(
    tokenizer: PreTrainedTokenizerFast, text: str, prefix: str, suffix: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense and sparse as their script has them: three parts tokenised apart, ids of the text's words, 128 or 10 of all."""
    ids = [k for part in (prefix, text, suffix) for k in tokenizer(part, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        out = language_model()(input_ids=torch.tensor([ids]), output_hidden_states=True)
    logits = torch.log(1 + torch.relu(out.logits[0, -1]))
    allowed = {k for word in english_words(text) for k in tokenizer(word, add_special_tokens=False)["input_ids"]}
    within = torch.tensor(sorted(allowed), dtype=torch.long) if allowed else torch.arange(len(logits))
    best = logits[within].topk(min(len(within), 128 if allowed else 10))
    sparse = torch.zeros_like(logits)
    sparse[within[best.indices]] = best.values
    return torch.nn.functional.normalize(out.hidden_states[-1][0, -1], dim=0), sparse


@pytest.mark.parametrize("words", ["bytes", "merging"])
@pytest.mark.parametrize("name", PREFIX)
def test_promptreps_gives_both_representations_of_its_authors(name, words, held):
    tokenizer = byte_tokenizer(eos=False, special=SPECIAL) if words == "bytes" else merging_tokenizer()
    body = mmembed.compose(
        backbone=language_model(), tokenizer=tokenizer, sparse=SPLADE, max_length=2000, close=False, device="cpu"
    )
    ours = apply(body, name)
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "promptreps"}
    for side, change in (("document", lambda s: s), ("query", lambda s: s.replace("Passage", "Query"))):
        ask = SUFFIX[name].replace("passage", "query") if side == "query" else SUFFIX[name]
        due = [authors(tokenizer, text, change(PREFIX[name]), ask) for text in TEXTS]
        dense = ours.encode_query(TEXTS) if side == "query" else ours.encode_document(TEXTS)
        held(name, dense, torch.stack([d for d, _ in due]), **says)
        sparse = ours.encode_sparse(TEXTS, side=side)
        held(name, sparse.toarray(), torch.stack([s for _, s in due]), what="sparse", **says)
        assert np.diff(sparse.indptr)[2] <= 10


def test_the_two_are_fused_into_one_ranking():
    body = mmembed.compose(
        backbone=language_model(),
        tokenizer=byte_tokenizer(eos=False, special=SPECIAL),
        sparse=SPLADE,
        max_length=2000,
        device="cpu",
    )
    ours = apply(body, "promptreps")
    dense = ours.similarity(ours.encode_query("guitar"), ours.encode_document(TEXTS))[0]
    sparse = ours.similarity(ours.encode_sparse("guitar", side="query"), ours.encode_sparse(TEXTS))[0]
    fused = fuse_scores([dict(enumerate(dense)), {k: s for k, s in enumerate(sparse) if s > 0}])
    assert set(fused) == set(range(len(TEXTS)))
    assert list(fused.values()) == sorted(fused.values(), reverse=True)


def test_words_are_told_by_a_rule_that_may_be_ones_own(monkeypatch):
    assert english_words("Don't re-run the U.S. dogs' 3.5 tests, it's “fine” ...") == [
        "n't",
        "re-run",
        "u.s",
        "dogs",
        "3.5",
        "tests",
        "'s",
        "fine",
    ]
    monkeypatch.setitem(prompts.WORDS, "first", lambda text: text.split()[:1])
    body = mmembed.compose(
        backbone=language_model(),
        tokenizer=byte_tokenizer(eos=False, special=SPECIAL),
        sparse=SPLADE,
        max_length=2000,
        device="cpu",
    )
    sparse = dict(METHODS["promptreps"].sparse) | {"within": "first"}
    told = apply(body, "promptreps", sparse=sparse).encode_sparse("abc xyz")
    assert {token for token, _ in body.decode_sparse(told)[0]} <= set("abc")


def test_a_tokenizer_without_the_marks_of_its_chat_is_refused(tiny):
    """Which would be letters, and the vectors plausible."""
    for name, mark in (("promptreps", "begin_of_text"), ("promptreps-phi3", "system"), ("e5-v-llama3", "start_header")):
        with pytest.raises(UnknownName, match=mark):
            apply(tiny, name)


def test_without_a_language_head_there_is_the_dense_part_alone():
    ours = apply(tiny_embedder(tokenizer=byte_tokenizer(special=SPECIAL)), "promptreps", max_length=2000)
    assert ours.encode(["red"]).shape == (1, 32)
    with pytest.raises(SpecError, match="no sparse head"):
        ours.encode_sparse("red")
    assert Plain().hidden("x")
