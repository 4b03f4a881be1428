"""The training loop, for every objective: batch, loss, backward, clip, step, log, validate, save.

Everything random in a step follows from (seed, step), so a run that was killed and repeated ends in the same weights, bit for
bit, as one that was not. No number is fetched from the device but to log it.
"""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tubelet import find, models
from tubelet.errors import DataError, TrainingError, printable
from tubelet.loading import TrainLoader, derive, generator_for, view_batches
from tubelet.models._model import Model
from tubelet.records import Batch, Dataset
from tubelet.train import checkpoint, data, folder, optim, plan
from tubelet.train.config import TrainConfig
from tubelet.train.device import autocast, choose_device, choose_precision, set_up
from tubelet.train.log import Log, Progress, environment, say
from tubelet.train.meter import Meter
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save as save_model

SECONDS_BETWEEN_CHECKPOINTS = 180.0

OnStep = Callable[[int, dict[str, Tensor]], None]


def train(config: TrainConfig, on_step: OnStep | None = None) -> Path:
    """Carry out a run and give its folder; the same call continues a run that was stopped, and a finished one is left alone.

    on_step(step, numbers) is called after every step (the first is 1) with the step's numbers, still on the device.
    The model that is left in `<out>/model` holds the last weights, or their moving average where `optim.ema` is set; none is
    picked by its validation result, so that the validation stays a fair estimate.

    Raises TubeletError for what the user can mend. Ctrl-C and SIGTERM finish the step, save, and raise KeyboardInterrupt.
    """
    config = dataclasses.replace(config, data=data.absolute(config.data))
    out = Path(config.out)
    with folder.hold(out):
        folder.check(out, config)
        try:
            run = Run(config)
            if run.is_finished():
                say(f"{out} is finished ({run.steps} steps): nothing to do. Choose another --out for a new run")
                return out
            run.announce()
            folder.begin(out, config, run.environment)
            if run.step < run.steps:
                run.learn(on_step)
            run.finish()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of the GPU is not enough for batches of {config.loader.batch_size} clips: lower --loader.batch-size "
                f"and raise --optim.accumulate (now {config.optim.accumulate}) alike: the effective batch stays"
            ) from error
    return out


