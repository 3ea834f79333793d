"""What training begins with: the model that a recipe names or composes, on its device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from .. import loading
from ..embedder import Embedder
from ..errors import SpecError
from ..model import EmbeddingModel
from ..towers.language_head import LanguageHead, build_language_model, load_language_model
from . import parts
from .losses import PREDICTED, needs_of
from .recipe import Recipe


def build(recipe: Recipe, device: torch.device) -> tuple[Embedder, LanguageHead | None]:
    """The embedder that training begins with, on its device, and its language head where a loss reads one.

    Raises:
        SpecError, LoadError, UnknownName: as `mmembed.load` and `mmembed.compose`.
    """
    said = recipe.model
    torch.manual_seed(parts.seeded(recipe.seed))
    head: LanguageHead | None = None
    speaking = any(PREDICTED in needs_of(loss) for stage in recipe.stage for task in stage.task for loss in task.losses)
    if said.load is not None:
        embedder = loading.load(recipe.located(said.load), device=device, precision=said.precision)
        if said.vision is not None:
            embedder = _seeing(embedder, recipe, device)
    else:
        given = dict(said.compose or {})
        for key in ("backbone", "tokenizer"):
            if isinstance(given.get(key), str) and (recipe.folder / given[key]).exists():
                given[key] = recipe.folder / given[key]
        vision = given.get("vision") or {}
        for key in {"weights", "path"} & vision.keys():
            if (recipe.folder / vision[key]).exists():
                given["vision"] = {**given["vision"], key: str(recipe.folder / vision[key])}
        if speaking:
            made = build_language_model if isinstance(given["backbone"], Mapping) else load_language_model
            given["backbone"], head = made(given["backbone"])
        embedder = loading.compose(**given, device=device, precision=said.precision)
        if said.identity:
            parts.silence(embedder.model)
    if not isinstance(embedder.model, EmbeddingModel):
        raise SpecError(f"{embedder.spec.name!r} is a dual encoder; a recipe trains models with a shared backbone")
    if speaking:
        head = head or embedder.model.language_head
        if head is None:
            raise SpecError(
                f"a loss reads the language head of {said.load!r}, which has none: compose the embedder of the language model "
                "itself, [model.compose] with backbone = its folder"
            )
        head.to(device)
    changed = {**said.spec, "name": recipe.name}
    return embedder.respecified(**changed), head


def restore(recipe: Recipe, model: nn.Module, names: Iterable[str]) -> None:
    """Weights that were held in less than fp32 get the numbers that the recipe begins with, for which its model is read again.

    Args:
        names: of weights that are in fp32 by now; those of LoRA are not the recipe's, and stay.
    """
    first, _ = build(replace(recipe, model=replace(recipe.model, precision="fp32")), torch.device("cpu"))
    begun, own = first.model.state_dict(), model.state_dict()
    for name in names:
        if "lora_" not in name:
            own[name].copy_(begun[name.replace(".base_layer", "")])


def _seeing(embedder: Embedder, recipe: Recipe, device: torch.device) -> Embedder:
    """The same model behind another tower and a fresh projector."""
    said, spec, model = recipe.model, embedder.spec, embedder.model
    vision = dict(said.vision or {})
    if "weights" in vision and (recipe.folder / vision["weights"]).exists():
        vision["weights"] = recipe.folder / vision["weights"]
    if not isinstance(model, EmbeddingModel) or model.native is not None:
        raise SpecError(f"{spec.name!r} has no tower of its own that another could stand in for")
    made = ("backbone", "tokenizer", "vision", "projector")
    rest = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in made}
    fresh = loading.compose(
        backbone=model.backbone,
        tokenizer=embedder.tokenizer,
        vision=vision,
        projector=said.projector,
        device=device,
        precision=said.precision,
        **rest,
    )
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(("vision.", "projector."))}
    missing, unknown = fresh.model.load_state_dict(kept, strict=False)
    if unknown or any(not name.startswith(("vision.", "projector.")) for name in missing):
        raise SpecError(f"{spec.name!r} has weights that another tower does not leave where they are: {unknown[:3]}")
    return fresh
