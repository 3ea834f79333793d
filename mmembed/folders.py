"""Folders that others wrote: sentence-transformers and plain transformers repositories, read as a `ModelSpec`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import checkpoints, hub, prompts
from .checkpoints import Checkpoint
from .errors import LoadError, SpecError, UnknownName, check_known
from .hub import ADAPTER
from .nn.pooling import pooled_width
from .outputs import SparseOutput, TokenOutput
from .spec import ModelSpec, described

POOLING_MODES = {
    "cls_token": "first",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "last",
}
"""Flags of the old Pooling config, `pooling_mode_*`, and what we call them."""
NEW_POOLING_MODES = {
    "cls": "first",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    **{name: name for name in ("max", "mean", "mean_sqrt_len", "weightedmean")},
    "lasttoken": "last",
}
OLD_WEIGHTS = "pytorch_model.bin"
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "GELU": "gelu", "ReLU": "relu"}
_Modules = tuple[list[str], list[Path]]
"""Names of the modules of a folder, and where each lies."""
UNBOUNDED = 10**6
"""Tokenizers without a limit say 10^30 or so."""
NO_EMBEDDER = re.compile(r".*For\w*(Classification|QuestionAnswering|MultipleChoice|Reward\w*)|HF_ColBERT")
"""Architectures whose last layer is what they were trained for, and no part of a mean of states."""
PROCESSOR = "preprocessor_config.json"
"""An image processor of transformers; an adapter may bring its own."""


@dataclass(frozen=True)
class Found:
    """What a folder holds: the spec, the transformers folder of the backbone and the adapters that are merged into it in
    their order, the configuration by which the backbone is built, a weights file a head, where the tokenizer lies, for the
    heads of `tokens` and `sparse` a weights file a layer, what stands before the names of the backbone's weights, and the names
    of the pooling's weights by ours."""

    spec: ModelSpec
    backbone: Path
    config: Any
    heads: tuple[Path, ...]
    adapters: tuple[Path, ...]
    tokenizer: Path
    others: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    prefix: str = ""
    pooling: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Body:
    """The folder of a backbone's weights, its configuration, the adapters that are merged into them, and its tokenizer's."""

    folder: Path
    config: Any
    adapters: tuple[Path, ...]
    tokenizer: Path


def read(folder: Path, base: Path | None = None) -> Found:
    """What a sentence-transformers folder (modules.json), a plain transformers one (config.json), or one of an adapter
    (adapter_config.json) says it is.

    A plain folder pools as sentence-transformers would: the last token of a causal language model, else the mean; and
    unlike there, vectors are brought to unit length. What is declared of a known checkpoint (`mmembed.checkpoints`) is
    laid over what its folder says; of one that sees, it is all, for its modules are often code of its own. An adapter
    alone is the embedder of its base with the adapter merged into it.

    Args:
        base: what an adapter stands on, in place of what it says: by its name beside the adapter's folder, or of a hub.

    Raises:
        LoadError: neither, files missing, a model that is code of the folder's own, or one that gives labels or scores.
        SpecError: modules or settings that no part here has; nothing is left out silently.
    """
    return _read(folder, checkpoints.of_folder(folder), base)


def _read(folder: Path, known: Checkpoint | None, base: Path | None) -> Found:
    modules = folder / "modules.json"
    all_said = known is not None and {"vision", "pooling"} <= known.said.keys()
    if modules.exists() and not all_said:
        return _sentence_transformers(folder, _json(modules), known, base)
    if (folder / ADAPTER).exists():
        below, before = _below(folder, known, base)
        found = _read(below, known or checkpoints.of_folder(below), None)
        words = folder if _has_tokenizer(folder) else found.tokenizer
        spec = found.spec if known else replace(found.spec, name=folder.resolve().name)
        found = replace(found, spec=spec, adapters=(*found.adapters, *before, folder), tokenizer=words)
        if spec.vision is None or not (folder / PROCESSOR).exists():
            return found
        own = {**spec.vision, "processor": image_processor(folder)}
        return _laid_over(replace(found, spec=replace(spec, vision=own)), folder, known)
    if (folder / "config.json").exists():
        config = _json(folder / "config.json")
        made_as = config.get("architectures") or ()
        other = next((name for name in made_as if NO_EMBEDDER.fullmatch(name)), None)
        if other is not None and known is None:
            raise LoadError(
                f"{folder} is a {other}: it was trained to give labels, scores or vectors of tokens, by a layer that no mean "
                "reads; to embed with the body alone, say so: mmembed.compose(backbone=folder, tokenizer=folder, pooling=...)"
            )
        causal_lm = any(name.endswith("ForCausalLM") for name in made_as)
        pooling = "last" if causal_lm and config.get("is_causal", True) else "mean"
        built_by = _config(folder, known)
        body = getattr(built_by, "vlm_config", built_by)  # a late-interaction retriever holds its body so
        sight = _native(folder, body, known)
        spec = _spec(folder, folder, body, {}, pooling={"kind": pooling}, dimension=width(body), vision=sight)
        return _laid_over(Found(spec, folder, built_by, (), (), folder), folder, known)
    raise LoadError(f"{folder} holds no spec.json, modules.json or config.json: no embedder that mmembed can read")


