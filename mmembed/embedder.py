"""The door: an embedder encodes texts and images, compares vectors, tests and saves itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, vstack

from .batch import Sample
from .cache import LRUCache
from .dual import DualEncoder
from .errors import InputError, LoadError, SpecError, StoreError, UnknownName, check_known
from .hub import ADAPTER
from .inputs import Image, Thing, ordered
from .model import EmbeddingModel
from .nn.precision import unit
from .nn.similarity import are_rows, similarity
from .nn.stamps import generation
from .outputs import STATES
from .reader import Reader, Sparse
from .report import Report, Skipped
from .spec import FILE as SPEC_FILE
from .spec import PROMPTS, ModelSpec
from .tokenizer import Tokenizer
from .towers.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from .walk import (
    Arrays,
    Options,
    Output,
    Prepared,
    Result,
    WalkOptions,
    Window,
    batches_of,
    budget,
    compute,
    count_tokens,
    many,
    prepare,
    walk,
)
from .weights import WEIGHTS_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Embedder", "EncodeOptions", "Report", "SelfTest", "Skipped"]

Given = TypeVar("Given", bound=WalkOptions)
GOLDEN_FILE = "golden.json"
OTHERS = (ADAPTER, ADAPTER_WEIGHTS, GOLDEN_FILE)
"""Files that tell of what was in a folder before another embedder was written there: an adapter would be merged a second time."""
NO_PARTS = ("eos", "span", "marked", "tail", "rest")
"""Ways to count tokens under which a part of an item has no tokens of its own: those that count a closing token, a span or a
mark, and "tail" and "rest", which count so many tokens from an end of the row."""


class EncodeOptions(WalkOptions, total=False):
    """Keywords of `Embedder.encode`, for those that pass them on."""

    truncate_dim: int | None


@dataclass(frozen=True)
class SelfTest:
    """How far this machine's vectors lie from the golden ones: the greatest difference of any number."""

    count: int
    greatest_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.greatest_difference <= self.tolerance


