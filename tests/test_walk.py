"""The walk of a call: windows, threads ahead, memory that runs out, errors in order, and cost that grows with the things."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from transformers import AutoConfig, AutoModel

from mmembed import Image, Report, compose, walk
from mmembed import embedder as embedder_module
from mmembed.errors import ImageError, InputError, SpecError
from mmembed.memory import budget, bytes_per_token, is_out_of_memory
from mmembed.prefetch import Crew, Prefetcher
from mmembed.report import Progress
from mmembed.testing import WIDTH, byte_tokenizer, tiny_backbone, tiny_embedder

from .conftest import picture


@pytest.fixture(scope="module")
def tiny():
    return tiny_embedder(pooling="mean")


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(walk, "WINDOWS", {"cpu": (4, 4)})
    monkeypatch.setattr(walk, "SEEN", 3)


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("mmembed-")}


def test_pictures_beside_one_that_is_skipped_are_given_back_without_a_search(tiny):
    shown = [np.full((32, 32, 3), k, dtype=np.uint8) for k in range(4)]
    held = [weakref.ref(own) for own in shown]
    gc.collect()
    gc.disable()
    try:
        for bad in (Image(b"no picture"), 7):
            report = Report()
            tiny.encode([Image(own) for own in shown] + [bad], on_error="skip", report=report)
            assert len(report.skipped) == 1
        del shown
        assert [ref() for ref in held] == [None] * 4
    finally:
        gc.enable()


# ---- streams and threads ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_windows")
def test_a_stream_gives_the_vectors_of_encode_in_order_and_pulls_no_further_than_a_window_ahead(tiny):
    things = [f"text {k % 13}" if k % 5 else picture(k) for k in range(60)]
    whole = tiny.encode(things)
    pulled = 0

    def source():
        nonlocal pulled
        for thing in things:
            pulled += 1
            yield thing

    found = []
    for block in tiny.stream(source()):
        found += list(block)
        assert pulled <= len(found) + 8, "only the next window is pulled ahead"
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert not own_threads()


@pytest.mark.usefixtures("small_windows")
def test_a_stream_that_is_closed_or_fails_leaves_no_thread(tiny):
    stream = tiny.stream(picture(k) for k in range(50))
    next(stream)
    stream.close()
    assert not own_threads()
    things = [*map(picture, range(20)), Image(b"no picture"), *map(picture, range(9))]
    with pytest.raises(InputError) as caught:
        tiny.encode(things)
    assert caught.value.item == 20
    assert not own_threads()
    dropped = tiny.stream(iter(things))
    next(dropped)
    del dropped
    gc.collect()
    assert not own_threads()


@pytest.mark.usefixtures("small_windows")
def test_what_a_source_raises_comes_after_all_that_it_gave(tiny):
    def source():
        yield from (f"text {k}" for k in range(9))
        raise OSError("the disk is gone")

    got = []

    def drain():
        got.extend(len(block) for block in tiny.stream(source()))

    with pytest.raises(OSError, match="the disk is gone"):
        drain()
    assert got == [4, 4], "of the window that broke off nothing is given"


def frames_in(shape):
    """Colours one after the other in one and the same memory, as cameras and loaders of batches give them."""
    buffer, shown = np.zeros((24, 30, 3), np.uint8), PilImage.new("RGB", (30, 24))
    scores, raw, item = np.zeros((24, 30, 3), np.float32), bytearray(10_000), {}
    for colour in COLOURS:
        buffer[:] = colour
        scores[:] = np.asarray(colour) / 255
        shown.paste(colour, (0, 0, 30, 24))
        file = io.BytesIO()
        shown.save(file, "PNG")
        raw[:] = file.getvalue().ljust(10_000, b"\0")
        item["image"] = buffer
        yield {
            "array": lambda: Image(buffer),
            "floats": lambda: Image(scores),
            "PIL": lambda: shown,
            "Image of PIL": lambda: Image(shown),
            "bytes": lambda: Image(raw),
            "view": lambda: Image(memoryview(raw)),
            "dict": lambda: {"image": buffer},
            "list in a dict": lambda: {"image": [buffer]},
            "one dict": lambda: item,
            "tuple": lambda: (Image(buffer),),
            "text and picture": lambda: ("a", Image(buffer)),
            "text and PIL": lambda: {"text": "a", "image": shown},
        }[shape]()


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (20, 20, 20), (250, 250, 250)]
SHAPES = ["array", "floats", "PIL", "Image of PIL", "bytes", "view", "dict", "list in a dict", "one dict", "tuple"]


@pytest.mark.parametrize("shape", [*SHAPES, "text and picture", "text and PIL"])
def test_frames_in_one_buffer_are_as_many_pictures(tiny, shape):
    pictured = [Image(np.full((24, 30, 3), colour, np.uint8)) for colour in COLOURS]
    due = tiny.encode([("a", each) for each in pictured] if shape.startswith("text") else pictured)
    assert np.abs(due[0] - due[1]).max() > 1e-3
    np.testing.assert_allclose(tiny.encode(frames_in(shape)), due, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([*tiny.stream(frames_in(shape))]), due, atol=1e-6)
    prepared = walk.prepare(tiny.model, frames_in(shape), tiny.reader.sampler, walk.Options())
    np.testing.assert_allclose(tiny.finish(prepared, tiny.compute(prepared.samples)), due, atol=1e-6)


def test_vectors_of_frames_in_one_buffer_are_written_to_a_file(tiny, tmp_path):
    tiny.encode_to(tmp_path / "v.npy", frames_in("one dict"))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), tiny.encode(frames_in("array")), atol=1e-6)


def test_tokens_of_things_from_one_dict_are_counted_one_by_one(tiny):
    texts = ["a", "a b c", "a b"]

    def source():
        item = {}
        for text in texts:
            item["text"] = text
            yield item

    assert tiny.count_tokens(source()) == tiny.count_tokens(texts)
    with pytest.raises(SpecError, match="2 prompts were given"):
        tiny.count_tokens(source(), prompt=["a", "b"])


def test_pictures_that_their_source_closes_are_read_before_and_a_bad_one_is_told_by_its_row(tiny, tmp_path):
    due = [picture(k) for k in range(3)]
    for k, each in enumerate(due):
        PilImage.fromarray(each.source).save(tmp_path / f"{k}.png")
    whole = (tmp_path / "1.png").read_bytes()

    def source():
        for k in range(3):
            with PilImage.open(tmp_path / f"{k}.png") as opened:
                yield opened

    np.testing.assert_allclose(tiny.encode(source()), tiny.encode(due), atol=1e-6)
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"item 1: PIL image RGB 50x40: .*truncated"):
        tiny.encode(source())
    with pytest.warns(UserWarning, match="item 1"):
        assert np.isnan(tiny.encode(source(), on_error="skip")).any(axis=1).tolist() == [False, True, False]


def test_pictures_that_a_source_gives_are_held_by_their_bytes_too(tiny, monkeypatch):
    each = picture(0).source.nbytes
    monkeypatch.setattr(walk, "HELD", 3 * each)
    things = [picture(k) for k in range(8)]
    file = io.BytesIO()
    PilImage.fromarray(things[0].source).save(file, "BMP")
    assert len(file.getvalue()) > each
    assert [len(block) for block in tiny.stream(iter(things))] == [3, 3, 2]
    assert [len(block) for block in tiny.stream(Image(file.getvalue()) for _ in range(6))] == [3, 3]
    assert [len(block) for block in tiny.stream(things)] == [8], "what the caller holds is held already"


def test_a_window_ends_by_the_pictures_of_its_items_however_they_are_written(tiny, monkeypatch):
    monkeypatch.setattr(walk, "SEEN", 4)
    one = picture(0, 8, 8)
    for pages in ((one, one), ("two", (one, one)), {"text": "two", "image": [one, one]}):
        assert [len(block) for block in tiny.stream([pages] * 5)] == [2, 2, 1]
    assert [len(block) for block in tiny.stream([{"image": one}, one] * 4)] == [4, 4]
    assert [len(block) for block in tiny.stream([("a", "b"), {"text": ["a", "b"]}] * 9)] == [18], "these hold none"


def test_a_padded_batch_fills_no_more_than_its_budget(monkeypatch):
    ours = tiny_embedder(backbone=tiny_backbone("lfm2"), vision=None, projector=None)
    cells = []
    ours.model.backbone.register_forward_pre_hook(
        lambda _, __, told: cells.append(told["input_ids"].numel()), with_kwargs=True
    )
    things = ["x" * 99, *(f"{k:09}" for k in range(60))]
    due = ours.encode(things, batch_tokens=300)
    assert max(cells) <= 300
    cells.clear()
    monkeypatch.setattr(embedder_module, "budget", lambda model: 300)
    prepared = ours.prepare(things)
    np.testing.assert_allclose(ours.finish(prepared, ours.compute(prepared.samples)), due, atol=1e-6)
    assert max(cells) <= 300


def test_the_first_bad_row_is_raised_whatever_is_wrong_with_it(tiny):
    things = ["a", Image(b"no picture"), "b", 7, "c"]
    with pytest.raises(InputError, match=r"item 1: .*8|item 1: .*bytes"):
        tiny.encode(things)
    with pytest.raises(InputError, match="item 1: a int"):
        tiny.encode(["a", 7, Image(b"no picture")])


def test_the_next_thing_is_made_while_the_caller_is_at_one_and_a_lone_one_without_a_thread():
    made, names = [], []

    def make(k):
        names.append(threading.current_thread().name)
        made.append(k)
        return k

    with Prefetcher(range(3), make) as three:
        for k in three:
            for _ in range(200):
                if len(made) >= min(k + 2, 3):
                    break
                time.sleep(0.01)
            assert len(made) == min(k + 2, 3)
            assert three.awaited() == (k < 2)
    assert names[0] == "MainThread"
    assert all(name.startswith("mmembed-ahead") for name in names[1:])
    names.clear()
    with Prefetcher([1, 0], lambda k: 1 / k) as one:
        assert next(one) == 1
        assert not one.awaited(), "an error is nothing to wait for"
        with pytest.raises(ZeroDivisionError):
            next(one)
    assert list(Prefetcher([5], make)) == [5]
    assert names == ["MainThread"]


def test_a_crew_keeps_the_order_and_is_gone_at_the_end():
    with Crew(3) as crew:
        assert list(crew.map(lambda k: (time.sleep(0.02 * (3 - k)), k)[1], [0, 1, 2])) == [0, 1, 2]
        assert len(own_threads()) == 3
    assert not own_threads()
    with Crew(3) as crew:
        assert list(crew.map(abs, [-1])) == [1]
        assert not own_threads()


class Device:
    """What computes behind the back of the host: batches set out, and are there when they are waited for."""

    def __init__(self, embedder, slow=0.0):
        self.embedder, self.slow, self.said = embedder, slow, []

    def __call__(self, samples, rows, output):
        self.said.append(("begin", min(rows)))
        arrays = walk.compute(self.embedder.model, samples, rows, output)

        def wait():
            self.said.append(("wait", min(rows)))
            return arrays()

        return wait

    def windows(self, things, **options):
        walked = walk.walk(
            self.embedder.model,
            things,
            self.embedder.reader.vectors,
            walk.Options(**options),
            self,
            ahead_of=1,
        )
        for window in walked:
            yield window
            time.sleep(self.slow)


@pytest.mark.usefixtures("small_windows")
def test_a_device_has_the_next_window_before_this_one_is_waited_for(tiny):
    things = [f"text {k}" for k in range(20)]
    device = Device(tiny)
    found = [window.results for window in device.windows(things)]
    assert [len(each) for each in found] == [4, 4, 4, 4, 4]
    vectors = np.stack([vector for each in found for vector in each])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, tiny.encode(things), atol=1e-6)
    told = device.said
    assert told.index(("begin", 4)) < told.index(("wait", 0))
    assert told.index(("begin", 8)) < told.index(("wait", 4))
    assert [place for what, place in told if what == "wait"] == [0, 4, 8, 12, 16]


@pytest.mark.usefixtures("small_windows")
def test_a_source_that_may_be_slow_holds_up_no_window_that_is_whole(tiny):
    seen: list[int] = []
    pulled = []

    def source():
        for k in range(12):
            pulled.append(len(seen))
            yield f"text {k}"

    for window in Device(tiny, slow=0.1).windows(source()):
        seen.append(window.count)  # noqa: PERF401 - the source looks at it meanwhile
    assert seen == [4, 4, 4]
    assert pulled == [0] * 8 + [1] * 4


@pytest.mark.usefixtures("small_windows")
def test_what_comes_before_a_bad_item_is_given_before_it_is_told(tiny):
    class Failing(Device):
        def __call__(self, samples, rows, output):
            if 7 in rows:
                raise InputError("cannot be", 7)
            return super().__call__(samples, rows, output)

    things = [f"text {k}" for k in range(30)]
    windows = Failing(tiny, slow=0.1).windows(things)
    assert next(windows).count == 4
    with pytest.raises(InputError, match="item 7: cannot be"):
        next(windows)
    report = Report()
    whole = [*Failing(tiny, slow=0.1).windows(things, on_error="skip", report=report)]
    assert [each.row for each in report.skipped] == [7]
    assert [window.count for window in whole] == [4] * 7 + [2]
    assert not own_threads()


# ---- memory ----------------------------------------------------------------------------------------------------------


class Cramped:
    """A device with room for so many tokens: the model's own forward, and torch's own error beyond."""

    def __init__(self, embedder, room):
        self.forward, self.room, self.seen = embedder.model.forward, room, []

    def __call__(self, batch):
        self.seen.append(len(batch.ids))
        if len(batch.ids) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(batch.ids)} tokens")
        return self.forward(batch)


@pytest.fixture
def cramped(monkeypatch):
    embedder = tiny_embedder(pooling="mean")
    model = Cramped(embedder, 100)
    monkeypatch.setattr(embedder.model, "forward", model)
    return embedder, model


def test_where_memory_runs_out_batches_are_halved_once_said_and_no_row_is_lost(cramped, tiny):
    embedder, model = cramped
    things = [f"{k} " * (k % 9 + 1) for k in range(120)]
    report = Report()
    with pytest.warns(UserWarning, match="memory ran out") as said:
        found = embedder.encode(things, report=report)
    np.testing.assert_allclose(found, tiny.encode(things), atol=1e-6)
    assert len([each for each in said if "memory ran out" in str(each.message)]) == 1
    assert report.batch_tokens <= 100
    assert report.halved == sum(tokens > 100 for tokens in model.seen) > 1
    assert report.items == 120


def test_an_item_that_does_not_fit_alone_is_named_or_skipped(cramped, tiny):
    embedder, _ = cramped
    things = ["a", "x" * 300, "b", "x" * 300, "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="item 1: its 301 tokens and patches of images do not fit"):
            embedder.encode(things)
        report = Report()
        found = embedder.encode(things, on_error="skip", report=report)
    assert [skipped.row for skipped in report.skipped] == [1, 3]
    assert (report.items, report.tokens) == (3, 6)
    assert np.isnan(found[[1, 3]]).all()
    np.testing.assert_allclose(found[[0, 2, 4]], tiny.encode(["a", "b", "c"]), atol=1e-6)


def test_other_errors_are_not_taken_for_memory(cramped, monkeypatch):
    embedder, _ = cramped

    def broken(batch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(embedder.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        embedder.encode(["a"], on_error="skip")
    for said in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert is_out_of_memory(torch.AcceleratorError(said, 2))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_memory_of_this_process_that_runs_out_is_not_the_end():
    """The real thing: less address space than a batch of all items takes."""
    pytest.importorskip("resource")
    program = """
