"""What stands before every route: the key, the size and the time of a request, checked before anything is read or decoded."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/")
"""Asked without a key: by those who watch over a server, and by a browser, whose page then asks for the key."""
OPEN_UNDER = "/page/"
LINGER, LINGER_SECONDS = 4, 5.0


class Guard:
    """An ASGI app around another.

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
        most: int = 20 * 2**20,
        seconds: float = 30.0,
        hosts: Collection[str] | None = None,
    ):
        self.app, self.most, self.seconds = app, most, seconds
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._key = None if key is None else f"bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        path = scope["path"]
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            return await _refuse(send, 403, "this server answers by its own address only", "invalid_request_error")
        free = self._key is None or path in OPEN or path.startswith(OPEN_UNDER)
        if not free and not self._known(headers):
            return await _refuse(send, 401, "a key is needed: Authorization: Bearer ...", "invalid_api_key")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            return await _refuse(send, 400, "Content-Length is a number", "invalid_request_error")
        if int(declared) > self.most:
            await self._drain(receive)
            return await self._too_large(send)
        loop = asyncio.get_running_loop()
        deadline, seen, whole, started = loop.time() + self.seconds, 0, False, False
        refused: _Refused | None = None

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
                refused = _Refused(408, f"the body took more than {self.seconds:.0f} s", "request_timeout")
                raise refused from None
            seen += len(message.get("body", b""))
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if seen > self.most:
                if not whole:
                    await self._drain(receive)
                refused = _Refused(413, f"the body is over {self.most} bytes", "request_too_large")
                raise refused
            return message

        with contextlib.suppress(_Refused):
            await self.app(scope, bounded, told)
        if refused is not None and not started:
            await _refuse(send, refused.status, str(refused), refused.kind)

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

    async def _too_large(self, send: Send) -> None:
        await _refuse(send, 413, f"the body is over {self.most} bytes", "request_too_large")


def _host(header: bytes) -> str:
    """The name in a Host header, less its port and the brackets of an IPv6 address."""
    name = header.decode("latin-1").strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


class _Refused(Exception):
    def __init__(self, status: int, reason: str, kind: str):
        super().__init__(reason)
        self.status, self.kind = status, kind


async def _refuse(send: Send, status: int, reason: str, kind: str) -> None:
    body = json.dumps({"error": {"message": reason, "type": kind, "param": None, "code": None}}).encode()
    # The rest of the request is not read, so nothing more can be said over this connection.
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
