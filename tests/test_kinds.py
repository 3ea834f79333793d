"""Token vectors and sparse weights at the door: their forms, their company, what is skipped, saved, and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import mmembed
from mmembed.errors import InputError, SpecError, TruncationError, UnknownName
from mmembed.testing import BACKBONES, byte_tokenizer, sharpen, tiny_embedder

from .conftest import picture

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90, "two words, {one} pair"]
SPLADE = {"head": {"kind": "splade"}}
DENSE = {"head": {"kind": "dense", "out": 6}}


def language_model(kind: str = "qwen3", seed: int = 0, **changed: object) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, **{**BACKBONES[kind], **changed})
    made_by = AutoModelForMaskedLM if kind in ("xlm-roberta", "modernbert") else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made_by.from_config(config)
        sharpen(model)
    return model.eval()


@pytest.fixture(scope="module")
def both():
    """Sparse weights and token vectors beside the one vector."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mmembed.compose(
            backbone=language_model(),
            tokenizer=byte_tokenizer(),
            sparse=SPLADE,
            tokens=DENSE,
            prompts={"query": {"any": "q: {content}"}, "twice": {"any": ["a {content}", "b {content}"]}},
            max_length=100,
            device="cpu",
        )


def difference(a: csr_array, b: csr_array) -> float:
    return float(abs(a - b).max())


def logits_of(kind: str, text: str, **changed: object) -> torch.Tensor:
    ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return language_model(kind, **changed)(input_ids=ids).logits[0]


@pytest.mark.parametrize("kind", ["qwen3", "xlm-roberta", "modernbert", "lfm2"])
def test_sparse_weights_are_those_of_the_language_model_of_transformers(kind, held):
    ours = mmembed.compose(
        backbone=language_model(kind), tokenizer=byte_tokenizer(), pooling=None, sparse=SPLADE, device="cpu"
    )
    assert ours.dimension == 300
    expected = torch.stack([logits_of(kind, text).amax(0).relu().log1p() for text in TEXTS])
    told = ours.encode_sparse(TEXTS)
    assert isinstance(told, csr_array)
    assert (told.dtype, told.shape) == (np.float32, (len(TEXTS), 300))
    assert (told.data > 0).all()
    assert told.has_sorted_indices
    held("splade", told.toarray(), expected, against="transformers", kind="method", family="sparse", what="sparse")


def test_one_language_model_makes_several_embedders():
    whole = language_model()
    first, second = (
        mmembed.compose(backbone=whole, tokenizer=byte_tokenizer(), sparse=SPLADE, device="cpu") for _ in range(2)
    )
    assert difference(first.encode_sparse(TEXTS), second.encode_sparse(TEXTS)) == 0


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path):
    tied = mmembed.compose(
        backbone=language_model(tie_word_embeddings=True), tokenizer=byte_tokenizer(), sparse=SPLADE, device="cpu"
    )
    head = tied.model.language_head.whole.lm_head.weight
    assert head is tied.model.backbone.embed_tokens.weight
    again = mmembed.load(tied.save(tmp_path / "m"), device="cpu")
    assert again.model.language_head.whole.lm_head.weight is again.model.backbone.embed_tokens.weight
    assert difference(again.encode_sparse(TEXTS), tied.encode_sparse(TEXTS)) == 0
    own = mmembed.compose(backbone=language_model(), tokenizer=byte_tokenizer(), sparse=SPLADE, device="cpu")
    size = {name: (tmp_path / name / "weights.safetensors").stat().st_size for name in ("m",)}["m"]
    assert (own.save(tmp_path / "o") / "weights.safetensors").stat().st_size > size


def test_an_item_has_its_weights_and_vectors_whatever_its_company(both):
    sparse = [both.encode_sparse(text) for text in TEXTS]
    tokens = [both.encode_tokens(text)[0] for text in TEXTS]
    for budget in (16, 100, 100_000):
        told = both.encode_sparse(TEXTS[::-1], batch_tokens=budget)
        assert all(difference(told[[k]], sparse[-1 - k]) <= 1e-5 for k in range(len(TEXTS)))
        vectors = both.encode_tokens(TEXTS[::-1], batch_tokens=budget)
        assert all(np.abs(vectors[k] - tokens[-1 - k]).max() <= 1e-5 for k in range(len(TEXTS)))


def test_token_vectors_are_one_a_token_of_unit_length(both):
    told = both.encode_tokens(TEXTS)
    assert [len(x) for x in told] == [len(text.encode()) + 1 for text in TEXTS]
    assert all(x.dtype == np.float32 and x.shape[1] == 6 for x in told)
    assert all(np.abs(np.linalg.norm(x, axis=1) - 1).max() <= 1e-6 for x in told)


def test_a_model_without_a_token_head_gives_its_states(tiny):
    told = tiny.encode_tokens(["red", picture(1), (picture(2), "blue")])
    assert [len(x) for x in told] == [4, 17, 21]
    pooled = np.stack([x[-1] / np.linalg.norm(x[-1]) for x in told])
    assert np.abs(pooled - tiny.encode(["red", picture(1), (picture(2), "blue")])).max() <= 1e-6


