"""Towers give what their library gives on the pixels that their library's own preprocessing makes."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import PIL.Image
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Aimv2VisionConfig,
    BridgeTowerImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    EfficientNetImageProcessorPil,
    FuyuImageProcessorPil,
    LevitImageProcessorPil,
    LlavaImageProcessorPil,
    MobileViTImageProcessorPil,
    Owlv2ImageProcessorPil,
    PixtralVisionConfig,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    TimesformerConfig,
    VideoMAEImageProcessorPil,
    VitDetConfig,
    ViTMAEConfig,
    YolosConfig,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.testing import TINY_VIT
from mmembed.towers.vision import Preprocess, build_vision, compose_vision
from mmembed.towers.vision_transformers import preprocess_of

SHAPES = [(40, 50), (50, 40), (32, 32), (33, 71), (71, 33), (64, 37), (1, 1), (3, 500), (500, 3), (200, 31)]
"""Heights and widths; odd margins of every remainder, one pixel, strips."""

SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
PLAIN = {"resize": "square", "size": 32, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
LAYERS = ["last", -1, -2, -3]


def rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def shaken(model, seed=0):
    """Weights away from the small ones of a fresh model: biases, norms and registers as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.15 * noise)
    return model.eval()


def towered(settings, layer="last", **changed):
    tower, entry = compose_vision({**settings, "layer": layer, **changed})
    shaken(tower.model)
    return tower.eval(), entry


def batch(images=2, height=32, width=32):
    pixels = np.stack([rgb(height, width, seed) for seed in range(images)]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def normalised(tower, pixels):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (tower.preprocess.mean, tower.preprocess.std))
    return (pixels.float() / 255 - mean) / std


def hooked(module, run, x):
    """What a module gave while `run` ran on x."""
    seen = []
    handle = module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.no_grad():
        run(x)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def plain(run, *given, **named):
    with torch.no_grad():
        return run(*given, **named)


VITS = {
    "clip": (
        "vit_base_patch16_clip_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    ),
    "siglip": (
        "vit_base_patch16_siglip_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    ),
    "dinov2 with registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 3},
    ),
    "dinov3": (
        "vit_small_patch16_dinov3",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", VITS)
def test_a_timm_vit_gives_its_patch_tokens_of_the_layer(kind, layer):
    name, options = VITS[kind]
    tower, entry = towered({"library": "timm", "name": name, "options": options}, layer)
    size = options["img_size"]
    assert entry["preprocess"]["size"] == size
    pixels = batch(2, size, size)
    model, x = tower.model, normalised(tower, pixels)
    if layer == "last":
        due = plain(model.forward_features, x)
    else:
        due = hooked(model.blocks[layer], model.forward_features, x)
    assert (plain(tower, pixels) - due[:, model.num_prefix_tokens :]).abs().max() <= 1e-5
    assert tower.width == due.shape[-1]
    assert tower.grid(size, size) == (4, 4)


NETS = {
    "resnet": ("resnet10t", {"channels": (8, 12, 16, 24)}, ["layer1", "layer2", "layer3", "layer4"]),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, [f"stages.{k}" for k in range(4)]),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        [f"layers.{k}" for k in range(4)],
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", NETS)
def test_a_timm_pyramid_gives_the_map_of_the_stage_row_by_row(kind, layer):
    name, options, stages = NETS[kind]
    given = {"library": "timm", "name": name, "options": options, "preprocess": {"size": 64}}
    tower, _ = towered(given, layer)
    pixels = batch(2, 64, 64)
    model, x = tower.model, normalised(tower, pixels)
    if layer == "last":
        due = plain(model.forward_features, x)
    else:
        due = hooked(model.get_submodule(stages[layer]), model.forward_features, x)
    if kind != "swin":
        due = due.permute(0, 2, 3, 1)
    assert tower.grid(64, 64) == due.shape[1:3]
    assert (plain(tower, pixels) - due.flatten(1, 2)).abs().max() <= 1e-4 * due.abs().max()


def test_a_convolutional_tower_reads_any_shape():
    tower, _ = towered({"library": "timm", "name": "resnet10t", "options": NETS["resnet"][1]})
    pixels = batch(1, 70, 129)
    due = plain(tower.model.forward_features, normalised(tower, pixels))
    assert tower.grid(70, 129) == due.shape[2:] == (3, 5)
    assert (plain(tower, pixels) - due.flatten(2).transpose(1, 2)).abs().max() <= 1e-4 * due.abs().max()


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 12},
}
TRUNK = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}


