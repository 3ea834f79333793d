"""What training leaves: one folder that `mmembed.load` opens, with weights, spec, golden vectors and a card."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from torch import Tensor, nn

from .. import __version__, loading
from ..embedder import GOLDEN_FILE, Embedder
from ..errors import InputError
from ..hub import ADAPTER
from ..images import Image
from ..inputs import Item, Text
from ..model import EmbeddingModel
from ..nn.precision import dtype_of
from ..spec import FILE as SPEC_FILE
from ..towers.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from ..weights import WEIGHTS_FILE, tied, write_tensors
from .building import restore
from .data import Examples
from .held_out import measure
from .recipe import Recipe
from .watch import learnt

CARD = "README.md"
MARK = "<!-- written by mmembed train -->"
SHOWN = 16
"""Numbers of a golden vector."""
PICTURE = 20_000
"""Bytes of a golden picture at most."""


def export(
    recipe: Recipe,
    embedder: Embedder,
    data: Mapping[str, Examples],
    output: Path,
    records: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    """Write the folder: first beside its place, so that what is there stays whole until all of it is written.

    Args:
        trained: weights and statistics that are not those of the base any more.

    Returns:
        scores of what is in the folder, by name of held-out data.
    """
    said = recipe.export
    changed: dict[str, Any] = {"name": recipe.name}
    changed |= {key: getattr(said, key) for key in ("weights", "summary", "licence", "languages") if getattr(said, key)}
    device = embedder.model.device
    embedder.model.eval()
    if recipe.model.precision != "fp32":
        model = embedder.model.cpu().float()
        model.autocasts = False
        left = model.state_dict().keys() - trained.keys() - tied(model)  # of two names of one tensor the first is told
        restore(recipe, model, left)
    part = output / f".{os.getpid()}.part"
    try:
        if said.merge:
            merge_lora(embedder.model)
            embedder.respecified(**changed).save(part)
        else:
            _save_adapter(recipe, embedder.respecified(**changed), part, output, trained)
        base = None if said.merge or recipe.model.load is None else recipe.located(recipe.model.load)
        saved = loading.load(part, base=base, device=device)
        if saved.spec.pooling is not None:  # golden vectors are of whole items
            saved.golden = tuple(_golden(saved, recipe, data))
        (part / GOLDEN_FILE).write_text(json.dumps(saved.golden, ensure_ascii=False, indent=1), encoding="utf-8")
        if said.merge:  # a run that wrote them before goes on without them
            for name in (ADAPTER, ADAPTER_WEIGHTS):
                (output / name).unlink(missing_ok=True)
        # Not what was seen last: weights may have been rounded since, and the spec be another one.
        scores = {name: measure(saved, data[held.data], held) for name, held in recipe.held_out.items()}
        card = output / CARD
        if not card.exists() or card.read_text(encoding="utf-8").startswith(MARK):
            (part / CARD).write_text(_card(recipe, saved, data, records, scores), "utf-8")
        for file in sorted(part.iterdir(), key=lambda path: path.name == "spec.json"):
            file.replace(output / file.name)
        return scores
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_adapter(recipe: Recipe, embedder: Embedder, part: Path, output: Path, trained: Mapping[str, Tensor]) -> None:
    """LoRA in PEFT's layout, and what else was trained beside it; the base is named, not written."""
    from peft import get_peft_model_state_dict

    model = embedder.model
    assert isinstance(model, EmbeddingModel)
    part.mkdir(parents=True, exist_ok=True)
    embedder.tokenizer.save(part)
    (part / SPEC_FILE).write_text(embedder.spec.to_json(), encoding="utf-8")
    named = recipe.model.load or ""
    beside = (recipe.folder / named).absolute()
    near = output.absolute().parent / beside.name
    if beside.is_dir() and not (near.is_dir() and near.samefile(beside)):
        named = str(beside)
    low = {
        f"base_model.model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model.backbone, save_embedding_layers=False).items()
    }
    config: Any = model.backbone.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = named, True
    config.save_pretrained(part)
    write_tensors(part / ADAPTER_WEIGHTS, low)
    dtype = dtype_of(embedder.spec.weights)
    fresh = ("vision.", "projector.") if recipe.model.vision is not None else ()
    trained = {**trained, **{name: own for name, own in model.state_dict().items() if name.startswith(fresh)}}
    whole = {
        name.replace(".base_layer", ""): (tensor.to(dtype) if tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in trained.items()
        if "lora_" not in name
    }
    write_tensors(part / WEIGHTS_FILE, whole)


def merge_lora(model: nn.Module) -> None:
    """Low-rank adapters that training put in go into the weights they stand beside.

    Raises:
        ValueError: they hold numbers that are none.
    """
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        above, _, own = name.rpartition(".")
        setattr(model.get_submodule(above), own, layer.base_layer)


def _golden(embedder: Embedder, recipe: Recipe, data: Mapping[str, Examples]) -> list[dict[str, Any]]:
    """Inputs of the data, queries and positives by turns, and the first numbers of their vectors."""
    names = [held.data for held in recipe.held_out.values()] or list(data)
    found: list[dict[str, Any]] = []
    seen = set()
    for row in range(recipe.export.golden * 4):
        for name in dict.fromkeys(names):
            if row >= len(data[name]) or len(found) >= recipe.export.golden:
                continue
            try:
                example = data[name][row]
                sides = [example.query, example.positives[0]]
                entry = _entry(sides[(row + len(found)) % 2])
                key = json.dumps(entry)
                if entry is None or key in seen:
                    continue
                seen.add(key)
                thing = {k: Image(v) if k == "image" else v for k, v in entry.items()}
                vector = embedder.encode([thing])[0]
            except InputError:  # a row that its source says to skip
                continue
            found.append({"input": entry, "vector": [round(float(x), 6) for x in vector[:SHOWN]]})
    return found


def _entry(item: Item) -> dict[str, str] | None:
    """An item as golden.json writes it; None where it is too long or too large for that."""
    entry: dict[str, str] = {}
    for part in item:
        key = "text" if isinstance(part, Text) else "image"
        if key in entry:
            return None
        if isinstance(part, Text):
            entry[key] = part.text
            if len(part.text) > 500:
                return None
        else:
            held = _file_of(part)
            if not 0 < len(held) <= PICTURE:
                return None
            entry[key] = f"data:image/png;base64,{base64.b64encode(held).decode()}"
    return entry


def _file_of(image: Image) -> bytes:
    """A picture as the bytes of a file, one that lies in none as a PNG; nothing where its file is gone."""
    source: Any = image.source
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray) or (isinstance(source, str) and source[:5].lower() == "data:"):
        file = io.BytesIO()
        PillowImage.fromarray(image.load()).save(file, "PNG")
        return file.getvalue()
    return Path(source).read_bytes() if Path(source).exists() else b""


