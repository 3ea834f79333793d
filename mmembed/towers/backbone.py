"""The shared LLM backbone: any transformers decoder or encoder, run over a packed row or, where it must be, padded."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import InputError, LoadError, SpecError, check_known
from ..hub import ADAPTER
from ..memory import is_out_of_memory
from ..nn import attention
from ..nn.extension import Extension, Turn
from ..nn.positions import Groups, Positioning
from ..nn.precision import alike
from ..nn.row import Recall
from ..nn.spans import Mask, Spans
from ..spec import copied
from . import reading
from .reading import Change

Told = Callable[[Int[Tensor, "B T"]], Mapping[str, Any]]
"""What a vision-language model is told besides the tokens of a padded batch, or its decoder besides those of a packed row."""
NEVER_HALF = ("embedding_gemma2",)
"""Models whose states overflow in fp16, as their authors say."""
ENCODERS_OF_PAIRS = ("t5", "mt5", "umt5")
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
PACKED_VLMS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni_thinker"),
    *("llava_next", "llava_onevision", "paligemma"),
)
"""Vision-language models whose pictures are vectors in the row of a decoder that has nothing else to see: it alone runs, packed.
Not Mllama, whose layers attend to pictures beside the row, nor EmbeddingGemma 2, which looks up more than the vectors, nor
Qwen3.5, whose linear layers go on from token to token."""
TABLES = re.compile(r"^(?!.*(rel|bias)).*(pos|wpe)")
"""What a model calls the table that it looks its positions up in: position_embeddings, embed_positions, wpe, ..."""


def build_backbone(config: Mapping[str, Any]) -> PreTrainedModel:
    """A backbone with fresh weights from the dict of its transformers configuration.

    Args:
        config: as `PreTrainedConfig.to_dict()` gives it, "model_type" included.

    Raises:
        UnknownName: transformers has no model of that type.
        SpecError: the configuration makes no model.
    """
    made = config_of(config)
    try:
        model = _class_of(made).from_config(made, trust_remote_code=False)
    except AssertionError as error:  # torch's word for a padding token that the table of tokens has no row for
        text = made.get_text_config()
        said = ", ".join(f"{key}={getattr(text, key, None)}" for key in ("pad_token_id", "vocab_size"))
        raise SpecError(f"a {made.model_type} backbone cannot be built with {said}: {error}") from None
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise SpecError(f"a {made.model_type} backbone cannot be built: {error}") from None
    return cast(PreTrainedModel, model)


def config_of(said: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of transformers that the dict of one, "model_type" included, describes.

    Raises:
        UnknownName, SpecError: as `build_backbone`.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = copied(said)  # transformers fills in what it is given
    kind = settings.pop("model_type", None)
    check_known("model_type of transformers", kind, CONFIG_MAPPING)
    try:
        return AutoConfig.for_model(kind, **settings)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise SpecError(f"a {kind} model cannot be built: {error}") from None


def _class_of(config: PreTrainedConfig) -> Any:
    """The class of transformers that makes the body; of an encoder with a decoder (T5), the encoder alone."""
    return AutoModelForTextEncoding if config.model_type in ENCODERS_OF_PAIRS else AutoModel


def load_backbone(
    path: str | os.PathLike[str], config: PreTrainedConfig | None = None, prefix: str = ""
) -> PreTrainedModel:
    """The body of a transformers model with its weights, from a folder or by its hub name.

    Args:
        config: replaces its own. prefix: what stands before the names of its weights, other names are not read.

    Raises:
        LoadError: no such model, an adapter without its base, remote code, or weights that the file does not hold.
    """
    return from_pretrained(AutoModel, path, config, prefix)


def from_pretrained(
    made_by: Any, path: str | os.PathLike[str], config: PreTrainedConfig | None, prefix: str = ""
) -> PreTrainedModel:
    """A model by one of transformers' Auto classes, in fp32, all of whose weights were in the folder.

    Weights are safetensors; a torch file is opened only where there is nothing else, by the reader that runs no code.

    Raises:
        LoadError: as `load_backbone`.
    """
    if (Path(path) / ADAPTER).exists():
        raise LoadError(f"{os.fspath(path)!r} is an adapter, merged into its base by mmembed.load(folder)")
    try:
        built_by = config or AutoConfig.from_pretrained(path, trust_remote_code=False)
        model, told = (_class_of(built_by) if made_by is AutoModel else made_by).from_pretrained(
            path,
            config=built_by,
            key_mapping={f"^{re.escape(prefix)}\\.": ""} if prefix else None,
            trust_remote_code=False,
            use_safetensors=not _only_torch(Path(path)),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, UnpicklingError, ValueError) as error:  # RuntimeError: weights of other shapes
        raise LoadError(f"no backbone at {os.fspath(path)!r}: {str(error).splitlines()[0]}") from None
    # A pooler is drawn fresh where an encoder came without one; nothing here reads it.
    missing = [key for key in told["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise LoadError(f"{os.fspath(path)!r} lacks weights: {', '.join(sorted(missing)[:5])}")
    return model


def _only_torch(folder: Path) -> bool:
    there = any((folder / f"pytorch_model.bin{of_parts}").exists() for of_parts in ("", ".index.json"))
    return there and not any(folder.glob("model*.safetensors"))


def prepare_backbone(model: PreTrainedModel, mask: str, layout: str | None, natural: bool = False) -> PreTrainedModel:
    """Set a backbone to a mask and a layout, in evaluation mode, and try on a few tokens that it then computes what
    transformers computes: an attention that ignores `spans`, or holds more than the door gives it, would not.

    Args:
        layout: None is packed where that computes what it should, and else padded.
        natural: whether `natural_mask` has just said the mask, which it takes a while to measure.

    Raises:
        SpecError: they do not go with the backbone.
    """
    kind = model.config.model_type
    text_config(model).use_cache = False
    if layout == "packed" and not packable(model):
        raise SpecError(f"a {kind} backbone cannot run packed; use layout='padded'")
    packed = layout != "padded" and packable(model)
    if not packed and mask == "causal+image":
        raise SpecError("the mask 'causal+image' needs a packed layout")
    if not natural:
        _turn_to(model, mask)
    texts = probe(model)
    with torch.no_grad(), _on_tokens_alone(model):
        due = torch.cat([reading.read(model, {"input_ids": ids[None]}, None, (-1,))[0] for ids in texts])
    ways = [attention.NAME] if packed else []
    # Some have a mask for eager attention alone, where they are set to another than their own.
    ways += ["sdpa", "eager"] if layout != "packed" and mask != "causal+image" else []
    refused: list[SpecError] = []
    for way in ways:
        plain_attention(model, "sdpa" if way == attention.NAME else way, "eager")
        if way == attention.NAME:
            decoder(model).set_attn_implementation(way)
        try:
            _check_states(model, texts, due, cast(Mask, mask))
        except SpecError as error:
            refused.append(error)
        else:
            return model
    raise refused[-1]


def _turn_to(model: PreTrainedModel, mask: str) -> None:
    """Have a backbone read ahead as a mask wants it.

    Raises:
        SpecError: it does not.
    """
    ahead = mask == "bidirectional"
    if reads_ahead(model) == ahead:
        return
    # One flag that every decoder's own mask builder honours (bidirectional decoders are trained with it set).
    text_config(model).is_causal = not ahead
    other = "causal" if ahead else "bidirectional"
    said = f"a {model.config.model_type} backbone cannot have mask={mask!r}: it is {other} by make; use mask={other!r}"
    try:
        turned = reads_ahead(model) == ahead
    except SpecError as error:  # a mask that is none is more than some take
        raise SpecError(said) from error
    if not turned:
        raise SpecError(said)


def _check_states(model: PreTrainedModel, texts: Sequence[Tensor], due: Tensor, mask: Mask) -> None:
    """Hold the states of texts together, and, where what pads them is then nothing, of each alone to what is due.

    Raises:
        SpecError: they are others, or there are none.
    """
    kind, packed = model.config.model_type, is_packed(model)
    how, advice = ("packed", "use layout='padded'") if packed else ("padded", "transformers does not pad it rightly")
    rows = [[*texts], *([] if packed else [[ids] for ids in texts])]
    try:
        with torch.no_grad():
            ours = [
                states(model, torch.cat(row), None, Spans.of([len(ids) for ids in row], mask).to(model.device))
                for row in rows
            ]
    except Exception as error:  # of blocks that were not made for a row, or for several texts
        if is_out_of_memory(error):
            raise
        raise SpecError(f"a {kind} backbone does not run {how}: {error}; {advice}") from error
    if not all(alike(own, due) for own in (ours[0], torch.cat(ours[1:] or ours))):
        raise SpecError(f"a {kind} backbone does not compute {how} what it should: {advice}")


def check_precision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise `SpecError` for a model that does not run in `dtype`."""
    if dtype == torch.float16 and model.config.model_type in NEVER_HALF:
        raise SpecError(f"a {model.config.model_type} backbone overflows in fp16; use precision='bf16' or 'fp32'")


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the part that reads tokens: a vision-language model has one for each part."""
    return model.config.get_text_config()


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part that reads tokens, vectors in their place too: the model itself, unless it sees."""
    config = text_config(model)
    parts = (m for m in chain((model,), model.children(), model.modules()) if isinstance(m, PreTrainedModel))
    return next(part for part in parts if part.config is config)


