"""Everything that encodes runs on a CUDA device on paper: no tensor lies in the wrong place, nothing waits that need not, and the
vectors are those of the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex

import mmembed
from mmembed.methods import METHODS, apply
from mmembed.nn import attention, flex, merging, varlen
from mmembed.nn.pooling import poolings
from mmembed.testing import BACKBONES, ENCODERS, PADDED, VLMS, byte_tokenizer, tiny_backbone, tiny_embedder, tiny_vlm

from .checkpoints.test_dual import made  # noqa: F401  (a fixture)
from .conftest import picture
from .methods.plain import LAYOUTS, LONG, SPECIAL, TABLE, mask_for
from .nn.test_pooling import SMALL
from .nn.test_varlen import plain
from .paper import kernel, moved, paper
from .test_kinds import DENSE, SPLADE, language_model
from .towers.test_native import composed

RESULT = ["an event"]
"""All that a batch waits for: what comes back."""
TEXTS = ["query: how do I get to the station", "query: how do I get there", "query: x", "eine Katze schläft", "写真"]
PICTURES = [picture(1, 60, 60), ("what is this?", picture(2, 40, 200)), picture(1, 60, 60)]


def backbone(kind="qwen3", **changed):
    """A tiny one whose heads are wide enough for the kernels."""
    return tiny_backbone(kind, **{"num_attention_heads": 2} if kind in ENCODERS else {"head_dim": 16}, **changed)


@pytest.fixture(params=["paper", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The device on paper, or a real one."""
    return request.param


@pytest.fixture
def kernels(monkeypatch, device):
    """On paper the backends of CUDA as they are, over plain kernels, and which of them ran; None on a real device."""
    if device == "cuda":
        return None
    ran = []

    def told(name, runs):
        return wraps(runs)(lambda *args, **options: (ran.append(name), runs(*args, **options))[1])

    # Its views of weights are none that torch lets us wrap.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    monkeypatch.setattr(varlen, "_has_kernels", lambda device: True)
    monkeypatch.setattr(merging, "_kernel", lambda: None)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", told("varlen", kernel(plain)))
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled", lambda: told("flex", torch_flex.flex_attention))
    return ran


@pytest.fixture
def there(device, kernels):
    """encode(embedder, things) -> what it gives on the CPU and on the device, where it stays, and what the host waited for."""

    def both_ways(ours, things, encode="encode", **options):
        due = getattr(ours, encode)(things, **options)
        if device == "cuda":
            ours.model.to("cuda")
            return due, getattr(ours, encode)(things, **options), RESULT
        moved(ours.model)
        with paper() as mode:
            told = getattr(ours, encode)(things, **options)
        return due, told, mode.waits

    return both_ways


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones_in_fp32(kind, kernels, there):
    ours = mmembed.compose(backbone=backbone(kind), tokenizer=byte_tokenizer(), name="tiny", device="cpu")
    due, told, waits = there(ours, TEXTS)
    assert np.abs(told - due).max() <= 1e-5
    assert kind in PADDED or kernels is None or set(kernels) == {"flex"}
    assert kind in PADDED or waits == RESULT


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", sorted(set(BACKBONES) - set(PADDED)))
def test_backbones_in_half_precision(kind, precision, kernels, there):
    sharp = mmembed.compose(backbone=backbone(kind), tokenizer=byte_tokenizer(), name="tiny", device="cpu")
    due = sharp.encode(TEXTS)
    ours = mmembed.compose(
        backbone=backbone(kind), tokenizer=byte_tokenizer(), name="tiny", device="cpu", precision=precision
    )
    on_cpu, told, waits = there(ours, TEXTS)
    assert np.abs(told - due).max() <= 3 * np.abs(on_cpu - due).max()  # as far off as the CPU in that precision
    slides = kind in ("mistral", "gemma3_text")  # over 7 tokens: in a tree that is FlexAttention's
    assert kernels is None or set(kernels) == (
        {"varlen", "flex"} if slides and kind != "mistral" else {"flex"} if slides else {"varlen"}
    )
    assert waits == RESULT


@pytest.mark.parametrize("kind", sorted(poolings))
def test_poolings(kind, there):
    pooling = {"kind": kind, **SMALL.get(kind, {})}
    mask = "bidirectional" if kind == "first" else "causal"
    parts = {"backbone": backbone(), "tokenizer": byte_tokenizer(), "mask": mask}
    ours = mmembed.compose(**parts, pooling=pooling, name="tiny", device="cpu")
    due, told, waits = there(ours, TEXTS)
    assert np.abs(told - due).max() <= 1e-5
    assert waits == RESULT or kind == "perceiver"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", METHODS)
