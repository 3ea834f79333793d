"""Compiled blocks give what a backbone's own give: one graph a kind of block, for rows of any length."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from mmembed import compose, testing
from mmembed.errors import SpecError
from mmembed.nn import attention, row
from mmembed.nn.precision import cast
from mmembed.nn.spans import Spans
from mmembed.testing import tiny_backbone, tiny_embedder, tiny_vlm
from mmembed.towers import compiled, lean, routers
from mmembed.towers.backbone import layer_states, prepare_backbone
from mmembed.towers.compiled import CompiledBlock, compile_blocks, is_compiled
from mmembed.towers.reading import layers_of

from ..conftest import needs_compiler, picture
from .test_backbone import made

KINDS = [
    ("qwen3", "causal"),
    ("mistral", "bidirectional"),
    ("gemma2", "causal"),
    ("gemma3_text", "bidirectional"),
    ("granite", "causal"),
    ("modernbert", "bidirectional"),
]
"""Plain; windows, and those of a decoder that is read both ways; soft caps; norms around one; scales; an encoder."""
ROWS = ((5, 9, 3), (2,), (7, 7, 1, 12), (1,))
"""Lengths of the items of rows; a row of one token is left to the block's own forward."""


@pytest.fixture(autouse=True)
def _apart():
    """Graphs of one test are neither met nor counted by another."""
    counters.clear()
    yield
    compiled._compiled.cache_clear()
    torch.compiler.reset()


@pytest.fixture
def _traced(monkeypatch):
    """Traced as for any backend, and run without making kernels, which takes ten seconds a kind of block."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def prepared(kind, mask, **changed):
    return prepare_backbone(made(kind, **changed), mask, None).eval()


def row_of(lengths, mask):
    ids = torch.randint(5, 250, (sum(lengths),), generator=torch.Generator().manual_seed(len(lengths)))
    return ids, Spans.of(lengths, mask)


def counted(monkeypatch):
    """How often a graph is traced and run in place of a block's own forward."""
    seen = {"calls": 0}
    before = compiled._compiled

    def run(own):
        seen["calls"] += 1
        return before(own)

    run.cache_clear = before.cache_clear
    monkeypatch.setattr(compiled, "_compiled", run)
    return seen


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(("kind", "mask"), KINDS)
def test_a_row_has_the_same_states_compiled(kind, mask, monkeypatch):
    own = prepared(kind, mask)
    ours = compile_blocks(copy.deepcopy(own))
    calls = counted(monkeypatch)
    with torch.inference_mode():
        for lengths in ROWS:
            ids, spans = row_of(lengths, mask)
            off = (layer_states(ours, ids, None, spans) - layer_states(own, ids, None, spans)).abs().max()
            assert off < 1e-5, (lengths, off)
    assert calls["calls"] == 3 * len(layers_of(ours))
    assert [type(block).__name__ for block in layers_of(ours)] == [type(block).__name__ for block in layers_of(own)]


