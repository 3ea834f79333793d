"""Lean parts give what the parts' own classes give, and are those parts in everything else."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mmembed import compose
from mmembed.nn import kernels
from mmembed.testing import BACKBONES, VLMS, byte_tokenizer, tiny_backbone, tiny_embedder, tiny_vlm
from mmembed.towers import lean as lean_module
from mmembed.towers.compiled import CompiledBlock
from mmembed.towers.lean import (
    ROWS,
    FeedForwardAtATime,
    LeanLinear,
    LeanNorm,
    LeanNormAroundOne,
    RowsAtATime,
    lean,
)
from mmembed.towers.reading import layers_of

IDS = torch.randint(0, 256, (3, 300), generator=torch.Generator().manual_seed(0))
"""More tokens than an MLP takes at a time."""
FORMS = (LeanLinear, LeanNorm, LeanNormAroundOne, RowsAtATime, FeedForwardAtATime)


def states(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).last_hidden_state


def parts(model: nn.Module) -> set[type]:
    return {form for module in model.modules() for form in FORMS if isinstance(module, form)}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_gives_the_same_states(kind: str):
    assert IDS.numel() > ROWS
    own = tiny_backbone(kind)
    leaner = lean(copy.deepcopy(own))
    with torch.no_grad():
        due = states(own)
        assert torch.allclose(states(leaner), due, rtol=0, atol=1e-5 * float(due.abs().max()))
    assert LeanLinear in parts(leaner)
    assert not parts(own)


@pytest.mark.parametrize("kind", VLMS)
def test_a_vision_language_model_gives_the_same_states(kind: str, tmp_path):
    own = tiny_vlm(tmp_path, kind)
    leaner = lean(copy.deepcopy(own))
    with torch.no_grad():
        due = states(own)
        assert torch.allclose(states(leaner), due, rtol=0, atol=1e-5 * float(due.abs().max()))


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("qwen3", LeanNorm), ("llama", LeanNorm), ("mistral", LeanNorm), ("gemma3_text", LeanNormAroundOne)],
)
def test_decoders_have_all_their_parts_lean(kind: str, norm: type):
    leaner = lean(tiny_backbone(kind))
    for layer in leaner.layers:
        assert isinstance(layer.mlp, RowsAtATime)
        assert isinstance(layer.input_layernorm, norm)
        assert isinstance(layer.self_attn.q_proj, LeanLinear)
    assert isinstance(leaner.norm, norm)


def test_blocks_of_encoders_widen_some_rows_at_a_time():
    leaner, seen = lean(tiny_backbone("xlm-roberta")), []
    (own, block) = leaner.encoder.layer
    assert isinstance(block, FeedForwardAtATime)
    block.intermediate.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        states(leaner)
    assert max(seen) == ROWS
    assert sum(seen) == IDS.numel()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(own)))
    assert isinstance(twin, FeedForwardAtATime)
    own.feed_forward_chunk = lambda states: states.cumsum(1)  # rows that know of each other
    own.__class__ = type(own).__bases__[1]
    assert not isinstance(lean(nn.Sequential(own))[0], FeedForwardAtATime)


def test_with_gradients_the_own_forward_runs():
    own = tiny_backbone()
    leaner = lean(copy.deepcopy(own))
    due, told = states(own), states(leaner)
    assert torch.equal(told, due)
    due.sum().backward()
    told.sum().backward()
    for mine, its in zip(leaner.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


def test_in_other_precisions_the_own_forward_runs():
    own = tiny_backbone().to(torch.float16)
    leaner = lean(copy.deepcopy(own))
    assert RowsAtATime in parts(leaner)
    with torch.no_grad():
        assert torch.equal(states(leaner), states(own))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(states(lean(tiny_backbone())), states(tiny_backbone()))


def test_what_is_saved_copied_and_pickled_stays():
    own = tiny_backbone()
    leaner = lean(copy.deepcopy(own))
    assert list(leaner.state_dict()) == list(own.state_dict())
    assert [type(leaner).__name__] + [type(m).__name__ for m in leaner.layers[0].children()] == [
        type(own).__name__,
        *(type(m).__name__ for m in own.layers[0].children()),
    ]
    block = leaner.layers[0]
    for twin in (copy.deepcopy(block.mlp), copy.copy(block.mlp), pickle.loads(pickle.dumps(block.mlp))):
        assert isinstance(twin, RowsAtATime)
        assert isinstance(twin, type(own.layers[0].mlp))
        rows = torch.randn(1, ROWS + 9, own.config.hidden_size)
        with torch.no_grad():
            assert torch.equal(twin(rows), block.mlp(rows))
    assert copy.deepcopy(block.mlp).up_proj.weight is not block.mlp.up_proj.weight
    before = [type(module) for module in leaner.modules()]
    assert [type(module) for module in lean(leaner).modules()] == before


def test_a_norm_serves_whatever_device_things_are_made_on():
    norm = lean(tiny_backbone("qwen3")).norm
    assert isinstance(norm, LeanNorm)
    norm.variance_epsilon = 1.5e-6  # one that was not asked for before
    rows = torch.randn(2, len(norm.weight))
    with torch.no_grad():
        with torch.device("meta"):
            first = norm(rows)
        assert torch.equal(norm(rows), first)


def test_hooks_of_a_part_run_once():
    leaner, seen = lean(tiny_backbone()), []
    leaner.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        states(leaner)
    assert seen == [1]


class CentredNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return torch.nn.functional.layer_norm(x, (8,), self.weight, None, self.eps)


class Neighbours(nn.Module):
    """Its rows know of each other."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(self.up(x).cumsum(1))


