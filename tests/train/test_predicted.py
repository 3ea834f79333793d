"""Language heads over packed rows have the loss that transformers has of each text by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from mmembed.batch import pack
from mmembed.errors import SpecError
from mmembed.testing import BACKBONES, sharpen, tiny_embedder
from mmembed.towers.language_head import LanguageHead, body_of
from mmembed.train.losses import build_loss
from mmembed.train.losses.language import mask_tokens
from mmembed.train.predicted import masked_tokens, next_tokens

from .things import of_vectors

TEXTS = ["a cat and a dog", "ein Haus", "abc", "the longest text of them all, by far"]


def loss_of(kind, predicted, **settings):
    zeros = torch.zeros(1, 4)
    return build_loss({"kind": kind, **settings})(replace(of_vectors(zeros, zeros), predicted=predicted))


@pytest.mark.parametrize("over", ["tokens", "samples"])
def test_the_next_token_has_the_loss_that_transformers_has_of_each_text(over):
    # the layers are lent to the packed backbone: transformers' own numbers come first
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **BACKBONES["qwen3"])).eval()
    sharpen(whole)
    head = LanguageHead(whole)
    embedder = tiny_embedder(vision=None, projector=None)
    samples = embedder.samples(TEXTS)
    rows = [torch.from_numpy(s.ids)[None] for s in samples]
    with torch.no_grad():
        each = [whole(input_ids=ids, labels=ids).loss for ids in rows]
    counts = torch.tensor([ids.shape[1] - 1 for ids in rows])
    own = torch.stack(each)
    due = own.mean() if over == "samples" else (own * counts).sum() / counts.sum()
    packed = tiny_embedder(backbone=body_of(whole), vision=None, projector=None)
    batch = pack(samples, range(len(TEXTS)), "causal")
    predicted = next_tokens(packed.model, head, batch)
    assert len(predicted.targets) == int(counts.sum())
    told = loss_of("language_modelling", predicted, over=over, block=7)
    assert abs(float(told.detach()) - float(due)) <= 1e-5
    told.backward()
    assert all(w.grad is not None for w in packed.model.backbone.parameters())


def test_a_masked_token_is_predicted_from_the_state_before_it():
    torch.manual_seed(0)
    whole = AutoModelForMaskedLM.from_config(AutoConfig.for_model("modernbert", **BACKBONES["modernbert"])).eval()
    sharpen(whole)
    embedder = tiny_embedder(vision=None, projector=None)
    samples = embedder.samples(TEXTS)
    batch = pack(samples, range(len(TEXTS)), "bidirectional")
    draw = np.random.default_rng(1)
    each = [mask_tokens(sample.ids, draw, mask=299, vocabulary=256, share=0.4) for sample in samples]
    ids, picked = (torch.from_numpy(np.concatenate(own)) for own in zip(*each, strict=True))
    hidden, chosen = replace(batch, ids=ids), picked
    assert chosen.any()
    assert not chosen[batch.spans.start.unique()].any()
    total, first = 0.0, 0
    with torch.no_grad():
        for sample in samples:
            mine = slice(first, first + len(sample))
            logits = whole(input_ids=hidden.ids[mine][None]).logits[0]
            here = chosen[mine].nonzero().flatten()
            total += float(F.cross_entropy(logits[here - 1], batch.ids[mine][here], reduction="sum"))
            first += len(sample)
    head = LanguageHead(whole)
    packed = tiny_embedder(backbone=body_of(whole), vision=None, projector=None)
    predicted = masked_tokens(packed.model, head, hidden, chosen, batch.ids)
    told = loss_of("mntp", predicted)
    assert abs(float(told.detach()) - total / int(chosen.sum())) <= 1e-5


def test_what_gives_the_next_token_away_is_told(tiny):
    batch = pack(tiny.samples(["under it: a", "under it: b"]), range(2), "causal", share=True)
    with pytest.raises(SpecError, match="share=False"):
        next_tokens(tiny.model, lambda states: states, batch)
    ahead = pack(tiny.samples(["a", "b"]), range(2), "bidirectional")
    with pytest.raises(SpecError, match="no secret"):
        next_tokens(tiny.model, lambda states: states, ahead)
