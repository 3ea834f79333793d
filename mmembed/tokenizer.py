"""Tokenizers of transformers and plain sentencepiece models, behind one small face: text -> ids and character spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import LoadError, SpecError, UnknownName

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_FILE = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of one text without special tokens, and the span of characters that each stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer(Protocol):
    """What the rest of the package knows of a tokenizer."""

    prefix: list[int]
    """Special ids that open an item (BOS, CLS)."""
    suffix: list[int]
    """Special ids that close an item (EOS, SEP)."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]: ...

    def id_of(self, token: str) -> int: ...

    def token_of(self, number: int) -> str: ...

    def save(self, folder: Path) -> None: ...


class SentencePieceTokenizer:
    """A plain sentencepiece model; special tokens are put around an item as the spec says.

    Args:
        processor: the loaded model.
        prefix, suffix: pieces such as "<s>" and "</s>" that open and close an item.
    """

    def __init__(
        self, processor: SentencePieceProcessor, *, prefix: Sequence[str] = (), suffix: Sequence[str] = ("</s>",)
    ):
        self.processor = processor
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

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        if not texts:
            return []
        mapped = self.processor.encode(list(texts), return_type="offset_mapping")
        return [Tokens(each["ids"], each["offsets"]) for each in mapped]

    def id_of(self, token: str) -> int:
        number = self.processor.piece_to_id(token)
        if self.processor.id_to_piece(number) != token:
            raise UnknownName("piece of the sentencepiece model", token, ())
        return number

    def token_of(self, number: int) -> str:
        return self.processor.id_to_piece(number)

    def save(self, folder: Path) -> None:
        (folder / SENTENCEPIECE_FILE).write_bytes(self.processor.serialized_model_proto())


class TransformersTokenizer:
    """A fast tokenizer of transformers; what it puts around a text is read off it once, on a probe.

    Args:
        tokenizer: the loaded one.
        prefix, suffix: tokens such as "<s>" and "</s>" that open and close an item; None is what the tokenizer does.

    Raises:
        SpecError: a slow tokenizer, which cannot say which characters a token stands for.
        UnknownName: a token that it does not have.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix: Sequence[str] | None = None,
        suffix: Sequence[str] | None = None,
    ):
        if not tokenizer.is_fast:
            raise SpecError(
                f"{type(tokenizer).__name__} is a slow tokenizer; mmembed needs a fast one (tokenizer.json)"
            )
        self.tokenizer = tokenizer
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
        except (OSError, ValueError) as error:
            raise LoadError(f"{folder} holds no tokenizer: {error}") from None
        return cls(words, **settings)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        if not texts:
            return []
        out = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [Tokens(ids, spans) for ids, spans in zip(out["input_ids"], out["offset_mapping"], strict=True)]

    def id_of(self, token: str) -> int:
        number = self.tokenizer.get_vocab().get(token)
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


def load_tokenizer(folder: Path, settings: dict[str, Any]) -> SentencePieceTokenizer | TransformersTokenizer:
    """The tokenizer that `settings` (the spec's `tokenizer`) describes, from the files of a folder."""
    kind = settings.get("kind")
    special = {key: settings[key] for key in ("prefix", "suffix") if key in settings}
    if kind == "sentencepiece":
        return SentencePieceTokenizer.from_file(folder / SENTENCEPIECE_FILE, **special)
    if kind == "transformers":
        return TransformersTokenizer.from_folder(folder, **special)
    raise UnknownName("kind of tokenizer", kind, ("sentencepiece", "transformers"))
