"""What the benchmarks share: ways run in turn, medians and ranges, peak memory, the machine, tables and JSON files.

A busy machine slows everything, so the ways that are compared take turns in one process and only their ratios are trusted.
A benchmark writes {"name", "date", "machine", "versions", "rows"}; each row is a flat dict. A column is named with its unit;
page.py draws the one whose name begins with "times" or "ratio", and "range" beside it. A peer that cannot be run has a row
with a "note" that says why.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import torch

from tubelet.video.guard import end_idle
from tubelet.video.write import write_video

# decord2 is the maintained fork of decord, imported under the same name.
PACKAGES = (
    "torch", "transformers", "av", "pillow", "torchcodec", "opencv-python-headless", "decord2", "onnxruntime", "openvino",
)  # fmt: skip
Made = TypeVar("Made")
Row = dict[str, Any]
NO_ANSWER = "a measured process ended without an answer: its error is above"


def in_turn(tasks: Mapping[str, Callable[[], Made]], rounds: int) -> dict[str, list[Made]]:
    """What every task returned in each round. A round runs all of them; one round more, the first, warms up and is not kept."""
    results: dict[str, list[Made]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            result = task()
            if number:
                results[name].append(result)
    return results


def interleaved(
    tasks: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds that each task took in each round, by `clock`; the rounds are those of `in_turn`."""

    def timed(task: Callable[[], object]) -> float:
        begun = clock()
        task()
        return clock() - begun

    return in_turn({name: lambda task=task: timed(task) for name, task in tasks.items()}, rounds)


