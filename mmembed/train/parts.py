"""Which weights a stage trains: parts of a model by name, LoRA put into its backbone, and groups of weights with their rates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import MissingExtra, SpecError, UnknownName
from ..model import EmbeddingModel
from .recipe import Lora, Stage

LAYER = re.compile(r"\.(?:layers?|blocks?|h|resblocks|stages)\.(\d+)\.")
FIRST = re.compile(
    r"(^|\.)(embeddings?|embed_(?!vision|audio)\w+|\w+_embed(ding|dings|der)?|patch_\w+|conv1|stem|wte|wpe"
    r"|(cls|class|reg|dist)_token|ln_pre|norm_pre|pre_?layr?norm)(\.|$)"
)
"""What stands before the first layer of a tower: patches, tables of tokens and positions, tokens of its own, their norms."""
HEAD = "spoken."
"""Before the names of weights of a language head, which are trained and not kept at the end."""
TOWERS = ("vision.", "backbone.visual.", "backbone.vision_tower.", "backbone.vision_model.", "backbone.embed_vision.")


IN_TOWERS = r"(?:.*\.)?(?:{})\..*".format("|".join(start.split(".")[-2] for start in TOWERS))
"""Names of layers of a tower inside a backbone, as peft is told them."""


def part_of(name: str, embeddings: frozenset[str]) -> str:
    """The part that a weight belongs to, by its name in the model."""
    if "lora_" in name:
        return "lora"
    if name in embeddings:
        return "embeddings"
    if name.startswith(TOWERS):
        return "tower"
    first = name.partition(".")[0]
    return first if first in ("backbone", "projector", "pooling") else "heads"


def put_lora(model: nn.Module, lora: Lora) -> None:
    """LoRA beside the layers of the backbone that read tokens, untrained: it adds nothing yet. A tower inside has none.

    Raises:
        MissingExtra: no `peft`. SpecError: a model without a backbone. UnknownName: a target that no layer is called.
    """
    if find_spec("peft") is None:
        raise MissingExtra("peft", "train")
    from peft import inject_adapter_in_model

    if not isinstance(model, EmbeddingModel):
        raise SpecError("LoRA goes into a shared backbone, and a dual encoder has none")
    names = [name for name, _ in model.backbone.named_modules() if not _sees(name)]
    for target in () if lora.targets == ("all-linear",) else lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):  # as peft tells them
            parts = {id(part) for part in model.backbone.modules() if isinstance(part, nn.Linear)}
            layers = [name for name in names if id(model.backbone.get_submodule(name)) in parts]
            raise UnknownName("layer for LoRA", target, sorted({name.rpartition(".")[2] for name in layers}))
    try:
        tower = any(_sees(name) for name, _ in model.backbone.named_modules())
        inject_adapter_in_model(lora_config(lora, exclude_modules=IN_TOWERS if tower else None), model.backbone)
    except ValueError as error:
        raise SpecError(f"lora: {error}") from None


def _sees(name: str) -> bool:
    """Whether a layer of a backbone is one of a tower inside."""
    return re.fullmatch(IN_TOWERS, name) is not None


def lora_config(lora: Lora, **more: Any) -> Any:
    """The configuration of `peft`."""
    from peft import LoraConfig

    targets: Any = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        **more,
    )


WRITES = (
    "o_proj.weight",
    "out_proj.weight",
    "dense.weight",
    "down_proj.weight",
    "w2.weight",
    "c_proj.weight",
    "fc2.weight",
)
"""Ends of names of what a block adds to its input by."""


def silence(model: nn.Module) -> None:
    """Every block of the backbone adds nothing: the weights that it writes with become 0.

    Raises:
        SpecError: a block without such weights.
    """
    if not isinstance(model, EmbeddingModel):
        raise SpecError("identity is how the blocks of a shared backbone begin, and a dual encoder has none")
    blocks: dict[int, int] = {}
    for name, weight in model.backbone.named_parameters():
        layer = _layer("." + name)[1]
        if layer >= 0:
            blocks.setdefault(layer, 0)
            if name.endswith(WRITES):
                weight.data.zero_()
                blocks[layer] += 1
    if not blocks or any(count != 2 for count in blocks.values()):
        raise SpecError(f"identity: the blocks of {type(model.backbone).__name__} do not say what they write with")


def choose(model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """The weights that a stage trains, by name, in fp32 as are the statistics beside them; all others are frozen.

    Raises:
        SpecError: a part that the model does not have.
    """
    embeddings = embedded_by(model)
    found: dict[str, nn.Parameter] = {}
    seen = set()
    for name, weight in model.named_parameters():
        part = part_of(name, embeddings)
        mine = {part, "all"} | ({"backbone"} if part == "embeddings" else set())
        trained = bool(mine & set(stage.train)) and not name.startswith(stage.frozen)
        weight.requires_grad_(trained)
        if trained:
            weight.data = weight.data.float()
            if (
                weight.ndim == 4
            ):  # convolutions then run with channels last, which takes two thirds of the time on a CPU
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            found[name] = weight
            seen |= mine
    for buffer in buffers(model, found).values():
        buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data
    known_names = [name for name, _ in model.named_parameters()]
    for start in stage.frozen:
        if not any(name.startswith(start) for name in known_names):
            raise SpecError(f"stage {stage.name!r} freezes {start!r}, and no weight of the model begins so")
    for part in stage.train:
        if part not in seen and part != "all":
            known = sorted({part_of(name, embeddings) for name, _ in model.named_parameters()})
            raise SpecError(f"stage {stage.name!r} trains {part!r}, and the model has only {', '.join(known)}")
    return found


def choose_head(head: nn.Module, model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """The weights of a language head that are none of the model's, by name, in fp32: trained where its embeddings are."""
    own = {id(weight) for weight in model.parameters()}
    trained = bool({"embeddings", "backbone", "all"} & set(stage.train))
    found = {}
    for name, weight in head.named_parameters():
        if id(weight) not in own:
            weight.requires_grad_(trained)
            if trained:
                weight.data = weight.data.float()
                found[HEAD + name] = weight
    return found


