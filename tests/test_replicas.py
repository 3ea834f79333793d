"""Replicas: the vectors of one embedder from several processes, in order, with their errors, and whatever dies."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mmembed
import mmembed.testing
from mmembed import Replicas, errors
from mmembed.errors import InputError, ReplicaLost, SpecError
from mmembed.methods import apply

from .conftest import needs_compiler, picture

TEXTS = [f"text {k} " + "so it goes " * (k % 13) for k in range(120)]
THINGS = [*TEXTS, picture(1), ("what is this", picture(2)), TEXTS[3]]
SMALL = {"batch_tokens": 120}  # some dozens of batches


@pytest.fixture(scope="module")
def two(tiny):
    before = tiny.encode(TEXTS[:3])
    with Replicas(tiny, devices=["cpu", "cpu"]) as replicas:
        started = processes(replicas)
        yield replicas
    assert all(process.poll() is not None for process in started)
    assert np.array_equal(tiny.encode(TEXTS[:3]), before)
    with pytest.raises(ReplicaLost, match="closed"):
        replicas.encode(TEXTS[:3])


def processes(replicas):
    return [replica.process for replica in replicas._crew._living]


def test_two_processes_give_what_one_gives(tiny, two):
    assert np.abs(two.encode(THINGS, **SMALL) - tiny.encode(THINGS, **SMALL)).max() <= 1e-5
    some, due = two.encode_tokens(TEXTS[:5]), tiny.encode_tokens(TEXTS[:5])
    assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(some, due, strict=True))
    assert two.fingerprint == tiny.fingerprint
    assert two.encode([]).shape == (0, 32)


@needs_compiler
@pytest.mark.slow
def test_replicas_of_a_compiled_embedder_are_compiled():
    embedder = mmembed.testing.tiny_embedder().compile()
    with Replicas(embedder, devices=["cpu"]) as replicas:
        (process,) = processes(replicas)
        assert process.args[-1] == "compiled"
        assert np.abs(replicas.encode(TEXTS[:9]) - embedder.encode(TEXTS[:9])).max() <= 1e-5


def test_what_would_make_another_embedder_of_them_comes_before(two):
    for change in (
        lambda: two.respecified(normalize=False),
        lambda: apply(two, "prompteol"),
        lambda: two.with_head({}, {}),
    ):
        with pytest.raises(SpecError, match="change the embedder, then make replicas of it"):
            change()


def test_both_have_work_to_do(two):
    ran = {process.pid: cpu_seconds(process.pid) for process in processes(two)}
    for _ in range(3):
        two.encode(TEXTS, **SMALL)
    assert all(cpu_seconds(pid) > before for pid, before in ran.items())


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_item_that_cannot_be_embedded_is_named(two):
    with pytest.raises(InputError, match=r"item 1: .*empty"):
        two.encode(["a", (), "b"])
    told = mmembed.Report()
    assert np.isnan(two.encode(["a", (), "b"], on_error="skip", report=told)[1]).all()
    assert [skipped.row for skipped in told.skipped] == [1]


def test_what_goes_wrong_in_a_process_comes_back_as_it_was(two, tiny):
    def nonsense(): ...

    with pytest.raises(AttributeError, match="nonsense"):
        two._crew.give([], [], SimpleNamespace(forward=nonsense))()
    assert np.abs(two.encode(TEXTS[:3]) - tiny.encode(TEXTS[:3])).max() <= 1e-5


class Unreadable(Exception):
    """Goes out of a process and not into another."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class Spoiled:
    """Samples that end in an error when a process looks at them."""

    def __iter__(self):
        raise Unreadable("samples", "spoiled")

    __len__ = __iter__


def test_a_result_that_cannot_be_read_is_the_end_of_its_process_and_of_no_waiting(tiny):
    with Replicas(tiny, devices=["cpu"]) as replicas:
        (process,) = processes(replicas)
        waiting = replicas._crew.give(Spoiled(), [0], replicas.reader.vectors)
        with pytest.raises(ReplicaLost, match=r"cannot be read: TypeError.*the items 0 have no vectors"):
            waiting(timeout=60)
        assert process.poll() is not None


