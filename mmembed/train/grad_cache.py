"""GradCache: the gradient of one loss over many packed rows, with the activations of one of them held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .compared import GRADED, Embedded, joined

Thing = TypeVar("Thing")


def accumulate(
    embed: Callable[[Thing], Embedded],
    batches: Sequence[Thing],
    measure: Callable[[Embedded], Float[Tensor, ""]],
    *,
    statistics: Iterable[Tensor] = (),
) -> Float[Tensor, ""]:
    """The loss of all batches together; its gradient is added to that of the weights (GradCache, arXiv 2101.06983).

    All batches are embedded, all but the last without a graph; the loss is taken of all vectors, and its gradient with respect
    to them; then each batch is embedded again, with the same random numbers, and handed its part of that gradient. Exact: what
    it adds is what `measure(joined(embed(b) for b in batches)).backward()` adds. n batches cost n - 1 forward passes more
    than that, and a single one none.

    Args:
        embed: a batch -> what the model makes of its things. It draws random numbers, if any, from torch's own generators.
        batches: packed rows, at least one. measure: all things in the order of the batches -> a number; called once. What it
            holds of weights, such as a learnt temperature, has its gradient from it; so has what other processes embedded.
        statistics: numbers that a forward pass changes (of batch norms), which the second one shall not change again.

    Returns:
        the loss, without a graph.
    """
    *others, last = batches
    drawn, parts = [], []
    for batch in others:
        drawn.append(RandomState.now())
        with torch.no_grad():
            parts.append(embed(batch))
    final = embed(last)  # its graph is kept, which saves its second forward pass
    parts.append(final)
    every = joined(parts)
    leaves = {name: value.detach().requires_grad_() for name in GRADED if (value := getattr(every, name)) is not None}
    loss = measure(replace(every, **leaves))
    if not loss.requires_grad:
        return loss
    loss.backward()
    due = _split({name: leaf.grad for name, leaf in leaves.items()}, parts)
    _hand_on(final, due.pop())
    del final, every, leaves, parts
    for batch, dice, own in zip(others, drawn, due, strict=True):
        with dice.thrown_again(), _unchanged(statistics):
            _hand_on(embed(batch), own)
    return loss.detach()


def _split(gradients: dict[str, Tensor | None], parts: Sequence[Embedded]) -> list[dict[str, Tensor]]:
    """The gradient that belongs to each part."""
    split: list[dict[str, Tensor]] = [{} for _ in parts]
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        axis = 1 if name == "layers" else 0
        sizes = [getattr(part, name).shape[axis] for part in parts]
        for own, piece in zip(split, gradient.split(sizes, dim=axis), strict=True):
            own[name] = piece
    return split


def _hand_on(part: Embedded, due: dict[str, Tensor]) -> None:
    """The gradient of what was embedded goes on into the weights."""
    made = [(getattr(part, name), gradient) for name, gradient in due.items()]
    made = [(value, gradient) for value, gradient in made if value.requires_grad]
    if made:
        torch.autograd.backward([value for value, _ in made], [gradient for _, gradient in made])


@dataclass(frozen=True)
class RandomState:
    """Where torch's generators stand: of the CPU, and of each CUDA device."""

    cpu: Tensor
    cuda: Sequence[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_cuda else ())

    @contextmanager
    def thrown_again(self) -> Iterator[None]:
        """Inside, random numbers are those that came after this; outside, nothing has happened."""
        with torch.random.fork_rng(devices=range(len(self.cuda))):
            torch.set_rng_state(self.cpu)
            if self.cuda:
                torch.cuda.set_rng_state_all(list(self.cuda))
            yield


@contextmanager
def _unchanged(statistics: Iterable[Tensor]) -> Iterator[None]:
    kept = [(value, value.clone()) for value in statistics]
    yield
    with torch.no_grad():
        for value, before in kept:
            value.copy_(before)