@pytest.mark.parametrize("layer", LAYERS)
def test_an_open_clip_vit_gives_its_patch_tokens_of_the_layer(layer):
    tower, _ = towered({"library": "open_clip", "config": OPEN_CLIP}, layer)
    visual, pixels = tower.model, batch()
    x = normalised(tower, pixels)
    if layer == "last":
        visual.output_tokens = True
        due = plain(visual, x)[1]
        visual.output_tokens = False
    else:
        due = hooked(visual.transformer.resblocks[layer], visual, x)[:, 1:]
    assert (plain(tower, pixels) - due).abs().max() <= 1e-5
    assert (tower.width, tower.grid(32, 32)) == (24, (4, 4))


@pytest.mark.parametrize(
    "pooling", [{"final_ln_after_pool": True, "pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 4}]
)
def test_patches_are_not_normed_where_open_clip_norms_what_it_has_pooled(pooling):
    vision = {**OPEN_CLIP["vision_cfg"], **pooling}
    tower, _ = towered({"library": "open_clip", "config": {**OPEN_CLIP, "vision_cfg": vision}})
    visual, pixels = tower.model, batch()
    due = hooked(visual.transformer, visual, normalised(tower, pixels))[:, 1:]
    assert (plain(tower, pixels) - due).abs().max() <= 1e-5


@pytest.mark.parametrize("layer", ["last", -2])
def test_an_open_clip_model_on_a_timm_trunk_gives_the_trunk_s_features(layer):
    tower, _ = towered({"library": "open_clip", "config": TRUNK}, layer)
    trunk, pixels = tower.model, batch(1, 64, 64)
    x = normalised(tower, pixels)
    due = hooked(trunk.layer4 if layer == "last" else trunk.layer3, trunk.forward_features, x)
    told = plain(tower, pixels)
    assert (told - due.flatten(2).transpose(1, 2)).abs().max() <= 1e-4 * due.abs().max()
    assert told.shape[1:] == ((4, 512) if layer == "last" else (16, 256))


@pytest.mark.parametrize("quick", [{}, {"quick_gelu": True}], ids=["gelu", "quick_gelu"])
def test_an_open_clip_folder_gives_its_weights_and_its_preprocessing(tmp_path, quick):
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    whole = shaken(open_clip.CLIP(**OPEN_CLIP, **quick, text_cfg=text))
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": {**OPEN_CLIP, **quick, "text_cfg": text}, "preprocess_cfg": told}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(whole.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    tower, entry = compose_vision({"library": "open_clip", "name": f"local-dir:{tmp_path}"})
    assert entry["preprocess"]["resize"] == "square"
    assert entry["preprocess"]["interpolation"] == "bilinear"
    assert (entry["preprocess"]["mean"], entry["preprocess"]["std"]) == (told["mean"], told["std"])
    whole.visual.output_tokens = True
    pixels = batch()
    due = plain(whole.visual, normalised(tower, pixels))[1]
    assert (plain(tower.eval(), pixels) - due).abs().max() <= 1e-5
    again = build_vision(json.loads(json.dumps(entry))).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(plain(again, pixels), plain(tower, pixels))


CROPS = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
HF = {
    "clip": (CLIPVisionConfig(**SMALL, image_size=32), CROPS, 1),
    "siglip": (
        SiglipVisionConfig(**SMALL, image_size=32),
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        0,
    ),
    "siglip2": (
        Siglip2VisionConfig(**SMALL, num_patches=16),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        0,
    ),
    "dinov2": (Dinov2Config(**SMALL, image_size=32), CROPS, 1),
    "dinov2 with registers": (Dinov2WithRegistersConfig(**SMALL, image_size=32, num_register_tokens=3), CROPS, 4),
}


def hf(kind, layer="last"):
    config, processor, prefix = HF[kind]
    tower, entry = towered({"library": "transformers", "config": config.to_dict(), "processor": processor}, layer)
    return tower, entry, processor, prefix


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", HF)
def test_a_tower_of_transformers_gives_its_patch_states_of_the_layer(kind, layer):
    """From the picture on: their processor and model, our preprocessing and tower."""
    tower, _, processor, prefix = hf(kind, layer)
    for shape in [(40, 50), (90, 20)]:
        picture = rgb(*shape)
        inputs = dict(processor(PIL.Image.fromarray(picture), return_tensors="pt"))
        out = plain(tower.model, **inputs, output_hidden_states=True)
        due = (out.last_hidden_state if layer == "last" else out.hidden_states[layer])[:, prefix:]
        if "pixel_attention_mask" in inputs:
            due = due[inputs["pixel_attention_mask"].bool()][None]
        prepared = torch.from_numpy(tower.prepare(picture))[None]
        told = plain(tower, prepared)
        rows, columns = tower.grid(*prepared.shape[-2:])
        assert told.shape[1] == rows * columns
        if "spatial_shapes" in inputs:
            assert inputs["spatial_shapes"].tolist() == [[rows, columns]]
        assert (told - due).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", [kind for kind in HF if kind != "siglip2"])
def test_a_tower_of_transformers_reads_other_sizes_through_interpolated_positions(kind):
    tower, _, _, prefix = hf(kind)
    pixels = batch(2, 24, 48)
    asked = {} if "dinov2" in kind else {"interpolate_pos_encoding": True}
    due = plain(tower.model, pixel_values=normalised(tower, pixels), **asked).last_hidden_state[:, prefix:]
    assert tower.grid(24, 48) == (3, 6)
    assert (plain(tower, pixels) - due).abs().max() <= 1e-5


def test_the_image_side_of_a_two_tower_folder_is_taken(tmp_path):
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    vision = CLIPVisionConfig(**SMALL, image_size=32)
    whole = shaken(CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)))
    whole.save_pretrained(tmp_path)
    CROPS.save_pretrained(tmp_path)
    tower, entry = compose_vision({"library": "transformers", "path": tmp_path})
    pixels = batch()
    due = plain(whole.vision_model, normalised(tower, pixels)).last_hidden_state[:, 1:]
    assert (plain(tower.eval(), pixels) - due).abs().max() <= 1e-5
    assert entry["preprocess"]["crop"] == 32
    again = build_vision(json.loads(json.dumps(entry))).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(plain(again, pixels), plain(tower, pixels))
    with pytest.raises(LoadError, match="no vision tower at"):
        compose_vision({"library": "transformers", "path": tmp_path / "none"})


