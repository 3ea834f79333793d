"""The one image loader: path, bytes, PIL image, array, data URI or URL -> upright RGB pixels, or an `ImageError`.

Every picture of the package comes through `open_image`. The contract:

- JPEG, PNG, WEBP, GIF, BMP, TIFF and AVIF, told by content, never by name.
- The limits below are checked on the header, before any pixel is decoded.
- A file that is truncated or that its decoder refuses is an error, and so is a PNG with a wrong checksum. One that breaks off
  behind its last pixel has every pixel, and may be read.
- Damage that still decodes cannot be told in the other formats, whose pixels stand under no checksum that PIL reads, such as
  200 bytes of zeros inside a JPEG; nor in what others have decoded: an array, or a PIL image that is loaded.
- EXIF orientation is applied. Transparency is laid on white. Of an animation or a multi-page file, the first frame.
- Colours become sRGB where the file holds an ICC profile that can be read and fits its mode; an unreadable profile,
  like unreadable EXIF, counts as absent, as in browsers.
- Deep pixels are rescaled by a range that hangs on the pixel format alone, so that one value means one brightness
  in every picture: 16-bit 0..65535; 32-bit integers ("I") 0..65535 too; floats ("F") 0..1. A value outside is an
  error that names the range found; nothing is stretched to fit.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote_to_bytes

from .errors import ImageError

if TYPE_CHECKING:
    from http.client import HTTPResponse

    import numpy as np
    import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6
MAX_SIDE = 20_000
MAX_ASPECT = 200  # longer side : shorter side
MAX_FRAMES = 512
MAX_READS = 500_000  # parts (chunks, markers, blocks) a parser may read; a 32 MiB GIF of full blocks has 262 144
MAX_SCANNED = 2**30  # pixels x scans of a progressive JPEG: each scan walks all pixels and costs a few bytes
MAX_EXIF = 2 * 2**20  # bytes
URL_SECONDS = 10.0

Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | np.ndarray"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_URI = re.compile(r"data:(image/[\w.+-]+)((?:;[^;,]*)*?);base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture was before it became RGB.

    Attributes:
        format: one of `FORMATS`; None for an array or a PIL image that came from no file.
        mode: PIL's pixel mode of the source ("P", "CMYK", "I;16", ...), or the dtype of an array.
        size: (width, height) of the upright picture, as it was decoded.
        orientation: EXIF orientation 1..8 that was applied; 1 = none.
        frames: frames or pages in the file; 1 for arrays and PIL images, whose caller has chosen the frame.
    """

    format: str | None
    mode: str
    size: tuple[int, int]
    orientation: int = 1
    frames: int = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Image:
    """A picture, not yet read.

    Args:
        source: a path (str or os.PathLike), the bytes of an image file, a PIL image, a numpy array ((H, W) or
            (H, W, 1 | 3 | 4), uint8, uint16 or float 0..1), a data URI ("data:image/png;base64,..."), or an
            http(s) URL where `allow_url` is set.
        allow_url: fetch URLs. For trusted callers only: no address is refused, so whoever writes the URL can
            make this machine ask hosts of its own network. Never set it for what a stranger sends.
        draft: decode a JPEG at a half, a quarter or an eighth of its size, where both sides stay this long at least: less
            work, and other pixels than those of a picture that is decoded whole and then made smaller, so a slightly other
            vector. None: whole.

    Only the type is checked here; reading is `load`.

    Raises:
        ImageError: the source is of another type, or the draft no size.
    """

    source: Source
    allow_url: bool = field(default=False, kw_only=True)
    draft: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        source = self.source
        known = isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))
        if not (known or is_pil(source) or _is_array(source)):
            raise ImageError(
                f"Image takes a path, bytes, a PIL image, a numpy array or a data URI, not {type(source).__name__}"
            )
        if hasattr(source, "mask") and _is_array(source):
            raise ImageError(
                "a masked array would lose its mask: fill it first, array.filled(255), or give its array.data"
            )
        if self.draft is not None and self.draft < 1:
            raise ImageError(f"draft={self.draft}: no side is shorter than one pixel")

    @property
    def name(self) -> str:
        """What the source is, in a few words, for messages: a path, "523 bytes", "array uint8 (4, 4, 3)"."""
        source: Any = self.source
        if is_pil(source):
            return f"PIL image {source.mode} {source.width}x{source.height}"
        if _is_array(source):
            return f"array {source.dtype} {source.shape}"
        if isinstance(source, memoryview):
            return f"{source.nbytes} bytes"
        if isinstance(source, (bytes, bytearray)):
            return f"{len(source)} bytes"
        if not isinstance(source, str):
            return _short(os.fsdecode(source))
        if source[:5].lower() == "data:":
            return f"data URI {source[:40]!a}... ({len(source)} characters)"
        if _SCHEME.match(source):
            return _short(_public(source))
        return _short(source)

    def __repr__(self) -> str:
        return f"Image({self.name})"

    def load(self) -> np.ndarray:
        """The pixels: uint8 (H, W, 3), RGB, upright, contiguous, of its own memory.

        Raises:
            ImageError: the source holds no picture within the contract above.
        """
        return open_image(self)[0]

    def as_now(self) -> Image:
        """The same picture, whatever is written into the memory of its source afterwards: pixels are read now, bytes that may be
        written into are copied; files and `bytes` are left as they are.

        Raises:
            ImageError: as `load`, of pixels.
        """
        source = self.source
        if is_pil(source) or _is_array(source):
            return replace(self, source=self.load())
        return replace(self, source=bytes(source)) if isinstance(source, (bytearray, memoryview)) else self


