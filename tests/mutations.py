"""Small valid pictures of every format and mode, and seeded ways to damage them; for tests and the fuzz benchmark."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageCms

KINDS = ("flip bits", "overwrite bytes", "truncate", "cut out", "repeat", "swap parts", "splice", "header lie")
LIES = (0, 1, 2, 7, 255, 256, 8_000, 20_000, 20_001, 65_535, 2**31 - 1, 2**32 - 1)


def gradient(width: int = 40, height: int = 28) -> np.ndarray:
    """uint8 (height, width, 3): red grows rightwards, green downwards, blue in stripes; no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) // 8 % 2 * 200], axis=-1).astype(np.uint8)


@cache
def pictures() -> dict[str, bytes]:
    """Name -> a valid file, one for each format and mode that a decoder treats in its own way."""
    colour = Image.fromarray(gradient())
    gray = colour.convert("L")
    alpha = colour.copy()
    alpha.putalpha(gray)
    palette = colour.quantize(16)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    frames = [Image.fromarray(np.roll(gradient(), step, axis=1)) for step in (0, 9, 18)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"s\0R\0G\0B", b"x\0R\0G\0B")  # else the loader would pass it by
    animated = {"save_all": True, "append_images": frames[1:]}

    def saved(picture: Image.Image, format: str, **options: object) -> bytes:
        file = io.BytesIO()
        picture.save(file, format, **options)
        return file.getvalue()

    made = {
        "jpeg": saved(colour, "JPEG", exif=exif, icc_profile=profile),
        "jpeg progressive": saved(colour, "JPEG", progressive=True, comment="hello"),
        "jpeg gray": saved(gray, "JPEG"),
        "jpeg cmyk": saved(colour.convert("CMYK"), "JPEG"),
        "png": saved(colour, "PNG", exif=exif, icc_profile=profile),
        "png 1": saved(colour.convert("1"), "PNG"),
        "png gray": saved(gray, "PNG"),
        "png gray alpha": saved(alpha.convert("LA"), "PNG"),
        "png alpha": saved(alpha, "PNG"),
        "png palette": saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "png 16": saved(deep, "PNG"),
        "apng": saved(frames[0], "PNG", **animated),
        "webp": saved(colour, "WEBP", exif=exif, icc_profile=profile),
        "webp lossless alpha": saved(alpha, "WEBP", lossless=True),
        "webp animated": saved(frames[0], "WEBP", **animated),
        "gif": saved(palette, "GIF", transparency=3, comment=b"hello"),
        "gif animated": saved(frames[0], "GIF", **animated),
        "bmp": saved(colour, "BMP"),
        "bmp palette": saved(palette, "BMP"),
        "bmp 1": saved(colour.convert("1"), "BMP"),
        "tiff": saved(colour, "TIFF", exif=exif, icc_profile=profile),
        "tiff float": saved(Image.fromarray(np.asarray(gray) / np.float32(255)), "TIFF"),
        "tiff int32": saved(Image.fromarray(np.asarray(gray).astype(np.int32) * 257), "TIFF"),
        "tiff 16": saved(deep, "TIFF", compression="tiff_lzw"),
        "tiff cmyk": saved(colour.convert("CMYK"), "TIFF", compression="tiff_deflate"),
        "tiff jpeg": saved(colour, "TIFF", compression="jpeg"),
        "tiff fax": saved(colour.convert("1"), "TIFF", compression="group4"),
        "tiff pages": saved(frames[0], "TIFF", **animated),
        "avif": saved(colour, "AVIF", exif=exif, icc_profile=profile),
        "avif alpha": saved(alpha, "AVIF"),
        "avif animated": saved(frames[0], "AVIF", **animated),
    }
    return made


