"""The command line, run as users run it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import mmembed
from mmembed.cli import main
from mmembed.demo import DATA

CAT = str(DATA / "pictographs" / "cat.png")
DOG = str(DATA / "pictographs" / "dog.png")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(capfd):
    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return command


@pytest.fixture
def things(run, model, tmp_path):
    code, _, err = run("index", "add", tmp_path / "things", CAT, DOG, "--model", model)
    assert code == 0, err
    return tmp_path / "things"


def test_help_lists_the_commands_and_a_nearby_word_is_named(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(
        name in out for name in ("demo", "embed", "index", "search", "train", "mine", "overlap", "models", "doctor")
    )
    code, _, err = run("serch")
    assert code == 2
    assert "search" in err


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "embed",
        "search",
        "train",
        "mine",
        "overlap",
        "models",
        "doctor",
        "index add",
        "index info",
        "index rm",
        "index list",
        "index verify",
        "index compact",
    ],
)
def test_every_command_has_help_and_json(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "--json" in out


def test_a_reader_who_has_seen_enough_is_no_error():
    ran = subprocess.Popen([sys.executable, "-m", "mmembed", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ran.stdout.close()
    assert (ran.stderr.read(), ran.wait()) == (b"", 0)
    ran.stderr.close()


def test_help_is_there_without_torch_numpy_or_pillow():
    heavy = ["torch", "transformers", "lancedb", "numpy", "PIL"]
    program = f"""
import sys
from mmembed.cli import main
try:
    main(["index", "add", "--help"])
finally:
    sys.stderr.write(repr([name for name in {heavy} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_embed_prints_a_line_of_json_an_item(run, model, tiny):
    code, out, _ = run("embed", "--text", "hello", "--text", "你好", "--image", CAT, "--model", model)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["id"] for line in lines] == ["hello", "你好", CAT]
    expected = tiny.encode(["hello", "你好"])
    np.testing.assert_allclose([line["vector"] for line in lines[:2]], expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".jsonl"])
def test_embed_writes_a_whole_file_and_gaps_are_gaps(run, model, tmp_path, suffix):
    import pyarrow.parquet as pq

    file = tmp_path / f"vectors{suffix}"
    (tmp_path / "a.txt").write_text("ein Text", encoding="utf-8")
    code, out, err = run(
        "embed", tmp_path / "a.txt", tmp_path / "none.png", CAT, "--out", file,
        "--on-error", "skip", "--model", model, "--json",
    )  # fmt: skip
    assert code == 3
    assert json.loads(out) == {"out": str(file), "items": 3, "dimension": 32, "failed": 1, "resumed": 0}
    assert "none.png" in err
    if suffix == ".npy":
        vectors = np.load(file)
        assert vectors.dtype == np.float32
        present = np.isfinite(vectors).all(1).tolist()
    elif suffix == ".parquet":
        rows = pq.read_table(file).to_pylist()
        present = [row["vector"] is not None for row in rows]
        assert "none.png" in rows[1]["error"]
    else:
        present = ["vector" in json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert present == [True, False, True]
    assert [f.name for f in tmp_path.iterdir() if f.name.endswith(".part")] == []


def test_embed_reads_lines_of_json(run, model, tmp_path):
    lines = ['"a text"', json.dumps({"text": "both", "image": CAT}), "", json.dumps({"image": DOG})]
    (tmp_path / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = run("embed", tmp_path / "items.jsonl", "--model", model)
    assert code == 0
    assert [json.loads(line)["id"].rpartition(":")[2] for line in out.splitlines()] == ["1", "2", "4"]


def test_embed_reads_standard_input(run, model, monkeypatch):
    given = '"नमस्ते"\nno json\n{"txt": 1}\n'.encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="latin-1"))
    code, out, _ = run("embed", "-", "--model", model, "--truncate-dim", "16", "--on-error", "skip")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    due = mmembed.load(model).encode(["नमस्ते"], truncate_dim=16)[0]
    np.testing.assert_allclose(lines[0]["vector"], due, atol=1e-6)
    assert "no JSON" in lines[1]["error"]
    assert "neither 'text' nor 'image'" in lines[2]["error"]


def test_a_bad_item_ends_embed_with_one_line_unless_it_is_skipped(run, model, tmp_path):
    code, out, err = run("embed", "--text", "a", "--image", tmp_path / "none.png", "--model", model)
    assert (code, out) == (1, "")
    assert err.startswith("mmembed: item 1: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed"],
        ["embed", "--text", "a", "--out", "x.csv"],
        ["embed", "--text", "a", "--on-error", "maybe"],
        ["embed", "--text", "a", "--model", "no-such-model"],
        ["embed", "--text", "a", "--model", "{model}", "--prompt-name", "no-such-prompt"],
        ["embed", "--text", "a", "--model", "{model}", "--truncate-dim", "17"],
        ["embed", "no-such-file.jsonl"],
        ["search", "{tmp}/nowhere", "a"],
        ["search", "{tmp}/nowhere"],
        ["index", "info", "{tmp}/nowhere"],
        ["index", "rm", "{tmp}/nowhere", "x"],
        ["index", "ad"],
        ["doctor", "--model", "no-such-model"],
        ["--no-such-option"],
    ],
)
def test_what_was_asked_wrongly_ends_with_2_and_no_traceback(run, model, tmp_path, arguments):
    code, _, err = run(*(a.format(model=model, tmp=tmp_path) for a in arguments))
    assert code == 2
    assert "Traceback" not in err