def test_methods(name, layout, there):
    method = METHODS[name]
    if layout == "padded" and (method.packed or method.mask):
        pytest.skip("packed only")
    tabled = method.positions is not None and method.positions["kind"] == "stretched"
    kind, more = (TABLE, {"max_position_embeddings": LONG + 98}) if tabled else ("qwen3", {})
    ours = apply(
        mmembed.compose(
            backbone=backbone(kind, num_hidden_layers=4, **more),
            mask=None if tabled else mask_for(method),
            tokenizer=byte_tokenizer(special=SPECIAL),
            layout=layout,
            max_length=LONG,
            name="tiny",
            device="cpu",
        ),
        name,
    )
    due, told, _ = there(ours, TEXTS[2:], batch_tokens=300)
    assert np.abs(told - due).max() <= 1e-5


@pytest.mark.parametrize(
    "kind", [kind for kind in VLMS if not kind.endswith("moe")]
)  # no counts of whole numbers on a CPU
def test_vision_language_models(kind, tmp_path, there):
    from .towers.test_native import SHOW

    tiny_vlm(tmp_path, kind)
    ours = composed(tmp_path, vision={"library": "native", "text": SHOW[kind]})
    due, told, _ = there(ours, [*TEXTS, *PICTURES])
    assert np.abs(told - due).max() <= 1e-5


@pytest.mark.parametrize("mask", ["causal", "causal+image", "bidirectional"])
def test_a_composed_vision_tower(mask, there):
    due, told, waits = there(tiny_embedder(mask=mask, backbone=backbone()), [*TEXTS, *PICTURES])
    assert np.abs(told - due).max() <= 1e-5
    assert waits == RESULT


@pytest.mark.parametrize("kind", ["clip", "siglip2", "naflex"])
def test_dual_encoders_of_transformers(kind, made, there):  # noqa: F811
    ours = mmembed.load(made(kind)[0], device="cpu")
    due, told, _ = there(ours, [*TEXTS, *PICTURES])
    assert np.abs(told - due).max() <= 1e-5


def of_several_outputs():
    return mmembed.compose(
        backbone=language_model(), tokenizer=byte_tokenizer(), sparse=SPLADE, tokens=DENSE, device="cpu", name="tiny"
    )


def test_token_vectors(there):
    due, told, _ = there(of_several_outputs(), TEXTS, "encode_tokens")
    for own, other in zip(told, due, strict=True):
        assert np.abs(own - other).max() <= 1e-5


def test_sparse_weights(there):
    due, told, _ = there(of_several_outputs(), TEXTS, "encode_sparse")
    assert due.nnz
    assert abs(told - due).max() <= 1e-5


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("device", ["paper"])
def test_a_tensor_in_the_wrong_place_is_found():
    ours = tiny_embedder()
    moved(ours.model)
    ours.model.pooling.reduce = lambda states, counted: states[: counted.items] + torch.zeros(counted.items, 32)
    with paper(), pytest.raises(RuntimeError, match="two devices"):
        ours.encode(TEXTS)


@pytest.mark.parametrize("backend", ["grouped", "reference"])
def test_backends_that_are_not_chosen_there(backend, there, monkeypatch):
    monkeypatch.setattr(attention, "choose", lambda *_, **_more: backend)
    due, told, _ = there(tiny_embedder(mask="causal+image"), [*TEXTS, *PICTURES])
    assert np.abs(told - due).max() <= 1e-5


@pytest.mark.parametrize("kind", ["composed", "qwen3_vl", "xlm-roberta"])
def test_where_a_caller_has_torch_make_things_is_no_matter(kind, tmp_path):
    """As notebooks say torch.set_default_device("cuda"); on "meta" nothing would be left of what was made there."""
    own = {
        "composed": tiny_embedder,
        "qwen3_vl": lambda: composed((tiny_vlm(tmp_path / "vlm", "qwen3_vl"), tmp_path / "vlm")[1]),
        "xlm-roberta": lambda: tiny_embedder(backbone=tiny_backbone("xlm-roberta"), vision=None, projector=None),
    }[kind]()
    items = [*TEXTS, *(PICTURES if own.model.sees else [])]
    folder = own.save(tmp_path / "m")
    due, tokens, parts = (
        own.encode(items),
        own.encode_tokens(TEXTS[:2]),
        own.similarity(own.encode_tokens(TEXTS), own.encode_tokens(TEXTS[:2])),
    )
    with torch.device("meta"):
        loaded = mmembed.load(folder, device="cpu")
        assert np.abs(loaded.encode(items) - due).max() <= 1e-6
        assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(loaded.encode_tokens(TEXTS[:2]), tokens, strict=True))
        assert np.abs(own.similarity(own.encode_tokens(TEXTS), tokens) - parts).max() <= 1e-5
