"""Other kinds of output than one vector an item, as data: token vectors and sparse weights, and which tokens they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import SpecError, UnknownName, check_known
from .nn.similarity import MAXSIM
from .prompts import WORDS

COUNTED = ("all", "content", "unprompted", "repeat", "marked", "eos", "span", "tail", "rest")
SIDES = ("query", "document")

Output = TypeVar("Output", bound="Read")


@dataclass(frozen=True, kw_only=True)
class Read:
    """Which tokens of an item an output reads, and the head that makes it of their states.

    Attributes:
        head: `{"kind": ...}`, see `mmembed.nn.tokens` and `mmembed.nn.sparse`.
        counted, span: as in `ModelSpec`, for this output.
        skip: tokens that it never reads, as the tokenizer writes them (special ones, punctuation).
        skip_document: more of these for documents, which is all that is not encoded with side="query" (ColBERT).
        only_document: for documents nothing but these tokens; images of vision-language models are such a token each place.
        ends: so many of the counted tokens at the front and at the end are not read.
    """

    head: Mapping[str, Any]
    counted: str = "all"
    span: tuple[str, str] | None = None
    skip: tuple[str, ...] = ()
    skip_document: tuple[str, ...] = ()
    only_document: tuple[str, ...] = ()
    ends: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        check_known("way of counting", self.counted, COUNTED)
        if (self.counted == "span") != (self.span is not None):
            raise SpecError("counted='span' and span=(first token, last token) come together")
        if "kind" not in self.head:
            raise SpecError("an output needs a head with a 'kind'")

    @classmethod
    def of(cls: type[Output], said: Mapping[str, Any] | Output | None) -> Output | None:
        """From plain JSON values; None and one of its own stay.

        Raises:
            UnknownName: a key that none of its fields has.
        """
        if said is None or isinstance(said, cls):
            return said
        assert isinstance(said, Mapping)
        known = {f.name for f in dataclasses.fields(cls)}
        for key in said:
            check_known(f"key of {cls.__name__}", key, known)
        if "head" not in said:
            raise SpecError("an output needs a head with a 'kind'")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in said.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TokenOutput(Read):
    """Vectors of tokens.

    Attributes:
        similarity: "maxsim", or "meanmaxsim", which is over the number of query tokens (BGE-M3).
    """

    similarity: str = "maxsim"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("similarity of token vectors", self.similarity, MAXSIM)


@dataclass(frozen=True, kw_only=True)
class SparseOutput(Read):
    """Weights of terms.

    Attributes:
        top: so many of the greatest weights of an item are kept; None keeps all.
        within: only terms that the item's own words are made of, by a rule of `mmembed.prompts.WORDS`; None: any term.
        otherwise: so many of the greatest weights where `within` leaves no term (PromptReps).
    """

    top: int | None = None
    within: str | None = None
    otherwise: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within is not None and self.within not in WORDS:
            raise UnknownName("rule for words", self.within, WORDS)


STATES = TokenOutput(head={"kind": "states"})
"""What `encode_tokens` gives of a model that says nothing of token vectors: the states of all its tokens, as they are."""
