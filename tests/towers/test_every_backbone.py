"""Every model of transformers that reads text, tiny: its vectors are those of its own class, whatever company an item has, or
it is refused by an error of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mmembed import compose
from mmembed.errors import MmembedError
from mmembed.testing import byte_tokenizer, sharpen

pytestmark = pytest.mark.slow

TEXTS = [
    *("a", "green birds fly over the lake", "xy", "a", "Query: red", "Query: ein kleines Haus am See", "dog"),
    "Once upon a time there was a small house beside a lake, where birds sang all day.",
]
LARGEST = 20_000_000
"""Numbers of a model that is still tiny."""
ROUNDED = {"dbrx": 1e-4, "gemma4": 3e-5, "gemma4_text": 3e-5, "muse_spark": 3e-5, "muse_spark_text": 3e-5}
"""Those whose own arithmetic rounds more, packed, padded and alone."""
TIED = ("axk2", "deepseek_v32", "glm5_next", "hy_v4")
"""Those that choose what a token looks at among scores that are equal in a tiny model: ties are broken by company."""


NAMES = {
    32: "hidden_size d_model n_embd dim emb_dim embed_dim word_embed_proj_dim embedding_size dim_model lru_width",
    64: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner d_inner inner_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size kv_lora_rank q_lora_rank index_lora_rank",
    4: """num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_decoder_layers num_attention_heads
        num_heads n_head n_heads encoder_attention_heads decoder_attention_heads mamba_num_heads linear_num_value_heads
        qk_rope_head_dim rotary_dim num_experts n_routed_experts num_local_experts moe_num_experts""",
    2: """num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads num_experts_per_tok top_k_experts moe_topk""",
    8: """head_dim d_kv kv_channels dim_head d_head qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim
        mamba_d_state state_size mamba_d_head mamba_n_heads time_step_rank hidden_size_per_layer_input laurel_rank
        sliding_window attention_window local_attention attention_chunk_size query_pre_attn_scalar mamba_chunk_size""",
    1: "n_group topk_group n_shared_experts num_shared_experts mamba_n_groups n_groups first_k_dense_replace",
    300: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions max_seq_len original_max_position_embeddings",
}
SIZES = {name: size for size, names in NAMES.items() for name in names.split()}
"""Sizes of a tiny model by what configurations call them."""
READ = """
    afmoe albert apertus arcee aria aria_text audioflamingo3 aya_vision bamba beam bert bert-generation big_bird biogpt
    bitnet bloom camembert clip_text_model codegen cohere cohere2 cohere2_moe cohere2_vision cosmos3_omni ctrl cwm
    data2vec-text deberta deberta-v2 deepseek_v4 deepseek_vl deepseek_vl_hybrid diffllama distilbert doge electra ernie
    ernie4_5 eurobert exaone4 exaone4_5 exaone_moe falcon falcon_mamba flex_olmo flint fuyu gemma gemma2 gemma3
    gemma3_text git glm glm4 glm4_moe glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj
    granite granite_docling_text granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared gte helium
    hrm_text hy_v3 hyperclovax hyperclovax_vision_v2 idefics2 idefics3 imagegpt inkling2_text inkling_text internlm3
    internvl iquestcoder jais2 jamba jetmoe jina_embeddings_v3 kolibri1 laguna layoutlm lfm2 lfm2_vl lfm3 lfm3_vl
    lighton_ocr llama llama4_text llava llava_next llava_next_video llava_onevision longformer mamba markuplm
    megatron-bert mellum mimo_v2_flash minicpm_ocr minicpmv4_6 minicpmv4_7 minimax minimax_m2 minimax_m3_vl
    minimax_m3_vl_text ministral3 mistral mistral3 mixtral mllama mobilebert modernbert modernbert-decoder modernvbert
    molmo2_text moshi moss_transcribe_diarize mpnet mpt mt5 muse_glimmer_text muse_spark_text musicflamingo nanochat
    nemotron_h nomic_bert olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt openai_privacy_filter opt ovis2 persimmon phi phi3
    phi4_multimodal phimoe qianfan_ocr qwen2 qwen2_audio qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
    qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text
    recurrent_gemma rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 smolvlm solar_open
    splinter squeezebert stablelm starcoder2 t5 tapas tipsv2_text_model ultrabert ultravbert umt5 vaultgemma video_llama_3
    video_llava vipllava visual_bert voxtral xglm xlm-roberta xlm-roberta-xl xlnet xlstm zaya
"""
"""Those that are read: to refuse one of them would be a step back. What is not here may be refused, or read as it is."""
KINDS = sorted(kind for kind in MODEL_MAPPING_NAMES if kind in CONFIG_MAPPING)


def shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """Settings of a configuration with all sizes small."""
    told = {}
    for key, value in config.to_dict().items():
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            told[key] = {"model_type": inner.model_type, **shrunk(inner)}
        elif key in SIZES and type(value) is int and value > 1:
            told[key] = SIZES[key] if SIZES[key] == 512 else min(SIZES[key], value)
        elif key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            told[key] = 256
    return told


def tiny(kind: str) -> PreTrainedModel:
    """A tiny model with random weights; the test is skipped where the sizes above make none."""
    pairs = kind in ("t5", "mt5", "umt5")
    maker: Any = AutoModelForTextEncoding if pairs else AutoModel
    try:
        config = AutoConfig.for_model(kind, **shrunk(CONFIG_MAPPING[kind]()))
        with torch.device("meta"):
            size = sum(weight.numel() for weight in maker.from_config(config).parameters())
        if size > LARGEST:
            pytest.skip(f"{size} weights")
        torch.manual_seed(0)
        model = maker.from_config(config, dtype=torch.float32).eval()
        sharpen(model)
    except Exception as error:  # of whatever kind, in code that is not ours
        pytest.skip(f"no tiny one is made: {type(error).__name__}: {str(error)[:80]}")
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_reads_text_is_read_as_it_is_or_refused(kind, tmp_path):
    if kind in TIED:
        pytest.skip("chooses among equal scores")
    plain, tokenizer = tiny(kind), byte_tokenizer()
    plain.save_pretrained(tmp_path)
    try:
        ours = compose(backbone=tmp_path, tokenizer=tokenizer, device="cpu", pooling="mean")
    except MmembedError:
        assert kind not in READ.split()
        return
    plain.config.get_text_config().use_cache = False
    found, bound = ours.encode(TEXTS), ROUNDED.get(kind, 1e-5)
    assert np.isfinite(found).all()
    assert np.abs(np.concatenate([ours.encode([text]) for text in TEXTS]) - found).max() <= bound, "alone"
    assert np.abs(ours.encode(TEXTS[::-1], batch_tokens=40)[::-1] - found).max() <= bound, "in small batches"
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            due = plain(input_ids=ids).last_hidden_state[0].mean(0)
        assert np.abs(torch.nn.functional.normalize(due, dim=0).numpy() - vector).max() <= bound, text
