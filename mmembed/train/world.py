"""The processes of one run: who I am among them, what all of them embedded, and the sum of their gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others: while one of them measures held-out data or writes the embedder, all do, and NCCL
would end the run behind ten minutes. One that dies is told by whoever started them."""


@dataclass(frozen=True)
class World:
    """The processes that train together, as torchrun or accelerate started them; one alone is a world of one.

    Every process reads the same batch and embeds its share of it. Then each sees the vectors of all, its own with their
    gradient, and computes the loss of the whole batch. The gradient of a weight is the sum over the processes: exactly
    that of one process with the whole batch, without a factor.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls, device: torch.device) -> World:
        """The world that the environment says (RANK, WORLD_SIZE, MASTER_ADDR), joined."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, things: Sequence[T]) -> tuple[int, int]:
        """First and end of this process' part of a batch."""
        count = len(things)
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def gathered(self, own: Tensor) -> Tensor:
        """(n, ...) of this process -> (N, ...) of all, by rank; only its own part has a gradient."""
        if self.size == 1:
            return own
        counts = self.told(len(own))
        most = max(counts)
        padded = own.detach().new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own.detach()
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded.contiguous())
        parts = [part[:count] for part, count in zip(every, counts, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def told(self, thing: T) -> list[T]:
        """What each process says, by rank."""
        if self.size == 1:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing)
        return found

    def add_gradients(self, weights: Iterable[Tensor], shared: Iterable[Tensor] = ()) -> None:
        """Every weight's gradient becomes the sum over the processes; the mean for `shared`, whose gradient each has whole.

        One that no process reached has none still: a step of AdamW over zeros would let it decay. Those of weights that lie in
        parts are sums already.
        """
        if self.size == 1:
            return
        kinds = [[weight for weight in weights if not isinstance(weight, DTensor)], [*shared]]
        reached = self.told([[weight.grad is not None for weight in some] for some in kinds])
        for some, factor, each in zip(kinds, (1.0, 1.0 / self.size), zip(*reached, strict=True), strict=True):
            gradients: list[Tensor] = []
            for weight, somewhere in zip(some, map(any, zip(*each, strict=True)), strict=True):
                if somewhere and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                if weight.grad is not None:
                    gradients.append(weight.grad)
            _add(gradients, factor)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Every tensor becomes its mean over the processes."""
        if self.size > 1:
            _add(tensors, 1.0 / self.size)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def _add(tensors: Iterable[Tensor], factor: float) -> None:
    """Every tensor becomes its sum over the processes, times a factor; those of one kind go together."""
    of_kind: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        of_kind.setdefault(tensor.dtype, []).append(tensor)
    for own in of_kind.values():
        flat = torch.cat([tensor.flatten() for tensor in own])
        dist.all_reduce(flat)
        for tensor, total in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
            tensor.copy_(total.view_as(tensor).mul_(factor))