EVERY = {
    "timm": {"library": "timm", "name": VITS["siglip"][0], "options": VITS["siglip"][1]},
    "timm pyramid": {"library": "timm", "name": "resnet10t", "options": NETS["resnet"][1], "preprocess": {"size": 64}},
    "open_clip": {"library": "open_clip", "config": OPEN_CLIP},
    "open_clip trunk": {"library": "open_clip", "config": TRUNK},
    **{
        kind: {"library": "transformers", "config": config.to_dict(), "processor": processor}
        for kind, (config, processor, _) in HF.items()
    },
}


@pytest.mark.parametrize("layer", ["last", -2])
@pytest.mark.parametrize("kind", EVERY)
def test_a_tower_built_again_from_its_entry_gives_the_same_features(kind, layer):
    tower, entry = towered(EVERY[kind], layer)
    again = build_vision(json.loads(json.dumps(entry))).eval()
    again.load_state_dict(tower.state_dict())
    assert again.preprocess == tower.preprocess
    prepared = torch.from_numpy(tower.prepare(rgb(50, 70)))[None]
    assert torch.equal(plain(again, prepared), plain(tower, prepared))


@pytest.mark.parametrize("kind", EVERY)
def test_a_picture_has_its_features_whatever_its_company(kind):
    tower, _ = towered(EVERY[kind])
    pixels = torch.from_numpy(np.stack([tower.prepare(rgb(50, 70, seed)) for seed in range(3)]))
    together = plain(tower, pixels)
    for k in range(3):
        assert (plain(tower, pixels[k : k + 1])[0] - together[k]).abs().max() <= 1e-5 * together.abs().max() + 1e-6


def grey(values, mean, std):
    """Normalised values as grey levels."""
    mean, std = (np.asarray(x, np.float64).reshape(1, 3, 1, 1) for x in (mean, std))
    levels = (np.asarray(values, np.float64) * std + mean) * 255
    assert np.abs(levels - levels.round()).max() < 1e-2
    return levels.round().astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("resample", [PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.BILINEAR], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (37, 32), (32, 27)], ids=str)