@pytest.mark.usefixtures("_traced")
def test_one_graph_serves_all_blocks_and_all_lengths():
    ours = compile_blocks(prepared("qwen3", "causal", num_hidden_layers=5))
    with torch.inference_mode():
        for lengths in ((5, 9, 3), (4, 2), (7, 7, 1, 12), (40,)):
            ids, spans = row_of(lengths, "causal")
            layer_states(ours, ids, None, spans)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_a_tower_inside_a_vision_language_model_has_a_graph_of_its_own(kind, tmp_path):
    tiny_vlm(tmp_path, kind)
    embedder = compose(backbone=tmp_path, tokenizer=tmp_path, vision={"library": "native"}, device="cpu")
    items = [picture(0), picture(1, height=70), "words", (picture(2, width=90), "and words")]
    due = embedder.encode(items)
    embedder.compile()
    for count in (4, 2, 3):
        assert np.abs(embedder.encode(items[:count]) - due[:count]).max() < 1e-5
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.usefixtures("_traced")
@pytest.mark.skipif(not lean.ONEDNN, reason="a torch without oneDNN")
def test_products_stay_onednn_s_on_packed_weights_in_a_graph(monkeypatch):
    embedder, texts = tiny_embedder(), ["one", "two words here"]
    due = embedder.encode(texts)
    packed = []
    product = lean._product
    monkeypatch.setattr(lean, "_product", lambda *given: (packed.append(given[1].is_mkldnn), product(*given))[1])
    embedder.encode(texts)
    plain = len(packed)
    embedder.compile()
    packed.clear()
    assert np.abs(embedder.encode(texts) - due).max() < 1e-5
    assert all(packed)
    assert len(packed) == plain, "layers beside each other are one product, inside a graph too"
    linear = [part for part in embedder.model.modules() if isinstance(part, lean.LeanLinear)]
    assert all(part.beside is None or part.beside._traced is None for part in linear)
    again = pickle.loads(pickle.dumps(embedder.model))
    assert all(
        lean._COPIES[part.weight] is part.packed for part in again.modules() if isinstance(part, lean.LeanLinear)
    )
    gate = layers_of(embedder.model.backbone)[0].mlp.gate_proj
    gate.weight = torch.nn.Parameter(gate.weight * 2)  # no copy is known by it
    assert np.abs(embedder.encode(texts) - due).max() > 1e-3
    gate.weight = torch.nn.Parameter(gate.weight / 2)
    assert np.abs(embedder.encode(texts) - due).max() < 1e-5


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("other", ["k_proj", "v_proj"])
def test_in_a_graph_a_layer_asked_with_another_input_computes_by_itself(other):
    class Asking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(16, out) for out in (8, 4, 4))

        def forward(self, x):
            return torch.cat([part(x * 2 if name == other else x) for name, part in self.named_children()], dim=-1)

    own = [Asking() for _ in range(3)]
    ours = [lean.lean(copy.deepcopy(each)) for each in own]
    graph = torch.compile(Asking.forward, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for rows in (5, 9):
            x = torch.randn(rows, 16)
            for each, due in zip(ours, own, strict=True):
                assert torch.allclose(graph(each, x), due(x), atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    assert all(each.q_proj.beside._traced is None for each in ours if lean.ONEDNN)


@pytest.mark.skipif(not lean.ONEDNN, reason="a torch without oneDNN")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outs", [[8], [8, 4]])
@pytest.mark.parametrize("shape", [(1, 7, 16), (3, 16), (1, 130, 16)])
def test_a_product_is_an_operator_as_torch_wants_them(shape, outs, bias):
    x, weights, biases = torch.randn(shape), [torch.randn(out, 16) for out in outs], [torch.randn(out) for out in outs]
    given = x, weights, biases if bias else []
    torch.library.opcheck(torch.ops.mmembed.linear.default, given)
    due = torch.nn.functional.linear(x, torch.cat(weights), torch.cat(biases) if bias else None)
    assert torch.allclose(torch.ops.mmembed.linear(*given), due, atol=1e-5)


@pytest.mark.usefixtures("_traced")
def test_a_short_row_goes_through_the_graph_in_the_deepest_block_too(monkeypatch):
    """It has hooks, which do nothing while all tokens go through it; one of a caller's has the block run as it is."""
    monkeypatch.setattr("mmembed.towers.reading.LEAST", 64)
    embedder = tiny_embedder()
    embedder.encode("words")
    monkeypatch.setattr("mmembed.towers.reading.LEAST", 2)
    due = embedder.encode("some words")
    monkeypatch.setattr("mmembed.towers.reading.LEAST", 64)
    embedder.compile()
    calls, blocks = counted(monkeypatch), layers_of(embedder.model.backbone)
    assert np.abs(embedder.encode("some words") - due).max() < 1e-5
    assert calls["calls"] == len(blocks)
    seen = []
    blocks[-1].mlp.register_forward_hook(lambda *_: seen.append(1))
    embedder.encode("some words")
    assert seen == [1]
    assert calls["calls"] == 2 * len(blocks) - 1


@needs_compiler
def test_kernels_give_the_same_and_an_embedder_says_so():
    embedder = tiny_embedder()
    texts = ["one", "two words here", "and a text of some more words than those", "x"]
    due = embedder.encode(texts)
    assert embedder.compile() is embedder
    assert is_compiled(embedder.model)
    assert np.abs(embedder.encode(texts) - due).max() < 1e-5
    assert np.abs(embedder.encode(texts[:2]) - due[:2]).max() < 1e-5
    again = pickle.loads(pickle.dumps(embedder.model.backbone))
    assert is_compiled(again)
    embedder.compile()
    assert sum(kind is CompiledBlock for kind in type(layers_of(embedder.model.backbone)[0]).__mro__) == 1


@pytest.mark.usefixtures("_traced")
def test_what_a_graph_may_not_hold_runs_as_it_is(monkeypatch):
    ours = compile_blocks(prepared("qwen3", "causal"))
    calls = counted(monkeypatch)
    ids, spans = row_of((5, 9), "causal")
    states = layer_states(ours, ids, None, spans)
    states.sum().backward()
    assert ours.get_input_embeddings().weight.grad is not None
    with torch.no_grad():
        layer_states(ours.train(), ids, None, spans)
        with torch.autocast("cpu", torch.bfloat16):
            layer_states(ours.eval(), ids, None, spans)
    assert calls["calls"] == 0


@pytest.mark.usefixtures("_traced")
def test_what_torch_does_not_compile_to_the_same_stays_as_it_was(monkeypatch):
    embedder = tiny_embedder()
    due = embedder.encode(["a text"])
    right = attention.in_row

    def off_op(*args, **options):  # within the graph alone
        return right(*args, **options) * (1.01 if row._now.get(None) is not None else 1)

    monkeypatch.setattr(attention, "in_row", off_op)
    with pytest.raises(SpecError, match="computes something else"):
        embedder.compile()
    assert not is_compiled(embedder.model)
    monkeypatch.setattr(attention, "in_row", right)
    kind = type(layers_of(embedder.model.backbone)[0])
    forward = kind.forward

    def broken(*args, **options):
        torch._dynamo.graph_break()
        return forward(*args, **options)

    monkeypatch.setattr(kind, "forward", broken)
    compiled._compiled.cache_clear()
    with pytest.raises(SpecError, match="torch does not compile a qwen3"):
        embedder.compile()
    assert not is_compiled(embedder.model)
    assert np.array_equal(embedder.encode(["a text"]), due)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(
    "told",
    [{}, {"bidirectional_from": 1}, {"positions": {"kind": "self_extend", "group": 3, "near": 8}}],
    ids=["starts that are kept", "layers that are open", "groups"],
)
def test_what_a_row_has_to_say_goes_past_the_graph(told, monkeypatch):
    texts = ["an instruction of some length: one", "an instruction of some length: another", "a text " * 9]
    embedder = tiny_embedder(backbone=tiny_backbone(num_hidden_layers=3), **told)
    due = [embedder.encode([text]) for text in texts]
    embedder.cache(prefixes=0 if told else 2**20).compile()
    calls = counted(monkeypatch)
    for turn in range(2):
        for text, vector in zip(texts, due, strict=True):
            assert np.abs(embedder.encode([text]) - vector).max() < 1e-5, (turn, text)
    assert calls["calls"] >= 2 * len(texts), "two of three blocks at least: of the third one token may be read"
    assert bool(embedder.model.prefix_cache.store.hits) == (not told)


@pytest.mark.usefixtures("_traced")
def test_hooks_that_come_after_a_graph_are_called(monkeypatch):
    ours = compile_blocks(prepared("qwen3", "causal", num_hidden_layers=4))
    calls = counted(monkeypatch)
    ids, spans = row_of((5, 9), "causal")
    seen = []
    routed = compile_blocks(prepared("qwen3_moe", "causal"))
    with torch.inference_mode():
        due = layer_states(ours, ids, None, spans)
        handle = layers_of(ours)[1].mlp.register_forward_hook(lambda _, __, out: seen.append(out))
        assert (layer_states(ours, ids, None, spans) - due).abs().max() < 1e-5
        handle.remove()
        layer_states(ours, ids, None, spans)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            layers_of(other)[0].self_attn.register_forward_hook(lambda _, __, out: seen.append(out))
            layer_states(other, ids, None, spans)
        with routers.recorded(routed) as said:
            layer_states(routed, ids, None, spans)
    assert len(seen) == 3, "those of copies too"
    assert calls["calls"] == 4 + 3 + 4 + 3 + 3
    assert len(said) == len(layers_of(routed))


def test_a_padded_backbone_is_not_compiled():
    with pytest.raises(SpecError, match="packed"):
        tiny_embedder(backbone=made("qwen3"), layout="padded").compile()
    assert "lfm2" in testing.PADDED
    with pytest.raises(SpecError, match="packed"):
        tiny_embedder(backbone=made("lfm2")).compile()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3_text"])
def test_kernels_of_half_precision_are_as_near_to_fp32_as_the_block_s_own(kind):
    exact = prepared(kind, "causal", hidden_size=128, head_dim=64).cuda()
    half = cast(prepared(kind, "causal", hidden_size=128, head_dim=64).cuda(), torch.bfloat16)
    ours = compile_blocks(copy.deepcopy(half))
    with torch.inference_mode():
        for lengths in ((5, 9, 3), (70, 300, 12, 12), (2,)):
            ids, spans = row_of(lengths, "causal")
            ids, spans = ids.cuda(), spans.to("cuda")
            due = layer_states(exact, ids, None, spans)
            own, off = ((layer_states(m, ids, None, spans) - due).abs().max() for m in (half, ours))
            assert off <= 2 * own + 1e-3, (lengths, own, off)
    assert is_compiled(ours)


def test_the_blocks_of_each_class_are_counted_by_themselves():
    """torch counts forms by code, and transformers' wrapper of a block's forward is one for all."""
    own = [type(layers_of(tiny_backbone(kind))[0]) for kind in ("qwen3", "llama")]
    assert own[0].forward.__code__ is own[1].forward.__code__
    codes = {compiled._compiled(kind)._torchdynamo_orig_callable.__code__ for kind in own}
    assert len(codes) == 2
