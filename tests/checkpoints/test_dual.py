"""Dual encoders give what transformers, open_clip and sentence-transformers give for the same folder, in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel

import mmembed
from mmembed import Report, checkpoints, hub
from mmembed.errors import InputError, LoadError, SpecError, TruncationError, UnknownName
from mmembed.methods import apply
from mmembed.testing import byte_tokenizer, sharpen

from ..conftest import floats_are, picture
from ..duals import (
    LENGTH,
    OPEN_CLIP,
    TEXTS,
    image_features,
    open_clip_dual,
    text_features,
    transformers_dual,
    unit,
)
from ..parity import Held

Made = Callable[[str], tuple[Path, Any, Any, Any]]
PICTURES = [picture(1), picture(2, 70, 30), picture(3, 31, 97), picture(4, 35, 32)]
OURS = "the folder's own processor and model of transformers"
FAMILIES = {
    "clip": lambda name: "clip" if name.startswith(("openai", "sentence")) else "clip-eos",
    "metaclip_2": lambda name: "metaclip_2",
    "siglip": lambda name: "siglip",
    "siglip2": lambda name: "naflex" if name.endswith("naflex") else "siglip2",
    "bge_vl_clip": lambda name: "clip-eos",
}
"""The kind of `tests.duals` of each repository of a family."""
DUALS = [name for name, checkpoint in checkpoints.declared().items() if checkpoint.family in FAMILIES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder, model, tokenizer and image processor of a kind; each is made once."""
    done: dict[str, tuple[Path, Any, Any, Any]] = {}

    def make(kind: str) -> tuple[Path, Any, Any, Any]:
        if kind not in done:
            folder = tmp_path_factory.mktemp("duals") / kind
            done[kind] = (folder, *transformers_dual(kind, folder))
        return done[kind]

    return make


def encode(embedder: mmembed.Embedder, things: list[Any]) -> np.ndarray:
    """Vectors of things together; each is the same alone."""
    together = embedder.encode(things, report=Report())
    for k, thing in enumerate(things):
        assert np.abs(embedder.encode([thing], report=Report())[0] - together[k]).max() <= 1e-5
    return together


def texts_of(kind: str) -> list[str]:
    return [text for text in TEXTS if text or kind != "tipsv2"]


@pytest.mark.parametrize("repository", DUALS)
def test_a_released_dual_encoder_gives_the_features_of_its_own_class(tmp_path, made, held: Held, repository):
    family = checkpoints.declared()[repository].family
    kind = FAMILIES[family](repository)
    source, model, words, processor = made(kind)
    folder = tmp_path / repository.rpartition("/")[2]
    if repository.startswith("sentence-transformers"):
        shutil.copytree(source, folder / "0_CLIPModel")
        modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
        (folder / "modules.json").write_text(json.dumps(modules))
    else:
        shutil.copytree(source, folder)
    if family == "bge_vl_clip":
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"}
        (folder / "config.json").write_text(json.dumps(config))
    ours = mmembed.load(folder, device="cpu")
    assert (ours.spec.name, ours.spec.modalities) == (repository, ("text", "image", "image+text"))
    text = text_features(kind, model, words, TEXTS)
    image = image_features(kind, model, processor, PICTURES)
    finish = unit if ours.spec.normalize else lambda rows: rows
    assert ours.spec.normalize == (not repository.startswith("sentence"))
    told = {"against": OURS, "kind": "checkpoint", "family": family, "relative": not ours.spec.normalize}
    held(repository, encode(ours, TEXTS), finish(text), what="text", **told)
    held(repository, encode(ours, PICTURES), finish(image), what="image", **told)
    composed = [(TEXTS[0], PICTURES[0]), (PICTURES[1], TEXTS[1]), {"text": TEXTS[2], "image": PICTURES[2]}]
    held(repository, encode(ours, composed), finish(text[:3] + image[:3]), what="image+text", **told)


