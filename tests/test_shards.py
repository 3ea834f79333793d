"""Archives of strangers: every crafted form is an error of its row or of the rest of the file, and nothing is written."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import PIL.Image
import pytest

from mmembed import shards
from mmembed.errors import InputError, LoadError
from mmembed.inputs import to_item
from mmembed.shards import Shard
from mmembed.sources import read


def png(shade=0):
    out = io.BytesIO()
    PIL.Image.new("RGB", (9, 7), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


GOOD = ("first.png", png(1)), ("last.png", png(2))


def member(name, data=b"", *, kind=tarfile.REGTYPE, link="", size=None, headers=None, form=tarfile.GNU_FORMAT):
    """The bytes of one member, as told, whether or not that is so."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if size is None else size
    info.pax_headers = headers or {}
    head = info.tobuf(tarfile.PAX_FORMAT if headers else form, "utf-8", "surrogateescape")
    return head + data + b"\0" * (-len(data) % 512)


def archive(*middle):
    first, last = (member(name, data) for name, data in GOOD)
    return first + b"".join(middle) + last + b"\0" * 1024


def checksummed(header):
    block = bytearray(header[:512])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + header[512:]


def negative_size():
    block = bytearray(member("evil.png"))
    block[124:136] = b"\xff" + struct.pack(">q", -(2**20)).rjust(11, b"\xff")
    return checksummed(bytes(block))


def long_header(kind, size, data=b""):
    return member("././@LongLink", data, kind=kind, size=size)