def groups(
    weights: Mapping[str, nn.Parameter], stage: Stage, losses: Sequence[nn.Parameter], embeddings: frozenset[str]
) -> list[dict[str, Any]]:
    """Weights as AdamW takes them, those of one rate and one decay together; parameters of losses at the stage's own rate.

    A layer's rate is `layer_decay` times that of the one above it; embeddings are below the first, and so is what else stands
    before it in its tower. Weights that lie in parts are in groups of their own: a fused step takes no mixture.
    """
    depth: dict[str, int] = {}
    for name in weights:
        tower, layer = _layer(name)
        depth[tower] = max(depth.get(tower, 0), layer)
    towers = {tower for tower, layer in map(_layer, weights) if layer >= 0}
    backbone = max((own for tower, own in depth.items() if _of_backbone(tower)), default=0)
    found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        part = part_of(name, embeddings)
        rate = stage.rates.get(part, stage.rates.get("backbone", stage.lr) if part == "embeddings" else stage.lr)
        tower, layer = _layer(name)
        if part == "embeddings":
            rate *= stage.layer_decay ** (backbone + 1)
        elif layer >= 0:
            rate *= stage.layer_decay ** (depth[tower] - layer)
        elif (above := _below(name, towers)) is not None:
            rate *= stage.layer_decay ** (depth[above] + 1)
        decay = stage.weight_decay if weight.ndim > 1 else 0.0
        found.setdefault((rate, decay, isinstance(weight, DTensor)), []).append(weight)
    if losses:
        found.setdefault((stage.lr, 0.0, False), []).extend(losses)
    return [{"params": own, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay, _), own in found.items()]


def _layer(name: str) -> tuple[str, int]:
    """The tower that a weight lies in and the number of its layer there; -1: it lies in none."""
    found = LAYER.search(name)
    if found is None:
        return name.partition(".")[0], -1
    return name[: found.start()], int(found[1])


def _below(name: str, towers: Iterable[str]) -> str | None:
    """The tower before whose first layer a weight stands, by what it is called; None: it stands before none. The tower is that
    which it shares most of its name with."""
    if not FIRST.search(name):
        return None
    parts = name.split(".")
    shared = {
        tower: len([*takewhile(lambda pair: pair[0] == pair[1], zip(parts, tower.split("."), strict=False))])
        for tower in towers
    }
    best = max(shared, key=lambda tower: (shared[tower], -tower.count(".")), default=None)
    return best if best is not None and shared[best] else None