@pytest.mark.parametrize("kind", ["clip", "clip-eos", "metaclip_2", "siglip", "siglip2", "naflex", "tipsv2"])
def test_a_folder_needs_no_declaration(tmp_path, made, held: Held, kind):
    folder, model, words, processor = made(kind)
    ours = mmembed.load(folder, device="cpu")
    assert ours.spec.max_length == LENGTH
    mixed = [*texts_of(kind), *PICTURES]
    told = {"against": OURS, "kind": "folder", "family": kind}
    vectors = encode(ours, mixed)
    texts = len(texts_of(kind))
    held(kind, vectors[:texts], unit(text_features(kind, model, words, texts_of(kind))), what="text", **told)
    held(kind, vectors[texts:], unit(image_features(kind, model, processor, PICTURES)), what="image", **told)
    assert np.abs(vectors[:texts, None] - vectors[None, :texts]).max(2)[~np.eye(texts, dtype=bool)].min() > 1e-4
    again = mmembed.load(ours.save(tmp_path / "saved"), device="cpu")
    assert np.abs(again.encode(mixed, report=Report()) - vectors).max() <= 1e-6
    assert again.fingerprint == ours.fingerprint
    assert again.spec == ours.spec


def test_vectors_are_fp32_whatever_torch_makes_floats_in(made):
    folder, *_ = made("clip")
    things = [*TEXTS[:2], PICTURES[0]]
    due = encode(mmembed.load(folder, device="cpu"), things)
    for said in ("float64", "bfloat16"):
        with floats_are(said):
            assert np.abs(encode(mmembed.load(folder, device="cpu"), things) - due).max() <= 1e-6


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_its_padding(made, kind):
    """Padded to the longest of a batch, it gives other vectors: the trap of most wrappers."""
    folder, model, words, _ = made(kind)
    ours = mmembed.load(folder, device="cpu").encode("red cat")
    ids = words(text=["red cat"], padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    row = torch.as_tensor(ids)[0]
    padding = int(row[-1])
    short = row[: int((row != padding).sum()) + (kind == "siglip")]
    with torch.no_grad():
        other = unit(model.get_text_features(input_ids=short[None]).pooler_output)
    assert np.abs(ours - other.numpy()).max() > 1e-2


def test_the_first_clip_s_pickle_of_tensors_is_read_without_running_it(tmp_path, made):
    source, model, words, _ = made("clip")
    folder = shutil.copytree(source, tmp_path / "old")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    expected = unit(text_features("clip", model, words, TEXTS)).numpy()
    assert np.abs(encode(mmembed.load(folder, device="cpu"), TEXTS) - expected).max() <= 1e-5
    torch.save({"text_model.final_layer_norm.weight": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError):
        mmembed.load(folder)


def test_missing_weights_and_files_are_named(tmp_path, made):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(made("clip")[0], tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks weights: visual_projection\.weight"):
        mmembed.load(folder)
    for file in ("processor_config.json", "preprocessor_config.json"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(LoadError, match="holds no image processor"):
        mmembed.load(folder)


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_a_folder_of_open_clip_gives_what_open_clip_gives(tmp_path, held: Held, kind):
    preprocess = {"mean": [0.5, 0.4, 0.5], "std": [0.4, 0.5, 0.5], "resize_mode": "squash", "interpolation": "bilinear"}
    folder = tmp_path / f"tiny-{kind}"
    open_clip_dual(kind, folder, preprocess if kind == "siglip" else None)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    words = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        text = model.eval().encode_text(words(TEXTS), normalize=False)
        shown = torch.stack([transform(PIL.Image.fromarray(p.load())) for p in PICTURES])
        image = model.encode_image(shown, normalize=False)
    ours = mmembed.load(f"open_clip:local-dir:{folder}", device="cpu")
    told = {"against": "open_clip", "kind": "folder", "family": "open_clip"}
    held(f"open_clip {kind}", encode(ours, TEXTS), unit(text), what="text", **told)
    held(f"open_clip {kind}", encode(ours, PICTURES), unit(image), what="image", **told)
    composed = [(TEXTS[k], PICTURES[k]) for k in range(3)]
    held(f"open_clip {kind}", encode(ours, composed), unit(text[:3] + image[:3]), what="image+text", **told)
    plain = mmembed.load(folder, device="cpu")
    assert plain.fingerprint == ours.fingerprint
    again = mmembed.load(ours.save(tmp_path / "saved"), device="cpu")
    things = [*TEXTS, *PICTURES]
    assert np.abs(again.encode(things, report=Report()) - ours.encode(things, report=Report())).max() <= 1e-6
    assert again.fingerprint == ours.fingerprint


def test_an_architecture_of_open_clip_takes_weights_from_a_file(tmp_path, monkeypatch):
    open_clip_dual("clip", tmp_path / "source")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(OPEN_CLIP["clip"]))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    file = tmp_path / "source" / "open_clip_model.safetensors"
    ours = mmembed.load(f"open_clip:tiny-clip:{file}", device="cpu")
    folder = mmembed.load(tmp_path / "source", device="cpu")
    assert np.abs(ours.encode(TEXTS, report=Report()) - folder.encode(TEXTS, report=Report())).max() <= 1e-6
    with pytest.raises(LoadError, match="is an architecture; say whose weights it takes"):
        mmembed.load("open_clip:tiny-clip")


def test_what_open_clip_cannot_give_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownName, match="Did you mean 'ViT-B-32'"):
        mmembed.load("open_clip:ViT-B-322")
    with pytest.raises(LoadError, match=r"open_clip:ViT-B-32:<weights>: one of openai, .*which open_clip downloads"):
        mmembed.load("open_clip:ViT-B-32")
    with pytest.raises(UnknownName, match="Did you mean 'laion2b_s34b_b79k'"):
        mmembed.load("open_clip:ViT-B-32:laion2b_s34b_b79")
    with pytest.raises(SpecError, match="was trained with quick_gelu=True"):
        mmembed.load("open_clip:ViT-B-32:openai")
    with pytest.raises(LoadError, match="open_clip could not load ViT-B-32:laion2b_s34b_b79k"):
        mmembed.load("open_clip:ViT-B-32:laion2b_s34b_b79k")
    with pytest.raises(LoadError, match=r"holds no open_clip_config\.json"):
        mmembed.load(f"open_clip:local-dir:{tmp_path}")
    open_clip_dual("clip", tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(LoadError, match="open_clip could not load local-dir"):
        mmembed.load(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="the text tower is roberta-base"):
        mmembed.load(tmp_path)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_clip_of_sentence_transformers_gives_what_it_gives(tmp_path, made, held: Held, normalize):
    """Written by its own newest version; SigLIP is left out, whose text it does not pad as it was trained."""
    from sentence_transformers.base.modules import Normalize

    body = Transformer(str(made("clip")[0]), processor_kwargs={"use_fast": False})
    theirs = SentenceTransformer(modules=[body, *([Normalize()] if normalize else [])], device="cpu")
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = mmembed.load(tmp_path / "st", device="cpu")
    assert ours.spec.normalize == normalize
    shown = [PIL.Image.fromarray(p.load()) for p in PICTURES]
    told = {"against": "sentence-transformers", "kind": "folder", "family": "clip", "relative": not normalize}
    held("clip", encode(ours, TEXTS), theirs.encode(TEXTS), what="text", **told)
    held("clip", encode(ours, PICTURES), theirs.encode(shown), what="image", **told)


def test_a_text_tower_for_a_clip_of_another_folder_is_a_folder_of_sentence_transformers(tmp_path, held: Held):
    """As sentence-transformers/clip-ViT-B-32-multilingual-v1: DistilBERT, mean, one layer; its pictures are CLIP's."""
    config = AutoConfig.for_model("distilbert", vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = AutoModel.from_config(config)
        sharpen(body)
        dense = Dense(32, 16, bias=False, activation_function=torch.nn.Identity())
    body.save_pretrained(tmp_path / "plain")
    words = byte_tokenizer(bos=True)
    words.model_max_length = 128
    words.save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(32, pooling_mode="mean"), dense]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "st"))
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    ours = mmembed.load(tmp_path / "st", device="cpu")
    expected = theirs.encode(TEXTS)
    told = {"against": "sentence-transformers", "kind": "folder", "family": "distilbert", "relative": True}
    held("clip-ViT-B-32-multilingual", encode(ours, TEXTS), expected, **told)


def test_prompts_of_both_sides_go_to_their_tower(made):
    folder, model, words, processor = made("clip")
    plain = mmembed.load(folder, device="cpu")
    ours = plain.respecified(
        prompts={"query": {"text": "a photo of {text}.", "image": "{image}", "image+text": "{content}"}}
    )
    assert np.array_equal(ours.encode_query("red"), plain.encode("a photo of red."))
    assert np.array_equal(ours.encode_query(PICTURES[0]), plain.encode(PICTURES[0]))
    alone = image_features("clip", model, processor, PICTURES[:1])
    assert np.abs(plain.encode(PICTURES[0]) - unit(alone).numpy()).max() <= 1e-5, "no words stand around a picture"
    several = plain.encode([(PICTURES[0], PICTURES[1], "red", "cat")])
    summed = image_features("clip", model, processor, PICTURES[:2]).sum(0) + text_features(
        "clip", model, words, ["red cat"]
    )
    assert np.abs(several - unit(summed).numpy()).max() <= 1e-5


def test_a_long_text_is_cut_reported_or_refused_and_a_picture_takes_none_of_its_room(made):
    ours = mmembed.load(made("clip")[0], device="cpu")
    report = Report()
    ours.encode([TEXTS[0], (TEXTS[0], PICTURES[0]), TEXTS[1]], report=report)
    assert (report.truncated, report.images) == ([2], 1)
    just = "a " * (LENGTH - 2)
    assert np.isfinite(ours.encode([(just, PICTURES[0], PICTURES[1])], truncate="error")).all()
    with pytest.raises(TruncationError, match=f"item 1: {LENGTH + 1} tokens are more than the {LENGTH}"):
        ours.encode([just, "a " + just], truncate="error")


def test_without_a_fusion_an_item_of_both_is_refused(made):
    ours = mmembed.load(made("clip")[0], device="cpu").respecified(fuse=None)
    assert ours.spec.modalities == ("text", "image")
    report = Report()
    vectors = ours.encode(
        ["red", ("red", PICTURES[0]), PICTURES[0], (PICTURES[0], PICTURES[1])], on_error="skip", report=report
    )
    assert [skipped.row for skipped in report.skipped] == [1, 3]
    assert np.isfinite(vectors[[0, 2]]).all()
    with pytest.raises(InputError, match="item 0: this model has towers for a text and for a picture"):
        ours.encode([("red", PICTURES[0])])


def test_what_lies_inside_the_towers_cannot_be_changed(made):
    ours = mmembed.load(made("clip")[0], device="cpu")
    for name, value in (("layers", (-2,)), ("max_length", 5), ("counted", "content"), ("fill", True)):
        with pytest.raises(SpecError, match=f"a dual encoder has its {name} inside its towers"):
            ours.respecified(**{name: value})
    with pytest.raises(SpecError):
        apply(ours, "prompteol")
    with pytest.raises(SpecError, match="does not pool several tokens"):
        ours.encode_chunks([("red", "cat")])
    with pytest.raises(UnknownName, match="no fusion is called 'mean'"):
        ours.respecified(fuse="mean")


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.97), ("fp16", 0.999)])
@pytest.mark.parametrize("kind", ["clip", "naflex"])
def test_half_precision_is_near(made, kind, precision, bound):
    folder = made(kind)[0]
    things = [*TEXTS, *PICTURES]
    half = mmembed.load(folder, device="cpu", precision=precision)
    assert half.precision == precision
    vectors = half.encode(things, report=Report())
    assert vectors.dtype == np.float32
    assert (vectors * mmembed.load(folder, device="cpu").encode(things, report=Report())).sum(1).min() >= bound


def test_declared_dual_encoders_are_listed_with_what_they_take():
    rows = {row["name"]: row for row in hub.known()}
    assert {rows[name]["dimension"] for name in DUALS} == {384, 512, 768, 1024, 1152, 1280, 1536}
    assert all(rows[name]["modalities"] == ["text", "image", "image+text"] for name in DUALS)


def test_jina_clip_is_refused_with_its_reason():
    with pytest.raises(LoadError, match=r"jinaai/jina-clip-v2 is not supported: its layers are code of its own"):
        mmembed.load("jinaai/jina-clip-v2")