import resource, warnings
import numpy as np, torch
from mmembed import Report
from mmembed.testing import tiny_backbone, tiny_embedder
torch.set_num_threads(1)
wide = tiny_backbone(hidden_size=256)
embedder = tiny_embedder(backbone=wide, pooling="mean", vision=None, projector=None)
things = [f"{k:03} " * 20 for k in range(256)]
expected = embedder.encode(things, batch_tokens=200)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, resource.RLIM_INFINITY))
report = Report()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = embedder.encode(things, batch_tokens=10**6, report=report)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(report.halved, report.batch_tokens, np.abs(found - expected).max(), len(said))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("address space is limited as Linux does it")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    halved, tokens, apart, said = done.stdout.split()
    assert int(halved) >= 1
    assert int(tokens) < 256 * 80
    assert float(apart) < 1e-5
    assert int(said) == 1


def test_a_batch_is_no_larger_than_what_is_free_on_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    for name, value in (("memory_reserved", 3 * 2**20), ("memory_allocated", 2**20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 2**30, 80 * 2**30))
    assert budget(gpu, 2048, 6144, 2) == 65536
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**28, 80 * 2**30))
    each = bytes_per_token(2048, 6144, 2)
    assert budget(gpu, 2048, 6144, 2) == (2**28 + 2 * 2**20) // (2 * each) < 32768
    assert tiny_embedder().model.token_sizes == (WIDTH, 64, 4)


