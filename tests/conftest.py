"""What every test shares: no network but this machine's own, few threads, tiny models and pictures."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from mmembed import Image
from mmembed.testing import tiny_embedder

from .parity import Held, holder

torch.set_num_threads(1)  # two workers share two cores
# On top of what hypothesis itself sets where it finds that it runs for CI: no test fails for the time that it takes.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch compiles for a CPU by a C++ compiler"
)

_connect = socket.socket.connect


def _only_here(self: socket.socket, address: object) -> None:
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test reached for the network: {address}")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _only_here)


@pytest.fixture(autouse=True)
def _narrow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of tests are short, and in the deepest block they are to go the way of long ones too."""
    monkeypatch.setattr("mmembed.towers.reading.LEAST", 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity", type=Path, default=None, help="run the parity tests alone; each writes a line to this file"
    )


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Held:
    """Asserts that vectors are those of a reference, see `tests/parity.py`."""
    return holder(request.config.getoption("--parity"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--parity") is not None:
        chosen = [item for item in items if "held" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def picture(seed: int = 0, height: int = 40, width: int = 50) -> Image:
    """A random picture."""
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@contextmanager
def floats_are(said: str) -> Iterator[None]:
    """Inside, torch makes numbers that are not whole in the dtype of that name, or, told "autocast", rounds products to bf16."""
    if said == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
        return
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, said))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@pytest.fixture(scope="session")
def tiny():
    return tiny_embedder()
