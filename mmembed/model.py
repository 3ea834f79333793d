"""EmbeddingModel: a Batch goes in, one vector an item, or its other kinds, come out; how it is built, loaded and saved."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import folders
from .batch import Batch, Picture, Sample, Slots, pack
from .cache import LRUCache
from .dual import DualEncoder
from .errors import SpecError, check_known
from .hub import ADAPTER
from .nn.interventions import Intervention, Places, build_intervention
from .nn.mixes import build_mix
from .nn.pooling import build_pooling, pooled_width
from .nn.positions import Groups, Positioning, build_positioning
from .nn.precision import alike
from .nn.projector import Projector, build_projector
from .nn.spans import Counted, Spans
from .nn.sparse import BLOCK, build_sparse_head, items_of
from .nn.stamps import generation
from .nn.tokens import build_token_head
from .nn.varlen import HALF, MERGED
from .outputs import STATES, SparseOutput
from .spec import FILE as SPEC_FILE
from .spec import NATIVE, ModelSpec, copied, described
from .towers import adapters, routers
from .towers import backbone as backbones
from .towers.compiled import compile_blocks, plain_blocks
from .towers.image_features import FeatureKey, FeatureScope, ImageFeatures, image_features
from .towers.language_head import LanguageHead, build_language_model, load_language_model, vocabulary_of
from .towers.native import NativeTower
from .towers.prefix_cache import PrefixCache, PrefixUse
from .towers.reading import Change
from .towers.retriever import is_retriever, load_retriever
from .towers.vision import Preprocess, VisionTower, build_vision, by_size
from .weights import WEIGHTS_FILE, Model, Undrawn, fill, fill_by_name, fill_over, making

if TYPE_CHECKING:
    from numpy.typing import NDArray


BEHIND = ("eos", "span", "marked", "repeat")
"""Ways to count tokens whose first may stand behind the item, or behind the first time that a template says it."""
SHOWN = 1024
"""How often a few tokens go through blocks that are compiled on a GPU: torch fits kernels to the sizes that it is first shown."""


@dataclasses.dataclass
class Kinds:
    """What `EmbeddingModel.of_kinds` gives: (B, D), a (n, d) of each item, and (B, V); None is what was not wanted."""

    vectors: Float[Tensor, "B D"] | None = None
    tokens: tuple[Float[Tensor, "n d"], ...] | None = None
    sparse: Float[Tensor, "B V"] | None = None


class EmbeddingModel(Model):
    """Vision tower -> projector -> image slots of the packed row -> backbone -> pooling -> heads.

    A vision-language model of transformers holds tower and projector itself: its backbone is then all of it but the pooling.
    Packed, its tower and its decoder are called one after the other, as those of a composed model are; padded, its own forward.

    Beside the pooling, on the same states: a head for token vectors and one for sparse weights, where the spec has them.

    Args:
        spec: what it is. backbone, vision, language_head: parts with weights; None builds them fresh from the spec.

    Attributes:
        image_cache: what the tower made of earlier pictures, nothing unless it is given a limit; shared by all specs of the
            same parts. Where a weight is changed nothing that was made before is found again.
        prefix_cache: keys and values of how earlier items began, nothing unless its `store` is given a limit in bytes: 2**28
            holds two instructions of 500 tokens for a Qwen3 of 0.6 billion parameters in fp32. What is found there changes
            vectors by rounding, as company does.

    Raises:
        SpecError: the parts do not fit each other or the spec.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        backbone: PreTrainedModel | None = None,
        vision: VisionTower | None = None,
        language_head: LanguageHead | None = None,
    ):
        if backbone is None and spec.sparse is not None and reads_logits(spec.sparse):
            body, language_head = build_language_model(spec.backbone["config"])
        else:
            body = backbones.build_backbone(spec.backbone["config"]) if backbone is None else backbone
        mask = spec.mask or backbones.natural_mask(body)
        width = folders.width(body.config)
        super().__init__(dataclasses.replace(spec, mask=mask))
        self.backbone = backbones.prepare_backbone(body, mask, spec.layout, natural=spec.mask is None)
        self.made_for = mask  # what the backbone's own configuration says, whatever spec its parts are under later
        self._check_layers(spec)
        self._number(self.spec)
        self.image_cache: LRUCache[FeatureKey, ImageFeatures] = LRUCache()
        self.prefix_cache = PrefixCache()
        self.native: NativeTower | None = None
        self.vision: VisionTower | None = None
        self.projector: Projector | None = None
        if spec.vision is not None and spec.vision["library"] == NATIVE:
            self.native = NativeTower.of(copied(spec.vision), body.config, str(spec.positions), self.layout == "packed")
            self.native.lighten(self.backbone)
            if self.native.packed:
                self._check_sight(self.native)
        elif spec.vision is not None and spec.projector is not None:
            self.vision = vision or build_vision(copied(spec.vision))
            out = backbones.embedding_width(self.backbone)
            self.projector = build_projector(spec.projector, width=self.vision.width, out=out)
            backbones.check_embeds(self.backbone, mask)
            self._check_grid(self.vision.preprocess)
        self.mix = build_mix(spec.mix, len(spec.layers), width)
        self.intervention = self._intervention(spec)
        self._try_layers()
        self._final_norm = self._norm_of(spec)
        self.language_head = language_head
        self.tokens, self.sparse = self._other_heads(self.spec, width)
        width = self._token_width(spec)
        self.pooling = None if spec.pooling is None else build_pooling(spec.pooling, width)
        wide = pooled_width(spec.pooling, width) if spec.pooling is not None else (self.sparse or self.tokens).out
        self.add_heads(int(wide))  # type: ignore[arg-type]
        self.eval()

    def _other_heads(self, spec: ModelSpec, width: int) -> tuple[nn.Module, nn.Module | None]:
        tokens = build_token_head((spec.tokens or STATES).head, width)
        if spec.sparse is None:
            return tokens, None
        sparse = build_sparse_head(spec.sparse.head, width, vocabulary_of(self.backbone, self.language_head))
        if sparse.needs_logits and self.language_head is None:
            raise SpecError(
                "this sparse head reads the language head of its backbone, which was not loaded: compose the embedder from "
                "a folder or a language model of transformers with sparse={'head': {'kind': 'splade'}}"
            )
        return tokens, sparse

    @making()
    def respecified(self, spec: ModelSpec) -> EmbeddingModel:
        """The same parts under another spec.

        Raises:
            SpecError: the change is one of weights, or of the mask of a padded backbone, which is set inside it; or the first
                token would be pooled, and has seen nothing.
        """
        fixed = ["backbone", "tokenizer", "projector", "heads", "layout"]
        fixed += ["positions"] if self.native is not None else []
        fixed += ["dimension"] if spec.routing == self.spec.routing else []
        for name in fixed:
            if getattr(spec, name) != getattr(self.spec, name):
                raise SpecError(f"{name} is part of the weights: compose another embedder")
        if _without_preprocess(spec.vision) != _without_preprocess(self.spec.vision):
            raise SpecError("vision is part of the weights, all but its preprocess: compose another embedder")
        if self.layout == "padded" and spec.mask != self.spec.mask:
            raise SpecError(f"a padded backbone holds its mask, a packed one does not: compose with mask={spec.mask!r}")
        self._check_layers(spec)
        pooled = self._token_width(spec)
        if spec.routing != self.spec.routing and (spec.heads or spec.dimension != pooled):
            raise SpecError(
                f"routing={spec.routing!r} pools {pooled} numbers a token: say dimension={pooled}, and no heads"
            )
        model = copy.copy(self)
        model._modules = dict(self._modules)
        model.spec = spec
        if model.vision is not None and spec.vision != self.spec.vision:
            assert spec.vision is not None
            model.vision = model.vision.preprocessing(Preprocess.of(spec.vision["preprocess"]))
            model._check_grid(model.vision.preprocess)
        model._number(spec)
        width = hidden = folders.width(self.backbone.config)
        tokens, sparse = self._other_heads(spec, width)
        for name, fresh in (("tokens", tokens), ("sparse", sparse)):
            if _head_of(spec, name) != _head_of(self.spec, name):
                if fresh is not None and any(True for _ in fresh.parameters()):
                    raise SpecError(f"the head for {name} has weights: compose another embedder")
                setattr(model, name, fresh)
        if spec.pooling is None:
            model.pooling = None
            width = int((model.sparse or model.tokens).out)  # type: ignore[arg-type]
            model.spec = dataclasses.replace(spec, dimension=width, dimensions=())
        elif spec.pooling != self.spec.pooling:
            model.pooling = build_pooling(spec.pooling, pooled)
            _without_weights(model.pooling, "pooling", spec.pooling)
            width = pooled_width(spec.pooling, pooled)
            before = 0 if self.spec.pooling is None else pooled_width(self.spec.pooling, pooled)
            if spec.heads and width != before:
                raise SpecError(
                    f"pooling={spec.pooling!r} gives {width} numbers, and the heads behind it take {before}"
                )
            if not spec.heads and width != spec.dimension:
                model.spec = dataclasses.replace(spec, dimension=width, dimensions=())
        if spec.mix != self.spec.mix or spec.layers != self.spec.layers:
            model.mix = build_mix(spec.mix, len(spec.layers), hidden)
            _without_weights(model.mix, "mix of layers", spec.mix)
        model.intervention = model._intervention(spec)
        if (spec.layers, spec.mask) != (self.spec.layers, self.spec.mask):
            model._try_layers()
        model._final_norm = model._norm_of(spec)
        if model.blind is not None and self.blind is None:
            raise SpecError(model.blind)
        return model

    @property
    def blind(self) -> str | None:
        """Why all texts have the same vector: what is pooled is the first token, which no layer that is read lets see the
        rest. None: they do not. A folder may say that, and gets what it says; nobody is given it otherwise."""
        spec, depth = self.spec, self.depth
        kinds = () if spec.pooling is None else spec.pooling.get("kinds", (spec.pooling["kind"],))
        opened = 0 if spec.mask == "bidirectional" else depth if self._open_from is None else self._open_from
        if "first" not in kinds or spec.counted in BEHIND or any(layer % (depth + 1) > opened for layer in spec.layers):
            return None
        return (
            f"pooling 'first' under mask={spec.mask!r} reads a token that has seen nothing of the item but itself, so that texts "
            "have one vector: pool 'last' or 'mean', or say mask='bidirectional' of a backbone that was trained so"
        )

    @property
    def layout(self) -> str:
        return "packed" if backbones.is_packed(self.backbone) else "padded"

    @property
    def padded(self) -> bool:
        return self.layout == "padded"

    @property
    def shares(self) -> bool:
        """Nothing that comes later in an item may reach the tokens that others share, nor their numbers hang on how long it
        is, and the row must be packed."""
        later = self.spec.mask == "bidirectional" or self.spec.bidirectional_from is not None
        plain = self.spec.intervention is None and isinstance(self.spec.positions, str)
        return self.layout == "packed" and plain and not later

    @property
    def price(self) -> float:
        return MERGED if self.device.type == "cuda" and self.dtype in HALF else 0.0

    def compile_blocks(self) -> None:
        """Compile the blocks, see `mmembed.towers.compiled`, and try on a few tokens and a picture that they give what they gave.

        Raises:
            SpecError: a padded backbone, or one that torch does not compile to the same; the blocks are as before then.
        """
        kind = self.backbone.config.model_type
        if self.layout == "padded":
            raise SpecError(f"only a packed backbone is compiled, and this {kind} runs padded")
        texts = backbones.probe(self.backbone) * (SHOWN if self.device.type == "cuda" else 1)
        spans = Spans.of([len(ids) for ids in texts], self.spec.mask).to(self.device)  # type: ignore[arg-type]
        with torch.inference_mode():
            due = backbones.states(self.backbone, torch.cat(texts), None, spans)
            compile_blocks(self.backbone)
            try:
                if not alike(backbones.states(self.backbone, torch.cat(texts), None, spans), due):
                    raise SpecError(f"compiled, a {kind} backbone computes something else")
                if self.native is not None:
                    self._check_sight(self.native)
            except Exception as error:
                plain_blocks(self.backbone)
                if isinstance(error, SpecError):
                    raise
                reason = str(error).strip().partition("\n")[0]
                raise SpecError(f"torch does not compile a {kind} backbone: {reason}") from error

    def train(self, mode: bool = True) -> EmbeddingModel:
        if mode:
            self.image_cache.clear()
            self.prefix_cache.store.clear()
        return super().train(mode)

    @property
    def token_sizes(self) -> tuple[int, int, int]:
        config = backbones.text_config(self.backbone)
        width = folders.width(self.backbone.config)
        inner = getattr(config, "intermediate_size", None) or 4 * width
        return width, int(max(inner) if isinstance(inner, Sequence) else inner), self.dtype.itemsize

    @property
    def sees(self) -> bool:
        """Whether there is a tower for images."""
        return self.native is not None or self.vision is not None

    def prepare(self, rgb: NDArray[np.uint8]) -> Picture:
        """(H, W, 3) uint8 -> what the tower takes."""
        if self.native is not None:
            return self.native.prepare(rgb)
        assert self.vision is not None
        return Picture(self.vision.prepare(rgb))

    def image_ids(self, picture: Picture) -> list[int]:
        """The tokens that an image takes in the row, by their numbers; in a composed model vectors stand there, of no token's."""
        if self.native is not None:
            return self.native.image_ids(picture)
        assert self.vision is not None
        assert self.projector is not None
        return [-1] * self.projector.tokens(self.vision.grid(*picture.pixels.shape[-2:]))

    def forward(self, batch: Batch) -> Float[Tensor, "B D"]:
        """Vectors of full width in fp32, before shortening and unit length.

        Raises:
            SpecError: a model without a pooling: it has no one vector for an item.
        """
        if self.pooling is None:
            kinds = [name for name in ("tokens", "sparse") if getattr(self.spec, name) is not None]
            raise SpecError(
                f"{self.spec.name!r} has no one vector for an item; ask it by encode_{' or encode_'.join(kinds)}"
            )
        if not self._mixes_vectors:
            return self.through_heads(self.pooling(self._pooled_states(batch), batch.counted.read[1]))
        pooled = torch.stack([self.pooling(states, batch.counted.read[1]) for states in self._layer_states(batch)])
        return self.through_heads(self.mix(pooled))

    def layer_vectors(self, batch: Batch) -> Float[Tensor, "L B D"]:
        """Vectors as `forward` gives them, had the model ended behind its first block, its second, ..., its last one.

        Raises:
            SpecError: a model whose vectors are not those of its last layer alone.
        """
        if self.pooling is None or self._mixes_vectors or self.spec.routing is not None or self.spec.layers != (-1,):
            raise SpecError(
                f"{self.spec.name!r} does not end in a pooling of its last layer: it is not cut behind another"
            )
        states = self._layer_states(batch, (*range(1, self.depth), -1))
        counted = batch.counted.read[1]
        return torch.stack([self.through_heads(self.pooling(own, counted)) for own in states])

    def token_vectors(self, batch: Batch) -> tuple[Float[Tensor, "n d"], ...]:
        """Vectors of the counted tokens of each item, in fp32; none where none is counted."""
        return self._of_tokens(self.states(batch), batch.counted.read[1])

    def _of_tokens(self, states: Float[Tensor, "R D"], counted: Counted) -> tuple[Float[Tensor, "n d"], ...]:
        return self.tokens(states[counted.index]).split(counted.sizes.tolist())

    def sparse_weights(self, batch: Batch) -> Iterator[Float[Tensor, "b V"]]:
        """Weights of terms in fp32, some items at a time: B x V numbers of a whole batch would be gigabytes.

        Raises:
            SpecError: a model without a sparse head.
        """
        tokens, counted = batch.counted.read
        yield from self._of_terms(self.states(batch), batch.ids[tokens], counted)

    def _of_terms(
        self, states: Float[Tensor, "R D"], ids: Int[Tensor, " R"], counted: Counted
    ) -> Iterator[Float[Tensor, "b V"]]:
        if self.sparse is None:
            raise SpecError(f"{self.spec.name!r} has no sparse head (or its folder had none beside the backbone)")
        step = max(1, BLOCK // int(self.sparse.out))  # type: ignore[arg-type]
        for first in range(0, counted.items, step):
            some = items_of(counted, first, min(first + step, counted.items))
            yield self.sparse(states, ids[some.index], some, self.language_head)

    def of_kinds(self, batch: Batch, read: Mapping[str, Counted]) -> Kinds:
        """Several kinds of output of one forward pass, each of the tokens that it reads.

        Args:
            read: what "vectors", "tokens" and "sparse" read, those that are wanted; what the batch itself counts is not.

        Raises:
            SpecError: as `forward`, `token_vectors` and `sparse_weights`; a model whose vectors are no pooling of its states.
        """
        if "vectors" in read and (self.pooling is None or self._mixes_vectors or self.spec.routing is not None):
            raise SpecError(f"{self.spec.name!r} has no one vector for an item of the states that it has of tokens")
        tokens = torch.cat([counted.index for counted in read.values()]).unique()
        every = Counted(tokens, torch.zeros_like(tokens), 1)
        states = self.states(dataclasses.replace(batch, counted=every))
        found = Kinds()
        for kind, counted in read.items():
            own, among = counted.read
            mine = states[torch.searchsorted(tokens, own)]
            if kind == "vectors":
                assert self.pooling is not None
                found.vectors = self.through_heads(self.pooling(mine, among))
            elif kind == "tokens":
                found.tokens = self._of_tokens(mine, among)
            else:
                found.sparse = torch.cat([*self._of_terms(mine, batch.ids[own], among)])
        return found

    def _token_width(self, spec: ModelSpec) -> int:
        """Numbers of a token that is pooled."""
        hidden = folders.width(self.backbone.config)
        if spec.routing is None:
            return hidden
        if spec.intervention is not None or spec.mix["kind"] != "mean":
            raise SpecError("routing is read from a forward as it is, without an intervention or a mix but the mean")
        return hidden + routers.width(self.backbone)

    def _pooled_states(self, batch: Batch) -> Float[Tensor, "R W"]:
        """States and, where the spec says routing, what routers say behind them."""
        if self.spec.routing is None:
            return self.states(batch)
        tokens = batch.counted.read[0]
        with routers.recorded(self.backbone) as logits:  # of every token, in every layer
            states = self.mix(self._layer_states(batch, whole=True))[tokens]
        said = [own[tokens].float() for own in logits]
        said = said if self.spec.routing == "logits" else [own.softmax(-1) for own in said]
        return torch.cat([states.float(), *said], -1)

    def states(self, batch: Batch) -> Float[Tensor, "R D"]:
        """States of the tokens that are counted, `batch.counted.read`: of the last layer, or of the spec's layers, mixed.

        Raises:
            SpecError: layers that are mixed only after they are pooled.
        """
        if self._mixes_vectors:
            raise SpecError(
                f"the mix {self.spec.mix['kind']!r} is of pooled vectors: tokens have no states of their own"
            )
        mixed: Tensor = self.mix(self._layer_states(batch))
        return mixed

    @property
    def _mixes_vectors(self) -> bool:
        return bool(getattr(self.mix, "of_vectors", False))

    def _layer_states(
        self, batch: Batch, layers: tuple[int, ...] | None = None, *, whole: bool = False
    ) -> Float[Tensor, "L R D"]:
        """States of the counted tokens at each of `layers`, the spec's if not said, or of the whole row."""
        tokens = batch.counted.read[0]
        only = None if whole or len(tokens) == len(batch.ids) else tokens
        layers = self.spec.layers if layers is None else layers
        change = None if self.intervention is None else self._change(self.intervention, batch)
        spans = self._numbered(batch.spans)
        embeds, told = self._seen(batch)
        prefixes = None if whole or embeds is not None or told is not None else self._prefixes(batch, spans, layers)
        if prefixes is not None:
            only, spans = tokens, spans.asked(prefixes.asking)
        states = backbones.layer_states(
            self.backbone,
            *(batch.ids, embeds, spans, layers, told, change),
            groups=self._groups,
            only=only,
            recall=None if prefixes is None else prefixes.recall,
        )
        if prefixes is not None:
            self.prefix_cache.keep(prefixes)
        last = (-1, self.depth)  # normed by the backbone itself
        for norm in self._final_norm:
            states = torch.stack([s if k in last else norm(s) for k, s in zip(layers, states, strict=True)])
        return states

    def _prefixes(self, batch: Batch, spans: Spans, layers: Sequence[int]) -> PrefixUse | None:
        """What is known of how the items of a batch begin, where nothing but tokens says what they are."""
        learning = self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type)
        if learning or not self.shares or spans.numbers is not None or self.prefix_cache.store.limit <= 0:
            return None
        blocks = max(layer % (self.depth + 1) for layer in layers)
        return self.prefix_cache.take(self.backbone, *batch.host, spans, blocks) if blocks else None

    def _seen(self, batch: Batch) -> tuple[Float[Tensor, "T D"] | None, backbones.Told | None]:
        """What stands for the tokens of a batch, where something else than their own embedding does, and what the backbone is
        told besides."""
        if self.native is not None and batch.pictures and not self.native.packed:
            return None, partial(self.native.inputs, pictures=batch.pictures, dtype=self.backbone.dtype)
        if not batch.pictures and batch.placeholders is None:
            return None, None
        told: backbones.Told | None = None
        table = self.backbone.get_input_embeddings()
        # At slots, ids are those of the tokens of pictures, which not every table has, or of none.
        embeds: Tensor = table(batch.ids.index_fill(0, batch.slots, 0))
        if batch.pictures:
            looked = image_features(batch.pictures, self._look, self.image_cache, self._looks)
            tokens = torch.cat([sight.tokens for sight in looked])
            if len(tokens) != len(batch.slots):
                raise SpecError(
                    f"the images give {len(tokens)} tokens and the row has {len(batch.slots)} slots for them"
                )
            embeds = embeds.index_copy(0, batch.slots, tokens.to(embeds.dtype))
            told = None if self.native is None else partial(self.native.beside, features=looked)
        if batch.placeholders is not None:
            assert self.intervention is not None
            row = self.intervention.placeholder(embeds) * getattr(table, "embed_scale", 1)  # Gemma's table is scaled
            embeds = embeds.index_copy(0, batch.placeholders, row.expand(len(batch.placeholders), -1))
        return embeds, told

    def _change(self, by: Intervention, batch: Batch) -> Change:
        """What an intervention does in one batch; where it compares with another prompt, that one runs first."""
        at = Places(batch.spans.last, batch.placeholders)
        if by.against is None:
            return Change(by, at)
        under = batch.against
        assert under is not None
        embeds, told = self._seen(under)
        spans = self._numbered(under.spans)
        heads = backbones.attended(self.backbone, under.ids, embeds, spans, by.layer, told, self._groups)
        return Change(by, at, heads[under.spans.last])

    def _number(self, spec: ModelSpec) -> None:
        """Set how tokens are numbered; weights stay shared where rotary positions change their base."""
        before: Positioning | None = getattr(self, "_positioning", None)
        self._positioning = None
        table, rows = backbones.table_of(self.backbone), spec.max_length
        if not isinstance(spec.positions, str):
            said = getattr(backbones.text_config(self.backbone), "max_position_embeddings", None)
            self._positioning = build_positioning(spec.positions, longest=table or said or spec.max_length)
            rows = self._positioning.rows(rows)
        if table is not None and rows > table:
            raise SpecError(
                f"max_length={spec.max_length} takes {rows} positions, and the table of a {self.backbone.config.model_type} "
                f"backbone has {table}: say max_length={table} at most, or positions that are for longer items"
            )
        if before is not None or self._positioning is not None:
            self.backbone = backbones.positioned(self.backbone, self._positioning, str(spec.mask))

    @property
    def _groups(self) -> Groups | None:
        return None if self._positioning is None else self._positioning.groups()

    def _numbered(self, spans: Spans) -> Spans:
        """Spans with all that the backbone is told of its tokens: their numbers, and from which block on they see both ways."""
        spans = dataclasses.replace(spans, open_from=self._open_from)
        if self._positioning is None:
            return spans
        numbers = self._positioning.number(spans.positions, spans.end - spans.start)
        return dataclasses.replace(spans, numbers=numbers, windows=self._positioning.windows)

    def _intervention(self, spec: ModelSpec) -> Intervention | None:
        if spec.intervention is None:
            return None
        heads = int(backbones.text_config(self.backbone).num_attention_heads)
        made = build_intervention(spec.intervention, depth=self.depth, heads=heads)
        if made.against is not None:
            check_known("prompt", made.against, spec.prompts)
            backbones.check_projection(self.backbone, made.layer)
        if made.placed:
            backbones.check_embeds(self.backbone, str(spec.mask))
        return made

    def _norm_of(self, spec: ModelSpec) -> tuple[nn.Module, ...]:
        """The backbone's final norm, where inner layers are given it; in a tuple, for it is no part of ours."""
        return (backbones.final_norm(self.backbone),) if spec.norm_layers else ()

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return int(backbones.text_config(self.backbone).num_hidden_layers)

    @property
    def _open_from(self) -> int | None:
        first = self.spec.bidirectional_from
        return first if first is None or first >= 0 else first + self.depth

    def _check_layers(self, spec: ModelSpec) -> None:
        depth, first = self.depth, spec.bidirectional_from
        if any(not -depth - 1 <= layer <= depth for layer in spec.layers):
            raise SpecError(
                f"layers {spec.layers}: the backbone has {depth}, counted from 0 (embeddings) or back from -1"
            )
        if first is not None and not -depth <= first < depth:
            raise SpecError(
                f"bidirectional_from={first}: the backbone has the blocks 0 to {depth - 1}, or back from -1"
            )
        if first is not None and self.layout == "padded":
            raise SpecError("bidirectional_from needs a packed backbone: transformers gives all its layers one mask")

    def _try_layers(self) -> None:
        if any(layer not in (-1, self.depth) for layer in self.spec.layers):
            backbones.check_layers(self.backbone, str(self.spec.mask), self.spec.layers)

    def _check_grid(self, preprocess: Preprocess) -> None:
        """Raise `SpecError` where the projector does not take what the tower makes of each picture."""
        assert self.vision is not None
        assert self.projector is not None
        side = preprocess.crop or (preprocess.size if preprocess.resize == "square" else None)
        if side is not None:
            self.projector.tokens(self.vision.grid(side, side))
            return
        try:
            self.projector.tokens((1, 1))
        except SpecError as error:
            raise SpecError(f"pictures keep their shape before this tower, in grids of any sides; {error}") from None

    def _check_sight(self, native: NativeTower) -> None:
        """Hold what the decoder is handed of a picture between words to what the model's own forward hands it.

        Raises:
            SpecError: they are not the same.
        """
        picture = native.prepare(np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3))
        words = [ids.cpu().numpy() for ids in backbones.probe(self.backbone)]
        opening, closing = native.brackets
        places = native.image_ids(picture)
        ids = np.concatenate([words[0], opening, places, closing, words[1]]).astype(np.int64)
        slots = Slots(len(words[0]) + len(opening), len(places), picture)
        sample = Sample(ids, np.ones(len(ids), bool), (slots,), 0)
        batch = pack([sample], [0], self.spec.mask).to(self.device)
        with torch.no_grad():
            embeds, told = self._seen(batch)
            ours = backbones.handed(self.backbone, batch.ids, embeds, batch.spans, told)
            due = native.handed(self.backbone, batch.ids[None], [picture])
        if not native.alike(ours, due):
            raise SpecError(
                f"a {self.backbone.config.model_type} backbone does not see packed what it should: use layout='padded'"
            )

    def _looks(self) -> FeatureScope | None:
        """What looks now, by its weights, and where and in what precision; None: what it gives is not to be kept."""
        parts = (self.vision, self.projector) if self.native is None else (self.backbone,)
        weights = tuple(generation(part) for part in parts if part is not None)
        known = not torch.is_grad_enabled() and not torch.is_autocast_enabled(self.device.type) and None not in weights
        return (weights, self.dtype, self.device) if known else None

    def _look(self, pictures: Sequence[Picture]) -> list[ImageFeatures]:
        """What the tower makes of pictures; those of one size go through a composed one together."""
        if self.native is not None:
            return self.native.look(self.backbone, pictures)
        if self.vision is None or self.projector is None:
            raise SpecError(f"the model {self.spec.name!r} has no vision tower, and the batch holds images")
        vision, projector = self.vision, self.projector

        def tokens(stacked: Tensor) -> Tensor:
            return projector(vision(stacked), vision.grid(*stacked.shape[-2:]))

        return [ImageFeatures(own) for own in by_size(tokens, [picture.pixels for picture in pictures], self.device)]


