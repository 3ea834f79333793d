"""Tokenizers of transformers and plain sentencepiece models, behind one small face: text -> ids and character spans."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import LoadError, SpecError, UnknownName, check_known

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
"""Names that sentencepiece models go by; the first is how we write them."""
PAD = "<pad>"


def _of_open_clip(name: str) -> Callable[[str], str]:
    def clean(text: str) -> str:
        from open_clip.tokenizer import get_clean_fn

        return get_clean_fn(name)(text)

    return clean


def _siglip(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


CLEANINGS: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "siglip": _siglip,
    **{f"open_clip/{name}": _of_open_clip(name) for name in ("whitespace", "lower", "canonicalize")},
}
"""What is done to a whole text, prompt and all, before it is tokenised, where the tokenizer itself does not do it.

"siglip": small letters, no ASCII punctuation, single spaces, as SiglipTokenizer of transformers does (big_vision, from which
that is taken, first makes a space of "_"). "lower": SigLIP 2 was trained on small letters, and its folders of transformers
hold Gemma's tokenizer, which keeps capitals. "open_clip/...": as open_clip's own wrappers do.
"""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of one text without special tokens, and, for those who ask, the span of characters that each stands for.

    Attributes:
        where: makes the spans. Most samples never ask for them, and they cost more than the ids.
    """

    ids: list[int]
    where: Callable[[], list[tuple[int, int]]]

    @property
    def spans(self) -> list[tuple[int, int]]:
        return self.where()

    def __getitem__(self, part: slice) -> Tokens:
        """Neighbouring tokens of the text."""
        return Tokens(self.ids[part], lambda: self.where()[part])


class Tokenizer(Protocol):
    """What the rest of the package knows of a tokenizer."""

    prefix: list[int]
    """Special ids that open an item (BOS, CLS)."""
    suffix: list[int]
    """Special ids that close an item (EOS, SEP)."""

    def __len__(self) -> int: ...

    @property
    def pad(self) -> int:
        """Id that an item is filled up with, on its right."""
        ...

    def encode(self, texts: Sequence[str], *, located: bool = False) -> list[Tokens]:
        """Ids of texts; `located`: the spans of all will be asked for, and are best made along with them."""
        ...

    def id_of(self, token: str) -> int: ...

    def token_of(self, number: int) -> str: ...

    def save(self, folder: Path) -> None: ...


class SentencePieceTokenizer:
    """A plain sentencepiece model; special tokens are put around an item as the spec says.

    Args:
        processor: the loaded model.
        prefix, suffix: pieces such as "<s>" and "</s>" that open and close an item.
        clean: one of `CLEANINGS`, see `TransformersTokenizer`. pad: the piece that an item is filled up with.

    Attributes:
        settings: these arguments, as the spec's `tokenizer` has them.
    """

    def __init__(
        self,
        processor: SentencePieceProcessor,
        *,
        prefix: Sequence[str] = (),
        suffix: Sequence[str] = ("</s>",),
        clean: str | None = None,
        pad: str = PAD,
    ):
        self.processor = processor
        said = {"prefix": list(prefix), "suffix": list(suffix), "clean": clean, "pad": None if pad == PAD else pad}
        self.settings = {key: value for key, value in said.items() if value is not None}
        self.clean = _cleaning(clean)
        self._pad = pad
        self.prefix = [self.id_of(piece) for piece in prefix]
        self.suffix = [self.id_of(piece) for piece in suffix]

    @classmethod
    def from_file(cls, path: Path | str, **settings: Any) -> SentencePieceTokenizer:
        from sentencepiece import SentencePieceProcessor

        try:
            return cls(SentencePieceProcessor(model_file=str(path)), **settings)
        except (OSError, RuntimeError) as error:
            raise LoadError(f"{path} is no sentencepiece model: {error}") from None

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, texts: Sequence[str], *, located: bool = False) -> list[Tokens]:
        if not texts:
            return []
        given = list(texts) if self.clean is None else [self.clean(text) for text in texts]
        every = zip(self.processor.encode(given), texts, strict=True)
        if self.clean is not None:
            return [_whole(ids, text) for ids, text in every]
        return [Tokens(ids, partial(self._spans, text)) for ids, text in every]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self.processor.encode(text, return_type="offset_mapping")["offsets"]
        return offsets

    @property
    def pad(self) -> int:
        return self.id_of(self._pad)

    def id_of(self, token: str) -> int:
        number = self.processor.piece_to_id(token)
        if self.processor.id_to_piece(number) != token:
            known = (self.processor.id_to_piece(each) for each in range(len(self)))
            raise UnknownName("piece of the sentencepiece model", token, known)
        return number

    def token_of(self, number: int) -> str:
        return self.processor.id_to_piece(number)

    def save(self, folder: Path) -> None:
        (folder / SENTENCEPIECE_FILES[0]).write_bytes(self.processor.serialized_model_proto())