def test_no_finite_vector_is_one_row_that_is_skipped(tiny):
    embedder = tiny_embedder(pooling="mean")
    table = embedder.model.backbone.get_input_embeddings().weight
    with torch.no_grad():
        table[ord("!") - 33] = torch.nan  # the byte tokenizer's id of an exclamation mark
    things = ["fine", "broken!", "fine too"]
    with pytest.raises(InputError, match="item 1: the model gave no finite vector"):
        embedder.encode(things)
    report = Report()
    found = embedder.encode(things, on_error="skip", report=report)
    assert [skipped.row for skipped in report.skipped] == [1]
    np.testing.assert_allclose(found[[0, 2]], tiny.encode(["fine", "fine too"]), atol=1e-6)


# ---- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_by_tokens_of_those_that_are_known_and_of_as_many_for_the_others():
    with Progress(100, False) as bar:
        assert bar.share is None
        bar.expect(50, 1000)
        bar.done(900)
        assert (bar.expected, bar.share) == (2000, 0.45)
        bar.done(100)
        bar.expect(50, 3000)
        assert (bar.expected, bar.share) == (4000, 0.25)
        bar.done(3000)
        assert bar.share == 1
    with Progress(None, False) as bar:
        bar.expect(50, 1000)
        assert bar.expected is None