class Apart(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def test_parts_of_another_make_are_left_alone():
    model = lean(nn.ModuleDict({"norm": CentredNorm(), "mlp": Neighbours()}))
    assert type(model["norm"]) is CentredNorm
    assert type(model["mlp"]) is Neighbours
    assert isinstance(lean(nn.ModuleDict({"mlp": Apart()}))["mlp"], RowsAtATime)


@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 0, 8), (5, 8), (2, 3, 5, 8)])
def test_a_linear_layer_takes_every_shape(shape: tuple[int, ...]):
    layer = nn.Linear(8, 3)
    rows = torch.randn(*shape)
    with torch.no_grad():
        due = layer(rows)
        told = lean(nn.Sequential(layer))[0](rows)
    assert told.shape == due.shape
    assert torch.allclose(told, due, atol=1e-6)


def test_a_loaded_embedder_is_lean_and_saves_what_it_did():
    embedder = tiny_embedder()
    assert {LeanLinear, LeanNorm, RowsAtATime} <= parts(embedder.model)
    assert not any("lean" in name.lower() for name in embedder.model.state_dict())


def test_a_packed_weight_follows_the_weight_it_is_a_copy_of():
    layer = lean(nn.Sequential(nn.Linear(48, 32)))[0]
    rows = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))

    def due() -> torch.Tensor:
        return nn.functional.linear(rows, layer.weight, layer.bias)

    with torch.no_grad():
        assert layer.packed is not None
        assert torch.allclose(layer(rows), due(), atol=1e-6)
        layer.weight.mul_(2)
        assert torch.allclose(layer(rows), due(), atol=1e-6)
        layer.load_state_dict({"weight": torch.ones(32, 48), "bias": torch.zeros(32)})
        assert torch.allclose(layer(rows), due(), atol=1e-5)
        layer.weight = nn.Parameter(torch.full((32, 48), 3.0))
        assert torch.allclose(layer(rows), due(), atol=1e-5)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
        twin.weight.zero_()
        assert torch.allclose(twin(rows), layer.bias.expand(10, -1))
        assert torch.allclose(layer(rows), due(), atol=1e-5)


def test_a_packed_weight_is_no_copy_of_one_that_lay_where_another_lies_now():
    layer = lean(nn.Sequential(nn.Linear(512, 512)))[0]
    rows = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))

    def is_right() -> bool:
        return torch.allclose(layer(rows), nn.functional.linear(rows, layer.weight, layer.bias), atol=1e-3)

    with torch.no_grad():
        for _ in range(5):
            layer.weight = nn.Parameter(torch.randn(512, 512))
            assert is_right()
            layer.weight = nn.Parameter(torch.zeros(512, 512))  # the allocator has the first one's memory again
            layer.weight = nn.Parameter(torch.randn(512, 512))
            assert is_right()
            layer.half().float()
            assert is_right()


