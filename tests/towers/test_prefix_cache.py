"""Cached prefixes give every item the vector it has without them, cost no token twice, and never outlive their weights."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mmembed import compose
from mmembed.batch import pack
from mmembed.nn.stamps import generation
from mmembed.testing import BACKBONES, ENCODERS, PADDED, byte_tokenizer, tiny_backbone, tiny_embedder
from mmembed.towers.prefix_cache import NewPrefix, Prefix, PrefixCache, PrefixUse

ASKED = "Instruct: find the picture that this text is about.\nQuery: "
OTHER = "Instruct: find the picture that this text is about, in any language.\nQuery: "
THINGS = ["red", "a green bird", "ein kleines Haus am See", "red"]
SHARING = [kind for kind in BACKBONES if kind not in (*ENCODERS, *PADDED)]


def embedder(kind="qwen3", **changed):
    said = {"pooling": "last", "name": "tiny", "device": "cpu", **changed}
    made = compose(backbone=tiny_backbone(kind), tokenizer=byte_tokenizer(), **said)
    made.model.prefix_cache.store.limit = 2**28
    return made


def without(kind="qwen3", **changed):
    plain = embedder(kind, **changed)
    plain.model.prefix_cache.store.limit = 0
    return plain


def tokens_of(ours, call):
    """How many tokens go through the first block in a call, and what it gives."""
    through = []
    block = ours.model.backbone.layers[0]
    handle = block.mlp.register_forward_hook(lambda _, args, out: through.append(out.shape[1]))
    told = call()
    handle.remove()
    return sum(through), told


@pytest.mark.parametrize("kind", SHARING)
def test_an_item_has_one_vector_whatever_is_kept(kind):
    assert tiny_embedder().model.prefix_cache.store.limit == 0, "unless it is asked for"
    ours, plain = embedder(kind), without(kind)
    for prompt in (ASKED, OTHER, ASKED):
        due = plain.encode(THINGS, prompt=prompt)
        for _ in range(2):
            assert np.abs(ours.encode(THINGS, prompt=prompt) - due).max() <= 1e-5
            alone = np.concatenate([ours.encode([thing], prompt=prompt) for thing in THINGS])
            assert np.abs(alone - due).max() <= 1e-5
    assert ours.model.prefix_cache.store.hits > 0
    assert plain.model.prefix_cache.store.hits == 0


def test_a_prefix_that_was_seen_twice_goes_through_the_model_no_more():
    ours = embedder()
    ours.encode(["a"], prompt=ASKED)  # its first block is tried on probes
    ours.encode(["b"], prompt=ASKED)
    whole = len(ASKED) + len("snow") + 1
    assert tokens_of(without(), lambda: ours.encode(["tree"], prompt=OTHER[:40]))[0] == 0  # hooks are of another model
    assert tokens_of(ours, lambda: ours.encode(["snow"], prompt=ASKED))[0] == whole - len(ASKED)
    # Of another instruction that begins alike, what is alike.
    alike = len("Instruct: find the picture that this text is about")
    assert tokens_of(ours, lambda: ours.encode(["snow"], prompt=OTHER))[0] == len(OTHER) - alike + 5


def test_what_items_of_a_batch_share_is_known_at_the_next():
    ours = embedder()
    ours.encode(THINGS, prompt=ASKED)
    shown, told = tokens_of(ours, lambda: ours.encode(["snow", "rain"], prompt=ASKED))
    assert shown == 10
    assert np.abs(told - without().encode(["snow", "rain"], prompt=ASKED)).max() <= 1e-5


def test_prefixes_are_known_wherever_they_lie_in_the_row():
    ours, plain = embedder(), without()
    third = "Another one altogether, of some length: "
    prompts = [ASKED, third, "no start at all ", ASKED, third, "zzzzzzzzzzzzzzzzzzzzzz"]
    things = ["red", "blue", "green", "sea", "snow", "x"]
    for prompt in (ASKED, third):
        ours.encode(THINGS, prompt=prompt)
    shown, told = tokens_of(ours, lambda: ours.encode(things, prompt=prompts))
    assert shown < 70
    assert np.abs(told - plain.encode(things, prompt=prompts)).max() <= 1e-5


def test_tokens_that_are_read_go_through_the_model():
    for counted, served in (("all", False), ("content", True)):
        ours, plain = (make(pooling="mean", counted=counted) for make in (embedder, without))
        for _ in range(3):
            told = ours.encode(THINGS, prompt=ASKED)
            assert np.abs(told - plain.encode(THINGS, prompt=ASKED)).max() <= 1e-5
        assert (len(ours.model.prefix_cache.store) > 0) is served
    every = ours.encode_tokens(THINGS, prompt=ASKED)
    assert all(
        np.abs(a - b).max() <= 1e-5 for a, b in zip(every, plain.encode_tokens(THINGS, prompt=ASKED), strict=True)
    )


def _in_place(ours):
    with torch.no_grad():
        weight = ours.model.backbone.layers[0].self_attn.k_proj.weight
        weight.copy_(weight.flip(0))


def _data(ours):
    weight = ours.model.backbone.layers[0].self_attn.v_proj.weight
    weight.data = weight.data * 1.5


def _parameter(ours):
    block = ours.model.backbone.layers[0]
    block.mlp.up_proj.weight = torch.nn.Parameter(block.mlp.up_proj.weight.detach() * 1.5)


def _module(ours):
    block = ours.model.backbone.layers[0]
    fresh = torch.nn.Linear(32, 64, bias=False)
    torch.nn.init.constant_(fresh.weight, 0.1)
    block.mlp.gate_proj = fresh


def _embedding(ours):
    with torch.no_grad():
        weight = ours.model.backbone.embed_tokens.weight
        weight.copy_(weight.flip(0))


def _there_and_back(ours):
    ours.model.backbone.to(torch.bfloat16).to(torch.float32)  # as many bytes, maybe where the others were


@pytest.mark.parametrize("change", [_in_place, _data, _parameter, _module, _embedding, _there_and_back])
def test_prefixes_do_not_outlive_the_weights_that_made_them(change):
    ours, plain = embedder(), without()
    for _ in range(3):
        before = ours.encode(["snow"], prompt=ASKED)
    change(ours), change(plain)
    due = plain.encode(["snow"], prompt=ASKED)
    assert np.abs(due - before).max() > 1e-4
    for _ in range(3):
        assert np.abs(ours.encode(["snow"], prompt=ASKED) - due).max() <= 1e-5


def test_other_specs_and_precisions_of_the_same_weights():
    ours = embedder()
    ours.encode(THINGS, prompt=ASKED)
    ours.encode(["snow"], prompt=ASKED)
    specs = [{"layers": (-2,)}, {"layers": (1, -1)}, {"mask": "bidirectional"}, {"positions": {"kind": "ntk"}}]
    for changed in specs:
        told = ours.respecified(**changed).encode(["snow", "rain"], prompt=ASKED)
        assert np.abs(told - without().respecified(**changed).encode(["snow", "rain"], prompt=ASKED)).max() <= 1e-5
    ours.model.to(torch.bfloat16), (plain := without()).model.to(torch.bfloat16)
    for _ in range(3):
        assert np.abs(ours.encode(["snow"], prompt=ASKED) - plain.encode(["snow"], prompt=ASKED)).max() <= 0.02


def test_training_and_gradients_know_of_none():
    ours = embedder()
    ours.encode(THINGS, prompt=ASKED)
    assert len(ours.model.prefix_cache.store) == 1
    hits = ours.model.prefix_cache.store.hits
    ours.model.train()
    assert len(ours.model.prefix_cache.store) == 0
    batch = pack(ours.prepare(["snow"], prompt=ASKED).samples, [0], ours.spec.mask)
    with torch.no_grad():
        for _ in range(3):
            ours.model(batch)
    assert ours.model.prefix_cache.store.hits == hits
    assert len(ours.model.prefix_cache.store) == 0


def test_items_that_are_read_both_ways_know_of_none():
    for kind, changed in (("modernbert", {}), ("qwen3", {"mask": "bidirectional"})):
        ours = embedder(kind, **changed)
        for _ in range(3):
            ours.encode(THINGS, prompt=ASKED)
        assert len(ours.model.prefix_cache.store) == 0


def test_pictures_are_no_part_of_a_start():
    ours, plain = tiny_embedder(pooling="last"), tiny_embedder(pooling="last")
    ours.model.prefix_cache.store.limit = 2**28
    from PIL import Image

    things = [(ASKED, Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue")]
    for _ in range(3):
        for thing in things:
            assert np.abs(ours.encode([thing]) - plain.encode([thing])).max() <= 1e-5


def test_no_more_is_kept_than_the_limit():
    ours, plain = embedder(), without()
    kept = ours.model.prefix_cache.store
    each = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes, of one token
    kept.limit = 60 * each
    prompts = [f"{number} is how this instruction begins: {'x' * number}" for number in range(10, 60, 10)]
    for prompt in prompts * 2:
        told = ours.encode(["snow", "rain"], prompt=prompt)
        assert np.abs(told - plain.encode(["snow", "rain"], prompt=prompt)).max() <= 1e-5
        assert 0 <= kept.used <= kept.limit
    assert len(kept) == 1
    kept.limit, hits = 0, kept.hits
    ours.encode(["snow", "rain"], prompt=prompts[-1])
    assert kept.hits == hits


def test_of_prefixes_that_begin_alike_and_do_not_fit_together_the_latest_are_kept():
    ours, plain = embedder(), without()
    kept = ours.model.prefix_cache.store
    each = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes, of one token
    kept.limit = 100 * each
    prompts = [f"this instruction begins alike, {letter * 30}: " for letter in "abc"]
    for prompt in prompts * 2:
        told = ours.encode(["snow", "rain"], prompt=prompt)
        assert np.abs(told - plain.encode(["snow", "rain"], prompt=prompt)).max() <= 1e-5
        assert 0 < kept.used <= kept.limit
    assert tokens_of(ours, lambda: ours.encode(["snow"], prompt=prompts[-1]))[0] == len("snow") + 1


def test_a_prefix_that_lacks_a_layer_is_not_kept():
    """As where the heads of some layers are wider than those of others, and the limit lies between."""
    cache = PrefixCache(limit=100_000)
    for widths, kept in (((64, 64, 64, 256), 0), ((256, 64, 64, 64), 0), ((64, 64, 64, 64), 1)):
        wanted = NewPrefix(Prefix(np.arange(20)), 0)
        use = PrefixUse(wanted=(wanted,), most=cache.store.limit / len(widths), scope=("a model",))
        for layer, width in enumerate(widths):
            row = torch.randn(1, 2, 20, width)
            use.recall(layer, row, row)
        cache.keep(use)
        assert len(cache.store) == kept
        assert len(wanted.prefix.layers) == kept * len(widths)


def test_many_threads_keep_and_find_at_once():
    ours, plain = embedder(), without()
    calls = [(prompt, thing) for prompt in (ASKED, OTHER, "") for thing in THINGS] * 4
    due = [plain.encode([thing], prompt=prompt) for prompt, thing in calls]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda call: ours.encode([call[1]], prompt=call[0]), calls))
    assert max(np.abs(a - b).max() for a, b in zip(told, due, strict=True)) <= 1e-5


def test_a_copy_starts_empty():
    ours = embedder()
    ours.encode(THINGS, prompt=ASKED)
    for twin in (copy.deepcopy(ours.model.prefix_cache), pickle.loads(pickle.dumps(ours.model.prefix_cache))):
        assert twin.store.limit == ours.model.prefix_cache.store.limit
        assert len(twin.store) == 0


def test_a_model_of_a_way_of_its_own_keeps_nothing():
    """One whose block mixes tokens behind the door of attention."""
    ours, plain = embedder("llama"), without("llama")
    for each in (ours, plain):
        mlp = each.model.backbone.layers[0].mlp
        mlp.register_forward_pre_hook(lambda _, args: (args[0] - args[0].mean(1, keepdim=True),))
    for _ in range(3):
        assert np.abs(ours.encode(["snow"], prompt=ASKED) - plain.encode(["snow"], prompt=ASKED)).max() <= 1e-5
    assert len(ours.model.prefix_cache.store) == 0


def test_an_embedder_keeps_what_it_is_told_to_and_nothing_else():
    embedder = tiny_embedder(
        prompts={"query": {"text": "an instruction of many words that stands before every query: {text}"}}
    )
    alone = [embedder.encode_query([word])[0] for word in ("one", "two", "three", "four")]
    assert (len(embedder.model.prefix_cache.store), embedder.model.prefix_cache.store.hits) == (0, 0)
    assert embedder.cache(prefixes=2**20) is embedder
    kept = [embedder.encode_query([word])[0] for word in ("one", "two", "three", "four")]
    assert embedder.model.prefix_cache.store.hits > 0
    assert np.abs(np.array(kept) - np.array(alone)).max() < 1e-6
    embedder.cache()
    embedder.encode_query(["five"])
    assert len(embedder.model.prefix_cache.store) == 0


def test_an_item_of_which_nothing_is_read_is_no_start():
    ours = compose(
        backbone=tiny_backbone("qwen3"),
        tokenizer=byte_tokenizer(),
        tokens={"head": {"kind": "states"}, "skip": ["!", "</s>"]},
        device="cpu",
    ).cache(prefixes=2**22)
    for _ in range(4):
        assert ours.encode_tokens(["!" * 40])[0].shape == (0, 32)


def test_two_bodies_over_the_same_weights_are_told_apart():
    one = tiny_backbone()
    other = copy.copy(one)
    assert len({generation(one), generation(one), generation(other)}) == 2
    with torch.no_grad():
        next(one.parameters()).mul_(2)
    assert len({generation(one), generation(other)}) == 2
