"""What we write sentence-transformers reads, with our vectors; what it has no words for is said, and nothing is written."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import peft
import pytest
import torch
from sentence_transformers import SentenceTransformer

import mmembed
from mmembed.errors import SpecError
from mmembed.sentence_transformers import _PLAIN
from mmembed.spec import ModelSpec
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90, "two words"]
PROMPTS = {
    "query": {"text": "Instruct: {instruction}\nQuery: {text}"},
    "document": {"any": "{content}"},
    "braced": {"text": "{{a}} {text}"},
}
WRITTEN = {
    "a decoder with an end token": {"kind": "qwen3", "pooling": "last", "dimensions": (32, 16)},
    "a decoder that reads both ways, its prompt not pooled": {
        "kind": "qwen3",
        "pooling": "mean",
        "mask": "bidirectional",
        "counted": "content",
        "default_prompt_name": "query",
        "prompts": {"query": {"text": "ask: {text}"}, "document": {"text": "doc: {text}"}},
    },
    "an encoder, three poolings in one, two layers": {
        "kind": "xlm-roberta",
        "pooling": {"kind": "joined", "kinds": ["first", "max", "mean_sqrt_len"]},
        "heads": (
            {"kind": "dense", "out": 20, "activation": "tanh"},
            {"kind": "dense", "out": 20, "bias": False, "activation": "gelu", "residual": True},
            {"kind": "layer_norm"},
        ),
        "normalize": False,
    },
    "a whitened one": {"kind": "llama", "pooling": "weightedmean", "heads": ({"kind": "whiten", "out": 12},)},
    "one that cuts": {"kind": "gemma3_text", "pooling": "mean", "max_length": 30},
}


def embedder(kind: str, **spec: object) -> mmembed.Embedder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = mmembed.compose(
            backbone=tiny_backbone(kind),
            tokenizer=byte_tokenizer(bos=kind != "qwen3", eos=kind != "llama"),
            device="cpu",
            **{"prompts": PROMPTS, "instructions": {"query": "find it"}, "name": "made", **spec},
        )
        for head in made.model.heads:
            for weight in head.parameters():
                torch.nn.init.normal_(weight, std=0.3)
    return made


@pytest.mark.parametrize("which", WRITTEN)
def test_sentence_transformers_gives_our_vectors_of_what_we_wrote(tmp_path, held, which):
    ours = embedder(**WRITTEN[which])
    folder = ours.save_sentence_transformers(tmp_path / "st")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    again = mmembed.load(folder, device="cpu")
    for name in ours.spec.prompts:
        vectors = ours.encode(TEXTS, prompt_name=name)
        for other, against in ((theirs, "sentence-transformers"), (again, "itself, written and read again")):
            due = other.encode(TEXTS, prompt_name=name)
            system = f"written for sentence-transformers: {which}"
            held(system, due, vectors, against=against, kind="folder", family="sentence_transformers", relative=True)
    assert np.abs(theirs.encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5
    assert {path.stat().st_mode for path in folder.rglob("*.safetensors")} == {(folder / "modules.json").stat().st_mode}
    modules = json.loads((folder / "modules.json").read_text())
    assert {m["type"].rpartition(".")[0] for m in modules} == {"sentence_transformers.models"}
    assert "pooling_mode_mean_tokens" in json.loads((folder / "1_Pooling" / "config.json").read_text())


def test_a_folder_in_which_another_embedder_lay_is_the_one_that_was_written_last(tmp_path):
    """An adapter that lies there would be put on merged weights once more by transformers."""
    other = embedder("llama", pooling="last")
    ours = embedder("qwen3", pooling="mean")
    other.save(tmp_path)
    (tmp_path / "golden.json").write_text("[]", encoding="utf-8")
    lora = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    peft.get_peft_model(tiny_backbone("qwen3"), lora).save_pretrained(tmp_path)
    folder = ours.save_sentence_transformers(tmp_path)
    for _ in range(2):
        again = mmembed.load(folder, device="cpu")
        theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        assert np.abs(again.encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5
        assert np.abs(theirs.encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5
        again.save_sentence_transformers(folder)
    assert not (folder / "golden.json").exists()


def test_a_home_folder_is_written_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = embedder("qwen3", pooling="mean")
    assert ours.save("~/ours") == tmp_path / "ours"
    assert ours.save_sentence_transformers("~/st") == tmp_path / "st"
    ours.encode_to("~/v.npy", ["a"])
    assert np.load(tmp_path / "v.npy").shape == (1, ours.dimension)


def test_tokens_around_an_item_go_into_the_tokenizers_own_file(tmp_path):
    ours = mmembed.compose(
        backbone=tiny_backbone("llama"), tokenizer=byte_tokenizer(bos=True, eos=False), close=True, device="cpu"
    )
    folder = ours.save_sentence_transformers(tmp_path / "st")
    spec = {**json.loads(ours.spec.to_json())["tokenizer"], "suffix": ["</s>"]}
    ended = ours.save(tmp_path / "ours")
    said = json.loads((ended / "spec.json").read_text())
    (ended / "spec.json").write_text(json.dumps({**said, "tokenizer": spec}))
    ended_too = mmembed.load(ended, device="cpu")
    assert np.abs(ended_too.encode(TEXTS) - ours.encode(TEXTS)).max() > 0.01
    theirs = SentenceTransformer(str(ended_too.save_sentence_transformers(folder)), device="cpu", local_files_only=True)
    assert np.abs(theirs.encode(TEXTS) - ended_too.encode(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"prompts": {"query": {"text": "{text} means"}}}, "the prompt 'query'"),
        ({"prompts": {"query": {"text": "{instruction} {text}"}}, "instructions": {}}, "the prompt 'query'"),
        ({"prompts": {"query": {"text": ["a {text}", "b {text}"]}}}, "the prompt 'query'"),
        ({"counted": "eos"}, "counted='eos'"),
        ({"layers": (-2,)}, r"layers=\(-2,\)"),
        ({"mix": {"kind": "perceiver", "latents": 4, "heads": 2, "head_width": 4}}, "mix=.*perceiver"),
        ({"pooling": "attention"}, "the pooling"),
        ({"cleaning": "one_sentence", "counted": "tail"}, "cleaning='one_sentence'; counted='tail'"),
    ],
)
def test_what_sentence_transformers_has_no_words_for_is_said_and_not_written(tmp_path, spec, says):
    ours = embedder("qwen3", **spec)
    with pytest.raises(SpecError, match=says):
        ours.save_sentence_transformers(tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_no_field_of_a_spec_is_left_out_in_silence():
    written = {
        "backbone",
        "tokenizer",
        "open",
        "close",
        "max_length",
        "pooling",
        "counted",
        "span",
        "heads",
        "normalize",
    }
    written |= {"prompts", "default_prompt_name", "instructions", "mask", "layout", "dimension"}
    of_people = {"name", "languages", "licence", "summary", "dimensions", "weights"}
    assert {f.name for f in dataclasses.fields(ModelSpec)} == written | of_people | set(_PLAIN)


def test_an_embedder_that_sees_is_not_written_as_one_of_texts(tmp_path):
    with pytest.raises(SpecError, match="vision="):
        tiny_embedder().save_sentence_transformers(tmp_path / "st")


def test_a_mask_that_the_backbone_does_not_say_is_refused(tmp_path):
    made = embedder("qwen3", pooling="mean").respecified(mask="bidirectional")
    with pytest.raises(SpecError, match="mask='bidirectional' over a backbone that was composed with mask='causal'"):
        made.save_sentence_transformers(tmp_path)
    assert not list(tmp_path.iterdir())


def word_tokenizer():
    """A class of transformers that makes its normalizer and what it puts around a text anew whenever it is loaded."""
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    return BertTokenizer(vocab={piece: k for k, piece in enumerate(pieces)}, do_lower_case=False)


@pytest.mark.parametrize("spec", [{}, {"close": False}, {"open": False, "close": False}])
@pytest.mark.parametrize("lower", [False, True])
def test_a_tokenizer_that_makes_itself_anew_is_written_as_what_it_does(tmp_path, lower, spec):
    words = mmembed.tokenizer.TransformersTokenizer(word_tokenizer(), lower=lower)
    made = mmembed.compose(
        backbone=tiny_backbone("xlm-roberta"),
        tokenizer=words,
        pooling="mean",
        device="cpu",
        prompts={"query": {"any": "say: {content}"}},
    ).respecified(**spec)
    texts = ["Red Text", "a b: C", "it is REd"]
    own = mmembed.load(made.save(tmp_path / "own"), device="cpu")
    assert np.abs(own.encode(texts) - made.encode(texts)).max() <= 1e-5
    made.save_sentence_transformers(tmp_path / "st")
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    for name in ("encode", "encode_query"):
        assert np.abs(getattr(theirs, name)(texts) - getattr(made, name)(texts)).max() <= 1e-5, name


def test_what_a_tokenizer_was_told_is_saved(tmp_path):
    words = mmembed.tokenizer.TransformersTokenizer(byte_tokenizer(), prefix=[], suffix=[])
    made = mmembed.compose(backbone=tiny_backbone("qwen3"), tokenizer=words, pooling="mean", device="cpu")
    assert made.spec.tokenizer == {"kind": "transformers", "prefix": [], "suffix": []}
    own = mmembed.load(made.save(tmp_path), device="cpu")
    assert np.abs(own.encode(TEXTS) - made.encode(TEXTS)).max() <= 1e-5
