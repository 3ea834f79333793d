"""A real server of an app on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmembed.serve.guard import App
from mmembed.serve.run import server


@contextmanager
def served(app: App) -> Iterator[str]:
    """The base URL of `app` while it runs."""
    running = server(app, port=0, log_level="error")
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started:
        assert time.monotonic() < deadline, "the server did not start"
        assert thread.is_alive(), "the server ended"
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
