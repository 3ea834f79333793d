"""What stands before every route: the key, the size and the time of a request, and what pages of other sites have browsers ask,
checked before anything is read or decoded."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from .refusal import refusal
from .request import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STOP = "stop"
"""The state of an app's lifespan holds under this name what is called once no new connection is taken and those that are open are
still answered."""
OPEN = ("/health", "/")
"""Asked without a key: by those who watch over a server, and by a browser, whose page then asks for the key."""
OPEN_UNDER = "/page/"
HEAD_BYTES = 16 * 2**10
BODY_BYTES = 20 * 2**20
BODY_SECONDS = 30.0
HELD_BYTES = 2**29
"""Of the bodies of all requests that are open."""
LINGER, LINGER_SECONDS = 4, 5.0


class Guard:
    """An ASGI app around another.

    Whoever opens a page of another site has his browser ask this machine whatever that page likes, without his knowing. Without
    a key that only he has, what a browser says to come from elsewhere is refused, and so is a body of another type than JSON,
    as forms of pages send.

    Args:
        app: what it stands before. key: the bearer token that a request must bear, None: none.
        most: bytes of a body. seconds: for a body to arrive. hosts: names that a request may call the server by, None: any. A
            page that a browser shows could otherwise have its own name lead to this machine, and read what it answers.
    """

    def __init__(
        self,
        app: App,
        *,
        key: str | None = None,
        most: int = BODY_BYTES,
        seconds: float = BODY_SECONDS,
        hosts: Collection[str] | None = None,
    ):
        self.app, self.most, self.seconds = app, most, seconds
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._key = None if key is None else f"bearer {key}".encode()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        try:
            self._check(scope)
        except RequestError as error:
            if error.status == 413:
                await self._drain(receive)
            return await refusal(path, error, close=True)(scope, receive, send)
        loop = asyncio.get_running_loop()
        deadline, seen, whole, started = loop.time() + self.seconds, 0, False, False
        refused: RequestError | None = None

        async def told(message: Message) -> None:
            nonlocal started
            if refused is not None:  # an app that answers errors by itself would say 500 first
                return
            started = started or message["type"] == "http.response.start"
            await send(message)

        async def bounded() -> Message:
            nonlocal seen, whole, refused
            if whole:  # the body is here, and a disconnect is all that can come
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refused = RequestError(f"the body took more than {self.seconds:.0f} s", 408)
                raise refused from None
            seen += (more := len(message.get("body", b"")))
            self._held += more
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if self._held > HELD_BYTES and self._held > seen:
                refused = RequestError(
                    "the bodies of other requests are all that this server holds at once: come again", 429, wait=1
                )
                raise refused
            if seen > self.most:
                if not whole:
                    await self._drain(receive)
                refused = self._too_large()
                raise refused
            return message

        try:
            await self.app(scope, bounded, told)
        except RequestError as error:
            if error is not refused:
                raise
        finally:
            self._held -= seen
        if refused is not None and not started:
            await refusal(path, refused, close=True)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises `RequestError` for what the head of a request says."""
        headers, path = dict(scope["headers"]), scope["path"]
        if _size(scope) > HEAD_BYTES:
            raise RequestError(f"the head of the request is over {HEAD_BYTES} bytes", 431)
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            raise RequestError("this server answers by its own address only", 403)
        if self._key is None:
            _check_origin(scope["method"], headers)
        elif path not in OPEN and not path.startswith(OPEN_UNDER) and not self._known(headers):
            raise RequestError("a key is needed: Authorization: Bearer ...", 401)
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise RequestError("Content-Length is a number")
        if int(declared) > self.most:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        return RequestError(f"the body is over {self.most} bytes", 413)

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        return self._key is not None and hmac.compare_digest(kind.lower() + b" " + token.strip(), self._key)

    async def _drain(self, receive: Receive) -> None:
        """Let a body that is too large come in and drop it, up to `LINGER` times the limit and for `LINGER_SECONDS`: a client
        that still writes when the connection is closed never reads why."""
        seen = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while seen < LINGER * self.most:
                    message = await receive()
                    seen += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


def _size(scope: Scope) -> int:
    """Bytes of a head, less a few of its first line."""
    said = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return said + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _check_origin(method: str, headers: dict[bytes, bytes]) -> None:
    """Raises `RequestError` for what a browser asks in the name of another site: it says so itself, by Origin with all that sends
    a body, and by Sec-Fetch-Site with the rest, such as a picture; whoever follows a link comes here by himself."""
    host, origin = headers.get(b"host", b"").lower(), headers.get(b"origin")
    away = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
    if origin is not None and origin.lower().partition(b"://")[2] != host:
        raise RequestError(
            f"a page of {origin.decode('latin-1')[:100]} may not ask this server, called {host.decode('latin-1')[:100]}; "
            "behind a proxy, have it pass the Host header on",
            403,
        )
    if origin is None and away and headers.get(b"sec-fetch-mode") != b"navigate":
        raise RequestError("a page of another site may not ask this server", 403)
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if method == "POST" and kind != b"application/json":
        raise RequestError("a body is JSON here, and says so: Content-Type: application/json", 415)


def _host(header: bytes) -> str:
    """The name in a Host header, less its port and the brackets of an IPv6 address."""
    name = header.decode("latin-1").strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name
