"""Draws a folder of files, 7 % of them bad in every way we know, adds it to an index with the command line, and holds the report
to what was drawn; writes results/folder.json."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "folder.json"
NAMES = ["שלום", "a\nb", "🙂", 'it\'s "q"', "日本語", "-rf", "%s", "x" * 180, "\u202egnp", " ", "a.b.c", "é", "e\u0301"]
"""Odd names, which good files bear too."""


def picture(draw: np.random.Generator) -> PIL.Image.Image:
    """Some coloured squares, of a size of its own."""
    width, height = draw.integers(20, 200, size=2)
    cells = draw.integers(0, 256, size=(4, 4, 3)).astype(np.uint8)
    return PIL.Image.fromarray(cells).resize((int(width), int(height)), PIL.Image.Resampling.NEAREST)


def as_bytes(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_that_claims(width: int, height: int, body: bytes = b"") -> bytes:
    """A small PNG file whose header claims that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


Draw = np.random.Generator
GOOD: dict[str, tuple[str, Callable[[Draw], bytes]]] = {
    "PNG": (".png", lambda d: as_bytes(picture(d), "PNG")),
    "JPEG": (".jpg", lambda d: as_bytes(picture(d), "JPEG")),
    "JPEG, capital ending": (".JPG", lambda d: as_bytes(picture(d), "JPEG")),
    "WEBP": (".webp", lambda d: as_bytes(picture(d), "WEBP")),
    "GIF of three frames": (
        ".gif",
        lambda d: as_bytes(
            picture(d).resize((40, 40)), "GIF", save_all=True, append_images=[picture(d).resize((40, 40))] * 2
        ),
    ),
    "BMP": (".bmp", lambda d: as_bytes(picture(d), "BMP")),
    "TIFF of 16 bits": (
        ".tif",
        lambda d: as_bytes(PIL.Image.fromarray(d.integers(0, 65536, size=(32, 48)).astype(np.uint16)), "TIFF"),
    ),
    "AVIF": (".avif", lambda d: as_bytes(picture(d), "AVIF")),
    "CMYK": (".jpeg", lambda d: as_bytes(picture(d).convert("CMYK"), "JPEG")),
    "palette with transparency": (".png", lambda d: as_bytes(picture(d).quantize(8), "PNG", transparency=0)),
    "gray with alpha": (".png", lambda d: as_bytes(picture(d).convert("LA"), "PNG")),
    "turned by EXIF": (".jpg", lambda d: as_bytes(picture(d), "JPEG", exif=_turned(int(d.integers(2, 9))))),
    "one pixel": (
        ".png",
        lambda d: as_bytes(PIL.Image.fromarray(d.integers(0, 256, (1, 1, 3)).astype(np.uint8)), "PNG"),
    ),
    "PNG that is called JPEG": (".jpg", lambda d: as_bytes(picture(d), "PNG")),
    "text": (".txt", lambda d: f"ein Text {d.integers(10**9)} 日本".encode()),
    "text with a byte order mark": (".txt", lambda d: b"\xef\xbb\xbf" + f"text {d.integers(10**9)}".encode()),
}