def natural_mask(model: PreTrainedModel) -> str:
    """The mask that a backbone has as it comes, measured: no one field of a configuration says it of every family."""
    return "bidirectional" if reads_ahead(model) else "causal"


def reads_ahead(model: PreTrainedModel) -> bool:
    """Whether the state of a token moves with the token after the next, under the attention of transformers itself.

    The gradient says it exactly: behind a causal mask it is zero, whatever the weights, the precision or the depth.

    Raises:
        SpecError: the model does not run on tokens alone.
    """
    plain_attention(model.eval(), "eager")
    looked: list[Tensor] = []

    def look(_: nn.Module, __: Any, found: Tensor) -> Tensor:
        looked.append(found.detach().requires_grad_())
        return looked[-1].clone()  # some models write into it

    with _on_tokens_alone(model):
        table = model.get_input_embeddings().weight  # T5's encoder looks it up through a module of its own
        tables = [part for part in model.modules() if getattr(part, "weight", None) is table]
        handles = [part.register_forward_hook(look) for part in tables]
        try:
            with torch.enable_grad():
                first = model(input_ids=probe(model)[0][None], **_no_cache(model)).last_hidden_state[0, 0]
                if not looked:
                    raise NotImplementedError("it looks its tokens up in another table than it says")
                (moved,) = torch.autograd.grad(
                    first @ torch.arange(1, len(first) + 1, device="cpu").to(first), looked[:1]
                )
        finally:
            for handle in handles:
                handle.remove()
        return bool((moved.flatten(0, -2)[2] != 0).any())  # XLNet's tokens lie in the first dimension


