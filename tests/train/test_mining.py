"""Hard negatives: the nearest that do not answer, by a plain computation, texts and pictures alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmembed.errors import InputError, SpecError
from mmembed.testing import tiny_embedder
from mmembed.train.compared import Embedded
from mmembed.train.data import Column, Columns, InMemory, Jsonl, digest
from mmembed.train.drawn import Drawn, compared
from mmembed.train.mining import _answers, mine, write_mined
from mmembed.train.recipe import read_recipe
from mmembed.train.world import World

from .runs import lay, trained
from .runs import write_lines as written

WORDS = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("car", "cat", "sofa", "house")]


def of(table, **columns):
    columns = {"query": Column(text="q"), "positive": Column(text="p"), **columns}
    return InMemory(table=table, columns=Columns(**columns)).open("x", Path())


def test_negatives_are_the_nearest_below_the_positive(tiny):
    table = [{"q": word, "p": f"a {word} indeed"} for word in WORDS]
    found = mine(tiny, of(table), count=3, margin=0.01, relative=0.02)
    scores = tiny.encode([row["q"] for row in table]) @ tiny.encode([row["p"] for row in table]).T
    for k, each in enumerate(found):
        bound = scores[k, k] - 0.01 - 0.02 * abs(scores[k, k])
        due = [j for j in np.argsort(-scores[k]) if j != k and scores[k, j] < bound][:3]
        assert each.row == k
        assert list(each.negatives) == due
        assert each.scores == pytest.approx(scores[k, due], abs=1e-6)
    assert any(each.negatives for each in found)
    passed = mine(tiny, of(table), count=3, margin=-3.0, skip=2, depth=4)
    near = [[j for j in np.argsort(-row) if j != k] for k, row in enumerate(scores)]
    assert [list(each.negatives) for each in passed] == [own[2:4] for own in near]


def test_what_is_known_to_answer_is_no_negative(tiny):
    table = [{"q": word, "p": f"a {word}", "g": k % 6} for k, word in enumerate(WORDS)]
    table.append({"q": WORDS[0], "p": "something else", "g": 99})  # an equal query
    table.append({"q": "yet another", "p": "a red cat", "g": 100})  # an equal positive
    found = {each.row: set(each.negatives) for each in mine(tiny, of(table, group="g"), count=20, margin=-3.0)}
    assert 12 not in found[0]
    assert 6 not in found[0]
    assert 0 not in found[12]
    assert 1 not in found[13]
    assert len(found[2]) == 11  # of 13 different positives, less its own and that of row 8
    one = of([{"q": f"{k}", "p": f"a {k}", "g": 0} for k in range(500)], group="g")
    answers = _answers([one[k] for k in range(500)], {digest(one[k].positives[0]): k for k in range(500)})
    assert sum(own.size for own in answers.values()) == 3 * 500  # what a group shares is held once


def test_pictures_are_mined_and_the_file_is_read_by_a_recipe(tmp_path, tiny):
    recipe = lay(tmp_path)
    source = read_recipe(recipe).data["pictures"]
    examples = source.open("pictures", tmp_path)
    found = mine(tiny, examples, count=2, margin=-3.0)
    assert all(len(each.negatives) == 2 for each in found)
    write_mined(tmp_path / "mined.jsonl", found, examples)
    recipe.write_text(
        recipe.read_text().replace('path = "pictures.jsonl"', 'path = "pictures.jsonl"\nmined = "mined.jsonl"')
    )
    run = trained(recipe, tmp_path / "out")
    example = run.data["pictures"][3]
    assert [item[0].source.name for item in example.negatives] == [f"{k}.png" for k in found[3].negatives]
    table = tmp_path / "pictures.jsonl"
    text = table.read_text()
    table.write_text("".join(reversed(text.splitlines(keepends=True))))
    with pytest.raises(SpecError, match=r"was mined of other data or other settings .* mine it again"):
        trained(recipe, tmp_path / "a")
    table.write_text(text)
    source = read_recipe(recipe).data["pictures"]
    for other in ({"columns": replace(source.columns, query=Column(text="file"))}, {"images": "elsewhere"}):
        with pytest.raises(SpecError, match="other settings of it"):
            replace(source, **other).open("pictures", tmp_path)
    replace(source, query_prompt="query", on_error="skip").open("pictures", tmp_path)
    written(tmp_path / "mined.jsonl", [{"mined_of": examples.numbered}, {"row": 0, "negatives": [99]}])
    with pytest.raises(SpecError, match="row 99"):
        trained(recipe, tmp_path / "b")
    (tmp_path / "mined.jsonl").write_text("words\n")
    with pytest.raises(SpecError, match="no line of mined negatives"):
        trained(recipe, tmp_path / "c")


def test_what_was_mined_of_a_row_of_its_group_is_no_negative_of_a_query(tmp_path):
    written(tmp_path / "rows.jsonl", [{"q": f"q{k}", "p": f"p{k}", "g": f"g{k // 2}"} for k in range(6)])
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), group="g")
    plain = Jsonl(path="rows.jsonl", columns=columns).open("x", tmp_path)
    written(tmp_path / "mined.jsonl", [{"mined_of": plain.numbered}, {"row": 0, "negatives": [3, 4]}])
    rows = Jsonl(path="rows.jsonl", columns=columns, mined="mined.jsonl").open("x", tmp_path)
    drawn = Drawn(0, [0, 0], range(2), [0, 1], [2, 3, 4, 5], {})
    found, _ = compared(drawn, [rows[0], rows[2]], Embedded(vectors=torch.eye(6)), World(), 0)
    assert found is not None
    # q0 was given p0, p3 and p4; q2, which is of p3's group, p2
    assert found.known(torch.arange(2)).tolist() == [[True, False, False, False], [False, True, False, True]]


def test_settings_that_leave_nothing_are_told(tiny):
    for settings in ({"count": 0}, {"skip": 5, "depth": 5}, {"relative": 1.0}):
        with pytest.raises(SpecError, match="nothing would be left"):
            mine(tiny, of([{"q": "a", "p": "b"}]), **settings)
    with pytest.raises(InputError):
        mine(tiny, of([{"q": 1, "p": "b"}]))
    assert mine(tiny, of([{"q": "a", "p": "b"}]))[0].negatives == ()


def test_nearness_is_cosine_whatever_the_length_of_vectors():
    table = [{"q": word, "p": f"a {word} indeed"} for word in WORDS]
    plain, long = (
        mine(tiny_embedder(normalize=unit), of(table), count=3, margin=0.01, relative=0.02) for unit in (True, False)
    )
    for one, other in zip(plain, long, strict=True):
        assert one.negatives == other.negatives
        assert one.positive == pytest.approx(other.positive, abs=1e-6)


def test_a_broken_picture_is_left_out_where_its_source_says_so(tmp_path, tiny):
    recipe = lay(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    source = read_recipe(recipe).data["pictures"]
    with pytest.raises(InputError, match=r"3\.png"):
        mine(tiny, source.open("pictures", tmp_path), count=2, margin=-3.0)
    found = mine(tiny, replace(source, on_error="skip").open("pictures", tmp_path), count=2, margin=-3.0)
    assert [each.row for each in found] == [k for k in range(12) if k != 3]
    assert all(3 not in each.negatives for each in found)