def test_pixels_of_shortest_are_those_of_clip_s_processor(size, resample, shape):
    edge, crop = size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop}, resample=resample
    )
    _, entry = compose_vision({"library": "transformers", "config": HF["clip"][0].to_dict(), "processor": processor})
    prepare = Preprocess.of(entry["preprocess"])
    picture = rgb(*shape)
    theirs = processor(PIL.Image.fromarray(picture), return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(picture), grey(theirs, prepare.mean, prepare.std)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_of_square_are_those_of_siglip_s_processor(shape):
    processor = HF["siglip"][1]
    prepare = Preprocess.of(hf("siglip")[1]["preprocess"])
    picture = rgb(*shape)
    theirs = processor(PIL.Image.fromarray(picture), return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(picture), grey(theirs, prepare.mean, prepare.std)[0])


@pytest.mark.parametrize("shape", [*SHAPES, (2000, 1500), (480, 640)], ids=str)
@pytest.mark.parametrize(("patch", "most"), [(8, 16), (16, 256), (14, 7)])
def test_pixels_of_patches_are_those_of_siglip2_s_processor(patch, most, shape):
    processor = Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=most)
    settings = {**SMALL, "patch_size": patch, "num_patches": 16}
    config = Siglip2VisionConfig(**settings).to_dict()
    tower, _ = compose_vision({"library": "transformers", "config": config, "processor": processor})
    picture = rgb(*shape)
    theirs = processor(PIL.Image.fromarray(picture), return_tensors="np")
    ours = tower.prepare(picture)
    rows, columns = tower.grid(*ours.shape[-2:])
    assert theirs["spatial_shapes"].tolist() == [[rows, columns]]
    assert rows * columns <= most
    patches = ours.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    levels = np.rint((theirs["pixel_values"][0, : rows * columns] * 0.5 + 0.5) * 255)
    assert np.array_equal(patches, levels)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([8, 14, 16]), st.sampled_from([16, 256, 729, 1024]))
def test_the_size_in_whole_patches_is_that_of_siglip2(width, height, patch, most):
    common = {"resize": "patches", "patch": patch, "max_patches": most, "mean": PLAIN["mean"], "std": PLAIN["std"]}
    told = Preprocess.of(common).target(width, height)
    assert told == get_image_size_for_max_num_patches(height, width, patch, most)[::-1]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (3, 500)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [32, 33])
def test_pixels_are_those_of_open_clip_s_transform(size, mode, interpolation, shape):
    told = {"resize_mode": mode, "interpolation": interpolation, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    vision = {**OPEN_CLIP["vision_cfg"], "image_size": size, "patch_size": 4 if size == 32 else 3}
    given = {"library": "open_clip", "config": {**OPEN_CLIP, "vision_cfg": vision, "preprocess_cfg": told}}
    tower, _ = compose_vision(given)
    transform = open_clip.transform.image_transform(size, is_train=False, **told)
    picture = rgb(*shape)
    theirs = transform(PIL.Image.fromarray(picture)).numpy()[None]
    assert np.array_equal(tower.prepare(picture), grey(theirs, told["mean"], told["std"])[0])


def test_every_odd_margin_is_cropped_as_the_library_does():
    """Half an odd margin: transformers rounds down, torchvision to the even number."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    common = {"resize": "shortest", "size": 16, "crop": 16, "mean": CROPS.image_mean, "std": CROPS.image_std}
    transform = open_clip.transform.image_transform(16, is_train=False, mean=CROPS.image_mean, std=CROPS.image_std)
    apart = 0
    for width in range(16, 28):
        picture = rgb(16, width)
        down, even = (Preprocess.of({**common, "rounding": r})(picture) for r in ("down", "even"))
        hugging = processor(PIL.Image.fromarray(picture), return_tensors="np")["pixel_values"]
        assert np.array_equal(down, grey(hugging, CROPS.image_mean, CROPS.image_std)[0])
        opened = transform(PIL.Image.fromarray(picture)).numpy()[None]
        assert np.array_equal(even, grey(opened, CROPS.image_mean, CROPS.image_std)[0])
        apart += not np.array_equal(down, even)
    assert apart == 3


def test_a_timm_tower_takes_its_statistics_from_timm_and_squares_the_picture():
    """timm's own evaluation crops the middle of SigLIP's pictures, which SigLIP was never trained on: ours is a square
    resize with timm's interpolation, mean and standard deviation."""
    tower, entry = compose_vision({"library": "timm", "name": VITS["clip"][0], "options": VITS["clip"][1]})
    config = timm.data.resolve_model_data_config(tower.model)
    assert entry["preprocess"]["mean"] == list(config["mean"]) == list(open_clip.OPENAI_DATASET_MEAN)
    assert entry["preprocess"]["std"] == list(config["std"])
    own = timm.data.create_transform(
        (3, 32, 32),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=1.0,
        crop_mode="squash",
    )
    for shape in SHAPES:
        picture = rgb(*shape)
        theirs = own(PIL.Image.fromarray(picture)).numpy()[None]
        assert np.array_equal(tower.prepare(picture), grey(theirs, config["mean"], config["std"])[0])


def test_the_caller_s_preprocessing_goes_before_the_library_s():
    tower, entry = compose_vision({**TINY_VIT, "preprocess": {"interpolation": "bilinear", "mean": [0.0, 0.0, 0.0]}})
    assert tower.preprocess.interpolation == "bilinear"
    assert entry["preprocess"]["mean"] == [0.0, 0.0, 0.0]
    assert entry["preprocess"]["size"] == 32


def test_a_processor_that_does_not_normalise_is_followed():
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    )
    tower, _ = compose_vision({"library": "transformers", "config": HF["clip"][0].to_dict(), "processor": processor})
    picture = rgb(40, 50)
    due = processor(PIL.Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    assert (normalised(tower, torch.from_numpy(tower.prepare(picture))[None]) - due).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "changed",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_center_crop": False},
        {"crop_size": {"height": 32, "width": 16}},
        {"size": {"height": 32, "width": 16}, "do_center_crop": False},
    ],
    ids=str,
)
def test_a_processor_that_does_what_no_setting_says_is_refused(changed):
    given = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **changed}
    with pytest.raises(SpecError, match="not supported"):
        compose_vision(
            {
                "library": "transformers",
                "config": HF["clip"][0].to_dict(),
                "processor": CLIPImageProcessorPil(**given),
            }
        )


