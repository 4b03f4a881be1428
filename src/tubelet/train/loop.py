"""The training loop, for every objective: batch, loss, backward, clip, step, log, validate, save.

Everything random in a step follows from (seed, step), so a run that was killed and repeated ends in the same weights, bit for
bit, as one that was not; and several processes draw what one would (`share`), so theirs differ by rounding alone. No number is
fetched from the device but to log it.
"""

import contextlib
import dataclasses
import itertools
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

from tubelet import find, models, share
from tubelet.errors import DataError, TrainingError, printable
from tubelet.loading import TrainLoader
from tubelet.models._model import Model
from tubelet.records import Batch, Dataset
from tubelet.seeds import derive, generator_for
from tubelet.train import checkpoint, data, folder, optim, parallel, plan
from tubelet.train.config import TrainConfig
from tubelet.train.device import autocast, check_compiler, choose_device, choose_precision, set_up
from tubelet.train.log import Log, Progress, environment, say
from tubelet.train.meter import Meter
from tubelet.views import view_batches
from tubelet.weights.checkpoint import refuse_old
from tubelet.weights.flow import begin as begin_flow
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save as save_model
from tubelet.weights.text import begin as begin_text

SECONDS_BETWEEN_CHECKPOINTS = 180.0

OnStep = Callable[[int, dict[str, Tensor]], None]