def test_index_add_makes_an_index_and_adding_again_changes_nothing(run, things, model):
    code, out, _ = run("index", "add", things, CAT, DOG, "--model", model, "--json")
    assert code == 0
    assert json.loads(out) == {
        "added": 0, "replaced": 0, "unchanged": 2, "removed": [], "skipped": [], "truncated": 0, "items": 2,
    }  # fmt: skip


def test_index_add_takes_folders_texts_and_lines_and_says_what_it_skipped(run, model, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("ein Text", encoding="utf-8")
    (folder / "bad.png").write_bytes(b"no picture")
    (tmp_path / "lines.jsonl").write_text('"one"\n{bad\n', encoding="utf-8")
    added = run("index", "add", tmp_path / "i", folder, tmp_path / "lines.jsonl", CAT, "--model", model, "--json")
    found = json.loads(added[1])
    assert added[0] == 3
    assert (found["added"], found["items"]) == (3, 3)
    assert len(found["skipped"]) == 2
    assert "bad.png" in found["skipped"][0]["name"]
    code, _, err = run("index", "add", tmp_path / "i", folder, "--on-error", "raise", "--model", model)
    assert code == 1
    assert "bad.png" in err


def test_index_info_needs_no_model(run, things):
    code, out, _ = run("index", "info", things, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["items"], found["model"], found["dimension"]) == (2, "tiny", 32)
    code, out, _ = run("index", "info", things)
    assert "2 (0 text, 2 image, 0 image+text)" in out


def test_search_finds_a_picture_by_itself(run, things, model):
    code, out, _ = run("search", things, "--image", CAT, "-k", 1, "--model", model, "--json")
    hits = json.loads(out)["hits"]
    assert code == 0
    assert [hit["path"] for hit in hits] == [CAT]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    code, out, _ = run("search", things, "шуба", "--image", DOG, "--model", model)
    assert code == 0
    assert len(out.splitlines()) == 2
    code, _, err = run("search", things, "a", "--modality", "imgae", "--model", model)
    assert code == 2
    assert "image" in err


def test_search_takes_weights_full_text_and_diversity(run, things, model):
    alone = json.loads(run("search", things, "--image", CAT, "--model", model, "--json")[1])["hits"]
    code, out, _ = run(
        "search", things, "--image", CAT, "--and", "0.5", "a word", "--and", "-1", "b", "--model", model, "--json"
    )
    told = json.loads(out)
    assert code == 0
    assert told["more"] == [[0.5, "a word"], [-1.0, "b"]]
    assert [hit["score"] for hit in told["hits"]] != [hit["score"] for hit in alone]
    code, out, _ = run("search", things, "cat", "--mode", "text", "--json")
    assert code == 0
    assert [hit["path"] for hit in json.loads(out)["hits"]] == [CAT]
    code, out, _ = run(
        "search", things, "cat", "--mode", "hybrid", "--diversity", "1", "-k", "1", "--model", model, "--json"
    )
    assert len(json.loads(out)["hits"]) == 1
    code, _, err = run("search", things, "cat", "--mode", "hibrid", "--model", model)
    assert code == 2
    assert "hybrid" in err


def test_index_diagnose_needs_no_model(run, things):
    code, out, _ = run("index", "diagnose", things)
    assert code == 0
    assert "hubness" in out
    assert json.loads(run("index", "diagnose", things, "--json")[1])["advice"] == []


def test_an_index_of_an_unknown_model_asks_for_its_folder(run, things):
    code, _, err = run("search", things, "a")
    assert code == 2
    assert "--model FOLDER" in err


def test_another_model_is_refused(run, things, tmp_path):
    from mmembed.testing import tiny_embedder

    other = tiny_embedder(seed=1).save(tmp_path / "other")
    code, _, err = run("search", things, "a", "--model", other)
    assert code == 2
    assert "model it was made with" in err


def test_index_rm_takes_items_out_and_counts_what_was_not_there(run, things, model):
    _, out, _ = run("search", things, "a", "--model", model, "--json")
    ids = [hit["id"] for hit in json.loads(out)["hits"]]
    code, out, _ = run("index", "rm", things, ids[0], "--json")
    assert code == 0
    assert json.loads(out) == {"removed": 1, "not_found": 0, "items": 1}
    code, out, _ = run("index", "rm", things, ids[0], ids[1])
    assert code == 3
    assert out.startswith("1 removed, 1 not found; 0 items")


def test_index_list_prints_an_id_that_rm_finds_however_long_it_is(run, model, tmp_path):
    name = "photos/" + "a" * 90 + ".png"
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "one", "id": name}))
    run("index", "add", tmp_path / "i", tmp_path / "t.jsonl", "--model", model)
    (printed, *_) = run("index", "list", tmp_path / "i")[1].split()
    assert run("index", "rm", tmp_path / "i", printed)[1].startswith("1 removed, 0 not found")


