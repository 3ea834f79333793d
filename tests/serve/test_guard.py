"""What stands before the routes: keys, sizes, and clients that take their time."""

from __future__ import annotations

import contextlib
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from mmembed.serve import guard, run
from mmembed.serve.guard import Guard

from .served import served


async def _echo(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.5)
    with served(Guard(_echo, key="secret", most=1000, seconds=0.5)) as base:
        yield base


KEY = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize(
    "said", [None, "secret", "Bearer", "Bearer wrong", "Basic secret", "Bearer secret2", "Bearer ééé"]
)
def test_a_wrong_key_opens_nothing(url, said):
    headers = {} if said is None else {"Authorization": said.encode()}
    answer = httpx.post(url + "/x", headers=headers, content=b"x")
    assert answer.status_code == 401
    assert "secret" not in answer.text


def test_the_key_opens_and_health_and_the_page_need_none(url):
    assert httpx.get(url + "/").status_code == httpx.get(url + "/page/page.js").status_code == 200
    assert httpx.post(url + "/x", headers=KEY, content=b"x").status_code == 200
    assert httpx.post(url + "/x", headers={"authorization": "bearer secret"}, content=b"x").status_code == 200
    assert httpx.get(url + "/health").status_code == 200


def test_a_large_body_is_refused_by_its_head_and_by_its_bytes(url):
    assert httpx.post(url + "/x", headers=KEY, content=b"x" * 1001).status_code == 413

    def chunks():
        for _ in range(3):
            yield b"x" * 500

    assert httpx.post(url + "/x", headers=KEY, content=chunks()).status_code == 413
    assert httpx.post(url + "/x", headers=KEY, content=b"x" * 1000).status_code == 200


def test_a_client_that_is_still_writing_reads_why_its_body_is_refused(url):
    for _ in range(5):
        assert httpx.post(url, headers=KEY, content=b"x" * 3900).status_code == 413


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=5)


def _closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\n"])
def test_half_a_head_is_waited_for_only_so_long(url, sent):
    with _connect(url) as connection:
        connection.sendall(sent)
        assert _closed_within(connection, 3)


def test_a_head_that_trickles_in_is_cut_off(url):
    with _connect(url) as connection:
        began = time.monotonic()
        try:
            for byte in b"POST / HTTP/1.1\r\nHost: a-host\r\n" * 10:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - began < 3
        assert _closed_within(connection, 1)


def test_a_body_that_does_not_come_is_a_timeout(url):
    with _connect(url) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\nabc"
        )
        connection.settimeout(3)
        assert b"408" in connection.recv(4096).splitlines()[0]


async def _early(scope, receive, send):
    """Answers without a look at the body, at /large with more than a socket holds."""
    if scope["type"] == "lifespan":
        return await _echo(scope, receive, send)
    body = b"x" * (2**25 if scope["path"] == "/large" else 2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def early(monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(run, "ANSWER_SECONDS", 0.5)
    with served(Guard(_early)) as base:
        yield base


def test_the_rest_of_a_body_that_nobody_reads_holds_no_connection(early):
    with _connect(early) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert b"200" in connection.recv(4096).splitlines()[0]
        connection.sendall(b"x")
        assert _closed_within(connection, 3)
    with httpx.Client() as client:
        for _ in range(2):
            assert client.request("GET", early + "/health", content=b"x" * 1000).text == "xx"


@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_takes_holds_no_connection(early, ending):
    with _connect(early) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n" + ending + b"\r\n")
        time.sleep(1.5)
        taken = 0
        with contextlib.suppress(OSError):
            while more := connection.recv(2**20):
                taken += len(more)
        assert taken < 2**25
    assert len(httpx.get(early + "/large").content) == 2**25


def test_bodies_of_all_requests_are_held_up_to_a_bound(url, monkeypatch):
    monkeypatch.setattr(guard, "HELD_BYTES", 1500)
    with _connect(url) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 1000\r\n\r\n" + b"x" * 900
        )
        time.sleep(0.1)
        answer = httpx.post(url, headers=KEY, content=b"x" * 700)
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "1"
    time.sleep(0.7)
    assert httpx.post(url, headers=KEY, content=b"x" * 700).status_code == 200


def test_a_second_request_on_a_connection_has_its_own_clock(url):
    with httpx.Client() as client:
        assert client.get(url + "/health").status_code == 200
        time.sleep(0.8)  # longer than a head may take: between requests the connection rests
        assert client.get(url + "/health").status_code == 200


def test_a_giant_head_is_refused(url):
    with _connect(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Fill: " + b"a" * 2**17)
        connection.settimeout(3)
        assert b" 400 " in connection.recv(4096)


@pytest.mark.parametrize("line", [b"X-%d: a\r\n", b"Cookie-%d: b=c; d=e\r\n"])
def test_a_head_that_comes_at_once_has_the_same_bounds(url, line):
    lines = b"".join(line % n for n in range(3000))
    for path, more in ((b"/health", lines), (b"/health?" + b"a" * 20_000, b"")):
        with _connect(url) as connection:
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
            connection.settimeout(3)
            assert b" 431 " in connection.recv(4096).splitlines()[0]


def test_a_body_that_is_refused_on_the_way_is_told_so_by_an_app_that_answers_errors_itself():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def read(request):
        await request.body()
        return PlainTextResponse("ok")

    def chunks():
        for _ in range(3):
            yield b"x" * 500

    with served(Guard(Starlette(routes=[Route("/x", read, methods=["POST"])]), most=1000, seconds=0.5)) as base:
        assert httpx.post(base + "/x", content=chunks()).status_code == 413
        host, port = urlsplit(base).hostname, urlsplit(base).port
        with socket.create_connection((host, port)) as slow:
            slow.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx")
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]


def test_a_server_for_this_machine_is_called_by_its_own_names():
    with served(Guard(_echo, hosts=("127.0.0.1", "localhost", "::1"))) as base:
        for host, status in (("evil.example", 403), ("localhost:1234", 200), ("[::1]:80", 200), ("127.0.0.1", 200)):
            assert httpx.post(base + "/x", headers={"Host": host}, content=b"x").status_code == status, host


AWAY = "http://evil.example"


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"Content-Type": "application/json"}, 200),
        ("POST", {"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ("POST", {}, 200),
        ("POST", {"Origin": "{own}", "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}, 200),
        ("GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link to the page
        ("POST", {"Origin": AWAY}, 403),
        ("POST", {"Origin": AWAY, "Content-Type": "application/json"}, 403),
        ("POST", {"Origin": "null", "Content-Type": "text/plain"}, 403),
        ("POST", {"Origin": "http://localhost:1"}, 403),
        (
            "POST",
            {"Origin": AWAY, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
            403,
        ),  # a form that is sent
        ("GET", {"Origin": AWAY}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # a picture
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # of another port of this machine
        ("POST", {"Content-Type": "text/plain"}, 415),
        ("POST", {"Content-Type": "text/plain; a=application/json"}, 415),
        ("POST", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_pages_of_other_sites_have_no_browser_ask_a_server_without_a_key(method, headers, status):
    with served(Guard(_echo)) as base:
        headers = {name: value.format(own=base) for name, value in headers.items()}
        content = b"{}" if method == "POST" else None
        assert httpx.request(method, base + "/x", headers=headers, content=content).status_code == status


def test_whoever_has_the_key_says_so_himself_and_may_come_from_anywhere(url):
    assert httpx.post(url + "/x", headers={**KEY, "Origin": AWAY}, content=b"x").status_code == 200
