"""A backbone computes over a packed row, or padded, what transformers computes item by item."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mmembed.errors import InputError, LoadError, SpecError, UnknownName
from mmembed.nn.spans import Spans
from mmembed.testing import BACKBONES, ENCODERS, PADDED, sharpen, tiny_backbone
from mmembed.towers.backbone import (
    build_backbone,
    is_packed,
    load_backbone,
    natural_mask,
    packable,
    prepare_backbone,
    reads_ahead,
    states,
    steady_length,
    table_of,
)
from mmembed.towers.lean import lean

LENGTHS = (11, 1, 5, 5, 19, 2)
"""One token alone; equal neighbours; items longer than the tiny sliding windows (4 and 7)."""
DECODERS = [kind for kind in BACKBONES if kind not in ENCODERS]
MASKS = [(kind, "causal") for kind in DECODERS] + [(kind, "bidirectional") for kind in BACKBONES]

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
OTHERS: dict[str, dict] = {
    "bert": SMALL,
    "roberta": {**SMALL, "pad_token_id": 1},
    "electra": {**SMALL, "embedding_size": 32},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 300},
    "nomic_bert": SMALL,
    "eurobert": GROUPED,
    "mpnet": {**SMALL, "pad_token_id": 1},
    "deberta-v2": {**SMALL, "pooler_hidden_size": 32},
    "qwen2": GROUPED,
    "qwen3_moe": {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "phi3": GROUPED,
    "gemma2": {**GROUPED, "attn_logit_softcapping": 3.0, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "olmo2": GROUPED,
    "granite": GROUPED,
    "cohere2": {**GROUPED, "sliding_window": 7},
    "smollm3": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300},
}
"""Families beyond those that `mmembed.testing` offers."""

GATED = {
    **GROUPED,
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {**GROUPED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
RECURRENT: dict[str, dict] = {
    "qwen3_5_text": GATED,
    "qwen3_next": {
        **{**GATED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
        "shared_expert_intermediate_size": 16,
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 0},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "zamba2": {
        **{**MAMBA, "mamba_ngroups": 1, "n_mamba_heads": 4, "num_mem_blocks": 1, "adapter_rank": 4},
        "layers_block_type": ["mamba", "hybrid"],
    },
}
"""Families with blocks that go on from token to token; their norms take a gate, their MLPs which layer asks."""


def other(kind, **changed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**OTHERS.get(kind, {}), **changed}))
        sharpen(model)
    return model.eval()


def made(kind, **changed):
    return tiny_backbone(kind, **changed) if kind in BACKBONES else other(kind, **changed)


def plain(kind, mask, attention, **changed):
    """The same model as transformers runs it by itself."""
    model = made(kind, **changed)
    if (mask == "bidirectional") != (natural_mask(made(kind, **changed)) == "bidirectional"):
        model.config.is_causal = mask != "bidirectional"
    model.set_attn_implementation(attention)
    return model


def items(lengths=LENGTHS, low=2, high=250):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(low, high, (n,), generator=generator) for n in lengths]


def alone(model, rows):
    with torch.no_grad():
        return torch.cat([model(input_ids=row[None]).last_hidden_state[0] for row in rows])


def right_padded(model, rows):
    longest = max(len(row) for row in rows)
    pad = model.config.pad_token_id or 0
    ids = torch.stack([torch.cat([row, row.new_full((longest - len(row),), pad)]) for row in rows])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]


def ours(model, rows, mask, *, embeds=False, block=None):
    ids = torch.cat(rows)
    with torch.no_grad():
        given = model.get_input_embeddings()(ids) if embeds else None
        return states(model, ids * 0 if embeds else ids, given, Spans.of([len(row) for row in rows], mask, block))


@pytest.fixture(scope="module")
def due():
    """Plain states by family and mask, computed once."""
    known: dict = {}

    def get(kind, mask, attention, run):
        key = (kind, mask, attention, run)
        if key not in known:
            known[key] = run(plain(kind, mask, attention), items())
        return known[key]

    return get


@pytest.mark.parametrize("run", [alone, right_padded])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "mask"), MASKS)
def test_a_packed_row_has_the_states_of_its_items_alone_and_padded(kind, mask, attention, run, due):
    model = prepare_backbone(made(kind), mask, None)
    assert is_packed(model) == (kind not in PADDED)
    assert (ours(model, items(), mask) - due(kind, mask, attention, run)).abs().max() <= 1e-5


@pytest.mark.parametrize(("kind", "mask"), MASKS)
def test_the_padded_layout_equals_the_packed_one(kind, mask, due):
    model = prepare_backbone(made(kind), mask, "padded")
    assert not is_packed(model)
    assert (ours(model, items(), mask) - due(kind, mask, "eager", alone)).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", [None, "padded"])
@pytest.mark.parametrize(("kind", "mask"), MASKS)
def test_embeddings_in_place_of_tokens_change_nothing(kind, mask, layout, due):
    """Gemma's scale its tokens inside the embedding layer; XLM-R's positions come from the tokens unless given."""
    model = prepare_backbone(made(kind), mask, layout)
    assert (ours(model, items(), mask, embeds=True) - due(kind, mask, "eager", alone)).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", [None, "padded"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_as_they_come(kind, layout):
    mask = natural_mask(other(kind))
    model = prepare_backbone(other(kind), mask, layout)
    assert (ours(model, items(), mask) - alone(plain(kind, mask, "eager"), items())).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["qwen2", "phi3", "gemma2", "cohere2", "gpt2", "bloom"])
def test_other_decoders_read_both_ways(kind):
    model = prepare_backbone(other(kind), "bidirectional", None)
    assert reads_ahead(other(kind)) is False
    assert (
        ours(model, items(), "bidirectional") - alone(plain(kind, "bidirectional", "eager"), items())
    ).abs().max() <= 1e-5


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize(("kind", "window"), [("mistral", 3), ("mistral", 4), ("gemma3_text", 5)])
def test_a_sliding_window_shorter_than_the_items(kind, window, mask):
    due = alone(plain(kind, mask, "eager", sliding_window=window), items())
    without = alone(plain(kind, mask, "eager", sliding_window=100), items())
    assert (due - without).abs().max() > 1e-2, "the window does not bite"
    for layout in ("packed", "padded"):
        model = prepare_backbone(tiny_backbone(kind, sliding_window=window), mask, layout)
        assert (ours(model, items(), mask) - due).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_embeddinggemma_reads_both_ways_through_its_own_window(layout):
    """`use_bidirectional_attention` halves the window of the configuration file, and leaves the far token out."""
    changed = {"use_bidirectional_attention": True, "sliding_window": 8}
    assert natural_mask(tiny_backbone("gemma3_text", **changed)) == "bidirectional"
    model = prepare_backbone(tiny_backbone("gemma3_text", **changed), "bidirectional", layout)
    assert model.config.sliding_window == 5
    due = alone(tiny_backbone("gemma3_text", **changed), items())
    assert (ours(model, items(), "bidirectional") - due).abs().max() <= 1e-5
    again = build_backbone({**model.config.to_diff_dict(), "model_type": "gemma3_text"})
    assert again.config.sliding_window == 5
    with pytest.raises(SpecError, match=r"cannot have mask='causal'"):
        prepare_backbone(tiny_backbone("gemma3_text", **changed), "causal", layout)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind not in PADDED])
def test_tokens_of_one_image_see_each_other_and_all_else_is_causal(kind):
    rows = items((9, 4, 6))
    block = torch.full((19,), -1)
    block[1:4], block[4:7], block[15:18] = 0, 1, 2
    model = prepare_backbone(tiny_backbone(kind), "causal+image", None)
    told = ours(model, rows, "causal+image", block=block)
    reference, parts = tiny_backbone(kind), []
    kinds = getattr(reference.config, "layer_types", None) or ["full_attention"]
    window = getattr(reference.config, "sliding_window", None)
    for row, own in zip(rows, block.split([9, 4, 6]), strict=True):
        at = torch.arange(len(row))
        seen = (at[None] <= at[:, None]) | ((own[:, None] >= 0) & (own[:, None] == own[None]))
        near = (at[None] - at[:, None]).abs() < (window or 100)
        full = {"full_attention": seen, "sliding_attention": seen & near}
        floats = {name: torch.zeros(m.shape).masked_fill(~m, float("-inf"))[None, None] for name, m in full.items()}
        # Gemma takes one mask a kind of layer, Mistral's layers all slide.
        mixed = len(set(kinds)) > 1
        one = floats["sliding_attention" if window and not mixed else "full_attention"]
        with torch.no_grad():
            out = reference(input_ids=row[None], attention_mask=floats if mixed else one, use_cache=False)
        parts.append(out.last_hidden_state[0])
    assert (told - torch.cat(parts)).abs().max() <= 1e-5
    causal = ours(prepare_backbone(tiny_backbone(kind), "causal", None), rows, "causal")
    assert (told - causal).abs().max() > 1e-2
    assert torch.equal(told[9:13], causal[9:13]), "an item without an image is causal as before"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_of_another_precision_is_prepared_as_well(kind, dtype):
    mask = natural_mask(tiny_backbone(kind))
    assert natural_mask(tiny_backbone(kind).to(dtype)) == mask
    model = prepare_backbone(tiny_backbone(kind).to(dtype), mask, None)
    due = alone(tiny_backbone(kind).to(dtype), items())
    told = ours(model, items(), mask)
    assert told.dtype is dtype
    assert (told - due).norm() / due.norm() <= (0.1 if dtype is torch.bfloat16 else 1e-6)


def test_a_backbone_is_prepared_anew_for_another_mask_and_layout():
    model = tiny_backbone("mistral")
    for mask, layout in (
        ("bidirectional", "packed"),
        ("causal", "padded"),
        ("bidirectional", "padded"),
        ("causal", None),
    ):
        prepare_backbone(model, mask, layout)
        assert natural_mask(tiny_backbone("mistral")) == "causal"
        assert (ours(model, items(), mask) - alone(plain("mistral", mask, "eager"), items())).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "modernbert", "lfm2"])
def test_gradients_are_those_of_the_plain_model(kind):
    mask = natural_mask(tiny_backbone(kind))
    model, reference = prepare_backbone(tiny_backbone(kind), mask, None), plain(kind, mask, "eager")
    rows = items((6, 1, 9))
    spans = Spans.of([6, 1, 9], mask)
    states(model, torch.cat(rows), None, spans).pow(3).sum().backward()
    sum(reference(input_ids=row[None]).last_hidden_state.pow(3).sum() for row in rows).backward()
    grads = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        there = grads[name].grad
        if there is not None:
            assert (weight.grad - there).norm() <= 1e-4 * there.norm() + 1e-5, name


def test_an_encoder_has_no_causal_mask():
    for kind in (*ENCODERS, "bert"):
        with pytest.raises(SpecError, match=r"cannot have mask='causal'.*use mask='bidirectional'"):
            prepare_backbone(made(kind), "causal", None)


def test_a_decoder_that_never_reads_ahead_is_not_made_to():
    """GPT-Neo builds its causal mask by itself; a flag in its configuration would change nothing."""
    model = other("gpt_neo", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
    with pytest.raises(SpecError, match=r"cannot have mask='bidirectional'.*use mask='causal'"):
        prepare_backbone(model, "bidirectional", None)


def test_a_backbone_that_mixes_neighbours_outside_attention_runs_padded_only():
    with pytest.raises(SpecError, match="lfm2 backbone cannot run packed; use layout='padded'"):
        prepare_backbone(tiny_backbone("lfm2"), "causal", "packed")
    with pytest.raises(SpecError, match="needs a packed layout"):
        prepare_backbone(tiny_backbone("lfm2"), "causal+image", None)
    # MobileBERT joins the embeddings of three neighbours, and transformers says nowhere that it does.
    small = {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32}
    assert packable(other("mobilebert", **small))
    with pytest.raises(SpecError, match="does not compute packed what it should: use layout='padded'"):
        prepare_backbone(other("mobilebert", **small), "bidirectional", "packed")
    padded = prepare_backbone(other("mobilebert", **small), "bidirectional", None)
    assert not is_packed(padded)
    assert (ours(padded, items(), "bidirectional") - alone(other("mobilebert", **small), items())).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_backbones_run_padded_with_lean_parts(kind):
    def made():
        return other(kind, **RECURRENT[kind])

    model = lean(prepare_backbone(made(), "causal", None))
    assert not is_packed(model)
    assert (ours(model, items(), "causal") - alone(made(), items())).abs().max() <= 1e-5


def test_attention_that_holds_more_than_the_door_gives_it_is_refused():
    """GPT-OSS adds a learned sink to every softmax; Nemotron hands nothing on to its attention."""
    sinks = {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 7}
    with pytest.raises(SpecError, match="gpt_oss backbone does not compute packed what it should"):
        prepare_backbone(other("gpt_oss", **sinks), "causal", "packed")
    padded = prepare_backbone(other("gpt_oss", **sinks), "causal", None)
    assert not is_packed(padded), "which a folder that says no layout takes"
    assert (ours(padded, items(), "causal") - alone(other("gpt_oss", **sinks), items())).abs().max() <= 1e-5
    with pytest.raises(SpecError, match=r"nemotron backbone does not run packed.*spans"):
        prepare_backbone(other("nemotron", **GROUPED), "causal", "packed")


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("scaling", ["longrope", "dynamic"])
def test_positions_that_hang_on_the_longest_item_of_a_batch_are_refused(scaling, layout):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if scaling == "longrope" else {}
    rope = {"rope_type": scaling, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8, **factors}
    short = {"original_max_position_embeddings": 8} if scaling == "longrope" else {"max_position_embeddings": 8}
    kind = "phi3" if scaling == "longrope" else "llama"
    changed = {**GROUPED, **short, "rope_parameters": rope}
    model = prepare_backbone(other(kind, **changed), "causal", layout)
    assert steady_length(model) == 8
    assert steady_length(other("qwen2")) is None
    assert steady_length(tiny_backbone("gemma3_text")) is None
    rows = items((8, 1, 7))
    assert (ours(model, rows, "causal") - alone(other(kind, **changed), rows)).abs().max() <= 1e-5
    with pytest.raises(InputError, match=r"item of 9 tokens.*max_length=8"):
        ours(model, items((9, 1)), "causal")


def test_a_model_that_needs_more_than_tokens_is_refused():
    t5 = other("t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=300)
    with pytest.raises(SpecError, match="t5 backbone does not run on tokens alone"):
        natural_mask(t5)


def test_a_model_that_fails_on_tokens_in_a_way_of_its_own_is_refused_by_its_name():
    """Funnel cannot shorten a text of two tokens again and again."""
    funnel = AutoConfig.for_model("funnel", architectures=["FunnelModel"], d_model=32, n_head=4, d_head=8, d_inner=64)
    with pytest.raises(SpecError, match="funnel backbone does not run on tokens alone: RuntimeError"):
        prepare_backbone(AutoModel.from_config(funnel).eval(), "bidirectional", None)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("clip_text_model", {**SMALL, "eos_token_id": 1}),  # takes no embeddings in place of tokens
        ("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "vocab_size": 300}),  # writes into them
    ],
)
def test_a_backbone_that_takes_tokens_and_nothing_in_their_place_reads_texts(kind, changed, layout):
    model = prepare_backbone(other(kind, **changed), "causal", layout)
    assert (ours(model, items(), "causal") - alone(other(kind, **changed), items())).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["nemotron", "stablelm"])
def test_a_text_alone_is_read_both_ways_as_it_is_in_company(kind):
    """Where nothing is padded there is no mask, and their sdpa attention then has its own."""
    model, reference, rows = (
        prepare_backbone(other(kind, **GROUPED), "bidirectional", None),
        other(kind, **GROUPED),
        items(),
    )
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        sees = [reference(input_ids=row[None], attention_mask=torch.zeros(1, 1, len(row), len(row))) for row in rows]
    due = torch.cat([seen.last_hidden_state[0] for seen in sees])
    each = torch.cat([ours(model, [row], "bidirectional") for row in rows])
    assert max((told - due).abs().max() for told in (ours(model, rows, "bidirectional"), each)) <= 1e-5


def test_a_backbone_that_fails_under_another_mask_is_told_which_it_has():
    changed = {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 8}
    with pytest.raises(SpecError, match=r"cannot have mask='bidirectional': it is causal by make; use mask='causal'"):
        prepare_backbone(other("modernbert-decoder", **changed), "bidirectional", None)


def test_texts_that_are_summed_up_some_tokens_at_a_time_are_not_read_both_ways():
    """DeepSeek-V4 looks at sums of four tokens, into which padding would go."""
    changed = {
        **{**GROUPED, "num_key_value_heads": 1, "q_lora_rank": 16, "o_lora_rank": 8, "o_groups": 2, "index_n_heads": 2},
        **{"index_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        **{"layer_types": ["compressed_sparse_attention"] * 2, "sliding_window": 8, "qk_rope_head_dim": 4},
    }
    assert not is_packed(prepare_backbone(other("deepseek_v4", **changed), "causal", None))
    with pytest.raises(SpecError, match="does not compute padded what it should"):
        prepare_backbone(other("deepseek_v4", **changed), "bidirectional", None)


def test_a_table_of_positions_is_that_of_the_texts():
    """GIT's tower has one too, of 17 rows; Whisper's configuration says no length beside its own."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    assert table_of(other("git", **SMALL, vision_config=vision)) == 128
    whisper = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": 300,
        "pad_token_id": 0,
    }
    assert table_of(other("whisper", **whisper)) == 448


