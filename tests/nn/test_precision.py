"""Precision by name, and vectors of length one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, T5EncoderModel

from mmembed import compose, load
from mmembed.errors import SpecError, UnknownName
from mmembed.nn.precision import PRECISIONS, cast, dtype_of, unit
from mmembed.testing import byte_tokenizer, tiny_backbone


def test_a_precision_is_a_dtype_and_another_name_an_error():
    assert [dtype_of(name) for name in PRECISIONS] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(UnknownName, match="Did you mean 'fp16'"):
        dtype_of("fp61")


def test_unit_vectors_are_fp32_of_length_one_and_zero_stays_zero():
    told = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], dtype=torch.bfloat16))
    assert told.dtype is torch.float32
    assert torch.allclose(told.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    assert torch.allclose(told[0], torch.tensor([0.6, 0.8]))


def test_weights_are_cast_and_what_is_computed_from_the_configuration_stays():
    model = cast(torch.nn.Sequential(tiny_backbone(), torch.nn.BatchNorm1d(3)), torch.bfloat16)
    assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
    assert model[1].running_mean.dtype is torch.bfloat16
    assert model[1].num_batches_tracked.dtype is torch.int64
    assert torch.equal(model[0].rotary_emb.inv_freq, tiny_backbone().rotary_emb.inv_freq)


def test_what_a_model_says_it_needs_in_fp32_stays_in_it():
    """DeepSeek's router chooses experts by a bias whose steps bf16 does not have."""
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    small |= {
        "num_key_value_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
    }
    small |= {"intermediate_size": 16, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(
        "deepseek_v3", **small, v_head_dim=8, n_group=1, topk_group=1, first_k_dense_replace=0
    )
    model = cast(torch.nn.Sequential(AutoModel.from_config(config)), torch.bfloat16)
    full = {name.rpartition(".")[2] for name, own in model.state_dict().items() if own.dtype is torch.float32}
    assert full == {"e_score_correction_bias"}
    assert {own.dtype for own in cast(model, torch.float32).state_dict().values()} == {torch.float32}


def test_a_model_that_does_not_run_in_half_precision_is_refused_when_it_is_made():
    """OpenAI's first GPT multiplies in fp32, by a mask that it makes so."""
    config = AutoConfig.for_model("openai-gpt", vocab_size=300, n_embd=32, n_layer=2, n_head=4)
    body = AutoModel.from_config(config)
    with pytest.raises(SpecError, match=r"openai-gpt backbone does not run in bf16: .*; use precision='fp32'"):
        compose(backbone=body, tokenizer=byte_tokenizer(), device="cpu", precision="bf16")


def test_what_stays_in_fp32_is_saved_in_it(tmp_path):
    """T5 keeps the second layers of its MLPs so; replicas read what is saved."""
    config = AutoConfig.for_model("t5", vocab_size=300, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=4)
    ours = compose(
        backbone=T5EncoderModel(config), tokenizer=byte_tokenizer(), device="cpu", precision="fp16", weights="fp16"
    )
    ours.save(tmp_path)
    again = load(tmp_path, device="cpu", precision="fp16")
    kept = {name for name, own in ours.model.state_dict().items() if own.dtype is torch.float32}
    assert {name.rpartition(".wo")[2] for name in kept} == {".weight"}
    assert all(torch.equal(own, again.model.state_dict()[name]) for name, own in ours.model.state_dict().items())