def mutated(index: int, seed: int = 0) -> tuple[str, str, bytes]:
    """(name of the picture, kind of damage, damaged bytes); a function of its arguments alone."""
    rng = random.Random(f"{seed}/{index}")
    names = sorted(pictures())
    name = names[index % len(names)]
    kind = KINDS[index // len(names) % len(KINDS)]
    data = _DAMAGE[kind](pictures()[name], rng)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.7:
        data = _with_right_crcs(data)  # else nearly all damage to a PNG ends at its checksum
    return name, kind, data


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    reach = rng.choice((64, 512, len(out)))  # headers are where the branches are
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        out[rng.randrange(min(reach, len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        start = rng.randrange(len(out))
        length = min(rng.choice((1, 2, 4, 8, 32)), len(out) - start)
        out[start : start + length] = rng.choice((b"\0", b"\xff", b"\x7f", rng.randbytes(1))) * length
    return bytes(out)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 100)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = rng.choice(_parts(data))
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _swap_parts(data: bytes, rng: random.Random) -> bytes:
    parts = _parts(data)
    (a, b), (c, d) = sorted(rng.choice(parts) for _ in range(2))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[max(b, d) :]


def _splice(data: bytes, rng: random.Random) -> bytes:
    other = pictures()[rng.choice(sorted(pictures()))]
    start, end = rng.choice(_parts(other))
    at = rng.choice(_parts(data))[rng.randrange(2)]
    return data[:at] + other[start:end] + data[at if rng.random() < 0.5 else at + end - start :]


def _header_lie(data: bytes, rng: random.Random) -> bytes:
    """Another number where the file states a side, a count, a length or an offset."""
    places = _numbers(data)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, form = rng.choice(places)
        top = 2 ** (8 * struct.calcsize(form)) - 1
        struct.pack_into(form, out, at, min(rng.choice((*LIES, rng.randrange(2**16))), top))
    return bytes(out)


_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = dict(
    zip(KINDS, (_flip_bits, _overwrite, _truncate, _cut_out, _repeat, _swap_parts, _splice, _header_lie), strict=True)
)


def _parts(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the chunks, segments or boxes that a file is made of; blocks of 16 bytes where it has none."""
    if data[:4] == b"\x89PNG":
        starts, at = [], 8
        while at + 8 <= len(data):
            starts.append(at)
            at += 12 + struct.unpack_from(">I", data, at)[0]
    elif data[:2] == b"\xff\xd8":
        starts = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    elif data[:4] == b"RIFF":
        starts, at = [], 12
        while at + 8 <= len(data):
            starts.append(at)
            at += 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2
    elif data[4:8] == b"ftyp":
        words = b"ftyp meta hdlr pitm iloc iinf infe iprp ipco ispe pixi av1C colr ipma mdat moov trak".split()
        starts = sorted(at - 4 for at in range(4, len(data)) if data[at : at + 4] in words)
    else:
        starts = list(range(0, len(data), 16))
    return list(zip(starts, [*starts[1:], len(data)], strict=True))


def _numbers(data: bytes) -> list[tuple[int, str]]:
    """(offset, struct form) of the numbers in a file's header."""
    if data[:4] == b"\x89PNG":
        return [(16, ">I"), (20, ">I"), (24, "B"), (25, "B"), (28, "B"), *((start, ">I") for start, _ in _parts(data))]
    if data[:2] == b"\xff\xd8":
        places = [(start + 2, ">H") for start, _ in _parts(data)[1:-1]]
        for start, _ in _parts(data):
            if data[start + 1] in (0xC0, 0xC2):
                places += [(start + 5, ">H"), (start + 7, ">H"), (start + 4, "B"), (start + 9, "B")] * 3
        return places
    if data[:4] == b"RIFF":
        return [(4, "<I"), *((start + 4, "<I") for start, _ in _parts(data)), (20, "B"), (24, "<H"), (26, "<H")] + [
            (27, "<H"),
            (28, "<H"),
        ]
    if data[:3] == b"GIF":
        image = data.index(b",", 13)
        return [(6, "<H"), (8, "<H"), (10, "B"), *((image + at, "<H") for at in (1, 3, 5, 7)), (image + 9, "B")]
    if data[:2] == b"BM":
        return [
            (2, "<I"),
            (10, "<I"),
            (14, "<I"),
            (18, "<I"),
            (22, "<I"),
            (26, "<H"),
            (28, "<H"),
            (30, "<I"),
            (46, "<I"),
        ]
    if data[:2] in (b"II", b"MM"):
        end = "<" if data[:2] == b"II" else ">"
        at = struct.unpack_from(end + "I", data, 4)[0]
        entries = [at + 2 + 12 * number for number in range(struct.unpack_from(end + "H", data, at)[0])]
        forms = ((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"))
        return [(4, end + "I"), (at, end + "H")] + [(entry + by, end + form) for entry in entries for by, form in forms]
    sides = [at + by for at in range(len(data)) if data[at : at + 4] == b"ispe" for by in (8, 12)]
    return [(side, ">I") for side in sides] * 3 + [(start, ">I") for start, _ in _parts(data)]


def _with_right_crcs(data: bytes) -> bytes:
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = struct.unpack_from(">I", out, at)[0]
        if at + 12 + length > len(out):
            break
        struct.pack_into(">I", out, at + 8 + length, zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)
