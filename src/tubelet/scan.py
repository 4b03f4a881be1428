"""Every window of one video through a model, from one decode. A pass over a long video that was interrupted goes on where it was.

    seen = scan(model, "day.mp4", scales(model, "day.mp4"))

W windows, D embedding width, K classes.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet import __version__, storage
from tubelet.errors import ConfigError
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.video.decode import probe
from tubelet.video.guard import run
from tubelet.video.stream import Stream, Windows

SCALES = (1.0, 2.0, 4.0)  # lengths of windows, relative to what a clip of the model spans
STEP = 0.25  # from one window to the next, relative to its length
KEEP_SECONDS = 10.0  # of work that may be lost; what is done sooner is never written
FORGET_SECONDS = 30 * 86400.0  # until a pass that nobody went on with is deleted
CANNOT = "what is done cannot be kept, so an interrupted pass will begin anew"
FORMAT = "tubelet-scan-2"

Rows = dict[str, Tensor]  # "seconds" (n,2), "embeddings" (n,D) and, of a model with classes, "probabilities" (n,K)


@dataclass(frozen=True)
class Scan:
    """What a model makes of every window of one video.

    seconds float64 (W,2): start and end of each, the end being when its last frame's time is over; embeddings float32 (W,D) as
    the model gives them; probabilities float32 (W,K), or None for a model without classes; duration: seconds of the video.
    """

    seconds: Tensor
    embeddings: Tensor
    probabilities: Tensor | None
    duration: float


@dataclass(frozen=True)
class Kept:
    """A folder where windows that are done wait for the case that a pass is interrupted, in a folder of its own for each pass
    (`Room`). say(line): what a person is told, that a pass goes on or begins anew."""

    folder: Path
    say: Callable[[str], object] = lambda _: None

    @classmethod
    def in_cache(cls, say: Callable[[str], object]) -> "Kept":
        """The folder in the user's cache, XDG_CACHE_HOME or ~/.cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(cache / "tubelet" / "scans", say)

    @contextlib.contextmanager
    def room(self, video: str | Path, about: str) -> Iterator["Room | None"]:
        """The folder of the pass over a video that `about` tells all of; None where nothing can be kept or another process is at
        the same pass. What waited of the file before it changed goes, and what nobody went on with."""
        room = self._taken(video, about)
        try:
            yield room
        finally:
            if room:
                room.leave()

    def _taken(self, video: str | Path, about: str) -> "Room | None":
        try:
            state = _hash(repr(storage.stat(str(video))))
        except OSError:  # whoever decodes it says what is wrong
            return None
        passes = self.folder / _hash(storage.absolute(video))
        for lock in self.folder.glob("*/*-*/.lock"):
            with contextlib.suppress(OSError):
                if time.time() - lock.parent.stat().st_mtime > FORGET_SECONDS:
                    _remove(lock.parent)
        before = [folder for folder in passes.glob("*-*") if not folder.name.startswith(f"{state}-")]
        for folder in before:
            _remove(folder)
        if before:
            self.say(f"{video}: has changed since a pass was interrupted: begun anew")
        try:
            room = _lock(passes / f"{state}-{_hash(about)}", self.say)
        except OSError as error:
            self.say(f"{CANNOT}: {error}")
            return None
        if room is None:
            self.say(f"{video}: another process is at the same pass, so this one will begin anew if it is interrupted")
        return room