def test_a_packed_weight_holds_nothing_of_its_own_but_the_copy_and_nothing_once_it_is_moved():
    made = lean(Attention())
    x = torch.randn(5, 24)
    with torch.no_grad():
        made(x)
        (_, copied) = made.q_proj.beside.packed._held
        assert [weight.data_ptr() for weight in copied._own] == [each.weight.data_ptr() for each in made.children()]
        lone = lean(nn.Sequential(nn.Linear(24, 16)))[0]
        lone(x)
        gone = [weakref.ref(held) for held in (copied.laid, lone.packed._held[1].laid, *copied._own)]
        del copied
        made.to(torch.bfloat16)
        lone.to(torch.bfloat16)
    assert [held() for held in gone] == [None] * len(gone)
    forgotten = lean(nn.Sequential(nn.Linear(24, 16)))
    with torch.inference_mode():
        forgotten(x)
    weight = weakref.ref(forgotten[0].weight)
    del forgotten
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_model_keeps_a_second_copy_of_its_weights_where_there_is_memory_for_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lean_module, "PACKED", 0)
    room = 48 * 32 * dtype.itemsize * 3 // 2
    for spare, copied in ((room - 1, False), (room, True)):
        monkeypatch.setattr(lean_module, "spare", lambda spare=spare: spare)
        layer = lean(nn.Sequential(nn.Linear(48, 32, dtype=dtype)))[0]
        assert (layer.packed is not None) == copied
        with torch.no_grad():
            rows = torch.randn(10, 48, dtype=dtype)
            due = nn.functional.linear(rows, layer.weight, layer.bias)
            assert torch.allclose(layer(rows), due, atol=1e-6 if dtype == torch.float32 else 0.02)


@pytest.mark.skipif(not kernels.able(), reason="no AVX-512, another OpenMP than GNU's, or no llvmlite")
def test_few_rows_read_numbers_of_bf16_in_half_the_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "pays", kernels.are_panels)
    monkeypatch.setattr(kernels, "has_tiles", lambda: False)
    made = nn.Sequential(nn.Linear(64, 128, dtype=torch.bfloat16)).float()
    layer = lean(copy.deepcopy(made))[0]
    with torch.no_grad():
        for rows, copies in ((1, {"narrow"}), (kernels.FEW, {"narrow"}), (kernels.FEW + 1, {"narrow", "laid"})):
            states = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(rows))
            assert torch.allclose(layer(states), made(states), atol=1e-5)
            held = layer.packed._held[1]
            assert copies == held.__dict__.keys() & {"narrow", "laid"}
            assert held.narrow is not None
        made[0].weight[5, 5] += 1e-6  # no number of bf16 any more
        layer.weight.copy_(made[0].weight)
        assert torch.allclose(layer(states[:, :3]), made(states[:, :3]), atol=1e-5)
        assert layer.packed._held[1].narrow is None


@pytest.mark.skipif(not kernels.has_tiles(), reason="no AMX")
def test_a_decoder_of_bf16_numbers_gives_on_amx_what_transformers_gives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "pays", kernels.are_panels)
    seen: list[int] = []
    tiled = kernels._tiled
    monkeypatch.setattr(kernels, "_tiled", lambda *given: (seen.append(given[3]), tiled(*given))[1])
    body = tiny_backbone(hidden_size=64, intermediate_size=192, num_attention_heads=4, head_dim=32)
    with torch.no_grad():
        for weight in body.parameters():
            weight.copy_(weight.bfloat16())
    words = byte_tokenizer()
    texts = ["one", "two words", "a longer text " * 20, "and another of many tokens " * 11]
    due = []
    with torch.no_grad():
        for text in texts:
            states = copy.deepcopy(body).double()(torch.tensor([words(text)["input_ids"]])).last_hidden_state
            due.append(nn.functional.normalize(states[0].mean(0), dim=0).numpy())
    embedder = compose(backbone=body, tokenizer=words, pooling="mean", device="cpu")
    together = embedder.encode(texts)
    assert seen
    assert np.abs(together - np.stack(due)).max() < 1e-6
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    assert np.abs(alone - together).max() < 1e-6