def test_what_transformers_itself_pads_wrongly_is_refused():
    """FNet's Fourier transform reads the padding."""
    with pytest.raises(SpecError, match="fnet backbone does not compute padded what it should"):
        prepare_backbone(other("fnet", **SMALL), "bidirectional", None)


def test_an_unknown_family_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'qwen3'"):
        build_backbone({"model_type": "quen3"})


def test_a_configuration_that_makes_no_model_is_an_error():
    with pytest.raises(SpecError, match="qwen3 model cannot be built"):
        build_backbone(
            {"model_type": "qwen3", **BACKBONES["qwen3"], "num_attention_heads": 4, "layer_types": ["nothing"]}
        )


def test_a_folder_gives_the_same_states_and_a_broken_one_an_error(tmp_path):
    model = tiny_backbone("xlm-roberta")
    model.save_pretrained(tmp_path / "whole")
    again = prepare_backbone(load_backbone(tmp_path / "whole"), "bidirectional", None)
    assert (ours(again, items(), "bidirectional") - alone(model, items())).abs().max() <= 1e-5
    with pytest.raises(LoadError, match="no backbone at"):
        load_backbone(tmp_path / "none")
    state = {k: v for k, v in model.state_dict().items() if "layer.1.output.dense" not in k}
    model.save_pretrained(tmp_path / "broken", state_dict=state)
    with pytest.raises(LoadError, match=r"lacks weights: encoder\.layer\.1\.output\.dense"):
        load_backbone(tmp_path / "broken")
    model.config.intermediate_size += 1
    model.config.save_pretrained(tmp_path / "whole")
    with pytest.raises(LoadError, match="no backbone at"):
        load_backbone(tmp_path / "whole")
    (tmp_path / "broken" / "model.safetensors").unlink()
    torch.save({"embeddings.LayerNorm.weight": tmp_path}, tmp_path / "broken" / "pytorch_model.bin")
    with pytest.raises(LoadError, match="no backbone at"):
        load_backbone(tmp_path / "broken")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_padding_that_a_text_says_itself_is_passed_over_as_the_model_does(layout):
    kind = "xlm-roberta"
    rows = items((6, 1, 9))
    rows[0][2] = rows[2][0] = rows[2][4] = rows[2][5] = made(kind).config.pad_token_id
    model = prepare_backbone(made(kind), "bidirectional", layout)
    assert (ours(model, rows, "bidirectional") - alone(made(kind), rows)).abs().max() <= 1e-5