def base_of(folder: Path, base: Path | None) -> Path:
    """The model that the adapter in a folder stands on: `base`, or what it names, beside it or by that name.

    Raises:
        LoadError: it names none.
    """
    return _below(folder, None, base)[0]


def _below(folder: Path, known: Checkpoint | None, base: Path | None) -> tuple[Path, tuple[Path, ...]]:
    """The model that an adapter stands on, and the adapters that its authors merge into it before this one."""
    settings = _json(folder / ADAPTER)
    before = tuple(_beside(folder, name, None) for name in (known.said.get("adapters", ()) if known else ()))
    named = settings.get("base_model_name_or_path")
    if base is None and not named:
        raise LoadError(
            f"{folder} does not say which model it stands on: load(..., base='folder or organisation/name')"
        )
    try:
        below = _beside(folder, named, settings.get("revision")) if base is None else base
    except UnknownName:
        raise LoadError(
            f"{folder} is an adapter of the model {named!r}, which lies neither beside it nor by that name: "
            "load(..., base='folder or organisation/name')"
        ) from None
    if below.resolve() == folder.resolve():
        raise LoadError(
            f"{folder} names itself as the model it stands on: load(..., base='folder or organisation/name')"
        )
    if before and (below / ADAPTER).exists():
        raise SpecError(f"{below} is an adapter itself: the base of {folder} is the model below them all")
    return below, before


def _beside(folder: Path, name: str, revision: str | None) -> Path:
    """The folder of that whole path; else one of that name beside this one, or the folder or repository of that name."""
    near = folder.absolute().parent / Path(name).name
    whole = Path(name).is_absolute() and Path(name).is_dir()
    beside = near.is_dir() and near.resolve() != folder.resolve()
    return near if beside and not whole else hub.find(name, revision=revision)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


def _body(path: Path, known: Checkpoint | None, base: Path | None) -> _Body:
    """The backbone of a sentence-transformers folder: its own weights, or an adapter and those that it stands on."""
    if not (path / ADAPTER).exists():
        return _Body(path, _config(path, known), (), path)
    below, before = _below(path, known, base)
    body = _body(below, known, None)
    words = path if _has_tokenizer(path) else body.tokenizer
    return _Body(body.folder, body.config, (*body.adapters, *before, path), words)


def _sentence_transformers(
    folder: Path, modules: list[dict[str, Any]], known: Checkpoint | None, base: Path | None
) -> Found:
    settings = _optional(folder / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    names = [_module(folder, module, known) for module in modules]
    paths = [_inside(folder, module["path"]) for module in modules]
    if kind == "SparseEncoder" or names[1:] == ["SpladePooling"]:
        return _sparse_encoder(folder, (names, paths), settings, known, base)
    if kind == "MultiVectorEncoder":
        return _multi_vector_encoder(folder, (names, paths), settings, known, base)
    if kind != "SentenceTransformer":
        raise SpecError(f"{folder} is a {kind}, which is not read")
    if names[:2] != ["Transformer", "Pooling"]:
        other = {
            "StaticEmbedding": "its vectors are a table's, without a backbone: model2vec and sentence-transformers run it",
            "Router": "it goes by another model for queries than for documents: load each folder of the two by itself",
            "Asym": "it goes by another model for queries than for documents: load each folder of the two by itself",
        }.get(names[0], "known: Transformer, Pooling")
        raise SpecError(f"{folder} begins with the modules {names[:2]}; {other}")
    backbone = paths[0]
    pooling, counted = _pooling(_json(paths[1] / "config.json"), paths[1])
    body = _body(backbone, known, base)
    wide = pooled_width(pooling, width(body.config))
    heads: list[dict[str, Any]] = []
    weights: list[Path] = []
    normalize = False
    for name, path in zip(names[2:], paths[2:], strict=True):
        if normalize:
            raise SpecError(f"{folder}: the module {name} comes after Normalize")
        _check_feature(path, "sentence_embedding")
        if name == "Normalize":
            normalize = True
        if name in ("Normalize", "Dropout"):
            continue
        head = _head(name, path)
        wide = head.get("out", wide)
        heads.append(head)
        held = path / "model.safetensors"
        weights.append(held if held.exists() or not (path / OLD_WEIGHTS).exists() else path / OLD_WEIGHTS)
    said = _prompts(settings)
    how = _optional(backbone / "sentence_bert_config.json")
    chats = known is None and "message" in (how.get("modality_config") or {})
    if known is None:
        _check_transformer(folder, backbone, body.config, chats=chats)
    _warn_of_settings(folder, settings, normalize)
    fields: dict[str, Any] = {"pooling": pooling, "heads": tuple(heads), "dimension": wide, "normalize": normalize}
    if chats:
        fields |= _chat(backbone, how, said, settings.get("default_prompt_name"))
    else:
        fields |= {"counted": counted, "vision": _native(backbone, body.config, known)}
    spec = _spec(folder, backbone, body.config, said, **fields)
    found = Found(spec, body.folder, body.config, tuple(weights), body.adapters, body.tokenizer)
    return _laid_over(found, folder, known)


def image_processor(folder: Path) -> dict[str, Any]:
    """The settings of the image processor in a folder of transformers, as `mmembed.towers.native` takes them.

    Raises:
        LoadError: there is none that transformers itself has.
    """
    from transformers import AutoImageProcessor

    try:
        found = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, ImportError) as error:
        raise LoadError(f"{folder} holds no image processor: {str(error).splitlines()[0]}") from None
    said = json.loads(found.to_json_string())
    return {k: v for k, v in said.items() if v is not None and k not in ("processor_class", "_processor_class")}


