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

    def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
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
        lengths = [(4, "<I"), *((start + 4, "<I") for start, _ in _parts(data))]
        return [*lengths, (20, "B"), (24, "<H"), (26, "<H"), (27, "<H"), (28, "<H")]
    if data[:3] == b"GIF":
        image = data.index(b",", 13)
        return [(6, "<H"), (8, "<H"), (10, "B"), *((image + at, "<H") for at in (1, 3, 5, 7)), (image + 9, "B")]
    if data[:2] == b"BM":
        return [(at, "<I") for at in (2, 10, 14, 18, 22, 30, 46)] + [(26, "<H"), (28, "<H")]
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


def bombs() -> dict[str, bytes]:
    """Name -> a file of a few MiB at most that would cost a plain decoder much memory or many seconds."""
    png, jpeg, gif, avif = (pictures()[name] for name in ("png gray", "jpeg progressive", "gif", "avif"))
    start, screen = png.index(b"IDAT") - 4, 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    zeros, huge = zlib.compress(bytes(50 * 10**6), 9), 2**16 - 1
    pixel = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"  # one more frame of a GIF

    def png_with(*extra: bytes) -> bytes:
        return png[:start] + b"".join(extra) + png[start:]

    def png_of(width: int, height: int) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return png[:8] + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zeros) + png_chunk(b"IEND", b"")

    def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
        return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]

    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    sides = jpeg.index(b"\xff\xc2") + 5
    flood = struct.pack("<I", 8) * 600_000
    tile = ((322, 4, 1, 2**16), (323, 4, 1, 2**14), (324, 4, 1, 8), (325, 4, 1, 100))
    one_strip = ((273, 4, 1, 8), (278, 4, 1, 40), (279, 4, 1, 1600))
    rational = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 5, 400_000, 26, 0) + bytes(8 * 400_000)
    pages = tiff_directory(*one_strip)
    chain = bytearray(pages[:-4] + struct.pack("<I", len(pages)))
    for number in range(1, 2_000):
        chain += struct.pack("<HHHIII", 1, 256, 4, 1, 40, len(pages) + 18 * number)
    return {
        "png 144 Mpx": png_of(12_000, 12_000),
        "png 400 Mpx": png_of(20_000, 20_000),
        "png side": png_of(20_001, 200),
        "png ribbon": png_of(19_000, 10),
        "png zTXt": png_with(png_chunk(b"zTXt", b"k\0\0" + zeros)),
        "png iTXt": png_with(png_chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "png iCCP": png_with(png_chunk(b"iCCP", b"k\0\0" + zeros)),
        "png many zTXt": png_with(*[png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6), 9))] * 100),
        "png empty chunks": png_with(png_chunk(b"abCd", b"") * 500_000),
        "png EXIF": png_with(png_chunk(b"eXIf", rational)),
        "jpeg 4 Gpx": patched(jpeg, sides, ">HH", huge, huge),
        "jpeg scans": patched(jpeg, sides, ">HH", 8_000, 8_000)[:-2] + scan * 500 + b"\xff\xd9",
        "jpeg comments": jpeg[:2] + b"\xff\xfe\0\2" * 500_000 + jpeg[2:],
        "jpeg EXIF": jpeg[:2] + (b"\xff\xe1\0\x0cExif\0\0abcd" * 40) + jpeg[2:],
        "gif screen": patched(gif, 6, "<HH", huge, huge),
        "gif frame": patched(gif, gif.index(b",", screen) + 1, "<HHHH", 0, 0, huge, huge),
        "gif frames": gif[:-1] + pixel * 600 + b";",
        "gif many frames": gif[:-1] + pixel * 300_000 + b";",
        "gif comments": gif[:screen] + b"!\xfe\1x\0" * 500_000 + gif[screen:],
        "webp canvas": patched(pictures()["webp"], 24, "<HHHH", huge, 0x3FFF, 0x3FFF, 0x3F),
        "tiff strips": tiff_directory((273, 4, 600_000, flood), (278, 4, 1, 1), (279, 4, 1, 1600)),
        "tiff tiles": tiff_directory((322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 600_000, flood)),
        "tiff large tile": tiff_directory(*tile, compression=5),
        "tiff pages": bytes(chain),
        "tiff 3 Gpx": tiff_directory(*one_strip, side=huge),
        "avif 1 Gpx": patched(avif, avif.index(b"ispe") + 8, ">II", 2**15, 2**15),
    }


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_directory(*extra: tuple[int, int, int, int | bytes], side: int = 40, compression: int = 1) -> bytes:
    """A gray TIFF of one directory, which ends the file: entries (tag, type, count, value or the values' bytes)."""
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), *extra]
    values, packed = bytes(8 + 1600), b""  # the values come before the directory, the first of them 40 x 40 pixels
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        place = len(values) if isinstance(value, bytes) else value
        values += value if isinstance(value, bytes) else b""
        packed += struct.pack("<HHII", tag, kind, count, place)
    head = b"II*\0" + struct.pack("<I", len(values))
    return head + values[8:] + struct.pack("<H", len(entries)) + packed + bytes(4)
