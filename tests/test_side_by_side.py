"""The benchmark beside peers: it runs whole, all give the same vectors, and the pages show what was written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from benchmarks.side_by_side import start, table, texts, work, workloads
from benchmarks.side_by_side.__main__ import RESULTS, main, plan
from benchmarks.side_by_side.conductor import Conductor, file_of
from benchmarks.side_by_side.models import QUERY, folder_of
from benchmarks.side_by_side.systems import SYSTEMS
from benchmarks.side_by_side.worker import Failed

ROOT = Path(__file__).parent.parent
PEERS = ("mmembed", "sentence-transformers")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("shelf")


@pytest.mark.parametrize(("page", "tables"), [("README.md", table.shortened), ("docs/benchmarks.md", table.written)])
def test_the_pages_show_what_was_measured(page, tables):
    shown = (ROOT / page).read_text(encoding="utf-8").split(table.BEGIN)[1].split(table.END)[0]
    assert shown == tables(RESULTS), "run python -m benchmarks.side_by_side --table"


@pytest.mark.parametrize("asked", [("documents", "one query"), pytest.param(workloads.EVERY, marks=pytest.mark.slow)])
def test_a_quick_run_measures_all_systems_on_all_workloads_and_their_vectors_are_the_same(shelf, tmp_path, asked):
    folders = ["--results", str(tmp_path), "--shelf", str(shelf)]
    main(["--quick", "--threads", "1", *folders, "--only", *asked, "--systems", *PEERS, "vllm"])
    for model, name, *_ in (step for step in plan("cpu", quick=True) if step[1] in asked):
        entry = json.loads(file_of(tmp_path, "cpu", "fp32", model, name).read_text(encoding="utf-8"))
        rows = entry["systems"]
        assert {row["system"] for row in rows} == set(PEERS), name
        assert max(row["difference"] for row in rows if row["system"] != "mmembed") <= 1e-5, name
        assert all(row["median_s"] > 0 and row["peak_mb"] > 1 and row["share_of_peak"] > 0 for row in rows), name
        assert entry["absent"]["vllm"]
        assert entry["distinct_tokens"] <= entry["tokens"]
        assert f"| {entry['said']} |" in table.written(tmp_path)
        assert f"| {entry['said']} |" in table.shortened(tmp_path)


def test_a_setting_of_a_peer_that_fails_is_told_and_left_out_and_ours_may_not_fail(shelf):
    class Failing:
        def __init__(self, system, settings):
            self.system, self.given = system, settings

        def ask(self, what, *given):
            if what == "settings":
                return self.given
            if given[1].get("batch") == 9:
                raise Failed("Traceback ...\nMemoryError: so much")
            vectors = np.full((len(given[0].things), 4), 0.5)
            return {"seconds": 1.0, "cpu_seconds": 1.0, "vectors": vectors, "memory": {"peak_mb": 2.0}}

    told = []
    with Conductor([], shelf, "cpu", "fp32", 1, told.append) as conductor:
        conductor.model = "tiny"
        conductor.here = {"peak": Failing("peak", [{}]), "mmembed": Failing("mmembed", [{}])}
        conductor.here["transformers"] = Failing("transformers", [{"batch": 8}, {"batch": 9}])
        entry = conductor.measure("tiny", "queries", "tiny", 2)
        assert [(row["system"], row["setting"]) for row in entry["systems"]] == [
            ("mmembed", {}),
            ("transformers", {"batch": 8}),
        ]
        assert entry["failed"] == {'transformers {"batch": 9}': "MemoryError: so much"}
        assert "Traceback" in told[0]
        conductor.here["mmembed"] = Failing("mmembed", [{"batch": 9}])
        with pytest.raises(Failed):
            conductor.measure("tiny", "queries", "tiny", 1)


@pytest.mark.parametrize("name", ["queries", "few-shot", "metaeol", "one query", "mixed", "sentences"])
def test_a_plain_loop_over_transformers_gives_the_same_vectors(shelf, name):
    kind = "tiny-vl" if name in workloads.PICTURES else "tiny" if name in workloads.TEXTS else "tiny-encoder"
    folder = folder_of(kind, shelf)
    made = workloads.make(name, 6, shelf / "photographs")
    plain, ours = (SYSTEMS[system](folder, "cpu", "fp32", 1) for system in ("transformers", "mmembed"))
    setting = plain.settings(made)[0]
    assert np.abs(plain.encode(made, setting) - ours.encode(made, {})).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [(name, "tiny") for name in ("openvino", "onnxruntime", "llama.cpp")]
    + [(name, "tiny-encoder") for name in ("openvino", "onnxruntime")],
)
def test_exported_models_give_the_same_vectors(shelf, name, model):
    if SYSTEMS[name].missing():
        pytest.skip(f"{name} is not installed")
    folder = folder_of(model, shelf)
    made = workloads.make("documents", 6, shelf)
    other, ours = (SYSTEMS[system](folder, "cpu", "fp32", 1) for system in (name, "mmembed"))
    for setting in other.settings(made):
        assert np.abs(other.encode(made, setting) - ours.encode(made, {})).max() <= 1e-5


def test_a_fresh_process_is_timed_step_by_step(shelf):
    (row,) = start.measure(["tiny"], shelf, ["mmembed"], 1)["systems"]
    assert all(row[step] > 0 for step in start.STEPS)
    assert row["all"] == pytest.approx(sum(row[step] for step in start.STEPS[:-1]), abs=0.01)


def test_texts_have_as_many_tokens_as_they_are_said_to_have():
    words = texts.tokenizer(close=False)
    lengths = [10, 20, 77, 500] * 11
    counts = [len(words(text)["input_ids"]) for text in texts.of_lengths(lengths, 0, words)]
    assert max(abs(count - length) for count, length in zip(counts, lengths, strict=True)) <= 5
    assert len(set(texts.of_lengths([6] * 1000, 0, words))) == 1000
    assert len(words(QUERY)["input_ids"]) == 54
    assert abs(len(words(workloads.few_shot(words))["input_ids"]) - 500) <= 1
    drawn = texts.lognormal(2000, 0, 20, 500)
    assert (min(drawn), max(drawn)) == (20, 500)
    assert 90 < sorted(drawn)[1000] < 110


def test_a_tree_has_as_many_tokens_as_there_are_distinct_beginnings():
    sequences = [[1, 2, 3], [1, 2, 4, 5], [1, 2], [7], [1, 2, 3], [1, 2, 4, 6]]
    beginnings = {tuple(one[: k + 1]) for one in sequences for k in range(len(one))}
    assert work.tree_of(sequences) == (len(beginnings), sum(map(len, beginnings)))


def test_useful_work_is_what_torch_counts_of_matrix_products(shelf):
    folder = folder_of("tiny-vl", shelf)
    config = work.config_of(folder)
    model = AutoModel.from_pretrained(folder).eval()
    ids = list(range(100, 117))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.language_model(input_ids=torch.tensor([ids]))
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    keys, rest = work.weights(config)
    layers = config["text_config"]["num_hidden_layers"]
    assert products == 2 * len(ids) * (keys + rest) * layers
    attended = 4 * 64 * sum(range(1, 18)) * (layers - 1) + 4 * 64 * 17
    assert work.of_texts(config, [ids]) == 2 * 17 * (keys + rest) * (layers - 1) + 2 * (17 * keys + rest) + attended
    pixels = torch.zeros(8 * 12, 3 * 2 * 16 * 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.visual(pixels, grid_thw=torch.tensor([[1, 8, 12]]))
    assert sum(counter.get_flop_counts()["Global"].values()) == work.of_pictures(config, [96])


def test_useful_work_of_an_encoder_is_what_torch_counts(shelf):
    folder = folder_of("tiny-encoder", shelf)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()
    sequences = [list(range(100, 117)), list(range(50, 59)), list(range(50, 59))]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for one in sequences[:2]:
            model(input_ids=torch.tensor([one]))
    config = work.config_of(folder)
    assert sum(counter.get_flop_counts()["Global"].values()) == work.of_texts(config, sequences)
    assert work.distinct(config, sequences) == 26


def test_the_table_shows_how_many_times_as_long_each_peer_took():
    def row(system, median, default, **more):
        return {"system": system, "setting": more, "default": default, "median_s": median, "items_per_s": 1 / median}

    rows = [
        {**row("mmembed", 1.0, True), "share_of_peak": 0.625},
        row("sentence-transformers", 12.4, True, batch=32),
        {**row("sentence-transformers", 2.5, False, batch=8), "difference": 2e-7},
        {**row("openvino", 0.5, False, batch=8), "difference": 4e-7},
        row("openvino", 3.0, True, batch=32),
    ]
    head, _, shown = table.of_model([{"workload": "queries", "said": "short ones", "systems": rows}])
    assert head == "| workload | mmembed | sentence-transformers, default / best | openvino | of peak | difference |"
    assert shown == "| short ones | 1/s | 12 / 2.5 | 0.5 | 0.62 | 4e-7 |"
