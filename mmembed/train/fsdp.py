"""The weights of a backbone in parts over the processes (FSDP2 of torch), each whole only while its block runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import SpecError
from ..model import EmbeddingModel
from ..towers.lean import LeanLinear
from ..towers.reading import layers_of
from .world import World


class Shards:
    """A model of which each process holds a part of every weight of the backbone, and of its gradient and moments.

    Gradients of processes are summed, as everywhere. Every process must call the backbone equally often: see `drawn.idle`.

    Args:
        model: its weights are put into parts at once, and parameters are others afterwards.

    Raises:
        SpecError: one process, or weights of the backbone in several precisions, which FSDP2 does not put together.
    """

    def __init__(self, model: EmbeddingModel, world: World):
        if world.size < 2:
            raise SpecError(
                "weights are held in parts by several processes: start them with torchrun, or leave shard out"
            )
        backbone = model.backbone
        # The embeddings are asked apart from the backbone as well, where pictures stand between words.
        inner = (backbone.get_input_embeddings(), *layers_of(backbone))
        kinds = {weight.dtype for part in inner for weight in part.parameters()}
        if len(kinds) > 1:
            raise SpecError(
                f"the backbone has weights in {', '.join(sorted(map(str, kinds)))}, and parts are of one kind: "
                "model.precision = 'fp32'"
            )
        mesh = init_device_mesh(model.device.type, (world.size,))
        # What is left outside, a last norm and a tower at most, each process keeps: processes ask for all in one order then.
        rest = {*backbone.parameters()}.difference(*(part.parameters() for part in inner))
        self.model, self.units = model, [fully_shard(part, mesh=mesh) for part in inner]
        fully_shard(backbone, mesh=mesh, ignored_params=rest)
        for unit in self.units:
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor
        embeddings, *blocks = self.units
        for unit, next_one in zip(self.units, [embeddings, embeddings, *blocks[:-1]], strict=True):
            # Backward, the block below comes while this one runs. By itself FSDP2 goes by the passes that came before, and a pass
            # without gradients (GradCache) leads it astray: processes wait for each other then.
            unit.set_modules_to_backward_prefetch([next_one])
        for part in backbone.modules():
            if isinstance(part, LeanLinear):
                part.packed = part.beside = None  # a weight that comes and goes says nothing of its changes
        # Where the backbone is frozen, texts leave no gradient behind: a process that has nothing else would not ask for the
        # blocks again on the way back, and one with pictures would wait for it.
        anchor = torch.zeros((), device=model.device, requires_grad=True)
        self._anchored = backbone.get_input_embeddings().register_forward_hook(
            lambda module, args, out: out + anchor if torch.is_grad_enabled() else out
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each process has all weights whole and runs the model by itself. All of them must come here."""
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.reshard()
                unit.set_reshard_after_forward(True, recurse=False)

    def join(self) -> None:
        """The weights are plain again, to be written; the model is not to be run any more. All processes must come here."""
        self._anchored.remove()
        for module in self.model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if isinstance(weight, DTensor):
                    setattr(module, name, nn.Parameter(unsharded(weight), requires_grad=weight.requires_grad))


def unsharded(tensor: Tensor) -> Tensor:
    """A tensor whole, if it lies in parts; all processes must ask for it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def put(own: Tensor, whole: Tensor) -> Tensor:
    """`own`, which may lie in parts, with the numbers of a whole tensor."""
    if isinstance(own, DTensor):
        whole = distribute_tensor(whole.to(own.device, own.dtype), own.device_mesh, own.placements)
    with torch.no_grad():
        return own.copy_(whole)


def clip(weights: Iterable[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients together, of weights in parts and of whole ones; scaled down where it is more than `most`."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for weight in weights:
        kinds[isinstance(weight, DTensor)].append(weight)
    norms = [unsharded(torch.nn.utils.get_total_norm(own)) for some in kinds if (own := _gradients(some))]
    total = torch.stack(norms).norm() if len(norms) > 1 else norms[0] if norms else torch.zeros(())
    for some in kinds:
        torch.nn.utils.clip_grads_with_norm_(some, most, total)
    return total


def _gradients(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
