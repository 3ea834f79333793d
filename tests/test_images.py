"""The one image loader, held to its contract: formats, modes, orientation, limits, sources, errors."""

from __future__ import annotations

import base64
import colorsys
import http.server
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms, ImageFile

from mmembed import images
from mmembed.errors import ImageError
from mmembed.images import FORMATS, Image, ImageInfo, measure, open_image

from .mutations import bombs, gradient, mutated, pictures, png_chunk

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # PIL, of damaged files
RGB = gradient()
GRAY = RGB[:, :, 0]
ALPHA = RGB[:, :, 1]


def saved(picture: PilImage.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    part = alpha[:, :, None] / 255
    return np.rint(colour * part + 255 * (1 - part))


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def refused(source) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    return str(caught.value)


# ---- formats and modes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data"), pictures().items(), ids=list(pictures()))
def test_every_format_becomes_rgb_of_its_own_memory(name, data):
    rgb, info = open_image(data)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (info.size[1], info.size[0], 3)
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable
    assert info.format == ("PNG" if name == "apng" else name.split()[0].upper())
    assert info.format in FORMATS
    assert info.frames == (3 if "animated" in name or "pages" in name or name == "apng" else 1)


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("PNG", {}, 0),
        ("GIF", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 4),
    ],
)
def test_pixels_survive_each_format(kind, options, error):
    few = RGB // 128 * 128  # few enough colours for a GIF
    rgb, info = open_image(saved(PilImage.fromarray(few), kind, **options))
    assert info.format == kind
    assert np.abs(rgb.astype(int) - few).max() <= error


