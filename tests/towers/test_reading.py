"""Layers are read as transformers gives them, no more blocks run than must, and one backbone serves many threads."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from mmembed import compose
from mmembed.errors import SpecError
from mmembed.nn.interventions import Places, build_intervention
from mmembed.nn.spans import Spans
from mmembed.testing import BACKBONES, PADDED, byte_tokenizer, tiny_backbone, tiny_embedder
from mmembed.towers.backbone import attended, final_norm, layer_states, natural_mask, prepare_backbone, states
from mmembed.towers.reading import Change, layers_of

LENGTHS = (6, 1, 9)
LAYOUTS = (None, "padded")


def rows():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(2, 250, (n,), generator=generator) for n in LENGTHS]


def prepared(kind, layout=None):
    mask = natural_mask(tiny_backbone(kind))
    return prepare_backbone(tiny_backbone(kind), mask, layout), Spans.of(LENGTHS, mask)


def read(model, spans, layers, change=None):
    with torch.no_grad():
        return layer_states(model, torch.cat(rows()), None, spans, layers, change=change)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_layers_are_the_hidden_states_of_transformers(kind, layout):
    model, spans = prepared(kind, layout)
    plain = tiny_backbone(kind)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        outs = [plain(input_ids=row[None], output_hidden_states=True) for row in rows()]
    for layers in ((-2,), (0,), (1, 0), (-1, -2), (1, -1, 1)):
        told = read(model, spans, layers)
        due = [[out.last_hidden_state if k == -1 else out.hidden_states[k] for k in layers] for out in outs]
        assert (told - torch.cat([torch.cat(own) for own in due], 1)).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_blocks_behind_the_deepest_layer_do_not_run(kind, layout):
    model, spans = prepared(kind, layout)
    ran = []
    for number, block in enumerate(layers_of(model)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    depth = model.config.num_hidden_layers
    for layers, blocks in (((0,), 0), ((1,), 1), ((1, 0), 1), ((-2,), depth - 1), ((0, -1), depth), ((-1,), depth)):
        ran.clear()
        read(model, spans, layers)
        assert ran == list(range(blocks)), layers


def test_a_backbone_is_read_by_many_threads_at_once():
    model, spans = prepared("qwen3")
    intervention = build_intervention({"kind": "token_prepending", "start": 0}, depth=2, heads=4)
    ends = torch.tensor([5, 6, 15])
    change = Change(intervention, Places(ends, ends - torch.tensor([3, 0, 3])))
    asked = [((-1,), None), ((1,), None), ((-1,), change), ((0, 1), None), ((2,), change)]
    due = [read(model, spans, layers, how) for layers, how in asked]
    assert (due[0] - due[2]).abs().max() > 1e-3
    with ThreadPoolExecutor(5) as pool:
        for _ in range(10):
            told = list(pool.map(lambda each: read(model, spans, *each), asked * 2))
            assert all(torch.equal(a, b) for a, b in zip(told, due * 2, strict=True))


def test_what_was_asked_of_a_forward_is_gone_after_it():
    model, spans = prepared("llama")
    before = states(model, torch.cat(rows()), None, spans)
    for _ in range(3):
        read(model, spans, (1,))
    with pytest.raises(IndexError):
        layer_states(model, torch.tensor([10_000] * 16), None, spans, (1,))
    assert torch.equal(states(model, torch.cat(rows()), None, spans), before)
    assert len(layers_of(model)[0]._forward_hooks) == 1


def test_attention_is_read_before_its_output_projection():
    model, spans = prepared("llama")
    seen = []
    handle = model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    states(model, torch.cat(rows()), None, spans)
    handle.remove()
    assert torch.equal(attended(model, torch.cat(rows()), None, spans, 1), seen[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind != "xlm-roberta"])
def test_the_final_norm_is_found(kind, layout):
    model, _ = prepared(kind, layout)
    name = {"lfm2": "embedding_norm", "modernbert": "final_norm"}.get(kind, "norm")
    assert final_norm(model) is getattr(model, name)


def test_a_backbone_without_a_final_norm_says_so():
    with pytest.raises(SpecError, match="no final norm"):
        final_norm(prepared("xlm-roberta")[0])


FEW = torch.tensor([0, 5, 6, 15])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_states_of_some_tokens_are_those_among_all(kind, layout):
    model, spans = prepared(kind, layout)
    for layers in ((-1,), (1,), (0,), (-2,), (1, -1)):
        due = read(model, spans, layers)[:, FEW]
        with torch.no_grad():
            told = layer_states(model, torch.cat(rows()), None, spans, layers, only=FEW)
        assert told.shape == due.shape
        assert (told - due).abs().max() <= 1e-5, layers


def narrowed(model, spans, layers=(-1,), only=FEW, **how):
    """Tokens that go through the parts of the last block that is read, by their names in it."""
    block = layers_of(model)[(layers[0] % (model.config.num_hidden_layers + 1)) - 1]
    through = {}
    handles = [
        part.register_forward_hook(
            lambda _, args, out, name=name: through.update({name: (out.shape[1], args[0].shape[1])})
        )
        for name, part in block.named_modules()
        if isinstance(part, torch.nn.Linear)
    ]
    layer_states(model, torch.cat(rows()), None, spans, layers, only=only, **how)
    for handle in handles:
        handle.remove()
    return through


@pytest.mark.parametrize("layers", [(-1,), (1,)])
@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind not in PADDED])
def test_only_tokens_that_are_read_go_through_the_deepest_block(kind, layers):
    model, spans = prepared(kind)
    through = narrowed(model, spans, layers)
    mlp = [out for name, (out, _) in through.items() if any(part in name for part in ("mlp", "intermediate", "o_proj"))]
    assert mlp
    assert set(mlp) == {len(FEW)}
    most = narrowed(model, spans, layers, only=torch.arange(15))
    assert {out for out, _ in most.values()} == {16}, "where most are read, all go through once"


def test_of_a_short_row_all_tokens_go_through_the_deepest_block(monkeypatch):
    model, spans = prepared("qwen3")
    for least, through in ((16, len(FEW)), (17, 16)):
        monkeypatch.setattr("mmembed.towers.reading.LEAST", least)
        assert {out for name, (out, _) in narrowed(model, spans).items() if "mlp" in name} == {through}


def test_no_query_is_made_that_nothing_asks_for():
    model, spans = prepared("qwen3")
    seen = []
    block = layers_of(model)[-1].self_attn
    narrowed(model, spans)  # tried once on a probe, which runs whole
    block.q_proj.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    narrowed(model, spans)
    assert seen == [1, len(FEW)]


def test_gradients_of_some_tokens_are_those_among_all():
    sides = []
    for only in (FEW, None):
        model, spans = prepared("qwen3")
        model.double()
        told = layer_states(model, torch.cat(rows()), None, spans, only=only)[0]
        (told if only is not None else told[FEW]).square().sum().backward()
        sides.append({name: weight.grad for name, weight in model.named_parameters()})
    assert sides[0].keys() == sides[1].keys()
    for name, grad in sides[0].items():
        assert (grad - sides[1][name]).abs().max() <= 1e-6 * (1 + grad.abs().max()), name  # norms are in fp32


def test_a_block_of_a_way_of_its_own_runs_whole():
    """One that mixes its tokens behind the door of attention would give few tokens other states."""
    model, spans = prepared("llama")
    mlp = layers_of(model)[-1].mlp
    mlp.register_forward_pre_hook(lambda _, args: (args[0] - args[0].mean(1, keepdim=True),))
    due = read(model, spans, (-1,))[:, FEW]
    with torch.no_grad():
        told = layer_states(model, torch.cat(rows()), None, spans, only=FEW)
    assert torch.equal(told, due)


def test_blocks_that_are_run_again_for_their_gradients_run_whole():
    model, spans = prepared("llama")
    model.gradient_checkpointing_enable()
    assert {out for name, (out, _) in narrowed(model, spans).items() if "mlp" in name} == {4}
    model.train()
    assert {out for out, _ in narrowed(model, spans).values()} == {16}


def test_a_thread_that_compiles_says_nothing_of_what_others_read():
    """torch's own flag that something is being compiled is one for all threads."""
    texts = [f"query number {k}, of more than the tokens from which only some are read" for k in range(3)]
    embedders = [tiny_embedder(), tiny_embedder().respecified(layers=(1,))]
    due = [embedder.encode(texts) for embedder in embedders]
    going = True

    def compiles():
        factor = 0
        while going:
            factor += 1
            torch.compile(lambda x, by=factor: (x * by).sin().sum(-1), backend="eager")(torch.randn(8, 8))

    other = threading.Thread(target=compiles)
    other.start()
    try:
        for _ in range(20):
            for embedder, expected in zip(embedders, due, strict=True):
                assert np.abs(embedder.encode(texts) - expected).max() <= 1e-5
    finally:
        going = False
        other.join()
        torch.compiler.reset()


