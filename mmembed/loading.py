"""How an embedder is made: loaded by name, or composed from parts."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import folders, hub
from .dual import DualEncoder, load_open_clip
from .embedder import GOLDEN_FILE, Embedder
from .errors import LoadError, SpecError, check_known
from .memory import is_out_of_memory
from .model import EmbeddingModel, load_model, reads_logits
from .nn import kernels
from .nn.int8 import check_int8, in_int8
from .nn.pooling import pooled_width
from .nn.precision import BYTES, COMPUTED, INT8, alike, cast, dtype_of
from .nn.spans import Spans
from .nn.sparse import build_sparse_head
from .nn.tokens import build_token_head
from .outputs import STATES, SparseOutput, TokenOutput
from .spec import NATIVE, ModelSpec, copied, described
from .tokenizer import SentencePieceTokenizer, TransformersTokenizer, load_tokenizer
from .towers.backbone import build_backbone, check_precision, load_backbone, probe, states, table_of
from .towers.language_head import LanguageHead, body_of, build_language_model, load_language_model, vocabulary_of
from .towers.lean import lean
from .towers.reading import layers_of
from .towers.vision import VisionTower, compose_vision
from .weights import making

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPEN_CLIP = "open_clip:"
"""Before the name of a model that open_clip, not we, finds."""


@making()
def load(
    name: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    revision: str | None = None,
) -> Embedder:
    """An embedder by name.

    Args:
        name: a folder (ours, of sentence-transformers, of transformers, of open_clip, or of a PEFT adapter), a bundled name
            ("pico"), or "organisation/name" of a hub; None is the bundled default. "open_clip:" before a name of open_clip's
            own: local-dir:<folder>, hf-hub:organisation/name, or <architecture>:<file or tag of weights>; a tag is
            downloaded by open_clip.
        base: folder or name of the model that an adapter is merged into; None is what the adapter itself names, as a
            folder beside it or of the hub.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        precision: "fp32", "bf16" or "fp16": what weights and products are kept in; or "int8" on a CPU: the linear layers of
            the backbone's blocks but attention's values in bytes, one scale an output and one a token, the rest in fp32.
            Vectors then move by a few hundredths (`benchmarks/measure_precision.py`), and are not to be saved or compared
            with those of fp32.
        revision: of a hub repository.
    """
    dtype = dtype_of(precision, COMPUTED)
    entries: Sequence[Mapping[str, Any]] = ()
    model: EmbeddingModel | DualEncoder
    if isinstance(name, str) and name.startswith(OPEN_CLIP):
        if base is not None:
            raise SpecError(f"{name} is no adapter: it stands on no other model, and base= is for those that do")
        model, words = load_open_clip(name.removeprefix(OPEN_CLIP), revision)
    else:
        folder = hub.find(name, revision=revision)
        model, words = load_model(folder, None if base is None else hub.find(base))
        golden = folder / GOLDEN_FILE
        try:
            entries = json.loads(golden.read_text(encoding="utf-8")) if golden.exists() else ()
        except ValueError as error:
            raise LoadError(f"{golden} is no JSON: {error}") from None
    tokenizer = load_tokenizer(words, copied(model.spec.tokenizer))
    if isinstance(model, EmbeddingModel):
        check_precision(model.backbone, dtype)
        if model.blind is not None:
            warnings.warn(f"{model.spec.name!r}: {model.blind}", stacklevel=3)
    return Embedder(_held(model, precision, device), tokenizer, entries)


@making()
def compose(
    *,
    backbone: PreTrainedModel | Mapping[str, Any] | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | SentencePieceTokenizer | str | os.PathLike[str],
    vision: Mapping[str, Any] | None = None,
    projector: Mapping[str, Any] | str | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    **spec: Any,
) -> Embedder:
    """An embedder from parts, trained or fresh.

    Args:
        backbone: a transformers model, a folder or hub name of one, or the dict of a configuration (fresh weights); with a
            `sparse` head that reads logits, a language model.
        tokenizer: a fast tokenizer of transformers or its folder, or a `SentencePieceTokenizer`.
        vision: `{"library": "timm", "name": ...}`, `{"library": "open_clip", "name": ...}` or
            `{"library": "transformers", "path": ...}`, see the `compose` of each in `mmembed.towers`; `{"library":
            "native"}` where the backbone is a vision-language model, see `mmembed.towers.native`; None: text only.
            A tower whose settings name no weights has random ones, of which a warning tells.
        projector: `{"kind": ...}` or a kind; "mlp" where there is a tower.
        device, precision: as in `load`.
        spec: other fields of `ModelSpec`: name, mask, pooling, prompts, max_length (512, or what a table of positions holds,
            if that is less), ...

    Raises:
        SpecError: the parts make no model. UnknownName: a field that the spec does not have.
    """
    known = {f.name for f in dataclasses.fields(ModelSpec)}
    for key in spec:
        check_known("field of the spec", key, known)
    if vision is not None and not isinstance(vision, Mapping):
        raise SpecError(f"vision={vision!r}: settings are wanted, such as {{'library': 'timm', 'name': ...}}")
    if projector is not None and (vision is None or vision.get("library") == NATIVE):
        raise SpecError(f"projector={projector!r} is for a vision tower: vision={{'library': 'timm', 'name': ...}}")
    wanted = SparseOutput.of(spec.get("sparse"))
    body, language_head = _backbone(backbone, wanted is not None and reads_logits(wanted))
    words = _tokenizer(tokenizer)
    tower: VisionTower | None = None
    seeing: dict[str, Any] = {}
    if vision is not None and vision.get("library") == NATIVE:
        seeing["vision"] = {**vision, "processor": _image_processor(backbone, vision.get("processor", {}))}
    elif vision is not None:
        tower, entry = compose_vision(vision)
        with_weights = str(vision.get("name")).startswith(("local-dir:", "hf-hub:"))
        if not with_weights and not any(vision.get(said) for said in ("pretrained", "weights", "path")):
            told = f"the vision tower {vision.get('name')!r} has random weights"
            warnings.warn(
                f"{told}: give 'weights' (a file) or 'pretrained' (which fetches them), or train it", stacklevel=3
            )
        seeing = {"vision": entry, "projector": _kind(projector or "mlp")}
    pooling = spec.pop("pooling", "last")
    pooled = pooled_width(None if pooling is None else _kind(pooling), folders.width(body.config))
    width = next((h["out"] for h in reversed(spec.get("heads", ())) if "out" in h), pooled)
    if pooling is None and "dimension" not in spec:
        tokens = TokenOutput.of(spec.get("tokens")) or STATES
        head = (
            build_token_head(tokens.head, width)
            if wanted is None
            else build_sparse_head(wanted.head, width, vocabulary_of(body, language_head))
        )
        spec["dimension"] = head.out
    if (longest := table_of(body)) is not None:
        spec.setdefault("max_length", min(ModelSpec.max_length, longest))
    said = ModelSpec(
        **{
            "name": "composed",
            "backbone": {"config": described(body.config)},
            "tokenizer": _tokenizer_settings(words),
            "dimension": width,
            "pooling": None if pooling is None else _kind(pooling),
            **seeing,
            **spec,
        }
    )
    model = EmbeddingModel(said, backbone=body, vision=tower, language_head=language_head)
    if model.blind is not None:
        raise SpecError(model.blind)
    check_precision(body, dtype_of(precision, COMPUTED))
    return Embedder(_held(model, precision, device), words)


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of that name, CUDA where there is one and none is named.

    Raises:
        SpecError: none that is here.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise SpecError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SpecError(f"device={device!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
    return chosen


def _held(
    model: EmbeddingModel | DualEncoder, precision: str, device: str | torch.device | None
) -> EmbeddingModel | DualEncoder:
    """The model in a precision on a device, with what makes it fast there."""
    chosen = device_of(device)
    cast(model, dtype_of(precision, COMPUTED))
    if precision == INT8:
        check_int8(chosen)
        if not isinstance(model, EmbeddingModel):
            raise SpecError("precision='int8' is for backbones; a dual encoder takes 'fp32', 'bf16' or 'fp16'")
        _in_bytes(model)
    elif precision != "fp32" and chosen.type == "cpu" and isinstance(model, EmbeddingModel):
        _probed(model, precision)
    if chosen.type == "cpu":
        kernels.make()  # now, not at the first text: by then a server may have given away the right to read what is installed
    return lean(model).to(chosen)


def _in_bytes(model: EmbeddingModel) -> None:
    """Put the linear layers of the blocks in int8, and try on a few tokens that nothing reads their weights past them.

    Raises:
        SpecError: something does, or there are no blocks.
    """
    due = _probed(model, INT8)
    in_int8(layers_of(model.backbone))
    if not alike(_probed(model, INT8), due, BYTES):
        kind = model.backbone.config.model_type
        raise SpecError(f"a {kind} backbone computes something else in int8: use precision='bf16' or 'fp32'")


def _probed(model: EmbeddingModel, precision: str) -> torch.Tensor:
    """States of a few tokens.

    Raises:
        SpecError: there are none in this precision.
    """
    texts = probe(model.backbone)
    spans = Spans.of([len(ids) for ids in texts], str(model.spec.mask)).to(model.device)  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            return states(model.backbone, torch.cat(texts), None, spans)
    except Exception as error:  # of bytes, or of numbers of two precisions, where a model did not expect them
        if is_out_of_memory(error):
            raise
        kind = model.backbone.config.model_type
        raise SpecError(f"a {kind} backbone does not run in {precision}: {error}; use precision='fp32'") from error


def _kind(part: Mapping[str, Any] | str) -> Mapping[str, Any]:
    return {"kind": part} if isinstance(part, str) else part


def _backbone(given: Any, whole: bool) -> tuple[PreTrainedModel, LanguageHead | None]:
    """The body, and if `whole` the language head that goes with it."""
    from transformers import PreTrainedModel

    if isinstance(given, PreTrainedModel):
        return (body_of(given), LanguageHead(given)) if whole else (given, None)
    if isinstance(given, Mapping):
        return build_language_model(given) if whole else (build_backbone(given), None)
    return load_language_model(given) if whole else (load_backbone(given), None)


def _image_processor(backbone: Any, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a native tower's image processor: those of the backbone's folder, with `changed` over them."""
    own = folders.image_processor(hub.find(backbone)) if isinstance(backbone, (str, os.PathLike)) else {}
    return {**own, **changed}


def _tokenizer(given: Any) -> SentencePieceTokenizer | TransformersTokenizer:
    if isinstance(given, (SentencePieceTokenizer, TransformersTokenizer)):
        return given
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        return SentencePieceTokenizer.from_file(path) if path.is_file() else TransformersTokenizer.from_folder(path)
    return TransformersTokenizer(given)


def _tokenizer_settings(words: SentencePieceTokenizer | TransformersTokenizer) -> dict[str, Any]:
    kind = "transformers" if isinstance(words, TransformersTokenizer) else "sentencepiece"
    return {"kind": kind, **words.settings}