def test_vectors_encoded_one_by_one_are_not_taken_for_token_vectors(tiny):
    raw = tiny.respecified(normalize=False)
    several, one = ([raw.encode(text) for text in texts] for texts in (TEXTS, TEXTS[:1]))
    for sides in ((several, several), (one, tuple(several)), (several, [torch.from_numpy(each) for each in one])):
        with pytest.raises(InputError, match=r"np\.concatenate\(list\)"):
            raw.similarity(*sides)
    assert raw.similarity(np.concatenate(several), np.concatenate(one)).max() <= 1 + 1e-6
    states = raw.encode_tokens(TEXTS)
    assert raw.similarity(states, states).shape == (len(TEXTS), len(TEXTS))
    single = [each[:1] for each in states]  # a query of one token
    assert raw.similarity(single, states).shape == (len(TEXTS), len(TEXTS))
    spoken = raw.respecified(tokens={"head": {"kind": "states"}})
    expected = np.concatenate(single) @ np.concatenate(single).T
    np.testing.assert_allclose(spoken.similarity(single, single), expected, rtol=1e-5)


def test_nothing_and_one_thing(both):
    assert both.encode_tokens([]) == []
    assert both.encode_sparse([]).shape == (0, 300)
    assert len(both.encode_tokens("red")) == 1
    assert both.encode_sparse("red").shape == (1, 300)


def test_what_cannot_be_read_is_told_as_a_gap_in_every_kind(both):
    report = mmembed.Report()
    tokens = both.encode_tokens(["a", picture(1), "b"], on_error="skip", report=report)
    assert [s.row for s in report.skipped] == [1]
    assert report.items == 2
    assert tokens[1].shape == (1, 6)
    assert np.isnan(tokens[1]).all()
    sparse = both.encode_sparse(["a", picture(1), "b"], on_error="skip", report=report)
    assert np.isnan(sparse[[1]].data).tolist() == [True]
    assert difference(sparse[[0, 2]], both.encode_sparse(["a", "b"])) <= 1e-6
    for gap in (both.similarity(tokens, tokens), both.similarity(sparse, sparse)):
        assert np.isnan(gap[1]).all()
        assert np.isnan(gap[:, 1]).all()
        assert np.isfinite(gap[np.ix_([0, 2], [0, 2])]).all()
    for encode in (both.encode_tokens, both.encode_sparse):
        with pytest.raises(InputError, match="item 1"):
            encode(["a", picture(1)])
        with pytest.raises(TruncationError):
            encode(["x" * 200], truncate="error")
        with pytest.warns(UserWarning, match="1 items were longer than 100 tokens"):
            encode(["x" * 200])


def test_a_side_takes_its_prompt(both):
    for encode, same in (
        (both.encode_tokens, np.array_equal),
        (both.encode_sparse, lambda a, b: difference(a, b) == 0),
    ):
        query = encode("red", side="query")
        assert all(same(a, b) for a, b in zip(query, encode("red", prompt_name="query"), strict=True))
        assert all(same(a, b) for a, b in zip(encode("red", side="document"), encode("red"), strict=True))
    with pytest.raises(UnknownName, match="Did you mean 'query'"):
        both.encode_tokens("red", side="querry")
    with pytest.raises(TypeError, match="truncate_dim"):
        both.encode_sparse("red", truncate_dim=3)


def test_several_templates_give_the_mean_of_weights_and_no_token_vectors(both):
    one, other = (both.encode_sparse("red", prompt=p) for p in ("a ", "b "))
    assert difference(both.encode_sparse("red", prompt_name="twice"), (one + other) / 2) <= 1e-6
    with pytest.raises(SpecError, match="several templates"):
        both.encode_tokens("red", prompt_name="twice")


@pytest.mark.parametrize(
    ("read", "places"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"counted": "content"}, [3, 4, 5, 6, 7]),
        ({"counted": "eos"}, [7]),
        ({"skip": ("</s>", ":", "no such token")}, [0, 2, 3, 4, 5, 6]),
        ({"ends": (2, 1)}, [2, 3, 4, 5, 6]),
        ({"counted": "content", "ends": (1, 1), "skip": ("d",)}, [4, 6]),
        ({"ends": (40, 40)}, []),
        ({"skip_document": (".",)}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"only_document": (".",)}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_an_output_reads_the_tokens_that_it_says(both, read, places):
    """Of "q: red.", a query, and its closing token."""
    states = both.respecified(tokens={"head": {"kind": "states"}}).encode_tokens("red.", side="query")[0]
    told = both.respecified(tokens={"head": {"kind": "states"}, **read}).encode_tokens("red.", side="query")[0]
    assert states.shape == (8, 32)
    np.testing.assert_allclose(told, states[places], atol=1e-6)  # the last layer runs on these alone: another shape