def _laid_over(found: Found, folder: Path, known: Checkpoint | None) -> Found:
    """What is declared of a known checkpoint over what its folder says; an output whose weights lie in a file that this
    folder does not hold is none that it has."""
    if known is None:
        return found
    said, others = dict(known.said), dict(found.others)
    for name, file in known.said.get("files", {}).items():
        if name == "backbone":  # which transformers finds by itself
            continue
        path = next((p for p in ((folder / file).with_suffix(".safetensors"), folder / file) if p.exists()), None)
        if path is None and known.said.get("dense") is False:
            raise LoadError(f"{folder} holds no {file}, the {name} head of {known.repository}")
        if path is None:
            said.pop(name, None)
        else:
            others[name] = (path,)
    spec = replace(known, said=said).over(found.spec)
    if spec.pooling is None and spec.sparse is not None:
        spec = replace(spec, dimension=spec.sparse.head.get("terms", found.config.vocab_size))
    elif spec.pooling is None and spec.tokens is not None:
        spec = replace(spec, dimension=spec.tokens.head.get("out", spec.dimension))
    names = known.said.get("weights", {})
    return replace(found, spec=spec, others=others, prefix=names.get("backbone", ""), pooling=names.get("pooling", {}))


def _sparse_encoder(
    folder: Path, modules: _Modules, settings: dict[str, Any], known: Checkpoint | None, base: Path | None
) -> Found:
    """A SPLADE folder of sentence-transformers: a masked language model, and how its logits are pooled."""
    names, paths = modules
    if names[:1] not in (["Transformer"], ["MLMTransformer"]) or names[1:] != ["SpladePooling"]:
        raise SpecError(f"{folder} is a SparseEncoder of the modules {names}; known: Transformer, SpladePooling")
    body = _body(paths[0], known, base)
    if known is None:
        _check_transformer(folder, paths[0], body.config, "fill-mask")
    pooling = _json(paths[1] / "config.json")
    head = {
        "kind": "splade",
        "activation": "log1p_log1p_relu" if pooling.get("activation_function") == "log1p_relu" else "log1p_relu",
        "reduce": pooling.get("pooling_strategy", "max"),
    }
    _warn_of_settings(folder, settings, False, "dot")
    sparse = SparseOutput(head=head, top=settings.get("max_active_dims"))
    fields = {"sparse": sparse, "dimension": body.config.vocab_size, "vision": _native(paths[0], body.config, known)}
    spec = _spec(folder, paths[0], body.config, _prompts(settings), pooling=None, normalize=False, **fields)
    found = Found(spec, body.folder, body.config, (), body.adapters, body.tokenizer)
    return _laid_over(found, folder, known)