def test_a_block_that_runs_again_and_again_is_read_at_its_end():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    albert = AutoConfig.for_model("albert", vocab_size=300, pad_token_id=256, embedding_size=16, **shape)
    for pooling in ("first", "mean"):
        model = AutoModel.from_config(copy.deepcopy(albert)).eval()
        due = model(byte_tokenizer()("x", return_tensors="pt")["input_ids"]).last_hidden_state[0]
        due = due[0] if pooling == "first" else due.mean(0)
        ours = compose(backbone=model, tokenizer=byte_tokenizer(), device="cpu", pooling=pooling, normalize=False)
        alone, together = ours.encode(["x"]), ours.encode(["a text of some more words", "x"])[1:]
        for vectors in (alone, together):
            assert np.abs(vectors - due.detach().numpy()).max() <= 1e-5
    with pytest.raises(SpecError, match="cannot be told"):
        ours.respecified(layers=(1,)).encode(["x"])


def test_blocks_that_hold_tokens_in_an_order_of_their_own_are_read_at_their_end():
    config = AutoConfig.for_model(
        "xlnet", vocab_size=300, pad_token_id=256, d_model=32, n_layer=2, n_head=4, d_inner=64
    )
    ours = compose(
        backbone=AutoModel.from_config(config).eval(), tokenizer=byte_tokenizer(), device="cpu", pooling="mean"
    )
    texts = ["abc", "something else of more tokens", "xyz"]
    assert np.abs(ours.encode(texts) - np.concatenate([ours.encode([text]) for text in texts])).max() <= 1e-5
    with pytest.raises(SpecError, match="order of their own"):
        ours.respecified(layers=(1,))


