"""`mmembed train` as users run it: a look before, the run, and its exit codes."""

from __future__ import annotations

import json

import pytest

import mmembed
from mmembed.cli import main

from .runs import RECIPE, lay


@pytest.fixture
def run(capfd):
    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", *(str(argument) for argument in arguments)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return command


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return lay(tmp_path_factory.mktemp("recipe"))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, recipe, tmp_path):
    code, out, _ = run(recipe, "--output", tmp_path / "out", "--dry-run", "--device", "cpu")
    assert code == 0
    assert "data pairs: 40 rows" in out
    assert "stage first: 6 steps of 8 examples (pairs 0.92 times, pictures 0.92 times)" in out
    assert "'colour " in out or "'thing " in out
    assert not (tmp_path / "out").exists()
    code, out, _ = run(recipe, "--output", tmp_path / "out", "--dry-run", "--json", "--device", "cpu")
    (stage,) = json.loads(out)["stages"]
    tiny = mmembed.load(recipe.parent / "tiny").model
    assert stage["trained"] == sum(w.numel() for n, w in tiny.named_parameters() if not n.startswith("vision."))
    assert stage["frozen"] == sum(w.numel() for n, w in tiny.named_parameters() if n.startswith("vision."))
    assert stage["weights"] == 16 * stage["trained"] + 4 * stage["frozen"]
    assert stage["tokens"] > 100
    assert stage["activations"] > 4 * 32 * stage["tokens"]


def test_a_run_by_the_command_line_stops_again_before_it_would_go_over_another(run, recipe, tmp_path):
    code, out, err = run(recipe, "--output", tmp_path, "--set", "stage.0.steps=2", "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["steps"] == 2
    assert mmembed.load(tmp_path).spec.name == "small"
    code, _, err = run(recipe, "--output", tmp_path, "--set", "stage.0.steps=2", "--device", "cpu")
    assert code == 2
    assert "resume=True (--resume)" in err
    assert run(recipe, "--output", tmp_path, "--set", "stage.0.steps=2", "--resume", "--device", "cpu")[0] == 0


def test_what_is_wrong_is_one_line_and_a_code(run, tmp_path):
    recipe = lay(tmp_path, RECIPE.replace("steps = 6", "stepz = 6"))
    code, _, err = run(recipe, "--device", "cpu")
    assert code == 2
    assert err.count("\n") == 1
    assert "Did you mean 'steps'?" in err
    recipe = lay(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"q": 1}\n' * 40)
    code, _, err = run(recipe, "--device", "cpu")
    assert code == 1
    assert "column 'q' holds 1, and a text is wanted" in err


def test_negatives_are_mined_for_data_of_a_recipe(capfd, recipe, tmp_path):
    output, model = tmp_path / "mined.jsonl", recipe.parent / "tiny"

    def command(data, *more):
        with pytest.raises(SystemExit) as ended:
            main(["mine", str(recipe), data, "--output", str(output), "--model", str(model), *more])
        return ended.value.code or 0, *capfd.readouterr()

    code, out, _ = command("pairs", "--margin", "-3", "--count", "2", "--json")
    assert code == 0
    assert json.loads(out) == {"output": str(output), "rows": 40, "negatives": 80, "skipped": 0}
    assert len(output.read_text().splitlines()) == 1 + 40
    code, _, err = command("pears")
    assert code == 2
    assert "Did you mean 'pairs'?" in err


def test_texts_that_are_trained_on_and_measured_are_told(capfd, tmp_path):
    text = RECIPE + '\n[held_out.names]\ndata = "others"\nmeasure = "retrieval"\n'
    text += '\n[data.others]\nkind = "jsonl"\npath = "others.jsonl"\n'
    text += 'columns = { query = { text = "q" }, positive = { text = "p" } }\n'
    recipe = lay(tmp_path, text)

    def command(*more):
        with pytest.raises(SystemExit) as ended:
            main(["overlap", str(recipe), *more])
        return ended.value.code or 0, *capfd.readouterr()

    (tmp_path / "others.jsonl").write_text('{"q": "nothing of the kind", "p": "quite another thing"}\n')
    assert command()[0] == 0
    (tmp_path / "others.jsonl").write_text('{"q": "nothing of the kind", "p": "The 7th  of all things"}\n')
    code, out, _ = command("--json", "--least", "0.9")
    assert code == 3
    (found,) = json.loads(out)
    assert (found["trained"], found["measured"], found["jaccard"]) == (["pairs", 7], ["others", 0], 1.0)
    assert "1.00  pairs 7  others 0  'the 7th of all things'" in command("--least", "0.9")[1]
    with (tmp_path / "others.jsonl").open("a") as file:
        file.write('{"p": "a row without a query"}\n')
    code, _, err = command()
    assert code == 1
    assert "data 'others', row 1: no column is called 'q'" in err
    recipe.write_text(text.replace('path = "others.jsonl"', 'path = "others.jsonl"\non_error = "skip"'))
    code, _, err = command()
    assert code == 3
    assert "1 of 2 rows of 'others' were left out, as row 1: no column is called 'q'" in err
    unused = '\n[data.unused]\nkind = "jsonl"\npath = "none.jsonl"\ncolumns = { query = { text = "q" } }\n'
    recipe.write_text(text.replace('path = "others.jsonl"', 'path = "others.jsonl"\non_error = "skip"') + unused)
    assert command()[0] == 3  # what is not trained on is not opened
    recipe.write_text(RECIPE)
    code, _, err = command()
    assert code == 2
    assert "measures nothing" in err