def _multi_vector_encoder(
    folder: Path, modules: _Modules, settings: dict[str, Any], known: Checkpoint | None, base: Path | None
) -> Found:
    """A late-interaction folder of sentence-transformers: a backbone, layers for its tokens, and which of them count."""
    names, paths = modules
    layers = [name for name in names[1:] if name != "MultiVectorMask"]
    if (
        names[:1] != ["Transformer"]
        or layers not in ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])
        or len(set(names)) < len(names)
    ):
        raise SpecError(
            f"{folder} is a MultiVectorEncoder of the modules {names}; known: Transformer, then Dense (one) and Normalize in "
            "this order, and MultiVectorMask"
        )
    own = _optional(paths[0] / "sentence_bert_config.json")
    told = {key: settings[key] for key in OF_PYLATE if key in settings}  # there the mere key expands queries
    told |= {key: own[key] for key in OF_PYLATE if own.get(key) is not None}
    for key, value in told.items():
        raise SpecError(
            f"{folder}: {key}={value} is not read: prefixes and lengths of a side and expanded queries are missing"
        )
    at = dict(zip(names, paths, strict=True))
    # As sentence-transformers has it, a Dense that names nothing reads tokens, a Normalize does not.
    for name in layers:
        _check_feature(at[name], "token_embeddings", "token_embeddings" if name == "Dense" else "sentence_embedding")
    head: dict[str, Any] = {"kind": "states", "normalize": "Normalize" in at}
    weights: tuple[Path, ...] = ()
    body = _body(paths[0], known, base)
    if known is None:
        _check_transformer(folder, paths[0], body.config)
    wide = width(body.config)
    if "Dense" in at:
        dense = _head("Dense", at["Dense"])
        if dense.pop("activation") != "identity":
            raise SpecError(f"{folder}: a layer for tokens with an activation is not supported")
        head, wide = {**dense, "normalize": "Normalize" in at}, dense["out"]
        weights = (at["Dense"] / "model.safetensors",)
    mask = _optional(at["MultiVectorMask"] / "config.json") if "MultiVectorMask" in at else {}
    if mask.get("keep_only_token_ids"):
        raise SpecError(f"{folder}: keep_only_token_ids is not read")
    words, sides = mask.get("skiplist_words") or [], mask.get("skiplist_tasks") or ["document"]
    if sides not in (["document"], ["query", "document"], ["document", "query"]):
        raise SpecError(f"{folder}: a skiplist for {sides} alone is not supported")
    similarity = settings.get("similarity_fn_name") or "maxsim"
    tokens = TokenOutput.of(
        {"head": head, ("skip_document" if len(sides) == 1 else "skip"): words, "similarity": similarity}
    )
    fields = {"tokens": tokens, "dimension": wide, "vision": _native(paths[0], body.config, known)}
    spec = _spec(folder, paths[0], body.config, _prompts(settings), pooling=None, normalize=False, **fields)
    found = Found(spec, body.folder, body.config, (), body.adapters, body.tokenizer, {"tokens": weights})
    return _laid_over(found, folder, known)


def _warn_of_settings(folder: Path, settings: Mapping[str, Any], normalize: bool, similarity: str = "cosine") -> None:
    """What sentence-transformers does by itself with vectors of a folder, and here its caller asks for.

    Args:
        similarity: by which `Embedder.similarity` compares them, as sentence-transformers calls it.
    """
    if settings.get("truncate_dim"):
        told = f"{folder} gives its first {settings['truncate_dim']} numbers in sentence-transformers: here"
        warnings.warn(f"{told} encode(..., truncate_dim={settings['truncate_dim']}) does", stacklevel=3)
    if not normalize and settings.get("similarity_fn_name") not in (None, similarity):
        told = f"vectors of {folder} are compared by {settings['similarity_fn_name']!r} in sentence-transformers"
        warnings.warn(f"{told}; similarity() is by {similarity!r} here", stacklevel=3)


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, text in (settings.get("prompts") or {}).items() if text is not None}