class Run:
    """What a run remembers between steps: data, model, optimiser, moving average, and how far it is."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.objective: ModuleType = find.module("tubelet.objectives", config.objective)
        self.settings = getattr(config, config.objective)
        self.device = choose_device(config.run.device)
        self.precision = choose_precision(config.run.precision, self.device)
        set_up(self.device, config.run.deterministic, config.run.threads)

        self.train_set, self.val_set = data.load(config.data, self.objective.NEEDS_LABELS)
        videos = len(self.train_set.examples)
        facts = {"videos": videos, "fingerprint": data.fingerprint(self.train_set)}
        self.environment = environment(self.device, self.precision, facts)
        folder.check_data(self.out, self.environment)
        self.loader = TrainLoader(
            self.train_set, config.clip, config.augment, config.loader, config.run.seed, pinned=self.device.type == "cuda"
        )

        self.steps_per_epoch = videos * config.loader.repeats / config.clips_per_step
        self.steps = optim.total_steps(config.optim, self.steps_per_epoch)
        self.warmup = optim.warmup_steps(config.optim.warmup, self.steps, self.steps_per_epoch)
        self.peak = optim.peak_lr(config.optim, config.clips_per_step)
        every = self.steps / max(1, config.run.validations)
        self.validate_at = {round(every * (i + 1)) for i in range(config.run.validations)} if self.val_set else set()

        saved = checkpoint.load_latest(self.out / "checkpoints", say)
        self.model = new_model(config, self.train_set, self.objective.NEEDS_LABELS, start=saved is None).to(self.device)
        if config.optim.freeze:
            say(f"all but the head is frozen: {optim.freeze_all_but_head(self.model):,} parameters are trained")
        self.net = torch.compile(self.model) if config.run.compile else self.model
        self.optimizer = optim.adamw(self.model, config.optim)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in trained.items()} if config.optim.ema else {}
        self.step, self.seconds, self.skipped, self.padded = 0, 0.0, 0, 0
        if saved is not None:
            checkpoint.restore(saved, self.model, self.optimizer, self.ema)
            self.step, self.seconds = saved.state["step"], saved.state["seconds"]
            self.skipped, self.padded = saved.state["skipped"], saved.state["padded"]

    def is_finished(self) -> bool:
        """The model of the last step is there, and its report where one is wanted and a checkpoint is left to draw it from."""
        reported = not self.config.run.report or (self.out / "report.html").exists() or self.step < self.steps
        return folder.finished_steps(self.out) == self.steps and reported

    def announce(self) -> None:
        """Say what is going to be done."""
        if not self.step:
            say(plan.describe(self))
            return
        say(f"continuing {self.out} after step {self.step} of {self.steps}")
        changed = folder.changed_machine(self.out, self.environment)
        if changed and self.step < self.steps:
            say(f"the result will not be bit for bit that of a run without a break: {'; '.join(changed)}")

    def learn(self, on_step: OnStep | None) -> None:
        """Every step that is still to do."""
        config, accumulate = self.config.run, self.config.optim.accumulate
        log, progress, meter = Log(self.out, self.step, config.tensorboard), Progress(self.steps, self.step), Meter(self.device)
        stream = self.loader.batches(self.step * accumulate, self.steps * accumulate)
        unreadable = Unreadable(self.steps_per_epoch)
        seconds_before, began = self.seconds, time.monotonic()
        saved_at = began
        optim.training_mode(self.model)
        with contextlib.closing(log), contextlib.closing(progress), stop_signals() as stop, closing(stream):
            while self.step < self.steps:
                with meter.waiting():
                    batches = [next(stream) for _ in range(accumulate)]
                numbers = self.update(batches)
                self.step += 1
                self.skipped += sum(len(batch.skipped) for batch in batches)
                self.padded += sum(batch.padded for batch in batches)
                self.seconds = seconds_before + time.monotonic() - began
                meter.add(self.step, numbers, sum(len(batch.ids) for batch in batches))
                unreadable.report(batches)

                last, stopping = self.step == self.steps, stop.is_set()
                if self.step % config.log_every == 0 or self.step in self.validate_at or last or stopping:
                    meter.check(self.out)
                    entry = self.entry() | meter.read()
                    if self.step in self.validate_at:
                        entry |= self.validate()
                        meter.restart()
                    log.write(entry)
                    progress.show(entry)
                elif progress.due():
                    meter.check(self.out)
                    progress.show(self.entry() | meter.means())
                if on_step is not None:
                    on_step(self.step, numbers)
                if config.checkpoint_every:
                    due = self.step % config.checkpoint_every == 0
                else:
                    due = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                if due or last or stopping:
                    meter.check(self.out)
                    self.save()
                    saved_at = time.monotonic()
                if stopping and not last:
                    say(f"stopped after step {self.step} of {self.steps}, saved: the same command continues")
                    raise KeyboardInterrupt

    def update(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One step on the mean gradient over all clips of the batches; gives its numbers. Without any clip nothing changes."""
        config, clips = self.config, sum(len(batch.ids) for batch in batches)
        torch.manual_seed(derive(config.run.seed, "step", self.step))
        generator = generator_for(config.run.seed, "objective", self.step)
        numbers: dict[str, Tensor] = {}
        for batch in batches:
            if not batch.ids:
                continue
            with autocast(self.device, self.precision):
                loss, more = self.objective.loss(self.net, batch.to(self.device), self.settings, generator)
            share = len(batch.ids) / clips
            (loss * share).backward()
            for name, value in {"loss": loss.detach(), **more}.items():
                numbers[name] = numbers[name] + value * share if name in numbers else value * share
        if clips:
            numbers["gradient_norm"] = optim.clip(self.model, config.optim.clip_gradient)
            optim.set_lr(self.optimizer, self.lr())
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.ema:
            optim.update_ema(self.ema, self.model, config.optim.ema, self.step)
        return numbers

    def lr(self) -> float:
        """The learning rate of the step to come."""
        return optim.lr_at(self.step, self.steps, self.warmup, self.peak, self.config.optim.min_lr)

    def entry(self) -> dict[str, Any]:
        """What every line of the log says beside the numbers."""
        lr = optim.lr_at(self.step - 1, self.steps, self.warmup, self.peak, self.config.optim.min_lr)
        epoch = round(self.step / self.steps_per_epoch, 3)
        where = {"step": self.step, "epoch": epoch, "seconds": round(self.seconds, 1), "lr": lr}
        return where | {"skipped": self.skipped, "padded": self.padded}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the readable validation clips, one centre clip a video, as `val_<name>`; leaves no trace in training."""
        assert self.val_set is not None
        sums: dict[str, Tensor] = {}
        count, reason = 0, ""
        self.model.eval()
        with self.averaged():
            views = view_batches(
                self.val_set.examples, self.model.class_names, self.config.clip, batch_size=self.config.loader.batch_size
            )
            for number, batch in enumerate(views):
                if batch.skipped:
                    reason = reason or batch.skipped[0][1]
                if not batch.ids:
                    continue
                generator = generator_for(self.config.run.seed, "validate", number)
                with autocast(self.device, self.precision):
                    measured = self.objective.measure(self.net, batch.to(self.device), self.settings, generator)
                for name, values in measured.items():
                    sums[name] = sums[name] + values.double().sum() if name in sums else values.double().sum()
                count += len(batch.ids)
        optim.training_mode(self.model)
        if not count:
            raise DataError(f"not one of the validation videos can be read: {reason}; run `tubelet inspect` on them")
        means = {f"val_{name}": float(total) / count for name, total in sums.items()}
        wrong = [name for name, value in means.items() if not math.isfinite(value)]
        if wrong:
            raise TrainingError(
                f"{wrong[0]} is not finite after step {self.step}, though the training loss is: try --run.precision fp32, or go on "
                "without looking with --run.validations 0"
            )
        return means | {"val_videos": count}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its moving average in place of its weights, where one is kept."""
        weights = dict(self.model.named_parameters())
        self._swap(weights)
        try:
            yield
        finally:
            self._swap(weights)

    def _swap(self, weights: dict[str, nn.Parameter]) -> None:
        for name in self.ema:
            weights[name].data, self.ema[name] = self.ema[name], weights[name].data

    def save(self) -> None:
        """A checkpoint of this very moment."""
        state = {"step": self.step, "seconds": self.seconds, "skipped": self.skipped, "padded": self.padded}
        checkpoint.save(self.out / "checkpoints", state, self.model, self.optimizer, self.ema, self.config.run.keep_checkpoints)

    def finish(self) -> None:
        """The model folder, and the report."""
        from tubelet.evaluate.report import write_run_report

        config, masked, val = self.config, self.config.masked, self.val_set.examples if self.val_set else ()
        started = "pretrained" if config.init else "random initialisation"
        epochs, kept = round(self.steps / self.steps_per_epoch, 3), "moving average" if self.ema else "last"
        trained = {"objective": config.objective, "from": started, "steps": self.steps, "epochs": epochs, "weights": kept,
                   "videos": len(self.train_set.examples), "seconds": round(self.seconds, 1), "seed": config.run.seed}  # fmt: skip
        self.model.eval()
        with self.averaged():
            save_model(self.model, self.out / "model", trained)
            say(f"the model is in {self.out / 'model'}")
            if config.run.report:
                report = write_run_report(
                    self.out, self.model, examples=val, train_examples=self.train_set.examples,
                    normalize_target=masked.normalize_target, mask=masked.mask, ratio=masked.ratio, seed=config.run.seed,
                    batch_size=config.loader.batch_size, weights=started,
                )  # fmt: skip
                say(f"the report is {report}")


