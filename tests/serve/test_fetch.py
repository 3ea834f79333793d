"""Pictures by URL: only the public internet is asked, whatever a URL looks like and whatever a name resolves to."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import io
import re
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from urllib.parse import urlsplit

import httpx
import PIL.Image
import pytest

from mmembed import images
from mmembed.errors import ImageError
from mmembed.serve import fetch as fetching
from mmembed.serve.app import build_app
from mmembed.serve.fetch import fetch, is_public
from mmembed.serve.request import EmbedRequest, Limits, Pictures, RequestError
from mmembed.serve.service import Service
from mmembed.testing import tiny_embedder

from .served import served

FORMS = """
http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f.1/ http://0177.0.0.1/ http://0x7f000001/ http://0/ http://0.0.0.0/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:10.0.0.1]/ http://[::ffff:7f00:1]/ http://[2002:7f00:1::]/
http://[64:ff9b::7f00:1]/ http://[64:ff9b::a9fe:a9fe]/ http://[fd00::1]/ http://[fe80::1]/ http://[fe80::1%25eth0]/ http://[ff02::1]/
http://[2001:0:7f00:1::]/ http://[2001:db8::1]/ http://169.254.169.254/latest/meta-data/ http://[fd00:ec2::254]/
http://10.0.0.1/ http://172.16.0.1/ http://192.168.1.1/ http://100.64.0.1/ http://198.18.0.1/ http://192.0.2.1/ http://224.0.0.1/
http://240.0.0.1/ http://255.255.255.255/ http://localhost/ http://LOCALHOST/ http://localhost./ http://127.0.0.1.:80/
http://127.0.0.1:8080/ http://127.0.0.1:22/ https://127.0.0.1:80/ http://8.8.8.8:22/ http://8.8.8.8:443/ http://user@8.8.8.8/
http://user:word@8.8.8.8/ http://8.8.8.8@127.0.0.1/ http://127.0.0.1\\@8.8.8.8/ http://8.8.8.8\\@127.0.0.1/ http://127.0.0.1#@8.8.8.8/
http:\\\\127.0.0.1/ http:/127.0.0.1/ http:127.0.0.1 http:///etc/passwd http:// https:// //127.0.0.1/ file:///etc/passwd
file://localhost/etc/passwd ftp://8.8.8.8/a gopher://8.8.8.8/ dict://8.8.8.8/ ldap://8.8.8.8/ jar:http://8.8.8.8!/ javascript:1
http://①②⑦.⓪.⓪.①/ http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/ http://127。0。0。1/ http://8.8.8.8:80:80/ http://8.8.8.8:-1/ http://8.8.8.8:99999/ http://[::1/
"""
REFUSED = FORMS.split()
ODD = [
    "http://8.8.8.8/\r\nHost: 127.0.0.1",
    "http://8.8.8.8/ a",
    "http://8.8.8.8\t/",
    " http://127.0.0.1/",
    "http://8.8.8.8/\x00",
    "",
]


@pytest.fixture
def connections(monkeypatch):
    """Every address that a socket is connected to; none is reached."""
    tried: list[object] = []

    def connect(self, address):
        tried.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


@pytest.mark.parametrize("url", [*REFUSED, *ODD])
def test_no_socket_is_opened_for_what_is_not_public(connections, url):
    with pytest.raises(ImageError):
        fetch(url)
    assert connections == []


def test_there_are_sixty_forms():
    assert len({*REFUSED, *ODD}) >= 60


def _resolves(monkeypatch, *answers):
    """Names resolve to these addresses, one list after the other."""
    waiting, plain = list(answers), socket.getaddrinfo

    def resolve(host, port, *more, **named):
        if host[0].isdigit():
            return plain(host, port, *more, **named)
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["fe80::1"], ["169.254.169.254"]])
def test_a_name_with_any_private_address_is_not_asked(monkeypatch, connections, answer):
    _resolves(monkeypatch, answer)
    with pytest.raises(ImageError, match="not of the public internet"):
        fetch("http://metadata.google.internal/a.png")
    assert connections == []


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(monkeypatch, connections):
    _resolves(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])  # a second look would get another answer
    with pytest.raises(ImageError, match="cannot be reached"):
        fetch("http://rebinding.example/a.png")
    assert connections == [("93.184.216.34", 80)]


@pytest.fixture
def host(monkeypatch):
    """A real HTTP server that stands for the public one: the checked address is swapped for its own when it is connected to."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.headers["Host"], self.path, dict(self.headers)))
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path[4:] if "://" in self.path else "/to/again")
                self.end_headers()
                return
            body = b"x" * (images.MAX_BYTES + 1) if self.path == "/large" else b"picture"
            self.send_response(404 if self.path == "/missing" else 200)
            if self.path != "/large":
                self.send_header("Content-Length", str(len(body) + 9 * (self.path == "/short")))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    seen: list[tuple[str, str, dict[str, str]]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connect = socket.create_connection
    asked: list[object] = []

    def there(address, *more):
        asked.append(address)
        assert address[0] == "93.184.216.34", "only the address that was looked at may be asked"
        return connect(server.server_address, *more)

    _resolves(monkeypatch, ["93.184.216.34"])
    monkeypatch.setattr(socket, "create_connection", there)
    yield seen
    server.shutdown()


def test_a_public_picture_is_fetched_under_its_name_and_nothing_is_told(host):
    assert fetch("http://pictures.example/a%20cat.png?size=2") == b"picture"
    ((name, path, headers),) = host
    assert (name, path) == ("pictures.example", "/a%20cat.png?size=2")
    assert set(headers) <= {"Host", "User-Agent", "Accept", "Accept-Encoding"}


def test_a_redirect_is_looked_at_anew(host, monkeypatch):
    with pytest.raises(ImageError, match="3 redirects"):
        fetch("http://pictures.example/to/")
    assert len(host) == 4
    for inner in (
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "http://user@pictures.example/",
        "http://pictures.example:22/",
    ):
        if "127" in inner:
            _resolves(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
        with pytest.raises(ImageError):
            fetch(f"http://pictures.example/to/{inner}")


def test_a_redirect_to_what_is_no_url_is_told(host):
    with pytest.raises(ImageError, match="leads to what is no URL"):
        fetch("http://pictures.example/to/http://[")


def test_what_is_too_large_or_not_there_is_an_error(host):
    with pytest.raises(ImageError, match="over the limit"):
        fetch("http://pictures.example/large")
    with pytest.raises(ImageError, match="404"):
        fetch("http://pictures.example/missing")


def test_an_answer_that_breaks_off_is_no_picture(host):
    with pytest.raises(ImageError, match="broke off 9 bytes before its end"):
        fetch("http://pictures.example/short")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_is_called_without_the_port_that_its_scheme_means(monkeypatch, scheme):
    _resolves(monkeypatch, ["93.184.216.34"])
    connection = fetching._Pinned(urlsplit(f"{scheme}://pictures.example/"), time.monotonic() + 9)
    connection.sock, there = socket.socketpair()
    with connection, there:
        connection.request("GET", "/")
        assert b"\r\nHost: pictures.example\r\n" in there.recv(4096)


@pytest.fixture
def dribbling(monkeypatch):
    """A host that says what it is given to say, then a byte now and then for ten seconds, to whoever asks."""
    listening = socket.create_server(("127.0.0.1", 0))
    said = [b""]

    def dribble(asking):
        with asking, contextlib.suppress(OSError):
            asking.sendall(said[0])
            for _ in range(100):
                asking.sendall(b"0")
                time.sleep(0.1)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=dribble, args=listening.accept()[:1], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    connect = socket.create_connection

    def there(address, *more, **named):
        return connect(listening.getsockname() if address[0] == "93.184.216.34" else address, *more, **named)

    _resolves(monkeypatch, ["93.184.216.34"])
    monkeypatch.setattr(socket, "create_connection", there)
    monkeypatch.setattr(fetching, "SECONDS", 0.5)
    yield said
    listening.close()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("http", b""),
        ("http", b"HTTP/1.1 200 OK\r\nX: "),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("http", b"HTTP/1.0 200 OK\r\n\r\n"),
        ("https", b"\x16\x03\x03\x30\x00"),
    ],
    ids=["status", "header", "chunk size", "body", "body to the end", "handshake"],
)
def test_a_host_that_dribbles_holds_nobody_longer_than_a_picture_may_take(dribbling, scheme, said):
    dribbling[0] = said
    began = time.monotonic()
    with pytest.raises(ImageError, match="too long"):
        fetch(f"{scheme}://pictures.example/a.png")
    assert time.monotonic() - began < 3


