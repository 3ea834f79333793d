"""Kernels of our own beside torch's double, alone and in company, on one thread and several."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmembed.nn import kernels

pytestmark = pytest.mark.skipif(not kernels.able(), reason="no AVX-512, another OpenMP than GNU's, or no llvmlite")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def packed(weights: Tensor) -> Tensor:
    assert kernels.are_panels(*weights.shape)
    return torch.ops.mkldnn._reorder_linear_weight(weights, 512)


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 16), (128, 48), (448, 512), (1536, 512), (512, 1536), (384, 384)])
@pytest.mark.parametrize("biased", [False, True])
def test_product_is_the_product(threads, outputs, inputs, biased):
    weights, bias = drawn(outputs, inputs, seed=1), drawn(outputs, seed=2) if biased else None
    laid = packed(weights)
    every = drawn(37, inputs)
    whole = kernels.product(every, laid, bias)
    due = F.linear(every.double(), weights.double(), None if bias is None else bias.double())
    assert (whole - due).norm() <= 1e-6 * due.norm()
    for count in (0, 1, 2, 7, 11, 12, 13, 24, 25, 36):
        some = kernels.product(every[:count], laid, bias)
        assert some.shape == (count, outputs)
        assert torch.equal(some, whole[:count]), f"{count} rows alone"


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 16), (448, 512), (512, 1536)])
def test_numbers_of_bf16_take_half_the_bytes_and_give_the_same(threads, outputs, inputs, monkeypatch):
    monkeypatch.setattr(kernels, "pays", kernels.are_panels)  # on any processor
    weights, bias = drawn(outputs, inputs, seed=1).bfloat16().float(), drawn(outputs, seed=2)
    narrow = kernels.narrowed(weights)
    assert narrow is not None
    assert narrow.nbytes == weights.nbytes // 2
    assert torch.equal(kernels.narrowed(weights[:32], weights[32:]), narrow)
    laid = packed(weights)
    for count in (1, 2, 7, 8, 9, 16, 17, kernels.FEW):
        states = drawn(count, inputs)
        assert torch.equal(kernels.product(states, narrow, bias), kernels.product(states, laid, bias))
    weights[1, 3] += weights[1, 3] * 2**-12
    assert kernels.narrowed(weights) is None


@pytest.mark.skipif(not kernels.has_tiles(), reason="no AMX")
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (448, 96), (512, 1536)])
@pytest.mark.parametrize("biased", [False, True])
def test_many_rows_go_through_tiles_and_lose_no_digit(threads, outputs, inputs, biased, monkeypatch):
    monkeypatch.setattr(kernels, "pays", kernels.are_panels)
    weights = drawn(outputs, inputs, seed=1).bfloat16().float()
    bias, narrow = drawn(outputs, seed=2) if biased else None, kernels.narrowed(weights)
    every = drawn(3000, inputs) * torch.logspace(-3, 3, inputs)
    exact = F.linear(every.double(), weights.double(), None if bias is None else bias.double())
    whole = kernels.product(every, narrow, bias)
    assert (whole - exact).norm() <= 3e-7 * exact.norm()
    assert (whole - exact).norm() <= 2 * (F.linear(every, weights, bias) - exact).norm()
    for count in (kernels.FEW + 1, 64, 95, 96, 97, 700):
        for first in (0, 5):
            rows = slice(first, first + count)
            assert torch.equal(kernels.product(every[rows], narrow, bias), whole[rows]), (first, count)


@pytest.mark.skipif(not kernels.has_tiles(), reason="no AMX")
def test_tiles_are_left_as_onednn_had_them(threads, monkeypatch):
    monkeypatch.setattr(kernels, "pays", kernels.are_panels)
    rows, weights = drawn(300, 256), drawn(128, 256, seed=1).bfloat16().float()
    narrow = kernels.narrowed(weights)
    in_bf16 = rows.bfloat16(), weights.bfloat16()
    due, ours = F.linear(*in_bf16), kernels.product(rows, narrow, None)
    for _ in range(20):
        assert torch.equal(F.linear(*in_bf16), due)
        assert torch.equal(kernels.product(rows, narrow, None), ours)


@pytest.mark.parametrize("threads_at_hand", [1, 2, 16])
def test_tiles_are_for_rows_enough_for_all_threads(threads_at_hand, monkeypatch):
    monkeypatch.setattr(kernels, "has_tiles", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads_at_hand)
    most = max(kernels.FEW, kernels.BLOCK * (threads_at_hand - 1))
    assert kernels.reads_narrow(kernels.FEW, 64)
    assert kernels.reads_narrow(most + 1, 64)
    assert not kernels.reads_narrow(most + 1, 48)
    assert kernels.reads_narrow(most, 64) == (most == kernels.FEW)


def test_product_takes_states_of_any_shape():
    weights = drawn(64, 32)
    states = drawn(3, 5, 64)[..., ::2]
    due = F.linear(states, weights)
    assert torch.allclose(kernels.product(states, packed(weights), None), due, atol=1e-5)
    assert torch.allclose(kernels.product(states[0, 0], packed(weights), None), due[0, 0], atol=1e-5)


def test_broken_numbers_stay_broken():
    weights = drawn(64, 32)
    states = drawn(2, 32)
    states[0, 3] = torch.nan
    states[1, 3] = torch.inf
    out = kernels.product(states, packed(weights), None)
    assert out[0].isnan().all()
    assert not out[1].isfinite().any()
    if kernels.has_tiles() and (narrow := kernels.narrowed(weights.bfloat16().float())) is not None:
        many = kernels.product(states.repeat(50, 1), narrow, None)
        assert many[::2].isnan().all()
        assert not many[1::2].isfinite().any()
    normed = kernels.rms_norm(states, drawn(32), 1e-6)
    assert normed[0].isnan().all()
    assert not normed[1, 3].isfinite()


def test_what_onednn_lays_out_otherwise_is_told():
    assert not kernels.are_panels(96, 64)  # one panel and a half
    assert not kernels.are_panels(64, 7)  # filled up to 16 inputs
    assert not kernels.pays(64, 7)


@pytest.mark.parametrize("around", [0.0, 1.0])
@pytest.mark.parametrize(
    "states",
    [
        pytest.param(drawn(1, 10, 512), id="states"),
        pytest.param(drawn(1, 10, 1024)[..., 256:768].view(1, 10, 8, 64), id="heads among other outputs"),
        pytest.param(drawn(1, 8, 10, 64).transpose(1, 2), id="heads, turned"),
        pytest.param(drawn(10, 1024)[:, 512:], id="half of each row"),
        pytest.param(drawn(700, 64)[::2], id="each second row"),
        pytest.param(drawn(32), id="one row"),
        pytest.param(drawn(0, 32), id="none"),
        pytest.param(drawn(5, 16) * 1e-4, id="small numbers"),
        pytest.param(drawn(5, 16) * 1e15, id="large numbers"),
    ],
)
def test_rms_norm_is_the_norm(threads, states, around):
    weight, eps = drawn(states.shape[-1], seed=1), 1e-6
    before = states.clone()
    found = kernels.rms_norm(states, weight, eps, around)
    exact = states.double()
    due = exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt() * (around + weight.double())
    assert found.shape == states.shape
    assert torch.allclose(found.double(), due, rtol=2e-6, atol=1e-6)
    assert torch.equal(states, before)
    if states.ndim > 1 and len(states) > 1:
        assert torch.equal(kernels.rms_norm(states[1:], weight, eps, around), found[1:])


@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_rounded_is_what_the_largest_allows(threads, count):
    rows = drawn(count, 48) * torch.logspace(-30, 30, 48)
    codes, largest = kernels.rounded(rows)
    assert torch.equal(largest, rows.abs().amax(-1, keepdim=True))
    due = rows.double() * (127 / largest.double())
    assert not count or ((codes.double() - 128) - due).abs().max() <= 0.5 + 1e-4


def test_rows_of_zeros_are_codes_of_zero():
    codes, largest = kernels.rounded(torch.zeros(2, 16))
    assert (codes == 128).all()
    assert torch.equal(largest, torch.full((2, 1), torch.finfo(torch.float32).tiny))


def test_what_the_kernels_may_not_read_is_left_to_torch():
    plain = drawn(4, 16)
    assert kernels.serve(plain, torch.nn.Parameter(plain))
    assert not kernels.serve(plain, plain.bfloat16())
    assert not kernels.serve(plain.to("meta"))
    with FlopCounterMode(display=False):
        assert not kernels.serve(plain)
    served: list[bool] = []

    def asks(row: Tensor) -> Tensor:
        served.append(kernels.serve(row))
        return row * 2

    torch.func.vmap(asks)(plain)
    torch.jit.trace(asks, plain, check_trace=False)
    assert served == [False, False]


def test_states_of_another_width_are_refused():
    weights = drawn(64, 32)
    with pytest.raises(RuntimeError, match="of 32 inputs was given states"):
        kernels.product(drawn(3, 16), packed(weights), None)


def test_threads_of_python_have_their_own_numbers():
    weights = drawn(512, 256)
    laid = packed(weights)
    inputs = [drawn(n, 256, seed=n) for n in range(1, 17)]
    due = [kernels.product(each, laid, None) for each in inputs]
    wrong: list[int] = []

    def work(n: int) -> None:
        wrong.extend(n for _ in range(50) if not torch.equal(kernels.product(inputs[n], laid, None), due[n]))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
