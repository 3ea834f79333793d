"""A CUDA device on paper: tensors that say they lie there, compute on the CPU, and refuse to meet one that does not.

It runs a model as a first run on a GPU would, as far as devices go: a tensor made in the wrong place is an error here too, what
waits for the device is counted, and the numbers that come out are real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.bincount, aten.masked_select, aten.unique_dim, aten._unique2}
"""What the host cannot know before the device is done; so are copies from the device."""
MIXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
"""Take places of a tensor on the device from one on the host."""


class OnPaper(Tensor):
    """A tensor on the device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> OnPaper:
        made: OnPaper = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=here.requires_grad,
        )
        made.here = here.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnPaper({self.here})"

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, Paper())


class Pinned(Tensor):
    """A tensor of the host in pinned memory."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Pinned:
        made: Pinned = torch.Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype)  # type: ignore[attr-defined]
        made.here = here.detach().clone()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, Paper())


class Paper(TorchDispatchMode):
    """Where the device is.

    Attributes:
        waits: the operations for which the host waited. flying: copies to the host that nobody has waited for yet; until then
            numbers are NaN there, and whole ones -1.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # torch then asks for no driver when it is told of a CUDA device

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.flying: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Paper:
        torch._C._ensureCUDADeviceGuardSet()  # as torch's own fake tensors do where there is no driver
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload):
            with self:
                parts = func.decompose(
                    *args, **(kwargs or {})
                )  # inference mode hands operations on that are made of others
            if parts is not NotImplemented:
                return parts
        return run(func, args, kwargs or {}, self)


def run(func: Any, args: Any, kwargs: dict[str, Any], device: Paper) -> Any:
    if func is torch.ops.higher_order.flex_attention:
        return flexed(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, OnPaper)]
    packet = func.overloadpacket
    asked = kwargs.get("device")
    on = None if asked is None else torch.device(asked).type == "cuda"
    if packet is aten._pin_memory:
        return Pinned(args[0])
    if packet is aten._to_copy:
        on = bool(there) if on is None else on
        pinned = isinstance(args[0], Pinned) or not args[0].ndim
        if (there and not on) or (on and not there and not pinned):
            device.waits.append(f"a copy {'to' if on else 'from'} the device")
    elif packet is aten.copy_:
        on = isinstance(args[0], OnPaper)
        if there and not on and len(args) > 2 and args[2]:
            device.flying.append((args[0], args[1].here.clone()))
            return args[0].fill_(float("nan") if args[0].is_floating_point() else -1)
    elif on is None:
        on = bool(there)
        strange = [x for x in tensors if not isinstance(x, OnPaper) and x.ndim]
        if there and strange and packet not in MIXING:
            shapes = [(tuple(x.shape), "cuda" if isinstance(x, OnPaper) else "cpu") for x in tensors]
            raise RuntimeError(f"{func}: tensors on two devices: {shapes}")
    if there and packet in WAITING:
        device.waits.append(str(packet))
    plain = tree_map(lambda x: x.here if isinstance(x, (OnPaper, Pinned)) else x, (args, kwargs))
    options = {key: value for key, value in plain[1].items() if key != "pin_memory"}
    options |= {} if asked is None else {"device": torch.device("cpu")}
    out = func(*plain[0], **options)
    if func._schema.is_mutable and args and isinstance(args[0], Tensor) and out is plain[0][0]:
        return args[0]
    return tree_map(lambda x: OnPaper(x) if on and isinstance(x, Tensor) else x, out)


def flexed(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, scale: float, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """FlexAttention as its kernel goes about it: blocks that are not listed are not seen, whole ones are not asked about."""
    (_, _, kv_num, kv_indices, full_num, full_indices, *_, size, _, rule) = block_mask
    rows, columns = OnPaper(torch.arange(query.shape[2])[:, None]), OnPaper(torch.arange(key.shape[2])[None])
    zero = OnPaper(torch.tensor(0))
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
    scores = score_mod(query.float() @ keys.transpose(-1, -2) * scale, zero, zero, rows, columns)
    some, whole = (
        OnPaper(listed(number.here, which.here, size)[: query.shape[2], : key.shape[2]])
        for number, which in ((kv_num, kv_indices), (full_num, full_indices))
    )
    scores = scores.masked_fill(~((some & rule(zero, zero, rows, columns)) | whole), float("-inf"))
    return (scores.softmax(-1) @ values).to(query.dtype), scores.logsumexp(-1), scores.amax(-1)


def listed(number: Tensor, which: Tensor, size: int) -> Tensor:
    """(Q, K) tokens of the blocks in a list of a block mask."""
    blocks = torch.zeros(which.shape[-2], which.shape[-1], dtype=torch.bool)
    for row, count in enumerate(number[0, 0].tolist()):
        blocks[row, which[0, 0, row, :count].long()] = True
    return blocks.repeat_interleave(size, 0).repeat_interleave(size, 1)


def moved(module: nn.Module) -> nn.Module:
    """The module, its weights on the device."""
    with torch.no_grad():
        for part in module.modules():
            for name, weight in list(part._parameters.items()):
                if weight is not None:
                    part._parameters[name] = nn.Parameter(OnPaper(weight.detach()), weight.requires_grad)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = OnPaper(buffer)
    return module


def kernel(plain: Any) -> Any:
    """A kernel for tensors on the device, written for tensors on the host."""

    @wraps(plain)
    def on_device(*args: Any, **options: Any) -> Any:
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        assert all(isinstance(x, OnPaper) for x in tensors), "a kernel was given a tensor of the host"
        here = tree_map(lambda x: x.here if isinstance(x, OnPaper) else x, (args, options))
        with torch.utils._python_dispatch._disable_current_modes():
            out = plain(*here[0], **here[1])
        return tree_map(lambda x: OnPaper(x) if isinstance(x, Tensor) else x, out)

    return on_device


@contextmanager
def paper() -> Iterator[Paper]:
    """A process that has the device."""
    made = torch.tensor

    def tensor(data: Any, **options: Any) -> Tensor:  # of tensors, which torch reads below the mode
        return made(tree_map(lambda x: x.item() if isinstance(x, OnPaper) else x, data), **options)

    with Paper() as mode, pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "tensor", tensor)
        patched.setattr(torch.cuda, "Event", partial(Event, mode))
        patched.setattr(torch.cuda, "current_stream", lambda device: None)
        patched.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**36))
        patched.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patched.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        yield mode


class Event:
    """A place among what the device has been told to do."""

    def __init__(self, device: Paper):
        self._device = device

    def record(self, stream: None) -> None:
        self._before = list(self._device.flying)
        self._device.flying.clear()

    def synchronize(self) -> None:
        self._device.waits.append("an event")
        for there, numbers in self._before:
            there.copy_(numbers)