def _config(backbone: Path, known: Checkpoint | None) -> Any:
    """The configuration by which transformers itself builds the backbone; a folder's own code is never run.

    A folder whose code stands in for a class of transformers is read only where it is a declared checkpoint: a decoder
    made bidirectional by code alone would otherwise give other vectors than its authors', and nobody would know.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    raw = _json(backbone / "config.json")
    own = raw.get("auto_map") or {}
    kind = raw.get("model_type")
    if known is not None and "model_type" in known.said:
        kind = known.said["model_type"]
        inner = raw if CONFIG_MAPPING[kind].sub_configs else raw.get("text_config", raw)
        config = CONFIG_MAPPING[kind].from_dict({**inner, "model_type": kind})
    else:
        if own and kind not in CONFIG_MAPPING:
            raise LoadError(
                f"{backbone} is a {kind} model, which transformers does not have: it is code of its repository "
                f"({', '.join(sorted(map(str, own.values())))}), and code from a folder or a hub is never run here"
            )
        if "AutoModel" in own and known is None:
            raise LoadError(
                f"{backbone} puts code of its own ({own['AutoModel']}) in the place of the {kind} model of "
                "transformers, and code from a folder or a hub is never run here; if the two agree, or differ by the "
                "mask alone, say so: mmembed.compose(backbone=folder, tokenizer=folder, mask=..., pooling=...)"
            )
        try:
            config = AutoConfig.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise LoadError(f"{backbone}: {str(error).splitlines()[0]}") from None
    vars(config).pop("auto_map", None)
    if known is not None:
        _overwrite(config, known.said.get("config", {}))
        _overwrite(config, dict.fromkeys(known.said.get("without", ())))
    return config


def _overwrite(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and hasattr(getattr(config, key, None), "to_diff_dict"):
            _overwrite(getattr(config, key), value)
        else:
            setattr(config, key, value)


def _native(folder: Path, config: Any, known: Checkpoint | None) -> dict[str, Any] | None:
    """The tower inside a vision-language model, with its image processor; None for a model that reads text.

    Raises:
        LoadError: such a model, and nobody has said how its authors prompt and pool it.
    """
    if getattr(config, "vision_config", None) is None:
        return None
    if known is None:
        raise LoadError(
            f"{folder} is a {config.model_type} vision-language model, and no file of it says how its authors prompt and "
            "pool it: a plausible vector would come, and another than theirs; name the folder as a checkpoint of "
            "`mmembed models` if it is one, or say it: mmembed.compose(backbone=folder, tokenizer=folder, "
            "vision={'library': 'native', 'text': ...}, prompts=..., pooling=...)"
        )
    if "vision" not in known.said:
        return None
    return {"library": "native", "processor": image_processor(folder)}


def _chat(folder: Path, how: Mapping[str, Any], said: Mapping[str, str], default: str | None) -> dict[str, Any]:
    """Fields of the spec for a folder whose inputs sentence-transformers sends through a chat template: an item is the
    message of a user, a prompt that of the system, and without one it is the prompt "chat". No prompt is left out of
    pooling there.

    Raises:
        SpecError: settings beyond the template's, or a template that does not put parts one after the other, or that
            writes a query otherwise than a document.
    """
    from transformers import AutoTokenizer

    asked = dict(how.get("processing_kwargs") or {})
    options = dict(asked.pop("chat_template", None) or {})
    asked |= {name: options.pop(name) for name in ("max_length", "restore_suffix", "truncation") if name in options}
    kinds = how["modality_config"]
    form, sees = kinds["message"].get("format", "auto"), "image" in kinds
    if form not in ("structured", "flat")[: 1 if sees else 2]:
        raise SpecError(
            f"{folder} writes its messages with format={form!r}{' of pictures' if sees else ''}: not supported"
        )
    if asked:
        raise SpecError(
            f"{folder} asks for more of its processor than a chat template of parts: {asked}: not supported"
        )
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    one, other = "\ue000", "\ue001"  # private characters, which no template holds

    def rendered(prompt: str, *parts: str, **task: str) -> str:
        content = [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]
        system = [{"type": "text", "text": prompt}]
        told: list[dict[str, Any]] = (
            [{"role": "system", "content": prompt if form == "flat" else system}] if prompt else []
        )
        told.append({"role": "user", "content": parts[0] if form == "flat" else content})
        return str(words.apply_chat_template(told, tokenize=False, **{**task, **options}))

    picture, templates = "", {}
    probe, cleanings = f" A<{one}\nb{other} \n", set()
    opens = False
    for name, prompt in {"chat": "", **said}.items():
        before, _, after = rendered(prompt, one).partition(one)
        if sees:
            picture = rendered(prompt, "")[len(before) :].removesuffix(after)
        parts = (one,) if form == "flat" else (one, "", other) if sees else (one, other)
        if rendered(prompt, *parts) != before + "".join(part or picture for part in parts) + after:
            raise SpecError(f"{folder}: its chat template does not put parts one after the other")
        if {rendered(prompt, one, task=task) for task in ("query", "document")} != {before + one + after}:
            raise SpecError(f"{folder}: its chat template writes a query otherwise than a document: not supported")
        written = rendered(prompt, probe).removeprefix(before).removesuffix(after)
        cleanings.add({probe: None, probe.strip(): "strip", probe.rstrip(): "strip_end"}.get(written, "other"))
        opens |= bool(words.bos_token) and before.startswith(words.bos_token)
        templates[name] = {"any": prompts.literal(before) + prompts.escaped(after)}
    cleaning = cleanings.pop()
    if cleanings or cleaning == "other":
        raise SpecError(f"{folder}: its chat template changes a text in a way that nothing here follows")
    # A processor puts opening and closing tokens around what its template does not open itself; a tokenizer never does.
    around = set(kinds) > {"text", "message"} and not opens
    return {
        "prompts": templates,
        "default_prompt_name": default or "chat",
        "vision": {"library": "native", "processor": image_processor(folder), "text": picture} if sees else None,
        "open": around,
        "close": around,
        "cleaning": cleaning,
        "counted": "all",
    }


def _spec(folder: Path, backbone: Path, config: Any, said: Mapping[str, str], **fields: Any) -> ModelSpec:
    """What a folder says wherever it has a backbone, and the other fields of the spec.

    Args:
        said: its prompts, each put before an item.
    """
    settings = _optional(folder / "config_sentence_transformers.json")
    lower = {"lower": True} if _of_transformer(backbone).get("do_lower_case") else {}
    common = {
        "name": folder.resolve().name,
        "backbone": {"config": described(config)},
        "tokenizer": {"kind": "transformers", **lower},
        "max_length": _max_length(backbone, config),
        "dimensions": (settings["truncate_dim"],) if settings.get("truncate_dim") else (),
        "prompts": {name: {"any": prompts.literal(text)} for name, text in said.items()},
        "default_prompt_name": settings.get("default_prompt_name"),
    }
    return ModelSpec(**{**common, **fields})


def _of_transformer(backbone: Path) -> dict[str, Any]:
    """What a folder says of its module Transformer, under the name of today or one of those before."""
    return next((_json(path) for name in TRANSFORMER_FILES if (path := backbone / name).exists()), {})


def _max_length(backbone: Path, config: Any) -> int:
    """As sentence-transformers: its own limit; else the tokenizer's, or that of positions where they say less. What a table of
    positions holds nothing goes beyond, but that is for those to mind who have the table (`backbone.table_of`)."""
    own = _of_transformer(backbone).get("max_seq_length")
    if own:
        return int(own)
    limits = (
        _optional(backbone / "tokenizer_config.json").get("model_max_length"),
        getattr(config.get_text_config(), "max_position_embeddings", None),
    )
    return min((int(n) for n in limits if n and 0 < n < UNBOUNDED), default=512)


def _pooling(settings: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    if "pooling_mode" in settings:
        given = settings["pooling_mode"]
        modes = [NEW_POOLING_MODES.get(mode, mode) for mode in ([given] if isinstance(given, str) else given)]
    else:
        modes = [ours for flag, ours in POOLING_MODES.items() if settings.get(f"pooling_mode_{flag}")] or ["mean"]
    known = {*NEW_POOLING_MODES.values()}
    if set(modes) - known:
        raise UnknownName("pooling of sentence-transformers", sorted(set(modes) - known)[0], known)
    whole = settings.get("include_prompt", True)
    if not whole and "weightedmean" in modes:
        raise SpecError(f"{path}: weights by position that go on behind a prompt which is not pooled: not supported")
    pooling = {"kind": modes[0]} if len(modes) == 1 else {"kind": "joined", "kinds": modes}
    return pooling, "all" if whole else "unprompted"


def _module(folder: Path, module: Mapping[str, Any], known: Checkpoint | None) -> str:
    """The name of a module's class.

    Raises:
        LoadError: code of the folder's own, under whatever name, unless it is declared what the checkpoint does.
    """
    whole, _, name = module["type"].rpartition(".")
    if known is None and not f"{whole}.".startswith("sentence_transformers."):
        raise LoadError(f"{folder} brings code of its own for its module {module['type']!r}, which is not run")
    return str(name)


def _check_transformer(
    folder: Path, backbone: Path, config: Any, task: str = "feature-extraction", chats: bool = False
) -> None:
    """Raise `SpecError` for what a module Transformer is told and nothing here follows: another vector would come of it.

    Args:
        task: what its `transformer_task` must be. chats: whether its chat template is followed.
    """
    own, how = config.to_dict(), _of_transformer(backbone)
    left = [
        f"{key}={how[key]!r}"
        for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path")
        if how.get(key) is not None
    ]
    left += [f"transformer_task={how['transformer_task']!r}"] if how.get("transformer_task", task) != task else []
    left += [
        f"{key}: {name}={value!r}"
        for key in ("config_args", "config_kwargs")
        for name, value in (how.get(key) or {}).items()
        if own.get(name, own) != value and name not in HARMLESS
    ]
    left += [
        f"{key}: {name}={value!r}"
        for key in ("tokenizer_args", "tokenizer_kwargs", "processor_kwargs", "model_args", "model_kwargs")
        for name, value in (how.get(key) or {}).items()
        if name not in HARMLESS
    ]
    given = how.get("processing_kwargs") or {}
    texts = {**(given.get("text") or {}), **(given.get("common") or {})}
    left += [
        f"processing_kwargs: {name}={value!r}"
        for name, value in texts.items()
        if name not in HARMLESS or (name == "truncation" and not value)
    ]
    words = _optional(backbone / "tokenizer_config.json")
    left += ["truncation_side='left'"] if words.get("truncation_side") == "left" else []
    kinds = how.get("modality_config") or {}
    left += [f"modality_config: message={kinds['message']!r}"] if "message" in kinds and not chats else []
    outputs = {kinds[kind].get("method_output_name", OUTPUTS[task]) for kind in ("text", "message") if kind in kinds}
    left += [f"method_output_name={output}" for output in sorted(map(repr, outputs - {OUTPUTS[task]}))]
    if left:
        raise SpecError(f"{folder}: settings of sentence-transformers that nothing here follows: {', '.join(left)}")


OF_PYLATE = (
    *("query_length", "document_length", "query_expansion", "query_prefix", "document_prefix"),
    *("do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens", "skiplist_words"),
)
"""What late-interaction folders say of the two sides; PyLate's say it beside the prompts."""
OUTPUTS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
"""What a module Transformer gives of its model, by its task."""
HARMLESS = (
    "attn_implementation",
    "clean_up_tokenization_spaces",
    "dtype",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "torch_dtype",
    "trust_remote_code",
    "truncation",
    "use_cache",
    "use_fast",
)
"""Settings that change no vector here."""


