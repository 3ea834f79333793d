"""Late chunking: the authors' spans over transformers' own states, windows, prompts, pictures, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmembed
from mmembed.errors import InputError, SpecError, TruncationError, UnknownName
from mmembed.methods.splitting import by_sentences, by_tokens
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder

from .conftest import picture

TEXTS = [
    "Berlin is the capital of Germany. It has 3.85 million inhabitants! Is the city large? It is.",
    "One sentence alone.",
    "A cat sleeps. It dreams of fish. The fish does not dream, as far as anybody knows. Good.",
]
INSTRUCTION = "search_document: "
BACKBONES = {
    "xlm-roberta": {"bos": True, "eos": True},
    "modernbert": {"bos": True, "eos": True},
    "qwen3": {"bos": True},
}


def backbone(kind):
    return tiny_backbone(kind)


def words(kind):
    return byte_tokenizer(**{"eos": False, **BACKBONES[kind]})


def ours(kind, **changed):
    return mmembed.compose(
        backbone=backbone(kind),
        tokenizer=words(kind),
        pooling="mean",
        max_length=400,
        prompts={"document": {"any": INSTRUCTION + "{content}"}},
        device="cpu",
        **changed,
    )


def in_sentences(text: str) -> list[tuple[int, int]]:
    """Chunker.chunk_by_sentences of jina-ai/late-chunking with one sentence a chunk; tokens are bytes here."""
    spans, first = [], 0
    for k, letter in enumerate(text):
        if letter in ".!?" and (k + 1 == len(text) or text[k + 1] == " "):
            spans.append((first, k + 1))
            first = k + 1
    return spans


def in_tokens(text: str, size: int) -> list[tuple[int, int]]:
    """Chunker.chunk_by_tokens of jina-ai/late-chunking."""
    return [(k, min(k + size, len(text))) for k in range(0, len(text), size)]


def extended(spans, instruction: int = 0, sep: bool = True):
    """_extend_special_tokens of jina-ai/late-chunking: CLS and the instruction fall to the first, SEP to the last."""
    out = []
    for k, (begin, end) in enumerate(spans):
        left = begin + (1 + instruction if k > 0 else 0)
        out.append((left, end + 1 + instruction + (1 if sep and k + 1 == len(spans) else 0)))
    return out


def states(kind, ids):
    """(T, D) by transformers alone."""
    with torch.inference_mode():
        return backbone(kind)(ids).last_hidden_state[0]


def pooled(hidden, spans, max_length=None):
    """chunked_pooling of jina-ai/late-chunking, then unit length."""
    if max_length is not None:
        spans = [(begin, min(end, max_length - 1)) for begin, end in spans if begin < max_length - 1]
    means = [hidden[begin:end].sum(0) / (end - begin) for begin, end in spans if end - begin >= 1]
    return torch.nn.functional.normalize(torch.stack(means))


def with_overlap(kind, ids, size, overlap):
    """_embed_with_overlap of jina-ai/late-chunking."""
    outputs = []
    for first in range(0, ids.shape[1], size - overlap):
        hidden = states(kind, ids[:, first : min(first + size, ids.shape[1])])
        outputs.append(hidden[overlap:] if first > 0 else hidden)
    return torch.cat(outputs)


SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "late_chunking"}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("instructed", [False, True])
def test_chunks_of_sentences_are_the_authors(kind, instructed, held):
    said = INSTRUCTION if instructed else ""
    sep = "eos" in BACKBONES[kind]
    documents = [tuple(by_sentences(text)) for text in TEXTS]
    vectors = ours(kind).encode_chunks(documents, joint="", prompt_name="document" if instructed else None)
    for text, document, found in zip(TEXTS, documents, vectors, strict=True):
        hidden = states(kind, words(kind)(said + text, return_tensors="pt")["input_ids"])
        spans = in_sentences(text)
        assert len(found) == len(document) == len(spans)
        # by_sentences leaves the space with the sentence before, the authors with the one after: the same cut, in a token's step.
        moved = [(a + (k > 0), b + (k + 1 < len(spans))) for k, (a, b) in enumerate(spans)]
        held("late chunking", found, pooled(hidden, extended(moved, len(said), sep)), **SAYS)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("size", [4, 17])
def test_chunks_of_so_many_tokens_are_the_authors(kind, size, held):
    embedder = ours(kind)
    documents = [tuple(by_tokens(text, size, embedder.tokenizer)) for text in TEXTS]
    vectors = embedder.encode_chunks(documents, joint="")
    for text, found in zip(TEXTS, vectors, strict=True):
        hidden = states(kind, words(kind)(text, return_tensors="pt")["input_ids"])
        held(
            "late chunking", found, pooled(hidden, extended(in_tokens(text, size), 0, "eos" in BACKBONES[kind])), **SAYS
        )


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize(("size", "overlap"), [(30, 0), (30, 7), (41, 40), (400, 10)])
def test_long_texts_are_read_in_windows_as_the_authors_do(kind, size, overlap, held):
    embedder = ours(kind)
    documents = [tuple(by_tokens(text, 11, embedder.tokenizer)) for text in TEXTS]
    options = {"joint": "", "window": size, "overlap": overlap, "prompt_name": "document"}
    vectors = embedder.encode_chunks(documents, **options)
    for text, found in zip(TEXTS, vectors, strict=True):
        ids = words(kind)(INSTRUCTION + text, return_tensors="pt")["input_ids"]
        hidden = with_overlap(kind, ids, size, overlap) if ids.shape[1] > size else states(kind, ids)
        spans = extended(in_tokens(text, 11), len(INSTRUCTION), "eos" in BACKBONES[kind])
        held("long late chunking", found, pooled(hidden, spans), **SAYS)


def test_a_text_that_is_cut_loses_its_last_chunks_as_the_authors_have_it(held):
    kind = "xlm-roberta"
    embedder = ours(kind).respecified(max_length=50)
    documents = [tuple(by_tokens(text, 11, embedder.tokenizer)) for text in TEXTS]
    report = mmembed.Report()
    vectors = embedder.encode_chunks(documents, joint="", truncate="end", report=report)
    assert report.truncated == [0, 2]
    for text, document, found in zip(TEXTS, documents, vectors, strict=True):
        whole = words(kind)(text)["input_ids"]
        ids = torch.tensor([whole if len(whole) <= 50 else [*whole[:49], whole[-1]]])
        expected = pooled(states(kind, ids), extended(in_tokens(text, 11)), max_length=50)
        assert len(found) == len(document)
        assert np.isnan(found[len(expected) :]).all()
        held("late chunking", found[: len(expected)], expected, **SAYS)


def test_parts_of_an_item_share_out_the_tokens_that_its_one_vector_is_made_of():
    embedder = ours("qwen3", normalize=False)
    for counted in ("all", "content"):
        same = embedder.respecified(counted=counted)
        item = ("A cat sleeps.", "It dreams.", "猫")
        (vectors,) = same.encode_chunks([item], prompt_name="document")
        front = len(INSTRUCTION) + 1 if counted == "all" else 0
        sizes = np.array([13 + front, 11, 4])
        mean = (vectors * sizes[:, None]).sum(0) / sizes.sum()
        assert np.abs(mean - same.encode([item], prompt_name="document")[0]).max() <= 1e-5


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_part_has_one_vector_whatever_the_company_of_its_item(layout):
    embedder = ours("qwen3", layout=layout)
    documents = [tuple(by_sentences(text)) for text in TEXTS] + ["alone", ("猫が寝ている。", "魚")]
    options = {"joint": "", "window": 30, "overlap": 5}
    alone = [embedder.encode_chunks([document], **options)[0] for document in documents]
    together = embedder.encode_chunks(documents, batch_tokens=200, **options)
    backwards = embedder.encode_chunks(documents[::-1], **options)[::-1]
    for one, other, again in zip(alone, together, backwards, strict=True):
        assert np.abs(one - other).max() <= 1e-5
        assert np.abs(one - again).max() <= 1e-5


def test_a_part_knows_of_the_others():
    embedder = ours("xlm-roberta")
    berlin, paris = embedder.encode_chunks([("Berlin is big.", "It is old."), ("Paris is big.", "It is old.")])
    assert np.abs(berlin[1] - paris[1]).max() > 1e-3
    alone = embedder.encode_chunks([("It is old.",)])[0]
    assert np.abs(alone - embedder.encode(["It is old."])).max() <= 1e-6


def test_pictures_are_parts_as_texts_are():
    tiny = tiny_embedder(pooling="mean", normalize=False)
    item = (picture(1), "a caption", picture(2))
    (vectors,) = tiny.encode_chunks([item])
    sizes = np.array([16, 9, 16 + 1])
    assert np.abs((vectors * sizes[:, None]).sum(0) / sizes.sum() - tiny.encode([item])[0]).max() <= 1e-5
    # A causal backbone: the first picture has read nothing else.
    first = tiny.respecified(close=False).encode([picture(1)])[0]
    assert np.abs(vectors[0] - first).max() <= 1e-5
    # Under a template that takes pictures first, a vector still stands where its part stood.
    moved = tiny.respecified(prompts={"both": {"image+text": "{image}: {text}"}})
    (turned,) = moved.encode_chunks([("a caption", picture(1))], prompt_name="both")
    (straight,) = moved.encode_chunks([(picture(1), "a caption")], prompt_name="both")
    assert np.abs(turned - straight[::-1]).max() <= 1e-6


def test_heads_lengths_and_shorter_dimensions_are_those_of_encode():
    tiny = tiny_embedder(pooling="mean", heads=({"kind": "dense", "out": 20},), dimension=20, dimensions=(8,))
    (short,) = tiny.encode_chunks([("one",)], truncate_dim=8)
    assert short.shape == (1, 8)
    assert np.abs(short - tiny.encode(["one"], truncate_dim=8)).max() <= 1e-6


def test_what_has_no_parts_to_pool_is_refused():
    tiny = tiny_embedder(pooling="mean", max_length=40)
    with pytest.raises(SpecError, match=r"pooling 'last'.*respecified\(pooling="):
        tiny_embedder().encode_chunks([("a", "b")])
    for counted in ("tail", "rest"):  # the parts would hold tokens of the prompt that `encode` leaves out
        with pytest.raises(SpecError, match=f"counted '{counted}'.*respecified\\(pooling="):
            tiny.respecified(counted=counted).encode_chunks([("a", "b")])
    with pytest.raises(InputError, match="item 1: its part 1 has no token"):
        tiny.encode_chunks([("a", "b"), ("a", "")], joint="")
    with pytest.raises(TruncationError, match="item 0: 51 tokens are more than the 40"):
        tiny.encode_chunks([("a" * 25, "b" * 24)])
    with pytest.raises(InputError, match="not read in windows of 30"):
        tiny.encode_chunks([(picture(1), "b" * 24)], window=30)
    for window, overlap in ((30, 30), (41, 0), (30, -1)):
        with pytest.raises(SpecError, match="0 <= overlap < window"):
            tiny.encode_chunks([("a", "b")], window=window, overlap=overlap)
    with pytest.raises(SpecError, match="pass window"):
        tiny.encode_chunks([("a", "b")], overlap=3)
    with pytest.raises(UnknownName, match="Did you mean 'error'"):
        tiny.encode_chunks([("a", "b")], truncate="errors")
    twice = tiny.respecified(prompts={"two": {"any": ["a {content}", "b {content}"]}})
    with pytest.raises(SpecError, match="several templates"):
        twice.encode_chunks([("a", "b")], prompt_name="two")
    assert tiny.encode_chunks([]) == []
