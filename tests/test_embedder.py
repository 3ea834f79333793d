"""The door: one item has one vector whatever its company; prompts, errors, reports, save and load."""

from __future__ import annotations

import inspect
import re
import threading
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pandas
import PIL.Image
import pytest
import torch

import mmembed
from mmembed import Image, ModelSpec, Report, Text, hub
from mmembed.batch import pack
from mmembed.embedder import Embedder, EncodeOptions
from mmembed.errors import InputError, LoadError, SpecError, TruncationError, UnknownName
from mmembed.testing import BACKBONES, ENCODERS, PADDED, WIDTH, byte_tokenizer, tiny_backbone, tiny_embedder
from mmembed.walk import Options, WalkOptions

from .conftest import floats_are, picture

WORDS = ["red", "a green car", "eine Katze schläft auf dem warmen Sofa", "ภาพ", "写真", "", "صورة جميلة جدا", "x" * 90]
THINGS = [
    *WORDS,
    picture(1),
    picture(2, 17, 90),
    ("a red", picture(3), "car"),
    {"text": "two of them", "image": [picture(4), picture(5)]},
    picture(1),
    "red",
]


@pytest.fixture(scope="module", params=["causal", "bidirectional", "causal+image"])
def of_mask(request):
    return tiny_embedder(mask=request.param, pooling="mean")


def greatest(a, b) -> float:
    return float(np.abs(a - b).max())


def test_an_item_has_one_vector_whatever_its_company(of_mask):
    alone = np.concatenate([of_mask.encode([thing]) for thing in THINGS])
    rng = np.random.default_rng(0)
    for budget in (64, 100_000):
        for order in (np.arange(len(THINGS)), np.arange(len(THINGS))[::-1], rng.permutation(len(THINGS))):
            together = of_mask.encode([THINGS[k] for k in order], batch_tokens=budget)
            assert greatest(together, alone[order]) <= 1e-5


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind not in (*ENCODERS, *PADDED)])
def test_what_items_begin_with_is_computed_once_and_changes_nothing(kind, pooling):
    asked = {"any": "Say in one word what this is about, whatever its language. {content}"}
    embedder = tiny_embedder(backbone=tiny_backbone(kind), prompts={"query": asked}, pooling=pooling)
    things = ["rot", "rouge", "rot", "赤い車", (picture(1), "red"), (picture(1), "rot"), (picture(2), "red")]
    alone = np.concatenate([embedder.encode_query([thing]) for thing in things])
    laid = []
    layer = embedder.model.backbone.get_submodule("layers.0")
    handle = layer.register_forward_pre_hook(lambda _, given: laid.append(given[0].shape[1]))
    report = mmembed.Report()
    together = embedder.encode_query(things, report=report)
    handle.remove()
    assert greatest(together, alone) <= 1e-5
    assert sum(laid) < report.tokens / 2
    assert np.array_equal(together[0], together[2])


def test_a_picture_under_several_prompts_goes_through_the_tower_once():
    asked = {"any": ["{content} What is it?", "Colour of this: {content}", "{content} In one word:"]}
    embedder = tiny_embedder(prompts={"query": asked}, default_prompt_name="query")
    seen = []
    handle = embedder.model.vision.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    vectors = embedder.encode([picture(1), picture(2), picture(1)])
    handle.remove()
    assert seen == [2]
    assert np.array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize("pooling", ["last", "mean", "weightedmean", "first", "max", "attention"])
def test_packed_and_padded_give_the_same_vectors(pooling):
    mask = "bidirectional" if pooling == "first" else "causal"
    packed = tiny_embedder(pooling=pooling, mask=mask)
    padded = tiny_embedder(pooling=pooling, mask=mask, layout="padded")
    assert (packed.model.layout, padded.model.layout) == ("packed", "padded")
    assert greatest(packed.encode(THINGS), padded.encode(THINGS)) <= 1e-5


