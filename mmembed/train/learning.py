"""One stage of a run: its batches are drawn, embedded, measured and learnt from, looked at, kept and taken up again."""

from __future__ import annotations

import gc
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..embedder import Embedder
from ..errors import LoadError, SpecError, TrainingError
from ..model import EmbeddingModel
from . import checkpoints, parts
from .building import restore
from .collator import Collator, idle
from .compared import Compared, Embedded
from .data import Example
from .drawn import OUTPUTS, OutputKind, PackedRow, TrainStep, compared, embedded, nothing
from .fsdp import Shards, clip, put, unsharded
from .grad_cache import accumulate
from .held_out import check_groups, mean_of_groups, measure
from .losses import PREDICTED, Loss, build_loss, measures_alone
from .losses.proxies import Proxies
from .mixture import Mixture
from .predicted import Spoken
from .recipe import Stage, Task
from .schedule import factor
from .watch import Log
from .workers import Workers

if TYPE_CHECKING:
    from .loop import Run

EVERY = 600.0
"""Seconds from one checkpoint to the next, where a stage does not say at which steps they are due."""
Tasks = Mapping[int, Sequence[Example]]
"""Of every task of a step the examples, those of all processes."""


class Learning:
    """One stage of a run.

    Args:
        run: the run. number: which of its stages. before: steps of the stages before it.
    """

    def __init__(self, run: Run, number: int, before: int):
        self.run_, self.number, self.before = run, number, before
        self.stage: Stage = run.recipe.stage[number]
        run.model.eval()  # the stage before may have left dropout or statistics on, and what changes is tried
        self.embedder = run.embedder.respecified(**self.stage.spec, **_resized(run.embedder, self.stage))
        self.seed = [run.recipe.seed, number]
        self.step = 0  # steps that are done
        self.state: dict[str, Any] = {}
        self.saved = 0, time.monotonic()  # the step of the last checkpoint, and when it was
        # the best score of the looks so far, the weights that had it, how many looks there were since, and the step of the last
        self.best: tuple[float, dict[str, Tensor]] = float("-inf"), {}
        self.waited = self.looked = 0
        self.mixtures = [
            Mixture(
                {name: run.data[name] for name in task.data},
                batch=task.batch,
                shares=task.shares,
                temperature=task.temperature,
                language_temperature=task.language_temperature,
                group=task.group,
                twins=all(measures_alone(loss) for loss in task.losses),
                seed=[*self.seed, k],
            )
            for k, task in enumerate(self.stage.task)
        ]

    @property
    def model(self) -> EmbeddingModel:
        """The parts of the run's model, under the spec of this stage."""
        assert isinstance(self.embedder.model, EmbeddingModel)
        return self.embedder.model

    def choose(self, begun: bool = False) -> None:
        """Put the model into the shape of this stage: LoRA in, what is not trained frozen; and make the optimizer.

        Args:
            begun: proxies are not asked for, nor what trained weights begin with, which may take minutes: a checkpoint has
                them, the stage is over, or nobody learns.
        """
        run, stage = self.run_, self.stage
        model = run.model
        if stage.lora is not None:
            if not run.adapted:
                if run.shards is not None:
                    raise SpecError(
                        f"stage {stage.name!r} puts LoRA into weights that lie in parts: in the first stage, or leave shard out"
                    )
                torch.manual_seed(parts.seeded(*self.seed, 1))
                parts.put_lora(model, stage.lora)
                model.to(run.device)
                names = {
                    id(own): name for name, own in model.named_parameters()
                }  # LoRA calls what it stands beside otherwise
                run.changed = {names.get(id(own), name): own for name, own in run.changed.items()}
                run.adapted = True
            elif stage.lora != next(s.lora for s in run.recipe.stage if s.lora is not None):
                raise SpecError(f"stage {stage.name!r} asks for another LoRA than the one that is in already")
        held = [*model.named_parameters(), *model.named_buffers()]
        rounded = {name for name, own in held if own.is_floating_point() and own.dtype != torch.float32}
        self.weights = parts.choose(model, stage)
        rounded &= (self.weights | parts.buffers(model, self.weights)).keys()
        if any(isinstance(self.weights.get(name), DTensor) for name in rounded):
            raise SpecError(
                f"stage {stage.name!r} trains weights that lie in parts in {run.recipe.model.precision}: "
                "model.precision = 'fp32', or leave shard out"
            )
        if rounded and not begun:
            restore(run.recipe, model, rounded)
        for task in stage.task:
            if task.teacher is not None:
                run.teacher(task.teacher)  # loaded first: what it draws is not what losses begin with
        torch.manual_seed(parts.seeded(*self.seed, 4))
        self.losses = nn.ModuleDict(
            {f"{t}_{k}": self._loss(s, task) for t, task in enumerate(stage.task) for k, s in enumerate(task.losses)}
        ).to(run.device)
        self.classes = {t: self._classes(task) for t, task in enumerate(stage.task) if self._proxies(t)}
        for t in self.classes:
            for proxies in self._proxies(t):
                self._check_start(proxies, self.classes[t], t)
                if begun:
                    proxies.begin(torch.zeros(len(self.classes[t]), self.embedder.dimension))
                    continue
                with run.whole(), run.autocast(run.recipe.model.precision):
                    proxies.begin(self._start(proxies, self.classes[t], t))
        self.speaking = frozenset(k for k in range(len(stage.task)) if self._speaks(k))
        if self.speaking:
            assert run.head is not None, "build loads it for such losses"
            self.weights |= parts.choose_head(run.head, model, stage)
        comparing = [own for k, own in self._of_tasks() if k not in self.speaking]
        self.outputs = _outputs([loss for own in comparing for loss in own], stage)
        self.idle = idle(self.embedder, self.outputs, stage).to(run.device) if run.shard else None
        if self.idle is not None and run.shards is None:
            run.shards = Shards(self.model, run.world)
            with torch.no_grad():  # a text goes through the backbone as a whole: FSDP2 sees what is inside of what
                self.embedded(self.idle)
            self.weights = parts.choose(model, stage)
        self.learnt = {f"loss.{name}": weight for name, weight in self.losses.named_parameters()}
        self.every = {**self.weights, **self.learnt}
        self.groups = parts.groups(self.weights, stage, [*self.learnt.values()], parts.embedded_by(model))
        # Fused: one pass over a weight, its gradient and moments, a fifth of the time of torch's default on a CPU.
        self.optimizer = torch.optim.AdamW(
            self.groups, lr=stage.lr, betas=(stage.betas[0], stage.betas[1]), eps=stage.eps, fused=True
        )
        self.buffers = parts.buffers(model, self.weights)
        run.changed |= {**self.weights, **self.buffers}
        changing = {**self.weights, **{k: b for k, b in self.buffers.items() if b.is_floating_point()}}
        self.average = {k: w.detach().clone() for k, w in changing.items()} if stage.ema_decay is not None else {}
        self.earlier = {k: w.detach().clone() for k, w in changing.items()} if stage.soup else {}

    def _of_tasks(self) -> Iterator[tuple[int, list[Loss]]]:
        """The losses of each task, with its number."""
        for t, task in enumerate(self.stage.task):
            yield t, [cast(Loss, self.losses[f"{t}_{k}"]) for k in range(len(task.losses))]

    def _speaks(self, number: int) -> bool:
        """Whether a task's losses read a language head.

        Raises:
            SpecError: some do and some do not.
        """
        needs = [loss.needs for loss in dict(self._of_tasks())[number]]
        speaks = [PREDICTED in each for each in needs]
        if any(speaks):
            for settings in self.stage.task[number].losses:
                _over(settings)
        if any(speaks) and not all(each <= {PREDICTED} for each in needs):
            raise SpecError(
                f"stage {self.stage.name!r}, task {number}: losses of a language head and of vectors are of two tasks, each with "
                "its data; together = true learns from both in a step"
            )
        return any(speaks)

    def _loss(self, settings: Mapping[str, Any], task: Task) -> Loss:
        run = self.run_
        teacher = None if task.teacher is None else run.teacher(task.teacher)
        loss = build_loss(
            {key: value for key, value in settings.items() if key != "weight"},
            width=self.embedder.dimension,
            teacher_width=None if teacher is None else teacher.dimension,
        )
        if "teacher" in loss.needs and teacher is None:
            raise SpecError(f"the loss {settings['kind']!r} reads a teacher, and its task names none: teacher = '...'")
        return loss

    def _proxies(self, task: int) -> list[Proxies]:
        own = [loss for name, loss in self.losses.items() if name.startswith(f"{task}_")]
        return [module for loss in own for module in loss.modules() if isinstance(module, Proxies)]

    def _classes(self, task: Task) -> dict[str, int]:
        """A number for each group of a task's data."""
        values = {value for name in task.data for value in self.run_.data[name].groups(all_of_one=True)}
        return {value: k for k, value in enumerate(sorted(values))}

    def _start(self, proxies: Proxies, classes: Mapping[str, int], task: int) -> Tensor:
        """Where proxies begin, (C, D)."""
        run, name = self.run_, proxies.start
        if name is None:
            torch.manual_seed(parts.seeded(*self.seed, 3, task))
            return torch.randn(len(classes), self.embedder.dimension)
        said = self.stage.task[task].teacher
        asked = self.embedder if proxies.by == "self" or said is None else run.teacher(said)
        return torch.from_numpy(mean_of_groups(asked, run.data[name], classes))

    def _check_start(self, proxies: Proxies, classes: Mapping[str, int], task: int) -> None:
        """What can be said before anything is embedded.

        Raises:
            SpecError: there is nothing that proxies could begin by.
        """
        run, name = self.run_, proxies.start
        if name is None:
            return
        if proxies.by == "teacher" and self.stage.task[task].teacher is None:
            raise SpecError("proxies begin by a teacher, and their task names none: teacher = '...'")
        check_groups(run.data[name], run.data[name].groups(), classes)

    # ---- steps ---------------------------------------------------------------------------------------------------------

    def run(self, log: Log) -> None:
        """All steps that are left."""
        run, stage = self.run_, self.stage
        parts.set_modes(run.model, stage, self.weights)
        if self.step and self._to_be_seen:  # it was stopped behind a checkpoint and before a look, or in it
            self._look(log)
        if not (self._done or self._given_up):
            self._steps(log)
        self.settle()
        with torch.no_grad():
            for name, own in self.best[1].items():
                run.changed[name].copy_(own)

    def _steps(self, log: Log) -> None:
        """Learn until the stage is over."""
        run, stage = self.run_, self.stage
        with Workers(self.collator, run.workers) as make, ThreadPoolExecutor(1, "batches") as ahead, _settled():
            batches = self.batches(make)
            waiting = ahead.submit(next, batches, None)
            while (step := self._next(waiting)) is not None:
                waiting = ahead.submit(next, batches, None)
                record = self._learn(step)
                self.step, self.state = step.number + 1, dict(step.state)
                log.step({"step": self.before + self.step, "stage": stage.name, **record})
                log.skipped(run.data)
                stopping, late = zip(*run.world.told((run.stopping.is_set(), self._late)), strict=True)
                if (
                    self._done
                    or any(stopping)
                    or (late[0] if stage.save_steps is None else self.step % stage.save_steps == 0)
                ):
                    self.save()
                if any(stopping):
                    raise KeyboardInterrupt
                if self._to_be_seen:
                    self._look(log)
                if self._given_up:
                    self.save()  # where the stage ends
                    break

    @property
    def _done(self) -> bool:
        return self.step == self.stage.steps

    @property
    def _given_up(self) -> bool:
        """Whether so many looks were no better that the stage ends before its last step."""
        return self.stage.early_stopping_patience is not None and self.waited >= self.stage.early_stopping_patience

    @property
    def _to_be_seen(self) -> bool:
        """Whether held-out data is looked at behind this step."""
        return self._done or bool(self.stage.eval_steps and self.step % self.stage.eval_steps == 0)

    @property
    def _late(self) -> bool:
        """Whether the last checkpoint is so old that one is due where the recipe does not say when."""
        return time.monotonic() - self.saved[1] > EVERY

    def _next(self, waiting: Future[TrainStep | None]) -> TrainStep | None:
        """The batch that was waited for. Where it cannot be made, the steps before it are kept."""
        try:
            return waiting.result()
        except Exception:
            if self.saved[0] < self.step and self.run_.world.size == 1:  # else the others are waiting elsewhere
                with suppress(TrainingError):
                    self.save()
            raise

    @property
    def collator(self) -> Collator:
        run = self.run_
        return Collator(
            self.embedder,
            {name: examples.source.without_rows() for name, examples in run.data.items()},
            self.stage,
            run.world,
            self.outputs,
            self.speaking,
            [*self.seed, 1 << 22],
        )

    def batches(self, make: Workers) -> Iterator[TrainStep]:
        """The batches of the steps that are left, on the device of the run, with what the teachers say."""
        due: deque[tuple[Callable[[], TrainStep], Tasks, Mapping[str, Any]]] = deque()
        for number in range(self.step, self.stage.steps):
            tasks = self._drawn(number)
            due.append((make(tasks, number), tasks, {"mixtures": [mixture.state() for mixture in self.mixtures]}))
            if len(due) > make.count:
                yield self._told(*due.popleft())
        while due:
            yield self._told(*due.popleft())

    def _drawn(self, number: int) -> Tasks:
        """The examples of a step, those of all processes: of every task, or of the one whose turn it is."""
        stage = self.stage
        if stage.together:
            chosen = range(len(stage.task))
        else:
            chances = np.array([task.share for task in stage.task])
            one = np.random.default_rng([*self.seed, 1 << 21, number]).choice(len(chances), p=chances / chances.sum())
            chosen = range(int(one), int(one) + 1)
        return {k: next(self.mixtures[k]) for k in chosen}

    def _told(self, made: Callable[[], TrainStep], tasks: Tasks, state: Mapping[str, Any]) -> TrainStep:
        """A batch as it was made, with its examples, and with what teachers say of those that are left."""
        run, step = self.run_, made()
        drawn = []
        for own in step.drawn:
            teacher = self.stage.task[own.task].teacher
            said = None
            if teacher is not None:
                rows = [(tasks[own.task][k], own.chosen[k]) for k in own.own if k not in own.dropped]
                said = run.teacher(teacher).of(rows)
            drawn.append(replace(own, teacher=said))
        return replace(step.to(run.device), drawn=drawn, examples=tasks, state=state)

    def _learn(self, step: TrainStep) -> dict[str, Any]:
        """One step of learning; what the log says of it."""
        run, stage = self.run_, self.stage
        torch.manual_seed(parts.seeded(*self.seed, 2, step.number, run.world.rank))
        rate = factor(step.number, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        told: dict[str, Any] = {}
        loss = self._gradient(step, told)
        run.world.add_gradients(self.weights.values(), self.learnt.values())
        norm = clip(self.every.values(), stage.max_grad_norm or float("inf"))
        if not (np.isfinite(loss) and bool(norm.isfinite())):
            raise TrainingError(self._not_finite(step, loss, float(norm), told["losses"]))
        if told["losses"]:  # else every example was left out, and a step would only let weights decay
            self.optimizer.step()
        # The fused step changes weights and does not say so: copies of them in another layout (`towers.lean`) would stay in use.
        torch.autograd.graph.increment_version(self.every.values())
        # Each process had the statistics of its own share; from here on all have one model again.
        run.world.average(buffer for buffer in self.buffers.values() if buffer.is_floating_point())
        for name, mean in self.average.items():
            assert stage.ema_decay is not None
            share = 1 - min(stage.ema_decay, (step.number + 1) / (step.number + 10))
            mean.lerp_(run.changed[name].detach(), share)
        learnt = {"loss": loss, "grad_norm": float(norm)} if told["losses"] else {}
        return {
            **learnt,
            **told,
            "lr": stage.lr * rate,
            "tokens": sum(run.world.told(step.tokens)),
            "images": sum(run.world.told(step.images)),
            **({"truncated": truncated} if (truncated := sum(run.world.told(step.truncated))) else {}),
        }

    def _gradient(self, step: TrainStep, told: dict[str, Any]) -> float:
        """Loss of the batch, its gradient in the weights; rows beyond the first by GradCache."""
        told["losses"] = {}
        return (self._compared(step, told) if step.drawn else 0.0) + self._said(step, told)

    def _compared(self, step: TrainStep, told: dict[str, Any]) -> float:
        """Of what is compared."""
        rows = step.rows
        if self.idle is not None:
            rows = [*[self.idle] * (max(self.run_.world.told(len(rows))) - len(rows)), *rows]
        if not rows:  # no example of this process: what others embedded is measured all the same
            measured = self._measured(step, nothing(self.model, self.outputs), told)
            if measured.requires_grad:
                measured.backward()
            return float(measured.detach())
        loss = accumulate(
            self.embedded,
            rows,
            lambda every: self._measured(step, every, told),
            statistics=self.buffers.values(),
        )
        return float(loss)

    def _said(self, step: TrainStep, told: dict[str, Any]) -> float:
        """Of what a language head predicts, a row at a time: a mean over tokens or texts is a sum over rows."""
        run = self.run_
        total = 0.0
        for task in sorted(self.speaking & step.examples.keys()):
            rows = [row for row in step.spoken if row.task == task]
            tokens, texts = (
                sum(told)
                for told in zip(*run.world.told([sum(r.tokens for r in rows), sum(r.texts for r in rows)]), strict=True)
            )
            for k, settings in enumerate(self.stage.task[task].losses):
                loss = self.losses[f"{task}_{k}"]
                whole = 0.0
                for row in rows:
                    share = row.texts / max(texts, 1) if _over(settings) == "samples" else row.tokens / max(tokens, 1)
                    value = share * loss(self.predicted(row))
                    (float(settings.get("weight", 1.0)) * value).backward()
                    whole += float(value.detach())
                whole = sum(run.world.told(whole))
                told["losses"][_called(self.stage, task, k)] = whole
                total += float(settings.get("weight", 1.0)) * whole
        return total

    def predicted(self, row: Spoken) -> Compared:
        """A row as its losses read it."""
        run = self.run_
        assert run.head is not None
        with run.autocast(self.stage.precision):
            predicted = row.predicted(self.model, run.head)
        none = torch.empty(0, dtype=torch.long, device=run.device)
        return Compared(
            queries=Embedded(count=0),
            documents=Embedded(count=0),
            owner=none,
            positive=none.bool(),
            predicted=predicted,
        )

    def embedded(self, row: PackedRow) -> Embedded:
        """The things of a packed row, as the losses of this stage read them."""
        with self.run_.autocast(self.stage.precision):
            return embedded(self.model, row)

    def _measured(self, step: TrainStep, rows: Embedded, told: dict[str, Any]) -> Tensor:
        """The loss of all tasks, of things in the order of the batches."""
        run = self.run_
        place = torch.empty(len(step.order), dtype=torch.long)
        place[torch.tensor(step.order, dtype=torch.long)] = torch.arange(len(step.order))
        things = rows.take(place.to(run.device))
        total = torch.zeros((), device=run.device)
        skipped = 0
        for drawn in step.drawn:
            found, gone = compared(
                drawn, step.examples[drawn.task], things, run.world, step.number, self.classes.get(drawn.task)
            )
            skipped += len(gone)
            for k, why in gone.items():
                example = step.examples[drawn.task][k]
                run.data[example.source].skip(example.row, why)
            if found is None:
                continue
            for k, settings in enumerate(self.stage.task[drawn.task].losses):
                value = self.losses[f"{drawn.task}_{k}"](found)
                total = total + float(settings.get("weight", 1.0)) * value
                told["losses"][_called(self.stage, drawn.task, k)] = float(value.detach())
        told |= {"skipped": skipped} if skipped else {}
        return total

    def _not_finite(self, step: TrainStep, loss: float, norm: float, losses: Mapping[str, float]) -> str:
        """What to say of a step that gave no numbers; the whole batch is written beside the checkpoints."""
        run = self.run_
        drawn = [(task, example) for task, examples in step.examples.items() for example in examples]
        batch = [{"task": task, "data": example.source, "row": example.row} for task, example in drawn]
        path = run.folder / f"bad-batch-{self.before + step.number + 1}.json"
        if run.world.leads:
            path.write_text(json.dumps(batch, indent=1), encoding="utf-8")
        rows = [f"{example.source} {example.row}" for _, example in drawn]
        some = ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
        said = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        return (
            f"stage {self.stage.name!r}, step {step.number + 1}: loss {loss:.4g} ({said}), gradient of norm {norm:.4g}: no "
            f"numbers to learn from. Rows: {some} (all in {path}); {self._advice}"
        )

    @property
    def _advice(self) -> str:
        """What is left where numbers are none any more, and what may help."""
        last = checkpoints.found(self.run_.folder)
        kept = f"{last[-1].name} is the last good checkpoint" if last else "no checkpoint was due before it"
        return f"{kept}. A lower lr or max_grad_norm may help, or precision = 'fp32'"

    # ---- looks, checkpoints --------------------------------------------------------------------------------------------

    def _look(self, log: Log) -> None:
        run = self.run_
        if not run.recipe.held_out:
            return
        best = None
        with self.averaged(), run.whole(), run.autocast(run.recipe.model.precision):
            if run.world.leads:
                run.model.eval()
                scores = {
                    name: measure(self.embedder, run.data[held.data], held)
                    for name, held in run.recipe.held_out.items()
                }
                log.scores(self.before + self.step, self.stage.name, scores)
                log.skipped(run.data)
                if self.stage.keep_best is not None:
                    name, _, kind = self.stage.keep_best.rpartition(".")
                    best = scores[name][kind]
            best = run.world.told(best)[0]
        self.waited += self.step != self.looked  # a run that goes on may look again
        self.looked = self.step
        if best is not None and best > self.best[0]:
            self.waited = 0
            with self.averaged():
                self.best = best, {name: own.detach().clone() for name, own in (self.weights | self.buffers).items()}
        parts.set_modes(run.model, self.stage, self.weights)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With what the stage would leave in place of the weights."""
        own = {name: self.run_.changed[name] for name in self.average.keys() | self.earlier.keys()}
        kept = {name: tensor.detach().clone() for name, tensor in own.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(kept[name])

    def settle(self) -> None:
        """At the end of a stage its mean is what stays, in a soup with what was before it."""
        with torch.no_grad():
            for name, mean in self.average.items():
                self.run_.changed[name].copy_(mean)
            for name, weight in self.earlier.items():
                self.run_.changed[name].lerp_(weight, self.stage.soup)

    def save(self) -> None:
        """Write a checkpoint, by the process that leads.

        Raises:
            TrainingError: there is no room for it, or weights are no numbers any more, which no run could go on from.
        """
        run = self.run_
        held: dict[str, Tensor] = {}
        if run.world.leads or run.shards is not None:
            tensors = {f"weight.{name}": tensor for name, tensor in run.changed.items()}
            tensors |= {f"loss.{name}": weight for name, weight in self.losses.named_parameters()}
            tensors |= {f"average.{name}": mean for name, mean in self.average.items()}
            tensors |= {f"earlier.{name}": weight for name, weight in self.earlier.items()}
            tensors |= {f"best.{name}": own for name, own in self.best[1].items()}
            counts = {}
            for name, weight in self.every.items():
                own = self.optimizer.state.get(weight, {})
                for key in ("exp_avg", "exp_avg_sq"):
                    if key in own:
                        tensors[f"{key}.{name}"] = own[key]
                        counts[name] = float(own["step"])
            for name, tensor in tensors.items():  # one after the other: whole they may be more than a device holds
                entire = unsharded(tensor)
                if run.world.leads:
                    held[name] = entire.cpu()
        if run.world.leads:
            for name, tensor in held.items():
                if not tensor.isfinite().all():
                    raise TrainingError(
                        f"stage {self.stage.name!r}, step {self.step}: {name} is no number any more; {self._advice}"
                    )
            state = {
                "stage": self.number,
                "step": self.before + self.step,
                "in_stage": self.step,
                "recipe": run.recipe.digest(self.number),
                "adam": counts,
                "best": self.best[0] if self.best[1] else None,
                "waited": self.waited,
                "looked": self.looked,
                "made_of": self._made_of,
                **self.state,
            }
            try:
                checkpoints.save(run.folder, self.before + self.step, held, state)
            except OSError as error:
                last = checkpoints.found(run.folder)
                kept = f"{last[-1].name} is there and whole" if last else "there is none before it"
                raise TrainingError(
                    f"the checkpoint of step {self.before + self.step} cannot be written to {run.folder}: "
                    f"{error.strerror or error}; {kept}. Make room and go on with resume=True (--resume)"
                ) from None
        run.world.wait()
        self.saved = self.step, time.monotonic()

    @cached_property
    def _made_of(self) -> dict[str, str]:
        """Stamps of what this stage learns from, by what a message calls it."""
        run = self.run_
        data = sorted({name for task in self.stage.task for name in task.data})
        teachers = sorted({task.teacher for task in self.stage.task if task.teacher is not None})
        return {
            f"the model that it begins with ({run.recipe.model.load or 'composed'})": run.stamp,
            **{f"data {name!r}": run.data[name].stamp for name in data},
            **{f"the teacher {name!r}": run.teacher(name).stamp for name in teachers},
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up a checkpoint of this stage.

        Raises:
            LoadError: it lacks weights. SpecError: the model, a teacher or data of this stage is another by now.
        """
        run = self.run_
        if not {"made_of", "looked"} <= state.keys():
            raise LoadError(f"{run.folder} holds a run of an earlier version of mmembed: remove it to begin again")
        if state["in_stage"] < self.stage.steps:  # a whole stage draws nothing more: its data may be another by now
            then = state["made_of"]
            for what, stamp in self._made_of.items():
                if then.get(what) != stamp:
                    raise SpecError(
                        f"{run.folder} holds a run that began otherwise: {what} has changed since. Put it back as it was, or "
                        "remove the folder to begin again"
                    )
        due = {f"weight.{name}" for name in run.changed} | set(self.learnt)
        due |= {f"average.{name}" for name in self.average} | {f"earlier.{name}" for name in self.earlier}
        lacking = due - tensors.keys()
        if lacking:
            raise LoadError(f"{run.folder}: the checkpoint lacks {', '.join(sorted(lacking)[:3])}")
        self.step, self.waited, self.looked = state["in_stage"], state["waited"], state["looked"]
        for name, own in run.changed.items():
            put(own, tensors[f"weight.{name}"])
        for name, weight in self.learnt.items():
            put(weight, tensors[name])
        for kind, held in (("average", self.average), ("earlier", self.earlier)):
            for name, tensor in held.items():
                put(tensor, tensors[f"{kind}.{name}"])
        if state["best"] is not None:
            seen = self.weights | self.buffers
            self.best = (
                state["best"],
                {k: put(torch.empty_like(w.detach()), tensors[f"best.{k}"]) for k, w in seen.items()},
            )
        for name, count in state["adam"].items():
            weight = self.every[name]
            # Laid out as the weight is: the fused step walks over both as they lie.
            moments = {
                key: put(torch.empty_like(weight.detach()), tensors[f"{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[weight] = {"step": torch.tensor(count, device=weight.device), **moments}
        if not self._done:
            for mixture, own_state in zip(self.mixtures, state["mixtures"], strict=True):
                mixture.restore(own_state)
        self.state = {"mixtures": state["mixtures"]}
        self.saved = self.step, time.monotonic()


@contextmanager
def _settled() -> Iterator[None]:
    """Inside, what is in memory now is not searched for cycles again and again: a million rows are, at every batch of objects,
    which took a fifth of the time that a batch takes to make."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _resized(embedder: Embedder, stage: Stage) -> dict[str, Any]:
    """The entry of the spec that a stage's `image_size` asks for.

    Raises:
        SpecError: a model without a tower.
    """
    if stage.image_size is None:
        return {}
    vision = embedder.spec.vision
    if vision is None:
        raise SpecError(
            f"stage {stage.name!r} asks for image_size={stage.image_size}, and the model has no vision tower"
        )
    return {"vision": {**vision, "preprocess": {**vision["preprocess"], "size": stage.image_size}}}


def _over(settings: Mapping[str, Any]) -> str:
    """What a loss of a language head is a mean over: a batch goes through it a row at a time.

    Raises:
        SpecError: a sum of losses of both kinds.
    """
    inside = {_over(each) for each in settings.get("losses", ())} or {str(settings.get("over", "tokens"))}
    if len(inside) > 1:
        raise SpecError(
            f"a sum of losses over {' and over '.join(sorted(inside))} is no mean over rows: make it two losses"
        )
    return inside.pop()


def _called(stage: Stage, task: int, loss: int) -> str:
    """What a loss goes by in the log: its kind, with the number of its task where there are several."""
    kind = stage.task[task].losses[loss]["kind"]
    alike = sum(each["kind"] == kind for own in stage.task for each in own.losses)
    return f"{kind}.{task}.{loss}" if alike > 1 else str(kind)


def _outputs(losses: Sequence[Loss], stage: Stage) -> tuple[OutputKind, ...]:
    """What losses read of a model.

    Raises:
        SpecError: kinds that no forward pass gives together.
    """
    needs = {need for loss in losses for need in loss.needs}
    kinds: list[OutputKind] = [kind for kind in OUTPUTS if kind in needs]
    if "layers" in kinds:
        kinds.remove("vectors") if "vectors" in kinds else None
        if len(kinds) > 1:
            raise SpecError(
                f"stage {stage.name!r} has losses of vectors behind several layers, and of {', '.join({*kinds} - {'layers'})}: "
                "no forward pass gives both"
            )
    return tuple(kinds) if kinds or not losses else ("vectors",)