def sparse(name):
    block = bytearray(member(name, kind=tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"%011o\0" % (8 * 2**30 - 1)
    return checksummed(bytes(block))


def bomb():
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def pax_of_pax(depth):
    return b"".join(member("pax", b"8 a=bcd\n", kind=tarfile.XHDTYPE) for _ in range(depth))


ROWS = {
    "a name with ..": (member("../evil.png", png()), "outside of the archive"),
    "a name with .. inside": (member("a/../../evil.png", png()), "outside of the archive"),
    "an absolute name": (member("/tmp/evil.png", png()), "outside of the archive"),
    "a name of another drive": (member("C:/evil.png", png()), "outside of the archive"),
    "a name with .. and backslashes": (member("..\\evil.png", png()), "outside of the archive"),
    "a name of a share": (member("\\\\host\\share\\evil.png", png()), "outside of the archive"),
    "a name of .. in a pax header": (member("x.png", png(), headers={"path": "../evil.png"}), "outside"),
    "a symbolic link to a file": (member("evil.png", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link"),
    "a symbolic link to a picture inside": (member("evil.png", kind=tarfile.SYMTYPE, link="first.png"), "is a link"),
    "a hard link outside": (member("evil.png", kind=tarfile.LNKTYPE, link="/etc/passwd"), "is a link"),
    "a hard link inside": (member("evil.png", kind=tarfile.LNKTYPE, link="first.png"), "is a link"),
    "a link in a pax header": (
        member("evil.png", kind=tarfile.SYMTYPE, headers={"linkpath": "/etc/passwd"}),
        "is a link",
    ),
    "a pipe": (member("evil.png", kind=tarfile.FIFOTYPE), "is a device"),
    "a character device": (member("evil.png", kind=tarfile.CHRTYPE), "is a device"),
    "a block device": (member("evil.png", kind=tarfile.BLKTYPE), "is a device"),
    "a sparse file of 8 GiB": (sparse("evil.png"), "is a sparse file"),
    "a picture of 60,000 x 60,000": (member("evil.png", bomb()), "60000"),
    "an empty picture": (member("evil.png"), "0 bytes"),
    "a page for a picture": (member("evil.jpg", b"<html>"), "its content is none of"),
    "half a picture": (member("evil.png", png()[:40]), "evil|bytes"),
    "JSON 100,000 deep": (member("evil.json", b"[" * 100_000) + member("evil.txt", b"x"), "cannot be read"),
    "no JSON": (member("evil.json", b"{no") + member("evil.txt", b"x"), "cannot be read"),
    "a text that is no UTF-8": (member("evil.txt", b"caf\xe9"), "cannot be read"),
    "neither picture nor text": (member("evil.mp4", b"film"), "neither 'text' nor 'image'"),
    "an archive in the archive": (member("evil.tar", b"\0" * 1024), "neither 'text' nor 'image'"),
}
"""Forms of which the row is an error, and the rows around it are read."""

RESTS = {
    "a size of 8 TB": (member("evil.png", size=8 * 2**40, form=tarfile.GNU_FORMAT), None),
    "a negative size": (negative_size(), None),
    "a pax header of 100 MB": (long_header(tarfile.XHDTYPE, 10**8, b"x" * 10**6), "a header is of"),
    "a long name of 100 MB": (long_header(tarfile.GNUTYPE_LONGNAME, 10**8, b"x" * 10**6), "a header is of"),
    "5,000 headers of headers": (pax_of_pax(5000), None),
    "a broken checksum": (bytes(reversed(member("evil.png", png())[:512])), None),
    "words between members": (b"words of somebody".ljust(512, b"."), None),
}
"""Forms after which nothing can be found any more; what comes before is read."""

WHOLES = {
    "gzip": lambda: gzip.compress(archive()),
    "a bomb of gzip": lambda: gzip.compress(b"\0" * 10**8),
    "no tar file": lambda: b"words",
    "nothing": lambda: b"",
    "zip": lambda: _zip(),
    "a picture": lambda: png(),
}


def _zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("../evil.png", png())
    return out.getvalue()


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """A folder to work in; at the end there is no other file in it, above it, or where the crafted names lead."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    yield inside
    assert sorted(file.name for file in tmp_path.rglob("*") if not file.is_dir()) in (["x.tar"], [])
    assert not Path("/tmp/evil.png").exists()


def outcome(path):
    """(name, shade of the picture, or why there is none) of each entry."""
    found = []
    for entry in read([path]):
        try:
            (part,) = [part for part in to_item(entry.thing) if not hasattr(part, "text")] or [None]
            found.append((entry.name, None if part is None else int(part.load()[0, 0, 0])))
        except InputError as error:
            found.append((entry.name, error.reason))
    return found


@pytest.mark.parametrize("form", ROWS)
def test_a_crafted_member_is_an_error_of_its_row_and_the_others_are_read(quiet, form):
    data, said = ROWS[form]
    (quiet / "x.tar").write_bytes(archive(data))
    found = outcome(quiet / "x.tar")
    assert len(found) == 3
    assert [found[0][1], found[2][1]] == [1, 2]
    assert isinstance(found[1][1], str)
    assert any(word in found[1][1] for word in said.split("|"))
    assert "evil" in found[1][0]


@pytest.mark.parametrize("form", RESTS)
def test_after_a_crafted_header_the_rest_is_one_error(quiet, form):
    data, said = RESTS[form]
    (quiet / "x.tar").write_bytes(archive(data))
    found = outcome(quiet / "x.tar")
    assert found[0][1] == 1
    assert {type(reason) for _, reason in found[1:]} == {str}
    assert said is None or said in found[-1][1]
    assert len(found) <= 3


@pytest.mark.parametrize("form", WHOLES)
def test_what_is_no_plain_tar_file_is_one_error(quiet, form):
    (quiet / "x.tar").write_bytes(WHOLES[form]())
    ((name, reason),) = outcome(quiet / "x.tar")
    assert name.endswith("x.tar")
    assert "no tar file without compression" in reason


@pytest.mark.parametrize("cut", [600, 511, 512, 1100, 1300, 2000])
def test_a_tar_file_that_breaks_off_gives_the_rows_before(quiet, cut):
    whole = archive(member("middle.png", png(7)))
    (quiet / "x.tar").write_bytes(whole[:cut])
    found = outcome(quiet / "x.tar")
    good = [shade for _, shade in found if isinstance(shade, int)]
    assert good == [1, 7, 2][: len(good)]
    assert len(good) < 3
    assert any(isinstance(reason, str) for _, reason in found)


def test_a_pipe_that_is_called_a_tar_file_blocks_nothing(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(LoadError, match="not a regular file"):
        Shard(tmp_path / "x.tar")


def test_a_member_over_the_limit_is_not_read_and_one_that_nobody_asks_for_is_no_matter(quiet, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", 200)
    (quiet / "x.tar").write_bytes(
        archive(member("x.png", b"x" * 201), member("y.txt", b"y"), member("y.mp4", b"x" * 999))
    )
    found = list(read([quiet / "x.tar"]))
    assert "201 bytes, over the limit" in found[1].thing.reason
    assert found[2].thing == "y"


def test_so_many_members_are_read_and_no_more(quiet, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBERS", 5)
    (quiet / "x.tar").write_bytes(b"".join(member(f"{k}.txt", b"t") for k in range(9)) + b"\0" * 1024)
    shard = Shard(quiet / "x.tar")
    assert len(shard) == 5
    assert "more than 5 members" in shard.broken


def test_of_two_pictures_or_texts_of_a_row_none_is_taken_for_the_one(quiet):
    parts = member("a.png", png(1)), member("a.gif", png(2)), member("a.txt", b"one"), member("a.caption", b"two")
    (quiet / "x.tar").write_bytes(b"".join(parts) + b"\0" * 1024)
    shard = Shard(quiet / "x.tar")
    for columns, said in (
        (None, "more than one image"),
        (("image",), "more than one image"),
        (("text",), "more than one text"),
    ):
        with pytest.raises(InputError, match=said):
            shard.read(0, columns)
    assert shard.read(0, ("gif", "caption"))["gif"] == png(2)


def test_honest_archives_are_read_whole(quiet):
    """Odd names, folders, members that come twice (the last counts), parts far from each other, two kinds of headers."""
    odd = ["./a/1", "z" * 300 + "/2", "日本/שלום", "a\nb", "dots.in.name", os.fsdecode(b"\xff\xfe")]
    told = b"".join(
        member(f"{name}.png", png(k), form=tarfile.GNU_FORMAT if k % 2 else tarfile.PAX_FORMAT)
        for k, name in enumerate(odd)
    )
    parts = [member("./a/", kind=tarfile.DIRTYPE), member("README", b"words"), member("./a/1.json", b'{"n": 1}')]
    (quiet / "x.tar").write_bytes(told + b"".join(parts) + member("a\nb.png", png(99)) + b"\0" * 1024)
    shard = Shard(quiet / "x.tar")
    assert shard.broken is None
    assert shard.names == ["./a/1", "z" * 300 + "/2", "日本/שלום", "a\nb", "dots", "\udcff\udcfe"]
    pictures = [PIL.Image.open(io.BytesIO(shard.read(row, ["image"])["image"])) for row in (0, 1, 2, 3, 5)]
    assert [picture.getpixel((0, 0))[0] for picture in pictures] == [0, 1, 2, 99, 5]
    assert shard.read(0, ["json.n"]) == {"json.n": 1}
    assert "in.name.png" in shard.read(4), "of a name with dots the first ends it, as in webdataset"
    (quiet / "x.tar").write_bytes(archive())
    assert outcome(quiet / "x.tar") == [(f"{quiet}/x.tar/first", 1), (f"{quiet}/x.tar/last", 2)]
    (quiet / "x.tar").write_bytes(archive()[:-1024])
    assert len(outcome(quiet / "x.tar")) == 2, "many writers leave out the empty blocks at the end"