def open_image(source: Source | Image) -> tuple[np.ndarray, ImageInfo]:
    """Read one picture.

    Args:
        source: an `Image`, or anything `Image` takes; a URL comes as `Image(url, allow_url=True)`.

    Returns:
        uint8 (H, W, 3) RGB, upright, contiguous, of its own memory; and what it was.

    Raises:
        ImageError: names the source and the reason.
    """
    image = source if isinstance(source, Image) else Image(source)
    with _named(image):
        content: Any = image.source
        if _is_array(content):
            return _from_array(content)
        if not is_pil(content):
            data = _read(content, image.allow_url)
            with _whole_files_only():
                return _from_bytes(data, image.draft)
        # Read by one thread at a time: PIL's own reading of a file that lies open is not made for several.
        with _whole_files_only(), _readers[id(content) // 16 % len(_readers)]:
            return _decode(content, frames=1)


def measure(image: Image) -> tuple[int, int]:
    """Width and height of a picture in a file, bytes or data URI, as its header says them; no pixel is decoded.

    Raises:
        ImageError: as `open_image`, as far as the header tells.
    """
    with _named(image), _opened(_read(image.source, image.allow_url)) as (picture, _):
        width, height = picture.size
        return int(width), int(height)


@contextmanager
def _named(image: Image) -> Iterator[None]:
    """Whatever is raised is an `ImageError` that names the picture."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{image.name}: {error.reason}") from error.__cause__
    except Exception as error:  # decoders raise of everything on broken bytes
        raise ImageError(f"{image.name}: {_plain(error)}") from error


# ---- where the bytes come from --------------------------------------------------------------------------------------


def _read(source: Any, allow_url: bool) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data = _read_data_uri(source)
    elif isinstance(source, str) and _SCHEME.match(source):
        data = _read_url(source, allow_url)
    else:
        data = read_file(source)
    if not data:
        raise ImageError("it is empty (0 bytes)")
    if len(data) > MAX_BYTES:
        raise _too_large(len(data))
    return data


def read_file(source: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`.

    Raises:
        ImageError: why there are none.
    """
    if source == "":
        raise ImageError("the path is empty")
    try:
        path = Path(os.fsdecode(source))
        found = path.stat()
    except ValueError as error:  # a NUL
        raise ImageError(f"this is no path: {error}") from error
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
        reason = f"a link to nothing, {str(path.readlink())!r}" if dangling else error.strerror or _plain(error)
        raise ImageError(f"cannot be read: {reason}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("cannot be read: it is a directory, not a file")
    if not stat.S_ISREG(found.st_mode):  # a pipe would block, a device never end
        raise ImageError("cannot be read: it is not a regular file")
    if found.st_size > MAX_BYTES:
        raise _too_large(found.st_size)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or _plain(error)}") from error


def _read_data_uri(uri: str) -> bytes:
    head = _DATA_URI.match(uri[:1000])
    if head is None:
        raise ImageError("a data URI of a picture reads data:image/<format>;base64,<data>")
    if len(uri) > 2 * MAX_BYTES:
        raise _too_large(len(uri) * 3 // 4)
    try:
        text = b"".join(unquote_to_bytes(uri[head.end() :]).split())
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"its base64 is broken: {error}") from error


def _read_url(url: str, allowed: bool) -> bytes:
    scheme = url.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        hint = "; a file of this machine goes by its path" if scheme == "file" else ""
        raise ImageError(f"only http and https URLs are fetched{hint}")
    if not allowed:
        raise ImageError("URLs are not fetched by default; Image(url, allow_url=True) fetches one you trust")
    from http.client import HTTPException
    from urllib import request

    opener = request.OpenerDirector()  # not build_opener: that one adds file: and ftp:
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + URL_SECONDS

    def in_time() -> None:
        if time.monotonic() > deadline:
            raise ImageError(f"the answer took more than {URL_SECONDS:.0f} s")

    try:
        with opener.open(request.Request(url, headers={"User-Agent": "mmembed"}), timeout=URL_SECONDS) as answer:
            return read_answer(answer, in_time)
    except ImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"cannot be fetched: {_plain(error)}") from error