def test_the_bar_says_items_and_ends_full(tiny, capsys, small_windows):
    tiny.encode(["a" * k for k in range(1, 30)], show_progress_bar=True)
    said = capsys.readouterr().err
    assert "29/29 items" in said
    assert "100%" in said


# ---- growth ----------------------------------------------------------------------------------------------------------

GROWTH = """
import resource, sys, time
import mmembed, torch
torch.set_num_threads(1)
embedder = mmembed.load(device="cpu")
words = "red cat dog house of big small tree blue sky over under river child play music car road green old".split()

def things(count):  # every thousand alike: numbers in order are of fewer tokens at first, for years are words of their own
    for k in range(count):
        yield f"{words[k % 20]} {words[k // 20 % 20]} {words[k * 7 % 19]} {1000 + k * 4801 % 7919}"

def spent(blocks, most):
    began, rows = time.process_time(), 0
    for block in blocks:
        rows += len(block)
        if rows >= most:
            break
    return (time.process_time() - began) / rows * 1e6

def told(count, us):
    print(count, us, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)

spent(embedder.stream(things(20_000)), 20_000)
told(10_000, spent(embedder.stream(things(10_000)), 10_000))
long = embedder.stream(things(100_000))
for _ in range(10):  # a tenth of it at a time, between short ones: a machine that grows slower by itself does so for all
    told(100_000, spent(long, 10_000))
    for count in [1000] * 10 + [10_000]:
        told(count, spent(embedder.stream(things(count)), count))
"""


