"""Tokenizers: ids, special tokens and the characters each token stands for, of both kinds."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
import sentencepiece
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import mmembed
from mmembed import Report
from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.testing import byte_tokenizer, tiny_embedder
from mmembed.tokenizer import SentencePieceTokenizer, TransformersTokenizer, load_tokenizer

LINES = ["a red car", "eine rote Katze", "красная машина", "一辆红色的车", "सेब लाल है", "สวัสดี", "مرحبا بالعالم"] * 20


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=420,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


def test_a_sentencepiece_token_knows_its_characters(pieces):
    for text in set(LINES):
        tokens = pieces.encode([text])[0]
        assert tokens.ids == pieces.processor.encode(text)
        assert "".join(text[a:b] for a, b in tokens.spans).replace(" ", "") == text.replace(" ", "")
        assert all(0 <= a <= b <= len(text) for a, b in tokens.spans)


def test_a_sentencepiece_item_ends_with_its_closing_piece(pieces, tmp_path):
    embedder = tiny_embedder(tokenizer=pieces, vision=None, projector=None, backbone=_wide())
    assert embedder.tokenizer.suffix == [pieces.processor.eos_id()]
    folder = embedder.save(tmp_path / "m")
    again = load_tokenizer(folder, dict(embedder.spec.tokenizer))
    for theirs, own in zip(again.encode(LINES[:7]), pieces.encode(LINES[:7]), strict=True):
        assert (theirs.ids, theirs.spans) == (own.ids, own.spans)
    assert again.suffix == pieces.suffix


def test_what_a_sentencepiece_tokenizer_was_told_is_saved(pieces, tmp_path):
    lowered = SentencePieceTokenizer(pieces.processor, prefix=["<s>"], clean="lower", pad="</s>")
    made = tiny_embedder(tokenizer=lowered, vision=None, projector=None, backbone=_wide())
    again = mmembed.load(made.save(tmp_path), device="cpu")
    assert np.abs(again.encode(["A Red CAR"]) - made.encode(["A Red CAR"])).max() <= 1e-6
    assert (again.tokenizer.prefix, again.tokenizer.pad) == (lowered.prefix, lowered.pad)


def _wide():
    from mmembed.testing import tiny_backbone

    return tiny_backbone(vocab_size=500)


def trimming() -> PreTrainedTokenizerFast:
    """Bytes, as RoBERTa's tokenizer gives them: a space by itself stands for no character."""
    words = byte_tokenizer()
    ends = [(token, words.convert_tokens_to_ids(token)) for token in ("</s>", "<s>")]
    words.backend_tokenizer.post_processor = processors.RobertaProcessing(
        *ends, trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize("kind", ["bytes of a character", "trimmed spaces"])
def test_a_text_is_cut_at_its_last_tokens_whatever_they_stand_for(pieces, kind):
    spaced = kind == "trimmed spaces"
    ours = tiny_embedder(tokenizer=trimming() if spaced else pieces, max_length=40)
    words = ours.tokenizer
    texts = ["a    b", "in   words "] if spaced else ["བོད་ཡིག་གི་ཡི་གེ་", "a red car 😀"]
    for text in (text * 20 for text in texts):
        (tokens,) = words.encode([text])
        room = 40 - len(words.prefix) - len(words.suffix)
        assert sum(begin == end for begin, end in tokens.spans) > 20
        for prompt in ({}, {"prompt": "so: "}):
            (sample,) = ours.prepare([text], **prompt).samples
            (whole,) = words.encode([prompt.get("prompt", "") + text])
            assert sample.ids.tolist() == [*words.prefix, *whole.ids[:room], *words.suffix]
            assert sample.truncated == len(whole.ids) - room


def test_an_unknown_piece_is_named(pieces):
    with pytest.raises(UnknownName, match="<nothing>"):
        SentencePieceTokenizer(pieces.processor, suffix=("<nothing>",))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(LoadError, match="no sentencepiece model"):
        load_tokenizer(tmp_path, {"kind": "sentencepiece"})
    with pytest.raises(LoadError, match="holds no tokenizer"):
        load_tokenizer(tmp_path, {"kind": "transformers"})
    with pytest.raises(UnknownName):
        load_tokenizer(tmp_path, {"kind": "sentencepice"})


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, True), (True, False), (False, False)])
def test_what_a_tokenizer_puts_around_a_text_is_read_off_it(bos, eos):
    raw = byte_tokenizer(bos=bos, eos=eos)
    tokenizer = TransformersTokenizer(raw)
    for text in ("", "a", "สวัสดี x"):
        assert tokenizer.prefix + tokenizer.encode([text])[0].ids + tokenizer.suffix == raw(text)["input_ids"]