def new_model(config: TrainConfig, train_set: Dataset, with_classes: bool, start: bool = True) -> Model:
    """The model of a run with its first values: random from the seed, then those of `config.init` where `start` asks for them."""
    torch.manual_seed(derive(config.run.seed, "weights"))
    classes = train_set.classes if with_classes else ()
    model = models.build(config.model.name, config.clip, classes, **config.model.options)
    if config.init and start:
        fresh = transfer(load_model(config.init), model)
        say(f"starting from {config.init}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    return model


class Unreadable:
    """Says once which videos could not be read, and stops a run in which none can."""

    def __init__(self, steps_per_epoch: float) -> None:
        self.steps_per_epoch, self.empty_steps = steps_per_epoch, 0
        self.said: dict[str, str] = {}

    def report(self, batches: Sequence[Batch]) -> None:
        for id, reason in (pair for batch in batches for pair in batch.skipped):
            if id not in self.said:
                self.said[id] = reason
                say(printable(f"left out: {id}: {reason}"))
        self.empty_steps = 0 if any(batch.ids for batch in batches) else self.empty_steps + 1
        if self.empty_steps > self.steps_per_epoch:
            reason = next(iter(self.said.values()))
            raise TrainingError(f"not one of the videos can be read: {reason}; run `tubelet inspect` on them")


@contextlib.contextmanager
def closing(stream: Iterator[Batch]) -> Iterator[None]:
    """Ends the loader's workers with the block."""
    try:
        yield
    finally:
        stream.close()  # type: ignore[attr-defined]


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once. Outside the main thread signals are left alone."""
    stop, process = threading.Event(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if os.getpid() == process:  # worker processes inherit the handler and must go on until they are told
            stop.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            say("stopping after this step (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