@pytest.mark.slow
def test_time_of_an_item_and_memory_do_not_grow_with_the_number_of_items():
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    rows = [(int(n), float(us), int(peak)) for n, us, peak in map(str.split, done.stdout.splitlines())]
    each = {count: np.mean([us for n, us, _ in rows if n == count]) for count in (1000, 10_000, 100_000)}
    memory = {10_000: rows[0][2], 100_000: rows[-1][2]}
    print(f"microseconds an item {each}; peak KiB {memory}")
    assert each[100_000] <= 1.1 * min(each[1000], each[10_000])
    assert memory[100_000] <= memory[10_000] + 32 * 1024


def test_an_item_that_the_model_refuses_is_named_or_skipped():
    """Phi-3 turns the positions of a batch by its longest item: one beyond what it was made for is refused, by the model."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    config = AutoConfig.for_model(
        "phi3",
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"vocab_size": 300, "pad_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 512},
        original_max_position_embeddings=64,
        rope_parameters={**rope, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    )
    model = AutoModel.from_config(config).eval()
    ours = compose(backbone=model, tokenizer=byte_tokenizer(), device="cpu", max_length=512)
    texts = ["ab", "c" * 100, "d"]
    with pytest.raises(InputError, match="item 1: an item of 101 tokens"):
        ours.encode(texts)
    report = Report()
    rows = ours.encode(texts, on_error="skip", report=report)
    assert [skipped.row for skipped in report.skipped] == [1]
    assert np.abs(rows[[0, 2]] - ours.encode(["ab", "d"])).max() <= 1e-6