def _turned(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def _frames(count: int) -> bytes:
    first, *more = (PIL.Image.new("L", (2, 2), 7 * k % 256) for k in range(count))
    return as_bytes(first, "GIF", save_all=True, append_images=more)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD: dict[str, tuple[str, Callable[[Draw], bytes]]] = {
    "nothing": (".png", lambda d: b""),
    "JPEG of nothing": (".jpg", lambda d: b""),
    "half a PNG": (".png", lambda d: _half(as_bytes(picture(d), "PNG"))),
    "half a JPEG": (".jpg", lambda d: _half(as_bytes(picture(d), "JPEG"))),
    "half a WEBP": (".webp", lambda d: _half(as_bytes(picture(d), "WEBP"))),
    "half a TIFF": (".tif", lambda d: _half(as_bytes(picture(d), "TIFF"))),
    "half an AVIF": (".avif", lambda d: _half(as_bytes(picture(d), "AVIF"))),
    "a page": (".jpg", lambda d: b"<html><body>404 Not Found</body></html>"),
    "JSON": (".png", lambda d: b'{"error": "no such object"}'),
    "a drawing of lines": (".png", lambda d: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "a PDF": (".jpg", lambda d: b"%PDF-1.7\n" + d.bytes(100)),
    "an archive": (".png", lambda d: b"PK\x03\x04" + d.bytes(100)),
    "noise": (".bmp", lambda d: d.bytes(500)),
    "60,000 x 60,000 pixels": (".png", lambda d: png_that_claims(60_000, 60_000)),
    "144 million black pixels in a few bytes": (
        ".png",
        lambda d: png_that_claims(12_000, 12_000, zlib.compress(bytes(12_001 * 12_000), 1)),
    ),
    "longer than 200:1": (".png", lambda d: as_bytes(PIL.Image.new("L", (3000, 2)), "PNG")),
    "no pixels": (".png", lambda d: png_that_claims(0, 0)),
    "1,000 frames": (".gif", lambda d: _frames(1000)),
    "more than 32 MiB": (".bmp", lambda d: b"BM" + bytes(33 * 2**20)),
    "floats beyond 1": (
        ".tif",
        lambda d: as_bytes(PIL.Image.fromarray(d.uniform(0, 300, (9, 9)).astype(np.float32)), "TIFF"),
    ),
    "text of Latin-1": (".txt", lambda d: f"caf\xe9 {d.integers(10**9)}".encode("latin-1")),
    "text of UTF-16": (".txt", lambda d: f"text {d.integers(10**9)}".encode("utf-16")),
}
SPECIAL = ("a link to nothing", "a link to itself", "a pipe", "a link to a device", "no permission")
ONCE = ("144 million black pixels in a few bytes", "more than 32 MiB", "1,000 frames")
"""Large ones, of which there are a few only."""


def draw_folder(folder: Path, count: int, bad: int, seed: int) -> dict[str, str]:
    """`count` files, `bad` of them bad, and one of a name that is no text; returns the bad ones, by path, and what each is. Root
    reads what nobody may, so that files without permission are drawn for others only."""
    draw = np.random.default_rng(seed)
    kinds = [kind for kind in (*BAD, *SPECIAL) if kind != "no permission" or os.geteuid() != 0]
    often = [kind for kind in kinds if kind not in ONCE]
    drawn = [*kinds, *(often[k % len(often)] for k in range(bad - len(kinds)))]
    places = set(draw.permutation(count)[:bad].tolist())
    told: dict[str, str] = {}
    for number in range(count):
        inside = folder / f"{number % 7}" / ("deep/er" if number % 3 == 0 else "")
        inside.mkdir(parents=True, exist_ok=True)
        odd = NAMES[draw.integers(len(NAMES))] if draw.random() < 0.1 else ""
        stem = f"{number:05}{odd}"
        if number not in places:
            ending, make = GOOD[list(GOOD)[draw.integers(len(GOOD))]]
            (inside / f"{stem}{ending}").write_bytes(make(draw))
            continue
        kind = drawn[len(told)]
        ending, make = BAD.get(kind, (".png", GOOD["PNG"][1]))
        path = inside / f"{stem}{ending}"
        if kind == "a link to nothing":
            path.symlink_to(folder / "gone.png")
        elif kind == "a link to itself":
            path.symlink_to(path)
        elif kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a link to a device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(make(draw))
        if kind == "no permission":
            path.chmod(0)
        told[str(path)] = kind
    for k in range(20):  # folders are no files, whatever they are called, and other files are passed over
        within = folder / f"folder {k}.jpg"
        within.mkdir()
        (within / "notes.md").write_text("not taken")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    strange = os.fsdecode(os.fsencode(folder) + b"/caf\xe9 \xff.png")
    Path(strange).write_bytes(GOOD["PNG"][1](draw))
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--bad", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        folder = work / "folder"
        told = draw_folder(folder, options.files, options.bad, options.seed)
        command = [sys.executable, "-m", "mmembed", "index", "add", str(work / "index"), str(folder), "--json"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        assert done.returncode in (0, 3), done.stderr
        found = json.loads(done.stdout)
        again = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    finally:
        shutil.rmtree(work)
    named = [one["name"] for one in found["skipped"]]
    good = options.files - options.bad + 1
    result = {
        "files": options.files + 1,
        "bad": len(told),
        "kinds of bad": len(set(told.values())),
        "named, and bad": len(set(named) & set(told)),
        "named, and good": sorted(set(named) - set(told)),
        "bad, and not named": sorted({told[path] for path in set(told) - set(named)}),
        "named twice": len(named) - len(set(named)),
        "rows": found["items"],
        "rows or known contents that are due": good,
        "added": found["added"],
        "unchanged": found["unchanged"],
        "in the order of paths": named == sorted(named, key=lambda name: Path(name).parts),
        "exit code": done.returncode,
        "seconds": round(seconds, 1),
        "added when added again": again["added"] + again["replaced"],
        "skipped when added again": len(again["skipped"]),
        "by kind": dict(sorted(Counter(told.values()).items())),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    exact = set(named) == set(told) and len(named) == len(told) and found["added"] + found["unchanged"] == good
    return 0 if exact and done.returncode == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