@contextmanager
def _on_tokens_alone(model: PreTrainedModel) -> Iterator[None]:
    """While a model runs on nothing but tokens: what goes wrong then names it, and says what else it is.

    Raises:
        SpecError: it does not run so, or has a decoder that would read the tokens too.
    """
    kind = model.config.model_type
    refused = f"a {kind} backbone does not run on tokens alone"
    if "decoder_input_ids" in _arguments(type(model).forward):
        reason = "it has a decoder too, and its encoder alone is wanted"
        if kind in ENCODERS_OF_PAIRS:
            reason += ": a folder, the dict of a configuration, or what transformers makes of it (T5EncoderModel)"
        raise SpecError(f"{refused}: {reason}")
    try:
        yield
    except SpecError:
        raise
    except Exception as error:  # whatever a model is that was made for something else
        if is_out_of_memory(error):
            raise
        raise SpecError(f"{refused}: {type(error).__name__}: {error}") from error


def probe(model: PreTrainedModel) -> list[Int[Tensor, " T"]]:
    """Two short texts of ordinary tokens; one is longer than four, over which some models sum up what they have read."""
    rows, ordinary = model.get_input_embeddings().num_embeddings, list[int]()
    special = _special(model)
    for place in range(7):
        token = place * (rows // 11) + rows // 3
        while token in ordinary or token in special:
            token += 1
        ordinary.append(token)
    return list(torch.tensor(ordinary, device=model.device).split([5, 2]))


def _special(model: PreTrainedModel) -> set[int]:
    """Tokens that a configuration names: what pads, opens and closes a text, stands for a picture."""
    said = {**text_config(model).to_dict(), **model.config.to_dict()}
    named = [own for name, own in said.items() if name.endswith(("_token_id", "_token_index"))]
    return {
        0,
        *(token for own in named for token in (own if isinstance(own, list) else [own]) if isinstance(token, int)),
    }


def plain_attention(model: PreTrainedModel, *wanted: str) -> None:
    """Set the first of the attentions of transformers that the model has; one without any keeps what it does."""
    for name in wanted:
        try:
            return model.set_attn_implementation(name)
        except ValueError:
            continue


def _no_cache(model: PreTrainedModel) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in _arguments(type(model).forward) else {}


@cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """What a model's forward is told by name; reading a signature takes as long as a layer of a small model."""
    return frozenset(inspect.signature(forward).parameters)


def packable(model: PreTrainedModel) -> bool:
    """Whether every token mixing of the backbone goes through the attention door: a recurrent, convolutional or linear
    layer would mix the neighbours of a packed row."""
    kinds = getattr(text_config(model), "layer_types", None)
    plain = text_config(model) is model.config or model.config.model_type in PACKED_VLMS
    plain = plain and (kinds is None or set(kinds) <= PACKABLE_LAYERS)
    return bool(getattr(model, "_supports_attention_backend", False)) and plain


def steady_length(model: PreTrainedModel) -> int | None:
    """The longest item whose rotary positions do not hang on the batch; None where they never do: "longrope" (Phi-3)
    and "dynamic" scaling turn every item of a batch by its longest one."""
    config = text_config(model)
    ropes = getattr(config, "rope_parameters", None) or {}
    limits = [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in (ropes, *(own for own in ropes.values() if isinstance(own, Mapping)))
        if rope.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits, default=None)


def table_of(model: PreTrainedModel) -> int | None:
    """Tokens of the longest item that a table of positions has rows for; None: positions are no table (rotary ones, biases),
    and end nowhere."""
    part = decoder(model)
    within = [own for own in part.modules() if isinstance(own, PreTrainedModel) and own.config is not part.config]
    sight = {id(own) for tower in within for own in (*tower.modules(), *tower.buffers())}
    named = [(name.rpartition(".")[2], own) for name, own in (*part.named_modules(), *part.named_buffers())]
    named = [(name, own) for name, own in named if id(own) not in sight]  # GIT's tower, say
    tables = [own for name, own in named if TABLES.search(name)]
    rows = [own.num_embeddings - int(getattr(own, "offset", 0)) for own in tables if isinstance(own, nn.Embedding)]
    rows += [len(own) for own in tables if isinstance(own, Tensor) and own.ndim == 2 and len(own) > 1]
    if not rows:
        return None
    said = getattr(text_config(model), "max_position_embeddings", None)
    return min([min(rows) - _first_position(model), *([said] if said else [])])


def is_packed(model: PreTrainedModel) -> bool:
    return text_config(model)._attn_implementation == attention.NAME


def _body(model: PreTrainedModel) -> PreTrainedModel:
    """What runs: packed, the part that reads tokens; padded, a vision-language model whole."""
    return decoder(model) if is_packed(model) else model


def states(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
) -> Float[Tensor, "T D"]:
    """Last hidden states of a packed row; `embeds`, where given, stand in for `ids`."""
    return layer_states(model, ids, embeds, spans)[0]


def layer_states(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
    layers: Sequence[int] = (-1,),
    told: Told | None = None,
    change: Change | None = None,
    groups: Groups | None = None,
    only: Int[Tensor, " C"] | None = None,
    recall: Recall | None = None,
) -> Float[Tensor, "L C D"]:
    """States of a packed row at each of `layers`; `embeds`, where given, stand in for `ids`.

    Layer -1 is the last, after the final norm (before it, where the configuration has tie_last_hidden_states=False); -2,
    -3, ... are what earlier blocks gave, and 0 the embeddings, none of them normed: transformers' `hidden_states`. Blocks
    behind the deepest layer do not run.

    Args:
        told: what a vision-language model is told of its images.
        change: what is changed on the way, see `mmembed.nn.interventions`. groups: how distant tokens count their distance.
        only: tokens of the row, in order, whose states are given; None: all. What no other needs is not computed for them.
        recall: gives the keys and values of the row's tokens that are not among `spans.asking`, and run through no layer.

    Raises:
        InputError: an item longer than `steady_length`.
    """
    inputs, rows = _inputs(model, ids, embeds, spans, told, groups)
    if recall is not None:
        inputs["recall"] = recall
    return reading.read(_body(model), inputs, rows, layers, change, only)


def check_layers(model: PreTrainedModel, mask: str, layers: Sequence[int]) -> None:
    """Hold the states of layers to be those of the tokens that they are given for.

    Raises:
        SpecError: blocks that hold their tokens in an order of their own, as XLNet's do, or several of each token (Gemma 3n).
    """
    texts, kind = probe(model), model.config.model_type
    together, apart = [texts], [[ids] for ids in texts]

    def read(row: Sequence[Tensor]) -> Tensor:
        spans = Spans.of([len(ids) for ids in row], mask).to(model.device)  # type: ignore[arg-type]
        return layer_states(model, torch.cat(list(row)), None, spans, (*layers, -1))

    try:
        with torch.no_grad():
            both, alone = (torch.cat([read(row) for row in rows], dim=1) for rows in (together, apart))
    except SpecError:
        raise
    except Exception as error:  # of what is no tensor of one state a token
        if is_out_of_memory(error):
            raise
        raise SpecError(
            f"blocks of a {kind} backbone give no states of its tokens: only the last layer is read"
        ) from error
    if both.shape[1] != sum(map(len, texts)) or not alike(both, alone):
        raise SpecError(
            f"blocks of a {kind} backbone hold tokens in an order of their own: only the last layer is read"
        )


def attended(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
    layer: int,
    told: Told | None = None,
    groups: Groups | None = None,
) -> Float[Tensor, "T HE"]:
    """What attention of block `layer` gives each token of a packed row, heads joined, before its output projection."""
    inputs, rows = _inputs(model, ids, embeds, spans, told, groups)
    return reading.attended(_body(model), inputs, rows, layer)


def handed(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
    told: Told | None = None,
) -> dict[str, Any]:
    """What the forward of the part that reads tokens is handed of a packed row."""
    return _inputs(model, ids, embeds, spans, told)[0]


def embedding_width(model: PreTrainedModel) -> int:
    """Numbers of a token's embedding, which some widen before their first block (ALBERT, ELECTRA, OPT)."""
    return int(model.get_input_embeddings().weight.shape[1])


def check_embeds(model: PreTrainedModel, mask: str) -> None:
    """Hold what a backbone makes of embeddings to what it makes of their tokens, beside an item whose embeddings are no token's.

    Raises:
        SpecError: it is something else (Gemma 3n looks up more of each token than its embedding), or nothing can be put there.
    """
    one, two = probe(model)
    ids, table = torch.cat([one, two, one]), model.get_input_embeddings()
    spans = Spans.of([len(one), len(two), len(one)], mask).to(ids.device)  # type: ignore[arg-type]
    kind = model.config.model_type
    with torch.no_grad():
        embeds = table(ids)
        embeds[-len(one) :] *= 0.5
        due = states(model, ids, None, spans)
        try:
            ours = states(model, ids, embeds, spans)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise SpecError(f"nothing can be put between the tokens of a {kind} backbone: {error}") from error
    if not alike(ours[: -len(one)], due[: -len(one)]):
        raise SpecError(
            f"a {kind} backbone makes of its tokens' embeddings something else than of the tokens: it takes neither pictures "
            "of another tower nor a placeholder"
        )


def check_projection(model: PreTrainedModel, layer: int) -> None:
    """Raise `SpecError` where block `layer` has no attention output projection that an intervention can stand before."""
    if not reading.has_output_projection(model, layer):
        raise SpecError(
            f"block {layer} of a {model.config.model_type} backbone has no self_attn.o_proj to stand before"
        )


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm behind the last block of a prepared backbone.

    Raises:
        SpecError: it has none.
    """
    ids = torch.cat(probe(model))
    spans = Spans.of([len(ids)], "causal").to(ids.device)
    return reading.final_norm(_body(model), _inputs(model, ids, None, spans)[0])


def positioned(model: PreTrainedModel, positioning: Positioning | None, mask: str) -> PreTrainedModel:
    """The same weights under other positions: as it is, or with rotary positions of another base.

    Raises:
        SpecError: they do not go with the backbone, its layout or its mask.
    """
    if positioning is None:
        return model if rotary_of(model) is None else _rebased(model, None)
    kind, config = model.config.model_type, text_config(model)
    if config is not model.config:
        raise SpecError(f"a {kind} model numbers its tokens itself, in rows and columns")
    if not positioning.windows and not is_packed(model) and getattr(config, "sliding_window", None) is not None:
        raise SpecError(f"a padded {kind} backbone holds its sliding windows: compose it packed, or say windows=True")
    if positioning.of_table and table_of(model) is None:
        raise SpecError(
            f"a {kind} backbone looks its positions up in no table, and these are of a table that was stretched"
        )
    numbers = positioning.number(torch.arange(9), torch.full((9,), 9))
    base = rotary_base(model)
    turns = positioning.groups() is not None or numbers.is_floating_point()
    if base is None and (turns or positioning.theta(1.0) != 1.0):
        raise SpecError(f"a {kind} backbone has no rotary positions of one base, which these need")
    if positioning.groups() is not None:
        if not is_packed(model) or mask != "causal":
            raise SpecError("SelfExtend needs a causal backbone that runs packed")
        _check_turns(model)
    return model if base is None else _rebased(model, positioning.theta(base))


def rotary_of(model: PreTrainedModel) -> nn.Module | None:
    """The one module that makes the rotary positions of all layers; None: there is none, or more than one."""
    found = [part for part in model.modules() if isinstance(getattr(part, "inv_freq", None), Tensor)]
    own = getattr(model, "rotary_emb", None)
    return own if found == [own] else None


def rotary_base(model: PreTrainedModel) -> float | None:
    """The base that rotary positions were trained with."""
    said = getattr(text_config(model), "rope_parameters", None) or {}
    return None if rotary_of(model) is None or "rope_theta" not in said else float(said["rope_theta"])


def _rebased(model: PreTrainedModel, base: float | None) -> PreTrainedModel:
    """The same weights with rotary positions of a base, None: the trained one; the model itself stays as it is."""
    rotary, config = model.rotary_emb, copy.deepcopy(text_config(model))
    if base is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": base}
    made = type(rotary)(config=config).to(device=rotary.inv_freq.device, dtype=rotary.inv_freq.dtype)
    if torch.equal(made.inv_freq, rotary.inv_freq):
        return model
    body = copy.copy(model)
    body._modules = {**model._modules, "rotary_emb": made}
    return body


def _extension(model: PreTrainedModel, groups: Groups, positions: Int[Tensor, " T"]) -> Extension:
    return Extension(
        groups,
        _turn(model, groups.query(positions) - positions),
        _turn(model, groups.key(positions) - positions),
    )


def _turn(model: PreTrainedModel, by: Int[Tensor, " T"]) -> Turn:
    like = torch.empty(0, dtype=model.dtype, device=by.device)
    cos, sin = model.rotary_emb(like, position_ids=by[None])
    scale = model.rotary_emb.attention_scaling  # is in what the door is given already
    return cos / scale, sin / scale


def _check_turns(model: PreTrainedModel) -> None:
    """Hold the door's turns to the model's own: all tokens turned on by p from position p stand at 2p.

    Raises:
        SpecError: the model turns otherwise.
    """
    ids = torch.cat(probe(model))
    spans = Spans.of([len(ids)], "causal").to(ids.device)
    twice = dataclasses.replace(spans, numbers=spans.positions * 2)
    inputs, _ = _inputs(model, ids, None, spans)
    on = _turn(model, spans.positions)
    inputs["extension"] = Extension(Groups(1, -len(ids), 0, None), on, on)  # every token is a distant one
    own = f"a {model.config.model_type} backbone turns its rotary positions in a way of its own"
    with torch.no_grad():
        due = states(model, ids, None, twice)
        try:
            ours = reading.read(model, inputs, None, (-1,))[0]
        except NotImplementedError as error:
            raise SpecError(f"a {model.config.model_type} backbone is not extended: {error}") from error
        except RuntimeError as error:  # of a part of each head, as GPT-NeoX
            raise SpecError(own) from error
    if not alike(ours, due):
        raise SpecError(own)


def _inputs(
    model: PreTrainedModel,
    ids: Int[Tensor, " T"],
    embeds: Float[Tensor, "T D"] | None,
    spans: Spans,
    told: Told | None = None,
    groups: Groups | None = None,
) -> tuple[dict[str, Any], Int[Tensor, " T"] | None]:
    """What the model's forward takes for a packed row, and where the row's tokens lie in the grid it makes of them."""
    steady, longest = steady_length(model), spans.longest
    if steady is not None and longest > steady:
        raise InputError(
            f"an item of {longest} tokens: beyond {steady} a {model.config.model_type} backbone turns its positions by "
            f"the longest item of the batch, and a vector would hang on its company; compose with max_length={steady}"
        )
    numbers = _numbers(model, ids, embeds, spans)
    if is_packed(model):
        if spans.asking is not None:
            ids, numbers = ids[spans.asking], numbers[..., spans.asking]
            embeds = None if embeds is None else embeds[spans.asking]
        row: dict[str, Any] = {"input_ids": ids[None]} if embeds is None else {"inputs_embeds": embeds[None]}
        if groups is not None:
            row["extension"] = _extension(model, groups, spans.positions)
        return {
            **row,
            "position_ids": (numbers + _first_position(model)).unsqueeze(-2),
            "spans": spans,
            **({} if told is None else told(ids[None])),
            **_no_cache(_body(model)),
        }, None
    inputs, where = _padded(model, ids, embeds, spans, numbers)
    images = {} if told is None else told(inputs["input_ids"])
    return {**inputs, **images, **_no_cache(model)}, where


def _padded(
    model: PreTrainedModel, ids: Int[Tensor, " T"], embeds: Float[Tensor, "T D"] | None, spans: Spans, numbers: Tensor
) -> tuple[dict[str, Any], Int[Tensor, " T"]]:
    """The same as a padded batch, right-padded: what comes later cannot change what a causal layer saw before."""
    longest = max(spans.lengths)
    item = torch.arange(len(spans.lengths), device=ids.device).repeat_interleave(
        torch.tensor(spans.lengths, device=ids.device)
    )
    where = item * longest + (torch.arange(len(ids), device=ids.device) - spans.start)
    cells = len(spans.lengths) * longest
    mask = torch.zeros(cells, dtype=torch.long, device=ids.device).index_fill(0, where, 1)
    pad = getattr(text_config(model), "pad_token_id", None) or 0
    inputs: dict[str, Any]
    if embeds is None:
        grid = torch.full((cells,), pad, dtype=ids.dtype, device=ids.device).index_copy(0, where, ids)
        inputs = {"input_ids": grid.view(-1, longest)}
    else:
        grid = embeds.new_zeros(cells, embeds.shape[-1]).index_copy(0, where, embeds)
        inputs = {"inputs_embeds": grid.view(-1, longest, embeds.shape[-1])}
    if "position_ids" in _arguments(type(model).forward):
        first = _first_position(model)
        row = torch.zeros(cells, dtype=numbers.dtype, device=ids.device)
        inputs["position_ids"] = row.index_copy(0, where, numbers).view(-1, longest) + first
    return {**inputs, "attention_mask": mask.view(-1, longest)}, where


def _numbers(
    model: PreTrainedModel, ids: Int[Tensor, " T"], embeds: Float[Tensor, "T D"] | None, spans: Spans
) -> Tensor:
    """How tokens are numbered before the first position is added; RoBERTa's family passes over padding that is a text's own word,
    and puts it where its padding stands."""
    numbers = spans.positions if spans.numbers is None else spans.numbers
    pad = _first_position(model) - 1
    least = 0 if embeds is None else 1  # 0 stands where a placeholder does
    if pad < least or spans.numbers is not None or spans.shared:
        return numbers
    padding = (ids == pad).long()
    before = padding.cumsum(0) - padding
    return torch.where(padding > 0, -1, numbers - before + before[spans.start])


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa's family counts positions from the padding id on (its learned table keeps those rows free)."""
    embeddings = getattr(model, "embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    return 0 if offset is None else int(offset) + 1
