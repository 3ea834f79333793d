"""Kernels for the CPU that torch does not have, made by LLVM when a model is loaded; they are written in `assembly`.

`product` is a linear layer in fp32:

- Of few rows, as a query has them. The kernels of oneDNN and MKL wait for the weights that they read: ten rows by 512 x 1536
  weights out of 100 MB take them 290 us on two cores of an Intel Xeon, 11 GB/s, where a sum of the same numbers reads 25. Ours
  asks for weights before their turn comes: 113 us. It reads the copy that oneDNN lays out for itself, panels of 64 outputs.
- By weights that are numbers of bf16, as released decoders have them. They lie in half the bytes, and few rows are multiplied by
  what comes of them when they are widened, to the same bits. Of many rows a number is cut into three of bf16, eight digits each,
  which AMX multiplies without rounding and sums in fp32: no digit of fp32 is lost, and 512 rows of 41 M parameters take half the
  time of oneDNN's fp32.

An output is one sum in the order of the inputs: of the same kernel to the last bit the same, whatever rows there are beside it.
What is smaller than 1e-33 may be lost on AMX, which takes numbers below 2**-126 for zeros; an infinite number gives NaN there.

`rms_norm`: one walk instead of three, and one call instead of five. `rounded`: the same for what int8 rounds on the way.

Threads are those of torch, by the OpenMP that it brings.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor, nn

PANEL = 64
"""Outputs of a panel of weights, as oneDNN lays them out."""
LANES = 16
"""Numbers of fp32 in a register of AVX-512."""
WIDE = 2
"""Registers of outputs of a tile."""
ROWS, NARROW_ROWS = 12, 8
"""Rows of a tile at most: 12 x 2 sums, and what they are made of, fill the 32 registers; two inputs at a time need more."""
BLOCK, PARTS = 32, 3
"""On AMX, rows and outputs of four tiles of sums, and inputs of a step; numbers of bf16 that a number of fp32 is cut into."""
THREADS = ("omp_get_thread_num", "omp_get_num_threads")
"""Functions of OpenMP that the kernels call."""
MOST = 128
"""Rows up to which `product` is faster than oneDNN's: 64 rows take 560 us of its 740, 128 rows .76 to .95 of its time, 250 as
long or a tenth longer."""
FEW = 32
"""Rows up to which narrow weights are read row by row, and more by tiles where every thread has some."""
SCRATCH = 2**20
"""Bytes that a thread cuts rows into at a time, half of a second cache."""
ALONE = 2**14
"""Numbers up to which one thread norms or rounds them."""


@cache
def able() -> bool:
    """Whether the kernels run here: AVX-512, torch's own GNU OpenMP, and llvmlite."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _openmp() is not None
        and find_spec("llvmlite") is not None
    )


def make() -> None:
    """Make the kernels where they run, or leave it: .15 s, once a process; nothing is read from disk later."""
    if able():
        _made()
        is_intel(), has_tiles()


def serve(*tensors: Tensor) -> bool:
    """Whether the kernels may read these: they run here, the numbers are fp32 on the CPU, and nothing watches torch's operators
    in place of which they stand (graphs that are traced, modes of dispatch, `torch.func`)."""
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing() or not able():
        return False
    for each in tensors:
        if type(each) not in _PLAIN or not each.is_cpu or each.dtype != torch.float32:
            return False
    return not torch._C._len_torch_dispatch_stack() and torch._C._functorch.peek_interpreter_stack() is None


_PLAIN = (Tensor, nn.Parameter)


