"""Low-rank adapters in PEFT's layout, merged into the weights that they were trained on, with nothing left over."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import LoadError, MissingExtra, SpecError
from ..hub import ADAPTER
from ..tensors import tensors

WEIGHTS_FILE = "adapter_model.safetensors"
WRAPPERS = {"base_model", "model", "language_model", "thinker", "base_layer", "modules_to_save", "default"}
"""Words of a key that only say in what the layer was wrapped when it was saved."""
LEFT_OUT = ("lm_head",)
"""What most embedders do not have: the layer that gives words, merged where it is there."""
ARITHMETIC = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
NAMING = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
UNDERSTOOD = {
    *ARITHMETIC,
    *NAMING,
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "trainable_token_indices", "bias", "init_lora_weights"),
}
OF_TRAINING = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("lora_dropout", "loftq_config", "eva_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
"""Settings that change no vector of a trained adapter."""
PIECE = re.compile(r"(?P<layer>.+)\.(?P<piece>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\..+)?)")
TOKENS = ".token_adapter.trainable_tokens_delta"


def merge(body: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter of a folder merged into it, by the arithmetic of `peft` in the model's dtype.

    Keys are matched by the name of the layer, whatever the model was wrapped in when the adapter was saved: a language
    model (`base_model.model.model.layers...`), a bare one (`base_model.model.layers...`), or one inside a model that sees.
    LoRA, rsLoRA, DoRA, ranks and alphas by layer, trained rows of the embeddings, and layers saved whole.

    Raises:
        MissingExtra: `peft` is not installed.
        SpecError: a kind of adapter that is not merged here.
        LoadError: a tensor of the file that fits no layer, or a layer of the adapter without its tensors; by name.
    """
    if find_spec("peft") is None:
        raise MissingExtra("peft", "peft")
    settings = _settings(folder)
    names = _Names(body)
    without = {name for name in LEFT_OUT if name not in names.modules}
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    said: dict[str, str] = {}
    whole: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    strange = []
    for key, tensor in _state(folder).items():
        plain = names.plain(key)
        found = PIECE.fullmatch(plain)
        if plain.split(".")[0] in without:
            continue
        if found and found["layer"] in names.modules:
            layer = names.modules[found["layer"]]
            said[layer] = key[: key.index(".lora_")]
            layers[layer][found["piece"].removesuffix(".weight")] = tensor
        elif plain.endswith(TOKENS) and plain.removesuffix(TOKENS) + ".weight" in names.weights:
            rows[names.weights[plain.removesuffix(TOKENS) + ".weight"]] = tensor
        elif plain in names.weights:
            whole[names.weights[plain]] = tensor
        else:
            strange.append(key)
    if strange:
        raise LoadError(f"{folder}: {_some(strange)} fit no layer of the {body.config.model_type} model below")
    _check_whole(folder, settings, {*whole, *rows}, without)
    _check_targets(folder, settings, body, said)
    for name, tensor in whole.items():
        _replace(body, folder, name, tensor)
    for name, tensor in rows.items():
        _replace_rows(body, folder, name, tensor, settings["trainable_token_indices"])
    return _merged(body, folder, settings, layers, said) if layers else body