def test_a_family_that_cannot_be_packed_runs_padded():
    embedder = tiny_embedder(backbone=tiny_backbone("lfm2"))
    assert embedder.model.layout == "padded"
    alone = np.concatenate([embedder.encode([thing]) for thing in THINGS])
    assert greatest(embedder.encode(THINGS), alone) <= 1e-5


def test_vectors_are_float32_rows_of_unit_length(tiny):
    vectors = tiny.encode(THINGS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(THINGS), WIDTH)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_nothing_gives_no_rows_of_full_width(tiny):
    assert tiny.encode([]).shape == (0, WIDTH)
    assert tiny.encode([], truncate_dim=WIDTH // 2).shape == (0, WIDTH // 2)


def test_one_thing_gives_one_row(tiny):
    for thing in ("red", Text("red"), picture(1), ("red", picture(1)), {"text": "red"}):
        assert tiny.encode(thing).shape == (1, WIDTH)


def test_a_generator_is_many_things(tiny):
    assert greatest(tiny.encode(word for word in WORDS), tiny.encode(WORDS)) == 0


def test_a_string_that_looks_like_a_path_or_url_is_text(tiny, tmp_path):
    path = tmp_path / "red.png"
    PIL.Image.fromarray(picture(1).load()).save(path)
    assert np.abs(tiny.encode(Image(path)) - tiny.encode(str(path))).max() > 1e-3
    for text in (str(path), "https://127.0.0.1/x.png", "data:image/png;base64,AAAA"):
        assert greatest(tiny.encode(text), tiny.encode(Text(text))) == 0


def test_composed_and_decomposed_spellings_are_one_text_where_that_is_said(tiny):
    spelled = "schläft", "schla\u0308ft"
    assert greatest(*map(tiny.encode, spelled)) > 1e-3  # as the tokenizer has them
    assert greatest(*map(tiny.respecified(cleaning="nfc").encode, spelled)) == 0


def test_the_order_of_a_mixed_item_counts(tiny):
    assert greatest(tiny.encode([("a", picture(1))]), tiny.encode([(picture(1), "a")])) > 1e-3


def test_without_an_image_a_composed_model_is_its_plain_backbone(tiny):
    plain = tiny_backbone()
    for word in WORDS[:3]:
        ids = torch.tensor([[*word.encode(), 258]])
        tokenized = tiny.tokenizer.encode([word])[0].ids + tiny.tokenizer.suffix
        with torch.inference_mode():
            state = plain(torch.tensor([tokenized])).last_hidden_state[0, -1]
        assert ids.shape[1] == len(tokenized)
        assert greatest(tiny.encode(word)[0], (state / state.norm()).numpy()) <= 1e-5


def test_a_shorter_vector_is_the_front_of_the_longer_at_unit_length(tiny):
    full, short = tiny.encode(WORDS), tiny.encode(WORDS, truncate_dim=WIDTH // 2)
    front = full[:, : WIDTH // 2]
    assert greatest(short, front / np.linalg.norm(front, axis=1, keepdims=True)) <= 1e-6


def test_a_dimension_the_model_was_not_trained_for_is_refused(tiny):
    with pytest.raises(SpecError, match="known: 16, 32"):
        tiny.encode("red", truncate_dim=20)


PROMPTS = {
    "query": {"text": "query: {text}", "image": "picture: {image}", "text@de": "Anfrage: {text}"},
    "document": {"any": "document: {content}"},
    "instructed": {"any": "Instruct: {instruction}\nQuery: {content}"},
}


@pytest.fixture(scope="module")
def prompted():
    return tiny_embedder(prompts=PROMPTS, instructions={"instructed": "find it"})


def test_prompts_go_by_modality_task_and_language(prompted):
    plain = tiny_embedder()
    assert greatest(prompted.encode_query("red"), plain.encode("query: red")) <= 1e-6
    assert greatest(prompted.encode_query("rot", language="de"), plain.encode("Anfrage: rot")) <= 1e-6
    assert greatest(prompted.encode_query("rouge", language="fr"), plain.encode("query: rouge")) <= 1e-6
    assert greatest(prompted.encode_query(picture(1)), plain.encode([("picture: ", picture(1))])) <= 1e-6
    assert greatest(prompted.encode_document("red"), plain.encode("document: red")) <= 1e-6
    assert greatest(prompted.encode("red"), plain.encode("red")) <= 1e-6


def test_a_prompt_that_says_nothing_of_a_modality_is_an_error(prompted):
    with pytest.raises(InputError, match=r"no template for image\+text items; it has: text, image, text@de"):
        prompted.encode_query([("red", picture(1))])


def test_one_prompt_serves_all_or_each_item_has_its_own(prompted):
    plain = tiny_embedder()
    assert greatest(prompted.encode(["a", "b"], prompt="{x} "), plain.encode(["{x} a", "{x} b"])) <= 1e-6
    assert greatest(prompted.encode(["a", "b"], prompt=["1 ", "2 "]), plain.encode(["1 a", "2 b"])) <= 1e-6
    for items in (["a", "b", "c"], ["a"]):
        with pytest.raises(SpecError, match=f"2 prompts were given for {len(items)} items"):
            prompted.encode(items, prompt=["1", "2"])
        with pytest.raises(SpecError, match="2 prompts were given"):
            prompted.encode(iter(items), prompt=["1", "2"])


def test_an_instruction_fills_its_place(prompted):
    plain = tiny_embedder()
    default = prompted.encode("red", prompt_name="instructed")
    assert greatest(default, plain.encode("Instruct: find it\nQuery: red")) <= 1e-6
    each = prompted.encode(["a", "b"], prompt_name="instructed", instruction=["one", "two"])
    assert greatest(each, plain.encode(["Instruct: one\nQuery: a", "Instruct: two\nQuery: b"])) <= 1e-6
    with pytest.raises(SpecError, match="no place for an instruction"):
        prompted.encode("red", prompt_name="query", instruction="find")
    column = pandas.Series(["one", "two"], index=[1, 0])
    assert greatest(prompted.encode(["a", "b"], prompt_name="instructed", instruction=column), each) == 0
    with pytest.raises(InputError, match="give instructions as one of them"):
        prompted.encode(["a", "b"], prompt_name="instructed", instruction=pandas.DataFrame({"a": ["one", "two"]}))


def test_where_the_counted_tail_begins_does_not_hang_on_how_much_is_cut():
    ours = tiny_embedder(
        counted="tail", pooling="mean", max_length=24, prompts={"document": {"any": "see {content} or {content}"}}
    )
    samples = ours.samples(["abc", "abcdefghijk", "abcdefghijkl"], prompt_name="document")
    assert [sample.truncated for sample in samples] == [0, 8, 10], "of both copies alike"
    assert len({int(np.flatnonzero(sample.counted)[0]) for sample in samples}) == 1


def test_an_unknown_prompt_names_the_nearest(prompted):
    with pytest.raises(UnknownName, match="Did you mean 'query'"):
        prompted.encode("red", prompt_name="qeury")
    with pytest.raises(UnknownName):
        prompted.encode([], prompt_name="qeury")


def test_instruction_tokens_can_be_left_out_of_pooling():
    counted = tiny_embedder(prompts=PROMPTS, pooling="mean", counted="content")
    every = tiny_embedder(prompts=PROMPTS, pooling="mean")
    ids = counted.tokenizer.encode(["document: red"])[0].ids + counted.tokenizer.suffix
    with torch.inference_mode():
        states = tiny_backbone()(torch.tensor([ids])).last_hidden_state[0]
    for embedder, first in ((counted, len("document: ")), (every, 0)):
        expected = states[first:].mean(0)
        assert greatest(embedder.encode_document("red")[0], (expected / expected.norm()).numpy()) <= 1e-5


def test_the_closing_token_and_a_span_can_be_what_counts():
    eos = tiny_embedder(counted="eos", pooling="mean")
    assert greatest(eos.encode("red"), tiny_embedder(pooling="last").encode("red")) <= 1e-6
    words = byte_tokenizer(special=("<a>", "<b>"))
    spanned = tiny_embedder(tokenizer=words, counted="span", span=("<a>", "<b>"), pooling="mean")
    ids = spanned.tokenizer.encode(["x<a>red<b>y"])[0].ids + spanned.tokenizer.suffix
    with torch.inference_mode():
        expected = tiny_backbone()(torch.tensor([ids])).last_hidden_state[0, 1:6].mean(0)
    assert greatest(spanned.encode("x<a>red<b>y")[0], (expected / expected.norm()).numpy()) <= 1e-5


def test_an_error_names_the_item(tiny, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(InputError, match=r"item 2: .*broken\.png"):
        tiny.encode(["a", picture(1), Image(broken), "b"])
    with pytest.raises(InputError, match="item 1: a PosixPath is not guessed at"):
        tiny.encode(["a", broken])


def test_a_skipped_item_leaves_a_reported_gap(tiny, tmp_path):
    things = ["a", Image(tmp_path / "missing.png"), "b", 7, picture(1)]
    report = Report()
    vectors = tiny.encode(things, on_error="skip", report=report)
    assert [s.row for s in report.skipped] == [1, 3]
    assert "missing.png" in report.skipped[0].reason
    assert np.isnan(vectors[[1, 3]]).all()
    assert greatest(vectors[[0, 2, 4]], tiny.encode(["a", "b", picture(1)])) <= 1e-5
    assert (report.items, report.images) == (3, 1)
    with pytest.warns(UserWarning, match="2 items were skipped"):
        tiny.encode(things, on_error="skip")


def test_a_prompt_keeps_to_its_item_when_another_is_skipped(tiny):
    vectors = tiny.encode(["a", 7, "b"], prompt=["1 ", "2 ", "3 "], on_error="skip", report=Report())
    assert greatest(vectors[2], tiny.encode("3 b")[0]) <= 1e-6


def test_truncation_is_counted_reported_or_refused():
    short = tiny_embedder(max_length=24, prompts={"query": {"any": "q: {content} !"}})
    report = Report()
    vectors = short.encode(["fits", "y" * 60], prompt_name="query", report=report)
    assert report.truncated == [1]
    # the prompt, the words after the text and the closing token stay
    assert greatest(vectors[1], tiny_embedder().encode("q: " + "y" * 18 + " !")[0]) <= 1e-6
    with pytest.warns(UserWarning, match="1 items were longer than 24 tokens"):
        short.encode("y" * 60)
    with pytest.raises(TruncationError, match="item 1: 61 tokens are more than the 24"):
        short.encode(["fits", "y" * 60], truncate="error")
    with pytest.raises(InputError, match="prompt and images alone take"):
        short.encode([(picture(1), picture(2), "a")])
    full = tiny_embedder(max_length=6, prompts={"query": {"any": "q: {content} !"}})
    with pytest.raises(InputError, match="prompt and images alone take 6 of the 6 tokens"):
        full.encode("y", prompt_name="query")  # nothing of it would be left


def test_text_after_an_image_is_cut_and_the_image_stays():
    short = tiny_embedder(max_length=30)
    cut = short.encode([("ab", picture(1), "c" * 60)], report=Report())
    assert greatest(cut, short.encode([("ab", picture(1), "c" * 11)])) <= 1e-6


def test_a_text_model_refuses_an_image():
    text = tiny_embedder(vision=None, projector=None)
    assert text.spec.modalities == ("text",)
    with pytest.raises(InputError, match="item 0: this model reads text only"):
        text.encode([picture(1)])


def test_an_item_without_any_token_is_an_error():
    bare = tiny_embedder(tokenizer=byte_tokenizer(eos=False))
    with pytest.raises(InputError, match="item 1: the item is empty"):
        bare.encode(["a", ""])


@pytest.mark.parametrize("vision", [True, False])
def test_a_saved_folder_gives_the_same_vectors(tmp_path, vision):
    parts = {} if vision else {"vision": None, "projector": None}
    embedder = tiny_embedder(prompts=PROMPTS, pooling="attention", **parts)
    folder = embedder.save(tmp_path / "model")
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    again = mmembed.load(folder, device="cpu")
    things = THINGS if vision else WORDS
    assert greatest(again.encode(things), embedder.encode(things)) == 0
    assert again.fingerprint == embedder.fingerprint
    assert again.spec == ModelSpec.from_json(embedder.spec.to_json())


def test_a_folder_that_lacks_or_has_too_much_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_embedder().save(tmp_path / "model")
    state = load_file(folder / "weights.safetensors")
    removed = state.pop("projector.up.weight")
    save_file(state, folder / "weights.safetensors")
    with pytest.raises(LoadError, match=r"missing \['projector.up.weight'\]"):
        mmembed.load(folder)
    save_file({**state, "projector.up.weight": removed, "stray": removed.clone()}, folder / "weights.safetensors")
    with pytest.raises(LoadError, match=r"unexpected \['stray'\]"):
        mmembed.load(folder)
    (folder / "weights.safetensors").write_bytes(b"\x08" + b"\0" * 30)
    with pytest.raises(LoadError, match="is broken"):
        mmembed.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(LoadError, match="holds no weights"):
        mmembed.load(folder)


def test_an_unknown_model_names_what_is_known(tmp_path):
    with pytest.raises(UnknownName, match="folder or bundled model"):
        mmembed.load("picoo")
    with pytest.raises(LoadError, match=r"holds no spec\.json"):
        mmembed.load(tmp_path)


def test_without_a_name_the_bundled_one_is_found_whatever_lies_here(tmp_path, monkeypatch):
    (tmp_path / hub.DEFAULT).mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.find() == hub.bundled()[hub.DEFAULT]
    assert hub.find(hub.DEFAULT) == Path(hub.DEFAULT)
    with pytest.raises(UnknownName, match="is called ''"):
        hub.find("")


@pytest.mark.parametrize("said", ["float64", "bfloat16", "autocast"])
def test_vectors_are_of_the_precision_that_was_said_whatever_torch_makes_floats_in(tmp_path, said):
    ours = tiny_embedder(backbone=tiny_backbone("gemma3_text"))
    folder, due = ours.save(tmp_path), ours.encode(THINGS[:10])
    with floats_are(said):
        assert greatest(ours.encode(THINGS[:10]), due) <= 1e-6
        again = mmembed.load(folder, device="cpu")
        assert greatest(again.encode(THINGS[:10]), due) <= 1e-6
        assert again.fingerprint == ours.fingerprint


def test_a_head_that_is_put_on_keeps_its_numbers_whatever_torch_makes_floats_in(tiny):
    fitted = {"mean": torch.rand(WIDTH), "std": torch.rand(WIDTH) + 0.5}
    with floats_are("bfloat16"):
        head = tiny.with_head({"kind": "standardize"}, fitted).model.heads[-1]
    assert torch.equal(head.mean, fitted["mean"])


def test_the_fingerprint_tells_models_apart():
    base = tiny_embedder()
    assert base.fingerprint == tiny_embedder().fingerprint
    others = [
        tiny_embedder(seed=1),
        tiny_embedder(pooling="mean"),
        tiny_embedder(prompts=PROMPTS),
        tiny_embedder(precision="bf16"),
        tiny_embedder(max_length=100),
    ]
    assert len({base.fingerprint, *(o.fingerprint for o in others)}) == len(others) + 1
    assert tiny_embedder(name="another").fingerprint == base.fingerprint


def test_the_fingerprint_follows_the_weights_and_is_taken_once_for_each(monkeypatch):
    embedder = tiny_embedder()
    before = embedder.fingerprint
    weight = embedder.model.backbone.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(2)
        changed = embedder.fingerprint
        assert changed == embedder.model.fingerprint() != before
        weight.mul_(0.5)
        assert embedder.fingerprint == before
    taken, take = [], embedder.model.fingerprint
    monkeypatch.setattr(embedder.model, "fingerprint", lambda: taken.append(1) or take())
    embedder.encode(["a text"])
    assert (embedder.fingerprint, taken) == (before, [])
    embedder.model.to(torch.bfloat16)
    assert len({before, embedder.fingerprint, embedder.fingerprint}) == 2
    assert taken == [1]


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.98), ("fp16", 0.999)])
def test_half_precision_is_near_and_its_vectors_are_fp32_of_unit_length(precision, bound):
    half = tiny_embedder(precision=precision)
    assert half.precision == precision
    vectors = half.encode(THINGS)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * tiny_embedder().encode(THINGS)).sum(1).min() >= bound


