"""PoolingAndAttn's five designs against their authors' formula over transformers' own forward."""

from __future__ import annotations

import math

import pytest
import torch

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.nn.perceiver import Perceiver
from mmembed.testing import byte_tokenizer, sharpen

from ..methods.plain import BACKBONES, LAYOUTS, LONG, TEXTS, Plain, backbone

SMALL = {"latents": 5, "heads": 3, "head_width": 4}
SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "perceiver"}
LAST = {"pooling": {"kind": "perceiver", **SMALL}}
LAYERS = {"layers": (1, 2, 3, 4), "mix": {"kind": "perceiver", **SMALL}}
DESIGNS = {
    "EOS, causal": ({"pooling": "last"}, lambda h, _: h[-1][0, -1]),
    "last layer, causal": ({**LAST, "counted": "eos"}, lambda h, m: resampled(m.pooling.perceiver, h[-1][0, -1:])),
    "layers, causal": ({**LAYERS, "pooling": "last"}, lambda h, m: of_layers(m, [x[0, -1] for x in h[1:]])),
    "last layer, bidirectional": (
        {**LAST, "mask": "bidirectional"},
        lambda h, m: resampled(m.pooling.perceiver, h[-1][0]),
    ),
    "layers, bidirectional": (
        {**LAYERS, "pooling": "mean", "mask": "bidirectional"},
        lambda h, m: of_layers(m, [x[0].mean(0) for x in h[1:]]),
    ),
}


def resampled(p: Perceiver, tokens: torch.Tensor) -> torch.Tensor:
    """PerceiverResampler of the authors' pooling_layers on the vectors of one item (C, D), head by head."""
    asked = p.norm_latents(p.latents) @ p.to_q.weight.T
    key, value = (p.norm(tokens) @ p.to_kv.weight.T).chunk(2, dim=-1)
    width = asked.shape[-1] // p.heads
    heard = []
    for h in range(p.heads):
        own = slice(h * width, (h + 1) * width)
        heard.append((asked[:, own] @ key[:, own].T / math.sqrt(width)).softmax(-1) @ value[:, own])
    x = torch.cat(heard, -1) @ p.to_out.weight.T + p.latents
    value, gates = (p.norm_ff(x) @ p.up.weight.T + p.up.bias).chunk(2, dim=-1)
    gelu = gates * 0.5 * (1 + torch.erf(gates / math.sqrt(2)))
    return ((value * gelu) @ p.down.weight.T + p.down.bias + x).mean(0)


def of_layers(model: mmembed.model.EmbeddingModel, vectors: list[torch.Tensor]) -> torch.Tensor:
    return resampled(model.mix.perceiver, torch.stack(vectors) + model.mix.places)


def composed(kind: str, layout: str, **spec) -> mmembed.Embedder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ours = mmembed.compose(
            backbone=backbone(kind, 4),
            tokenizer=byte_tokenizer(),
            layout=layout,
            max_length=LONG,
            normalize=False,
            device="cpu",
            **spec,
        )
        for part in (ours.model.pooling, ours.model.mix):
            sharpen(part)
    return ours


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_is_its_authors(name, kind, layout, held):
    spec, reference = DESIGNS[name]
    ours = composed(kind, layout, **spec)
    plain = Plain(kind)
    plain.model.config.is_causal = "mask" not in spec
    with torch.no_grad():
        due = torch.stack([reference(plain.hidden(text, closed=True), ours.model) for text in TEXTS])
    held(f"PoolingAndAttn: {name}", ours.encode(TEXTS), due, relative=True, **SAYS)
    alone = [ours.encode([text])[0] for text in TEXTS]
    assert abs(ours.encode(TEXTS[::-1])[::-1] - alone).max() <= 1e-5


def test_its_weights_are_saved_and_loaded(tmp_path):
    for name in ("layers, causal", "last layer, bidirectional"):
        ours = composed("llama", "packed", **DESIGNS[name][0])
        again = mmembed.load(ours.save(tmp_path / name), device="cpu")
        assert (again.encode(TEXTS) == ours.encode(TEXTS)).all()


def test_what_does_not_go_together_is_refused():
    ours = composed("llama", "packed", **DESIGNS["layers, causal"][0])
    with pytest.raises(SpecError, match="of pooled vectors"):
        ours.encode_tokens("red")
    with pytest.raises(SpecError, match="has weights"):
        ours.respecified(layers=(1, 2))
    with pytest.raises(UnknownName, match="Did you mean 'latents'"):
        composed("llama", "packed", pooling={"kind": "perceiver", "latent": 5})