def _of_backbone(tower: str) -> bool:
    """Whether layers of this name are those that read tokens; some backbones hold theirs one name deeper."""
    return tower.partition(".")[0] == "backbone" and not f"{tower}.".startswith(TOWERS)


def embedded_by(model: nn.Module) -> frozenset[str]:
    """The name of the table of token vectors; a head that is tied to it has another."""
    if not isinstance(model, EmbeddingModel):
        return frozenset()
    table = model.backbone.get_input_embeddings().weight
    return frozenset(name for name, weight in model.named_parameters() if weight is table)


CONFIGURED = "_configured_attention_dropout"
"""Where a module of attention keeps the share that its configuration says."""


def set_modes(model: nn.Module, stage: Stage, trained: Mapping[str, nn.Parameter]) -> None:
    """Put every module of the model into the mode that the stage wants: evaluation, but for what is asked to be of training."""
    model.eval()
    own = {name.rpartition(".")[0] for name in trained}
    adapts = any("lora_" in name for name in trained)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in own:
            module.train(stage.batch_norm == "learnt")
        if "lora_dropout" in name and adapts:
            module.train()
    if isinstance(model, EmbeddingModel):
        backbone = model.backbone
        _drop(backbone, stage.attention_dropout)
        if stage.dropout:
            backbone.train()
        if stage.gradient_checkpointing:
            if model.intervention is not None and model.intervention.against is not None:
                raise SpecError(
                    f"stage {stage.name!r}: with gradient_checkpointing a block runs twice, and what its intervention compares "
                    "with is there once: leave one of them out"
                )
            _checkpoint(backbone, stage)
        elif any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()):
            _checkpointing(backbone, "disable")()


def _checkpoint(backbone: PreTrainedModel, stage: Stage) -> None:
    """Have the blocks of a backbone keep what enters them alone, which transformers does where they are in training.

    Raises:
        SpecError: they cannot, or they drop states themselves then and the stage does not.
    """
    try:
        _checkpointing(backbone, "enable")({"use_reentrant": False})
    except ValueError as error:
        raise SpecError(f"stage {stage.name!r}, gradient_checkpointing: {error}") from None
    for module in backbone.modules():
        if isinstance(module, GradientCheckpointingLayer) or module is backbone:
            module.training = True
            share = getattr(module, "dropout", None)
            if isinstance(share, float) and share > 0 and not stage.dropout:
                raise SpecError(
                    f"stage {stage.name!r}: with gradient_checkpointing blocks of a {backbone.config.model_type} backbone drop a "
                    f"share of {share}: dropout = true, or leave it out"
                )


def _checkpointing(backbone: PreTrainedModel, done: str) -> Callable[..., None]:
    """transformers' method, under its name of today or the one before."""
    names = (f"{kind}_checkpointing_{done}" for kind in ("activation", "gradient"))
    found: Callable[..., None] = next(getattr(backbone, name) for name in names if hasattr(backbone, name))
    return found


def _drop(backbone: nn.Module, share: float | None) -> None:
    """Set what attention leaves out in training; None: what it did before any stage said otherwise.

    Raises:
        SpecError: a backbone that does not say where that is.
    """
    found = False
    for module in backbone.modules():
        held: Any = getattr(module, "attention_dropout", None)
        inner: Any = getattr(module, "dropout", None)
        if isinstance(held, float):
            own = module.__dict__.setdefault(CONFIGURED, held)
            module.attention_dropout = own if share is None else share  # type: ignore[assignment]
            found = True
        elif type(module).__name__.endswith("Attention") and isinstance(inner, nn.Dropout):
            own = module.__dict__.setdefault(CONFIGURED, inner.p)
            inner.p = own if share is None else share
            found = True
    if not found and share is not None:
        raise SpecError(f"{type(backbone).__name__} does not say where its attention drops anything: attention_dropout")


def buffers(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Numbers that change with training and have no gradient: the statistics of trained batch norms."""
    own = {name.rpartition(".")[0] for name in trained}
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[0] in own
        and name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    }


def count(weights: Sequence[Tensor]) -> int:
    """Numbers in them, each tensor once."""
    return sum({id(w): w.numel() for w in weights}.values())


def seeded(*numbers: int) -> int:
    """A seed for torch that hangs on all of the numbers."""
    import numpy as np

    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