def test_documents_leave_out_more_than_queries(both):
    ours = both.respecified(tokens={"head": {"kind": "states"}, "skip_document": (".", "</s>")})
    assert [len(ours.encode_tokens("a.b.", side=side)[0]) for side in ("query", "document", None)] == [8, 2, 2]
    empty = ours.encode_tokens(["...", "a"])
    assert empty[0].shape == (0, 32)
    scores = ours.similarity(ours.encode_tokens(["x"], side="query"), empty)
    assert scores[0, 0] == -np.inf
    only = both.respecified(tokens={"head": {"kind": "states"}, "only_document": ("a",)})
    assert len(only.encode_tokens("banana")[0]) == 3
    with pytest.raises(UnknownName):
        both.respecified(tokens={"head": {"kind": "states"}, "only_document": ("nothing",)}).encode_tokens("a")


def test_an_item_without_a_read_token_has_an_empty_row(both):
    ours = both.respecified(sparse={**SPLADE, "skip": ["</s>", "a"]})
    told = ours.encode_sparse(["aaa", "b", "aa"])
    assert np.diff(told.indptr).tolist()[::2] == [0, 0]
    assert told[[1]].nnz > 0
    assert ours.similarity(told, told)[0].tolist() == [0, 0, 0]


def test_a_picture_has_no_term_of_an_id():
    ours = tiny_embedder(sparse={"head": {"kind": "term_weights"}}, close=False)
    weights = ours.encode_sparse([picture(1), (picture(1), "ab")])
    assert weights[[0]].nnz == 0
    assert {term for term, _ in ours.decode_sparse(weights)[1]} <= {"a", "b"}


def test_a_picture_is_read_whatever_token_has_the_number_0():
    ours = tiny_embedder(tokens={"head": {"kind": "states"}})
    first = ours.tokenizer.token_of(0)
    whole = ours.encode_tokens([(picture(1), "ab")])[0]
    skipping = ours.respecified(tokens={"head": {"kind": "states"}, "skip": (first,)})
    np.testing.assert_array_equal(skipping.encode_tokens([(picture(1), "ab")])[0], whole)
    only = ours.respecified(tokens={"head": {"kind": "states"}, "only_document": (first, "a")})
    assert len(only.encode_tokens([(picture(1), "ab")])[0]) == 1


def test_the_strongest_terms_are_kept_and_told_by_name(both):
    whole = both.encode_sparse(TEXTS)
    few = both.respecified(sparse={**SPLADE, "top": 5}).encode_sparse(TEXTS)
    assert np.diff(few.indptr).tolist() == [5] * len(TEXTS)
    for k in range(len(TEXTS)):
        assert np.allclose(np.sort(few[[k]].data), np.sort(whole[[k]].data)[-5:])
    names = both.decode_sparse(few, top_k=2)
    assert [len(each) for each in names] == [2] * len(TEXTS)
    token, weight = names[0][0]
    assert weight == few[[0]].data.max()
    assert both.tokenizer.id_of(token) == few[[0]].indices[few[[0]].data.argmax()] or token.startswith("<")
    with pytest.raises(SpecError, match="weights of 7 terms"):
        both.decode_sparse(csr_array((1, 7)))


def test_all_kinds_of_a_model_are_saved(both, tmp_path):
    again = mmembed.load(both.save(tmp_path / "m"), device="cpu")
    assert again.spec == both.spec
    assert np.array_equal(again.encode(TEXTS), both.encode(TEXTS))
    assert difference(again.encode_sparse(TEXTS), both.encode_sparse(TEXTS)) == 0
    told = zip(again.encode_tokens(TEXTS), both.encode_tokens(TEXTS), strict=True)
    assert all(np.array_equal(a, b) for a, b in told)
    assert again.fingerprint == both.fingerprint


def test_a_model_without_an_output_says_what_it_has(both, tiny):
    sparse = both.respecified(pooling=None)
    assert sparse.dimension == 300
    with pytest.raises(SpecError, match="no one vector for an item; ask it by encode_tokens or encode_sparse"):
        sparse.encode("a")
    with pytest.raises(SpecError, match="has no sparse head"):
        tiny.encode_sparse("a")
    with pytest.raises(SpecError, match="which was not loaded"):
        tiny.respecified(sparse=SPLADE)
    with pytest.raises(SpecError, match="Qwen3Model has no language head"):
        tiny_embedder(vision=None, projector=None, sparse=SPLADE, backbone=tiny.model.backbone)


def test_specs_that_say_nothing_or_the_wrong_thing_are_errors(both):
    with pytest.raises(SpecError, match="nothing would come out"):
        both.respecified(pooling=None, tokens=None, sparse=None)
    with pytest.raises(UnknownName, match="Did you mean 'skip'"):
        both.respecified(tokens={**DENSE, "skipp": ["a"]})
    with pytest.raises(UnknownName, match="Did you mean 'maxsim'"):
        both.respecified(tokens={**DENSE, "similarity": "maxim"})
    with pytest.raises(UnknownName, match="rule for words"):
        both.respecified(sparse={**SPLADE, "within": "englsh"})
    with pytest.raises(SpecError, match="needs a head"):
        both.respecified(sparse={"top": 3})
    with pytest.raises(SpecError, match="come together"):
        both.respecified(tokens={**DENSE, "counted": "span"})
    with pytest.raises(SpecError, match="the head for tokens has weights"):
        both.respecified(tokens={"head": {"kind": "dense", "out": 9}})