class _Names:
    """The layers and weights of a model by their plain names, less the words of what they are wrapped in."""

    def __init__(self, body: PreTrainedModel):
        self.wrappers = {*WRAPPERS, body.base_model_prefix} - {""}
        self.modules = self._by_plain_name(name for name, _ in body.named_modules() if name)
        self.weights = self._by_plain_name(name for name, _ in body.named_parameters())

    def plain(self, name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in self.wrappers)

    def _by_plain_name(self, names: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in names:
            plain = self.plain(name)
            if plain and plain in found:
                raise SpecError(f"{found[plain]} and {name} cannot be told apart by the keys of an adapter")
            found[plain] = name
        return found


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{folder / ADAPTER} is no JSON: {error}") from None
    if settings.get("peft_type") != "LORA":
        raise SpecError(f"{folder} is an adapter of the kind {settings.get('peft_type')}; LORA is merged here")
    other = [key for key, value in settings.items() if value and key not in UNDERSTOOD | OF_TRAINING]
    if other:
        raise SpecError(f"{folder}: {', '.join(sorted(other))}: an adapter with this is not merged here")
    begun = settings.get("init_lora_weights", True)
    if begun not in (True, False, "gaussian", "orthogonal", "eva"):
        raise SpecError(
            f"{folder} was trained beside weights that {begun!r} had changed first; save it as a plain adapter: "
            "peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return settings


def _state(folder: Path) -> dict[str, Tensor]:
    older = folder / "adapter_model.bin"  # peft's before safetensors
    return tensors(older if older.exists() and not (folder / WEIGHTS_FILE).exists() else folder / WEIGHTS_FILE)


def _check_whole(folder: Path, settings: Mapping[str, Any], found: set[str], without: set[str]) -> None:
    """Every layer that the configuration says was saved whole, or row by row, must be in the file, but for those that the
    model is `without`."""
    rows = settings.get("trainable_token_indices") or ()
    due = [*(settings.get("modules_to_save") or ()), *(rows if isinstance(rows, Mapping) else ())]
    missing = [
        name
        for name in due
        if name.rpartition(".")[2] not in without and not any(f".{name.rpartition('.')[2]}." in f".{f}" for f in found)
    ]
    if missing or (rows and not found):
        raise LoadError(f"{folder}: {_some(missing or ['the trained rows'])} of its configuration are not in its file")


def _check_targets(folder: Path, settings: Mapping[str, Any], body: PreTrainedModel, said: Mapping[str, str]) -> None:
    """Every layer that the configuration names must have tensors: a file cut short would otherwise pass unnoticed.

    A layer is named as the file names its neighbours: by what stands before the part that both share.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    config = _config(settings, **{key: settings.get(key) for key in NAMING})
    before = {_fronts(layer, key) for layer, key in said.items()}
    missing = set()
    for name, module in body.named_modules():
        if name not in said and isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            names = [theirs + name.removeprefix(ours) for ours, theirs in before if name.startswith(ours)]
            if any(check_target_module_exists(config, each.removeprefix("base_model.model.")) for each in names):
                missing.add(name)
    if missing:
        raise LoadError(
            f"{folder}: its configuration names {_some(sorted(missing))}, and its file holds nothing for it"
        )


def _fronts(ours: str, theirs: str) -> tuple[str, str]:
    """What stands before the longest end that two names share."""
    a, b = ours.split("."), theirs.split(".")
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return "".join(f"{part}." for part in a), "".join(f"{part}." for part in b)


def _replace(body: PreTrainedModel, folder: Path, name: str, tensor: Tensor) -> None:
    weight = body.get_parameter(name)
    if weight is body.get_input_embeddings().weight and len(tensor) != len(weight):
        body.resize_token_embeddings(len(tensor), mean_resizing=False)
        weight = body.get_parameter(name)
    if weight.shape != tensor.shape:
        raise LoadError(f"{folder}: {name} is {tuple(tensor.shape)} there and {tuple(weight.shape)} in the model below")
    weight.data.copy_(tensor)


def _replace_rows(body: PreTrainedModel, folder: Path, name: str, tensor: Tensor, indices: Any) -> None:
    if isinstance(indices, Mapping):
        (indices,) = [each for key, each in indices.items() if key.rpartition(".")[2] == name.split(".")[-2]]
    weight = body.get_parameter(name)
    if tensor.shape != (len(indices), weight.shape[1]):
        raise LoadError(f"{folder}: {name} has {len(tensor)} trained rows, its configuration names {len(indices)}")
    weight.data[torch.tensor(indices)] = tensor.to(weight.dtype)


def _config(settings: Mapping[str, Any], **changed: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{key: settings.get(key, False) for key in ARITHMETIC}, init_lora_weights=False, **changed)


def _merged(
    body: PreTrainedModel,
    folder: Path,
    settings: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, Tensor]],
    said: Mapping[str, str],
) -> PreTrainedModel:
    """What `peft` makes of the low-rank pieces. Ranks are those of the tensors, alphas are looked up by the names of the
    file, which the patterns of its configuration were written for."""
    from peft import LoraModel

    config = _config(settings, target_modules=f"(?:{'|'.join(map(re.escape, layers))})")
    config.rank_pattern = _pattern({layer: _rank(pieces) for layer, pieces in layers.items()})
    config.alpha_pattern = _pattern(_alphas(folder, settings, said))
    tuner = LoraModel(body, config, "default")
    due = {
        name: (parts["layer"], parts["piece"].replace(".default", "").removesuffix(".weight"))
        for name, _ in tuner.model.named_parameters()
        if (parts := PIECE.fullmatch(name))
    }
    given = {(layer, piece) for layer, pieces in layers.items() for piece in pieces}
    for what, where in (("lacks", set(due.values()) - given), ("has no use for", given - set(due.values()))):
        if where:
            raise LoadError(f"{folder} {what} {_some(f'{layer}.{piece}' for layer, piece in sorted(where))}")
    with torch.no_grad():
        for name, (layer, piece) in due.items():
            own, tensor = tuner.model.get_parameter(name), layers[layer][piece]
            if own.shape != tensor.shape:
                raise LoadError(f"{folder}: {layer}.{piece} is {tuple(tensor.shape)}; {tuple(own.shape)} would fit")
            own.copy_(tensor)
        try:
            return tuner.merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError) as error:
            raise SpecError(f"{folder} cannot be merged: {error}") from None


def _rank(pieces: Mapping[str, Tensor]) -> int:
    return next((len(pieces[piece]) for piece in ("lora_A", "lora_embedding_A") if piece in pieces), 1)


def _alphas(folder: Path, settings: Mapping[str, Any], said: Mapping[str, str]) -> dict[str, float]:
    """The alpha of each layer, by the first of the configuration's patterns that its name ends with."""
    patterns = settings.get("alpha_pattern") or {}
    names = {layer: key.removeprefix("base_model.model.") for layer, key in said.items()}
    chosen = {
        layer: next((each for each in patterns if re.fullmatch(rf"(.*\.)?({each})", name)), None)
        for layer, name in names.items()
    }
    unused = [pattern for pattern in patterns if pattern not in chosen.values()]
    if unused:
        raise LoadError(f"{folder}: no layer is called as {_some(unused)} of its alpha_pattern")
    return {layer: settings["lora_alpha"] if key is None else patterns[key] for layer, key in chosen.items()}


def _pattern(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{one expression for all layers of a value: value}`, as peft reads it; each is looked up a layer."""
    layers: dict[Any, list[str]] = defaultdict(list)
    for layer, value in values.items():
        layers[value].append(re.escape(layer))
    return {f"^(?:{'|'.join(names)})": value for value, names in layers.items()}


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