def _card(
    recipe: Recipe,
    embedder: Embedder,
    data: Mapping[str, Examples],
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
) -> str:
    """The card of the embedder, for people to go on with."""
    spec = embedder.spec
    steps, done = [record for record in records if "loss" in record], learnt(records)
    shorter = f" ({', '.join(map(str, spec.dimensions))} by `truncate_dim`)" if spec.dimensions else ""
    base = recipe.model.load or "parts composed by its recipe"
    lines = [
        MARK,
        f"# {spec.name}",
        "",
        spec.summary or f"An embedder of {' and '.join(spec.modalities[:2])}, made from {base}.",
        "",
        "```python",
        "import mmembed",
        "",
        f'embedder = mmembed.load("{spec.name}")  # or the path of this folder',
        "```",
        "",
        f"{spec.dimension} numbers a vector{shorter}; {spec.architecture}; reads {spec.max_length} tokens of "
        f"{', '.join(spec.modalities)}; {sum(p.numel() for p in embedder.model.parameters()) / 1e6:.1f} M parameters.",
        f"Languages: {', '.join(spec.languages) or 'not said'}. Licence: {spec.licence or 'not said'}.",
        "",
        "## Scores on held-out data",
        "",
    ]
    if scores:
        lines += ["| data | measure | score |", "|---|---|---|"]
        lines += [f"| {name} | {kind} | {value:.3f} |" for name, own in scores.items() for kind, value in own.items()]
    else:
        lines.append("None was measured.")
    lines += ["", "## How it was made", "", f"`mmembed train recipe.toml` (mmembed {__version__}), from {base}.", ""]
    lines += ["| stage | steps | trained | examples a step | losses |", "|---|---|---|---|---|"]
    for stage in recipe.stage:
        losses = ", ".join(str(loss["kind"]) for task in stage.task for loss in task.losses)
        count = " + ".join(str(task.batch) for task in stage.task)
        own = done.get(stage.name, 0)
        told = str(own) if own == stage.steps else f"{own} of {stage.steps}"
        lines.append(f"| {stage.name} | {told} | {', '.join(stage.train)} | {count} | {losses} |")
    lines += ["", "| data | rows | left out | kind |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {len(own)} | {len(own.skipped) or ''} | {type(own.source).__name__} |"
        for name, own in data.items()
    ]
    if steps:
        spent = sum(
            max(0.0, float(a["seconds"]))
            for a, b in zip(steps, [*steps[1:], None], strict=True)
            if b is None or b["seconds"] < a["seconds"]
        )
        lines += [
            "",
            f"{len(steps)} steps, {sum(s['tokens'] for s in steps):,} tokens, {sum(s['images'] for s in steps):,} pictures, "
            f"{spent / 60:.1f} minutes; the loss went from {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}.",
        ]
    lines += ["", "## Limits", "", "Not written yet: say here what it should not be used for.", ""]
    return "\n".join(lines)
