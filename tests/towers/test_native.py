"""Vision-language models of transformers as embedders: one vector an item, whatever its company; and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch

import mmembed
from mmembed import Image, walk
from mmembed.batch import pack
from mmembed.errors import InputError, LoadError, SpecError, TruncationError, UnknownName
from mmembed.methods import apply
from mmembed.testing import QWEN_VLMS, VLMS, byte_tokenizer, tiny_backbone, tiny_vlm
from mmembed.towers.backbone import PACKED_VLMS
from mmembed.towers.native import STEPS

from ..conftest import picture

CHAT = "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
SHOW = {
    **dict.fromkeys(VLMS, ""),
    **dict.fromkeys(QWEN_VLMS, SHOWN),
    "qwen2_5_omni_thinker": "<|vision_bos|><|IMAGE|><|vision_eos|>",
}
SMALL, WIDE, TALL = picture(1, 60, 60), picture(2, 40, 200), picture(3, 180, 70)
ITEMS = [
    "red",
    SMALL,
    ("what is this?", WIDE),
    "eine Katze schläft auf dem warmen Sofa, sagt man",
    (TALL, "and", SMALL, "or neither"),
    TALL,
]


def composed(folder, **changed):
    given = {
        "vision": {"library": "native", "text": SHOWN},
        "prompts": {"p": {"any": CHAT}},
        "default_prompt_name": "p",
    }
    return mmembed.compose(backbone=folder, **{"tokenizer": folder, "device": "cpu", **given, **changed})


@pytest.fixture(scope="module", params=VLMS)
def seeing(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_vlm(folder, request.param)
    return composed(folder, vision={"library": "native", "text": SHOW[request.param]})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_vl")
    tiny_vlm(folder)
    return folder


def taken(seeing):
    """Those of the items that the model takes."""
    return [i for i in ITEMS if seeing.model.native.most is None or not isinstance(i, tuple) or len(i) < 3]


def test_an_item_has_one_vector_whatever_its_company(seeing):
    items = taken(seeing)
    alone = np.concatenate([seeing.encode([item]) for item in items])
    for batch_tokens in (1, 100, 10**6):
        assert np.abs(seeing.encode(items, batch_tokens=batch_tokens) - alone).max() <= 1e-5
    assert np.abs(seeing.encode(items[::-1])[::-1] - alone).max() <= 1e-5
    apart = np.abs(alone[:, None] - alone[None]).max(-1) + np.eye(len(items))
    assert apart.min() > 1e-2


def test_a_server_gives_the_vectors_of_encode(seeing):
    items = taken(seeing)
    prepared = seeing.prepare(items)
    found = seeing.finish(prepared, seeing.compute(prepared.samples))
    assert np.abs(found - seeing.encode(items)).max() <= 1e-5


@pytest.mark.parametrize("changed", [{"mask": "bidirectional", "pooling": "mean"}, {"positions": "sequential"}])
@pytest.mark.parametrize("kind", QWEN_VLMS)
def test_mask_and_positions_change_vectors_and_keep_them_free_of_company(tmp_path, kind, changed):
    tiny_vlm(tmp_path, kind)
    plain, other = composed(tmp_path, pooling=changed.get("pooling", "last")), composed(tmp_path, **changed)
    alone = np.concatenate([other.encode([item]) for item in ITEMS])
    assert np.abs(other.encode(ITEMS) - alone).max() <= 1e-5
    moved = np.abs(plain.encode(ITEMS) - alone).max(1)
    seen = [k for k, item in enumerate(ITEMS) if not isinstance(item, str)]
    assert moved[seen].min() > 1e-3
    assert (moved[0] > 1e-3) == ("mask" in changed)


def test_few_items_with_images_wait_at_once(seeing, monkeypatch):
    items = taken(seeing)
    whole = seeing.encode(items)
    waiting = []
    told = walk._prepared
    monkeypatch.setattr(walk, "SEEN", 2)
    monkeypatch.setattr(
        walk, "_prepared", lambda model, window, *rest: waiting.append(window) or told(model, window, *rest)
    )
    assert np.abs(seeing.encode(iter(items)) - whole).max() <= 1e-5
    assert sum(map(len, waiting)) == len(items)
    assert max(sum(not isinstance(item, str) for item in window) for window in waiting) == 2


def test_the_order_of_images_and_words_matters(seeing):
    ways = [(SMALL, WIDE, "one"), (WIDE, SMALL, "one"), ("one", WIDE, SMALL), (WIDE, "one", SMALL)]
    if seeing.model.native.most == 1:
        with pytest.raises(InputError, match="item 0: the item holds 2 images, and here this model takes 1 at most"):
            seeing.encode(ways)
        ways = [(WIDE, "one"), ("one", WIDE), ("one", SMALL)]
    vectors = seeing.encode(ways)
    # To Mllama pictures side by side are a set, but for the tokens that stand for them.
    least = 5e-5 if seeing.spec.backbone["config"]["model_type"] == "mllama" else 1e-3
    assert (np.abs(vectors[:, None] - vectors[None]).max(-1) + np.eye(len(ways))).min() > least


def test_a_saved_model_gives_the_same_vectors(seeing, tmp_path):
    again = mmembed.load(seeing.save(tmp_path), device="cpu")
    assert again.spec == seeing.spec
    assert again.fingerprint == seeing.fingerprint
    assert np.array_equal(again.encode(taken(seeing)), seeing.encode(taken(seeing)))


@pytest.mark.parametrize("shown", [WIDE, SMALL, picture(4, 3, 90), picture(5, 640, 480), picture(6, 333, 77)])
def test_pixels_are_bytes_and_normalised_as_the_processor_does(seeing, shown):
    tower = seeing.model.native
    made = tower.prepare(shown.load())
    due = tower.processor(PIL.Image.fromarray(shown.load()))  # of an array three pixels high it would ask what is what
    assert made.pixels.dtype == np.uint8
    told = tower.inputs(torch.tensor([tower.image_ids(made)]), [made], dtype=None)
    mine, theirs = told["pixel_values"].numpy(), np.asarray(due["pixel_values"])
    assert np.abs(mine - theirs[:, : mine.shape[1]]).max() <= 1e-6
    assert not theirs[:, mine.shape[1] :].any()
    for name, value in made.also.items():
        assert np.array_equal(value, np.asarray(due[name]))


def test_the_token_of_an_image_in_a_text_is_no_image(one):
    seeing = composed(one)
    for item in ("see <|image_pad|> here", ("<|image_pad|>", SMALL)):
        with pytest.raises(InputError, match=r"item 1: .*'<\|image_pad\|>', which stands for a picture"):
            seeing.encode(["fine", item])
    vectors = seeing.encode(["fine", "<|image_pad|>", SMALL], on_error="skip", report=mmembed.Report())
    assert np.isnan(vectors).all(1).tolist() == [False, True, False]
    assert np.array_equal(vectors[[0, 2]], seeing.encode(["fine", SMALL]))
    assert np.isfinite(seeing.encode(["<|vision_start|><|video_pad|>"])).all()


def test_pictures_that_are_none_or_too_long_are_named(one):
    seeing = composed(one)
    with pytest.raises(InputError, match="item 1"):
        seeing.encode(["fine", Image(b"not a picture")])
    with pytest.raises(InputError, match=r"item 0: .*longer than 200:1"):
        seeing.encode([picture(0, 2, 500)])
    blind = composed(one, vision=None)
    with pytest.raises(InputError, match=r"item 0: .*reads text only"):
        blind.encode([SMALL])
    assert np.array_equal(blind.encode(["red"]), seeing.encode(["red"]))


def test_only_words_are_cut(one):
    around = len("user\n") + len("assistant\n") + len("\n") + 3
    image = 2 + 4
    short = composed(one, max_length=40)
    report = mmembed.Report()
    vectors = short.encode([("x" * 90, SMALL), "y" * 90], report=report)
    assert (report.truncated, report.tokens) == ([0, 1], 80)
    due = composed(one).encode([("x" * (40 - around - image), SMALL), "y" * (40 - around)])
    assert np.abs(vectors - due).max() <= 1e-5
    with pytest.raises(InputError, match="item 0: prompt and images alone take 43 of the 40 tokens"):
        short.encode([(SMALL, SMALL, SMALL, SMALL, "x")])
    with pytest.raises(TruncationError, match="item 0: 109 tokens are more than the 40"):
        short.encode(["y" * 90], truncate="error")


def test_an_image_is_written_as_the_template_says(one):
    text = composed(one).reader.sampler.mark
    assert (text.text, text.token) == (SHOWN, "<|image_pad|>")
    bare = composed(one, vision={"library": "native"})
    assert bare.reader.sampler.mark.text == "<|image_pad|>"
    assert np.abs(bare.encode([SMALL]) - composed(one).encode([SMALL])).max() > 1e-3
    with pytest.raises(SpecError, match=r"must hold the token '<\|image_pad\|>' once"):
        composed(one, vision={"library": "native", "text": "<image>"})


def test_a_folder_that_nobody_declared_is_refused(one):
    with pytest.raises(LoadError, match="a qwen3_vl vision-language model, and no file of it says how"):
        mmembed.load(one)


@pytest.mark.parametrize("kind", [kind for kind in VLMS if kind not in QWEN_VLMS])
def test_pixels_of_another_image_processor_are_refused(tmp_path, kind):
    tiny_vlm(tmp_path, kind)
    other = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(SpecError, match=f"a {kind} model takes the pixels of .*, not of CLIPImageProcessorPil"):
        composed(tmp_path, vision={"library": "native", "text": SHOW[kind]})


def test_settings_of_a_native_tower_are_checked(one):
    for vision, says in (
        ({"proccessor": {}}, "Did you mean 'processor'"),
        ({"first": [{"kind": "too"}]}, "Did you mean 'to'"),
    ):
        with pytest.raises(UnknownName, match=says):
            composed(one, vision={"library": "native", **vision})
    for vision, says in (
        ({"first": [{"kind": "to", "height": 2}]}, "missing 1 required"),
        ({"processor": {"image_processor_type": "NoImageProcessor"}}, "no image processor 'NoImageProcessor'"),
    ):
        with pytest.raises(SpecError, match=says):
            composed(one, vision={"library": "native", **vision})
    with pytest.raises(UnknownName, match="vision-language model"):
        mmembed.compose(backbone=tiny_backbone(), tokenizer=byte_tokenizer(), vision={"library": "native"})
    with pytest.raises(UnknownName, match="kind of positions"):
        composed(one, positions="sequental")
    with pytest.raises(SpecError, match="come together"):
        dataclasses.replace(composed(one).spec, projector={"kind": "mlp"})


def test_a_tokenizer_that_breaks_the_token_of_an_image_is_an_error(one):
    other = byte_tokenizer(eos=False, special=("<|im_start|>",))
    with pytest.raises(SpecError, match="no token of the number 264"):
        composed(one, tokenizer=other)


def test_steps_before_the_processor():
    from PIL import Image as Pillow

    def size(wide, high, **step):
        return STEPS[step.pop("kind")](**step)(Pillow.new("RGB", (wide, high))).size

    assert size(50, 70, kind="to", width=30, height=20) == (30, 20)
    assert [size(w, 90, kind="square_if_below", side=28, to=56) for w in (27, 28)] == [(56, 56), (28, 90)]
    assert [size(w, 90, kind="at_least", side=28) for w in (20, 30)] == [(28, 90), (30, 90)]
    whole = {"kind": "whole", "factor": 28, "min_pixels": 4 * 28 * 28, "max_pixels": 1280 * 28 * 28}
    assert size(1000, 10, **whole) == (1008, 28)
    assert size(20, 20, **whole) == (56, 56)
    assert size(3000, 2000, **whole) == (1204, 812)


PACKED = [kind for kind in VLMS if kind in PACKED_VLMS]
UNDER = [
    (SMALL, f"{word}, said of a picture") for word in ("colour", "shape", "size", "mood", "name", "use", "age", "place")
]
"""One picture under eight prompts."""


def looks(seeing, monkeypatch):
    """How many patches or pictures the tower is handed, call by call."""
    handed: list[int] = []
    look = seeing.model.native.__class__.look
    monkeypatch.setattr(
        seeing.model.native.__class__,
        "look",
        lambda self, model, pictures: handed.append(len(pictures)) or look(self, model, pictures),
    )
    return handed


@pytest.mark.parametrize("changed", [{}, {"mask": "bidirectional", "pooling": "mean"}, {"positions": "sequential"}])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_gives_what_the_models_own_forward_gives_padded(tmp_path, kind, changed):
    packed, padded = made(tmp_path, kind, **changed), made(tmp_path, kind, layout="padded", **changed)
    assert (packed.model.layout, padded.model.layout) == ("packed", "padded")
    assert packed.model.shares == ("mask" not in changed)
    items = taken(packed) + UNDER
    due = np.concatenate([padded.encode([item]) for item in items])
    for told in (packed.encode(items), packed.encode(items[::-1])[::-1], padded.encode(items)):
        assert np.abs(told - due).max() <= 1e-5


@pytest.mark.parametrize("kind", ["mllama", "embedding_gemma2"])
def test_a_model_that_sees_beside_the_row_stays_padded(tmp_path, kind):
    assert made(tmp_path, kind).model.layout == "padded"
    with pytest.raises(SpecError, match="cannot run packed"):
        made(tmp_path, kind, layout="packed")


@pytest.mark.parametrize("kind", PACKED)
def test_a_picture_under_eight_prompts_is_seen_and_read_once(tmp_path, kind, monkeypatch):
    seeing = made(tmp_path, kind)
    alone = np.concatenate([seeing.encode([item]) for item in UNDER])
    looked, rows = looks(seeing, monkeypatch), []
    monkeypatch.setattr(walk, "pack", lambda *a, **k: rows.append(pack(*a, **k)) or rows[-1])
    report = mmembed.Report()
    assert np.abs(seeing.encode(UNDER, report=report) - alone).max() <= 1e-5
    (row,) = rows
    assert (looked, len(row.pictures)) == ([1], 1)
    image = len(row.slots)
    assert report.tokens - len(row.ids) >= 7 * image
    # Prompts before the picture: shared, where they are the same.
    rows.clear()
    asked = [("what is this?", SMALL, word) for word in ("red", "blue", "green")] + [("who is this?", SMALL, "red")]
    due = np.concatenate([seeing.encode([item]) for item in asked])
    rows.clear()
    assert np.abs(seeing.encode(asked) - due).max() <= 1e-5
    assert len(rows[0].pictures) == 2


def test_equal_tokens_of_other_pictures_are_not_shared(seeing):
    other = Image(255 - SMALL.load())
    things = [(picture, "what is it?") for picture in (SMALL, other, SMALL)]
    vectors = seeing.encode(things)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert np.abs(vectors - np.concatenate([seeing.encode([thing]) for thing in things])).max() <= 1e-5


def test_pictures_are_kept_between_calls_where_there_is_room(one, monkeypatch):
    seeing = composed(one)
    both = seeing.encode([(SMALL, WIDE)])[0]
    looked = looks(seeing, monkeypatch)
    due = seeing.encode(UNDER[:2])
    assert np.array_equal(seeing.encode(UNDER[:2]), due)
    assert looked == [1, 1]
    kept = seeing.model.image_cache
    assert (len(kept), kept.hits, kept.misses) == (0, 0, 0)
    kept.limit = 2**20
    looked.clear()
    told = [seeing.encode([thing])[0] for thing in (*UNDER[:2], WIDE, (SMALL, WIDE))]
    assert looked == [1, 1]
    assert (len(kept), kept.hits, kept.misses) == (2, 3, 2)
    assert np.abs(told[:2] - due).max() <= 1e-5
    assert np.abs(told[3] - both).max() <= 1e-5
    other = seeing.respecified(counted="content")
    other.encode([SMALL])
    assert looked == [1, 1]
    seeing.model.train().eval()
    assert len(kept) == 0


def test_a_draft_is_another_picture_than_the_whole(one, tmp_path):
    path = str(tmp_path / "a.jpg")
    PIL.Image.fromarray(picture(7, 200, 160).load()).save(path)
    seeing = composed(one)
    together = seeing.encode([Image(path), Image(path, draft=50), Image(path)])
    assert np.abs(together[0] - together[1]).max() > 1e-4
    assert np.array_equal(together[0], together[2])
    assert np.abs(together[1] - seeing.encode(Image(path, draft=50))).max() <= 1e-5


def test_a_decoder_that_is_handed_something_else_is_refused(one, monkeypatch):
    from mmembed.towers import native_qwen_vl

    numbers = native_qwen_vl.numbers
    monkeypatch.setattr(native_qwen_vl, "numbers", lambda *a: numbers(*a)[[0, 2, 1]])
    with pytest.raises(SpecError, match="does not see packed what it should"):
        composed(one)
    composed(one, layout="padded")


DECODERS = [kind for kind in VLMS if kind != "embedding_gemma2"]
"""EmbeddingGemma 2 reads both ways, and has a head of its own behind its states."""


def made(folder, kind, **changed):
    tiny_vlm(folder, kind)
    return composed(folder, vision={"library": "native", "text": SHOW[kind]}, **changed)


@pytest.mark.parametrize("kind", DECODERS)
def test_inner_layers_are_those_of_transformers(kind, tmp_path):
    """Of the part that reads tokens, whatever layers its tower has; the blocks behind them do not run."""
    plain = {"normalize": False, "pooling": {"kind": "last"}, "counted": "all"}
    base, stock = made(tmp_path, kind).respecified(**plain), made(tmp_path, kind, layout="padded").respecified(**plain)
    given: list[dict] = []
    handle = stock.model.backbone.register_forward_pre_hook(lambda *a: given.append(a[2]), with_kwargs=True)
    stock.encode([ITEMS[2]])
    handle.remove()
    with torch.no_grad():
        out = stock.model.backbone(**given[0], output_hidden_states=True)
    for layer in (0, 1, -2):
        told = base.respecified(layers=(layer,)).encode([ITEMS[2]])[0]
        due = out.hidden_states[layer][0, -1].numpy()
        assert np.abs(told - due).max() <= 1e-5 * max(1, np.abs(due).max())


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prompt_is_contrasted_with_another_in_a_vision_language_model(kind, tmp_path):
    seeing = made(tmp_path, kind)
    if kind == "mllama":  # its last block attends to the picture alone
        with pytest.raises(SpecError, match=r"no self_attn\.o_proj"):
            apply(seeing, "contrastive-prompting")
        return
    ours = apply(seeing, "contrastive-prompting", layers=(-1,))
    plain = apply(seeing, "prompteol")
    things = [SMALL, "red", ("what is this?", WIDE)]
    together = ours.encode(things)
    assert (np.abs(together - plain.encode(things)).max(1) > 1e-4).all()
    for row, thing in enumerate(things):
        assert np.abs(ours.encode([thing])[0] - together[row]).max() <= 1e-5
    with pytest.raises(InputError, match="takes no"):
        apply(seeing, "token-prepending", layers=(-1,)).encode(things)