def in_processes(ways: Mapping[str, Callable[[], Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """`interleaved`, with every task in a process of its own, made by its way there: a copy of this one (fork), whose memory is
    given back first. No task finds what another has left in memory. Before this one has threads: a copy of those may hang."""
    give_back()
    fork, pipes, processes = multiprocessing.get_context("fork"), dict[str, Connection](), list[ForkProcess]()

    def serve(way: Callable[[], Callable[[], object]], pipe: Connection) -> None:
        for other in pipes.values():
            other.close()  # of this process they are copies, which would keep the pipes open when it is gone
        task = way()
        while pipe.recv():
            begun = time.process_time()
            task()
            pipe.send(time.process_time() - begun)

    def timed(pipe: Connection) -> float:
        try:
            pipe.send(True)
            return pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(NO_ANSWER) from error

    try:
        for name, way in ways.items():
            pipes[name], end = fork.Pipe()
            processes.append(fork.Process(target=serve, args=(way, end), daemon=True))
            processes[-1].start()
            end.close()  # the copy has it: one that fails ends the pipe
        return in_turn({name: partial(timed, pipe) for name, pipe in pipes.items()}, rounds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def cpu_seconds() -> float:
    """A clock: the processor time of this process and of its children that have ended, such as a DataLoader's workers and
    ours, which are ended for it."""
    end_idle()
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Round by round, how many times as long the first took as the second."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Smallest to largest."""
    return f"{number(min(values))}-{number(max(values))}"


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The p of y ~ x^p: the slope of the least-squares line through the logarithms. 0 constant, 1 linear, 2 quadratic."""
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    return statistics.linear_regression(across, up).slope


def alone(task: Callable[[], float], first: Callable[[], object] = lambda: None) -> tuple[float, int]:
    """(what `task` returned, bytes by which memory peaked above all that was held before), run in a process of its own.

    The process is a copy of this one (fork), so that nothing is imported again and nothing freed earlier is used again.
    `first` is called before in it, to load what every task of its kind needs: libraries are no growth.
    """
    give_back()
    read, write_end = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(read)
        status = 1
        try:
            first()
            held = peak_bytes()  # a copy's own peak starts at what it holds
            value = task()
            os.write(write_end, json.dumps([value, peak_bytes() - held]).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # nothing that the copy holds is cleaned up twice
    os.close(write_end)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise RuntimeError(NO_ANSWER)
    value, grown = json.loads(answer)
    return value, grown


def give_back() -> None:
    """Hand what this process has freed to the system, where the allocator can be told to (glibc): a copy would use it again, and
    seem to need less."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes() -> int:
    """The most memory this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Turns:
    """Takes batches one after another and sees how long each is waited for.

    waiting_share is of the second half of the batches: in the first the workers start and run ahead once.
    """

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.asked: list[float] = []  # when the next batch was asked for, and when it came
        self.came: list[float] = []

    def of(self, batches: Iterable[Made]) -> Iterator[Made]:
        self.asked.append(time.perf_counter())
        for batch in batches:
            self.came.append(time.perf_counter())
            yield batch
            self.asked.append(time.perf_counter())
        self.seconds = time.perf_counter() - self.begun

    @property
    def waiting_share(self) -> float:
        """0 to 1."""
        half = len(self.came) // 2
        waits = [came - asked for asked, came in zip(self.asked, self.came, strict=False)]
        return sum(waits[half:]) / (self.asked[len(self.came)] - self.asked[half])


def missing(module: str, install: str) -> str:
    """Why a peer cannot be run, with the line that mends it; "" where it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"not run: {module} cannot be imported ({error}): {install}"
    return ""


def machine() -> str:
    """Processor, cores of this process, GPU if any, system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    return f"{model}, {cores} cores ({threads} thread{'s' * (threads > 1)} per process), {gpu}, {platform.system()}"


def versions() -> dict[str, str]:
    """Of Python and of every package of PACKAGES that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def number(value: object) -> str:
    """As a table shows it: three digits that matter, thousands apart; text as it is, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table; its columns are all keys in the order of their first appearance, "note" last."""
    rows = list(rows)
    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=lambda name: name == "note")
    lines = [columns, ["---"] * len(columns), *([number(row.get(name)) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(str(field).replace('|', '/') for field in line)} |\n" for line in lines)


def write(path: Path | None, name: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table and, with a path, keep them there as JSON."""
    print(f"\n## {name}, {date.today()}\n\n{machine()}; {', '.join(' '.join(pair) for pair in versions().items())}\n")
    print(table(rows), flush=True)
    if path is not None:
        kept = {"name": name, "date": str(date.today()), "machine": machine(), "versions": versions(), "rows": list(rows)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def moving_texture(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 (T,3,H,W): a random texture that slides, with some noise, so that it compresses like video does."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.random((1, 3, height // 8 + 40, width // 8 + 40), np.float32))
    texture = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")[0] * 255
    clip = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    for t in range(frames):
        part = texture[:, t % 300 : t % 300 + height, 2 * t % 300 : 2 * t % 300 + width]
        noise = torch.from_numpy(generator.standard_normal((1, height, width), np.float32))
        clip[t] = (part + 4 * noise).clamp(0, 255).to(torch.uint8)
    return clip


def make_video(path: Path, frames: int, height: int, width: int, fps: float = 30, gop_frames: int = 250, seed: int = 0) -> Path:
    """A moving texture as H.264 in mp4."""
    write_video(path, moving_texture(frames, height, width, seed), fps=fps, crf=23, preset="veryfast", gop_frames=gop_frames)
    return path


def make_long_video(path: Path, seconds: int, height: int, width: int, fps: int) -> Path:
    """`make_video` of ten seconds, a key frame at its start, whose packets follow one another again and again: hours are made as
    fast as they can be copied."""
    short = make_video(path.with_name(f"short_{path.name}"), 10 * fps, height, width, fps)
    with av.open(str(path), "w") as long:
        for turn in range(-(-seconds // 10)):
            with av.open(str(short)) as container:
                stream = container.streams.video[0]
                if not turn:
                    copy = long.add_stream_from_template(stream)
                shift = turn * round(10 / stream.time_base)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        long.mux(packet)
    return path
