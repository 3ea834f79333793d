"""Pictures by URL for a server whose owner allows it: only public addresses, resolved once and connected to as resolved."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import math
import socket
import ssl
import threading
import time
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import ImageError
from ..images import read_answer

SECONDS = 10.0
"""From the first look at a URL to the last byte of its picture, redirects too."""
HOPS = 3
PORTS = {"http": 80, "https": 443}
URL = 2**13
"""Characters of a URL, at most."""
_WITHIN = (
    *("::ffff:0:0/96", "2002::/16", "192.88.99.0/24", "64:ff9b::/96", "64:ff9b:1::/48"),  # IPv4 within IPv6, and relays
    *("2001::/23", "192.0.0.0/24", "3fff::/20", "fec0::/10"),  # Teredo and other protocols, documentation, sites
)
"""Networks that count as global, by some version of Python or other, and lead to what hangs on the machine or its site."""


def fetch(url: str, until: float = math.inf) -> bytes:
    """The bytes behind an http or https URL.

    The name is resolved here, every address it has must be public, and the connection goes to that very address, so that a
    name cannot mean one host when it is looked at and another when it is used. Redirects, at most three, are looked at anew.
    No proxy, cookie or credential is sent, and only the ports 80 and 443 are asked.

    Args:
        until: when by `time.monotonic` it has to be here, where that is sooner than `SECONDS` from now.

    Raises:
        ImageError: the URL is refused, or no whole answer of at most `images.MAX_BYTES` comes back in time. The message names no
            address that the name was resolved to.
    """
    deadline = min(time.monotonic() + SECONDS, until)
    for _ in range(HOPS + 1):
        parts = _checked(url)
        with _Pinned(parts, deadline) as connection:
            answer = _ask(connection, parts, deadline)
            if answer.status in (301, 302, 303, 307, 308):
                url = _joined(url, answer.headers.get("Location", ""))
                continue
            if answer.status != 200:
                raise ImageError(f"the host answers {answer.status}")
            return _body(answer, deadline)
    raise ImageError(f"more than {HOPS} redirects")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageError("the host leads to what is no URL") from None


def _checked(url: str) -> SplitResult:
    """The parts of a URL that no two parsers read differently."""
    if len(url) > URL:
        raise ImageError(f"a URL has at most {URL} characters, not {len(url)}")
    if any(c <= " " or c in "\\\x7f" for c in url) or not url.isascii():
        raise ImageError("a URL is of printable ASCII without spaces or backslashes; encode the rest")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ImageError(f"this is no URL: {error}") from None
    if parts.scheme not in PORTS:
        raise ImageError("only http and https URLs are fetched")
    if "@" in parts.netloc:
        raise ImageError("a URL with a user or a password is not fetched")
    if not parts.hostname or port not in (None, PORTS[parts.scheme]):
        raise ImageError("a URL names a host, and no port but 80 for http and 443 for https")
    return parts


def _ask(connection: _Pinned, parts: SplitResult, deadline: float) -> http.client.HTTPResponse:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"User-Agent": "mmembed", "Accept": "image/*"})
        return connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError):
        _left(deadline)
        raise ImageError("the host cannot be reached, or does not speak HTTP") from None


def _public_address(host: str, port: int) -> str:
    """One of the addresses of a host, all of which are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ImageError("the host's name cannot be resolved") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise ImageError("the host is not of the public internet, and is not asked")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, as those are not that hold another (mapped, 6to4, Teredo, NAT64)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(found in ipaddress.ip_network(network) for network in _WITHIN):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that is looked at here, under the name of its host. As a context it ends at the deadline,
    whatever it waits for then: the timeout of a socket begins anew with every byte that a host dribbles."""

    def __init__(self, parts: SplitResult, deadline: float):
        host, port = str(parts.hostname), PORTS[parts.scheme]
        self._address, self._encrypted, self._deadline = _public_address(host, port), parts.scheme == "https", deadline
        self._timer: threading.Timer | None = None
        super().__init__(host, port, timeout=_left(deadline))
        self.default_port = port  # which a request does not name: a signature is of the host without it

    def connect(self) -> None:
        sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._encrypted:
            context = ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = sock
        self._timer = threading.Timer(_left(self._deadline), _shut, [sock])
        self._timer.daemon = True
        self._timer.start()
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.close()


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits for a socket in another thread."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # an encrypted one's own would forget its keys in mid-call


def _body(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    try:
        return read_answer(answer, lambda: _left(deadline))
    except (OSError, http.client.HTTPException):
        _left(deadline)
        raise ImageError("the answer broke off") from None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ImageError(f"it took too long: a picture has {SECONDS:.0f} s, and all of a request have its time")
    return left