def test_all_pictures_of_a_request_have_its_time_together(dribbling, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 60.0)
    pictures = Pictures(Limits(allow_url=True), until=time.monotonic() + 0.5)
    for _ in range(3):
        with pytest.raises(ImageError, match="too long"):
            pictures("http://pictures.example/a.png")
    assert time.monotonic() < pictures.until + 2


def test_a_request_whose_picture_does_not_come_is_answered_in_its_time(dribbling, monkeypatch, tiny):
    monkeypatch.setattr(fetching, "SECONDS", 60.0)
    part = {"type": "image_url", "image_url": {"url": "http://pictures.example/a.png"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    with served(build_app(tiny, limits=Limits(allow_url=True), seconds=0.5)) as url:
        began = time.monotonic()
        answer = httpx.post(url + "/v1/embeddings", json=body, timeout=30)
        took = time.monotonic() - began
    assert answer.status_code in (400, 503), "who tells first, the picture or the request"
    assert took < 3


def test_hosts_that_take_their_time_hold_up_no_one_who_asks_none(dribbling, monkeypatch, tiny):
    monkeypatch.setattr(fetching, "SECONDS", 60.0)
    part = {"type": "image_url", "image_url": {"url": "http://pictures.example/a.png"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    seconds = 4.0
    with (
        served(build_app(tiny, limits=Limits(allow_url=True), seconds=seconds)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(80) as pool,
    ):
        slow = [pool.submit(client.post, "/v1/embeddings", json=body) for _ in range(80)]
        wait(slow, return_when=FIRST_COMPLETED)  # one of those that are too many
        while (answer := client.post("/v1/embeddings", json={"input": "a"})).status_code == 429:
            time.sleep(0.1)  # the others are being read
        answered = sum(each.done() for each in slow)
        told = [each.result() for each in slow]
    assert answer.status_code == 200
    assert answered <= 80 - 64  # it came before any of those that wait for the host
    busy = [each for each in told if each.status_code == 429]
    assert len(busy) == 80 - 64
    assert all(re.search("64 requests are at (reading|fetching) already", each.text) for each in busy)
    assert {each.status_code for each in told} <= {400, 429, 503}


def test_a_request_that_is_given_up_fetches_no_more(dribbling, monkeypatch):
    service = Service(tiny_embedder(), limits=Limits(allow_url=True))
    asked = []

    def read(pictures):
        for n in range(20):
            with contextlib.suppress(ImageError):
                pictures(f"http://pictures.example/{n}.png")
            asked.append(pictures.until)
        return EmbedRequest(things=("a",))

    async def ask():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.answer(read), 0.1)

    began = time.monotonic()
    asyncio.run(ask())
    service.close()
    assert asked[0] == 0.0
    assert len(asked) == 20
    assert time.monotonic() - began < 3  # the one that was under way; all would have taken ten


def test_the_fetched_pictures_of_a_request_have_a_bound_together(monkeypatch):
    data = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(data, "PNG")
    monkeypatch.setattr("mmembed.serve.request.fetch", lambda url, until: data.getvalue())
    limits = Limits(allow_url=True, fetched=2 * len(data.getvalue()))
    pictures = Pictures(limits, until=time.monotonic() + 60)
    for _ in range(2):
        pictures("http://pictures.example/a.png")
    with pytest.raises(RequestError, match=f"over {limits.fetched} bytes") as refused:
        pictures("http://pictures.example/a.png")
    assert refused.value.status == 413


def test_a_url_is_of_a_bounded_length(connections):
    with pytest.raises(ImageError, match="at most 8192 characters"):
        fetch("http://8.8.8.8/" + "a" * 10_000)


@pytest.mark.parametrize(
    "address",
    ["fec0::1", "feff::1", "192.88.99.1", "192.0.0.9", "2001:1::1", "3fff::1", "::ffff:8.8.8.8", "2002:808:808::1"],
)
def test_what_leads_back_to_the_site_is_not_public(address):
    assert not is_public(address)


def test_public_addresses_are_public():
    assert all(is_public(a) for a in ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "93.184.216.34"))
