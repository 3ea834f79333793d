"""The form of /search: a text, a picture or both in, hits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..inputs import Thing
from .asked import Answer, Asked, Pictures, Refused, text

if TYPE_CHECKING:
    from ..search.hits import Hits
    from ..search.index import Index


class Request(BaseModel):
    """`text`, `image` (a data URI) or both; how many hits, and of what modality."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = None
    k: int = Field(default=10, ge=1, le=200)
    modality: Literal["text", "image", "image+text"] | None = None


def read(request: Request, pictures: Pictures) -> Asked:
    """The query.

    Raises:
        Refused: neither text nor image. InputError: one of them cannot be embedded.
    """
    parts: list[Thing] = []
    if request.text is not None:
        parts.append(text(request.text))
    if request.image is not None:
        parts.append(pictures(request.image))
    if not parts:
        raise Refused("give text, image or both")
    return Asked(things=(tuple(parts),), side="query", truncate="end")


def find(index: Index, request: Request, answer: Answer) -> Hits:
    """What is nearest to the query."""
    return index.nearest(answer.vectors[0], k=request.k, modality=request.modality, query=request.text or "")


def write(hits: Hits) -> dict[str, Any]:
    """Hits for JSON: paths of the server's own disk are cut to names."""
    found = []
    for hit in hits:
        told = hit.as_dict()
        told["path"] = None if hit.path is None else hit.path.replace("\\", "/").rsplit("/", 1)[-1]
        found.append({**told, "label": hit.label, "thumbnail": hit.thumbnail is not None})
    return {"hits": found}