def read_answer(answer: HTTPResponse, in_time: Callable[[], object]) -> bytes:
    """The whole body of an answer of at most `MAX_BYTES`; `in_time` is called at each part of it, and raises when that is late.

    Raises:
        ImageError: it is larger, or breaks off. OSError, HTTPException: of the connection.
    """
    if answer.length is not None and answer.length > MAX_BYTES:
        raise _too_large(answer.length)
    data = bytearray()
    more = True
    while more:
        part = answer.read1(2**16)
        in_time()  # the last one too: a connection that was cut for being late ends as a whole picture does
        data += part
        if len(data) > MAX_BYTES:
            raise _too_large(len(data))
        more = bool(part)
    if answer.length:  # what is still to come
        raise ImageError(f"the answer broke off {answer.length} bytes before its end")
    return bytes(data)


# ---- from bytes to pixels -------------------------------------------------------------------------------------------


class _Metered(io.BytesIO):
    """Bytes that end the reading of a file of millions of tiny parts, which parsers in Python take minutes for."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ImageError(f"it has more than {MAX_READS} parts")
        return super().read(size)


def _from_bytes(data: bytes, draft: int | None = None) -> tuple[np.ndarray, ImageInfo]:
    with _opened(data) as (picture, frames):
        if draft is not None:
            picture.draft(None, (draft, draft))  # does nothing to other formats
        return _decode(picture, frames)


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, int]]:
    """A picture whose header is within the limits, and its frames; no pixel of it is decoded yet."""
    pages = 1
    if data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    elif data[:4] in _TIFF_HEADS:
        pages = _check_tiff(data)
    elif data[:4] == b"GIF8":
        _check_gif(data)
    elif data[:4] == b"RIFF":
        _check_webp(data)
    picture = _identified(data)
    with picture:
        _check_size(*picture.size)
        if picture.format in ("JPEG", "MPO"):
            most = MAX_SCANNED // (picture.width * picture.height)
            if data.count(_SCAN) > most and (scans := _scans(data)) > most:  # the count is quick, and never too low
                raise ImageError(f"{scans} scans of {picture.width}x{picture.height} pixels are too many")
        if picture.format == "TIFF" and picture.tag_v2.get(322, 0) * picture.tag_v2.get(323, 0) > MAX_PIXELS:
            raise ImageError("its tiles are larger than a picture may be")
        frames = pages if picture.format == "TIFF" else getattr(picture, "n_frames", 1)
        if frames > MAX_FRAMES:
            raise ImageError(f"it has more than {MAX_FRAMES} frames")
        yield picture, frames


def _identified(data: bytes) -> Any:
    """What `PIL.Image.open` makes of the bytes, less PIL's own check of the size at its end: that one warns of other limits than
    ours, and refuses by them. The caller checks the size."""
    import PIL.Image

    file = _Metered(data)
    for name in FORMATS:
        if name not in PIL.Image.OPEN:
            PIL.Image.init()
        make, accepts = PIL.Image.OPEN[name]
        accepted = accepts is None or accepts(data[:16])
        if isinstance(accepted, str):  # what this build of PIL lacks
            raise ImageError(accepted)
        if accepted:
            file.seek(0)
            try:
                return make(file, "")
            except PIL.Image.DecompressionBombError:  # of what the checks above read otherwise than PIL
                raise ImageError(f"its pixels are over {MAX_PIXELS // 10**6} million") from None
            except (SyntaxError, IndexError, TypeError, struct.error):  # not of this format, as PIL has it
                continue
    known = ", ".join(FORMATS)
    raise ImageError(f"its content is none of {known}, or its header is broken; it begins {data[:12]!r}")


_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # of JPEG, less those that stand inside a scan
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF, with offsets of 8 bytes
_SUBDIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


def _check_jpeg(data: bytes) -> None:
    """PIL reads EXIF while it opens a JPEG, so its 64 KiB parts are counted before."""
    if (parts := data.count(b"Exif\0\0")) > MAX_EXIF // 2**16:
        raise ImageError(f"it has {parts} parts of EXIF")


def _scans(data: bytes) -> int:
    """The scans of a JPEG up to its end. What lies behind that, such as the film of a phone's motion photo, is no part of it."""
    scans, at = 0, 2
    for _ in range(MAX_READS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == b"\xff\xd9":
            return scans
        scans += found[0] == _SCAN
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    raise ImageError(f"it has more than {MAX_READS} parts")


def _check_gif(data: bytes) -> None:
    """PIL makes room for the first frame of a GIF while it opens it, and for a screen that holds it."""
    with suppress(struct.error, IndexError):  # cut off: the decoder says so
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
        for _ in range(MAX_READS):
            if data[at] == 0x2C:  # a frame
                left, top, wide, high = struct.unpack_from("<4H", data, at + 1)
                return _check_size(max(width, left + wide), max(height, top + high))
            if data[at] != 0x21:  # no extension: stray bytes are passed over
                at += 1
                continue
            at += 2
            while data[at]:
                at += data[at] + 1
            at += 1


def _check_webp(data: bytes) -> None:
    """PIL makes room for the whole canvas of a WEBP while it opens it."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        _check_size(int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1)
    elif kind == b"VP8L" and head[0] == 0x2F:
        sides = int.from_bytes(head[1:5], "little")
        _check_size((sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        sides = int.from_bytes(head[6:10], "little")
        _check_size(sides & 0x3FFF, sides >> 16 & 0x3FFF)


def _check_png(file: IO[bytes]) -> None:
    """PIL reads the pixels of a PNG, and what stands behind them, without a look at the checksums. What lies behind the end is no
    part of it, and a file that breaks off behind its pixels has them all."""
    here = file.tell()
    file.seek(0)
    data = memoryview(file.read())
    file.seek(here)
    at = 8
    for _ in range(MAX_READS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            if kind in (b"IDAT", b"fdAT"):
                raise ImageError("it is truncated inside its pixels")
            return
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ImageError(f"it is damaged: the checksum of its part {bytes(kind)!r} at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end + 4
    raise ImageError(f"it has more than {MAX_READS} parts")


def _check_tiff(data: bytes) -> int:
    """The number of pages, counted no further than one beyond the limit.

    PIL makes a Python object of every strip, tile and value of a directory that it opens, so the first directory,
    which alone is opened, may hold only so many. PIL's own count of pages takes quadratic time.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = b"+" in data[:4]
    offset, counter, entry = ("Q", "Q", "HHQQ") if big else ("I", "H", "HHII")

    def number(form: str, at: int) -> int:
        return struct.unpack_from(order + form, data, at)[0]

    def entries(at: int) -> tuple[int, int]:
        """Where the entries of the directory at `at` begin and end."""
        start = at + struct.calcsize(counter)
        return start, start + number(counter, at) * struct.calcsize("=" + entry)

    pages: set[int] = set()
    values = 0
    try:
        at = first = number(offset, 8 if big else 4)
        directories = [first]
        for directory in directories:
            start, end = entries(directory)
            whole = data[start : end if end <= len(data) else start]
            for tag, kind, count, value in struct.iter_unpack(order + entry, whole):
                # bytes and texts stay as they are; more than the file can hold is passed over
                values += count if kind not in (1, 2, 6, 7) and count <= len(data) else 0
                if tag in _SUBDIRECTORIES and len(directories) < 16:
                    directories.append(value)
        if values > MAX_READS:
            raise ImageError(f"its directory holds {values} values, more than {MAX_READS}")
        while at and at not in pages and len(pages) <= MAX_FRAMES:
            pages.add(at)
            at = number(offset, entries(at)[1])
    except struct.error:  # a broken directory: the decoder says what of the first, and nobody reads the others
        pass
    return max(len(pages), 1)


def _decode(picture: PIL.Image.Image, frames: int) -> tuple[np.ndarray, ImageInfo]:
    import numpy as np

    _check_size(*picture.size)
    if len(picture.info.get("exif", b"")) > MAX_EXIF:
        raise ImageError(f"its EXIF is over {MAX_EXIF // 2**20} MiB")
    mode, kind = picture.mode, "JPEG" if picture.format == "MPO" else picture.format  # MPO: with more frames
    if getattr(picture, "tile", None):  # nothing is decoded yet: to ask a PNG for its orientation decodes it
        file: Any = getattr(picture, "fp", None)
        if file is None:
            raise ImageError("it was closed before its pixels were read")
        if kind == "PNG":
            _check_png(file)
    orientation = _orientation(picture)
    picture.load()
    turn = _TURNS.get(_orientation(picture))  # asked again: PIL turns a TIFF while loading
    rgb = _pixels(_to_rgb(picture))
    if turn:
        rgb = np.ascontiguousarray(turn(rgb))
    return rgb, ImageInfo(kind, mode, (rgb.shape[1], rgb.shape[0]), orientation, frames)


def _pixels(picture: PIL.Image.Image) -> np.ndarray:
    """Mode RGB -> uint8 (H, W, 3), in strips: PIL's way through one `bytes` takes thrice the memory."""
    import numpy as np

    width, height = picture.size
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        strip = picture.crop((0, top, width, min(top + 256, height)))
        rgb[top : top + 256] = np.asarray(strip)
    return rgb


_TURNS = {  # EXIF 2.32, tag 0x0112: what puts an (H, W, 3) array upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF raises of everything, and counts as absent
        return 1
    return found if found in _TURNS else 1


_readers = [threading.Lock() for _ in range(64)]
_truncation_lock = threading.Lock()
_truncation_state: dict[str, Any] = {"readers": 0, "before": False}


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Hold PIL's process-wide LOAD_TRUNCATED_IMAGES off while any thread reads here; other packages switch it on."""
    from PIL import ImageFile

    state = _truncation_state
    with _truncation_lock:
        if state["readers"] == 0:
            state["before"], ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        state["readers"] += 1
    try:
        yield
    finally:
        with _truncation_lock:
            state["readers"] -= 1
            if state["readers"] == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = state["before"]


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Decoded pixels of any mode -> mode RGB, on white."""
    import numpy as np
    import PIL.Image

    profile = picture.info.get("icc_profile")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        deep = np.asarray(picture)
        gray = _rescale(deep)
        if picture.mode != "F" and isinstance(clear := picture.info.get("transparency"), int):
            gray[deep == clear] = 255
        return _to_srgb(PIL.Image.fromarray(gray), profile)
    if not picture.has_transparency_data:
        return _to_srgb(picture, profile)
    picture = picture.convert("LA" if picture.mode in ("LA", "La") else "RGBA")
    colour = _to_srgb(picture.convert(picture.mode[:-1]), profile)
    white = PIL.Image.new("RGB", picture.size, "white")
    white.paste(colour, mask=picture.getchannel("A"))
    return white


def _to_srgb(picture: PIL.Image.Image, profile: bytes | None) -> PIL.Image.Image:
    """Opaque pixels of any 8-bit mode -> mode RGB, through the ICC profile where that can be read and fits."""
    from PIL import ImageCms

    source: Any = None
    if picture.mode == "LAB":  # PIL's own conversions know no LAB
        source = ImageCms.createProfile("LAB")
    elif profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space, described = source.profile.xcolor_space.strip(), source.profile.profile_description or ""
        except (OSError, ValueError, ImageCms.PyCMSError):
            return picture.convert("RGB")
        if space == "RGB" and picture.mode != "CMYK" and not described.startswith("sRGB"):
            picture = picture.convert("RGB")
        elif (space, picture.mode) not in (("GRAY", "L"), ("CMYK", "CMYK")):
            source = None
    if source is None:
        return picture.convert("RGB")
    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), picture.mode, "RGB")
    except ImageCms.PyCMSError:  # a profile whose header can be read and whose tables cannot
        return picture.convert("RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # None only where it works in place
    return converted


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _from_array(array: np.ndarray) -> tuple[np.ndarray, ImageInfo]:
    import numpy as np
    import PIL.Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError("an array is (H, W) or (H, W, 1 | 3 | 4), channels last")
    if array.dtype != np.uint8 and array.dtype != np.uint16 and array.dtype.kind != "f":
        raise ImageError("an array is uint8, uint16 (0..65535) or float (0..1)")
    height, width = array.shape[:2]
    _check_size(width, height)
    info = ImageInfo(None, str(array.dtype), (width, height))
    if array.dtype == np.uint8 and array.shape[2:] == (3,):
        return np.array(array, order="C"), info
    flat = array[:, :, 0] if array.shape[2:] == (1,) else array
    flat = np.ascontiguousarray(flat if flat.dtype == np.uint8 else _rescale(flat))
    return _pixels(_to_rgb(PIL.Image.fromarray(flat))), info


def _rescale(deep: np.ndarray) -> np.ndarray:
    """Deep pixels -> uint8, by the range of their type: integers 0..65535, floats 0..1."""
    import numpy as np

    top = 1.0 if deep.dtype.kind == "f" else 65535
    if deep.dtype.kind != "u":
        low, high = deep.min(), deep.max()
        if not (-1e-3 * (top == 1) <= low and high <= top + 1e-3 * (top == 1)):  # `not`: NaN fails too
            kind = "float" if top == 1 else "32-bit integer"
            raise ImageError(
                f"its {kind} values reach from {low:g} to {high:g} and are read as 0..{top:g}: rescale them first"
            )
    scaled = deep.astype(np.float32) * np.float32(255 / top)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


# ---- checks and words -----------------------------------------------------------------------------------------------


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < 1:
        raise ImageError(f"it has no pixels ({width}x{height})")
    if long > MAX_SIDE:
        raise ImageError(f"{width}x{height} pixels: no side may be over {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels are over {MAX_PIXELS // 10**6} million")
    if long > MAX_ASPECT * short:
        raise ImageError(f"{width}x{height} pixels are longer than {MAX_ASPECT}:1")


def _too_large(size: int) -> ImageError:
    return ImageError(f"{size} bytes are over the limit of {MAX_BYTES} ({MAX_BYTES // 2**20} MiB)")


def is_pil(thing: object) -> bool:
    """Whether it is an image of PIL, or of a package that adds to it."""
    module = sys.modules.get("PIL.Image")  # who made one has imported it
    return module is not None and isinstance(thing, module.Image)


def _is_array(thing: object) -> bool:
    module = sys.modules.get("numpy")
    return module is not None and isinstance(thing, module.ndarray)


def _short(name: str) -> str:
    return repr(name) if len(name) <= 200 else f"{name[:60]!r}...{name[-120:]!r}"


def _public(url: str) -> str:
    """A URL less what may be secret in it: user, password, query."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0].partition("#")[0])


def _plain(error: Exception) -> str:
    """An error's text less memory addresses, which tell an attacker where things lie."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the data", str(error)) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
