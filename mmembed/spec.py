"""What an embedder is, as data: `ModelSpec`, kept as spec.json beside the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from . import prompts
from .errors import LoadError, SpecError, UnknownName, check_known
from .inputs import MODALITIES
from .outputs import COUNTED, Read, SparseOutput, TokenOutput

FILE = "spec.json"
FORMAT = 1
MASKS = ("causal", "bidirectional", "causal+image")
LAYOUTS = ("packed", "padded")
POSITIONS = ("auto", "sequential")
NATIVE = "native"
"""The vision library of a vision-language model of transformers, which brings tower and projector itself."""
FUSIONS = ("sum",)
ROUTING = ("logits", "softmax")
SEVERAL = ("layers", "span", "heads", "dimensions", "languages")
"""Fields that are several values, in a list or a tuple."""


def described(config: Any) -> dict[str, Any]:
    """What a transformers configuration says, as `ModelSpec` keeps it: less what does not change a vector."""
    return _meaning({**config.to_diff_dict(), "model_type": config.model_type})


def _meaning(said: Mapping[str, Any]) -> dict[str, Any]:
    idle = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype", "use_cache")
    return {k: _meaning(v) if isinstance(v, Mapping) else v for k, v in said.items() if k not in idle}


class Settled(dict[str, Any]):
    """A mapping of a spec: read, compared, written and pickled as any dict, and never changed, for a model was built by it."""

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise SpecError("a spec stays as it is: embedder.respecified(...) gives the same weights under another")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refused

    def __reduce__(self) -> tuple[type[Settled], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


def _settled(value: Any) -> Any:
    """A value of a spec's own, which changes with none of the caller's."""
    if isinstance(value, Settled):
        return value
    if isinstance(value, Mapping):
        return Settled({key: _settled(each) for key, each in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_settled(each) for each in value)
    return dataclasses.replace(value, head=_settled(value.head)) if isinstance(value, Read) else value


def copied(value: Any) -> Any:
    """A value of a spec in dicts and lists that whoever is given them may change, as libraries do with a configuration."""
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    return type(value)(copied(each) for each in value) if isinstance(value, (list, tuple)) else value


PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""The names that the prompt of a side goes by, the first that a spec has. sentence-transformers says the same, but as of 6.2 lays
an empty "query" and "document" beneath a folder's prompts, so that it never comes to the others, nor to a default prompt."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything about an embedder but its weights. Plain JSON values throughout, which stay as they were given.

    Attributes:
        name: what it is called.
        backbone: `{"config": {...}}`, the configuration of a transformers decoder or encoder, "model_type" included. Of a dual
            encoder, which has a tower for texts and one for pictures and nothing in common but the space of its vectors,
            `{"dual": "transformers" | "open_clip", "config": {...}, "preprocess": {...}}`, see `mmembed.towers.dual`.
        tokenizer: `{"kind": "sentencepiece" | "transformers" | "open_clip"}`; `prefix` and `suffix` are the tokens that open
            and close an item, where they are not those that a transformers tokenizer puts there itself; other settings are
            those of the class in `mmembed.tokenizer`.
        open: whether the tokenizer's opening tokens (BOS, CLS) begin an item; not where a template writes them itself.
        fill: a text takes `max_length` tokens always, the tokenizer's padding behind it, which the model reads as it reads
            the rest (SigLIP).
        fuse: how a dual encoder makes one vector of a text and pictures: "sum", of their features before unit length
            (CLIP_SF of UniIR, BGE-VL, and what mteb does with any dual encoder); None: such items are refused.
        close: whether the tokenizer's closing tokens (EOS, SEP) end an item; one-word prompts end where the word would come.
        max_length: tokens of one item at most, image tokens and special tokens included.
        mask: "causal", "bidirectional", or "causal+image": causal, and the tokens of an image see each other both ways;
            None is the one that the backbone was made for, and a model's own spec always says which.
        bidirectional_from: the first block, from 0 on or from -1 back, where tokens see all of their item whatever the mask
            (BeLLM); None: there is none.
        layout: "packed" where the backbone allows it, "padded" where it must be; None decides by the backbone.
        positions: "auto", the backbone's own, in rows and columns where a vision-language model of transformers has them;
            "sequential", in their place, which the embedders over Qwen2-VL of 2024 and 2025 were trained with; or `{"kind":
            ...}` for longer items than the backbone was made for, see `mmembed.nn.positions`.
        vision: `{"library": "timm" | "open_clip" | "transformers", ...}`, see `mmembed.towers.vision`, or `{"library":
            "native", ...}` where the backbone sees by itself, see `mmembed.towers.native`; None: text only.
        projector: `{"kind": ...}`, see `mmembed.nn.projector`; None for a native tower, which has its own.
        layers: whose states are pooled: -1 the last, after the final norm; -2, ... earlier ones; or from 0 (embeddings) and 1
            (what the first block gives) on. Blocks behind the deepest of them do not run.
        norm_layers: give inner layers the final norm too; otherwise they are as transformers' `hidden_states` has them.
        mix: `{"kind": ...}`, how several layers become one, see `mmembed.nn.mixes`.
        intervention: `{"kind": ...}`, what is changed inside the backbone on the way, see `mmembed.nn.interventions`.
        routing: what the routers of a mixture of experts say of each token, pooled behind its state, layer by layer: their
            "logits" or the "softmax" of these; None: states alone.
        pooling: `{"kind": ...}`, see `mmembed.nn.pooling`; None: no one vector for an item, but what follows.
        tokens, sparse: token vectors and sparse weights beside it, see `mmembed.outputs`.
        counted: what pooling reads: "all" tokens of an item; "content": what stands before the item's own content (the
            instruction) left out; "repeat": from the last place where a template puts the item on (echo embeddings); "marked":
            the words of the template from {counted} on (GenEOL); "eos": the closing token; "span": from `span[0]` to `span[1]`,
            both included; "tail": as many tokens at the end as the content and what follows it make by themselves (LLM2Vec);
            "rest": all but as many at the front as the words before the content make by themselves, so that the last of them
            stays where BOS opens an item (NV-Embed, INSTRUCTOR); "unprompted": all but these and what opens the item, or all
            where no words stand before it (sentence-transformers' include_prompt=false).
        heads: layers after pooling, in order, see `mmembed.nn.heads`.
        normalize: bring vectors to unit length.
        dimension: width of a vector; without pooling, of sparse weights or else of token vectors. dimensions: the shorter
            ones it was trained for (Matryoshka), longest first.
        prompts: `{name: {modality | modality@language | "any": template}}`, see `mmembed.prompts`; several templates in a
            list give the mean of their vectors.
        apart: tokenise each piece of a template by itself, so that its words do not merge with those beside them (SGPT).
        cleaning: what is done to an item's texts first, one of `mmembed.prompts.CLEANINGS`.
        instruction_cleaning: the same for an instruction.
        default_prompt_name: prompt of a plain `encode`.
        instructions: `{prompt name: what {instruction} says unless the caller says otherwise}`.
        weights: dtype that weights are stored in: "fp32", "bf16" or "fp16".
        languages, licence, summary: for people, and for `mmembed models`.
    """

    name: str
    backbone: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    open: bool = True
    close: bool = True
    max_length: int = 512
    fill: bool = False
    fuse: str | None = None
    mask: str | None = None
    bidirectional_from: int | None = None
    layout: str | None = None
    positions: str | Mapping[str, Any] = "auto"
    vision: Mapping[str, Any] | None = None
    projector: Mapping[str, Any] | None = None
    layers: tuple[int, ...] = (-1,)
    norm_layers: bool = False
    mix: Mapping[str, Any] = field(default_factory=lambda: {"kind": "mean"})
    intervention: Mapping[str, Any] | None = None
    routing: str | None = None
    pooling: Mapping[str, Any] | None = field(default_factory=lambda: {"kind": "last"})
    tokens: TokenOutput | None = None
    sparse: SparseOutput | None = None
    counted: str = "all"
    span: tuple[str, str] | None = None
    heads: tuple[Mapping[str, Any], ...] = ()
    normalize: bool = True
    dimension: int
    dimensions: tuple[int, ...] = ()
    prompts: prompts.Templates = field(default_factory=dict)
    apart: bool = False
    cleaning: str | None = None
    instruction_cleaning: str | None = None
    default_prompt_name: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    weights: str = "fp32"
    languages: tuple[str, ...] = ()
    licence: str = ""
    summary: str = ""

    def __post_init__(self) -> None:
        given = {"tokens": TokenOutput.of(self.tokens), "sparse": SparseOutput.of(self.sparse)}
        for f in dataclasses.fields(self):
            value = given.get(f.name, getattr(self, f.name))
            value = tuple(value) if f.name in SEVERAL and isinstance(value, list) else value
            object.__setattr__(self, f.name, _settled(value))
        self._check_numbers()
        if self.pooling is None and self.tokens is None and self.sparse is None:
            raise SpecError("a spec without pooling needs tokens or sparse: nothing would come out")
        for value, kind, known in (
            (self.mask or "causal", "mask", MASKS),
            (self.layout or "packed", "layout", LAYOUTS),
            (self.fuse or "sum", "fusion", FUSIONS),
            (self.counted, "way of counting", COUNTED),
            (self.positions if isinstance(self.positions, str) else "auto", "kind of positions", POSITIONS),
            (self.routing or "logits", "routing", ROUTING),
        ):
            check_known(kind, value, known)
        if self.dual is None and (self.fuse is not None or self.fill):
            raise SpecError(
                "fuse and fill are said of dual encoders; a shared backbone reads text and pictures together"
            )
        if self.dual != "open_clip" and "model_type" not in self.backbone.get("config", {}):
            raise SpecError("backbone needs a 'config' with the 'model_type' of a transformers model")
        composed = self.vision is not None and self.vision.get("library") != NATIVE
        if composed != (self.projector is not None):
            raise SpecError("a vision tower and a projector come together: give both or neither")
        if (self.counted == "span") != (self.span is not None):
            raise SpecError("counted='span' and span=(first token, last token) come together")
        if any(d > self.dimension or d < 1 for d in self.dimensions):
            raise SpecError(f"dimensions {self.dimensions} must lie between 1 and {self.dimension}")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise UnknownName("prompt", self.default_prompt_name, self.prompts)
        for cleaning in (self.cleaning, self.instruction_cleaning):
            if cleaning is not None and cleaning not in prompts.CLEANINGS:
                raise UnknownName("cleaning", cleaning, prompts.CLEANINGS)
        if self.routing is not None and -1 not in self.layers:
            raise SpecError("routing reads the routers of all layers, so the last one is among `layers`")
        if not self.layers:
            raise SpecError("layers names no layer; the last is (-1,)")
        prompts.check(self.prompts)

    def _check_numbers(self) -> None:
        for name in SEVERAL:
            value = getattr(self, name)
            if not isinstance(value, tuple) and value is not None:
                raise SpecError(f"{name}={value!r}: several values are wanted, of one ({value!r},)")
        for name, numbers in (("layers", self.layers), ("dimensions", self.dimensions)):
            if not all(isinstance(number, int) for number in numbers):
                raise SpecError(f"{name}={numbers}: whole numbers are wanted")
        for name in ("max_length", "dimension"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise SpecError(f"{name}={number!r}: a whole number is wanted, 1 at least")

    @property
    def dual(self) -> str | None:
        """The library of a dual encoder; None where text and pictures share a backbone."""
        return self.backbone.get("dual")

    @property
    def architecture(self) -> str:
        """What a reader calls it: the model_type of transformers, or open_clip."""
        return str(self.backbone["config"].get("model_type", self.dual))

    @property
    def modalities(self) -> tuple[str, ...]:
        if self.dual is not None:
            return MODALITIES[:2] if self.fuse is None else MODALITIES
        return MODALITIES[:1] if self.vision is None else MODALITIES

    def prompt_of(self, side: str) -> str | None:
        """The prompt of a side, "query" or "document", under the first of its names that there is; None: there is none."""
        return next((name for name in PROMPTS[side] if name in self.prompts), None)

    def to_json(self) -> str:
        return json.dumps({"mmembed": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            SpecError: no JSON object of this format.
            UnknownName: a key that is none of ours, with the nearest one.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SpecError(f"no JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("mmembed", None) != FORMAT:
            raise SpecError(f"not a spec of format {FORMAT}: the key 'mmembed' says which")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            check_known("key of a spec", key, fields)
        missing = [name for name in ("name", "backbone", "tokenizer", "dimension") if name not in values]
        if missing:
            raise SpecError(f"the spec lacks {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        path = folder / FILE
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LoadError(f"{folder} holds no {FILE}; mmembed.compose(...) makes an embedder from parts") from None
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None
