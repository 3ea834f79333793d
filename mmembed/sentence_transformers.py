"""The sentence-transformers folder that all its readers accept, written from an embedder of texts."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import SpecError
from .folders import ACTIVATIONS, POOLING_MODES
from .model import EmbeddingModel
from .nn.heads import Dense, LayerNorm, Whiten
from .prompts import Templates
from .spec import ModelSpec
from .tokenizer import Tokenizer, TransformersTokenizer
from .weights import write_tensors

_PLAIN: Mapping[str, Any] = {
    "vision": None,
    "projector": None,
    "positions": "auto",
    "bidirectional_from": None,
    "layers": (-1,),
    "norm_layers": False,
    "mix": {"kind": "mean"},
    "intervention": None,
    "routing": None,
    "tokens": None,
    "sparse": None,
    "apart": False,
    "cleaning": None,
    "instruction_cleaning": None,
    "fill": False,
    "fuse": None,
}
"""Fields of a spec that the form has no words for, and what they must say."""


def write(folder: Path, model: EmbeddingModel, tokenizer: Tokenizer) -> None:
    """Write modules.json, the backbone and its tokenizer, pooling and heads, by the keys and class names that versions before
    5.4, 6 and later, text-embeddings-inference and vLLM all read. Opening and closing tokens go into tokenizer.json.

    Raises:
        SpecError: what the spec says and the form cannot, every item of it.
    """
    spec = model.spec
    said, cannot = _prompts(spec.prompts, spec.instructions)
    cannot += _cannot(spec, model, tokenizer)
    if cannot:
        raise SpecError(f"sentence-transformers has no words for this of {spec.name!r}: {'; '.join(cannot)}")
    assert isinstance(tokenizer, TransformersTokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors leaves them to their owner alone
    _write_tokenizer(folder, spec, tokenizer)
    lower = bool(spec.tokenizer.get("lower"))
    _json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_length, "do_lower_case": lower})
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _json(
        _made(folder / "1_Pooling") / "config.json", _pooling(spec, model.backbone.config.get_text_config().hidden_size)
    )
    for head in model.heads:
        kind = "LayerNorm" if isinstance(head, LayerNorm) else "Dense"
        modules.append((kind, f"{len(modules)}_{kind}"))
        _write_head(_made(folder / modules[-1][1]), head)
    if spec.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        _made(folder / modules[-1][1])
    listed = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (kind, path) in enumerate(modules)
    ]
    _json(folder / "modules.json", listed)
    rest = {"prompts": said, "default_prompt_name": spec.default_prompt_name, "similarity_fn_name": "cosine"}
    _json(folder / "config_sentence_transformers.json", rest)


def _cannot(spec: ModelSpec, model: EmbeddingModel, tokenizer: Tokenizer) -> list[str]:
    found = [f"{name}={getattr(spec, name)!r}" for name, value in _PLAIN.items() if getattr(spec, name) != value]
    if not isinstance(tokenizer, TransformersTokenizer) or tokenizer.clean is not None:
        found.append(f"a tokenizer of the kind {spec.tokenizer['kind']!r}")
    kinds = _kinds(spec)
    if not set(kinds) <= set(POOLING_MODES.values()) or list(kinds) != [
        k for k in POOLING_MODES.values() if k in kinds
    ]:
        found.append(f"the pooling {dict(spec.pooling or {})}")
    if spec.mask == "causal+image":
        found.append("mask='causal+image'")
    elif spec.mask != model.made_for:  # the backbone's own configuration says that one
        found.append(f"mask={spec.mask!r} over a backbone that was composed with mask={model.made_for!r}")
    found += [
        f"a head of the kind {type(h).__name__}" for h in model.heads if not isinstance(h, (Dense, LayerNorm, Whiten))
    ]
    texts = [next(iter(each.values())) for each in spec.prompts.values()]
    opened = spec.open and bool(tokenizer.prefix)
    if spec.counted == "content":
        # Without a prompt nothing is left out there, opening tokens neither.
        if opened and (spec.default_prompt_name is None or any(str(text).startswith("{") for text in texts)):
            found.append("counted='content' without a prompt, where a token opens an item")
    elif spec.counted not in ("all", "unprompted"):
        found.append(f"counted={spec.counted!r}")
    if spec.counted != "all" and "weightedmean" in kinds:
        found.append(f"counted={spec.counted!r} under a position-weighted mean")
    return found


def _prompts(templates: Templates, instructions: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Words before a text, by name, and the prompts that are more than that."""
    said, cannot = {}, []
    for name, by_modality in templates.items():
        given = by_modality.get("text", by_modality.get("any"))
        words: list[str] = []
        pieces = list(string.Formatter().parse(given)) if isinstance(given, str) else []
        for before, slot, _, _ in pieces:
            words.append(before)
            if slot == "instruction" and name in instructions:
                words.append(instructions[name])
            elif slot is not None and slot not in ("text", "content"):
                pieces = []
        ends = bool(pieces) and pieces[-1][1] in ("text", "content")
        if (
            not ends
            or sum(slot in ("text", "content") for _, slot, _, _ in pieces) != 1
            or set(by_modality) - {"text", "any"}
        ):
            cannot.append(f"the prompt {name!r}: {json.dumps(dict(by_modality), ensure_ascii=False, default=list)}")
        said[name] = "".join(words)
    return said, cannot


