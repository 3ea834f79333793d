"""The routes: every form of request is read, answered by the one service, and written back in its own words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import FingerprintMismatch, InputError, MmembedError, ReplicaLost, StoreError, UnknownName
from . import cohere, openai, search, tei
from .files import page_routes
from .form import Read, parse
from .guard import STOP, App, Guard
from .metrics import Metrics, MetricsMiddleware
from .refusal import refusal
from .request import Limits, RequestError
from .service import Service

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..search.index import Index

LOG = logging.getLogger(__name__)
CLOSED = 499
"""What nginx writes for a client that went away; it is never sent."""


def build_app(
    embedder: Embedder,
    *,
    index: Index | None = None,
    key: str | None = None,
    limits: Limits | None = None,
    seconds: float = 60.0,
    waiting: int = 4096,
    hosts: Collection[str] | None = None,
) -> App:
    """The ASGI app of a server.

    Args:
        embedder: the one model that is served, under the name of its spec. index: what /search looks through.
        key: the bearer token that every request but those of /health and of the page must bear. limits: of one request.
        seconds: that an answer may take once the body is here. waiting: samples that may queue.
        hosts: names that requests may call the server by, see `Guard`; None: any.
    """
    if index is not None and index.embedder is not embedder:
        raise FingerprintMismatch("the index must be opened with the embedder that is served")
    served = _Served(embedder, index, limits or Limits(), seconds, waiting)
    return MetricsMiddleware(Guard(served.app(), key=key, hosts=hosts), served.metrics)


class _Served:
    def __init__(self, embedder: Embedder, index: Index | None, limits: Limits, seconds: float, waiting: int):
        self.embedder, self.index, self.limits, self.seconds, self.waiting = embedder, index, limits, seconds, waiting
        self.name = embedder.spec.name
        self.prompts = frozenset(embedder.spec.prompts)
        self.started = int(time.time())
        self.running: Service | None = None
        self.metrics = Metrics()

    def app(self) -> Starlette:
        routes = [
            Route("/v1/embeddings", self._route(self.openai), methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v2/embed", self._route(self.cohere), methods=["POST"]),
            Route("/embed", self._route(self.tei), methods=["POST"]),
            Route("/search", self._route(self.search), methods=["POST"]),
            Route("/why", self._route(self.why), methods=["POST"]),
            Route("/map", self._route(self.map), methods=["GET"]),
            Route("/thumbnail", self._route(self.thumbnail), methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.told, methods=["GET"]),
        ]
        routes += page_routes() if self.index is not None else []
        handlers: Any = {404: _no_such_route, 405: _no_such_route, 500: _failed}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        self.running = Service(self.embedder, limits=self.limits, waiting=self.waiting, seconds=self.seconds)
        self.metrics.watch(self.running.batcher)
        try:
            yield {STOP: self.running.batcher.stop}
        finally:
            await asyncio.to_thread(self.running.close)

    # ---- what is asked ----

    async def openai(self, request: Request) -> Response:
        form = await self._form(request, openai.Request)
        self._check_model(form.model)
        longest = self.embedder.spec.max_length
        answer = await self._service.answer(lambda pictures: openai.read(form, pictures, longest))
        return _json(openai.write(form, answer, self.name))

    async def cohere(self, request: Request) -> Response:
        form = await self._form(request, cohere.Request)
        self._check_model(form.model)
        width = self.embedder.dimension
        answer = await self._service.answer(lambda pictures: cohere.read(form, pictures, self.prompts, width))
        return _json(cohere.write(form, answer))

    async def tei(self, request: Request) -> Response:
        form = await self._form(request, tei.Request)
        return _json(tei.write(await self._service.answer(lambda _: tei.read(form))))

    async def search(self, request: Request) -> Response:
        form = await self._form(request, search.Request)
        index = self._index
        if form.like is not None and (form.text is not None or form.image is not None or form.negative is not None):
            raise RequestError("give like, or a query", param="like")
        answer = None
        if form.like is None:
            answer = await self._service.answer(lambda pictures: search.read(form, pictures, index.dimension))
        return _json(search.write(await self._service.readers.run(search.find, index, form, answer)))

    async def why(self, request: Request) -> Response:
        form = await self._form(request, search.WhyRequest)
        index = self._index
        answer = await self._service.answer(lambda pictures: search.read(form, pictures, index.dimension))
        return _json(await self._service.explainers.run(search.why, index, self.embedder, form, answer))

    async def map(self, request: Request) -> Response:
        return _json({"items": await self._service.explainers.run(self._index.layout)})

    async def thumbnail(self, request: Request) -> Response:
        asked = request.query_params
        found = await self._service.readers.run(self._index.get, asked.get("id", ""))
        picture = None if found is None else found.thumbnail
        if picture is None or asked.get("version") not in (None, search.version(picture)):
            raise RequestError("no such picture is kept under this id", 404)
        lasting = (
            "max-age=31536000, immutable" if "version" in asked else "no-cache"
        )  # an id may be another picture's tomorrow
        return Response(picture, media_type="image/webp", headers={"Cache-Control": f"private, {lasting}"})

    async def models(self, request: Request) -> Response:
        spec = self.embedder.spec
        entry = {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "mmembed",
            "max_model_len": spec.max_length,
            "dimensions": sorted({spec.dimension, *spec.dimensions}, reverse=True),
            "modalities": list(spec.modalities),
            "prompts": sorted(spec.prompts),
        }
        return _json({"object": "list", "data": [entry]})

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok", "model": self.name, "waiting": self._service.batcher.waiting})

    async def told(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    # ---- what all of them share ----

    @property
    def _service(self) -> Service:
        assert self.running is not None, "the app has not been started"
        return self.running

    @property
    def _index(self) -> Index:
        if self.index is None:
            raise RequestError("this server was started without an index: mmembed serve --index PATH", 404)
        return self.index

    async def _form(self, request: Request, form: type[Read]) -> Read:
        """The body as a form, read by a thread: a large one takes its time."""
        return await self._service.readers.run(parse, await request.body(), form, self.limits)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise RequestError(str(UnknownName("model", name, [self.name])), 404, "model")

    def _route(self, serve: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A route whose errors are told in the words of its form, and that ends with its time or when its client goes away."""

        async def route(request: Request) -> Response:
            try:
                await request.body()  # read once, in the time that the guard gives: then only a disconnect can come
                async with asyncio.timeout(self.seconds):
                    return await _unless_gone(request, serve)
            except RequestError as refused:
                return refusal(request.url.path, refused)
            except InputError as error:
                return refusal(request.url.path, RequestError(str(error), 400, "input"))
            except TimeoutError:
                return refusal(
                    request.url.path, RequestError(f"the answer took more than {self.seconds:.0f} s", 503, wait=5)
                )
            except FingerprintMismatch as error:
                LOG.error("the index was made anew: %s", error)
                reason = "the index was made anew with vectors of another model: the server has to be started again"
                return refusal(request.url.path, RequestError(reason, 503))
            except StoreError as error:
                LOG.error("the index cannot be read: %s", error)  # it names paths of this machine
                reason = "the index cannot be read; the server's log says why"
                return refusal(request.url.path, RequestError(reason, 503, wait=1))
            except ReplicaLost as error:
                return refusal(request.url.path, RequestError(str(error), 503, wait=1))
            except MmembedError as error:
                return refusal(request.url.path, RequestError(str(error), 400))
            except ClientDisconnect:
                return Response(status_code=CLOSED)

        return route


async def _unless_gone(request: Request, serve: Callable[[Request], Awaitable[Response]]) -> Response:
    """What `serve` answers; its work is cancelled if the client goes away before."""
    work = asyncio.ensure_future(serve(request))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: Any) -> Response:
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, media_type="application/json")


async def _no_such_route(request: Request, error: Any) -> Response:
    reason = f"{request.method} {request.url.path} is not served here"
    return refusal(request.url.path, RequestError(reason[:300], error.status_code))


async def _failed(request: Request, error: Any) -> Response:
    """What a client hears of a fault of ours; the error itself goes to the server's log."""
    return refusal(request.url.path, RequestError("the server failed at this request; its log says how", 500))
