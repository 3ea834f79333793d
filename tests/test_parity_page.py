"""The written page of parity: every declared checkpoint and method is on it, and every system has its place or its reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mmembed import checkpoints
from mmembed.methods import METHODS, NOT_HERE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
SYSTEMS = tomllib.loads((ROOT / "docs/systems.toml").read_text(encoding="utf-8"))["system"]


@pytest.mark.parametrize("names", [checkpoints.declared(), METHODS], ids=["checkpoints", "methods"])
def test_the_page_shows_every_one_that_is_declared(names):
    assert [name for name in names if f"\n| `{name}` | [" not in PAGE] == [], "run python .ci/parity_page.py"


def test_the_page_says_of_each_that_is_left_out_why():
    left = {**checkpoints.NOT_HERE, **NOT_HERE}
    assert [name for name, reason in left.items() if f"| `{name}` | {reason} |" not in PAGE] == []


def test_every_system_is_shown_or_has_a_reason():
    assert len({system["name"] for system in SYSTEMS}) == len(SYSTEMS)
    for system in SYSTEMS:
        assert bool(system.get("rows")) != bool(system.get("reason")), system["name"]
        assert all(f"\n| `{row}` | " in PAGE for row in system.get("rows", ())), system["name"]
        assert f"| {system['name']} |" in PAGE
