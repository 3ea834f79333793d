"""What is read of an item: one vector, one of each part, one of each token, or weights of terms; each an `Output` of the walk."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import prompts
from .batch import Batch, Sample
from .dual import DualEncoder
from .errors import InputError, SpecError, UnknownName
from .model import EmbeddingModel
from .nn.pooling import edge_of
from .nn.precision import unit
from .nn.sparse import strongest
from .outputs import SIDES, STATES, Read, SparseOutput
from .sampler import ChunkSampler, Mark, Narrowing, Sampler
from .tokenizer import Tokenizer
from .towers.native import NativeTower
from .walk import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side: TypeAlias = Literal["query", "document"]
Sparse: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float32]]"
"""Terms, and their weights."""


class Reader:
    """The outputs that a model has, and the samples that each is read of.

    Args:
        model: what gives them. tokenizer: text -> ids.

    Attributes:
        sampler: makes the samples of which vectors are read.
    """

    def __init__(self, model: EmbeddingModel | DualEncoder, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        spec = model.spec
        self.sampler = Sampler(
            tokenizer=tokenizer,
            max_length=spec.max_length,
            open=spec.open,
            close=spec.close,
            counted=spec.counted,
            span=self._span(spec.span),
            narrow=None if edge_of(spec.pooling) is None else Narrowing(edge=edge_of(spec.pooling)),
            placed=model.intervention is not None and model.intervention.placed,
            prepare=model.prepare if model.sees else None,
            image_ids=model.image_ids if model.sees else None,
            mark=None if model.native is None else _mark(model.native, tokenizer),
            apart=spec.dual is not None,
            fused=spec.dual is None or spec.fuse is not None,
            most=None if model.native is None else model.native.most,
            fill=tokenizer.pad if spec.fill else None,
        )

    @property
    def uncut(self) -> Sampler:
        """The sampler, for things of any length and nothing put behind them."""
        return dataclasses.replace(self.sampler, max_length=sys.maxsize, fill=None)

    @property
    def vectors(self) -> Output[NDArray[np.float32]]:
        """(dimension,) of each sample, before shortening and unit length."""
        return Output(self.sampler, self.forward_vectors, self._read_vectors)

    def chunks(self, width: int, window: int | None, overlap: int) -> Output[NDArray[np.float32]]:
        """(number of parts, width) of each sample, shortened and of unit length as `encode` has them."""
        settings = {f.name: getattr(self.sampler, f.name) for f in dataclasses.fields(Sampler)}
        sampler = ChunkSampler(**settings, window=window, overlap=overlap)
        return Output(sampler, self.forward_vectors, partial(self._read_chunks, width=width))

    def tokens(self, side: Side | None) -> Output[NDArray[np.float32]]:
        """(n, d) of each sample, as the spec's `tokens` reads that side."""
        return Output(self._reading(self.model.spec.tokens or STATES, side), self.forward_tokens, self._read_tokens)

    def sparse(self, side: Side | None) -> Output[Sparse]:
        """Terms and weights of each sample, none of them 0, as the spec's `sparse` reads that side.

        Raises:
            SpecError: a model without a sparse head.
        """
        said = self.model.spec.sparse
        if said is None or self.model.sparse is None:
            raise SpecError(f"{self.model.spec.name!r} has no sparse head (or its folder had none beside the backbone)")
        return Output(self._reading(said, side), self.forward_sparse, self._read_sparse)

    # ---- on the device: a process of replicas calls these by their names -------------------------------------------------

    def forward_vectors(self, batch: Batch, samples: Sequence[Sample]) -> list[Tensor]:
        return [self.model(batch).float()]

    def forward_tokens(self, batch: Batch, samples: Sequence[Sample]) -> Sequence[Tensor]:
        return self.model.token_vectors(batch)

    def forward_sparse(self, batch: Batch, samples: Sequence[Sample]) -> list[Tensor]:
        """(n,) terms and (n,) weights, one after the other."""
        said = self.model.spec.sparse
        assert said is not None
        found: list[Tensor] = []
        for weights in self.model.sparse_weights(batch):
            for row in weights:
                kept = _kept(row, samples[len(found) // 2].terms, said)
                terms = kept.nonzero().squeeze(1)
                found += [terms, kept[terms]]
        return found

    # ---- on the host -----------------------------------------------------------------------------------------------------

    def _read_vectors(
        self, tensors: Sequence[NDArray[np.float32]], samples: Sequence[Sample], rows: Sequence[int]
    ) -> NDArray[np.float32]:
        (out,) = tensors
        bad = np.flatnonzero(~np.isfinite(out).all(1))
        if len(bad):
            raise InputError(f"the model gave no finite vector in {self._precise}", rows[bad[0]])
        return out

    def _read_chunks(
        self, tensors: Sequence[NDArray[np.float32]], samples: Sequence[Sample], rows: Sequence[int], width: int
    ) -> list[NDArray[np.float32]]:
        left = [np.array([len(part) > 0 for part in sample.chunks or ()]) for sample in samples]
        whose = [row for row, of_sample in zip(rows, left, strict=True) for _ in range(of_sample.sum())]
        raw = torch.from_numpy(self._read_vectors(tensors, samples, whose))[:, :width]
        of_unit = unit(raw) if self.model.spec.normalize else raw
        own = iter(of_unit.split([int(of_sample.sum()) for of_sample in left]))
        found = []
        for of_sample in left:
            vectors = np.full((len(of_sample), width), np.nan, dtype=np.float32)
            vectors[of_sample] = next(own).numpy()
            found.append(vectors)
        return found

    def _read_tokens(
        self, tensors: Sequence[NDArray[np.float32]], samples: Sequence[Sample], rows: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        return [self._finite(vectors, row) for vectors, row in zip(tensors, rows, strict=True)]

    def _read_sparse(
        self, tensors: Sequence[NDArray[Any]], samples: Sequence[Sample], rows: Sequence[int]
    ) -> list[Sparse]:
        pairs = zip(tensors[::2], tensors[1::2], rows, strict=True)
        return [(terms, self._finite(weights, row)) for terms, weights, row in pairs]

    def _finite(self, numbers: NDArray[np.float32], row: int) -> NDArray[np.float32]:
        if not np.isfinite(numbers).all():
            raise InputError(f"the model gave no finite numbers in {self._precise}", row)
        return numbers

    @property
    def _precise(self) -> str:
        return f"{self.model.precision}; try precision='fp32'"

    # ---- which tokens ----------------------------------------------------------------------------------------------------

    def _reading(self, said: Read, side: str | None) -> Sampler:
        """The sampler for an output that reads other tokens than the pooling."""
        if side is not None and side not in SIDES:
            raise UnknownName("side", side, SIDES)
        document = side != "query"
        skip = said.skip + (said.skip_document if document else ())
        only = said.only_document if document else ()
        rule = said.within if isinstance(said, SparseOutput) else None
        return dataclasses.replace(
            self.sampler,
            counted=said.counted,
            span=self._span(said.span),
            narrow=Narrowing(
                self._ids_of(skip),
                frozenset(map(self.tokenizer.id_of, only)) or None,
                said.ends,
                not (isinstance(said, SparseOutput) and getattr(self.model.sparse, "of_ids", False)),
            ),
            words=None if rule is None else prompts.WORDS[rule],
        )

    def _span(self, tokens: tuple[str, str] | None) -> tuple[int, int] | None:
        return None if tokens is None else (self.tokenizer.id_of(tokens[0]), self.tokenizer.id_of(tokens[1]))

    def _ids_of(self, tokens: Sequence[str]) -> frozenset[int]:
        """Their ids; a token that the tokenizer does not have never stands in a row."""
        known = []
        for token in tokens:
            try:
                known.append(self.tokenizer.id_of(token))
            except UnknownName:
                continue
        return frozenset(known)


def _mark(tower: NativeTower, tokenizer: Tokenizer) -> Mark:
    """How images stand in a text, by the model's own token."""
    token = tokenizer.token_of(tower.token)
    text = tower.text or token
    if text.count(token) != 1:
        raise SpecError(f"vision: text={text!r} must hold the token {token!r} once")
    return Mark(text, token, tower.token)


def _kept(weights: Tensor, terms: NDArray[np.int64] | None, said: SparseOutput) -> Tensor:
    """Weights (V,) of one item, less what `top` and `within` leave out."""
    if terms is None:
        return strongest(weights[None], said.top)[0]
    if not len(terms):
        return strongest(weights[None], said.otherwise)[0]
    own = torch.from_numpy(terms).to(weights.device)
    return strongest(torch.zeros_like(weights).index_copy(0, own, weights[own])[None], said.top)[0]