def test_a_norm_whose_weight_is_no_row_of_its_own_is_torch_s():
    made = lean(nn.Sequential(nn.RMSNorm(32)))
    wide = torch.rand(64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made[0].weight = nn.Parameter(wide[::2])
        assert torch.allclose(made(rows), nn.functional.rms_norm(rows, (32,), wide[::2]), atol=1e-6)
        with pytest.raises(RuntimeError):
            made(torch.randn(3, 16))


@pytest.mark.parametrize("rows", [3, 200])
def test_a_layer_refuses_what_torch_refuses(rows: int):
    layer = lean(nn.Sequential(nn.Linear(64, 64)))[0]
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer(torch.randn(rows, 32))
    nothing = lean(nn.Sequential(nn.Linear(0, 64)))[0]
    with torch.no_grad():
        assert torch.equal(nothing(torch.randn(rows, 0)), nothing.bias.expand(rows, 64))


@pytest.mark.skipif(not lean_module.BF16, reason="no oneDNN in bf16 here")
def test_in_bf16_products_are_of_a_copy_and_as_exact(products: list[int]):
    """Held to fp64: both round sums of fp32 once."""
    made = Attention().to(torch.bfloat16)
    exact, leaner = copy.deepcopy(made).double(), lean(copy.deepcopy(made))
    for rows in (1, 10, 200):
        x = torch.randn(1, rows, 24, generator=torch.Generator().manual_seed(rows), dtype=torch.float32).bfloat16()
        with torch.no_grad():
            due = exact(x.double())
            assert (leaner(x).double() - due).abs().max() <= 1.1 * (made(x).double() - due).abs().max()
    assert products == [32] * 3


def test_a_model_that_learns_holds_no_copy_of_what_it_was():
    made = lean(Attention())
    with torch.no_grad():
        made(torch.randn(5, 24))
    assert made.q_proj.beside.packed._held is not None
    made.train()
    assert made.q_proj.beside.packed._held is None


class Attention(nn.Module):
    """Three layers that read one input, asked in an order."""

    def __init__(self, bias: bool = True, order: str = "qkv"):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(24, out, bias=bias) for out in (16, 8, 8))
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = {name: getattr(self, f"{name}_proj")(x) for name in self.order}
        return torch.cat([made[name] for name in "qkv"], dim=-1)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each product that was made gave a row."""
    found: list[int] = []
    made = lean_module._product

    def counted(*args):
        out = made(*args)
        found.append(out.shape[-1])
        return out

    monkeypatch.setattr(lean_module, "_product", counted)
    return found


@pytest.mark.parametrize("rows", [1, 10, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_beside_each_other_are_one_product(rows: int, bias: bool, products: list[int]):
    own = Attention(bias)
    leaner = lean(copy.deepcopy(own))
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(1, rows, 24)
            assert torch.allclose(leaner(x), own(x), atol=1e-6)
        assert products == [32, 32]
        leaner.k_proj.weight.mul_(3)
        own.k_proj.weight.mul_(3)
        assert torch.allclose(leaner(x), own(x), atol=1e-6)
    assert torch.equal(leaner(x), lean(copy.deepcopy(own))(x)), "with gradients each is asked by itself"
    assert products == [32, 32, 32]


@pytest.mark.parametrize("order", ["kqv", "vkq", "qqkv", "qvk"])
def test_layers_asked_in_another_way_give_the_same(order: str, products: list[int]):
    own = Attention(order=order)
    leaner = lean(copy.deepcopy(own))
    with torch.no_grad():
        for _ in range(lean_module.TRIES + 2):
            x = torch.randn(5, 24)
            assert torch.allclose(leaner(x), own(x), atol=1e-6)
    assert max(products[-3:]) == (16 if order in ("kqv", "vkq") else 32)


def test_a_layer_asked_with_another_input_computes_by_itself(products: list[int]):
    own = Attention()
    leaner = lean(copy.deepcopy(own))
    leaner.q_proj.register_forward_pre_hook(lambda _, args: (args[0][-1:],))  # as where one query of a row is asked
    x = torch.randn(5, 24)
    with torch.no_grad():
        for _ in range(2):
            q, k = leaner.q_proj(x), leaner.k_proj(x)
            assert torch.allclose(q, own.q_proj(x[-1:]), atol=1e-6)
            assert torch.allclose(k, own.k_proj(x), atol=1e-6)
    assert products == [32, 8, 32, 8]


def test_layers_that_are_now_and_then_asked_with_another_input_stay_together(products: list[int]):
    own = Attention()
    leaner = lean(copy.deepcopy(own))
    x = torch.randn(5, 24)
    with torch.no_grad():
        for _ in range(lean_module.TRIES + 1):
            leaner.q_proj(x[:1])
            assert torch.allclose(leaner.k_proj(x), own.k_proj(x), atol=1e-6)
            assert torch.allclose(leaner.v_proj(x), own.v_proj(x), atol=1e-6)
            assert torch.allclose(leaner(x), own(x), atol=1e-6)
    assert products == [32, 8, 8, 32] * (lean_module.TRIES + 1)


def test_layers_beside_each_other_serve_many_threads():
    own = Attention()
    leaner = lean(copy.deepcopy(own))
    inputs = [torch.randn(1 + k, 24) for k in range(40)]
    with torch.no_grad():
        due = [own(x) for x in inputs]

    def ask(x):
        with torch.no_grad():
            return [leaner(x) for _ in range(20)]

    with ThreadPoolExecutor(4) as crew:
        for told, expected in zip(crew.map(ask, inputs), due, strict=True):
            assert all(torch.allclose(each, expected, atol=1e-6) for each in told)
    assert leaner.q_proj.beside is not None


def test_copies_of_layers_beside_each_other_read_their_own_weights():
    own = Attention()
    leaner = lean(copy.deepcopy(own))
    x = torch.randn(5, 24)
    with torch.no_grad():
        leaner(x)
        for twin in (copy.deepcopy(leaner), pickle.loads(pickle.dumps(leaner))):
            twin.v_proj.weight.zero_()
            twin.v_proj.bias.zero_()
            assert twin(x)[:, 24:].abs().max() == 0
            assert torch.allclose(twin(x)[:, :24], own(x)[:, :24], atol=1e-6)
        assert torch.allclose(leaner(x), own(x), atol=1e-6)


def test_weights_made_in_inference_mode_are_not_put_together_at_every_call(products: list[int]):
    with torch.inference_mode():
        leaner = lean(Attention())
        x = torch.randn(5, 24)
        due = torch.cat([nn.functional.linear(x, each.weight, each.bias) for each in leaner.children()], dim=-1)
        assert torch.allclose(leaner(x), due, atol=1e-6)
    assert products == [16, 8, 8]


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        *(
            pytest.param("cuda", dtype, marks=pytest.mark.gpu)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
    ],
)
def test_norms_are_as_exact_as_their_own(device: str, dtype: torch.dtype, kind: str):
    """Held to fp64: one kernel rounds once, where transformers' rounds before the weight as well."""
    norms = [part for part in lean(tiny_backbone(kind)).modules() if isinstance(part, LeanNorm)]
    drawn = torch.Generator().manual_seed(0)
    for norm in norms:
        norm.weight.data = torch.rand(norm.weight.shape, generator=drawn) + 0.5
        own = type(norm).__bases__[1]
        rows = (torch.randn(2, 70, len(norm.weight), generator=drawn) * 3).to(device, dtype)
        before = rows.clone()
        there = norm.to(device, dtype)
        exact = copy.deepcopy(there).double()
        with torch.no_grad():
            due = own.forward(exact, rows.double())
            far = (own.forward(there, rows).double() - due).abs().max()
            assert (there(rows).double() - due).abs().max() <= 1.1 * far + 1e-6
        assert torch.equal(rows, before)