def _kinds(spec: ModelSpec) -> tuple[str, ...]:
    pooling = spec.pooling or {}
    return tuple(pooling["kinds"] if pooling.get("kind") == "joined" else (pooling.get("kind", ""),))


def _pooling(spec: ModelSpec, width: int) -> dict[str, Any]:
    flags = {f"pooling_mode_{flag}": ours in _kinds(spec) for flag, ours in POOLING_MODES.items()}
    return {"word_embedding_dimension": width, **flags, "include_prompt": spec.counted == "all"}


def _write_head(folder: Path, head: torch.nn.Module) -> None:
    if isinstance(head, LayerNorm):
        settings: dict[str, Any] = {"dimension": head.out}
        state = head.state_dict()
    elif isinstance(head, Whiten):  # (x + b) K = x K + b K
        settings = _dense(head.kernel.shape[0], head.out, bias=True, activation="identity")
        state = {"linear.weight": head.kernel.T, "linear.bias": head.bias @ head.kernel}
    else:
        assert isinstance(head, Dense)
        linear = head.linear
        settings = _dense(linear.in_features, head.out, bias=linear.bias is not None, activation=head.activation)
        settings |= {"use_residual": True} if head.adds else {}
        state = head.state_dict()
    _json(folder / "config.json", settings)
    own = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    write_tensors(folder / "model.safetensors", own)


def _dense(width: int, out: int, *, bias: bool, activation: str) -> dict[str, Any]:
    named = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)
    place = "linear" if named == "Identity" else "activation"
    function = f"torch.nn.modules.{place}.{named}"
    return {"in_features": width, "out_features": out, "bias": bias, "activation_function": function}


def _write_tokenizer(folder: Path, spec: ModelSpec, tokenizer: TransformersTokenizer) -> None:
    """The tokenizer, told in its own file what we put around an item, where that is another thing than it does."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer.save(folder)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    around = [tokenizer.prefix if spec.open else [], tokenizer.suffix if spec.close else []]
    if words("a")["input_ids"] != around[0] + words("a", add_special_tokens=False)["input_ids"] + around[1]:
        front, back = ([tokenizer.token_of(number) for number in numbers] for numbers in around)
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*front, "$A", *back],
            pair=[*front, "$A", "$B", *back],
            special_tokens=[(token, tokenizer.id_of(token)) for token in {*front, *back}],
        )
    words.model_max_length = spec.max_length
    if words.pad_token is None:  # its readers pad, and leave out of account what they padded with
        words.pad_token = words.eos_token or words.convert_ids_to_tokens(0)
    words.save_pretrained(folder)
    if not _reads_back(folder, spec, tokenizer):  # a class that makes its parts anew and forgets what was put into them
        path = folder / "tokenizer_config.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        _json(path, {**said, "tokenizer_class": "PreTrainedTokenizerFast"})
    if not _reads_back(folder, spec, tokenizer):
        raise SpecError(
            f"{type(words).__name__}, written to {folder}, reads texts otherwise than {spec.name!r}: the folder is not whole"
        )


PROBES = ("a", "two words", "Ein Wort, Äpfel; 3.5", "сто 中文")


def _reads_back(folder: Path, spec: ModelSpec, tokenizer: TransformersTokenizer) -> bool:
    """Whether a tokenizer as it was written gives what ours gives; sentence-transformers lowers texts itself where it is told."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    prefix, suffix = tokenizer.prefix if spec.open else [], tokenizer.suffix if spec.close else []
    probes = [text.lower() if spec.tokenizer.get("lower") else text for text in PROBES]
    due = [[*prefix, *tokens.ids, *suffix] for tokens in tokenizer.encode(probes)]
    return words(probes)["input_ids"] == due


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
