"""MoEE against its authors' formula, over the hidden states and router logits that transformers gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import mmembed
from mmembed.errors import InputError, SpecError, UnknownName
from mmembed.methods import moee
from mmembed.testing import WIDTH, byte_tokenizer, sharpen, tiny_embedder

TEXTS = ["A man is playing a guitar", "is it red?", 'she said "no"', "猫が寝ている", "x", "snake_case!"]
MORE = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("cat", "dog", "house")]
SMALL = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
EXPERTS = 3 * 6
KINDS = ("olmoe", "qwen2_moe", "qwen3_moe", "mixtral")


def mixture(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **SMALL))
        sharpen(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "gate.weight" in name:
                    weight.mul_(20)
    return model.eval()


def ours(kind, **changed):
    return mmembed.compose(backbone=mixture(kind), tokenizer=byte_tokenizer(bos=True), device="cpu", **changed)


def sentence(text: str) -> str:
    """The authors' preparation, in their words."""
    if len(text) > 0 and text[-1] not in ".?!\"'":
        text += "."
    return text.replace('"', "'")


TEMPLATES = {"quoted": '"*sent 0*"', "prompteol": 'This sentence : "*sent 0*" means in one word:"'}


def published(kind, texts, prompt="quoted", routing="logits"):
    """Hidden state and routing weights at the last token of each text, before the authors standardise them."""
    model, words = mixture(kind), byte_tokenizer(bos=True, eos=False)
    hidden, said = [], []
    for text in texts:
        whole = TEMPLATES[prompt].replace("*sent 0*", sentence(text)).replace("_", " ").strip()
        with torch.inference_mode():
            out = model(**words(whole, return_tensors="pt"), output_hidden_states=True, output_router_logits=True)
        weights = torch.stack(out.router_logits, 1)  # (T, layers, experts), raw as their Qwen and OLMoE hand them on
        weights = weights.softmax(-1) if routing == "softmax" else weights
        hidden.append(out.hidden_states[-1][0, -1])
        said.append(torch.cat([weights[-1, layer] for layer in range(weights.shape[1])]))
    return torch.stack(hidden), torch.stack(said)


def standardised(x):
    return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 1e-8)


SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "moee"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "routing"), [("quoted", "logits"), ("prompteol", "softmax")])
def test_over_the_batch_that_was_fitted_on_vectors_are_the_authors(kind, prompt, routing, held):
    hidden, said = published(kind, TEXTS, prompt, routing)
    expected = torch.nn.functional.normalize(standardised(torch.cat([hidden, said], 1)))
    vectors = moee.fitted(ours(kind), TEXTS, prompt=prompt, routing=routing).encode(TEXTS)
    assert vectors.shape == (len(TEXTS), WIDTH + EXPERTS)
    held("MoEE (concat)", vectors, expected, **SAYS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.0])
def test_the_sum_of_similarities_is_the_authors(kind, alpha, held):
    hidden, said = map(standardised, published(kind, TEXTS))
    cosine = [torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T for x in (hidden, said)]
    embedder = moee.fitted(ours(kind), TEXTS, combine="sum", alpha=alpha)
    vectors = embedder.encode(TEXTS)
    assert embedder.dimension == WIDTH + (EXPERTS if alpha else 0)
    held("MoEE (sum)", embedder.similarity(vectors, vectors) * (1 + alpha), cosine[0] + alpha * cosine[1], **SAYS)


def test_a_text_has_one_vector_whatever_its_company_and_thread():
    embedder = moee.fitted(ours("qwen3_moe"), MORE)
    together = embedder.encode(TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    assert np.abs(alone - together).max() <= 1e-5
    assert np.abs(embedder.encode(TEXTS[::-1], batch_tokens=20)[::-1] - together).max() <= 1e-5
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(embedder.encode, [TEXTS] * 8):
            assert np.abs(vectors - together).max() <= 1e-5


def test_the_embedder_stays_as_it_was_and_the_fitted_one_is_saved(tmp_path):
    plain = ours("olmoe")
    before = plain.encode(TEXTS)
    embedder = moee.fitted(plain, MORE, combine="sum", alpha=0.3)
    assert np.array_equal(plain.encode(TEXTS), before)
    again = mmembed.load(embedder.save(tmp_path / "m"), device="cpu")
    assert again.spec.routing == "logits"
    assert np.array_equal(again.encode(TEXTS), embedder.encode(TEXTS))


def test_a_number_that_never_moves_says_nothing():
    plain = ours("qwen2_moe")
    with torch.no_grad():
        plain.model.backbone.norm.weight[5] = 0
    embedder = moee.fitted(plain, MORE)
    assert np.abs(embedder.encode(TEXTS)[:, 5]).max() == 0


def test_what_has_no_routers_is_refused():
    with pytest.raises(SpecError, match="no routers"):
        moee.fitted(tiny_embedder(), MORE)
    plain = ours("olmoe")
    with pytest.raises(SpecError, match="runs padded"):
        moee.fitted(ours("olmoe", layout="padded"), MORE)
    with pytest.raises(InputError, match="not on 1"):
        moee.fitted(plain, MORE[:1])
    with pytest.raises(UnknownName, match="Did you mean 'prompteol'"):
        moee.fitted(plain, MORE, prompt="promteol")
    with pytest.raises(UnknownName, match="Did you mean 'softmax'"):
        moee.fitted(plain, MORE, routing="softmx")
    with pytest.raises(UnknownName, match="Did you mean 'concat'"):
        moee.fitted(plain, MORE, combine="concatenate")
    for alpha in (float("nan"), -1.0, float("inf"), "1"):
        with pytest.raises(SpecError, match="the weight of the routers is a number"):
            moee.fitted(plain, MORE, combine="sum", alpha=alpha)
    with pytest.raises(SpecError, match="say dimension=50"):
        plain.respecified(routing="logits")
    with pytest.raises(SpecError, match="the last one is among"):
        plain.respecified(routing="logits", layers=(-2,), dimension=WIDTH + EXPERTS)
    with pytest.raises(SpecError, match="has heads"):
        moee.fitted(moee.fitted(plain, MORE), MORE)