@cache
def is_intel() -> bool:
    """Whether the processor is Intel's, as far as Linux says: there the products were measured."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@cache
def pays(outputs: int, inputs: int) -> bool:
    """Whether `product` is for weights (outputs, inputs)."""
    return is_intel() and are_panels(outputs, inputs)


@cache
def are_panels(outputs: int, inputs: int) -> bool:
    """Whether oneDNN lays out weights (outputs, inputs) as `product` reads them: looked at once for each shape."""
    if not able() or not inputs or outputs % PANEL or not hasattr(torch.ops.mkldnn, "data_ptr"):
        return False
    weights = torch.arange(outputs * inputs, dtype=torch.float32, device="cpu").view(outputs, inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weights, 512)
    if torch.ops.mkldnn._nbytes(packed) != weights.nbytes:
        return False
    lying = torch.frombuffer((ctypes.c_float * weights.numel()).from_address(_address(packed)), dtype=torch.float32)
    return torch.equal(lying, weights.view(-1, PANEL, inputs).transpose(1, 2).flatten())


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bf16 (AMX), and Linux lets this process."""
    return able() and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def narrowed(*weights: Float[Tensor, "_ D"]) -> Int32[Tensor, "P C W"] | None:
    """Weights one below the other as `product` reads them in half the bytes, two inputs a word, panels of 32 outputs; None where
    they are no numbers of bf16, or the kernels are not for them."""
    outputs, inputs = sum(map(len, weights)), weights[0].shape[1]
    if not pays(outputs, inputs) or any((each.view(torch.int32) & 0xFFFF).any() for each in weights):
        return None
    halves = [each.contiguous().view(torch.int16) for each in weights]
    bits = torch.cat([each[:, 1::2] for each in halves])  # the upper ones: a little-endian machine
    panels = bits.view(outputs // (LANES * WIDE), LANES * WIDE, inputs // 2, 2)
    return panels.transpose(1, 2).contiguous().view(torch.int32).squeeze(-1)


def reads_narrow(count: int, inputs: int) -> bool:
    """Whether so many rows are for `narrowed` weights: few, or on AMX enough for all threads."""
    return count <= FEW or (count > BLOCK * (torch.get_num_threads() - 1) and inputs % BLOCK == 0 and has_tiles())


def product(states: Float[Tensor, "*R D"], weights: Tensor, bias: Float[Tensor, " E"] | None) -> Float[Tensor, "*R E"]:
    """What `torch.nn.functional.linear` gives.

    Args:
        states: fp32 on the CPU, as `bias`.
        weights: (E, D) as `torch.ops.mkldnn._reorder_linear_weight` gives them, of a shape that `are_panels` knows; or as
            `narrowed` gives them, if `reads_narrow`.

    Raises:
        RuntimeError: states of another width than the weights.
    """
    *lead, inputs = states.shape
    laid = weights.is_mkldnn
    units, due = (
        (weights.shape[0] // (LANES * WIDE), weights.shape[1]) if laid else (len(weights), 2 * weights.shape[1])
    )
    if inputs != due:
        raise RuntimeError(f"a linear layer of {due} inputs was given states {tuple(states.shape)}")
    outputs = units * LANES * WIDE
    count = states.numel() // inputs
    states, start = states.contiguous(), _zeros(outputs) if bias is None else bias.contiguous()
    if not laid and count > FEW:
        return _tiled(states, weights, start, count, units).view(*lead, outputs)
    out = states.new_empty((*lead, outputs))
    if count:
        most, run, place = (
            (ROWS, _made().product, _address(weights)) if laid else (NARROW_ROWS, _made().narrow, weights.data_ptr())
        )
        tall = -(-count // -(-count // most))  # 13 rows are 7 and 6, not 12 and 1
        addresses = states.data_ptr(), place, start.data_ptr(), out.data_ptr()
        run(torch.get_num_threads(), *addresses, count, tall, inputs, units)
    return out


def _tiled(states: Tensor, weights: Tensor, start: Tensor, count: int, units: int) -> Float[Tensor, "R E"]:
    """The product of many rows, on AMX: chunks of them, as many to each thread."""
    threads, inputs = torch.get_num_threads(), states.shape[-1]
    room = max(BLOCK, SCRATCH // (2 * PARTS * inputs) // BLOCK * BLOCK)
    turns = -(-count // (room * threads))
    tall = -(-count // (turns * threads * BLOCK)) * BLOCK
    out = states.new_empty(-(-count // BLOCK) * BLOCK, units * LANES * WIDE)
    scratch = torch.empty(threads, 2 * PARTS * tall * inputs + len(_SHAPE), dtype=torch.uint8, device="cpu")
    addresses = (each.data_ptr() for each in (states, weights, start, out, scratch))
    _made().tiled(threads, *addresses, ctypes.addressof(_SHAPE), count, tall, inputs, units, -(-count // tall))
    return out[:count]


_SHAPE = (ctypes.c_uint8 * 64).from_buffer_copy(
    struct.pack("<BB14x16H16B", 1, 0, *[64] * 8, *[0] * 8, *[16] * 8, *[0] * 8)
)
"""Eight tiles of 16 rows and 64 bytes, as LDTILECFG reads it."""


def rms_norm(
    states: Float[Tensor, "*R D"], weight: Float[Tensor, " D"], eps: float, around: float = 0.0
) -> Float[Tensor, "*R D"]:
    """states / sqrt(mean(states ** 2) + eps) * (around + weight), over the last axis.

    Args:
        states: fp32 on the CPU, as `weight`; D is a multiple of 16.
    """
    width = states.shape[-1]
    out = states.new_empty(states.shape)
    if not out.numel():
        return out
    inner, stride = 1, width
    if not states.is_contiguous():  # heads of some tokens among what else a product gave lie together, tokens do not
        inner = states.shape[-2] if states.ndim > 2 else 1
        states = states.reshape(-1, inner, width)
        states = states if states.stride()[1:] == (width, 1) else states.contiguous()
        stride = states.stride(0)
    rows = out.numel() // width
    threads = 1 if out.numel() <= ALONE else torch.get_num_threads()
    addresses = states.data_ptr(), weight.data_ptr(), out.data_ptr()
    _made().rms_norm(threads, *addresses, _bits(eps), _bits(around), width, inner, stride, rows)
    return out


def rounded(rows: Float[Tensor, "R D"]) -> tuple[UInt8[Tensor, "R D"], Float[Tensor, "R 1"]]:
    """Numbers in eight bits: round(rows * (127 / largest)) + 128, and the largest magnitude of each row.

    Args:
        rows: fp32 on the CPU; D is a multiple of 16.
    """
    (count, width), rows = rows.shape, rows.contiguous()
    codes, largest = rows.new_empty(rows.shape, dtype=torch.uint8), rows.new_empty(count, 1)
    if rows.numel():
        threads = 1 if rows.numel() <= ALONE else torch.get_num_threads()
        _made().rounded(threads, rows.data_ptr(), codes.data_ptr(), largest.data_ptr(), width, count)
    return codes, largest


def _address(packed: Tensor) -> int:
    address: int = torch.ops.mkldnn.data_ptr(packed)
    return address


@cache
def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float32, device="cpu")


@cache
def _bits(number: float) -> int:
    """Those of a number in fp32."""
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    return bits


@cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP of torch's threads, where it is GNU's."""
    found = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
    return None if found is None else ctypes.CDLL(str(found))


class _Kernel:
    """A function over so many numbers, which one thread calls or each of several; it holds the code that it lies in."""

    def __init__(self, code: Any, name: str, count: int, parallel: Callable[..., None]):
        address = code.get_function_address(name)
        self._code, self._address, self._numbers, self._parallel = code, address, ctypes.c_int64 * count, parallel
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)

    def __call__(self, threads: int, *numbers: int) -> None:
        if threads == 1:  # OpenMP takes 5 us and more to find that nobody else is needed
            self._alone(self._numbers(*numbers))
        else:
            self._parallel(self._address, self._numbers(*numbers), threads, 0)


class _Made:
    """The kernels."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        from .assembly import written

        openmp = _openmp()
        assert openmp is not None
        for name in THREADS:
            llvm.add_symbol(name, ctypes.cast(openmp[name], ctypes.c_void_p).value)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        tiles = ",+amx-tile,+amx-bf16"  # written whether or not they run here: `has_tiles` is asked before
        features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit" + tiles
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=2)
        code = llvm.create_mcjit_compiler(llvm.parse_assembly(written()), machine)
        code.finalize_object()
        parallel = openmp["GOMP_parallel"]
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        self.product, self.narrow, self.tiled, self.rms_norm, self.rounded = (
            _Kernel(code, name, count, parallel)
            for name, count in (("product", 8), ("narrow", 8), ("tiled", 11), ("rms_norm", 9), ("rounded", 5))
        )


@cache
def _made() -> _Made:
    return _Made()
