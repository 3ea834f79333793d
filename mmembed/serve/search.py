"""The forms of /search, /why and /map: what the page asks of an index."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BeforeValidator, Field

from ..errors import InputError
from ..images import Image
from ..inputs import Thing
from ..search.background import NO_MATCH
from ..search.diversity import SPARE
from ..search.query import weighted
from ..search.why import why_picture, why_text
from .form import Form, Many, Name
from .request import EmbedRequest, EmbedResponse, Pictures, RequestError, text

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..search.hits import Hits
    from ..search.index import Index

Modality = Literal["text", "image", "image+text"]
NEGATIVE = -0.5
"""Weight of a negative, as Qdrant's average of vectors has it: it turns hits away without becoming the whole question."""


class QueryForm(Form):
    """`text`, `image` (a data URI) or both."""

    meant = "text"
    text: str | None = None
    image: str | None = None


def _many(given: Any) -> Any:
    """One modality as a list of it."""
    return [given] if isinstance(given, str) else given


class Request(QueryForm):
    """A query, `negative`, a text that hits are turned away from, or `like`, the id of an item; how many hits, of what modality
    or modalities, whether modalities are balanced, whether the words of the text are searched for too, and how unlike each other
    hits are."""

    negative: str | None = None
    like: Name | None = None
    k: int = Field(default=10, ge=1, le=200)
    modality: Annotated[Many[Modality], Field(min_length=1), BeforeValidator(_many)] | None = None
    balanced: bool = True
    mode: Literal["vector", "hybrid"] = "vector"
    diversity: float = Field(default=0, ge=0, le=1)


class WhyRequest(QueryForm):
    """A query and the id of an item that it found."""

    id: Name


def read(request: QueryForm, pictures: Pictures, width: int) -> EmbedRequest:
    """The query, in vectors of so many numbers as the index has.

    Raises:
        RequestError: neither text nor image. InputError: one of them cannot be embedded.
    """
    parts: list[Thing] = []
    if request.text is not None:
        parts.append(text(request.text))
    if request.image is not None:
        parts.append(pictures(request.image))
    if not parts:
        raise RequestError("give text, image or both")
    things: list[Thing] = [tuple(parts)]
    if isinstance(request, Request) and request.negative is not None:
        things.append(text(request.negative))
    names = ("the query", "negative")
    return EmbedRequest(things=tuple(things), names=names, side="query", truncate_dim=width, truncate="end")


def find(index: Index, request: Request, answer: EmbedResponse | None) -> Hits:
    """What is nearest to the query, or most like an item of the index.

    Raises:
        InputError: no such item, or a query and a negative that say the same.
    """
    vector = index.vector(str(request.like)) if answer is None else answer.vectors[0]
    if answer is not None and len(answer.vectors) > 1:
        turned = weighted(answer.vectors, (1, NEGATIVE))
        if turned is None:
            raise InputError("the query and what is to be left out cancel each other: nothing is left to ask for")
        vector = turned
    kinds = request.modality or []
    several = len(kinds) > 1
    hits = index.nearest(
        vector,
        k=request.k * (SPARE if request.diversity else 1),
        modality=kinds[0] if kinds and not several else None,
        where=" OR ".join(f"modality = '{each}'" for each in kinds) if several else None,
        balanced=request.balanced,
        words=(request.text or "") if request.mode == "hybrid" else None,
        query=request.text or "",
    )
    return index.diversify(hits, k=request.k, diversity=request.diversity) if request.diversity else hits


def write(hits: Hits) -> dict[str, Any]:
    """Hits for JSON: paths of the server's own disk are cut to names, small pictures are where they are asked for."""
    found = []
    for hit in hits:
        told = hit.as_dict()
        told["path"] = None if hit.path is None else hit.path.replace("\\", "/").rsplit("/", 1)[-1]
        named = hit.thumbnail and {"id": hit.id, "version": version(hit.thumbnail)}
        found.append({**told, "label": hit.label, "thumbnail": f"/thumbnail?{urlencode(named)}" if named else None})
    best = max((hit.relevance for hit in hits if hit.relevance is not None), default=None)
    return {"hits": found, "good_match": None if best is None else best >= NO_MATCH}


def version(thumbnail: bytes) -> str:
    """What tells a small picture from another one that its item has had."""
    return hashlib.blake2b(thumbnail, digest_size=8).hexdigest()


def why(index: Index, embedder: Embedder, request: WhyRequest, answer: EmbedResponse) -> dict[str, Any]:
    """What each part of an item gives to its score with the query: of a picture by the small copy that the index keeps.

    Raises:
        InputError: no such item.
    """
    item = index.get(request.id)
    if item is None:
        raise InputError(f"the index holds no item with the id {request.id!r}")
    told: dict[str, Any] = {"id": request.id, "picture": None, "text": None}
    if item.thumbnail is not None:
        told["picture"] = why_picture(embedder, answer.vectors[0], Image(item.thumbnail)).tolist()
    if item.text is not None and item.text.strip():
        covered = why_text(embedder, answer.vectors[0], item.text)
        edges = [*(begin for begin, _, _ in covered.parts[1:]), len(covered.text)]  # with the spaces behind each part
        told["text"] = [
            [covered.text[begin:edge], change] for (begin, _, change), edge in zip(covered.parts, edges, strict=True)
        ]
    return told