def test_an_adapter_that_peft_merges_is_seen():
    """It writes through `.data`, of which torch keeps no count."""
    ours = tiny_embedder()
    texts = ["abc", "d" * 80]
    before, told = ours.encode(texts), ours.fingerprint
    targets = ["q_proj", "v_proj", "gate_proj", "o_proj"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lora = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        ours.model.backbone = peft.get_peft_model(ours.model.backbone, lora).merge_and_unload().eval()
    merged = ours.encode(texts)
    assert np.abs(merged - before).max() > 1e-2
    assert np.abs(merged - copy.deepcopy(ours).encode(texts)).max() <= 1e-6
    assert ours.fingerprint == ours.model.fingerprint() != told


@pytest.mark.parametrize("compiled", [False, True])
def test_forms_over_forms_are_pickled_and_copied(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ours = compose(backbone=tiny_backbone("xlm-roberta"), tokenizer=byte_tokenizer(), device="cpu")
    if compiled:
        ours.compile()
    block = layers_of(ours.model.backbone)[0]
    for other in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert type(other) is type(block)
        assert isinstance(other, lean_module.FeedForwardAtATime)
        assert isinstance(other, CompiledBlock) is compiled


def test_a_part_that_fails_on_rows_is_left_as_it_is():
    """Granite Speech's Q-Former has the chunks of BERT's blocks and nothing in them, xLSTM's norm is of heads."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.key, self.value = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def feed_forward_chunk(self, states):
            return self.intermediate(states)

    class OfHeads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, states):
            _, _, _, _ = states.shape
            return states * self.weight

    for part in (Block, OfHeads):
        model = lean(torch.nn.Sequential(part()))
        assert type(model[0]) is part