class Embedder:
    """Texts and images -> unit vectors of one space.

    Made by `load` and `compose`. Calls of `encode` keep no state, so one embedder serves many threads.

    Args:
        model: the weights. tokenizer: text -> ids. golden: inputs and vectors for `self_test`.
    """

    def __init__(
        self,
        model: EmbeddingModel | DualEncoder,
        tokenizer: Tokenizer,
        golden: Sequence[Mapping[str, Any]] = (),
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.golden = tuple(golden)
        self.reader = Reader(model, tokenizer)
        self._taken: tuple[int | None, str] | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def dimension(self) -> int:
        """Numbers in a vector, unless `truncate_dim` shortens it."""
        return self.spec.dimension

    @property
    def precision(self) -> str:
        return self.model.precision

    @property
    def fingerprint(self) -> str:
        """sha256 of spec, weights and precision: vectors of equal fingerprint may be compared, unless their tokenizers had other
        files, which it does not read. It is taken anew when a weight was changed."""
        now = generation(self.model)
        if self._taken is None or now is None or self._taken[0] != now:
            self._taken = now, self.model.fingerprint()
        return self._taken[1]

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<mmembed.Embedder {spec.name!r}: {spec.architecture}, {'/'.join(spec.modalities)}, "
            f"{spec.dimension} numbers, {self.precision} on {self.model.device}>"
        )

    def encode(
        self,
        inputs: Thing | Iterable[Thing],
        *,
        prompt_name: str | None = None,
        prompt: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] | None = None,
        language: str | None = None,
        truncate_dim: int | None = None,
        truncate: Literal["end", "error"] = "end",
        on_error: Literal["raise", "skip"] = "raise",
        batch_tokens: int | None = None,
        report: Report | None = None,
        show_progress_bar: bool = False,
    ) -> NDArray[np.float32]:
        """Vectors of things, in their order.

        Args:
            inputs: many things in a list or another iterable, or one thing. A `str` is always text; pictures come as
                `Image(...)` or PIL images; a tuple or a dict with "text" and "image" is one item of several parts.
            prompt_name: one of `spec.prompts`; None is the spec's default.
            prompt: words to put before the item instead, one for all or one an item.
            instruction: what the prompt's {instruction} says, one for all or one an item.
            language: picks the prompt of a language where the spec has one.
            truncate_dim: only the first so many numbers, brought to unit length again (Matryoshka).
            truncate: what to do with items longer than the model reads: cut their own text at the end, or raise.
            on_error: "raise" at the first item that cannot be embedded, or "skip": its row is NaN, and it is reported.
            batch_tokens: tokens of one batch, patches of images counted too, and padding where a backbone runs padded.
            report: filled with what was done, skipped and truncated.
            show_progress_bar: with items and time left.

        Returns:
            float32 (N, D), rows of unit length where the spec normalises.

        Raises:
            InputError: an item that cannot be embedded, by its row.
            UnknownName: no such prompt.
            SpecError: dimensions that the model was not trained for, or not one prompt or instruction an item.
        """
        width = self.width(truncate_dim)
        options = Options(
            prompt_name=prompt_name,
            prompt=prompt,
            instruction=instruction,
            language=language,
            truncate=truncate,
            on_error=on_error,
            batch_tokens=batch_tokens,
            report=report,
            show_progress_bar=show_progress_bar,
        )
        blocks = [self._finish(window, width) for window in self._walk(inputs, self.reader.vectors, options)]
        return np.concatenate(blocks) if blocks else np.empty((0, width), dtype=np.float32)

    def stream(
        self, inputs: Thing | Iterable[Thing], **options: Unpack[EncodeOptions]
    ) -> Iterator[NDArray[np.float32]]:
        """The vectors of `encode`, some neighbouring things at a time, in their order, of things without end.

        No more is held than a few thousand things and their vectors. A generator is pulled that far ahead of what is given
        out, in the thread that asks. Read to its end, or closed, a stream leaves no thread behind.

        Args:
            inputs, options: those of `encode`.

        Yields:
            float32 (n, D), n as it comes.

        Raises:
            As `encode`: a wrong option at once, the rest after what came before it.
        """
        width, said = self._split(options)
        return (self._finish(window, width) for window in self._walk(inputs, self.reader.vectors, said))

    def encode_to(
        self,
        path: str | os.PathLike[str],
        inputs: Iterable[Thing],
        *,
        ids: Iterable[str] | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Report:
        """Write the vectors of `encode` to a file, a row a thing in their order, however many.

        After an error or a kill the same call goes on where it was: rows that are written are not embedded again, and the
        things they are of are compared with those that are given now. A file that is whole is left as it is.

        Args:
            path: by its ending .npy (float32 (N, D), for `np.load(path, mmap_mode="r")`; what was skipped is NaN, and told
                in NAME.errors.jsonl); .parquet or .lance (columns row, id, vector, error; extra [search]); or .jsonl (a line
                a row). Beside it NAME.json says of what model and options the vectors are.
            inputs: many things, as in `encode`. ids: a name for each; None: the number of its row.
            options: those of `encode`.

        Returns:
            what was done, which is the report among the options if there is one; `resumed` rows were done before, and what was
            skipped among them stands in the file alone.

        Raises:
            As `encode`; InputError also for one thing, or one id; FingerprintMismatch: the file is of another model or of other
                options. StoreError: it is of other things, no file of ours, being written, or the disk is full; or there are not
                as many ids as things.
        """
        from .files import Block, VectorFile, chained

        inputs = ordered(inputs, "things", tuple, Mapping)
        ids = None if ids is None else ordered(ids, "ids")
        width, said = self._split(options)
        report = said.report if said.report is not None else Report()
        said = dataclasses.replace(said, report=report)
        total = len(inputs) if isinstance(inputs, Sized) else None
        with VectorFile(path, self._made(said), width) as file:
            given = _named(inputs, ids)
            digest = b""
            done = 0
            for name, thing in islice(given, file.rows):
                digest = chained(digest, name, thing)
                done += 1
            if done < file.rows or digest != file.digest:
                raise StoreError(
                    f"{path} holds {file.rows} rows, which are not of the first things given now: write elsewhere, or "
                    f"remove it and {file.path.name}.json"
                )
            report.resumed = file.rows
            if file.complete:
                if next(given, None) is not None:
                    raise StoreError(f"{path} is whole with {file.rows} rows, and more are given: write elsewhere")
                return report
            pulled: deque[tuple[str, bytes]] = deque()

            def rest() -> Iterator[Thing]:
                nonlocal digest
                for name, thing in given:
                    digest = chained(digest, name, thing)
                    pulled.append((name, digest))
                    yield thing

            first, left = file.rows, None if total is None else total - file.rows
            with closing(self._walk(rest(), self.reader.vectors, said, first=first, total=left)) as windows:
                for window in windows:
                    own = [pulled.popleft() for _ in range(window.count)]
                    reasons = {each.row: each.reason for each in window.skipped}
                    errors = [reasons.get(row) for row in range(window.first, window.first + window.count)]
                    vectors = self._finish(window, width)
                    file.append(Block(window.first, [name for name, _ in own], vectors, errors), own[-1][1])
            file.finish()
        return report

    def encode_query(self, inputs: Thing | Iterable[Thing], **options: Unpack[EncodeOptions]) -> NDArray[np.float32]:
        """`encode` under the prompt "query" where the spec has one; `options` are those of `encode`."""
        return self.encode(inputs, **self._sided("query", options))

    def encode_document(self, inputs: Thing | Iterable[Thing], **options: Unpack[EncodeOptions]) -> NDArray[np.float32]:
        """`encode` under the prompt "document", "passage" or "corpus", the first that the spec has."""
        return self.encode(inputs, **self._sided("document", options))

    def prepare(
        self,
        things: Iterable[Thing],
        *,
        side: Literal["query", "document"] | None = None,
        **options: Unpack[WalkOptions],
    ) -> Prepared:
        """The first half of `encode`, for those who batch things of many callers themselves, as a server does: no model runs.

        Args:
            things: many of those that `encode` takes; a tuple of things is many here.
            side, options: as in `encode_tokens`, less `batch_tokens` and the bar, which do nothing here.

        Raises:
            As `encode`.
        """
        return prepare(self.model, _each(things), self.reader.sampler, self._of(side, options))

    def compute(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """The second half: vectors (B, dimension) of samples, whosever they are, in batches as `encode` makes them, before
        `finish`.

        Raises:
            InputError: no finite vector, by its place.
        """
        output = self.reader.vectors
        found = np.empty((len(samples), self.dimension), dtype=np.float32)
        begun = []  # all of them, for several may run at once
        for places in batches_of(self.model, samples, budget(self.model)):
            own = [samples[k] for k in places]
            begun.append((places, own, self._begin(own, places, output)))
        for places, own, done in begun:
            found[places] = np.asarray(output.read(done(), own, places))
        return found

    def finish(
        self, prepared: Prepared, vectors: NDArray[np.float32], *, truncate_dim: int | None = None
    ) -> NDArray[np.float32]:
        """What `encode` returns, (N, D), of prepared things and the vectors that `compute` gave of their samples."""
        window = Window(0, prepared.count, list(vectors), np.asarray(prepared.rows, dtype=np.int64))
        return self._finish(window, self.width(truncate_dim))

    def encode_chunks(
        self,
        inputs: Thing | Iterable[Thing],
        *,
        joint: str = " ",
        window: int | None = None,
        overlap: int = 0,
        truncate_dim: int | None = None,
        **options: Unpack[WalkOptions],
    ) -> list[NDArray[np.float32]]:
        """A vector for every part of things, each of tokens that have read the other parts: late chunking (arXiv 2409.04701).

        `encode` makes one vector of a tuple of parts; this makes one of each, by pooling the same tokens part by part. The
        prompt and opening tokens fall to the first part and closing tokens to the last, as far as they are pooled at all, as
        the authors have it. A model that was trained to pool the mean does this well; a causal one reads only what came before.

        Args:
            inputs: tuples of parts: texts, pictures, or both; `mmembed.methods.splitting` cuts a text into some.
            joint: what stands between two texts: a space, as in `encode`, or "" where they are slices of one text.
            window: a thing of more tokens is read so many at a time (long late chunking), no picture among them; None: nothing
                longer than `spec.max_length` is taken.
            overlap: tokens at the front of a later window that the one before has read too: what they give there is kept, and
                what follows has them to look back at.
            truncate_dim, options: those of `encode`, but that truncate="error" is what is done with longer things, without a
                window; "end" cuts them, parts of which nothing is left are rows of NaN, and `report` tells.

        Returns:
            float32 (number of parts, D), one a thing, and one row of NaN for a skipped thing.

        Raises:
            As `encode`; InputError also for a part without a token of its own; SpecError also for a model that does not pool
            several tokens, for a prompt of several templates, and for windows that do not fit.
        """
        spec = self.spec
        kind = None if spec.pooling is None else spec.pooling["kind"]
        kinds = (kind,) if spec.pooling is None else spec.pooling.get("kinds", (kind,))
        if {None, "last", "first"} & set(kinds) or spec.counted in NO_PARTS:
            raise SpecError(
                f"{spec.name!r} does not pool several tokens of an item that parts could share out (pooling {kind!r}, counted "
                f"{spec.counted!r}): embedder.respecified(pooling={{'kind': 'mean'}}, counted='all')"
            )
        if window is not None and not 0 <= overlap < window <= spec.max_length:
            raise SpecError(
                f"window={window}, overlap={overlap}: 0 <= overlap < window <= max_length={spec.max_length}"
            )
        if window is not None and self.model.intervention is not None:
            raise SpecError("an intervention looks at the last token of an item, and in windows there are several")
        if window is None and overlap:
            raise SpecError(f"overlap={overlap} is of windows: pass window=... too")
        width = self.width(truncate_dim)
        options.setdefault("truncate", "error")
        said = Options(**options, joint=joint)
        found: list[NDArray[np.float32]] = []
        for each in self._walk(inputs, self.reader.chunks(width, window, overlap), said):
            found += self._one_a_thing(each, width, said)
        return found

    def count_tokens(
        self,
        inputs: Thing | Iterable[Thing],
        *,
        prompt_name: str | None = None,
        prompt: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> list[int]:
        """How many tokens each thing takes, prompt, images and special tokens included and nothing cut: what
        `spec.max_length` bounds. Of a prompt with several templates the longest counts.

        Raises:
            As `encode`.
        """
        options = Options(prompt_name=prompt_name, prompt=prompt, instruction=instruction, language=language)
        return count_tokens(self.model, inputs, self.reader.uncut, options)

    def samples(
        self,
        inputs: Iterable[Thing],
        *,
        prompt_name: str | None = None,
        instruction: str | None = None,
        language: str | None = None,
        truncate: Literal["end", "error"] = "end",
        output: Literal["vectors", "tokens", "sparse"] = "vectors",
        side: Literal["query", "document"] | None = None,
    ) -> list[Sample | InputError]:
        """Each thing as the numbers that the model reads, or what is wrong with it: for training, which packs by itself.

        Args:
            output, side: for vectors, or as `encode_tokens` and `encode_sparse` read a side.

        Raises:
            UnknownName: no such prompt. SpecError: a prompt of several templates, whose vectors `encode` averages, or an
                intervention that compares with another prompt.
        """
        if self.model.intervention is not None and self.model.intervention.against is not None:
            raise SpecError(f"{self.spec.name!r} runs an item against another prompt: it has no one sample")
        check_known("output", output, ("vectors", "tokens", "sparse"))
        read: Output[Any] = self.reader.vectors if output == "vectors" else getattr(self.reader, output)(side)
        told = Report()
        options = Options(
            prompt_name=prompt_name,
            instruction=instruction,
            language=language,
            truncate=truncate,
            on_error="skip",
            report=told,
        )
        prepared = prepare(self.model, _each(inputs), read.sampler, options)
        self._check_one_way(prepared.rows, options)
        made: list[Sample | InputError] = [*prepared.samples]
        for skipped in told.skipped:  # in the order of their rows
            made.insert(skipped.row, InputError(skipped.reason))
        return made

    def encode_tokens(
        self,
        inputs: Thing | Iterable[Thing],
        *,
        side: Literal["query", "document"] | None = None,
        **options: Unpack[WalkOptions],
    ) -> list[NDArray[np.float32]]:
        """Vectors of the tokens of things, in their order: of those that the spec's `tokens` reads, through its head.

        A model that says nothing of token vectors gives the last states of all its tokens, as they are.

        Args:
            side: takes the prompt of that side where the spec has one, as `encode_query` and `encode_document` do, and
                what holds for that side only (ColBERT's documents leave out punctuation); None counts as a document.
            options: those of `encode`, less `truncate_dim`.

        Returns:
            float32 arrays (n, d), one a thing; (0, d) where no token is read, and one row of NaN for a skipped thing.

        Raises:
            As `encode`; SpecError also for a prompt that puts a thing in several ways.
        """
        width, said = int(self.model.tokens.out), self._of(side, options)  # type: ignore[arg-type]
        found: list[NDArray[np.float32]] = []
        for window in self._walk(inputs, self.reader.tokens(side), said):
            found += self._one_a_thing(window, width, said)
        return found

    def encode_sparse(
        self,
        inputs: Thing | Iterable[Thing],
        *,
        side: Literal["query", "document"] | None = None,
        **options: Unpack[WalkOptions],
    ) -> csr_array:
        """Weights of terms of things, in their order, through the spec's `sparse` head.

        Args:
            side, options: as in `encode_tokens`. Of several templates the mean is taken.

        Returns:
            scipy csr_array (N, V), float32, without stored zeros; a row may be empty. A skipped thing's row holds one NaN,
            in its first column, and `similarity` answers it with NaN.

        Raises:
            As `encode`; SpecError also for a model without a sparse head.
        """
        output = self.reader.sparse(side)
        terms = int(self.model.sparse.out)  # type: ignore[arg-type, union-attr]
        rows = (_mean_rows(window, terms) for window in self._walk(inputs, output, self._of(side, options)))
        return vstack([csr_array((0, terms), dtype=np.float32), *rows], format="csr", dtype=np.float32)

    def decode_sparse(self, weights: csr_array, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """The terms of every row of sparse weights (N, V) with their weights, heaviest first, for people to read.

        Raises:
            SpecError: weights of another model, or a lexicon whose terms have no names (LENS' centroids).
        """
        head = self.model.sparse
        if head is None or weights.shape[1] != head.out:
            raise SpecError(f"weights of {weights.shape[1]} terms are not of {self.spec.name!r}")
        if getattr(head, "lexicon", None) is not None:
            raise SpecError(f"the terms of {self.spec.name!r} are clusters of tokens, and have no names")
        told = []
        for row in range(weights.shape[0]):
            one = weights[[row]].tocoo()
            heaviest = sorted(
                zip(one.data.tolist(), one.col.tolist(), strict=True), key=lambda each: (-each[0], each[1])
            )
            told.append([(self._term(term), weight) for weight, term in heaviest[:top_k]])
        return told

    def similarity(self, a: Any, b: Any) -> NDArray[np.float32]:
        """Every one of `a` with every one of `b`, in fp32, by what they are: (N, M).

        Args:
            a, b: both vectors (N, D): their cosine; both sparse weights (scipy, (N, V)): their dot product; or both token
                vectors (lists of (n, d)): the greatest similarity of each token of a query in `a` with one of a document in
                `b`, summed (MaxSim), over the number of query tokens if the spec says so. What was skipped gives NaN.

        Raises:
            SpecError: two kinds, or two widths.
            InputError: lists of arrays (1, D) on both sides, of a model whose spec says nothing of token vectors: as good as
                surely vectors that were encoded one by one, whose MaxSim is no cosine.
        """
        if self.spec.tokens is None and are_rows(a) and are_rows(b):
            raise InputError(
                f"{self.spec.name!r} makes one vector an item, and these are lists of arrays of one row, which stand for token "
                "vectors: np.concatenate(list) makes vectors (N, D) of one; for MaxSim of states of single tokens, "
                "embedder.respecified(tokens={'head': {'kind': 'states'}})"
            )
        return similarity(a, b, maxsim=(self.spec.tokens or STATES).similarity).numpy()

    def self_test(self, tolerance: float = 1e-4) -> SelfTest:
        """Embed the golden inputs and compare.

        Raises:
            LoadError: the embedder came with no golden vectors.
        """
        if not self.golden:
            raise LoadError(f"{self.spec.name!r} came with no {GOLDEN_FILE}")
        greatest = 0.0
        for entry in self.golden:
            thing = {k: Image(v) if k == "image" else v for k, v in entry["input"].items()}
            vector = self.encode([thing], prompt_name=entry.get("prompt_name"))[0]
            expected = np.asarray(entry["vector"], dtype=np.float32)
            greatest = max(greatest, float(np.abs(vector[: len(expected)] - expected).max()))
        return SelfTest(len(self.golden), greatest, tolerance)

    def cache(self, *, prefixes: int = 0, images: int = 0) -> Embedder:
        """Keep between calls, up to so many bytes of each, what comes again: states of prefixes of items, so that a short query
        under a long instruction costs its own tokens alone, and what the vision tower made of pictures. Nothing is kept unless
        this is called; 2**28 is room for long instructions. What was kept changes a vector by rounding (1e-7), as company does.

        Returns:
            this embedder. `model.prefix_cache.store` and `model.image_cache` tell how often they helped.

        Raises:
            SpecError: a dual encoder, which keeps nothing.
        """
        if not isinstance(self.model, EmbeddingModel):
            raise SpecError("a dual encoder keeps nothing between calls")
        stores: list[tuple[LRUCache[Any, Any], int]] = [
            (self.model.prefix_cache.store, prefixes),
            (self.model.image_cache, images),
        ]
        for store, limit in stores:
            store.limit = limit
            if store.used > limit:
                store.clear()
        return self

    def compile(self) -> Embedder:
        """Have torch compile the blocks of the backbone, and those of a tower inside it, once for rows of any length: seconds to
        a minute, and mostly faster from then on; on some processors pictures and encoders are slower, see docs/benchmarks.md.
        What shares these weights is compiled too. A vector changes by rounding.

        Returns:
            this embedder.

        Raises:
            SpecError: a dual encoder, a backbone that runs padded, or one that torch does not compile; all runs as before then.
        """
        if not isinstance(self.model, EmbeddingModel):
            raise SpecError("compile() is for backbones; a dual encoder runs as it is")
        self.model.compile_blocks()
        return self

    def respecified(self, **changed: Any) -> Embedder:
        """The same weights under another spec: other prompts, layers, counted tokens, weightless pooling, ...

        Raises:
            SpecError: what was changed is part of the weights.
        """
        return Embedder(self.model.respecified(dataclasses.replace(self.spec, **changed)), self.tokenizer)

    def with_head(self, settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Embedder:
        """The same weights and one head more behind the pooling, see `mmembed.nn.heads`, whose weights were fitted."""
        return Embedder(self.model.with_head(settings, weights), self.tokenizer)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write one folder that `load` opens: spec.json, weights.safetensors, tokenizer, golden vectors if any."""
        self.model.check_whole()
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        _remove(path, OTHERS)
        self.model.save(path)
        self.tokenizer.save(path)
        if self.golden:
            (path / GOLDEN_FILE).write_text(json.dumps(self.golden, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def save_sentence_transformers(self, folder: str | os.PathLike[str]) -> Path:
        """Write the folder that sentence-transformers, old and new, text-embeddings-inference and vLLM open, and `load` too.

        Raises:
            SpecError: what this embedder does and sentence-transformers has no words for, every item of it.
        """
        from .sentence_transformers import write

        if not isinstance(self.model, EmbeddingModel):
            raise SpecError("a dual encoder is not written as a folder of sentence-transformers")
        self.model.check_whole()
        path = Path(folder).expanduser()
        write(path, self.model, self.tokenizer)
        _remove(path, (*OTHERS, SPEC_FILE, WEIGHTS_FILE))  # by these `load` would open what `save` wrote there before
        return path

    def _walk(
        self,
        inputs: Thing | Iterable[Thing],
        output: Output[Result],
        options: Options,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> Generator[Window[Result], None, None]:
        ahead_of = int(self.model.device.type != "cpu")  # where a batch is done when it has begun
        return walk(self.model, inputs, output, options, self._begin, ahead_of=ahead_of, first=first, total=total)

    def _begin(self, samples: Sequence[Sample], rows: Sequence[int], output: Output[Any]) -> Arrays:
        return compute(self.model, samples, rows, output)

    def _term(self, term: int) -> str:
        """A term as the tokenizer writes it; a model's table may be longer than its tokenizer's."""
        return self.tokenizer.token_of(term) if term < len(self.tokenizer) else f"<{term}>"

    def _of(self, side: Literal["query", "document"] | None, options: WalkOptions) -> Options:
        if side is not None and side not in PROMPTS:
            raise UnknownName("side", side, PROMPTS)
        return Options(**(options if side is None else self._sided(side, options)))

    def _finish(self, window: Window[NDArray[np.float32]], width: int) -> NDArray[np.float32]:
        """Vectors of a window: the mean where an item went in several ways, shortened, of unit length; NaN where skipped."""
        raw = np.stack(window.results) if window.results else np.empty((0, self.dimension), dtype=np.float32)
        if not np.array_equal(window.places, np.arange(window.count)):
            ways = np.bincount(window.places, minlength=window.count)
            total = np.zeros((window.count, raw.shape[1]), dtype=np.float32)
            np.add.at(total, window.places, raw)
            total[ways == 0] = np.nan
            raw = np.divide(total, np.maximum(ways, 1)[:, None], dtype=np.float32)
        mean = torch.from_numpy(raw)[:, :width]
        return (unit(mean) if self.spec.normalize else mean).numpy()

    def _one_a_thing(
        self, window: Window[NDArray[np.float32]], width: int, options: Options
    ) -> list[NDArray[np.float32]]:
        """The array of each thing of a window, one row of NaN where it was skipped."""
        self._check_one_way(window.places.tolist(), options)
        rows = [np.full((1, width), np.nan, dtype=np.float32) for _ in range(window.count)]
        for place, own in zip(window.places, _apart(window.results), strict=True):
            rows[place] = own
        return rows

    def _check_one_way(self, rows: Sequence[int], options: Options) -> None:
        """Raise `SpecError` where a thing, by its row, has more than one sample."""
        if len(set(rows)) < len(rows):
            name = options.prompt_name or self.spec.default_prompt_name
            raise SpecError(
                f"the prompt {name!r} is of several templates, and only vectors of things are averaged; name another prompt"
            )

    def _split(self, options: EncodeOptions) -> tuple[int, Options]:
        """Numbers of a vector, and what the walk is told."""
        said: dict[str, Any] = dict(options)
        width = self.width(said.pop("truncate_dim", None))
        return width, Options(**said)

    def _made(self, options: Options) -> dict[str, Any]:
        """What vectors hang on beside the things, in words of JSON."""
        names = ("prompt_name", "prompt", "instruction", "language", "truncate")
        said = {name: getattr(options, name) for name in names}
        for name in ("prompt", "instruction"):
            if said[name] is not None and not isinstance(said[name], str):
                said[name] = hashlib.sha256(json.dumps(list(said[name])).encode()).hexdigest()
        if said["prompt_name"] is None and said["prompt"] is None:
            said["prompt_name"] = self.spec.default_prompt_name
        return {"model": self.spec.name, "fingerprint": self.fingerprint, "precision": self.precision, **said}

    def width(self, truncate_dim: int | None = None) -> int:
        """How many numbers a vector has that is cut to `truncate_dim`, or not.

        Raises:
            SpecError: a number that the model was not trained for.
        """
        spec = self.spec
        if truncate_dim is None:
            return spec.dimension
        if not isinstance(truncate_dim, (int, np.integer)):
            raise SpecError(f"truncate_dim={truncate_dim!r}: an int is wanted")
        if truncate_dim not in (spec.dimension, *spec.dimensions):
            known = ", ".join(map(str, sorted({spec.dimension, *spec.dimensions})))
            raise SpecError(f"{spec.name!r} was not trained for vectors of {truncate_dim} numbers; known: {known}")
        return int(truncate_dim)

    def _sided(self, side: str, options: Given) -> Given:
        if options.get("prompt") is not None or options.get("prompt_name") is not None:
            return options
        known = self.spec.prompt_of(side)
        return options if known is None else cast("Given", {**options, "prompt_name": known})


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _named(things: Iterable[Thing], ids: Iterable[str] | None) -> Iterator[tuple[str, Thing]]:
    """Things with their names, the numbers of their rows where there are none."""
    if ids is None:
        yield from ((str(row), thing) for row, thing in enumerate(things))
        return
    names, end = iter(ids), object()
    for row, thing in enumerate(things):
        name = next(names, end)
        if name is end:
            raise StoreError(f"{row} ids were given, and there are more things")
        if name is None:
            raise StoreError(f"the id of row {row} is None")
        yield str(name), thing
    if next(names, end) is not end:
        raise StoreError("more ids were given than things")


def _each(things: Iterable[Thing]) -> Iterable[Thing]:
    """Things one by one; a tuple is many here, and a text or a dict still one."""
    return things if isinstance(things, tuple) else many(things)


def _apart(results: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Each with an array of its own: equal things were computed once, and a caller may write into what he is given."""
    given: set[int] = set()
    found = []
    for own in results:
        found.append(own.copy() if id(own) in given else own)
        given.add(id(own))
    return found


def _mean_rows(window: Window[Sparse], terms: int) -> csr_array:
    """Rows of a window: the mean where an item went in several ways, one NaN where it was skipped."""
    weights, places, count = window.results, window.places, window.count
    lengths = [len(ids) for ids, _ in weights]
    ways = np.bincount(places, minlength=count)
    rows = np.repeat(places, lengths)
    data = np.concatenate([w for _, w in weights]) if weights else np.empty(0, dtype=np.float32)
    columns = np.concatenate([ids for ids, _ in weights]) if weights else np.empty(0, dtype=np.int64)
    gaps = np.flatnonzero(ways == 0)
    data = np.concatenate([data / ways[rows].astype(np.float32), np.full(len(gaps), np.nan, dtype=np.float32)])
    where = (np.concatenate([rows, gaps]), np.concatenate([columns, np.zeros_like(gaps)]))
    summed = csr_array(coo_array((data, where), shape=(count, terms)), dtype=np.float32)
    summed.sort_indices()
    return summed