@pytest.mark.parametrize(
    "processor",
    [
        EfficientNetImageProcessorPil(size={"height": 32, "width": 32}),  # subtracts one as well
        LevitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),  # 36, then the crop
        LlavaImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, do_pad=True),
        MobileViTImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),  # blue, green, red
        Owlv2ImageProcessorPil(size={"height": 32, "width": 32}),
        ConvNextImageProcessorPil(size={"height": 32, "width": 32}),
        VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        FuyuImageProcessorPil(),
        BridgeTowerImageProcessorPil(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_processor_that_does_more_than_its_settings_say_is_found_out(processor):
    with pytest.raises(SpecError, match=f"^{type(processor).__name__} "):
        preprocess_of(processor, 8)


SQUARE = SiglipImageProcessorPil(size={"height": 32, "width": 32})
NO_TOWERS = {
    "yolos": (YolosConfig(**SMALL, image_size=[32, 32], num_detection_tokens=3), "its last tokens are not those of"),
    "pixtral": (PixtralVisionConfig(**SMALL, image_size=32, head_dim=12), "gave 1 x 16 x 24 numbers where 2 x 16 x 24"),
    "vit_mae": (ViTMAEConfig(**SMALL, image_size=32), "gave 5 features where 4 x 4 were due"),
    "vit_mae that shuffles": (ViTMAEConfig(**SMALL, image_size=32, mask_ratio=0.0), "or each time others"),
    "vitdet": (VitDetConfig(**SMALL, image_size=32), "gave 2 x 16 x 4 x 4 numbers"),
    "timesformer": (TimesformerConfig(**SMALL, image_size=32), "no tower for pictures of 32 x 32 pixels"),
    "convnext": (ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4), "no vision tower with square patches"),
}


@pytest.mark.parametrize("kind", NO_TOWERS)
def test_a_vision_model_that_gives_no_features_of_places_is_found_out(kind):
    config, says = NO_TOWERS[kind]
    with pytest.raises(SpecError, match=says):
        compose_vision({"library": "transformers", "config": config.to_dict(), "processor": SQUARE})


def test_pixels_of_a_size_that_the_tower_does_not_take_are_refused_when_they_are_said():
    given = {"library": "transformers", "config": Aimv2VisionConfig(**SMALL, image_size=32).to_dict()}
    tower, _ = compose_vision({**given, "processor": SQUARE})
    other = Preprocess.of({**PLAIN, "mean": SQUARE.image_mean, "std": SQUARE.image_std, "size": 64})
    with pytest.raises(SpecError, match="Aimv2VisionModel is no tower for pictures of 64 x 64 pixels"):
        tower.preprocessing(other)


@pytest.mark.parametrize("kind", EVERY)
def test_a_layer_that_the_tower_does_not_have_is_an_error(kind):
    with pytest.raises(SpecError, match=r"layer -9: the tower has \d levels"):
        compose_vision({**EVERY[kind], "layer": -9})
    for layer in (0, 3, "first", 1.5):
        with pytest.raises(SpecError, match="layer is 'last', or -2"):
            compose_vision({**EVERY[kind], "layer": layer})