def load_model(folder: Path, base: Path | None = None) -> tuple[EmbeddingModel | DualEncoder, Path]:
    """Read what a model's `save` wrote, or a folder of sentence-transformers, transformers or open_clip, adapters merged.

    Weights are held in fp32 until `to(...)` says otherwise.

    Args:
        base: what an adapter is merged into, in place of what it names itself.

    Returns:
        the model, and the folder where its tokenizer lies.

    Raises:
        LoadError: no weights, or weights that do not fit; nothing is dropped silently.
        SpecError: a base, and no adapter.
    """
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and replaced: the caller's seed stays his
        if (folder / SPEC_FILE).exists():
            spec = ModelSpec.from_folder(folder)
            own: EmbeddingModel | DualEncoder
            if (folder / ADAPTER).exists():
                own = EmbeddingModel(spec) if spec.dual is None else DualEncoder(spec)
                below, _ = load_model(folders.base_of(folder, base))
                fill_over(own, below.state_dict(), folder / WEIGHTS_FILE)
                if isinstance(own, EmbeddingModel):  # LoRA stands beside weights that may have been trained themselves
                    adapters.merge(own.backbone, folder)
                return own, folder
            _check_base(base, (), folder)
            own = _unfilled(spec, folder / WEIGHTS_FILE)
            fill(own, folder / WEIGHTS_FILE)
            return own, folder
        if (dual := folders.read_dual(folder)) is not None:
            _check_base(base, (), folder)
            return DualEncoder(dual.spec, towers=dual.towers), dual.tokenizer
        found = folders.read(folder, base)
        _check_base(base, found.adapters, folder)
        language_head = projection = None
        if found.spec.sparse is not None and reads_logits(found.spec.sparse):
            body, language_head = load_language_model(found.backbone, found.config, found.adapters)
        else:
            if is_retriever(found.config):
                body, projection = load_retriever(found.backbone, found.config)
            else:
                body = backbones.load_backbone(found.backbone, found.config, found.prefix)
            for adapter in found.adapters:
                body = adapters.merge(body, adapter)
        longest = min(found.spec.max_length, backbones.table_of(body) or found.spec.max_length)
        spec = dataclasses.replace(found.spec, backbone={"config": described(body.config)}, max_length=longest)
        model = EmbeddingModel(spec, backbone=body, language_head=language_head)
        for head, path in zip(model.heads, found.heads, strict=True):
            fill(head, path)
        if projection is not None:
            (layer,) = (m for m in model.tokens.modules() if isinstance(m, nn.Linear))
            layer.load_state_dict(projection.state_dict())
        for name, paths in found.others.items():
            layers = [m for m in getattr(model, name).modules() if isinstance(m, nn.Linear)]
            for layer, path in zip(layers, paths, strict=True):
                fill(layer, path)
        if found.pooling and model.pooling is not None:
            fill_by_name(model.pooling, found.backbone, found.pooling)
    return model, found.tokenizer