def train(config: TrainConfig, on_step: OnStep | None = None) -> Path:
    """Carry out a run and give its folder; the same call continues a run that was stopped, and a finished one is left alone.

    on_step(step, numbers) is called after every step (the first is 1) with the step's numbers, still on the device.
    The model that is left in `<out>/model` holds the last weights, or their moving average where `optim.ema` is set; none is
    picked by its validation result, so that the validation stays a fair estimate.

    Under torchrun every process makes the same call, and they train together (see `parallel.processes`).

    Raises TubeletError for what the user can mend. Ctrl-C and SIGTERM finish the step, save, and raise KeyboardInterrupt.
    """
    config = dataclasses.replace(config, data=data.absolute(config.data))
    out = Path(config.out)
    with parallel.processes(), folder.hold(out):
        folder.check(out, config)
        try:
            run = Run(config)
            if parallel.agree(run.is_finished()):
                say(f"{out} is finished ({run.steps} steps): nothing to do. Choose another --out for a new run")
                return out
            refuse_old(out / "checkpoints")
            run.announce()
            if not parallel.rank():
                folder.begin(out, config, run.environment)
            run.spread()
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
        parallel.check_device(self.device)
        self.precision = choose_precision(config.run.precision, self.device)
        if config.run.compile:
            check_compiler(self.device)
        set_up(self.device, config.run.deterministic, config.run.threads)

        texts = getattr(self.objective, "NEEDS_TEXT", False)
        texts = texts(self.settings) if callable(texts) else texts
        self.train_set, self.val_set = data.load(config.data, self.objective.NEEDS_LABELS, texts)
        videos = len(self.train_set.examples)
        facts = {"videos": videos, "fingerprint": data.fingerprint(self.train_set, texts)}
        self.facts = self.objective.facts(self.settings) if hasattr(self.objective, "facts") else {}
        self.environment = environment(self.device, self.precision, facts, self.facts) | {"decoding": config.loader.decoding}
        folder.check_data(self.out, self.environment)
        self.loader = TrainLoader(
            self.train_set, config.clip, config.augment, config.loader, config.run.seed, parallel.rank(), parallel.world(),
            pinned=self.device.type == "cuda", neighbours=parallel.local_world(),
        )  # fmt: skip

        self.steps_per_epoch = videos * config.loader.repeats / config.clips_per_step
        self.steps = optim.total_steps(config.optim, self.steps_per_epoch)
        self.warmup = optim.warmup_steps(config.optim.warmup, self.steps, self.steps_per_epoch)
        self.peak = optim.peak_lr(config.optim, config.clips_per_step)
        every = self.steps / max(1, config.run.validations)
        self.validate_at = {round(every * (i + 1)) for i in range(config.run.validations)} if self.val_set else set()

        self.saved = checkpoint.load_latest(self.out / "checkpoints", say)
        self.model = new_model(config, self.train_set, self.objective.NEEDS_LABELS, start=self.saved is None).to(self.device)
        if config.optim.freeze:
            say(f"all but the head is frozen: {optim.freeze_all_but_head(self.model):,} parameters are trained")
        state: dict[str, Any] = self.saved.state if self.saved else {"step": 0, "seconds": 0.0, "skipped": 0, "padded": 0}
        self.step, self.seconds, self.skipped, self.padded = (state[name] for name in ("step", "seconds", "skipped", "padded"))

    def is_finished(self) -> bool:
        """The model of the last step is there, and its report where one is wanted and a checkpoint is left to draw it from."""
        reported = not self.config.run.report or (self.out / "report.html").exists() or self.step < self.steps
        return folder.finished_steps(self.out) == self.steps and reported

    def announce(self) -> None:
        """Say what is going to be done."""
        if not self.step:
            say(plan.describe(self))
            return
        decoding = self.config.loader.decoding
        how = "" if decoding == "exact" else f"; videos are decoded {decoding}"
        say(f"continuing {self.out} after step {self.step} of {self.steps}{how}")
        changed = folder.changed_machine(self.out, self.environment)
        if changed and self.step < self.steps:
            say(f"the result will not be bit for bit that of a run without a break: {'; '.join(changed)}")

    def spread(self) -> None:
        """Put the model on all processes, with its optimiser and moving average, as they were when the run was left."""
        config, saved = self.config, self.saved
        if saved is None and hasattr(self.objective, "prepare"):
            self.prepare()
        if config.run.recompute:
            parallel.recompute(self.model)
        self.net = parallel.spread(self.model, config.run.parallel, self.device, config.run.compile, self.untaught())
        self.optimizer = optim.adamw(self.model, config.optim)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in trained.items()} if config.optim.ema else {}
        if saved is not None:
            checkpoint.restore(saved, self.model, self.optimizer, self.ema)

    def untaught(self) -> bool:
        """Whether DDP is going to train parameters that the objective does not reach, such as a text tower without captions: tried
        on one blank clip."""
        if parallel.world() == 1 or parallel.choose_kind(self.config.run.parallel, self.model, self.device) != "ddp":
            return False
        self.model.eval()  # no statistics of a blank clip
        with autocast(self.device, self.precision):
            clip, generator = parallel.blank(self.config.clip).to(self.device), generator_for(self.config.run.seed, "untaught")
            self.objective.loss(self.model, clip, self.settings, generator)[0].backward()
        found = any(p.grad is None for p in self.model.parameters() if p.requires_grad)
        self.model.zero_grad()
        return found

    def prepare(self) -> None:
        """What the objective learns from the data before the first step: the first process does it for all, as it would alone."""
        config = self.config
        if not parallel.rank():
            loader = TrainLoader(self.train_set, config.clip, config.augment, config.loader, config.run.seed)
            clips = loader.batches(0, self.steps * config.optim.accumulate)
            with closing(clips):
                self.objective.prepare(self.model, clips, self.settings, generator_for(config.run.seed, "prepare"))
        learned = parallel.agree({name: buffer.cpu() for name, buffer in self.model.named_buffers()})
        for name, buffer in self.model.named_buffers():
            buffer.copy_(learned[name])

    def learn(self, on_step: OnStep | None) -> None:
        """Every step that is still to do."""
        config, accumulate = self.config.run, self.config.optim.accumulate
        writer = checkpoint.Writer(self.out / "checkpoints", config.keep_checkpoints)
        log, progress, meter = Log(self.out, self.step, config.tensorboard), Progress(self.steps, self.step), Meter(self.device)
        stream = self.loader.batches(self.step * accumulate, self.steps * accumulate)
        unreadable = Unreadable(self.steps_per_epoch)
        seconds_before, began = self.seconds, time.monotonic()
        saved_at = began
        optim.training_mode(self.model)
        with contextlib.closing(log), contextlib.closing(progress), contextlib.closing(writer), stop_signals() as stop, \
                closing(stream):  # fmt: skip
            while self.step < self.steps:
                with meter.waiting():
                    batches = [next(stream) for _ in range(accumulate)]
                late = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                said = parallel.exchange([
                    *(len(batch.ids) for batch in batches), sum(len(batch.skipped) for batch in batches),
                    sum(batch.padded for batch in batches), stop.is_set(), late,
                ])  # fmt: skip
                *counts, skipped, padded, asked, lates = zip(*said, strict=True)
                numbers = self.update(batches, counts)
                self.step += 1
                self.skipped += sum(skipped)
                self.padded += sum(padded)
                self.seconds = seconds_before + time.monotonic() - began
                meter.add(self.step, numbers, sum(map(sum, counts)))
                unreadable.report(batches, sum(skipped), sum(map(sum, counts)))

                last, stopping = self.step == self.steps, any(asked)
                if self.step % config.log_every == 0 or self.step in self.validate_at or last or stopping:
                    meter.check(self.out, writer.wait)
                    entry = self.entry() | meter.read() | self.gradient_norms(batches[-1], counts[-1])
                    if self.step in self.validate_at:
                        entry |= self.validate()
                        meter.restart()
                    log.write(entry)
                    progress.show(entry)
                elif progress.due():
                    meter.check(self.out, writer.wait)
                    progress.show(self.entry() | meter.means())
                if on_step is not None:
                    on_step(self.step, numbers)
                writer.check()
                due = self.step % config.checkpoint_every == 0 if config.checkpoint_every else bool(lates[0])
                if due or last or stopping:
                    meter.check(self.out, writer.wait)
                    writer.begin(self.state(), self.model, self.optimizer, self.ema)
                    saved_at = time.monotonic()
                if last or stopping:
                    writer.wait()
                    parallel.wait()
                if stopping and not last:
                    say(f"stopped after step {self.step} of {self.steps}, saved: the same command continues")
                    raise KeyboardInterrupt

    def update(self, batches: Sequence[Batch], counts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """One step on the mean gradient over all clips of the batches; gives its numbers. Without any clip nothing changes.

        counts: for each batch, how many clips every process has of it. Every clip weighs the same, wherever it is.
        """
        config, clips, world = self.config, sum(map(sum, counts)), parallel.world()
        torch.manual_seed(derive(config.run.seed, "step", self.step))
        generator = generator_for(config.run.seed, "objective", self.step)
        numbers: dict[str, Tensor] = {}
        filled = [(batch, held) for batch, held in zip(batches, counts, strict=True) if any(held)]
        for number, (batch, held) in enumerate(filled, start=1):
            with share.of(parallel.rank(), held), parallel.synchronised(self.net, number == len(filled)):
                taken = batch if batch.ids else parallel.blank(config.clip)
                with autocast(self.device, self.precision):
                    loss, more = self.objective.loss(self.net, taken.to(self.device), self.settings, generator)
                weight = len(batch.ids) / clips
                (loss * (weight * world)).backward()  # DDP and FSDP2 take the mean over the processes
            for name, value in {"loss": loss.detach(), **more}.items():
                numbers[name] = numbers[name] + value * weight if name in numbers else value * weight
        numbers = parallel.total(numbers)
        if clips:
            numbers["gradient_norm"] = optim.clip(self.model, config.optim.clip_gradient)
            optim.set_lr(self.optimizer, self.lr())
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.ema:
            optim.update_ema(self.ema, self.model, config.optim.ema, self.step)
        return numbers

    def gradient_norms(self, batch: Batch, counts: Sequence[int]) -> dict[str, float]:
        """Of an objective that is a sum: for every term "gradient_norm_<name>", the norm of its gradient in the parameters that all
        terms reach, over the clips of a batch. It costs one more pass forward and back, and leaves no trace in training."""
        if not hasattr(self.objective, "terms") or not any(counts):
            return {}
        squares: dict[str, dict[str, Tensor]] = {}
        weight = len(batch.ids) / sum(counts)
        taken = (batch if batch.ids else parallel.blank(self.config.clip)).to(self.device)
        generator = generator_for(self.config.run.seed, "objective", self.step)
        with share.of(parallel.rank(), counts):
            for name, term in self.objective.terms(self.model, taken, self.settings, generator).items():
                with autocast(self.device, self.precision):
                    loss = term()
                (loss * (weight * parallel.world())).backward()
                squares[name] = parallel.gradient_squares(self.model)
                self.optimizer.zero_grad()
        reached = set.intersection(*(set(squares[name]) for name in squares)) if len(squares) > 1 else set()
        return {f"gradient_norm_{term}": math.sqrt(sum(float(found[name]) for name in reached))
                for term, found in squares.items() if reached}  # fmt: skip

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
        """Means over the readable validation clips, one centre clip a video, as `val_<name>`; leaves no trace in training.

        Every process looks at its share of each batch, and every video is looked at once.
        """
        assert self.val_set is not None
        sums: dict[str, Tensor] = {}
        count, reason = 0, ""
        self.model.eval()
        with self.averaged():
            examples, size = self.val_set.examples, self.config.loader.batch_size
            whole = [examples[first : first + size] for first in range(0, len(examples), size)]
            own = [[batch[i] for i in share.split(len(batch), parallel.world())[parallel.rank()]] for batch in whole]
            views = view_batches(
                [example for batch in own for example in batch], self.model.class_names, self.config.clip,
                batch_size=max(1, len(own[0])), workers=self.loader.workers,
            )  # fmt: skip
            for number in itertools.count():
                batch = next(views, None)
                if batch is not None and batch.skipped:
                    reason = reason or batch.skipped[0][1]
                clips = len(batch.ids) if batch is not None else 0
                held, going = zip(*parallel.exchange([clips, batch is not None]), strict=True)
                if not any(going):
                    break
                if not any(held):
                    continue
                taken = batch if batch is not None and clips else parallel.blank(self.config.clip)
                generator = generator_for(self.config.run.seed, "validate", number)
                with share.of(parallel.rank(), held), autocast(self.device, self.precision):
                    measured = self.objective.measure(self.net, taken.to(self.device), self.settings, generator)
                for name, values in measured.items():
                    total = values[:clips].double().sum()
                    sums[name] = sums[name] + total if name in sums else total
                count += sum(held)
        optim.training_mode(self.model)
        if not count:
            reason = next(filter(None, parallel.gather(reason)))
            raise DataError(f"not one of the validation videos can be read: {reason}; run `tubelet inspect` on them")
        means = {f"val_{name}": float(total) / count for name, total in parallel.total(sums).items()}
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

    @torch.no_grad()
    def _swap(self, weights: dict[str, nn.Parameter]) -> None:
        for name, average in self.ema.items():  # by value: FSDP2 holds on to the memory of its parameters
            before = weights[name].detach().clone()
            weights[name].copy_(average)
            average.copy_(before)

    def state(self) -> dict[str, Any]:
        """How far it is: what a checkpoint holds beside tensors."""
        return {"step": self.step, "seconds": self.seconds, "skipped": self.skipped, "padded": self.padded}

    def finish(self) -> None:
        """The model folder, and the report: rank 0 makes them, the others wait at the end."""
        from tubelet.evaluate.report import write_run_report

        config, val = self.config, self.val_set.examples if self.val_set else ()
        masked = getattr(self.settings, "masked", config.masked)  # of an objective that masks among other things, its own
        started = "pretrained" if config.init else "random initialisation"
        epochs, kept = round(self.steps / self.steps_per_epoch, 3), "moving average" if self.ema else "last"
        trained = {"objective": config.objective, "from": started, "steps": self.steps, "epochs": epochs, "weights": kept,
                   "videos": len(self.train_set.examples), "seconds": round(self.seconds, 1), "seed": config.run.seed,
                   **self.facts}  # fmt: skip
        self.model.eval()
        with self.averaged():
            model = parallel.whole_model(self.model)
            if parallel.rank():
                return
            save_model(model, self.out / "model", trained)
            say(f"the model is in {self.out / 'model'}")
            if config.run.report:
                report = write_run_report(
                    self.out, model, examples=val, train_examples=self.train_set.examples,
                    normalize_target=masked.normalize_target, mask=masked.mask, ratio=masked.ratio, seed=config.run.seed,
                    batch_size=config.loader.batch_size, weights=started,
                )  # fmt: skip
                say(f"the report is {report}")


def new_model(config: TrainConfig, train_set: Dataset, with_classes: bool, start: bool = True) -> Model:
    """The model of a run with its first values: random from the seed, then those of `config.init` where `start` asks for them."""
    torch.manual_seed(derive(config.run.seed, "weights"))
    classes = train_set.classes if with_classes else ()
    objective = find.module("tubelet.objectives", config.objective)
    wanted = objective.options(getattr(config, config.objective)) if hasattr(objective, "options") else {}
    options = models.with_needs(config.model.name, config.model.options, wanted)
    model = models.build(config.model.name, config.clip, classes, **options)
    if config.init and start:
        fresh = transfer(load_model(config.init), model)
        say(f"starting from {config.init}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    if config.init_text and start:
        begin_text(model, config.init_text)
        say(f"the text tower starts from {config.init_text}")
    if start and (config.init_flow or not config.init):  # a model to start from has its own
        for name in begin_flow(model, config.init_flow):
            say(f"the flow is that of {name} from {config.init_flow}")
    return model


class Unreadable:
    """Says once which videos could not be read, and stops a run in which none can."""

    def __init__(self, steps_per_epoch: float) -> None:
        self.steps_per_epoch, self.empty_steps = steps_per_epoch, 0
        self.said: dict[str, str] = {}

    def report(self, batches: Sequence[Batch], skipped: int, clips: int) -> None:
        """The batches of one step on this process; `skipped` videos and `clips` on all of them."""
        mine = [pair for batch in batches for pair in batch.skipped]
        for id, reason in (pair for pairs in (parallel.gather(mine) if skipped else []) for pair in pairs):
            if id not in self.said:
                self.said[id] = reason
                say(printable(f"left out: {id}: {reason}"))
        self.empty_steps = 0 if clips else self.empty_steps + 1
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