def test_a_block_that_gives_a_list_is_read_as_one_that_gives_a_tuple():
    config = AutoConfig.for_model("openai-gpt", vocab_size=300, n_embd=32, n_layer=3, n_head=4)
    model = AutoModel.from_config(config).eval()
    ids = torch.arange(20, 27)
    with torch.no_grad():
        due = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-2][0]
        told = layer_states(prepare_backbone(model, "causal", None), ids, None, Spans.of([7], "causal"), (-2,))[0]
    assert (told - due).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("squeezebert", {"embedding_size": 32}, "give no states of its tokens"),
        (
            "gemma3n_text",  # a state a stream
            {
                **{
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "vocab_size_per_layer_input": 300,
                    "num_kv_shared_layers": 0,
                },
                **{"hidden_size_per_layer_input": 8, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 2},
            },
            "give no states of its tokens",
        ),
    ],
)
def test_blocks_that_hold_something_else_than_one_state_a_token_are_read_at_their_end(kind, changed, said):
    shape = {"vocab_size": 300, "pad_token_id": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"hidden_size": 32, "intermediate_size": 64}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**shape, **changed})).eval()
    ours = compose(backbone=model, tokenizer=byte_tokenizer(), device="cpu", pooling="mean")
    assert np.abs(ours.encode(["abc", "something else"])[:1] - ours.encode(["abc"])).max() <= 1e-5
    with pytest.raises(SpecError, match=said):
        ours.respecified(layers=(1,))
