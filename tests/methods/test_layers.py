"""Inner layers, means of several, learned weights and truncated depths against transformers' own hidden states."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling
from torch import Tensor

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.methods import apply
from mmembed.testing import byte_tokenizer
from mmembed.towers.reading import layers_of

from .plain import BACKBONES, LAYOUTS, LONG, TEXTS, Plain, Reference, backbone, embedder


def mean_of(plain: Plain, text: str, layers: tuple[int, ...]) -> Tensor:
    every = plain.hidden(text, closed=True)
    return torch.stack([every[layer][0] for layer in layers]).mean(0).mean(0)


def normed(plain: Plain, text: str, layer: int) -> Tensor:
    return plain.model.norm(plain.hidden(text, closed=True)[layer])[0].mean(0)


REFERENCE: dict[str, Reference] = {
    "penultimate": lambda p, t: mean_of(p, t, (-2,)),
    "penultimate-normed": lambda p, t: normed(p, t, -2),
    "last-two-mean": lambda p, t: mean_of(p, t, (-1, -2)),
    "last-four-mean": lambda p, t: mean_of(p, t, (-1, -2, -3, -4)),
    "first-last-mean": lambda p, t: mean_of(p, t, (1, -1)),
    "2dmse": lambda p, t: p.hidden(t, closed=True)[-2][0, 0],
}
SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "layers"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_any_layer_can_be_read_with_the_final_norm_or_without(kind, layout, held):
    for layer in (0, 1, 3, 4, -5, -3):
        for norm in (False, True):
            base = embedder(kind, layout).respecified(pooling={"kind": "mean"}, normalize=False)
            ours = base.respecified(layers=(layer,), norm_layers=norm)
            plain = Plain(kind)
            again = norm and layer != 4  # the last one has it already
            due = torch.stack([normed(plain, t, layer) if again else mean_of(plain, t, (layer,)) for t in TEXTS])
            held("any layer", ours.encode(TEXTS), due, relative=True, **SAYS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_backbone_is_one_whose_layers_were_cut_off(layout, held):
    """As sentence-transformers' adaptive layers: blocks are cut off, the final norm stays; dimensions are cut besides."""
    plain = Plain("llama")
    plain.model.config.num_hidden_layers = 2  # transformers runs that many
    whole = torch.stack([plain.hidden(text, closed=True)[-1][0].mean(0) for text in TEXTS])
    ours = apply(embedder("llama", layout), "2dmse", layers=(2,), norm_layers=True, pooling={"kind": "mean"})
    ours = ours.respecified(dimensions=(16, 8))
    for width in (16, 8, None):
        due = torch.nn.functional.normalize(whole[:, :width], dim=-1)
        held("2dmse", ours.encode(TEXTS, truncate_dim=width), due, **SAYS)


def test_a_truncated_backbone_runs_fewer_blocks():
    ours = apply(embedder("llama", "packed"), "2dmse", layers=(2,), mask="bidirectional")
    ran = []
    blocks = layers_of(ours.model.backbone)
    handles = [block.register_forward_pre_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(blocks)]
    ours.encode("red")
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_layers_are_weighed_by_given_numbers(kind, layout, held):
    weights, layers = (0.5, -0.25, 1.5), (1, -2, -1)
    base = embedder(kind, layout).respecified(pooling={"kind": "mean"}, normalize=False)
    ours = base.respecified(layers=layers, mix={"kind": "weights", "weights": weights})
    plain = Plain(kind)
    parts = [[w * mean_of(plain, t, (k,)) for w, k in zip(weights, layers, strict=True)] for t in TEXTS]
    held("given layer weights", ours.encode(TEXTS), torch.stack([sum(own) for own in parts]), relative=True, **SAYS)


def learned(mix: str, kind: str = "qwen3") -> mmembed.Embedder:
    """With weights as if they had been learned."""
    ours = mmembed.compose(
        backbone=backbone(kind, 4),
        tokenizer=byte_tokenizer(),
        layers=(2, 3, 4),
        mix={"kind": mix},
        pooling="mean",
        normalize=False,
        max_length=LONG,
        device="cpu",
    )
    with torch.no_grad():
        ours.model.mix.weights.copy_(torch.tensor([0.3, 2.0, -1.0]))
        if mix == "softmax":
            ours.model.mix.scale.fill_(1.7)
    return ours


@pytest.mark.parametrize("kind", BACKBONES)
def test_learned_layer_weights_are_elmos(kind, held, tmp_path):
    ours = learned("softmax", kind)
    w = torch.tensor([0.3, 2.0, -1.0]).exp()
    w = 1.7 * w / w.sum()
    plain = Plain(kind)
    due = torch.stack([sum(w[k] * mean_of(plain, t, (2 + k,)) for k in range(3)) for t in TEXTS])
    says = {**SAYS, "against": "ELMo's formula over transformers"}
    held("learned layer weights", ours.encode(TEXTS), due, relative=True, **says)
    again = mmembed.load(ours.save(tmp_path / "m"), device="cpu")
    assert (again.encode(TEXTS) == ours.encode(TEXTS)).all()


def test_learned_layer_weights_are_those_of_sentence_transformers(held):
    ours = learned("weighted_mean")
    module = WeightedLayerPooling(32, 4, layer_start=2, layer_weights=torch.tensor([0.3, 2.0, -1.0]))
    plain = Plain()
    due = [module({"all_layer_embeddings": plain.hidden(t, closed=True)})["token_embeddings"][0].mean(0) for t in TEXTS]
    says = {**SAYS, "against": "sentence-transformers"}
    held("learned layer weights", ours.encode(TEXTS), torch.stack(due), relative=True, **says)


def test_learned_weights_are_not_made_up():
    base = embedder("qwen3", "packed")
    with pytest.raises(SpecError, match="has weights"):
        base.respecified(layers=(1, 2), mix={"kind": "softmax"})
    with pytest.raises(SpecError, match="2 weights were given for 1 layers"):
        base.respecified(mix={"kind": "weights", "weights": (1, 2)})
    with pytest.raises(UnknownName, match="Did you mean 'softmax'"):
        base.respecified(layers=(1, 2), mix={"kind": "soft_max"})
