"""The server over real HTTP: every form gives the embedder's own vectors, and what cannot be served says why."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import PIL.Image
import pytest
from langchain_openai import OpenAIEmbeddings

import mmembed
from mmembed import Query
from mmembed.errors import FingerprintMismatch, ReplicaLost, StoreError
from mmembed.search.index import Index
from mmembed.serve import cohere
from mmembed.serve import openai as ours
from mmembed.serve.app import build_app
from mmembed.serve.form import parse
from mmembed.serve.request import Limits, RequestError
from mmembed.testing import tiny_embedder

from .served import served

TEXTS = ["a red bicycle", "ένα κόκκινο ποδήλατο", "红色的自行车", "🚲", "دراجة حمراء"]


@pytest.fixture(scope="module")
def pico() -> mmembed.Embedder:
    return mmembed.load()


@pytest.fixture(scope="module")
def index(pico, tmp_path_factory):
    made = Index.create(tmp_path_factory.mktemp("served") / "index", pico)
    pictures = [mmembed.Image(_pixels(seed)) for seed in range(3)]
    made.add([*TEXTS, *pictures], ids=[f"{kind}/{n}" for kind, n in zip("ttttt" + "iii", range(8), strict=True)])
    return made


@pytest.fixture(scope="module")
def url(pico, index):
    with served(build_app(pico, index=index)) as base:
        yield base


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def _uri(pixels: np.ndarray) -> str:
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _near(got, want) -> None:
    np.testing.assert_allclose(np.asarray(got, dtype=np.float32), want, atol=1e-5)


def _ask(url: str, path: str, body: object, **more: object) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=30, **more)


# ---- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float", "base64"])
def test_the_client_of_openai_reads_our_vectors(pico, url, form):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    answer = client.embeddings.create(model="pico", input=TEXTS, encoding_format=form)
    got = [one.embedding for one in answer.data]
    if form == "base64" and isinstance(got[0], str):
        got = [np.frombuffer(base64.b64decode(one), dtype="<f4") for one in got]
    _near(got, pico.encode(TEXTS))
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == sum(pico.count_tokens(TEXTS))


def test_the_client_of_openai_asks_shorter_vectors_and_a_side(pico, url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    answer = client.embeddings.create(model="pico", input="a cat", dimensions=64, extra_body={"input_type": "query"})
    _near([answer.data[0].embedding], pico.encode_query(["a cat"], truncate_dim=64))


def test_langchain_reads_our_vectors(pico, url):
    chain = OpenAIEmbeddings(model="pico", base_url=url + "/v1", api_key="none", check_embedding_ctx_length=False)
    _near(chain.embed_documents(TEXTS), pico.encode(TEXTS))
    _near([chain.embed_query("a cat")], pico.encode(["a cat"]))


def test_langchain_that_sends_token_ids_is_told_its_switch(url):
    answer = _ask(url, "/v1/embeddings", {"input": [[9906, 1917]]})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


def test_messages_hold_pictures_and_texts(pico, url):
    pixels = _pixels(0)
    picture = {"type": "image_url", "image_url": {"url": _uri(pixels)}}
    words = {"type": "text", "text": "a cat"}
    talks = [[{"role": "user", "content": content}] for content in ([picture], [words], [picture, words], "a cat")]
    answer = _ask(url, "/v1/embeddings", {"messages": talks})
    image = mmembed.Image(pixels)
    _near([d["embedding"] for d in answer.json()["data"]], pico.encode([image, "a cat", (image, "a cat"), "a cat"]))
    alone = _ask(url, "/v1/embeddings", {"messages": talks[2]})
    words = {"add_special_tokens": False, "continue_final_message": False}  # as vLLM's example says
    said = _ask(url, "/v1/embeddings", {"messages": talks[2], **words})
    _near(said.json()["data"][0]["embedding"], alone.json()["data"][0]["embedding"])
    _near(alone.json()["data"][0]["embedding"], pico.encode([(image, "a cat")])[0])


def test_cohere(pico, url):
    body = {"model": "pico", "input_type": "search_query", "texts": TEXTS, "embedding_types": ["float", "ubinary"]}
    found = _ask(url, "/v2/embed", body).json()["embeddings"]
    want = pico.encode_query(TEXTS)
    _near(found["float"], want)
    sure = np.abs(want) > 1e-4
    bits = np.unpackbits(np.array(found["ubinary"], dtype=np.uint8), axis=1)
    assert (bits[sure] == (want > 0)[sure]).all()
    images = {"model": "pico", "input_type": "image", "images": [_uri(_pixels(1))]}
    _near(_ask(url, "/v2/embed", images).json()["embeddings"]["float"], pico.encode([mmembed.Image(_pixels(1))]))


def test_a_text_of_white_space_beside_a_picture_has_no_words_that_say_why(pico, tmp_path):
    index = Index.create(tmp_path / "index", pico)
    index.add([("  ", mmembed.Image(_pixels(0)))], ids=["blank"])
    with served(build_app(pico, index=index)) as base:
        told = _ask(base, "/why", {"text": "cat", "id": "blank"}).json()
    assert told["text"] is None
    assert np.shape(told["picture"]) == (7, 7)


def test_tei(pico, url):
    _near(_ask(url, "/embed", {"inputs": TEXTS}).json(), pico.encode(TEXTS))
    refused = _ask(url, "/embed", {"inputs": ""})
    assert refused.status_code == 400
    assert set(refused.json()) == {"error", "error_type"}


def test_search_finds_what_the_index_finds(pico, index, url):
    found = _ask(url, "/search", {"text": "自行车", "k": 3}).json()["hits"]
    want = index.search("自行车", k=3)
    assert [hit["id"] for hit in found] == [hit.id for hit in want]
    _near([hit["score"] for hit in found], [hit.score for hit in want])
    seen = _ask(url, "/search", {"image": _uri(_pixels(2)), "modality": "image"}).json()["hits"]
    assert seen[0]["id"] == "i/7"
    assert seen[0]["thumbnail"]
    both = _ask(url, "/search", {"text": "a", "modality": ["image", "image+text"]}).json()["hits"]
    assert [hit["id"] for hit in both] == [hit.id for hit in index.search("a", modality="image")]
    picture = httpx.get(url + "/thumbnail", params={"id": "i/7"})
    assert PIL.Image.open(io.BytesIO(picture.content)).format == "WEBP"


def test_search_takes_a_negative_full_text_and_diversity(pico, index, url):
    def ids(**asked):
        return [hit["id"] for hit in _ask(url, "/search", {"k": 4, **asked}).json()["hits"]]

    words = "自行车"
    turned = Query([(words, 1), ("cat", -0.5)])
    assert ids(text=words, negative="cat") == [hit.id for hit in index.search(turned, k=4)]
    assert ids(text=words, mode="hybrid") == [hit.id for hit in index.search(words, k=4, mode="hybrid")]
    wide = index.search(words, k=20)
    assert ids(text=words, diversity=0.6) == [hit.id for hit in index.diversify(wide, k=4, diversity=0.6)]
    refused = _ask(url, "/search", {"like": "i/7", "negative": "cat"})
    assert refused.status_code == 400
    assert _ask(url, "/search", {"text": "cat", "mode": "hibrid"}).status_code == 400


@pytest.mark.parametrize(
    ("field", "meant"), [("query", "text"), ("txt", "text"), ("negativ", "negative"), ("top_k", "text")]
)
def test_search_names_a_field_that_it_does_not_know_and_the_one_that_is_meant(url, field, meant):
    answer = _ask(url, "/search", {field: "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert error["message"].startswith(f"no field is called {field!r}. Did you mean {meant!r}? Known: text, image, ")
    assert "'id'" in _ask(url, "/why", {"text": "x", "ids": "t/0"}).json()["error"]["message"]


def test_a_map_is_laid_out_by_no_thread_that_reads_requests(url, monkeypatch):
    laid = []
    monkeypatch.setattr(Index, "layout", lambda _: laid.append(threading.current_thread().name) or [])
    assert httpx.get(url + "/map").json() == {"items": []}
    assert laid[0].startswith("mmembed-explaining")


def test_an_index_of_shorter_vectors_is_asked_in_them(pico, tmp_path):
    short = Index.create(tmp_path / "short", pico, truncate_dim=64)
    short.add(["a cat", "a rocket"], ids=["cat", "rocket"])
    with served(build_app(pico, index=short)) as url:
        found = _ask(url, "/search", {"text": "cat", "negative": "rocket"}).json()["hits"]
        assert [hit["id"] for hit in found] == ["cat", "rocket"]
        (best, _) = _ask(url, "/search", {"text": "cat"}).json()["hits"]
        _near([best["score"]], [short.search("cat")[0].score])
        told = _ask(url, "/why", {"text": "cat", "id": "cat"}).json()["text"]
        assert "".join(words for words, _ in told) == "a cat"


@pytest.mark.parametrize(
    "name", ["nothing", "../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "i/7' OR '1'='1", "t/0", "i/7%00", "\\..\\i"]
)
def test_a_thumbnail_is_of_an_item_of_the_index_or_of_nothing(url, name):
    assert httpx.get(f"{url}/thumbnail?id={name}").status_code == 404


def test_a_thumbnail_is_of_the_item_that_has_its_id_now_whatever_that_is(pico, tmp_path):
    index = Index.create(tmp_path / "ids", pico)
    names = ["a\nb", "a\n", "a"]
    index.add([mmembed.Image(_pixels(n)) for n in range(3)], ids=names)
    with served(build_app(pico, index=index)) as url:
        for name in names:
            plain = httpx.get(url + "/thumbnail", params={"id": name})
            assert (plain.content, plain.headers["Cache-Control"]) == (index.get(name).thumbnail, "private, no-cache")
        hits = httpx.post(url + "/search", json={"text": "a"}).json()["hits"]
        (address,) = [hit["thumbnail"] for hit in hits if hit["id"] == names[0]]
        before = httpx.get(url + address)
        assert (before.content, "immutable" in before.headers["Cache-Control"]) == (index.get(names[0]).thumbnail, True)
        index.add([mmembed.Image(_pixels(9))], ids=names[:1])
        assert httpx.get(url + address).status_code == 404, "the picture that it had is not there any more"
        assert httpx.get(url + "/thumbnail", params={"id": names[0]}).content == index.get(names[0]).thumbnail


def test_models_health_and_metrics(pico, url):
    (entry,) = httpx.get(url + "/v1/models").json()["data"]
    assert (entry["id"], entry["max_model_len"]) == ("pico", pico.spec.max_length)
    assert httpx.get(url + "/health").json()["status"] == "ok"
    _ask(url, "/v1/embeddings", {"input": "a"})
    lines = httpx.get(url + "/metrics").text
    assert 'mmembed_requests_total{route="/v1/embeddings",status="200"}' in lines
    assert "mmembed_tokens_total" in lines


# ---- what cannot be served -------------------------------------------------------------------------------------------

LONG = "word " * 5000


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "input or messages"),
        ({"input": []}, 400, "empty"),
        ({"input": ""}, 400, "empty text"),
        ({"input": ["a", " "]}, 400, "item 1"),
        ({"input": "a", "model": "picco"}, 404, "pico"),
        ({"input": "a", "dimensions": 17}, 400, "17"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "dimension": 64}, 400, "Did you mean 'dimensions'?"),
        ({"input": "a", "dimensions": "64"}, 400, "dimensions"),
        ({"input": "a", "dimensions": 64.0}, 400, "dimensions"),
        ({"input": "a", "dimensions": True}, 400, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": "-1"}, 400, "truncate_prompt_tokens"),
        ({"input": "a", "prompt_name": "qery"}, 400, "query"),
        ({"input": LONG}, 400, "tokens are more"),
        ({"input": {"a": 1}}, 400, "input"),
        ({"input": [None]}, 400, "item 0: a text is wanted, not null"),
        ({"input": ["a", 5]}, 400, "item 1: a text is wanted, not 5"),
        ({"input": [5, "a", {"text": "b"}]}, 400, "item 0: a text is wanted"),
        ({"input": [[5], [None]]}, 400, "item 0: a text is wanted, not [5]"),
        ({"input": [5, 6]}, 400, "token ids"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": ["x"] * 2049}, 413, "2049"),
        ({"input": "a", "model": "a" * 5000}, 400, "model: String should have at most 4096"),
        ({"messages": []}, 400, "one user message"),
        (
            {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
            400,
            "no vector of this model",
        ),
        ({"messages": {"role": "user", "content": "a"}}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a", "text": "b"}]}, 400, "no field is called 'text'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, 400, "one user message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(url, body, status, words):
    answer = _ask(url, "/v1/embeddings", body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "reference",
    [
        "http://127.0.0.1/cat.png", "https://example.org/cat.png", "file:///etc/passwd", "/etc/passwd", "cat.png",
        "data:text/html;base64,PGI+", "data:image/png;base64,AAAA", "data:image/svg+xml;base64,PHN2Zy8+",
    ],
)  # fmt: skip
def test_a_picture_is_data_and_nothing_else(url, reference):
    part = {"type": "image_url", "image_url": {"url": reference}}
    answer = _ask(url, "/v1/embeddings", {"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400
    assert "item 0" in answer.json()["error"]["message"]


def test_no_json_and_no_route(url):
    assert httpx.post(url + "/v1/embeddings", content=b"{'input'").status_code == 400
    assert httpx.post(url + "/v1/embeddings", content=b"\xff\xfe").status_code == 400
    assert httpx.get(url + "/v1/embeddings").status_code == 405
    assert httpx.get(url + "/nothing").json()["error"]["message"] == "GET /nothing is not served here"


@pytest.mark.parametrize("most", [-1, 256, 1000])  # mteb sends the length that /v1/models tells
def test_a_long_text_is_cut_where_the_client_says_so(pico, url, most):
    answer = _ask(url, "/v1/embeddings", {"input": LONG, "truncate_prompt_tokens": most})
    with pytest.warns(UserWarning, match="cut"):
        _near(answer.json()["data"][0]["embedding"], pico.encode([LONG])[0])


def test_a_text_is_not_cut_sooner_than_the_model_does(url):
    answer = _ask(url, "/v1/embeddings", {"input": LONG, "truncate_prompt_tokens": 100})
    assert answer.status_code == 400
    assert "256 tokens" in answer.json()["error"]["message"]


def test_pixels_are_counted_before_they_are_decoded(pico):
    bomb = PIL.Image.new("1", (8000, 8000))
    data = io.BytesIO()
    bomb.save(data, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": uri}}
    with served(build_app(pico, limits=Limits(megapixels=128))) as url:
        answer = _ask(url, "/v1/embeddings", {"messages": [{"role": "user", "content": [part] * 3}]})
    assert answer.status_code == 413
    assert "128 million" in answer.json()["error"]["message"]


# ---- bodies that are made to hurt ------------------------------------------------------------------------------------

MANY = 2**20
HURTING = {
    "ids": ("/v1/embeddings", b'{"input":[' + b"1," * MANY + b"1]}"),
    "lists": ("/v1/embeddings", b'{"input":[' + b"[]," * MANY + b"[]]}"),
    "messages": ("/v1/embeddings", b'{"messages":[' + b"{}," * MANY + b"{}]}"),
    "cohere": ("/v2/embed", b'{"input_type":"search_query","texts":[' + b"1," * MANY + b"1]}"),
    "tei": ("/embed", b'{"inputs":[' + b"[]," * MANY + b"[]]}"),
}


@pytest.mark.parametrize("kind", HURTING)
def test_millions_of_values_are_refused_at_once_and_nobody_waits_meanwhile(url, kind):
    waits, over = [0.0], threading.Event()

    def look() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert httpx.get(url + "/health", timeout=60).status_code == 200
            waits.append(time.monotonic() - began)

    path, body = HURTING[kind]
    with ThreadPoolExecutor(1) as pool:
        looking, began = pool.submit(look), time.monotonic()
        answer = httpx.post(url + path, content=body, timeout=60)
        took = time.monotonic() - began
        over.set()
        looking.result()
    assert answer.status_code == 413
    assert "more than 66560 values" in answer.text
    assert took < 2  # it was 10 to 40 s
    assert max(waits) < 1


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (ours.Request, {"messages": [{}] * 30000}),
        (ours.Request, {"messages": [[{}]] * 20000}),
        (ours.Request, {"messages": [{"role": "user", "content": [{}] * 30000}]}),
        (ours.Request, {str(n): 0 for n in range(30000)}),
        (cohere.Request, {"input_type": "image", "texts": [0] * 60000}),
        (cohere.Request, {"input_type": "image", "inputs": [{}] * 30000}),
        (cohere.Request, {"input_type": "image", "texts": ["a"], "embedding_types": [0] * 60000}),
    ],
)
def test_of_many_errors_the_first_is_told_and_the_others_are_never_made(form, body):
    from pydantic import ValidationError

    with pytest.raises((ValidationError, RequestError)) as told:
        form.model_validate_json(json.dumps(body))
    assert isinstance(told.value, RequestError) or told.value.error_count() < 5
    with pytest.raises(RequestError) as told:
        parse(json.dumps(body).encode(), form, Limits())
    assert told.value.status == 400


@pytest.mark.parametrize(
    "body", [b'"' + b'\\"' * MANY, b'"' + b'\\"' * MANY + b"\\", b" " * MANY, b"]" * MANY, b"\\" * MANY, b"," * MANY]
)
def test_what_is_no_json_is_counted_in_one_pass(body):
    began = time.monotonic()
    with pytest.raises(RequestError):
        parse(body + b"," * 2**17, ours.Request, Limits())
    assert time.monotonic() - began < 2


def test_what_is_within_texts_is_not_counted():
    words = 'a "list", of {things}: [1, 2, \\"3\\"]\n' * 5000
    assert parse(json.dumps({"input": words}).encode(), ours.Request, Limits(things=1)).input == [words]


@pytest.mark.parametrize("body", [b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}", b"[" * 5000])
def test_deep_nesting_is_a_bad_request(url, body):
    answer = httpx.post(url + "/v1/embeddings", content=body)
    assert (answer.status_code, "recursion limit" in answer.text) == (400, True)


MUCH = "word " * 60_000


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": ["a", MUCH]}, "item 1: 300000 characters; at most 262144"),
        ("/v1/embeddings", {"input": ["a", MUCH], "truncate_prompt_tokens": -1}, "item 1: 300000 characters"),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": MUCH}]}, "item 0: 300000 characters"),
        ("/v1/embeddings", {"input": ["a"], "instruction": MUCH}, "300000 of them the instruction's"),
        ("/v1/embeddings", {"input": ["a"] * 100, "instruction": MUCH[:50_000]}, "5000100 characters in one request"),
        ("/v2/embed", {"input_type": "search_query", "texts": ["a", MUCH]}, "item 1: 300000 characters"),
        ("/embed", {"inputs": [MUCH], "truncate": True}, "item 0: 300000 characters"),
        ("/embed", {"inputs": [MUCH[:200_000]] * 30, "truncate": True}, "6000000 characters in one request"),
        ("/search", {"text": MUCH}, "the query: 300000 characters"),
        ("/search", {"text": MUCH, "mode": "hybrid"}, "the query: 300000 characters"),
        ("/search", {"text": "a", "negative": MUCH}, "negative: 300000 characters"),
    ],
)
def test_what_is_too_long_to_be_tokenised_is_refused_by_its_name(url, path, body, words):
    answer = _ask(url, path, body)
    assert answer.status_code == 413
    assert words in answer.text


# ---- refusals --------------------------------------------------------------------------------------------------------

ASKED_FOR = {
    "/v1/embeddings": {"input": "a"},
    "/v2/embed": {"input_type": "search_query", "texts": ["a"]},
    "/embed": {"inputs": "a"},
}


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/embeddings", {"error"}), ("/v2/embed", {"message"}), ("/embed", {"error", "error_type"})],
)
def test_what_stands_before_the_routes_speaks_their_forms_and_is_counted(pico, path, fields):
    def chunks():
        for _ in range(21):
            yield bytes(2**20)

    with served(build_app(pico, key="secret")) as url:
        key = {"Authorization": "Bearer secret"}
        for status, answer in (
            (401, _ask(url, path, ASKED_FOR[path])),
            (413, httpx.post(url + path, content=chunks(), headers=key, timeout=60)),
            (405, httpx.get(url + path, headers=key)),
            (200, _ask(url, path, ASKED_FOR[path], headers=key)),
        ):
            assert answer.status_code == status
            assert status == 200 or set(answer.json()) == fields
        lines = httpx.get(url + "/metrics", headers=key).text
    for status in (401, 413, 405, 200):
        assert f'mmembed_requests_total{{route="{path}",status="{status}"}} 1.0' in lines


def test_a_broken_index_is_no_clients_fault_and_where_it_lies_is_none_of_their_business(url, monkeypatch, caplog):
    def fail(*_, **__):
        raise StoreError("/home/someone/pictures.index is broken: no file 7.lance")

    monkeypatch.setattr(Index, "nearest", fail)
    answer = _ask(url, "/search", {"text": "a"})
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the index cannot be read; the server's log says why"
    assert "no file 7.lance" in caplog.text


def test_an_index_that_was_made_anew_is_told_as_what_it_is(url, monkeypatch, caplog):
    def fail(*_, **__):
        raise FingerprintMismatch("/home/someone/pictures.index was made anew meanwhile")

    monkeypatch.setattr(Index, "nearest", fail)
    answer = _ask(url, "/search", {"text": "a"})
    assert answer.status_code == 503
    assert "Retry-After" not in answer.headers  # it lasts
    assert "has to be started again" in answer.json()["error"]["message"]
    assert "/home/someone" not in answer.text
    assert "/home/someone/pictures.index was made anew" in caplog.text


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/embeddings", {"dimensions": 17}),
        ("/v2/embed", {"output_dimension": 17}),
        ("/v2/embed", {"embedding_types": ["float", "binary"], "output_dimension": 12}),
        ("/embed", {"dimensions": 17}),
    ],
)
def test_numbers_that_cannot_be_had_are_refused_before_the_model_runs(monkeypatch, path, more):
    odd = tiny_embedder(dimensions=(32, 12))
    monkeypatch.setattr(odd, "compute", None)
    with served(build_app(odd)) as url:
        answer = _ask(url, path, {**ASKED_FOR[path], **more})
    assert answer.status_code == 400
    assert "vectors of 17 numbers" in answer.text or "12 fill no whole bytes" in answer.text


def test_a_client_of_cohere_asks_for_one_type_at_least(url):
    body = {"input_type": "search_query", "texts": ["a"], "embedding_types": []}
    answer = _ask(url, "/v2/embed", body)
    assert answer.status_code == 400
    assert "embedding_types" in answer.json()["message"]


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_many_clients_get_their_own_vectors(pico, url):
    words = [f"thing number {n} of many" for n in range(48)]
    want = pico.encode(words)

    def ask(n: int) -> np.ndarray:
        some = [words[n], words[(n * 7 + 3) % len(words)]]
        return np.asarray([d["embedding"] for d in _ask(url, "/v1/embeddings", {"input": some}).json()["data"]])

    with ThreadPoolExecutor(16) as pool:
        for n, got in enumerate(pool.map(ask, range(len(words)))):
            _near(got, want[[n, (n * 7 + 3) % len(words)]])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ReplicaLost("gone"), 503),
        (RequestError("the server is stopping", 503), 503),
        (RuntimeError("out of luck"), 500),
    ],
    ids=["lost", "stopping", "ours"],
)
def test_a_fault_of_the_server_is_none_of_the_clients_and_is_counted(pico, monkeypatch, error, status):
    async def fail(*_):
        raise error

    app = build_app(pico)
    with served(app) as url:
        monkeypatch.setattr("mmembed.serve.batcher.Batcher.vectors", fail)
        answer = _ask(url, "/v1/embeddings", {"input": "a"})
        assert answer.status_code == status
        assert "out of luck" not in answer.json()["error"]["message"]
        lines = httpx.get(url + "/metrics").text
    assert f'mmembed_requests_total{{route="/v1/embeddings",status="{status}"}} 1.0' in lines


def test_a_full_queue_says_when_to_come_again(pico):
    many = {"input": [f"a sentence of some length, the {n}th of a long list" for n in range(2000)]}
    with served(build_app(pico, waiting=8)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(_ask, url, "/v1/embeddings", many)
        while not httpx.get(url + "/health").json()["waiting"] and not first.done():
            time.sleep(0.01)
        refused = _ask(url, "/v1/embeddings", {"input": [f"{n}" for n in range(9)]})
        assert first.result().status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_server_that_is_stopped_answers_what_runs_and_refuses_what_waits(monkeypatch):
    tiny = tiny_embedder()
    compute, running, goes_on = tiny.compute, threading.Event(), threading.Event()

    def slow(samples):
        running.set()
        assert goes_on.wait(30)
        return compute(samples)

    monkeypatch.setattr(tiny, "compute", slow)
    with ThreadPoolExecutor(2) as pool:
        with served(build_app(tiny)) as url:
            runs = pool.submit(_ask, url, "/embed", {"inputs": "a"})
            assert running.wait(30)
            waits = pool.submit(_ask, url, "/embed", {"inputs": "b"})
            while not httpx.get(url + "/health").json()["waiting"]:
                time.sleep(0.01)
            waits.add_done_callback(lambda _: goes_on.set())
        assert waits.result().status_code == 503
        assert "stopping" in waits.result().json()["error"]
        assert runs.result().status_code == 200


def test_the_time_of_a_request_is_that_of_its_reading_too(pico, monkeypatch):
    read = ours.read
    monkeypatch.setattr(ours, "read", lambda *given: time.sleep(2) or read(*given))
    with served(build_app(pico, seconds=0.1)) as url:
        began = time.monotonic()
        answer = _ask(url, "/v1/embeddings", {"input": "a"})
        assert time.monotonic() - began < 1.5
    assert answer.status_code == 503
    assert "more than 0 s" in answer.json()["error"]["message"]


def test_a_client_that_goes_away_takes_its_work_along(pico):
    app = build_app(pico)
    # of 200 tokens each: seconds of work on any machine of today
    many = {"input": [f"a sentence of some length, the {n}th of a long list; " * 9 for n in range(2000)]}
    with served(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/v1/embeddings", json=many, timeout=0.5)
        answer = _ask(url, "/v1/embeddings", {"input": "a cat"})
        assert answer.status_code == 200
        for _ in range(100):
            if httpx.get(url + "/health").json()["waiting"] == 0:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the work of a client that is gone still waits")
        tokens = [
            row for row in httpx.get(url + "/metrics").text.splitlines() if row.startswith("mmembed_tokens_total")
        ]
        assert float(tokens[0].split()[1]) < sum(pico.count_tokens(many["input"]))
