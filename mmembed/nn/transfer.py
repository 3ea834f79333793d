"""Copies between host and device for which nobody waits: there from pinned memory, and back into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_device(x: Tensor, device: torch.device | str, *, keep: bool = False) -> Tensor:
    """A tensor of the host on a device. From pinned memory the copy to a CUDA device is one that the host does not wait for, and
    that memory is not used again before it is done (torch sees to both).

    Args:
        keep: the tensor keeps its copy on the host, so that `numbers` need not wait for the device.
    """
    if torch.device(device).type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    there = x.pin_memory().to(device, non_blocking=True)
    if keep:
        there.of_host = x  # type: ignore[attr-defined]
    return there


def numbers(x: Int[Tensor, " N"]) -> list[int]:
    """What a tensor holds; of one that was kept on its way to the device, without waiting for it."""
    held: Tensor = getattr(x, "of_host", x)
    return held.tolist()


def fetched(tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
    """Begin to copy tensors to the host; what is returned waits for them, and gives them as arrays in memory of their own.

    Tensors of one type come back in one copy: token vectors of a batch are hundreds.
    """
    if not any(x.is_cuda for x in tensors):
        there = [x.cpu() for x in tensors]
        # One token vector that a caller keeps would keep all of its batch.
        arrays = [(x.clone() if x.untyped_storage().nbytes() > x.nbytes else x).numpy() for x in there]
        return lambda: arrays
    kinds = {x.dtype: [y for y in tensors if y.dtype == x.dtype] for x in tensors}
    flat = {kind: torch.cat([x.reshape(-1) for x in own]) for kind, own in kinds.items()}
    held = {kind: torch.empty(x.shape, dtype=kind, device="cpu", pin_memory=True) for kind, x in flat.items()}
    for kind, x in flat.items():
        held[kind].copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensors[0].device))
    shapes = [(x.dtype, x.shape) for x in tensors]

    def wait() -> list[NDArray[Any]]:
        done.synchronize()
        taken = dict.fromkeys(held, 0)
        arrays = []
        for kind, shape in shapes:
            first, taken[kind] = taken[kind], taken[kind] + shape.numel()
            arrays.append(held[kind][first : taken[kind]].view(shape).numpy().copy())  # pinned memory goes back
        return arrays

    return wait
