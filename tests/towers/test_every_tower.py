"""Every image processor of transformers over Pillow, and its vision models with square patches: read as they are, or refused."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoConfig, SiglipImageProcessorPil
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)

from mmembed.errors import SpecError
from mmembed.towers.vision import Preprocess, compose_vision
from mmembed.towers.vision_transformers import preprocess_of

from .test_vision import SMALL, plain

pytestmark = pytest.mark.slow

PROCESSORS = sorted({names["pil"] for names in IMAGE_PROCESSOR_MAPPING_NAMES.values() if "pil" in names})
READ = {
    "BeitImageProcessorPil",
    "BitImageProcessorPil",
    "BlipImageProcessorPil",
    "ChineseCLIPImageProcessorPil",
    "CLIPImageProcessorPil",
    "DPTImageProcessorPil",
    "FlavaImageProcessorPil",
    "Gemma3ImageProcessorPil",
    "GotOcr2ImageProcessorPil",
    "LlavaImageProcessorPil",
    "MobileNetV1ImageProcessorPil",
    "MobileNetV2ImageProcessorPil",
    "Ovis2ImageProcessorPil",
    "OwlViTImageProcessorPil",
    "PPChart2TableImageProcessorPil",
    "PromptDepthAnythingImageProcessorPil",
    "PvtImageProcessorPil",
    "RTDetrImageProcessorPil",
    "SegformerImageProcessorPil",
    "SegGptImageProcessorPil",
    "SiglipImageProcessorPil",
    "Siglip2ImageProcessorPil",
    "ViTImageProcessorPil",
}
"""Those whose settings, as they come, say all that they do; the others are refused."""
TOWERS = (
    *("beit", "chinese_clip_vision_model", "clip_vision_model", "data2vec-vision", "deit", "dinov2"),
    *(
        "dinov2_with_registers",
        "dinov3_vit",
        "dpt",
        "idefics3_vision",
        "ijepa",
        "mlcd_vision_model",
        "pixio",
        "sapiens2",
    ),
    *("siglip_vision_model", "smolvlm_vision", "tipsv2_vision_model", "vit", "vit_msn", "aimv2_vision_model"),
)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_read_as_it_is_or_refused(name):
    try:
        processor = get_image_processor_class_from_name(name)()
    except TypeError:
        pytest.skip("no processor without settings of its own")
    if name not in READ:
        with pytest.raises(SpecError):
            preprocess_of(processor, 16)
        return
    prepare = Preprocess.of(preprocess_of(processor, 16))
    if prepare.resize == "patches":
        return  # tests/towers/test_vision.py holds them to the processor's
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (prepare.mean, prepare.std))
    for seed, (height, width) in enumerate([(40, 65), (301, 200), (64, 64)]):
        rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = np.asarray(processor(PIL.Image.fromarray(rgb), return_tensors="np")["pixel_values"])[0]
        assert np.abs((theirs * std + mean) * 255 - prepare(rgb)).max() < 1e-2


@pytest.mark.parametrize("layer", ["last", -2])
@pytest.mark.parametrize("kind", TOWERS)
def test_what_stands_for_a_patch_moves_most_with_it(kind, layer):
    """Each patch is changed in turn, before weights under which tokens look at each other little."""
    config = AutoConfig.for_model(kind, **SMALL, image_size=32).to_dict()
    given = {"library": "transformers", "config": config, "layer": layer}
    tower, _ = compose_vision({**given, "processor": SiglipImageProcessorPil(size={"height": 32, "width": 32})})
    generator = torch.Generator().manual_seed(0)
    for weight in tower.model.parameters():
        weight.data = 0.08 * torch.randn(weight.shape, generator=generator) if weight.ndim > 1 else weight.data
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8))
    before = plain(tower, pixels)
    for place, (row, column) in enumerate(np.ndindex(4, 4)):
        changed = pixels.clone()
        patch = changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        patch.copy_(255 - patch)
        assert int((plain(tower, changed) - before).norm(dim=-1).argmax()) == place