def _check_feature(path: Path, due: str, default: str = "sentence_embedding") -> None:
    """Raise `SpecError` where a module behind the backbone reads or writes anything but `due`: what is read there is `due`.

    Args:
        default: what it reads where its folder says nothing; it writes what it reads.
    """
    own = _optional(path / "config.json")
    read = own.get("module_input_name", default)
    written = own.get("module_output_name") or read
    if (read, written) != (due, due):
        raise SpecError(f"{path}: a module that reads {read!r} and writes {written!r}; known: both {due!r}")


def _head(name: str, path: Path) -> dict[str, Any]:
    if name == "LayerNorm":
        return {"kind": "layer_norm"}
    if name != "Dense":
        raise SpecError(f"{path} is a module {name}; known after pooling: Dense, LayerNorm, Normalize")
    settings = _json(path / "config.json")
    # sentence-transformers' Dense without a named activation is a tanh.
    whole = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = whole.rpartition(".")[2]
    check_known("activation of a module Dense", activation, ACTIVATIONS)
    if not whole.startswith("torch."):
        raise SpecError(f"{path}: the activation {whole!r} is code of its authors', which is not run")
    residual = {"residual": True} if settings.get("use_residual") else {}
    return {
        "kind": "dense",
        "out": settings["out_features"],
        "bias": settings.get("bias", True),
        "activation": ACTIVATIONS[activation],
        **residual,
    }