def modes() -> dict[str, tuple[object, np.ndarray]]:
    """Name -> (source, its golden RGB, computed from the mode's definition without PIL's conversions)."""
    colour, gray = PilImage.fromarray(RGB), PilImage.fromarray(GRAY)
    alpha = PilImage.fromarray(ALPHA)
    rgba, la = colour.copy(), gray.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    black = PilImage.new("RGB", colour.size)
    black.putalpha(alpha)

    index = (np.arange(RGB.shape[1])[None, :] // 4 + np.arange(RGB.shape[0])[:, None] // 4) % 8
    table = np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)
    clear = np.array([0, 255, 128, 40, 200, 255, 255, 10])
    indexed = PilImage.fromarray(index.astype(np.uint8))
    indexed.putpalette(table.tobytes())
    palette_alpha = indexed.convert("PA")
    palette_alpha.putalpha(alpha)
    one_clear = np.where(np.arange(8) == 2, 0, 255)

    bits = GRAY > 100
    deep = (GRAY.astype(np.uint16) << 8) | ALPHA
    cmyk = np.dstack([RGB, ALPHA // 2])
    inks = PilImage.frombytes("CMYK", colour.size, cmyk.tobytes())
    from_inks = (255 - cmyk[:, :, :3].astype(float)) * (255 - cmyk[:, :, 3:]) / 255
    flat_inks = np.broadcast_to(np.array([200, 30, 60, 90], np.uint8), (*GRAY.shape, 4))
    flat = PilImage.frombytes("CMYK", colour.size, flat_inks.tobytes())
    from_flat = (255 - flat_inks[:, :, :3].astype(float)) * (255 - flat_inks[:, :, 3:]) / 255

    y, cb, cr = (RGB[:, :, channel].astype(float) for channel in (0, 1, 2))
    jfif = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    hsv = np.array([[colorsys.hsv_to_rgb(*(pixel / 255)) for pixel in row] for row in RGB]) * 255
    lightness = PilImage.frombytes("LAB", colour.size, np.dstack([GRAY, GRAY * 0, GRAY * 0]).tobytes())
    star = (GRAY / 255 * 100 + 16) / 116
    linear = np.where(star > 6 / 29, star**3, 3 * (6 / 29) ** 2 * (star - 4 / 29))
    shade = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    premultiplied = np.dstack([RGB // 2, np.full_like(GRAY, 128)])

    scanlines = b"".join(b"\0" + (RGB[row].astype(">u2") * 257).tobytes() for row in range(RGB.shape[0]))
    head = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(scanlines))
    key = tuple(int(value) for value in RGB[5, 5])
    is_key = (key == RGB).all(axis=2)
    return {
        "1 png": (saved(PilImage.fromarray(bits), "PNG"), three(bits * 255)),
        "1 tiff fax": (saved(PilImage.fromarray(bits), "TIFF", compression="group4"), three(bits * 255)),
        "L": (saved(gray, "PNG"), three(GRAY)),
        "LA": (saved(la, "PNG"), on_white(three(GRAY), ALPHA)),
        "La": (la.convert("La"), on_white(three(GRAY), ALPHA)),
        "RGBA": (saved(rgba, "PNG"), on_white(RGB, ALPHA)),
        "RGBA webp": (saved(rgba, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA)),
        "RGBA tiff": (saved(rgba, "TIFF"), on_white(RGB, ALPHA)),
        "RGBa": (PilImage.frombytes("RGBa", colour.size, premultiplied.tobytes()), RGB // 2 + 127.0),
        "black logo on nothing": (saved(black, "PNG"), on_white(RGB * 0, ALPHA)),
        "RGBX": (PilImage.frombytes("RGBX", colour.size, np.dstack([RGB, ALPHA]).tobytes()), RGB),
        "RGB with one clear colour": (saved(colour, "PNG", transparency=key), np.where(is_key[..., None], 255, RGB)),
        "RGB of 16 bits": (png + png_chunk(b"IEND", b""), RGB),
        "P": (saved(indexed, "PNG"), table[index]),
        "P gif": (saved(indexed, "GIF"), table[index]),
        "P bmp": (saved(indexed, "BMP"), table[index]),
        "P with alpha": (
            saved(indexed, "PNG", transparency=bytes(clear.tolist())),
            on_white(table[index], clear[index]),
        ),
        "P with one clear colour": (saved(indexed, "GIF", transparency=2), on_white(table[index], one_clear[index])),
        "PA": (palette_alpha, on_white(table[index], ALPHA)),
        "CMYK tiff": (saved(inks, "TIFF"), from_inks),
        "CMYK jpeg of Adobe": (saved(flat, "JPEG", quality=100), from_flat),
        "YCbCr": (PilImage.frombytes("YCbCr", colour.size, RGB.tobytes()), np.clip(np.dstack(jfif), 0, 255)),
        "HSV": (PilImage.frombytes("HSV", colour.size, RGB.tobytes()), hsv),
        "LAB tiff": (saved(lightness, "TIFF"), three(shade)),
        "I;16 png": (saved(PilImage.fromarray(deep), "PNG"), three(deep / 257)),
        "I;16 with one clear value": (
            saved(PilImage.fromarray(deep), "PNG", transparency=int(deep[5, 5])),
            np.where((deep == deep[5, 5])[..., None], 255, three(deep / 257)),
        ),
        "I;16 tiff": (saved(PilImage.fromarray(deep), "TIFF", compression="tiff_lzw"), three(deep / 257)),
        "I;16B tiff": (
            saved(PilImage.frombytes("I;16B", gray.size, deep.astype(">u2").tobytes()), "TIFF"),
            three(deep / 257),
        ),
        "I tiff": (saved(PilImage.fromarray(deep.astype(np.int32)), "TIFF"), three(deep / 257)),
        "F tiff": (saved(PilImage.fromarray(deep / np.float32(65535)), "TIFF"), three(deep / 257)),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_has_the_rgb_of_its_definition(name):
    source, golden = modes()[name]
    rgb = open_image(source)[0]
    assert np.abs(rgb - np.rint(golden)).max() <= 1


def test_the_mode_named_is_the_mode_of_the_file():
    expected = {"I;16 png": "I;16", "I;16B tiff": "I;16B", "P gif": "P", "LA": "LA", "F tiff": "F", "CMYK tiff": "CMYK"}
    assert {name: open_image(modes()[name][0])[1].mode for name in expected} == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [PilImage.fromarray(np.roll(RGB // 128 * 128, 9 * step, axis=1)) for step in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    rgb, info = open_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert info.frames == 4
    assert np.array_equal(rgb, np.asarray(frames[0]))


def test_a_phone_picture_of_several_frames_is_a_jpeg():
    colour = PilImage.fromarray(RGB)
    info = open_image(saved(colour, "MPO", save_all=True, append_images=[colour]))[1]
    assert (info.format, info.frames) == ("JPEG", 2)


@pytest.mark.parametrize(
    ("array", "range_found"),
    [
        (np.array([[0, 70_000]], np.int32), "0 to 70000"),
        (np.array([[-1, 5]], np.int32), "-1 to 5"),
        (np.array([[0, 255]], np.float32), "0 to 255"),
        (np.array([[0, np.nan]], np.float32), "nan"),
        (np.array([[0, np.inf]], np.float32), "inf"),
    ],
)
def test_deep_pixels_out_of_their_range_are_an_error_that_names_it(array, range_found):
    assert range_found in refused(saved(PilImage.fromarray(array), "TIFF"))


def test_an_icc_profile_is_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"s\0R\0G\0B", b"x\0R\0G\0B")  # a description that promises nothing
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    for picture in (PilImage.fromarray(RGB), PilImage.fromarray(np.dstack([RGB, np.full_like(GRAY, 255)]))):
        rgb = open_image(saved(picture, "PNG", icc_profile=swapped))[0]
        assert np.abs(rgb - RGB[:, :, [1, 0, 2]].astype(int)).max() <= 2
        same = open_image(saved(picture, "PNG", icc_profile=profile))[0]
        assert np.abs(same - RGB.astype(int)).max() <= 1


def test_an_icc_profile_that_cannot_be_read_or_does_not_fit_counts_as_absent():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    broken = profile[:128] + bytes(len(profile) - 128)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for useless in (b"no profile", broken, lab):
        assert np.array_equal(open_image(saved(PilImage.fromarray(RGB), "PNG", icc_profile=useless))[0], RGB)


# ---- orientation ----------------------------------------------------------------------------------------------------

_STORED = {  # how a camera stores an upright picture under each orientation
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_all_eight_orientations_come_out_upright_by_every_route(kind, orientation, tmp_path):
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    stored = PilImage.fromarray(np.ascontiguousarray(_STORED[orientation](RGB)))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
    data = saved(stored, kind, exif=exif, **options.get(kind, {}))
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data)

    rgb, info = open_image(data)
    assert info.orientation == orientation
    assert info.size == (RGB.shape[1], RGB.shape[0])
    assert np.abs(rgb.astype(int) - RGB).max() <= (0 if kind in ("PNG", "WEBP", "TIFF") else 4)
    loaded = PilImage.open(io.BytesIO(data))
    loaded.load()
    for source in (path, str(path), data_uri(data, kind.lower()), PilImage.open(path), loaded, bytearray(data)):
        assert np.array_equal(open_image(source)[0], rgb)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_counts_as_absent(exif):
    assert open_image(saved(PilImage.fromarray(RGB), "PNG", exif=exif))[1].orientation == 1


def test_an_orientation_that_does_not_exist_counts_as_absent():
    exif = PilImage.Exif()
    exif[0x0112] = 9
    rgb, info = open_image(saved(PilImage.fromarray(RGB), "PNG", exif=exif))
    assert info.orientation == 1
    assert np.array_equal(rgb, RGB)


# ---- damage and bombs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"])
def test_a_truncated_picture_is_an_error(name):
    data = pictures()[name]
    for part in (0.2, 0.5, 0.8):
        assert "bytes: " in refused(data[: int(part * len(data))])


@pytest.mark.parametrize("name", pictures())
def test_what_is_cut_off_anywhere_is_an_error_or_has_every_pixel(name):
    data = pictures()[name]
    whole = open_image(data)[0]
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            rgb = open_image(data[:length])[0]
        except ImageError:
            continue
        assert np.array_equal(rgb, whole)


def png_parts(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind of each part of a PNG, and where what its checksum is of begins and ends."""
    found, at = [], 8
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], at + 4, end))
        at = end + 4
    return found


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@pytest.mark.parametrize("name", [name for name in pictures() if "png" in name])
def test_a_png_with_a_wrong_checksum_is_an_error(name):
    data = pictures()[name]
    for kind, begin, end in png_parts(data):
        for at in (begin + 4 + (end - begin - 4) // 3, end + 3):  # inside of it, and its checksum
            assert refused(changed(data, at)), kind


def test_a_damaged_png_says_where():
    data = pictures()["png"]
    begin, end = next(part[1:] for part in png_parts(data) if part[0] == b"IDAT")
    assert f"the checksum of its part b'IDAT' at byte {begin - 4} is wrong" in refused(
        changed(data, (begin + end) // 2)
    )
    assert np.array_equal(open_image(data + b"IDAT of another")[0], open_image(data)[0])
    longer = data[: begin - 4] + (end - begin + 1000).to_bytes(4) + data[begin:]
    assert "truncated inside its pixels" in refused(longer)


def test_a_png_of_countless_parts_is_refused(monkeypatch):
    data = pictures()["png"]
    begin = next(part[1] for part in png_parts(data) if part[0] == b"IEND") - 4
    monkeypatch.setattr(images, "MAX_READS", 500)
    assert "more than 500 parts" in refused(data[:begin] + png_chunk(b"tEXt", b"a\0b") * 600 + data[begin:])


@pytest.mark.parametrize("name", ["png", "apng"])
def test_a_damaged_png_that_pil_has_opened_is_an_error_too(name, tmp_path):
    data = pictures()[name]
    begin, end = next(part[1:] for part in png_parts(data) if part[0] == b"IDAT")
    damaged = changed(data, (begin + end) // 2)
    (tmp_path / "x.png").write_bytes(damaged)
    for file in (tmp_path / "x.png", io.BytesIO(damaged)):
        assert "checksum" in refused(PilImage.open(file))
    picture = PilImage.open(io.BytesIO(data))
    assert np.array_equal(open_image(picture)[0], open_image(data)[0])
    assert np.array_equal(open_image(picture)[0], open_image(data)[0])
    if name == "apng":
        picture.seek(1)
        assert np.array_equal(open_image(picture)[0], np.roll(RGB, 9, axis=1))


def test_truncation_is_an_error_even_where_another_package_allows_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = pictures()["jpeg"]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: refused(data[:-200]), range(40)))
    assert all("truncated" in outcome for outcome in outcomes)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_four_hundred_damaged_pictures_are_pixels_or_image_errors():
    decoded, errors = 0, []
    for index in range(400):
        name, kind, data = mutated(index, seed=7)
        begun = time.process_time()
        try:
            rgb, info = open_image(data)
            assert rgb.dtype == np.uint8
            assert rgb.shape == (info.size[1], info.size[0], 3)
            decoded += 1
        except ImageError as error:
            errors.append(str(error))
        assert time.process_time() - begun < 5, (index, name, kind)
    assert min(decoded, len(errors)) > 50
    assert not [error for error in errors if re.search(r"\b0x[0-9a-f]{6}", error)]


_DECODE_ALL = """
import resource, sys, time, warnings
from pathlib import Path
from mmembed.errors import ImageError
from mmembed.images import open_image
warnings.simplefilter("ignore")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for path in Path(sys.argv[1]).iterdir():
    open_image(path)
before = peak()
for path in sorted(Path(sys.argv[2]).iterdir()):
    begun = time.process_time()
    try:
        open_image(path)
        print(path.name, "was decoded")
    except ImageError:
        if time.process_time() - begun > 3:
            print(path.name, "took", time.process_time() - begun)
if peak() - before > 64:
    print("memory grew by", peak() - before)
"""


def test_bombs_are_refused_in_little_time_and_memory(tmp_path):
    for folder, files in (("good", pictures()), ("bad", bombs())):
        (tmp_path / folder).mkdir()
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
    command = [sys.executable, "-c", _DECODE_ALL, str(tmp_path / "good"), str(tmp_path / "bad")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("png 144 Mpx", "12000x12000 pixels are over 64 million"),
        ("png side", "20001x200 pixels: no side may be over 20000"),
        ("png ribbon", "19000x10 pixels are longer than 200:1"),
        ("jpeg scans", "scans of 8000x8000"),
        ("gif frames", "more than 512 frames"),
        ("tiff pages", "more than 512 frames"),
        ("tiff strips", "values, more than 500000"),
    ],
)
def test_a_limit_is_named_where_it_is_passed(name, reason):
    assert reason in refused(bombs()[name])


def _png(data: bytearray, width: int, height: int) -> None:
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))


def _lossy(data: bytearray, width: int, height: int) -> None:
    data[12:] = b"VP8 \x12\0\0\0\x30\1\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(8)


RESIZED = {  # a picture of `pictures()`, and what writes another size into its header
    "png": _png,
    "jpeg": lambda data, w, h: struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, h, w),
    "jpeg progressive": lambda data, w, h: struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, h, w),
    "gif": lambda data, w, h: struct.pack_into("<HH", data, 6, w, h),
    "gif animated": lambda data, w, h: struct.pack_into("<HH", data, data.index(b"\0,\0\0\0\0") + 6, w, h),
    "bmp": lambda data, w, h: struct.pack_into("<ii", data, 18, w, h),
    "webp": lambda data, w, h: data.__setitem__(
        slice(24, 30), struct.pack("<II", w - 1, h - 1).replace(b"\0\0", b"\0")
    ),
    "webp lossless alpha": lambda data, w, h: struct.pack_into("<I", data, 21, w - 1 | (h - 1) << 14),
    "webp lossy": _lossy,
    "tiff": lambda data, w, h: data.__setitem__(slice(18, 34), struct.pack("<IHHII", w, 257, 4, 1, h)),
}


@pytest.mark.parametrize("side", [9_000, 10_000, 16_000])
@pytest.mark.parametrize("name", RESIZED)
@pytest.mark.parametrize("read", [open_image, lambda data: measure(Image(data))], ids=["open", "measure"])
def test_too_many_pixels_are_told_by_our_limit_and_without_a_warning(read, name, side):
    """PIL's own limits lie at 89 megapixels, for a warning, and at 179."""
    data = bytearray(pictures()[name.replace(" lossy", "")])
    RESIZED[name](data, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=f": {side}x{side} pixels are over 64 million$"):
            read(bytes(data))


def test_a_frame_that_its_gif_hides_from_us_is_refused_too():
    """PIL reads on behind an empty extension where others end it."""
    gif, huge = pictures()["gif"], struct.pack("<HHHH", 0, 0, 20_000, 20_000)
    start = 13 + (3 << (gif[10] & 7) + 1)
    frame = b"," + struct.pack("<HHHH", 0, 0, 4, 4) + b"\0\2\0"
    hidden = gif[:start] + b"!\1\0" + bytes([len(frame)]) + frame + b"\0," + huge + b"\0\2\2\x44\1\0;"
    assert "over 64 million" in refused(hidden)


def test_the_limits_hold_where_another_package_lifts_those_of_pil(monkeypatch):
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", None)
    assert "20000x20000 pixels are over 64 million" in refused(bombs()["png 400 Mpx"])


@pytest.mark.parametrize(
    "content",
    [
        b"SIMPLE  =                    T / FITS".ljust(2880),
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"<!doctype html><title>Not found</title>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        b"PK\3\4" + bytes(60),
        b"8BPS\0\1" + bytes(60),
        b"\0\0\1\0\1\0" + bytes(60),
        b"P6 2 2 255 " + bytes(12),
        bytes(100),
    ],
    ids=["fits", "svg", "html", "eps", "pdf", "zip", "psd", "ico", "ppm", "zeros"],
)
def test_what_only_the_name_calls_a_picture_is_refused(content, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    message = refused(path)
    assert "picture.png" in message
    assert "none of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF" in message


def test_the_name_does_not_matter_where_the_content_is_right(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(pictures()["png"])
    assert open_image(path)[1].format == "PNG"


def test_one_pixel_is_a_picture():
    assert open_image(saved(PilImage.new("RGB", (1, 1), "red"), "PNG"))[0].tolist() == [[[255, 0, 0]]]


def test_bytes_over_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(pictures()["png"])
    for source in (path, pictures()["png"], data_uri(pictures()["png"])):
        assert "bytes are over the limit of 100" in refused(source)


# ---- sources --------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named():
    message = refused("nowhere/cat.png")
    assert "nowhere/cat.png" in message
    assert "No such file" in message


def test_a_directory_is_no_picture(tmp_path):
    folder = tmp_path / "album.jpg"
    folder.mkdir()
    assert "album.jpg': cannot be read: it is a directory" in refused(folder)


def test_an_empty_path_is_no_directory():
    assert "the path is empty" in refused("")


def test_an_empty_file_is_no_picture(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty.png': it is empty" in refused(tmp_path / "empty.png")
    assert "it is empty" in refused(b"")


def test_a_dangling_link_says_where_it_points(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    message = refused(tmp_path / "link.png")
    assert "a link to nothing" in message
    assert "gone.png" in message


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")
    assert "not a regular file" in refused("/dev/zero")


def test_a_file_without_permission_says_so(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(pictures()["png"])
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # who may read everything
        os.seteuid(65534)
    try:
        message = refused(path)
    finally:
        if root:
            os.seteuid(0)
    assert "Permission denied" in message
    assert "secret.png" in message


@pytest.mark.parametrize(
    "name",
    [
        "猫 in 雪.png",
        "قط.png",
        "new\nline.png",
        " leading space",
        "-rf",
        "%2e%2e.png",
        "a" * 250,
        "q?x=1#y.png",
        "\u202egnp.exe",
    ],
)
def test_odd_file_names_are_read_and_their_messages_stay_on_one_line(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pictures()["png"])
    assert open_image(path)[1].format == "PNG"
    assert open_image(str(path))[1].format == "PNG"
    path.write_bytes(b"nothing")
    message = refused(path)
    assert message.isprintable()
    assert len(message) < 600


def test_a_name_of_no_unicode_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(path)).write_bytes(pictures()["png"])
    assert open_image(os.fsdecode(path))[1].format == "PNG"


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 300 + ".png", "x/" * 3000])
def test_impossible_paths_are_image_errors(name):
    assert refused(name)


@pytest.mark.parametrize(
    "uri",
    [
        data_uri(pictures()["png"]),
        data_uri(pictures()["png"], "jpeg"),
        data_uri(pictures()["png"]).replace("data:image/png", "DATA:Image/PNG"),
        data_uri(pictures()["png"]).replace(";base64", ";name=a.png;base64"),
        data_uri(pictures()["png"]).rstrip("="),
        data_uri(pictures()["png"])[:60] + "\n  " + data_uri(pictures()["png"])[60:],
        "data:image/png;base64," + quote(base64.b64encode(pictures()["png"]).decode(), safe=""),
    ],
    ids=["plain", "wrong format", "upper case", "parameter", "no padding", "line breaks", "percent"],
)
def test_data_uris_are_read(uri):
    assert np.array_equal(open_image(uri)[0], open_image(pictures()["png"])[0])


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png",
        "data:image/png,abc",
        "data:text/html;base64,aGk=",
        "data:;base64,aGk=",
        "data:image/png;base64,",
        "data:image/png;base64,a",
        "data:image/png;base64,!!!!",
        "data:image/svg+xml;base64,PHN2Zy8+",
    ],
)
def test_data_uris_of_no_picture_are_refused(uri):
    assert "data URI" in refused(uri)


def test_arrays_become_rgb():
    assert np.array_equal(open_image(RGB)[0], RGB)
    assert np.array_equal(open_image(GRAY)[0], three(GRAY))
    assert np.array_equal(open_image(GRAY[:, :, None])[0], three(GRAY))
    assert np.array_equal(open_image(RGB.astype(np.uint16) * 257)[0], RGB)
    assert np.array_equal(open_image(RGB.astype(">u2") * 257)[0], RGB)
    for kind in (np.float16, np.float32, np.float64):
        assert np.array_equal(open_image((RGB / 255).astype(kind))[0], RGB)
    rgba = open_image(np.dstack([RGB, ALPHA]))[0]
    assert np.abs(rgba - on_white(RGB, ALPHA)).max() <= 1
    assert np.array_equal(open_image(RGB[::-1, ::2])[0], RGB[::-1, ::2])
    assert open_image(RGB)[1] == ImageInfo(None, "uint8", (RGB.shape[1], RGB.shape[0]))


def test_what_is_loaded_shares_no_memory_with_the_source():
    mine = RGB.copy()
    Image(mine).load()[:] = 0
    assert np.array_equal(mine, RGB)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(5, np.uint8), "(H, W)"),
        (np.zeros((2, 2, 2), np.uint8), "(H, W, 1 | 3 | 4)"),
        (np.zeros((3, 40, 40), np.uint8), "channels last"),
        (np.zeros((2, 2, 2, 3), np.uint8), "(H, W)"),
        (np.zeros((2, 2), np.int64), "uint8, uint16 (0..65535) or float (0..1)"),
        (np.zeros((2, 2), bool), "uint8, uint16"),
        (np.zeros((0, 2), np.uint8), "no pixels"),
        (np.zeros((1, 201), np.uint8), "200:1"),
        (np.full((2, 2), 2.0), "from 2 to 2"),
        (np.full((2, 2), np.nan), "nan"),
    ],
)
def test_other_arrays_are_refused(array, reason):
    message = refused(array)
    assert reason in message
    assert f"array {array.dtype} {array.shape}" in message


def test_reading_a_pil_image_leaves_it_as_it_was():
    picture = PilImage.open(io.BytesIO(pictures()["gif animated"]))
    picture.seek(1)
    second = np.asarray(picture.convert("RGB"))
    rgb, info = open_image(picture)
    assert np.array_equal(rgb, second)
    assert info.frames == 1
    assert picture.tell() == 1


def test_a_closed_pil_image_is_an_image_error():
    picture = PilImage.open(io.BytesIO(pictures()["png"]))
    picture.close()
    assert "PIL image RGB 40x28: it was closed before its pixels were read" in refused(picture)


# ---- the class ------------------------------------------------------------------------------------------------------


def test_only_the_type_is_checked_before_loading():
    picture = Image("nowhere.png")
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        picture.load()


@pytest.mark.parametrize("source", [None, 5, 1.5, ["a.png"], {"path": "a.png"}, io.BytesIO(b"x")])
def test_another_type_is_refused_at_once(source):
    with pytest.raises(ImageError, match=f"not {type(source).__name__}"):
        Image(source)


def test_a_masked_array_is_refused_with_what_to_do():
    with pytest.raises(ImageError, match=r"would lose its mask: .*filled\(255\)"):
        Image(np.ma.masked_less(RGB, 9))
    assert Image(np.ma.masked_less(RGB, 9).filled(255)).load().min() >= 9


def test_a_picture_as_it_is_now_is_no_other_later():
    picture = PilImage.open(io.BytesIO(pictures()["gif animated"]))
    sources = (RGB.copy(), (RGB / 255), PilImage.fromarray(RGB), picture, bytearray(pictures()["png"]))
    for source in sources:
        own = Image(source, draft=3)
        due = own.load()
        kept = own.as_now()
        assert kept.draft == 3
        if isinstance(source, np.ndarray):
            source[:] = 0
        elif isinstance(source, bytearray):
            source[:] = bytes(len(source))
        elif source is picture:
            source.seek(1)
        else:
            source.paste("red", (0, 0, 40, 28))
        assert np.array_equal(kept.load(), due)
    for source in (pictures()["png"], "x.png", Path("x.png")):
        own = Image(source)
        assert own.as_now() is own


def test_an_image_can_be_a_key_and_cannot_be_changed():
    first, second = Image(RGB), Image(RGB)
    assert len({first, second, first}) == 2
    with pytest.raises(AttributeError):
        first.source = GRAY


def test_an_image_is_described_in_few_words():
    assert repr(Image(bytes(10**6))) == "Image(1000000 bytes)"
    assert repr(Image(memoryview(bytes(8)).cast("I"))) == "Image(8 bytes)"
    assert repr(Image(RGB)) == "Image(array uint8 (28, 40, 3))"
    assert repr(Image(PilImage.fromarray(RGB))) == "Image(PIL image RGB 40x28)"
    assert repr(Image(Path("a/b.png"))) == "Image('a/b.png')"
    assert len(repr(Image(data_uri(bytes(10**5))))) < 100
    assert repr(Image("https://me:secret@example.org/a.png?key=secret")) == "Image('https://example.org/a.png')"


# ---- URLs -----------------------------------------------------------------------------------------------------------


class _Site(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self):
        self.server.asked.append(self.path)
        what = self.path.strip("/").partition("?")[0]
        if what == "away":
            self.send_response(302)
            self.send_header("Location", "/picture")
        elif what == "file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
        else:
            self.send_response(404 if what == "missing" else 200)
        length = {"declared": images.MAX_BYTES + 1, "broken": 10_000, "picture": len(pictures()["png"])}.get(what)
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if what in ("picture", "broken"):
                self.wfile.write(pictures()["png"])
            elif what == "page":
                self.wfile.write(b"<html>hello</html>")
            elif what == "endless":
                for _ in range(40):
                    self.wfile.write(bytes(2**20))
            elif what == "slow":
                for _ in range(40):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reader has seen enough

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    yield server
    server.shutdown()
    server.server_close()


def test_a_url_is_not_fetched_by_default(site):
    for form in (site.url + "picture", site.url.replace("http", "HTTP") + "picture"):
        assert "allow_url=True" in refused(form)
        with pytest.raises(ImageError, match="allow_url=True"):
            Image(form).load()
    assert site.asked == []


def test_an_allowed_url_is_fetched(site):
    for page in ("picture", "away"):
        assert np.array_equal(Image(site.url + page, allow_url=True).load(), open_image(pictures()["png"])[0])


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("declared", "bytes are over the limit"),
        ("endless", "bytes are over the limit"),
        ("missing", "404"),
        ("page", "none of JPEG"),
        ("broken", "broke off"),
        ("file", "cannot be fetched"),
    ],
)
def test_an_answer_that_is_no_whole_picture_is_refused(site, page, reason):
    message = refused(Image(f"{site.url}{page}?key=secret", allow_url=True))
    assert reason in message
    assert f"{site.url}{page}" in message
    assert "secret" not in message


def test_an_answer_that_drips_is_given_up(site, monkeypatch):
    monkeypatch.setattr(images, "URL_SECONDS", 0.4)
    begun = time.monotonic()
    assert "took more than" in refused(Image(site.url + "slow", allow_url=True))
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a.png", "file:///etc/hostname", "gopher://x/a", "s3://bucket/a.png"])
def test_other_schemes_are_never_fetched(url):
    for form in (url, Image(url, allow_url=True)):
        assert "only http and https" in refused(form)
        assert ("goes by its path" in refused(form)) is url.startswith("file:")


def test_a_host_that_does_not_answer_is_an_image_error(site):
    url = site.url
    site.shutdown()
    site.server_close()
    assert "cannot be fetched" in refused(Image(url + "picture", allow_url=True))


SIZES = [(None, (401, 300)), (151, (401, 300)), (150, (201, 150)), (75, (101, 75)), (1, (51, 38))]


@pytest.mark.parametrize(("draft", "size"), SIZES)
def test_a_draft_of_a_jpeg_is_smaller_and_never_smaller_than_asked(draft, size):
    smooth = PilImage.linear_gradient("L").resize((401, 300)).convert("RGB")
    data = saved(smooth, "JPEG", quality=95)
    rgb, info = open_image(Image(data, draft=draft))
    assert info.size == (rgb.shape[1], rgb.shape[0]) == size
    whole = np.asarray(PilImage.fromarray(open_image(data)[0]).resize(size, PilImage.Resampling.BOX))
    assert np.abs(rgb.astype(int) - whole).max() < 6
    if draft is not None:
        turned = saved(smooth, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
        assert open_image(Image(turned, draft=draft))[1].size == size[::-1]


def test_only_a_jpeg_has_a_draft():
    data = saved(PilImage.fromarray(RGB), "PNG")
    assert np.array_equal(Image(data, draft=1).load(), RGB)
    assert np.array_equal(Image(RGB, draft=1).load(), RGB)
    with pytest.raises(ImageError, match="draft=0"):
        Image(data, draft=0)


def test_what_lies_behind_a_jpeg_is_no_part_of_it():
    """The film of a phone's motion photo."""
    photo = saved(PilImage.fromarray(RGB).resize((4000, 3000)), "JPEG", quality=30)
    film = np.random.default_rng(0).integers(0, 256, 8_000_000, dtype=np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 100
    assert np.array_equal(Image(photo + film).load(), Image(photo).load())
    scans = saved(PilImage.fromarray(RGB), "JPEG", progressive=True)
    assert images._scans(photo + film) == 1
    assert images._scans(scans) == scans.count(b"\xff\xda") > 1
