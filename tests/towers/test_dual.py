"""Both towers of a dual encoder give what their library gives, are built again from their description, and keep to an input."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch

from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.spec import described
from mmembed.tokenizer import OpenClipTokenizer, SentencePieceTokenizer, TransformersTokenizer
from mmembed.towers import dual_open_clip, dual_transformers
from mmembed.towers.dual import build_dual
from mmembed.towers.vision import Preprocess
from mmembed.towers.vision_transformers import preprocess_of

from ..conftest import picture
from ..duals import LENGTH, TEXTS, SiglipWords, gemma_tokenizer, open_clip_dual, transformers_dual


def towers_of(kind, folder):
    """Ours with a folder's weights, its entry in a spec, and the image processor."""
    model, words, processor = transformers_dual(kind, folder)
    preprocess = preprocess_of(processor, 8)
    towers = dual_transformers.load(folder, model.config, Preprocess.of(preprocess))
    entry = {"dual": "transformers", "config": described(model.config), "preprocess": preprocess}
    return model, words, processor, towers.eval(), entry


def plain(run, *given):
    with torch.no_grad():
        return run(*given)


def prepared(towers, *pictures):
    return torch.from_numpy(np.stack([towers.prepare(one.load()) for one in pictures]))


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex", "tipsv2"])
def test_towers_built_again_from_their_entry_give_the_same_features(tmp_path, kind):
    *_, towers, entry = towers_of(kind, tmp_path / kind)
    again = build_dual(json.loads(json.dumps(entry))).eval()
    again.load_state_dict(towers.state_dict())
    assert (again.width, again.mask) == (towers.width, towers.mask)
    ids = torch.arange(1, 1 + LENGTH)[None]
    real = torch.ones_like(ids).bool()
    assert (plain(again.text, ids, real) - plain(towers.text, ids, real)).abs().max() <= 1e-5
    x = towers.normalised(prepared(towers, picture(1)))
    assert (plain(again.image, x) - plain(towers.image, x)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "tipsv2"])
def test_a_short_text_is_not_moved_by_a_longer_one_beside_it(tmp_path, kind):
    _, words, _, towers, _ = towers_of(kind, tmp_path / kind)
    rows = [words(text)["input_ids"][:LENGTH] for text in ("red", "a cat on it")]
    real = torch.arange(LENGTH) < torch.tensor([len(row) for row in rows])[:, None]
    ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    together = plain(towers.text, ids, real)
    for k, row in enumerate(rows):
        alone = plain(towers.text, torch.tensor([row]), torch.ones(1, len(row)).bool())[0]
        assert (together[k] - alone).abs().max() <= 1e-5


def test_naflex_pictures_alone_are_what_their_library_pads_them_to(tmp_path):
    model, _, processor, towers, _ = towers_of("naflex", tmp_path / "naflex")
    pictures = [picture(1, 30, 90), picture(2, 64, 20), picture(3, 40, 40), picture(4, 7, 200)]
    inputs = processor(images=[PIL.Image.fromarray(one.load()) for one in pictures], return_tensors="pt")
    assert not inputs["pixel_attention_mask"].bool().all(), "no picture was padded"
    with torch.no_grad():
        due = model.get_image_features(**inputs).pooler_output
    shapes = set()
    for k, one in enumerate(pictures):
        pixels = prepared(towers, one)
        shapes.add(pixels.shape[-2:])
        assert (plain(towers.image, towers.normalised(pixels))[0] - due[k]).abs().max() <= 1e-4 * due.abs().max()
    assert len(shapes) == 4


def test_a_library_or_model_that_is_none_is_named(tmp_path):
    *_, entry = towers_of("clip", tmp_path / "clip")
    with pytest.raises(UnknownName, match="Did you mean 'open_clip'"):
        build_dual({**entry, "dual": "openclip"})
    with pytest.raises(UnknownName, match="Did you mean 'metaclip_2'"):
        build_dual({**entry, "config": {**entry["config"], "model_type": "metaclip2"}})
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(LoadError, match=r"open_clip_config\.json is no JSON"):
        dual_open_clip.load(tmp_path)
    open_clip_dual("clip", tmp_path / "o")
    config = json.loads((tmp_path / "o" / "open_clip_config.json").read_text())["model_cfg"]
    with pytest.raises(SpecError, match="open_clip cannot build CLIP"):
        build_dual({"dual": "open_clip", "config": {**config, "wide": 3}, "preprocess": entry["preprocess"]})
    config["text_cfg"]["tokenizer_mode"] = "clips"
    (tmp_path / "o" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(SpecError, match="tokenizer mode 'clips'"):
        dual_open_clip.load(tmp_path / "o")


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_open_clips_tokenizer_gives_its_numbers(clean):
    ours, theirs = OpenClipTokenizer(clean=clean), open_clip.SimpleTokenizer(clean=clean)
    for text, tokens in zip(TEXTS, ours.encode(TEXTS), strict=True):
        row = [*ours.prefix, *tokens.ids, *ours.suffix]
        assert [*row, *[ours.pad] * (77 - len(row))] == theirs([text])[0].tolist()
    assert ours.token_of(ours.id_of("red</w>")) == "red</w>"
    with pytest.raises(UnknownName):
        ours.id_of("no such token")


def test_texts_are_cleaned_prompt_and_all(tmp_path):
    words = gemma_tokenizer()
    small = TransformersTokenizer(words, clean="lower")
    assert [t.ids for t in small.encode(["A Red CAT"])] == [words("a red cat", add_special_tokens=False)["input_ids"]]
    assert small.encode(["Red"])[0].spans == [(0, 3)] * 3
    assert TransformersTokenizer(words).encode(["A Red CAT"])[0].ids != small.encode(["A Red CAT"])[0].ids
    SiglipWords(tmp_path)
    pieces = SentencePieceTokenizer.from_file(tmp_path / "spiece.model", clean="siglip", pad="</s>")
    assert pieces.pad == 1
    assert pieces.encode(["  A red, CAT!\n"])[0].ids == pieces.encode(["a red cat"])[0].ids
    assert pieces.encode(["red_cat"])[0].ids == pieces.encode(["redcat"])[0].ids
    with pytest.raises(UnknownName, match="Did you mean 'siglip'"):
        SentencePieceTokenizer.from_file(tmp_path / "spiece.model", clean="siglipp")
    words.padding_side = "left"
    with pytest.raises(SpecError, match="pads on the left"):
        _ = TransformersTokenizer(words).pad