def width(config: Any) -> int:
    """Numbers of a token's last state: EmbeddingGemma 2 projects its own, and says to what."""
    own = config.get_text_config()
    found = getattr(own, "embedding_dim" if own.model_type == "embedding_gemma2_text" else "hidden_size", None)
    if found is None:
        raise SpecError(f"a {config.model_type} configuration says no hidden_size")
    return int(found)


def _inside(folder: Path, path: str) -> Path:
    inner = (folder / path).resolve()
    if not inner.is_relative_to(folder.resolve()):
        raise LoadError(f"{folder}: the module path {path!r} leads out of the folder")
    return inner


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is missing") from None
    except ValueError as error:
        raise LoadError(f"{path} is no JSON: {error}") from None


def _optional(path: Path) -> dict[str, Any]:
    return _json(path) if path.exists() else {}


@dataclass(frozen=True)
class FoundDual:
    """A dual encoder of a folder: its spec, both towers with their weights, and where the tokenizer lies."""

    spec: ModelSpec
    towers: Any
    tokenizer: Path


def read_dual(folder: Path) -> FoundDual | None:
    """The dual encoder that a folder of transformers, sentence-transformers or open_clip holds; None where it holds none.

    A folder that two libraries wrote (LAION's have open_clip_config.json beside config.json) is read as transformers
    reads it; `read_open_clip` reads the other.

    Raises:
        LoadError: files missing. SpecError: settings or modules that no part here has.
    """
    known = checkpoints.of_folder(folder)
    body, normalize = folder, True
    if (folder / "modules.json").exists():
        modules = _json(folder / "modules.json")
        names = [_module(folder, module, known) for module in modules]
        body, normalize = _inside(folder, modules[0]["path"]), "Normalize" in names
        if not _is_dual(body):
            return None
        if names[0] not in ("Transformer", "CLIPModel") or names[1:] not in ([], ["Normalize"]):
            raise SpecError(
                f"{folder} has the modules {names}; of a dual encoder known: Transformer or CLIPModel, Normalize"
            )
        for module in modules[1:]:
            _check_feature(_inside(folder, module["path"]), "sentence_embedding")
    if _is_dual(body):
        return _transformers_dual(folder, body, known, normalize)
    if (folder / "open_clip_config.json").exists():
        return read_open_clip(folder)
    return None