def test_similarity_is_the_cosine_in_fp32(tiny):
    a, b = np.random.default_rng(0).normal(size=(2, 5, 8))
    expected = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    got = tiny.similarity(a.astype(np.float32), b.astype(np.float32))
    assert got.dtype == np.float32
    assert greatest(got, expected) <= 1e-6
    assert tiny.similarity(a[0], b).shape == (1, 5)


def test_threads_share_one_embedder(tiny):
    expected = tiny.encode(THINGS)
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(tiny.encode(THINGS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(greatest(vectors, expected) <= 1e-6 for vectors in got)


def test_the_self_test_passes_on_its_own_vectors_and_fails_on_others(tmp_path):
    embedder = tiny_embedder()
    entries = [{"input": {"text": w}, "vector": embedder.encode(w)[0][:8].tolist()} for w in WORDS]
    embedder.golden = tuple(entries)
    again = mmembed.load(embedder.save(tmp_path / "m"), device="cpu")
    assert again.self_test().passed
    assert again.self_test().count == len(WORDS)
    other = tiny_embedder(seed=1)
    other.golden = again.golden
    assert not other.self_test().passed
    with pytest.raises(LoadError, match=r"no golden\.json"):
        tiny_embedder().self_test()


def test_a_wrong_setting_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'max_length'"):
        tiny_embedder(max_lenght=3)
    with pytest.raises(UnknownName, match="Did you mean 'mean'"):
        tiny_embedder(pooling="maen")
    with pytest.raises(UnknownName, match="Did you mean 'hidden'"):
        tiny_embedder(projector={"kind": "mlp", "hiden": 3})
    with pytest.raises(UnknownName, match="Did you mean 'bf16'"):
        tiny_embedder(precision="bf61")
    with pytest.raises(UnknownName, match="Did you mean 'skip'"):
        tiny_embedder().encode("a", on_error="skipp")


def test_samples_are_what_encode_reads_and_a_bad_thing_stands_in_its_place(tiny):
    good = picture(3)
    found = tiny.samples(["one", Image(b"no picture"), (good, "two"), 7])
    assert [type(each).__name__ for each in found] == ["Sample", "InputError", "Sample", "InputError"]
    batch = pack([found[0], found[2]], [0, 2], tiny.spec.mask, share=tiny.model.shares)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(tiny.model(batch), dim=-1).numpy()
    np.testing.assert_allclose(vectors, tiny.encode(["one", (good, "two")]), atol=1e-6)


def test_options_that_are_passed_on_are_those_that_encode_takes():
    taken = {name for name, p in inspect.signature(Embedder.encode).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert taken == set(get_type_hints(EncodeOptions)) == set(get_type_hints(WalkOptions)) | {"truncate_dim"}
    assert {f.name for f in fields(Options)} == set(get_type_hints(WalkOptions)) | {"joint"}


def test_nothing_but_bad_things_is_rows_of_nan(tiny):
    report = Report()
    assert np.isnan(tiny.encode([None, None], on_error="skip", report=report)).all()
    assert [each.row for each in report.skipped] == [0, 1]
    assert [rows.shape for rows in tiny.encode_tokens([None], on_error="skip")] == [(1, WIDTH)]
    many = [Image(b"no picture")] * 130 + ["red"]  # a window of bad ones, and one that is none
    assert np.isnan(tiny.encode(many, on_error="skip")).any(1).sum() == 130
    assert tiny.compute([]).shape == (0, tiny.dimension)


def test_half_a_character_is_an_error_of_its_item(tiny):
    with pytest.raises(InputError, match=r"item 1: the text is no Unicode: at character 1 stands U\+D800"):
        tiny.encode(["ok", "a\ud800"])
    vectors = tiny.encode(["ok", "\ud83d\ude00", "fine"], on_error="skip")
    assert np.isnan(vectors).any(1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="U\\+D800"):
        tiny.encode(["ok"], prompt="\ud800: ")


def test_an_option_that_is_none_is_one_that_was_not_given():
    asked = {"query": {"any": "ask: {content}"}, "document": {"any": "{content}"}}
    embedder = tiny_embedder(prompts=asked, default_prompt_name=None)
    due = embedder.encode_query(["cat"])
    assert greatest(due, embedder.encode(["cat"])) > 1e-3
    for options in ({"prompt": None}, {"prompt_name": None}, {"prompt": None, "prompt_name": None}):
        assert greatest(embedder.encode_query(["cat"], **options), due) == 0


def test_an_instruction_needs_a_slot_and_words_of_a_prompt_are_texts(tiny):
    with pytest.raises(SpecError, match="no place for an instruction"):
        tiny.encode(["a"], prompt="Do {instruction}: ", instruction="foo")
    with pytest.raises(SpecError, match="that of row 0 is a int"):
        tiny.encode(["a"], prompt=[5])
    with pytest.raises(SpecError, match="batch_tokens=0"):
        tiny.encode(["a"], batch_tokens=0)
    with pytest.raises(SpecError, match="an int is wanted"):
        tiny.encode(["a"], truncate_dim=16.0)
    with pytest.raises(SpecError, match="braces that stand for themselves are doubled"):
        tiny_embedder(prompts={"query": {"any": "ask: {content"}})


def test_equal_things_have_arrays_of_their_own(tiny):
    one, other, _ = tiny.encode_tokens(["cat", "cat", "dog"])
    one += 1
    assert greatest(one, other) == pytest.approx(1)
    mean = tiny.respecified(pooling={"kind": "mean"}, counted="all")
    one, other = mean.encode_chunks([("a", "b"), ("a", "b")])
    assert one is not other


def test_one_string_is_one_thing_everywhere(tiny):
    assert len(tiny.samples("abc")) == tiny.prepare("abc").count == 1
    with pytest.raises(InputError, match="a bytes is not guessed at"):
        tiny.encode(b"abc")


def test_a_stream_says_at_once_what_is_wrong_with_its_options(tiny):
    with pytest.raises(UnknownName):
        tiny.stream(["a"], prompt_name="x")


def test_frames_that_one_object_shows_in_turn_are_as_many_pictures(tiny):
    import io

    from PIL import ImageSequence

    colours = [PIL.Image.new("RGB", (24, 24), colour) for colour in ("red", "lime", "blue")]
    file = io.BytesIO()
    colours[0].save(file, "GIF", save_all=True, append_images=colours[1:])
    shown = tiny.encode(ImageSequence.Iterator(PIL.Image.open(file)))
    assert greatest(shown, tiny.encode(colours)) <= 1e-5
    assert greatest(shown[0], shown[1]) > 1e-3


@pytest.mark.parametrize("mode", ["model", "backbone"])
def test_a_model_that_is_learning_gives_no_vectors(mode):
    ours = tiny_embedder()
    due = ours.encode(["a", picture(1)])
    part = ours.model if mode == "model" else ours.model.backbone
    part.train()
    for encode in (ours.encode, ours.encode_tokens):
        with pytest.raises(SpecError, match=r"training mode.*model\.eval\(\)"):
            encode(["a"])
    assert ours.count_tokens(["a"]), "nothing is computed"
    assert part.training, "who trains it finds it as it was"
    ours.model.eval()
    assert np.array_equal(ours.encode(["a", picture(1)]), due)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": 5}, "prompt=5: a text is wanted, or a list"),
        ({"prompt": {"a": "b"}}, "prompt={'a': 'b'}: a text"),
        ({"instruction": b"x"}, "instruction=b'x': a text"),
        ({"instruction": iter("x")}, "instruction=<"),
        ({"language": 5}, "language=5: a text"),
        ({"batch_tokens": "x"}, "batch_tokens='x': an int"),
        ({"batch_tokens": 1.5}, "batch_tokens=1.5: an int"),
    ],
)
def test_an_option_of_another_type_is_told_at_once(tiny, options, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        tiny.stream(["a"], **options)


def test_words_and_numbers_of_numpy_are_taken(tiny):
    said = {"prompt": np.array(["x: ", "y: "]), "batch_tokens": np.int64(100)}
    assert greatest(tiny.encode(["a", "b"], **said), tiny.encode(["x: a", "y: b"])) <= 1e-5


def test_things_without_an_order_are_refused_and_one_of_no_kind_by_its_row(tiny):
    for unordered in ({"a", "b"}, frozenset({"a"})):
        with pytest.raises(InputError, match="a set has no order"):
            tiny.encode(unordered)
        for many in (tiny.prepare, tiny.samples):
            with pytest.raises(InputError, match="a set has no order"):
                many(unordered)
    assert tiny.encode({"a": 1, "b": 2}.keys()).shape[0] == 2
    with pytest.raises(InputError, match="a DataFrame gives its columns by name"):
        tiny.encode(pandas.DataFrame({"text": ["a", "b"]}))
    assert tiny.encode(pandas.DataFrame({"text": ["a", "b"]})["text"]).shape[0] == 2
    with pytest.raises(InputError, match="a ndarray is not guessed at"):
        tiny.encode(np.array("a"))


def test_a_token_of_padding_in_a_text_is_one_position_whatever_stands_beside_it():
    ours = tiny_embedder(backbone=tiny_backbone("xlm-roberta"), pooling="mean")
    assert ours.tokenizer.encode(['"'])[0].ids[0] == ours.model.backbone.config.pad_token_id
    text = 'what "this" is'
    due = ours.encode([text])
    assert greatest(ours.encode([text, picture(1), (picture(2), text)])[:1], due) <= 1e-5


def test_a_dict_is_one_thing_and_never_its_keys(tiny):
    one = {"text": "a red", "image": picture(1)}
    (sample,) = tiny.samples([one])
    for made in (tiny.samples(one), tiny.prepare(one).samples):
        assert [each.ids.tolist() for each in made] == [sample.ids.tolist()]
    with pytest.raises(InputError, match="a mixed item has the keys"):
        tiny.prepare({"a": 1})


def test_vectors_that_are_not_to_be_written_to_are_compared_without_a_warning(tiny, recwarn):
    vectors = tiny.encode(["a", "b"])
    vectors.flags.writeable = False
    assert tiny.similarity(vectors, vectors).shape == (2, 2)
    assert not recwarn.list


def test_pictures_that_are_kept_do_not_outlive_the_weights_that_saw_them():
    ours = tiny_embedder()
    shown = picture(1)
    due = ours.encode([shown])
    ours.cache(images=2**22)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours.encode([shown])
    assert np.abs(ours.encode([shown]) - due).max() <= 1e-6
    hits = ours.model.image_cache.hits
    assert np.abs(ours.encode([shown]) - due).max() <= 1e-6
    assert ours.model.image_cache.hits == hits + 1
    with torch.no_grad():
        for weight in ours.model.projector.parameters():
            weight.mul_(1.5)
    changed = ours.encode([shown])
    assert np.abs(changed - due).max() > 1e-3
    ours.cache(images=0)
    assert np.abs(changed - ours.encode([shown])).max() <= 1e-6
