"""How the server is run: uvicorn on one address, with limits on headers and on clients that take their time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import SpecError
from .guard import HEAD_BYTES, STOP, App

HEADER_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""A client has so long to take what was written, and a connection that was closed to take the last of it."""
CONNECTIONS = 1024


class _Patient(H11Protocol):
    """uvicorn's HTTP/1.1, whose clients have only so long to send the head of a request, the rest of a body that was answered
    before it was read, and to take their answer; uvicorn itself waits for ever."""

    _clock: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answered:
            return  # no byte of what is not read any more gives it time
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._clock is None and data:
            self._start()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_answered and self._clock is None:
            self._start()
        if self.transport.is_closing():
            self._give(ANSWER_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._give(ANSWER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._give(ANSWER_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None and not self.transport.is_closing():
            self._taking.cancel()
            self._taking = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._taking is not None:
            self._taking.cancel()
        super().connection_lost(exc)

    @property
    def _is_answered(self) -> bool:
        """Whether the answer is written, and the body of its request still comes."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _give(self, seconds: float) -> None:
        """So long for what is written to be taken."""
        if self._taking is None:
            self._taking = self.loop.call_later(seconds, self.transport.abort)

    def _start(self) -> None:
        self._clock = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        SpecError: no such address, or another one listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise SpecError(f"nothing can listen on {host}, port {port}: {error.strerror}") from None
    return found


class _Server(uvicorn.Server):
    """uvicorn's, which has the app refuse what waits while there are clients to be told: uvicorn itself ends the app last."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if STOP in self.lifespan.state:
            self.lifespan.state[STOP]()
        await super().shutdown(sockets)


def server(app: App, *, port: int = 8000, log_level: str = "info") -> uvicorn.Server:
    """A uvicorn server of an app, to be run by its `run()`."""
    config: Any = uvicorn.Config(
        app,
        port=port,
        http=_Patient,
        ws="none",
        log_level=log_level,
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
        server_header=False,
        proxy_headers=False,
        access_log=False,
    )
    return _Server(config)