class TransformersTokenizer:
    """A fast tokenizer of transformers; what it puts around a text is read off it once, on a probe.

    Args:
        tokenizer: the loaded one.
        prefix, suffix: tokens such as "<s>" and "</s>" that open and close an item, "{bos}" and "{eos}" are the tokenizer's
            own; None is what the tokenizer does.
        clean: one of `CLEANINGS`. Each token then stands for the whole of its text: nothing of it can be left out of
            pooling, and a long one is cut at its end, prompt and all.
        lower: lower-case texts first, as sentence-transformers' do_lower_case.

    Attributes:
        settings: the arguments that were given, as the spec's `tokenizer` has them.

    Raises:
        SpecError: a slow tokenizer, which cannot say which characters a token stands for.
        UnknownName: a token that it does not have, or no such cleaning.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix: Sequence[str] | None = None,
        suffix: Sequence[str] | None = None,
        clean: str | None = None,
        lower: bool = False,
    ):
        if not tokenizer.is_fast:
            raise SpecError(
                f"{type(tokenizer).__name__} is a slow tokenizer; mmembed needs a fast one (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        said = {"prefix": prefix, "suffix": suffix, "clean": clean, "lower": lower or None}
        self.settings = {
            key: value if isinstance(value, (str, bool)) else list(value)
            for key, value in said.items()
            if value is not None
        }
        self.clean = _cleaning(clean)
        self._own = _encodes_itself(tokenizer)
        if lower:
            _lower(tokenizer)
        with_special = tokenizer("a")["input_ids"]
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        where = next(i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain)
        self.prefix = list(with_special[:where])
        self.suffix = list(with_special[where + len(plain) :])
        if prefix is not None:
            self.prefix = [self.id_of(token) for token in prefix]
        if suffix is not None:
            self.suffix = [self.id_of(token) for token in suffix]

    @classmethod
    def from_folder(cls, folder: Path | str, **settings: Any) -> TransformersTokenizer:
        from transformers import AutoTokenizer

        try:
            words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # `tokenizers` raises no other kind for a file that it cannot read
            raise LoadError(f"{folder} holds no tokenizer: {error}") from None
        made = cls(words, **settings)
        said = Path(folder) / "tokenizer_config.json"
        closes = said.is_file() and json.loads(said.read_text(encoding="utf-8")).get("add_eos_token") is True
        if closes and not made.suffix and "suffix" not in settings:
            warnings.warn(
                f"{said} says add_eos_token, and transformers as installed puts no token behind a text for it: if the model was "
                'trained with one, save the embedder and write "suffix": ["{eos}"] under "tokenizer" into its spec.json',
                stacklevel=2,
            )
        return made

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def pad(self) -> int:
        words = self.tokenizer
        if words.pad_token_id is None or words.padding_side != "right":
            raise SpecError(f"{type(words).__name__} pads on the {words.padding_side} with {words.pad_token!r}")
        return int(words.pad_token_id)

    def encode(self, texts: Sequence[str], *, located: bool = False) -> list[Tokens]:
        if not texts:
            return []
        if self.clean is not None:
            every = self._encodings([self.clean(text) for text in texts])
            return [_whole(each.ids, text) for each, text in zip(every, texts, strict=True)]
        if located or self._own:
            return [Tokens(each.ids, partial(getattr, each, "offsets")) for each in self._encodings(list(texts))]
        every = self._core().encode_batch_fast(list(texts), add_special_tokens=False)
        return [Tokens(each.ids, partial(self._spans, text)) for each, text in zip(every, texts, strict=True)]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self._encodings([text])[0].offsets
        return offsets

    def _encodings(self, texts: list[str]) -> Sequence[Encoding]:
        """By the core of the tokenizer, past the layer of transformers that makes lists of all it knows of every token;
        a tokenizer that does something of its own in that layer keeps it."""
        if self._own:
            kept = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False).encodings
            assert kept is not None
            return kept
        return self._core().encode_batch(texts, add_special_tokens=False)

    def _core(self) -> Any:
        """The core of the tokenizer, set to give all tokens of a text and no others."""
        core = self.tokenizer.backend_tokenizer
        if core.truncation is not None:  # the caller's last call, or the file, may have set these
            core.no_truncation()
        if core.padding is not None:
            core.no_padding()
        if core.encode_special_tokens != self.tokenizer.split_special_tokens:
            core.encode_special_tokens = self.tokenizer.split_special_tokens
        return core

    def id_of(self, token: str) -> int:
        own = {"{bos}": self.tokenizer.bos_token, "{eos}": self.tokenizer.eos_token}
        word = own.get(token, token)
        number = None if word is None else self.tokenizer.backend_tokenizer.token_to_id(word)
        if number is None:
            raise UnknownName("token", token, self.tokenizer.all_special_tokens)
        return number

    def token_of(self, number: int) -> str:
        token = self.tokenizer.convert_ids_to_tokens(number) if number < len(self) else None
        if token is None:
            raise SpecError(f"the tokenizer has no token of the number {number}: it is not the one of this model")
        return token

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


class OpenClipTokenizer:
    """open_clip's own byte-pair tokenizer, OpenAI's of CLIP, whose words come with open_clip.

    Args:
        clean: its cleaning: "lower", "whitespace" or "canonicalize".
    """

    def __init__(self, *, clean: str = "lower"):
        from open_clip import SimpleTokenizer

        self.tokenizer = SimpleTokenizer(clean=clean)
        self.prefix = [self.tokenizer.sot_token_id]
        self.suffix = [self.tokenizer.eot_token_id]
        self.pad = 0

    def __len__(self) -> int:
        return int(self.tokenizer.vocab_size)

    def encode(self, texts: Sequence[str], *, located: bool = False) -> list[Tokens]:
        return [_whole(self.tokenizer.encode(text), text) for text in texts]

    def id_of(self, token: str) -> int:
        check_known("token of open_clip's tokenizer", token, self.tokenizer.encoder)
        return int(self.tokenizer.encoder[token])

    def token_of(self, number: int) -> str:
        token: str = self.tokenizer.decoder[number]
        return token

    def save(self, folder: Path) -> None:
        """Nothing to write: the words are open_clip's."""