@dataclass
class Room:
    """What is done of one pass. FIRST-END.safetensors holds the windows FIRST to END - 1, and is there whole or not at all."""

    folder: Path
    lock: int  # a handle that keeps others out until it is closed
    say: Callable[[str], object]
    full: bool = False  # nothing more can be written
    over: bool = False  # all is done, so that nothing need wait

    def pieces(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def read(self) -> list[Rows]:
        """What was done before, without a gap from the first window on."""
        found: list[Rows] = []
        done = 0
        for path in self.pieces():
            try:
                first, end = map(int, path.stem.split("-"))
                if first == done:
                    with storage.utf8_name(path) as name:
                        found.append(load_file(name))
                    done = end
            except (OSError, SafetensorError, ValueError):  # not ours, or damaged: its windows are made again
                continue
        return found

    def write(self, first: int, rows: Rows) -> None:
        if self.full:
            return
        path = self.folder / f"{first:09d}-{first + len(rows['seconds']):09d}.safetensors"
        waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(rows, waiting)
            os.replace(waiting, path)
        except (OSError, SafetensorError) as error:
            self.full = True
            self.say(f"{CANNOT}: {error}")
        finally:
            with contextlib.suppress(OSError):
                waiting.unlink()

    def leave(self) -> None:
        if self.over or not self.pieces():
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other passes over the video
                self.folder.parent.rmdir()
        os.close(self.lock)


def _lock(folder: Path, say: Callable[[str], object] = lambda _: None) -> Room | None:
    """The folder of a pass, made where there is none; None where another process is in it. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(ImportError):  # Windows has no flock
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # else whoever was in it has just deleted it
            return Room(folder, handle, say)
    except BlockingIOError:
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _remove(folder: Path) -> None:
    """Delete the folder of a pass that no process is at."""
    with contextlib.suppress(OSError):
        if room := _lock(folder):
            room.over = True
            room.leave()


@torch.no_grad()
def scan(
    model: Model,
    video: str | Path,
    windows: Sequence[Windows] = (),
    batch_size: int = 8,
    on_window: Callable[[int, int], object] | None = None,
    kept: Kept | None = None,
) -> Scan:
    """Every window of a video through the model, from one decode; memory does not grow with the frames of the video.

    windows: which; () takes those of `scales`. on_window(done, all) after each batch. kept: where windows that are done wait, so
    that the same call goes on after them; the answer is that of a pass in one go, bit for bit. VideoError where the video cannot
    be read.
    """
    windows = windows or scales(model, video)
    if kept is None:
        return _scan(model, video, windows, batch_size, on_window, None)
    with kept.room(video, _about(model, windows, batch_size)) as room:
        return _scan(model, video, windows, batch_size, on_window, room)


def _scan(
    model: Model,
    video: str | Path,
    windows: Sequence[Windows],
    batch_size: int,
    on_window: Callable[[int, int], object] | None,
    room: Room | None,
) -> Scan:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = room.read() if room else []
    done = sum(len(rows["seconds"]) for rows in found)
    stream = Stream(video, model.spec, windows, skip=done)
    total = done + len(stream)
    if room and done:
        room.say(f"{video}: goes on after {done} of {total} windows")
    steps = np.diff(stream.seconds)
    frame_seconds = float(steps.mean()) if len(steps) else run(str(video), probe, video).duration_seconds
    new, kept_at = list[Rows](), time.monotonic()  # since something was kept

    def keep() -> None:
        nonlocal new, kept_at
        if room and new:
            found.append(_joined(new))
            room.write(done - len(found[-1]["seconds"]), found[-1])
            new, kept_at = [], time.monotonic()

    try:
        clips = iter(stream)
        while batch := list(islice(clips, batch_size)):
            out = model(torch.stack([clip.frames for _, clip in batch]).to(device))
            spans = [(window.start_seconds, window.end_seconds + frame_seconds) for window, _ in batch]
            rows = {"seconds": torch.tensor(spans, dtype=torch.float64), "embeddings": out["embedding"].float().cpu()}
            if "logits" in out:
                rows["probabilities"] = out["logits"].float().softmax(dim=-1).cpu()
            new.append(rows)
            done += len(batch)
            if on_window is not None:
                on_window(done, total)
            if done < total and time.monotonic() - kept_at > KEEP_SECONDS:
                keep()
    except KeyboardInterrupt:
        keep()
        raise
    finally:
        stream.close()
        model.train(was_training)
    if room:
        room.over = True
    all_rows = _joined([*found, *new])
    duration = float(stream.seconds[-1]) + frame_seconds
    return Scan(all_rows["seconds"], all_rows["embeddings"], all_rows.get("probabilities"), duration)


def scales(model: Model, video: str | Path, lengths: Sequence[float] = (), step: float = STEP) -> list[Windows]:
    """Sliding windows of several lengths, in seconds; () takes SCALES times what a clip of the model spans in this video, but
    none longer than the video. step: relative to the length of a window."""
    if not lengths:
        info = run(str(video), probe, video)
        clip = model.spec.window_frames / max(info.fps, 1e-6)
        lengths = [scale * clip for scale in SCALES if scale * clip <= info.duration_seconds] or [clip]
    for length in lengths:
        if not 0 < length < math.inf or not 0 < step < math.inf:
            raise ConfigError(f"windows of {length:g} s at a step of {length * step:g}: both must be numbers above 0")
    return [Windows(window_seconds=length, step_seconds=length * step) for length in lengths]


def _about(model: Model, windows: Sequence[Windows], batch_size: int) -> str:
    """All that the rows of a pass depend on, beside the video. Batches of another size would round another way."""
    device = next(model.parameters()).device.type
    made_by = [FORMAT, __version__, device, fingerprint(model), model.name, model.options, model.spec.to_dict()]
    return json.dumps([*made_by, [asdict(one) for one in windows], batch_size], sort_keys=True, default=str)


def _hash(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=12).hexdigest()


def _joined(pieces: Sequence[Rows]) -> Rows:
    return {name: torch.cat([rows[name] for rows in pieces]) for name in pieces[0]}