def test_tokens_are_those_of_transformers_whatever_it_was_last_asked():
    raw = byte_tokenizer(special=("<image>",))
    tokenizer = TransformersTokenizer(raw)
    texts = ["a", "สวัสดี x", "", "one <image> two </s>"]
    expected = raw(texts, add_special_tokens=False, return_offsets_mapping=True)
    raw(texts, padding=True, truncation=True, max_length=5, split_special_tokens=True)  # stays set in its core
    for located in (True, False):
        found = tokenizer.encode(texts, located=located)
        assert [tokens.ids for tokens in found] == expected["input_ids"]
        assert [tokens.spans for tokens in found] == expected["offset_mapping"]
    assert found[3][1:3].ids == found[3].ids[1:3]
    assert found[3][1:3].spans == found[3].spans[1:3]


def test_a_token_is_looked_up_without_a_table_of_all():
    raw = byte_tokenizer(bos=False)
    raw.bos_token = None
    known, tokenizer = raw.get_vocab(), TransformersTokenizer(raw)
    raw.get_vocab = lambda: pytest.fail("all tokens were asked for")
    assert {token: tokenizer.id_of(token) for token in known} == known
    assert tokenizer.id_of("{eos}") == raw.eos_token_id
    for missing in ("no such token", "{bos}"):
        with pytest.raises(UnknownName, match=missing):
            tokenizer.id_of(missing)


@pytest.mark.parametrize("counted", ["all", "content"])
def test_no_text_is_read_twice_for_its_spans(monkeypatch, counted):
    """Where all are asked for them, and where long texts are cut, they are made along with the ids."""
    tiny = tiny_embedder(pooling="mean", counted=counted, max_length=20)
    read = []
    monkeypatch.setattr(TransformersTokenizer, "_spans", lambda self, text: read.append(text))
    report = Report()
    tiny.encode(["short", "long " * 30], report=report)
    assert report.truncated == [1]
    assert not read


def test_a_tokenizer_with_a_way_of_its_own_keeps_it():
    class Loud(PreTrainedTokenizerFast):
        def _encode_plus(self, text, **options):
            return super()._encode_plus([each.upper() for each in text] if isinstance(text, list) else text, **options)

    tokenizer = TransformersTokenizer(Loud(tokenizer_object=byte_tokenizer().backend_tokenizer))
    assert tokenizer.encode(["ab"])[0].ids == byte_tokenizer()("AB", add_special_tokens=False)["input_ids"]
    assert tokenizer.encode(["ab"])[0].spans == [(0, 1), (1, 2)]


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(SpecError, match="slow tokenizer"):
        TransformersTokenizer(Slow())


def test_a_closing_token_that_the_folder_asks_for_and_does_not_get_is_told_of(tmp_path):
    byte_tokenizer(eos=False).save_pretrained(tmp_path)
    said = tmp_path / "tokenizer_config.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "add_eos_token": True}))
    with pytest.warns(UserWarning, match="add_eos_token, and transformers as installed puts no token"):
        load_tokenizer(tmp_path, {"kind": "transformers"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(tmp_path, {"kind": "transformers", "suffix": ["</s>"]})
