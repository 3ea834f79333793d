"""A recipe: the model, the data, the stages and what is measured on the way, read from TOML or written in Python."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image as PillowImage

from .. import loading
from ..errors import MmembedError, SpecError, UnknownName, check_known
from ..spec import ModelSpec
from .augment import augmentations
from .data import Source
from .losses.objective import PREDICTED, check_loss, is_contrastive, needs_of
from .signatures import Place, Range, call, called, fitted, read_toml
from .stamp import of_settings


def _check_loss(settings: Mapping[str, Any], place: Place) -> None:
    """Raises: SpecError, UnknownName, a loss of a task that cannot be built, or whose weight is not above 0."""
    own = dict(settings)
    at, weight = place.at("weight"), own.pop("weight", 1.0)
    if weight == 0:
        raise at.error(f"{at.name} = 0: such a loss teaches nothing; leave it out")
    fitted(weight, Annotated[float, Range(above=0)], at)
    check_loss(own, place)


TRIES = 30
"""How often an augmentation is tried before a run."""
PARTS = ("lora", "embeddings", "backbone", "tower", "projector", "pooling", "heads")
"""Parts of a model that a stage trains; "backbone" has its embeddings in it, "heads" are all that stand behind the pooling."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that training begins with.

    Attributes:
        load: a folder or name, as `mmembed.load` takes it; a folder is looked for beside the recipe first.
        compose: the arguments of `mmembed.compose`, in place of `load`; fresh weights are drawn by the recipe's seed.
        vision, projector: another tower for the model that `load` names, as `mmembed.compose` takes it, and a fresh projector;
            all else stays as it was.
        spec: fields of its spec that are to be others.
        identity: every block of a composed backbone begins by adding nothing, what it writes being 0 (arXiv 2003.04887): what
            stands without the blocks can be trained first.
        precision: what frozen weights are held in while others are trained, which are always fp32; "bf16" asks for stages in
            bf16. Weights that begin to be trained, and frozen ones that are written at the end, are as the model had them, for
            which it is read again.
    """

    load: str | None = None
    compose: Annotated[Mapping[str, Any], _compose] | None = None
    vision: Mapping[str, Any] | None = None
    projector: Mapping[str, Any] | None = None
    spec: Annotated[Mapping[str, Any], _spec] = field(default_factory=dict)
    identity: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if (self.load is None) == (self.compose is None):
            raise SpecError("a model is loaded (load = 'name') or composed ([model.compose]): one of the two")
        if self.compose is not None and self.vision is not None:
            raise SpecError(
                "the tower of a composed model is said in [model.compose]; model.vision is for one that is loaded"
            )
        if self.identity and self.compose is None:
            raise SpecError(
                "identity = true is how a composed backbone begins ([model.compose]); a loaded one has learnt"
            )
        if self.projector is not None and self.vision is None:
            raise SpecError("model.projector goes with another tower: model.vision")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters in the backbone, by `peft` (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

    Attributes:
        r: the rank. alpha: what it is scaled by, over r. dropout: on what goes into them.
        targets: ends of names of layers; ("all-linear",) is every one.
        dora, rslora: as peft has them.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    dora: bool = False
    rslora: bool = False


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Tokens that are hidden, each to be predicted from the state before it (MNTP, LLM2Vec, arXiv 2404.05961).

    Attributes:
        token: what stands in their place, one token of the vocabulary; LLM2Vec takes "_" where a tokenizer has no mask.
        share: of the tokens. replaced, kept: of these, that become a random token, or stay.
    """

    token: str
    share: float = 0.2
    replaced: float = 0.1
    kept: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or min(self.replaced, self.kept) < 0 or self.replaced + self.kept > 1:
            raise SpecError(f"share={self.share}, replaced={self.replaced}, kept={self.kept}: these are no shares")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is drawn each step, and the losses that measure it.

    Attributes:
        data: names of data. batch: examples a step, over all processes.
        losses: `{kind = "...", weight = 1.0, ...}` each, the settings of the loss beside; weights are above 0.
        teacher: an embedder, by folder or name, whose vectors of the same things losses read; see `Columns.query_source`.
        augment: what pictures go through, each time drawn anew: `{kind = "...", chance = 1.0, ...}` each, the settings of the
            augmentation beside; see `mmembed.train.augment`.
        ease: a picture's chances are times a random number of its own, between 0 and 1, to this power: some are let off easily,
            by which a fresh tower begins to learn. 0: chances are what they say.
        shares, temperature, language_temperature, group: how data is mixed, see `Mixture`.
        share: how often this task is drawn beside the others, where a stage draws one a step.
        masking: for losses of a language head: some tokens are hidden and predicted; None: the next token is.
    """

    data: tuple[str, ...]
    batch: int
    losses: tuple[Annotated[Mapping[str, Any], _check_loss], ...] = ({"kind": "infonce"},)
    teacher: str | None = None
    augment: tuple[Annotated[Mapping[str, Any], _augmentation], ...] = ()
    ease: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    language_temperature: float | None = None
    group: int | None = None
    share: float = 1.0
    masking: Masking | None = None

    def __post_init__(self) -> None:
        if not self.data or self.batch < 1 or not self.losses:
            raise SpecError("a task needs data, a batch of at least 1 and a loss")
        for k, loss in enumerate(self.losses):
            _check_loss(loss, Place("").at("losses", k))
        if self.ease < 0:
            raise SpecError(f"ease={self.ease} must not be negative")
        if self.ease and not self.augment:
            raise SpecError(
                f"ease={self.ease} is about what augment does, and its task has none: augment, or leave ease out"
            )
        if self.group is not None and self.group < 1:
            raise SpecError(f"group={self.group}: at least one example in a row is of one source")
        if self.masking is None and any(loss.get("kind") == "mntp" for loss in self.losses):
            raise SpecError("the loss 'mntp' predicts tokens that are masked: masking = { token = '_', share = 0.2 }")
        reads = {need for loss in self.losses for need in needs_of(loss)}
        if self.masking is not None and PREDICTED not in reads:
            raise SpecError("masking hides tokens to be predicted, and no loss of its task predicts any: leave it out")
        if self.augment and PREDICTED in reads:
            raise SpecError("augment changes pictures, and losses of a language head read texts alone: leave it out")
        if self.teacher is not None and "teacher" not in {*reads, *_settings(self.losses, "by")}:
            raise SpecError(f"teacher = {self.teacher!r}: no loss of its task reads what it says; leave it out")
        for name, share in {"share": self.share, **self.shares}.items():
            if not 0 <= share < float("inf"):
                raise SpecError(f"the share of {name} is {share}: it must be a number, and not negative")
        if not any(self.shares.get(name, 1.0) for name in self.data):
            raise SpecError(f"shares={dict(self.shares)} leave nothing to draw from")
        for value, name in ((self.temperature, "temperature"), (self.language_temperature, "language_temperature")):
            if value is not None and value <= 0:
                raise SpecError(f"{name}={value} must be more than 0")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what is trained, on what, and how.

    Attributes:
        name: what it is called. steps: how many.
        train: parts of `PARTS`, or "all". frozen: how names of weights begin that stay as they are all the same, as
            ("vision.model.blocks.0",). task: what is drawn and measured; together: all tasks every step, else one of them.
        lr: the highest rate of learning. rates: other ones by part. layer_decay: a layer's rate is so many times that of the
            next one above it.
        weight_decay: of matrices; vectors (norms, biases) have none. betas, eps: of AdamW (arXiv 1711.05101).
        schedule, warmup_steps, min_lr_ratio: the rate rises for `warmup_steps` and falls to `min_lr_ratio` times itself as the
            schedule says.
        max_grad_norm: greatest norm of the gradient; None: any.
        precision: "bf16" makes products in bf16 under autocast; weights, norms and losses stay fp32.
        batch_tokens: tokens that go through the model at once, patches counted too; a larger batch goes in chunks by GradCache.
        gradient_checkpointing: states of layers are made again in the backward pass and not kept.
        dropout: the backbone's own dropout is on, and nothing is computed once for several items.
        attention_dropout: the share of what attention looks at that is left out, in place of the configuration's (SimCSE; LLM2Vec
            takes 0.3).
        batch_norm: statistics of trained batch norms are "frozen" or "learnt".
        ema_decay: of a running mean of the weights and statistics (EMA), which is what is measured and kept; None: there is none.
        soup: how much of the weights from before the stage stays in what it leaves, a soup of both (WiSE-FT, arXiv 2109.01903): a
            stage forgets less so. It is measured with them too.
        lora: adapters that this stage puts in, and later ones keep.
        spec: fields of the model's spec that are other ones while this stage lasts, none of them of its weights:
            `{ layers = [0], norm_layers = true }` trains what stands without the blocks of the backbone.
        image_size: the side that pictures are resized to while this stage lasts, where the tower takes any (EfficientNetV2's
            progressive learning, arXiv 2104.00298); None: that of the model.
        eval_steps: steps between looks at held-out data; None: at the end of the stage alone.
        keep_best: the score of held-out data by which the best look is found, "dev.MRR", whose weights are what stays; None: the
            last ones do.
        early_stopping_patience: looks in a row that are not better than the best one, after which the stage ends; None: all its
            steps are learnt from.
        save_steps: steps between checkpoints; None: every ten minutes. There is one at the end of the stage, too.
    """

    name: str
    steps: int
    train: tuple[str, ...]
    task: tuple[Task, ...]
    frozen: tuple[str, ...] = ()
    together: bool = True
    lr: float = 1e-4
    rates: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = 8192
    gradient_checkpointing: bool = False
    dropout: bool = False
    attention_dropout: float | None = None
    batch_norm: Literal["frozen", "learnt"] = "frozen"
    ema_decay: float | None = None
    soup: float = 0.0
    lora: Lora | None = None
    spec: Annotated[Mapping[str, Any], _spec] = field(default_factory=dict)
    image_size: int | None = None
    eval_steps: int | None = None
    keep_best: str | None = None
    early_stopping_patience: int | None = None
    save_steps: int | None = None

    def __post_init__(self) -> None:
        for part in self.train:
            check_known("part of a model", part, (*PARTS, "all"))
        mine = set(PARTS) if "all" in self.train else {*self.train}
        mine |= {"embeddings"} if "backbone" in mine else {"backbone"} if "embeddings" in mine else set()
        for part in self.rates:
            check_known("part of a model", part, PARTS)
            if part not in mine:
                raise SpecError(f"stage {self.name!r} has a rate for {part!r} and trains {', '.join(self.train)}")
        for name in ("max_grad_norm", "eval_steps", "early_stopping_patience", "save_steps", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SpecError(f"stage {self.name!r}: {name}={value} must be more than 0")
        for name, value in {
            "lr": self.lr,
            **self.rates,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.warmup_steps,
        }.items():
            if not 0 <= value < float("inf"):
                raise SpecError(f"stage {self.name!r}: {name}={value} must be a number, and not negative")
        for name in ("layer_decay", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SpecError(f"stage {self.name!r}: {name}={getattr(self, name)} must be more than 0")
        if self.warmup_steps > self.steps:
            raise SpecError(f"stage {self.name!r}: warmup_steps={self.warmup_steps} ends behind its {self.steps} steps")
        if not 0 <= self.min_lr_ratio <= 1:
            raise SpecError(f"stage {self.name!r}: min_lr_ratio={self.min_lr_ratio} must lie in [0, 1]")
        if self.min_lr_ratio and self.schedule == "constant":
            raise SpecError(
                f"stage {self.name!r}: a constant rate falls to no min_lr_ratio={self.min_lr_ratio}: leave it out"
            )
        if self.steps < 1 or not self.task or not self.train:
            raise SpecError(f"stage {self.name!r} needs at least one step, one task and one part to train")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SpecError(f"betas={list(self.betas)}: AdamW has two, in [0, 1)")
        if self.keep_best is not None and (self.eval_steps is None or self.eval_steps >= self.steps):
            raise SpecError(f"stage {self.name!r} keeps the best of several looks, and looks once: eval_steps")
        if self.early_stopping_patience is not None and self.keep_best is None:
            raise SpecError(
                f"stage {self.name!r} ends early where nothing gets better, and does not say what: keep_best"
            )
        if self.together and any(task.share != 1 for task in self.task):
            raise SpecError(
                f"stage {self.name!r} learns from all its tasks every step, whatever their share: together = false, or no share"
            )
        if not self.together and not sum(task.share for task in self.task) > 0:
            raise SpecError(f"stage {self.name!r} draws a task a step, and none has a share")
        if self.attention_dropout is not None and not (self.dropout and 0 <= self.attention_dropout < 1):
            raise SpecError(f"attention_dropout={self.attention_dropout} goes with dropout = true, and lies in [0, 1)")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SpecError(f"ema_decay={self.ema_decay} must lie between 0 and 1")
        if not 0 <= self.soup < 1:
            raise SpecError(f"soup={self.soup} must lie in [0, 1)")
        if self.lora is not None and not {"lora", "all"} & set(self.train):
            raise SpecError(f"stage {self.name!r} puts LoRA in and does not train it: train = ['lora', ...]")


SCORES = {"retrieval": ("R@1", "R@10", "MRR"), "sts": ("spearman",)}
"""What each measure of held-out data gives, the more the better."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Data that is measured on the way and never trained on.

    Attributes:
        data: its name. measure: "retrieval" (R@1, R@10 and MRR of the positive among all positives), or "sts" (Spearman's
            correlation of cosine and score).
        most: rows that are looked at, the first ones.
        truncate_dim: only the first so many numbers of a vector.
    """

    data: str
    measure: Literal["retrieval", "sts"] = "retrieval"
    most: int = 1000
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        if self.most < 1:
            raise SpecError(f"most={self.most}: at least one row is measured")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who else is told of each step, besides the log and the progress bar.

    Attributes:
        tensorboard: TensorBoard, in the folder of the run. wandb: a project of W&B. plot: a picture of the run at its end.
    """

    tensorboard: bool = False
    wandb: str | None = None
    plot: bool = True


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is written at the end.

    Attributes:
        merge: LoRA goes into the weights, and all of them are written; else LoRA lies in PEFT's layout beside what else was
            trained, and `load` puts it on its base.
        weights: dtype that they are stored in; None: as the base's.
        golden: inputs of golden.json, from the held-out or training data.
        summary, licence, languages: for the spec and the card.
    """

    merge: bool = True
    weights: Literal["fp32", "bf16", "fp16"] | None = None
    golden: int = 8
    summary: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an embedder is made.

    Attributes:
        name: what it will be called. seed: what all chance hangs on.
        model: what training begins with. data: sources by name. stage: the stages, in order.
        held_out: what is measured on the way, by name. export: what is written at the end. watch: who
            else is told.
        digests: sha256 of files of data, by path; training stops if one differs.
        folder: where relative paths start.
    """

    name: str
    model: Model
    data: Mapping[str, Source]
    stage: tuple[Stage, ...]
    seed: int = 0
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    export: Export = field(default_factory=Export)
    watch: Watch = field(default_factory=Watch)
    digests: Mapping[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        if not self.stage:
            raise SpecError("a recipe needs at least one [[stage]]")
        names = [stage.name for stage in self.stage]
        if len(set(names)) < len(names):
            raise SpecError(f"two stages have one name: {', '.join(names)}")
        for name in sorted(self.read_by(self.stage) | {held.data for held in self.held_out.values()}):
            check_known("data of this recipe", name, self.data)
        known = [f"{name}.{score}" for name, held in self.held_out.items() for score in SCORES[held.measure]]
        for stage in self.stage:
            if stage.keep_best is not None and stage.keep_best not in known:
                raise UnknownName("score of this recipe's held-out data", stage.keep_best, known)
        for task in (task for stage in self.stage for task in stage.task):
            scored = [str(loss["kind"]) for loss in task.losses if "score" in needs_of(loss)]
            bare = [name for name in task.data if self.data[name].columns.score is None]
            if scored and bare:
                raise SpecError(f"the loss {scored[0]!r} reads scores, and data {bare[0]!r} has none: columns.score")
            speaks = [str(loss["kind"]) for loss in task.losses if PREDICTED in needs_of(loss)]
            for name in task.data if speaks else ():
                columns = self.data[name].columns
                if any(column is not None and column.image is not None for column in (columns.query, columns.positive)):
                    raise SpecError(
                        f"the loss {speaks[0]!r} reads texts alone, and data {name!r} has pictures: columns of texts"
                    )
        for stage, task, kind in self._contrasts():
            for name in task.data if task.batch == 1 else ():
                if not self.data[name].columns.negatives and self.data[name].mined is None:
                    raise SpecError(
                        f"stage {stage.name!r}: the loss {kind!r} tells nothing apart in a batch of 1: data {name!r} has no hard "
                        "negatives, so nothing stands beside a positive; batch = 2 or more, columns.negatives, or mined"
                    )
        if not self.export.merge and self.model.load is None:
            raise SpecError(
                "export.merge = false leaves LoRA beside its base, and a composed model has none: model.load"
            )
        if not self.export.merge and all(stage.lora is None for stage in self.stage):
            raise SpecError(
                "export.merge = false leaves LoRA beside its base, and no stage puts one in: lora = { r = 16 }"
            )
        plain = [stage.name for stage in self.stage if stage.precision != self.model.precision == "bf16"]
        if plain:
            raise SpecError(
                f"model.precision = 'bf16' holds frozen weights so, and trained ones are fp32: what is of both goes by autocast, "
                f"precision = 'bf16' in stage {plain[0]!r} too"
            )
        if self.seed < 0:
            raise SpecError(f"seed={self.seed} must not be negative")
        adapted = False
        for stage in self.stage:
            adapted |= stage.lora is not None
            if stage.soup and adapted and {"lora", "all"} & set(stage.train):
                raise SpecError(
                    f"stage {stage.name!r} trains LoRA: a soup of its factors is no soup of weights; leave soup out"
                )
        trained = self.read_by(self.stage) & {held.data for held in self.held_out.values()}
        if trained:
            raise SpecError(f"held out, and trained on: {', '.join(sorted(trained))}")

    def _contrasts(self) -> typing.Iterator[tuple[Stage, Task, str]]:
        """Tasks with a contrastive loss, and its kind."""
        for stage in self.stage:
            for task in stage.task:
                found = [str(loss["kind"]) for loss in task.losses if is_contrastive(loss)]
                if found and not any(PREDICTED in needs_of(loss) for loss in task.losses):  # refused beside each other
                    yield stage, task, found[0]

    def check_views(self, spec: ModelSpec) -> None:
        """Raises: SpecError, a contrastive loss of things and themselves, which have one vector under the model's prompts."""
        for stage, task, kind in self._contrasts():
            for name in task.data:
                source = self.data[name]
                asked, told = source.prompts(spec)
                alone = not source.columns.negatives and source.mined is None and source.columns.positive is None
                if alone and not stage.dropout and asked == told and source.instruction is None:
                    raise SpecError(
                        f"stage {stage.name!r}: the loss {kind!r} only drives things apart on data {name!r}, whose positives are "
                        "the queries themselves and have their very vectors: columns.positive; or dropout = true in the stage, "
                        "by which the two differ (SimCSE); or a query_prompt and another positive_prompt"
                    )

    def unread_scores(self, task: Task) -> list[str]:
        """The data of a task whose pairs have scores, where one of its losses takes them for answers all the same; scores of
        negatives beside them may be of another of its losses."""
        losses = _innermost(task.losses)
        if all("score" in needs_of(loss) for loss in losses if is_contrastive(loss)):
            return []
        read = any("score" in needs_of(loss) for loss in losses)
        scored = [name for name in task.data if self.data[name].columns.score is not None]
        return [name for name in scored if self.data[name].graded or not read]

    def check_digests(self) -> None:
        """Raises: SpecError, a file that is not the one the recipe names."""
        for path, due in self.digests.items():
            try:
                with (self.folder / path).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise SpecError(f"{self.folder / path} cannot be read: {error.strerror}") from None
            if found != due:
                raise SpecError(f"{self.folder / path} is not the file of the recipe: its sha256 is {found}")

    def located(self, name: str) -> str | Path:
        """What `mmembed.load` is given for a model that the recipe names: a folder beside it, where there is one, or the name."""
        beside = self.folder / name
        return beside if beside.is_dir() else name

    def read_by(self, stages: typing.Iterable[Stage]) -> set[str]:
        """The data that stages draw from, or begin proxies with."""
        tasks = [task for stage in stages for task in stage.task]
        starts = {start for task in tasks for start in _settings(task.losses, "start") if start is not None}
        return starts | {name for task in tasks for name in task.data}

    @property
    def loaded(self) -> list[str | Path]:
        """The models that it begins with or asks, as `mmembed.load` is given them."""
        names = [self.model.load, *(task.teacher for stage in self.stage for task in stage.task)]
        return [self.located(name) for name in names if name is not None]

    def digest(self, stage: int | None = None) -> str:
        """Equal where two recipes train alike, up to the end of a stage: what comes later may still be thought over."""
        stages = self.stage if stage is None else self.stage[: stage + 1]
        read = self.read_by(stages)
        known = {name: source for name, source in self.data.items() if name in read}
        # What is done about a row that gives no example may be thought over when there is one.
        data = {name: dataclasses.replace(own.without_rows(), on_error="raise") for name, own in known.items()}
        return of_settings({"model": self.model, "data": data, "stage": stages, "seed": self.seed})


def _innermost(losses: typing.Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Losses, in the place of one that is over others these."""
    inside = [([loss["loss"]] if "loss" in loss else loss.get("losses"), loss) for loss in losses]
    return [each for inner, loss in inside for each in (_innermost(inner) if inner else [loss])]


def _settings(losses: typing.Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """What losses, or those inside them, say as one of their settings."""
    return [loss[name] for loss in _innermost(losses) if name in loss]


def read_recipe(path: Path, changes: typing.Sequence[str] = ()) -> Recipe:
    """The recipe of a file.

    Args:
        changes: "stage.0.steps=10" each, in place of what the file says.

    Raises:
        SpecError: what is wrong with it, with the line.

    Warns:
        UserWarning: data has scores, and a loss of a task drawing it takes its pairs for answers whatever these are.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    values, place = read_toml(text, str(path))
    for change in changes:
        _change(values, change)
    given = values.pop("folder", None)
    if given is not None:
        raise place.at("folder").error("the folder of a recipe is the one it lies in")
    recipe = call(Recipe, values, place, folder=path.absolute().parent)
    unread = sorted({name for stage in recipe.stage for task in stage.task for name in recipe.unread_scores(task)})
    if unread:
        warnings.warn(
            f"{path}: a loss of a task that draws {', '.join(map(repr, unread))} takes pairs of any columns.score for answers; "
            "'cosent' reads scores, and 'infonce' takes for answers those above its positive_above",
            stacklevel=2,
        )
    return recipe


def _spec(table: Mapping[str, Any], place: Place, more: typing.Collection[str] = ()) -> Mapping[str, Any]:
    """Fields of a spec as their annotations want them, and `more` as they are."""
    hints = typing.get_type_hints(ModelSpec)
    for key in table:
        if key not in hints and key not in more:
            raise place.at(key).error(UnknownName(f"setting of {place.name}", key, {*hints, *more}))
    pooling = {k: {"kind": v} for k, v in table.items() if k == "pooling" and isinstance(v, str)}  # as `compose` has it
    return {k: v if k in more else fitted(v, hints[k], place.at(k)) for k, v in {**table, **pooling}.items()}


def _compose(table: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """Arguments of `mmembed.compose`, and fields of a spec."""
    parameters = inspect.signature(loading.compose).parameters.values()
    return _spec(table, place, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY])


def _augmentation(settings: Mapping[str, Any], place: Place) -> None:
    """Try an augmentation on a white picture, often: what its settings draw from a range may fail at one end of it."""
    tried = dict(settings)
    if not 0 <= fitted(tried.pop("chance", 1.0), float, place.at("chance")) <= 1:
        raise place.at("chance").error(f"a chance of {settings['chance']} does not lie in [0, 1]")
    white, rng = PillowImage.new("RGB", (32, 32), "white"), np.random.default_rng(0)
    for _ in range(TRIES):
        try:
            called(augmentations, tried, place, picture=white, rng=rng)
        except (ArithmeticError, TypeError, ValueError) as error:
            if isinstance(error, MmembedError):
                raise
            raise place.error(f"{tried['kind']!r} cannot be done with these settings: {error}") from None


def _change(values: dict[str, Any], change: str) -> None:
    """Put "a.0.b=value" into a recipe, value as TOML writes it."""
    import tomllib

    key, found, value = change.partition("=")
    if not found:
        raise SpecError(f"--set takes KEY=VALUE, not {change!r}")
    *path, last = steps = key.strip().split(".")
    table: Any = values
    try:
        for at, part in enumerate(steps):
            if isinstance(table, list) and not (part.isdecimal() and int(part) < len(table)):
                raise IndexError(_no_such(steps[:at], part, len(table)))
            if at < len(path):
                table = table[int(part)] if isinstance(table, list) else table.setdefault(part, {})
        table[int(last) if isinstance(table, list) else last] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"--set {change}: {_unread(key.strip(), value.strip(), error)}") from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise SpecError(f"--set {change}: {error}") from None


def _unread(key: str, value: str, error: Exception) -> str:
    """Why a value is none of TOML, and what may have been meant."""
    if value in ("True", "False"):
        return f"true and false are in small letters: --set {key}={value.lower()}"
    if not value or any(mark in value for mark in "\"'[]{}"):
        return str(error)
    return f"{value!r} is no value of TOML, where texts are quoted: --set '{key}=\"{value}\"'"


def _no_such(path: typing.Sequence[str], part: str, count: int) -> str:
    """That a list has none of that number, and which it has."""
    name = ".".join(path)
    numbered = f"{name}.0" if count == 1 else f"{name}.0 to {name}.{count - 1}"
    return f"there is no {name}.{part}: the recipe has {f'{count}, {numbered}' if count else 'none'}"