@pytest.mark.parametrize(
    ("settings", "near"),
    [
        ({"library": "tim"}, "timm"),
        ({"library": "timm", "name": "resnet10"}, "resnet10t"),
        ({"library": "timm", "nam": "resnet10t"}, "name"),
        ({"library": "open_clip", "name": "ViT-B-33"}, "ViT-B-32"),
        (
            {"library": "transformers", "config": {"model_type": "siglip2_vision_modal"}, "processor": CROPS},
            "siglip2_vision_model",
        ),
        ({**TINY_VIT, "preprocess": {"interpolate": "bicubic"}}, "interpolation"),
        ({**TINY_VIT, "preprocess": {"interpolation": "bicubik"}}, "bicubic"),
        ({**TINY_VIT, "preprocess": {"resize": "squares"}}, "square"),
        ({**TINY_VIT, "preprocess": {"rounding": "eve"}}, "even"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nothing_is_called_is_answered_with_the_nearest(settings, near):
    with pytest.raises(UnknownName, match=f"Did you mean '{near}'"):
        compose_vision(settings)


def test_towers_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match="needs 'preprocess'"):
        build_vision(TINY_VIT)
    with pytest.raises(SpecError, match="a 'path' or a 'config'"):
        compose_vision({"library": "transformers"})
    with pytest.raises(SpecError, match="image 'processor'"):
        compose_vision({"library": "transformers", "config": HF["clip"][0].to_dict()})
    with pytest.raises(SpecError, match="a 'name' or a 'config'"):
        compose_vision({"library": "open_clip"})
    with pytest.raises(SpecError, match="'longest' is not supported"):
        compose_vision({"library": "open_clip", "config": {**OPEN_CLIP, "preprocess_cfg": {"resize_mode": "longest"}}})
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    with pytest.raises(SpecError, match="gives no patch features"):
        compose_vision({"library": "open_clip", "config": {"embed_dim": 16, "vision_cfg": resnet}})
    with pytest.raises(SpecError, match="crop of 40 pixels is wider"):
        Preprocess.of({**PLAIN, "resize": "shortest", "crop": 40})


def test_pixels_that_a_tower_has_no_grid_for_are_an_error():
    tower, _ = towered({"library": "open_clip", "config": OPEN_CLIP})
    tower.patch = (16, 16)
    with pytest.raises(SpecError, match="gave 16 features where 2 x 2 were due"):
        tower(batch())


def test_weights_that_a_tower_would_not_have_as_they_are_meant_are_refused(tmp_path):
    with pytest.raises(SpecError, match="'openai' was trained with quick_gelu=True"):
        compose_vision({"library": "open_clip", "name": "ViT-B-32", "pretrained": "openai"})
    for asked in ({"config": OPEN_CLIP}, {"name": f"local-dir:{tmp_path}"}):
        with pytest.raises(SpecError, match="a config alone has fresh weights, a folder its own"):
            compose_vision({"library": "open_clip", **asked, "pretrained": "weights.bin"})
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for file in ("none.safetensors", "broken.safetensors"):
        with pytest.raises(LoadError, match=f"{file} holds no weights"):
            compose_vision({**TINY_VIT, "weights": tmp_path / file})


def test_weights_of_a_classifier_are_taken_without_its_classes(tmp_path):
    from safetensors.torch import save_file

    source = shaken(timm.create_model(TINY_VIT["name"], num_classes=7, **TINY_VIT["options"]))
    assert "head.weight" in source.state_dict()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    tower, _ = compose_vision({**TINY_VIT, "weights": tmp_path / "weights.safetensors"})
    assert torch.equal(tower.model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


def test_weights_of_another_size_are_resampled_by_timm(tmp_path):
    from safetensors.torch import save_file

    big = {**TINY_VIT["options"], "img_size": 64}
    source = shaken(timm.create_model(TINY_VIT["name"], num_classes=0, **big))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    tower, _ = compose_vision({**TINY_VIT, "weights": tmp_path / "weights.safetensors"})
    assert torch.equal(tower.model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert tower.model.pos_embed.shape[1] == 17
    same, _ = compose_vision({**TINY_VIT, "options": big, "weights": tmp_path / "weights.safetensors"})
    assert torch.equal(same.model.pos_embed, source.pos_embed)