@pytest.mark.parametrize("key", ["schlüssel", "two words", "two\nlines", "", "\x07"])
def test_a_key_that_no_header_bears_is_refused(run, tmp_path, key):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    code, _, err = run("serve", "--key-file", tmp_path / "key")
    assert (code, "key" in err.replace(str(tmp_path), "")) == (2, True), err


def test_index_export_and_dups_need_no_model(run, things, tmp_path):
    code, out, _ = run("index", "export", things, tmp_path / "out", "--json")
    assert (code, json.loads(out)["items"]) == (0, 2)
    assert np.load(tmp_path / "out/img_emb/img_emb_0.npy").shape == (2, 32)
    code, _, err = run("index", "export", things, tmp_path / "out")
    assert code == 2
    assert "exists already" in err
    code, out, _ = run("index", "dups", things, "--threshold", "0.001", "--out", tmp_path / "d.jsonl")
    (group,) = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {item["path"] for item in group["items"]} == {CAT, DOG}
    assert out == "1 groups of 2 items\n"
    code, out, _ = run("index", "dups", things, "--threshold", "0.001")
    assert out.startswith("alike\n")
    assert (len(out.splitlines()), "cat.png" in out) == (4, True)
    assert json.loads(run("index", "dups", things, "--threshold", "0.99999", "--json")[1]) == []
    assert run("index", "dups", things, "--threshold", "2")[0] == 2


