"""An index at a URI: an object store (S3, as moto's server has it), file:// and memory://."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time

import pytest

from mmembed import Index
from mmembed.errors import StoreError
from tests.conftest import picture


@pytest.fixture(scope="module")
def bucket():
    if shutil.which("moto_server") is None:
        pytest.skip("needs moto's server, pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        make_bucket(server, port)
        yield {
            "endpoint": f"http://127.0.0.1:{port}",
            "allow_http": "true",
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
            "region": "us-east-1",
            "client_max_retries": "1",
        }
    finally:
        server.kill()
        server.wait()


def make_bucket(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            asked.request("PUT", "/bucket")
            assert asked.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.1)
        finally:
            asked.close()
    pytest.skip("moto's server does not start here")


def test_an_index_lives_in_an_object_store(bucket, tiny):
    with pytest.raises(StoreError, match="s3://bucket/index holds no index"):
        Index.open("s3://bucket/index", tiny, storage_options=bucket)
    first = Index.create("s3://bucket/index", tiny, storage_options=bucket)
    things = ["a", "b", picture(0)]
    assert first.add(things, ids=list("abc"), metadata=[{"n": n} for n in range(3)]).added == 3
    second = Index.open("s3://bucket/index", tiny, storage_options=bucket)
    assert second.search("b", modality="text")[0].id == "b"
    assert second.add(["b now"], ids=["b"]).replaced == 1
    assert [hit.text for hit in first.items(where="n = 1")] == ["b now"]
    assert first.remove(where="n = 2") == 1
    first.compact()
    assert second.verify(sample=5).is_whole
    assert (len(second), second.info()["path"]) == (2, "s3://bucket/index")
    with pytest.raises(StoreError, match="holds an index already"):
        Index.create("s3://bucket/index", tiny, storage_options=bucket)


def test_a_store_that_is_not_there_is_told(bucket, tiny):
    with pytest.raises(StoreError, match=r"s3://nobucket/index: .*NoSuchBucket"):
        Index.open("s3://nobucket/index", tiny, storage_options=bucket)


def test_a_file_uri_is_a_folder(tmp_path, tiny):
    index = Index.create(f"file://{tmp_path}/index", tiny)
    index.add(["a"])
    assert len(Index.open(tmp_path / "index", tiny)) == len(Index.open(f"file://{tmp_path}/index")) == 1


def test_an_index_in_memory_is_its_process_s_own(tiny):
    index = Index.create("memory://things", tiny)
    index.add(["a", "b"])
    assert index.search("b")[0].text == "b"
    with pytest.raises(StoreError, match="holds no index"):
        Index.open("memory://things")