def _is_dual(body: Path) -> bool:
    from .towers.dual_transformers import KINDS

    return _optional(body / "config.json").get("model_type") in KINDS


def _transformers_dual(folder: Path, body: Path, known: Checkpoint | None, normalize: bool) -> FoundDual:
    from transformers import AutoImageProcessor

    from .towers import dual_transformers
    from .towers.vision import Preprocess
    from .towers.vision_transformers import preprocess_of

    config = _config(body, known)
    kind = dual_transformers.KINDS[config.model_type]
    try:
        processor = AutoImageProcessor.from_pretrained(body, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(f"{body} holds no image processor: {str(error).splitlines()[0]}") from None
    preprocess = preprocess_of(processor, int(config.vision_config.patch_size))
    words = _optional(body / "tokenizer_config.json").get("tokenizer_class", "")
    settings = _optional(folder / "config_sentence_transformers.json")
    _warn_of_settings(folder, settings, normalize)
    spec = ModelSpec(
        name=folder.resolve().name,
        backbone={"dual": "transformers", "config": described(config), "preprocess": preprocess},
        tokenizer=_dual_tokenizer(kind.fill, words),
        max_length=min(_max_length(body, config.text_config), config.text_config.max_position_embeddings),
        fill=kind.fill,
        fuse="sum",
        normalize=normalize,
        dimension=dual_transformers.width_of(config),
        dimensions=(settings["truncate_dim"],) if settings.get("truncate_dim") else (),
        prompts={name: {"any": prompts.literal(text)} for name, text in _prompts(settings).items()},
        default_prompt_name=settings.get("default_prompt_name"),
    )
    towers = dual_transformers.load(body, config, Preprocess.of(preprocess))
    return FoundDual(spec if known is None else known.over(spec), towers, body)


def _dual_tokenizer(fill: bool, name: str) -> dict[str, Any]:
    """The spec's `tokenizer` of a dual encoder whose folder names the class `name`.

    SigLIP's is a plain sentencepiece model behind a class that transformers cannot make without protobuf.
    """
    if name.startswith("SiglipTokenizer"):
        return {"kind": "sentencepiece", "suffix": ["</s>"], "pad": "</s>", "clean": "siglip"}
    cased = fill and name.startswith(("Gemma", "Siglip2"))
    return {"kind": "transformers", **({"clean": "lower"} if cased else {})}


def read_open_clip(folder: Path) -> FoundDual:
    """The model of a folder of open_clip, whatever other library's files lie beside it.

    Raises:
        LoadError: files missing. SpecError: a model that no part here runs.
    """
    from .towers import dual_open_clip

    return _of_open_clip(folder.resolve().name, dual_open_clip.load(folder), folder)


def named_open_clip(architecture: str, pretrained: str, revision: str | None) -> FoundDual:
    """An architecture of open_clip with weights from a file or by a tag; a tokenizer that lies in a repository of a hub
    is had from there.

    Raises:
        UnknownName: no such architecture, file or tag. LoadError: no weights. SpecError: a model that no part here runs.
    """
    from .towers import dual_open_clip

    found = dual_open_clip.named(architecture, pretrained)
    words = found.text.get("hf_tokenizer_name")
    name = f"{architecture}:{Path(pretrained).name}"
    return _of_open_clip(name, found, hub.find(words, revision=revision) if words else Path())


def _of_open_clip(name: str, found: Any, tokenizer: Path) -> FoundDual:
    """The spec of what `mmembed.towers.dual_open_clip` found. Its texts are always padded to their full length."""
    text = found.text
    given = dict(text.get("tokenizer_kwargs") or {})
    length = int(text.get("context_length", 77))
    if text.get("hf_tokenizer_name"):
        clean = "open_clip/" + given.pop("clean", "whitespace")
        # CLIPA: [SEP] is counted when a long text is cut, and then made into padding.
        after = {"suffix": ["[PAD]"]} if given.pop("strip_sep_token", False) else {}
        words = {"kind": "transformers", "clean": clean, **after}
    else:
        words = {"kind": "open_clip", "clean": given.pop("clean", "lower")}
    if given:
        raise SpecError(f"{name}: settings of open_clip's tokenizer that nothing here follows: {', '.join(given)}")
    towers = found.towers
    spec = ModelSpec(
        name=name,
        backbone={"dual": "open_clip", "config": dict(found.config), "preprocess": dict(found.preprocess)},
        tokenizer=words,
        max_length=length,
        fill=True,
        fuse="sum",
        dimension=towers.width,
    )
    return FoundDual(spec, towers, tokenizer)