def test_models_are_listed(run):
    code, out, _ = run("models", "--json")
    assert code == 0
    assert isinstance(json.loads(out), list)


def test_doctor_says_whether_the_vectors_are_the_golden_ones(run, tiny, tmp_path):
    folder = tiny.save(tmp_path / "golden")
    vector = tiny.encode(["a"])[0]
    for shift, code, word in ((0.0, 0, "passed"), (0.5, 1, "FAILED")):
        golden = [{"input": {"text": "a"}, "vector": (vector + np.float32(shift)).tolist()}]
        (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
        ended, out, _ = run("doctor", "--model", folder)
        assert ended == code
        assert f"self-test  {word}: 1 inputs" in out
        assert "torch" in out
    ended, out, _ = run("doctor", "--model", folder, "--json")
    assert json.loads(out)["self_test"]["passed"] is False


def test_the_demo_answers_and_writes_a_picture(run, model, tmp_path):
    code, out, _ = run("demo", "--model", model, "--output", tmp_path / "d.png")
    assert code == 0
    assert (tmp_path / "d.png").stat().st_size > 50_000
    assert str(tmp_path / "d.png") in out
    assert "Hindi: an elephant" in out
    assert "\x1b" not in out
    code, out, _ = run("demo", "--model", model, "--output", tmp_path / "d.png", "--json")
    found = json.loads(out)
    assert len(found["answers"]) >= 12
    assert set(found["seconds"]) == {"embed and store", "search"}


@pytest.fixture
def notes(run, model, tmp_path):
    lines = [{"id": f"n{year}", "text": f"a note of {year}", "year": year, "language": "de"} for year in (1999, 2004)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("index", "add", tmp_path / "notes", tmp_path / "notes.jsonl", "--model", model)[0] == 0
    return tmp_path / "notes"


def test_items_are_listed_searched_and_removed_by_a_condition(run, notes, model):
    code, out, _ = run("index", "list", notes, "--where", "year > 2000 AND language = 'de'", "--json")
    assert (code, [item["id"] for item in json.loads(out)]) == (0, ["n2004"])
    assert "n1999" in run("index", "list", notes)[1]
    code, out, _ = run("search", notes, "note", "--where", "year < 2000", "--model", model, "--json")
    assert (code, [hit["id"] for hit in json.loads(out)["hits"]]) == (0, ["n1999"])
    code, _, err = run("index", "list", notes, "--where", "yaer > 2000")
    assert (code, "Did you mean 'year'?" in err) == (2, True)
    for arguments in (["index", "list", notes], ["index", "rm", notes], ["search", notes, "a", "--model", model]):
        code, _, err = run(*arguments, "--where", "year >")
        assert (code, "is no condition in SQL" in err) == (2, True)
    assert run("index", "rm", notes)[0] == 2
    code, out, _ = run("index", "rm", notes, "--where", "year < 2000")
    assert (code, out.strip()) == (0, "1 removed, 0 not found; 1 items")


def test_a_folder_is_followed_and_what_is_gone_goes_when_asked(run, model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat", "dog"):
        (folder / f"{name}.png").write_bytes((DATA / "pictographs" / f"{name}.png").read_bytes())
    index = tmp_path / "index"
    assert run("index", "add", index, folder, "--model", model)[0] == 0
    (folder / "cat.png").unlink()
    code, out, _ = run("index", "verify", index, "--json")
    assert (code, json.loads(out)["missing"]) == (0, [str(folder / "cat.png")])
    code, out, err = run("index", "add", index, folder, "--remove-gone", "--model", model)
    assert (code, out.strip()) == (0, "0 added, 0 replaced, 1 unchanged, 0 skipped, 1 removed; 1 items")
    assert f"removed {folder}/cat.png" in err
    code, _, err = run("index", "add", index, CAT, "--remove-gone", "--model", model)
    assert (code, "--remove-gone" in err) == (2, True)


def test_verify_says_what_is_wrong_by_its_exit_code(run, things, model):
    code, out, _ = run("index", "verify", things, "--sample", 2, "--model", model)
    assert (code, out.startswith("2 items read, 2 embedded anew")) == (0, True)
    assert run("index", "compact", things, "--now")[0] == 0
    (file,) = (things / "items.lance" / "data").glob("*")
    file.write_bytes(file.read_bytes()[:50])
    code, out, err = run("index", "verify", things)
    assert (code, "damaged" in err) == (3, True)


def test_mistakes_that_we_know_are_a_line_and_no_traceback(run, model, things, tmp_path):
    for said, *arguments in (
        ("written as .png", "demo", "--output", tmp_path / "x.xyz"),
        ("is no folder", "demo", "--output", tmp_path / "none" / "x.png"),
        ("device='foo'", "doctor", "--model", model, "--device", "foo"),
        ("No such file or directory", "index", "dups", things, "--out", tmp_path / "none" / "x.jsonl"),
        ("", "search", things, "a", "-k", "99999999999999999999"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, err
        assert said in err
        assert "Traceback" not in err


def test_an_index_is_not_begun_for_what_is_not_there(run, model, tmp_path):
    code, _, err = run("index", "add", tmp_path / "new", tmp_path / "none.jsonl", "--model", model)
    assert code == 2, err
    assert not (tmp_path / "new").exists()


def test_no_index_is_made_among_other_files(run, model, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"a picture")
    for name, said in ((photos, "a folder with other files in it"), (photos / "a.png", "a file")):
        code, _, err = run("index", "add", name, CAT, "--model", model)
        assert (code, f"{name} is {said} and no index" in err) == (2, True), err
        assert f"mmembed index add NAME.index {name}" in err
    assert [file.name for file in photos.iterdir()] == ["a.png"]
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert run("index", "add", tmp_path / "empty", CAT, "--model", model)[0] == 0
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["items.lance"], "all that stands in an index"
    (tmp_path / "begun/items.lance").mkdir(parents=True)  # as a kill leaves it
    assert run("index", "add", tmp_path / "begun", CAT, "--model", model)[0] == 0


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_an_encoding_lacks_is_escaped_and_stays_json(run, model, tmp_path, encoding):
    words = "猫 😀 é"
    (tmp_path / "lines.jsonl").write_text(json.dumps(words), encoding="utf-8")
    assert run("index", "add", tmp_path / "i", tmp_path / "lines.jsonl", "--model", model)[0] == 0

    def told(*arguments):
        command = [sys.executable, "-m", "mmembed", "index", "list", str(tmp_path / "i"), *arguments]
        env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
        return subprocess.run(command, capture_output=True, env=env, check=True).stdout.decode(encoding)

    assert json.loads(told("--json"))[0]["text"] == words
    shown = told()
    assert ("猫" in shown, "\\u732b" in shown) == ((True, False) if encoding == "utf-8" else (False, True))
    assert "é" in shown


def test_where_nothing_was_found_is_told_and_no_index_is_made_for_it(run, model, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "folder/.hidden").mkdir(parents=True)
    (tmp_path / "folder/.hidden/a.txt").write_text("a")
    (tmp_path / "lines.jsonl").write_text("\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "t.parquet")
    names = [tmp_path / "folder", tmp_path / "lines.jsonl", tmp_path / "t.parquet", "-"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    code, out, err = run("embed", *names, "--text", "a", "--model", model)
    assert (code, len(out.splitlines())) == (0, 1)
    for name, line in zip([*names[:3], "stdin"], err.splitlines(), strict=True):
        assert line.startswith(f"mmembed: nothing was found in {name}")
    assert (tmp_path / "folder/.hidden").name not in out
    code, out, err = run("index", "add", tmp_path / "new", *names[:3], "--model", model)
    assert (code, out) == (0, "0 added, 0 replaced, 0 unchanged, 0 skipped, 0 removed; 0 items\n")
    assert len(err.splitlines()) == 3
    assert not (tmp_path / "new").exists()
    assert json.loads(run("index", "add", tmp_path / "new", names[0], "--model", model, "--json")[1])["items"] == 0


def test_words_on_stdin_and_tables_of_commas_are_told_what_to_do(run, model, tmp_path, monkeypatch):
    def embed(command, *arguments):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi\nyou\n")))
        return run(*command, "-", *arguments, "--model", model)

    code, _, err = embed(["embed"])
    assert (code, "with --lines each line is a text" in err) == (1, True), err
    code, out, _ = embed(["embed"], "--lines")
    assert (code, len(out.splitlines())) == (0, 2)
    code, out, _ = embed(["index", "add", tmp_path / "i"], "--lines", "--json")
    assert (code, json.loads(out)["items"]) == (0, 2)
    (tmp_path / "a.csv").write_text("text\na cat\n")
    code, out, err = run("index", "add", tmp_path / "new", tmp_path / "a.csv", "--model", model, "--json")
    assert (code, len(json.loads(out)["skipped"])) == (3, 1)
    assert not (tmp_path / "new").exists(), "which would be an empty index"
    code, out, _ = run("index", "add", tmp_path / "new", tmp_path / "a.csv", CAT, "--model", model, "--json")
    assert (code, len(json.loads(out)["skipped"]), json.loads(out)["items"]) == (3, 1, 1)
    for arguments in (["embed"], *(["index", "add", tmp_path / name, "--on-error", "raise"] for name in ("i", "none"))):
        code, _, err = run(*arguments, tmp_path / "a.csv", "--model", model)
        assert (code, "CSV is not read; .jsonl and .parquet are" in err) == (1, True), err


def test_a_bad_file_that_ends_embed_names_the_way_on(run, model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.txt").write_text("b")
    for more in ([], ["--out", tmp_path / "v.npy"]):
        code, _, err = run("embed", tmp_path, *more, "--model", model)
        assert (code, "--on-error skip" in err) == (1, True), err
    code, out, _ = run("embed", tmp_path, "--on-error", "skip", "--model", model)
    assert (code, len(out.splitlines())) == (3, 2)


@pytest.mark.parametrize(
    ("command", "model", "on_error"),
    [
        ("demo", "pico", None),
        ("doctor", "pico", None),
        ("mine", "pico", None),
        ("embed", "pico", "raise"),
        ("index add", "that of the index, else pico", "skip"),
        ("index verify", "that of the index", None),
        ("search", "that of the index", None),
        ("serve", "that of the index, else pico", None),
    ],
)
def test_help_says_the_defaults_of_the_command(run, command, model, on_error):
    told = " ".join(run(*command.split(), "--help")[1].split())
    assert f"name of the model. [default: {model}]" in told
    assert ("--on-error" in told) == (on_error is not None)
    if on_error is not None:
        assert f"or skip it. [default: {on_error}]" in told
        assert "(.NAME)" in told, "what is hidden is not read"


def test_a_query_whose_parts_cancel_each_other_is_asked_wrongly(run, things, model, tmp_path):
    code, _, err = run("search", things, "a", "--and", "-1", "a", "--model", model)
    assert (code, "cancel each other" in err) == (2, True), err
    code, _, err = run("search", things, "--image", tmp_path / "none.png", "--model", model)
    assert (code, "none.png" in err) == (1, True), err


def test_a_list_that_is_cut_says_how_many_there_are(run, notes):
    for arguments, said in (
        (["--limit", 1], "the first 1 of 2 items"),
        (["--limit", 2], "2 items"),
        (["--limit", 1, "--where", "year < 2000"], "1 items"),
    ):
        assert run("index", "list", notes, *arguments)[2] == f"{said}\n"


def test_a_diagnosis_of_few_items_has_no_empty_table(run, things):
    out = run("index", "diagnose", things)[1]
    assert "same among 10 nearest" not in out
    assert out.startswith("no table: it needs 20 items of a modality\nhubness")