def _unfilled(spec: ModelSpec, path: Path) -> EmbeddingModel | DualEncoder:
    """The model of a spec before its weights are read; those of the backbone are, for it is tried out when it is built in."""
    if spec.sparse is not None and reads_logits(spec.sparse):
        return EmbeddingModel(spec)  # its backbone comes with a language head
    with Undrawn():
        if spec.dual is not None:
            return DualEncoder(spec)
        body = backbones.build_backbone(spec.backbone["config"])
        fill(body, path, under="backbone.")
        return EmbeddingModel(spec, backbone=body)


def _check_base(base: Path | None, stands_on_it: Sequence[Path], folder: Path) -> None:
    if base is not None and not stands_on_it:
        raise SpecError(f"{folder} is no adapter: it stands on no other model, and base= is for those that do")


def reads_logits(sparse: SparseOutput) -> bool:
    """Whether a sparse head reads the language head of its backbone, which is loaded only then."""
    return bool(build_sparse_head(sparse.head, 1, 1).needs_logits)


def _head_of(spec: ModelSpec, name: str) -> object:
    output = getattr(spec, name)
    return None if output is None else output.head


def _without_preprocess(vision: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if vision is None else {key: value for key, value in vision.items() if key != "preprocess"}


def _without_weights(part: nn.Module, kind: str, settings: Mapping[str, Any]) -> None:
    if any(True for _ in part.parameters()):
        raise SpecError(f"the {kind} {settings['kind']!r} has weights: compose another embedder")
