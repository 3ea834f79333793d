"""Composition: every backbone, vision library, projector, mask and pooling makes an embedder whose items have one vector,
alone and together, before and after a folder."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    PreTrainedModel,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    T5Config,
    T5Model,
)

import mmembed
from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.nn.pooling import poolings
from mmembed.nn.projector import projectors
from mmembed.testing import BACKBONES, ENCODERS, TINY_VIT, byte_tokenizer, tiny_backbone, tiny_embedder
from mmembed.towers.backbone import table_of

from .conftest import picture

THINGS = ["red", "eine sehr viel längere Zeile", picture(1), picture(2, 70, 30), ("a", picture(3), "b"), "", "red"]
SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
BERT = {**BACKBONES["xlm-roberta"], "model_type": "bert", "pad_token_id": 256, "max_position_embeddings": 64}
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def _transformers(config, processor):
    return {"library": "transformers", "config": config.to_dict(), "processor": processor}


VISIONS = {
    "timm vit": TINY_VIT,
    "timm convnet": {
        "library": "timm",
        "name": "resnet10t",
        "options": {"channels": (8, 12, 16, 24)},
        "preprocess": {"size": 64},
    },
    "open_clip": {
        "library": "open_clip",
        "config": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 12},
        },
    },
    "clip": _transformers(CLIPVisionConfig(**SMALL, image_size=32), CLIPImageProcessorPil(**CROP)),
    "siglip": _transformers(
        SiglipVisionConfig(**SMALL, image_size=32), SiglipImageProcessorPil(size={"height": 32, "width": 32})
    ),
    "siglip2": _transformers(
        Siglip2VisionConfig(**SMALL, num_patches=16), Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    ),
    "dinov2": _transformers(Dinov2Config(**SMALL, image_size=32), CLIPImageProcessorPil(**CROP)),
}


def check(embedder: mmembed.Embedder, folder) -> None:
    together = embedder.encode(THINGS)
    assert np.isfinite(together).all()
    alone = np.concatenate([embedder.encode([thing]) for thing in THINGS])
    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(together[0] - together[2]).max() > 1e-3
    assert np.abs(together[2] - together[3]).max() > 1e-4, "two pictures have one vector"
    again = mmembed.load(embedder.save(folder), device="cpu")
    assert np.array_equal(again.encode(THINGS), together)
    assert again.fingerprint == embedder.fingerprint


def mask_of(kind: str) -> str:
    return "bidirectional" if kind in ENCODERS else "causal"


@pytest.mark.parametrize("kind", BACKBONES)
def test_any_backbone(kind, tmp_path):
    check(tiny_embedder(backbone=tiny_backbone(kind), mask=mask_of(kind), pooling="mean"), tmp_path)


@pytest.mark.parametrize("layer", ["last", -2])
@pytest.mark.parametrize("name", VISIONS)
def test_any_vision_tower(name, layer, tmp_path):
    check(tiny_embedder(vision={**VISIONS[name], "layer": layer}, projector="linear"), tmp_path)


@pytest.mark.parametrize("kind", sorted(projectors))
def test_any_projector(kind, tmp_path):
    settings = {"resampler": {"latents": 3, "heads": 4}}.get(kind, {})
    check(tiny_embedder(projector={"kind": kind, **settings}, mask="causal+image"), tmp_path)


@pytest.mark.parametrize("kind", sorted(poolings))
def test_any_pooling(kind, tmp_path):
    small = {"latent_attention": {"latents": 5, "heads": 2}, "perceiver": {"latents": 5, "heads": 2, "head_width": 16}}
    settings = small.get(kind, {})
    check(tiny_embedder(pooling={"kind": kind, **settings}, mask="bidirectional"), tmp_path)


@pytest.mark.parametrize("how", [{"bidirectional_from": 1}, {"counted": "eos"}, {"mask": "bidirectional"}])
def test_a_first_token_that_has_seen_the_item_is_pooled(how):
    ours = tiny_embedder(pooling="first", **how)
    assert np.ptp(ours.encode(["red cat", "red dog"]), axis=0).max() > 1e-3


LIMITS = {
    "bert": (BERT, 64),
    "xlm-roberta": ({**BACKBONES["xlm-roberta"], "max_position_embeddings": 66}, 64),
    "opt": ({**BERT, "model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32}, 64),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 64}, 64),
    "mpnet": ({**BERT, "pad_token_id": 1}, 62),
    "deberta-v2": ({**BERT, "position_biased_input": False, "relative_attention": True}, 512),
    "qwen3": ({**BACKBONES["qwen3"], "max_position_embeddings": 64}, 512),
    "t5": (T5, 512),
}
"""Backbones by what an item has of tokens at most: what a table of positions holds, or 512."""


@pytest.mark.parametrize("kind", LIMITS)
def test_an_item_is_no_longer_than_a_table_of_positions(kind):
    config, longest = LIMITS[kind]
    made = {"tokenizer": byte_tokenizer(), "backbone": {**config, "model_type": kind}, "device": "cpu"}
    ours = mmembed.compose(**made, pooling="mean")
    assert ours.spec.max_length == longest
    with pytest.warns(UserWarning, match=f"longer than {longest} tokens"):
        assert np.isfinite(ours.encode(["x" * 600])).all()
    if longest < 512:
        with pytest.raises(SpecError, match=f"say max_length={longest} at most"):
            mmembed.compose(**made, pooling="mean", max_length=longest + 1)
        with pytest.raises(SpecError, match=f"say max_length={longest} at most"):
            ours.respecified(max_length=longest + 1)


def test_a_table_of_positions_needs_no_word_of_the_configuration():
    backbone = tiny_backbone("xlm-roberta")
    backbone.config.max_position_embeddings = 0
    assert table_of(backbone) == 600 - 2


def test_what_a_caller_changes_afterwards_changes_no_model(tmp_path):
    pooling = {"kind": "last"}
    ours = tiny_embedder(pooling=pooling)
    pooling["kind"] = "mean"
    assert ours.spec.pooling == {"kind": "last"}
    with pytest.raises(SpecError, match=r"embedder\.respecified"):
        ours.spec.pooling["kind"] = "mean"
    assert np.array_equal(mmembed.load(ours.save(tmp_path), device="cpu").encode("red"), ours.encode("red"))


def test_heads_follow_the_pooling(tmp_path):
    heads = ({"kind": "dense", "out": 48, "activation": "tanh"}, {"kind": "layer_norm"}, {"kind": "dense", "out": 12})
    embedder = tiny_embedder(heads=heads, dimensions=(12, 6))
    assert embedder.encode("a").shape == (1, 12)
    check(embedder, tmp_path)


def test_a_backbone_comes_from_a_folder_a_model_or_a_configuration(tmp_path):
    model = tiny_backbone()
    model.save_pretrained(tmp_path / "b")
    byte_tokenizer().save_pretrained(tmp_path / "b")
    of_folder = mmembed.compose(backbone=tmp_path / "b", tokenizer=tmp_path / "b", device="cpu")
    of_model = mmembed.compose(backbone=model, tokenizer=byte_tokenizer(), device="cpu")
    assert np.array_equal(of_folder.encode("red"), of_model.encode("red"))
    config = {**BACKBONES["qwen3"], "model_type": "qwen3"}
    fresh = mmembed.compose(backbone=config, tokenizer=byte_tokenizer(), device="cpu")
    assert np.abs(fresh.encode("red") - of_model.encode("red")).max() > 1e-3


def test_a_configuration_makes_the_backbone_that_its_folder_is_read_as(tmp_path):
    ours = mmembed.compose(
        backbone={"model_type": "t5", **T5}, tokenizer=byte_tokenizer(), pooling="mean", device="cpu"
    )
    assert type(ours.model.backbone).__name__ == "T5EncoderModel"
    again = mmembed.load(ours.save(tmp_path), device="cpu")
    assert np.array_equal(again.encode(["red", "cat"]), ours.encode(["red", "cat"]))
    with pytest.raises(UnknownName, match="Did you mean 'llama'"):
        mmembed.compose(backbone={"model_type": "lama"}, tokenizer=byte_tokenizer())


def test_a_transformers_tower_comes_from_a_folder(tmp_path):
    config = SiglipVisionConfig(**SMALL, image_size=32)
    AutoModel.from_config(config).save_pretrained(tmp_path / "v")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "v")
    check(tiny_embedder(vision={"library": "transformers", "path": tmp_path / "v"}), tmp_path / "m")


ANY_SHAPE = {**TINY_VIT, "options": {**TINY_VIT["options"], "dynamic_img_size": True, "dynamic_img_pad": True}}


def test_parts_that_make_no_model_are_refused(tmp_path):
    cases = [
        ({"vision": {"library": "tim", "name": "x"}}, UnknownName, "Did you mean 'timm'"),
        ({"vision": {"library": "timm", "name": "resnet10"}}, UnknownName, "Did you mean 'resnet10t'"),
        ({"vision": {**TINY_VIT, "layer": 3}}, SpecError, "layer is 'last'"),
        ({"vision": {**TINY_VIT, "layer": -9}}, SpecError, "has 3 levels"),
        (
            {"vision": {**TINY_VIT, "preprocess": {"resize": "shortest", "crop": None}}},
            SpecError,
            "no tower for pictures of 32 x 42 pixels",
        ),
        ({"vision": {**TINY_VIT, "lyer": -2}}, UnknownName, "Did you mean 'layer'"),
        ({"projector": "pixel_shufle"}, UnknownName, "Did you mean 'pixel_shuffle'"),
        ({"projector": {"kind": "pixel_shuffle", "ratio": 3}}, SpecError, "grid of 4 x 4"),
        (
            {"projector": "pixel_shuffle", "vision": {**ANY_SHAPE, "preprocess": {"resize": "shortest", "crop": None}}},
            SpecError,
            "pictures keep their shape before this tower",
        ),
        ({"backbone": tmp_path}, LoadError, "no backbone at"),
        ({"backbone": tiny_backbone("xlm-roberta"), "mask": "causal"}, SpecError, "use mask='bidirectional'"),
        ({"backbone": tiny_backbone("lfm2"), "layout": "packed"}, SpecError, "cannot run packed"),
        ({"dimension": 7, "dimensions": ()}, SpecError, "dimension=7"),
        ({"vision": "timm"}, SpecError, r"vision='timm': settings are wanted, such as \{'library'"),
        (
            {"backbone": T5Model(T5Config(**T5))},
            SpecError,
            r"t5 backbone .*its encoder alone is wanted: .*T5EncoderModel",
        ),
        ({"backbone": {**BERT, "vocab_size": 200}}, SpecError, "cannot be built with pad_token_id=256, vocab_size=200"),
        (
            {"backbone": BERT, "mask": None, "max_length": 65},
            SpecError,
            "table of a bert backbone has 64: say max_length=64",
        ),
        ({"pooling": "first"}, SpecError, "has seen nothing of the item"),
        ({"pooling": "first", "mask": "causal+image"}, SpecError, "has seen nothing of the item"),
        (
            {"pooling": {"kind": "joined", "kinds": ["mean", "first"]}, "dimension": 64},
            SpecError,
            "has seen nothing of the item",
        ),
        ({"pooling": "first", "bidirectional_from": 1, "layers": (-2,)}, SpecError, "has seen nothing of the item"),
    ]
    for changed, error, message in cases:
        with pytest.raises(error, match=message):
            tiny_embedder(**changed)


def test_a_dimension_that_nobody_says_is_that_of_what_is_pooled():
    joined = {"kind": "joined", "kinds": ["mean", "last"]}
    parts = {"backbone": tiny_backbone(), "tokenizer": byte_tokenizer(), "device": "cpu"}
    heads = [{"kind": "dense", "out": 5}, {"kind": "layer_norm"}]
    assert mmembed.compose(**parts, pooling=joined).encode(["red"]).shape == (1, 64)
    assert mmembed.compose(**parts, pooling=joined, heads=[{"kind": "layer_norm"}]).dimension == 64
    assert mmembed.compose(**parts, pooling=joined, heads=heads).dimension == 5


def test_the_spec_says_what_was_composed(tmp_path):
    folder = tiny_embedder(prompts={"query": {"any": "q: {content}"}}).save(tmp_path / "m")
    said = json.loads((folder / "spec.json").read_text())
    assert said["backbone"]["config"]["model_type"] == "qwen3"
    assert said["vision"]["preprocess"]["size"] == 32
    assert said["prompts"] == {"query": {"any": "q: {content}"}}


def test_a_backbone_whose_values_are_narrower_than_its_keys():
    """DeepSeek's attention, alone, beside others, behind what others share, and long."""
    config = AutoConfig.for_model(
        "deepseek_v3",
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "vocab_size": 300, "q_lora_rank": 12, "kv_lora_rank": 12, "qk_nope_head_dim": 8},
        **{"qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
        **{"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
    )
    model = AutoModel.from_config(config).eval()
    texts = ["abc", "abd", "xbd", "xyz", "a" * 30 + "b" * 9, "a" * 30 + "c" * 9, "a" * 700]
    words = byte_tokenizer()
    with torch.inference_mode():
        due = torch.stack([model(words(t, return_tensors="pt")["input_ids"]).last_hidden_state[0, -1] for t in texts])
    ours = mmembed.compose(backbone=model, tokenizer=words, device="cpu", normalize=False, max_length=800)
    assert np.abs(ours.encode(texts) - due.numpy()).max() <= 1e-5
    assert np.abs(np.concatenate([ours.encode([text]) for text in texts]) - due.numpy()).max() <= 1e-5


def gemma3n() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "gemma3n_text",
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
        **{"vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 9, "laurel_rank": 4},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 0},
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        **{"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
    )
    model = AutoModel.from_config(config).eval()
    for layer in model.layers:  # drawn as zeros, behind which nothing of a token but its embedding is read
        torch.nn.init.ones_(layer.altup.correct_output_scale)
    return model


def test_a_backbone_that_looks_up_more_than_an_embedding_takes_no_pictures_of_another_tower():
    """Gemma 3n gives each block something of each token, which nobody could look up for a picture; a row with one went in
    without any of it."""
    with pytest.raises(SpecError, match="something else than of the tokens: it takes neither pictures"):
        tiny_embedder(backbone=gemma3n())
    plain = tiny_embedder(backbone=gemma3n(), vision=None, projector=None)
    with pytest.raises(SpecError, match="nor a placeholder"):
        mmembed.methods.apply(plain, "token-prepending")


def test_embeddings_narrower_than_states_are_what_pictures_become():
    small = {**BERT, "model_type": "albert", "embedding_size": 16, "num_hidden_layers": 2}
    embedder = tiny_embedder(backbone=small, mask=None)
    assert embedder.model.projector.tokens((4, 4)) == 16
    vectors = embedder.encode(THINGS)
    assert np.abs(vectors - np.concatenate([embedder.encode([thing]) for thing in THINGS])).max() <= 1e-5


def test_a_width_of_each_layer_of_its_own():
    """Gemma 3n says how wide its MLPs are layer by layer."""
    model = gemma3n()
    ours = mmembed.compose(backbone=model, tokenizer=byte_tokenizer(), device="cpu")
    texts = ["a", "some words that are longer", "b"]
    assert ours.model.token_sizes == (32, 64, 4)
    assert np.abs(ours.encode(texts) - np.concatenate([ours.encode([text]) for text in texts])).max() <= 1e-5


def test_what_is_made_in_a_callers_inference_mode_is_as_ever():
    with torch.inference_mode():
        ours = mmembed.load(device="cpu")
    assert not any(weight.is_inference() for weight in ours.model.parameters())
    assert ours.self_test().greatest_difference <= ours.self_test().tolerance


def test_a_tower_that_is_given_no_weights_is_told_of(tmp_path):
    parts = {"backbone": tiny_backbone(), "tokenizer": byte_tokenizer(), "device": "cpu", "projector": "linear"}
    with pytest.warns(UserWarning, match="has random weights: give 'weights'") as told:
        made = mmembed.compose(**parts, vision=TINY_VIT)
    assert told[0].filename == __file__
    weights = {name: weight.contiguous() for name, weight in made.model.vision.model.state_dict().items()}
    save_file(weights, tmp_path / "tower.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mmembed.compose(**parts, vision={**TINY_VIT, "weights": tmp_path / "tower.safetensors"})


def test_a_prompt_is_a_template_for_each_modality():
    with pytest.raises(SpecError, match=r"\{'query': \{'any': 'Query: \{content\}'\}\}"):
        mmembed.compose(
            backbone=tiny_backbone(), tokenizer=byte_tokenizer(), device="cpu", prompts={"query": "Query: "}
        )


def test_what_would_be_left_aside_is_refused(tmp_path):
    parts = {"backbone": tiny_backbone(), "tokenizer": byte_tokenizer()}
    with pytest.raises(SpecError, match="projector='mlp' is for a vision tower"):
        mmembed.compose(**parts, projector="mlp")
    folder = tiny_embedder().save(tmp_path / "tiny")
    for here in (folder, "pico"):
        with pytest.raises(LoadError, match="revision='v1' is of a hub repository"):
            mmembed.load(here, revision="v1")
    with pytest.raises(SpecError, match="is no adapter"):
        mmembed.load("open_clip:ViT-B-32:none", base=folder)
