"""What a caller is told who gave no report, and at which of his lines."""

from __future__ import annotations

import warnings


def test_a_warning_points_at_the_line_of_the_caller(tiny, tmp_path):
    long, bad = ["word " * 5000], [(), "a"]
    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for ask in (
            lambda: tiny.encode(long),
            lambda: tiny.encode_query(long),
            lambda: list(tiny.stream(long)),
            lambda: list(tiny.encode_tokens(long)),
            lambda: tiny.encode(bad, on_error="skip"),
        ):
            lines.append(ask.__code__.co_firstlineno)
            ask()
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line) for line in lines]