def _cleaning(name: str | None) -> Callable[[str], str] | None:
    if name is not None and name not in CLEANINGS:
        raise UnknownName("cleaning", name, CLEANINGS)
    return None if name is None else CLEANINGS[name]


def _whole(ids: list[int], text: str) -> Tokens:
    return Tokens(ids, lambda: [(0, len(text))] * len(ids))


def _encodes_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a class of transformers does more than to call its core, as Code Llama's and LUKE's do."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    same = getattr(own, "_encode_plus", None) is getattr(PreTrainedTokenizerFast, "_encode_plus", None)
    return not same or getattr(own, "_batch_encode_plus", None) is not None


def load_tokenizer(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `settings` (the spec's `tokenizer`) describes, from the files of a folder."""
    given = dict(settings)
    kind = given.pop("kind", None)
    if kind == "sentencepiece":
        here = [folder / name for name in SENTENCEPIECE_FILES]
        return SentencePieceTokenizer.from_file(next((path for path in here if path.exists()), here[0]), **given)
    if kind == "transformers":
        return TransformersTokenizer.from_folder(folder, **given)
    if kind == "open_clip":
        return OpenClipTokenizer(**given)
    raise UnknownName("kind of tokenizer", kind, ("sentencepiece", "transformers", "open_clip"))


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.normalizers import Lowercase, Sequence

    core = tokenizer.backend_tokenizer
    core.normalizer = Lowercase() if core.normalizer is None else Sequence([Lowercase(), core.normalizer])