ERRORS = [
    errors.MmembedError("what"),
    errors.InputError("what", 3),
    errors.ImageError("what"),
    errors.TruncationError("what", 3),
    errors.UnknownName("prompt", "qery", ["query", "document"]),
    errors.SpecError("what"),
    errors.LoadError("what"),
    errors.ReplicaLost("what", [1, 2]),
    errors.StoreError("what"),
    errors.FingerprintMismatch("what"),
    errors.TrainingError("what"),
    errors.MissingExtra("package", "extra"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_of_ours_goes_from_one_process_to_another(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_there_is_no_other_error_of_ours():
    assert {type(error) for error in ERRORS} == {
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.MmembedError)
    }


def test_threads_share_replicas(two, tiny):
    found = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: two.encode(TEXTS[k::4], **SMALL)})) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, vectors in found.items():
        assert np.abs(vectors - tiny.encode(TEXTS[k::4])).max() <= 1e-5
    assert len(found) == 4


def killing(replicas, after):
    """Texts without end, and after some of them no process more."""
    for k in itertools.count():
        if k == after:
            for process in processes(replicas):
                os.kill(process.pid, signal.SIGKILL)
        yield f"text {k}"


def test_a_killed_process_leaves_its_batches_to_the_other_and_the_last_one_says_what_is_lost(tiny):
    with Replicas(tiny, devices=["cpu", "cpu"]) as replicas:
        first, second = processes(replicas)
        os.kill(first.pid, signal.SIGSTOP)  # so that it surely holds batches when it is killed
        threading.Timer(0.5, os.kill, (first.pid, signal.SIGKILL)).start()
        assert np.abs(replicas.encode(TEXTS, **SMALL) - tiny.encode(TEXTS)).max() <= 1e-5
        assert processes(replicas) == [second]
        assert np.abs(replicas.encode(TEXTS[:3]) - tiny.encode(TEXTS[:3])).max() <= 1e-5
        with pytest.raises(ReplicaLost, match=r"SIGKILL.*the items .* have no vectors") as raised:
            replicas.encode(killing(replicas, 1500), **SMALL)
        assert raised.value.rows
        with pytest.raises(ReplicaLost, match="no replica is left"):
            replicas.encode(TEXTS[:3])


def test_forgotten_replicas_leave_nothing_behind(tiny):
    forgotten = Replicas(tiny, devices=["cpu"])
    (process,) = processes(forgotten)
    assert str(tiny.model.device) == "cpu"
    del forgotten
    gc.collect()
    assert process.poll() is not None


SCRIPT = """
import signal
from mmembed import Replicas
from mmembed.testing import tiny_embedder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
replicas = Replicas(tiny_embedder(), devices=["cpu"])
print(*(replica.process.pid for replica in replicas._crew._living), flush=True)
while True:
    replicas.encode(["text %d" % k for k in range(500)], batch_tokens=60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_processes_end_with_the_one_that_started_them(end, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=said, env=environment
        ) as script,
    ):
        pids = [int(pid) for pid in script.stdout.readline().split()]
        time.sleep(0.3)
        script.send_signal(end)
        try:
            assert script.wait(20) != 0
        finally:
            script.kill()  # or leaving this block waits for ever
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    assert len(pids) == 1, (tmp_path / "said").read_text()
    assert not any(alive(pid) for pid in pids)
    assert not list(tmp_path.glob("mmembed-replicas-*"))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_replicas_that_cannot_start_say_so(tiny, capfd):
    with pytest.raises(SpecError, match="devices"):
        Replicas(tiny, devices=[])
    with pytest.raises(ReplicaLost, match="on xla:7 did not start: exit code 1"):
        Replicas(tiny, devices=["xla:7"])
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.gpu
def test_replicas_on_a_gpu_and_on_the_cpu_give_what_one_gives(tiny):
    with Replicas(tiny, devices=["cuda:0", "cuda:0", "cpu"]) as replicas:
        assert np.abs(replicas.encode(THINGS, **SMALL) - tiny.encode(THINGS)).max() <= 1e-5
