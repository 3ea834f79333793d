"""A folder of good and bad files of every kind, added by the command line: the report names exactly the bad ones."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import measure_folder


@pytest.mark.slow
def test_the_report_of_a_folder_names_exactly_what_is_bad_in_it(tmp_path, monkeypatch):
    out = tmp_path / "folder.json"
    arguments = ["measure_folder", "--files", "300", "--bad", "60", "--seed", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert measure_folder.main() == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["bad"], found["named, and bad"], found["named, and good"]) == (60, 60, [])
    assert found["in the order of paths"]
    assert found["added when added again"] == 0
