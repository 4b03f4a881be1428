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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tubelet import storage
from tubelet.errors import ConfigError
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.video.stream import Stream, Windows

SCALES = (1.0, 2.0, 4.0)  # lengths of windows, relative to what a clip of the model spans
STEP = 0.25  # from one window to the next, relative to its length
KEEP_SECONDS = 10.0  # of work that may be lost; what is done sooner is never written
FORMAT = "tubelet-scan-1"

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
    """A folder where windows that are done wait for the case that a pass is interrupted, one for each video; it goes when the pass
    is over. say(line): what a person is told, that a pass goes on or begins anew.

    FIRST-END.safetensors holds the windows FIRST to END - 1; each file is there whole or not at all, and says what made it.
    """

    folder: Path
    say: Callable[[str], object] = lambda _: None

    @classmethod
    def of(cls, video: str | Path, say: Callable[[str], object]) -> "Kept":
        """The folder for a video in the user's cache, XDG_CACHE_HOME or ~/.cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.blake2b(os.fsencode(storage.absolute(video)), digest_size=12).hexdigest()
        return cls(cache / "tubelet" / "scans" / name, say)

    def read(self, about: str) -> list[Rows]:
        """What was done before, without a gap from the first window on; nothing if any of it was made in another way."""
        found: list[Rows] = []
        done = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                first, end = map(int, path.stem.split("-"))
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("tubelet") != about:
                        shutil.rmtree(self.folder, ignore_errors=True)
                        self.say(
                            "an interrupted pass was of another model, other windows or the file before it changed: begun anew"
                        )
                        return []
                    if first == done:
                        found.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                        done = end
            except (OSError, SafetensorError, ValueError):  # not ours, or damaged: its windows are made again
                continue
        return found

    def write(self, about: str, first: int, rows: Rows) -> bool:
        """Whether it could be written."""
        path = self.folder / f"{first:09d}-{first + len(rows['seconds']):09d}.safetensors"
        waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(rows, waiting, {"tubelet": about})
            os.replace(waiting, path)
            return True
        except (OSError, SafetensorError) as error:
            self.say(f"what is done cannot be kept, so an interrupted pass will begin anew: {error}")
            return False
        finally:
            with contextlib.suppress(OSError):
                waiting.unlink()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


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
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    windows = windows or scales(model, video)
    about = _about(model, video, windows, batch_size) if kept else ""
    found = kept.read(about) if kept else []
    done = sum(len(rows["seconds"]) for rows in found)
    stream = Stream(video, model.spec, windows, skip=done)
    total = done + len(stream)
    if kept and done:
        kept.say(f"{video}: goes on after {done} of {total} windows")
    frame_seconds = float(np.diff(stream.seconds).mean()) if len(stream.seconds) > 1 else 0.0
    new, kept_at = list[Rows](), time.monotonic()  # since something was kept

    def keep() -> None:
        nonlocal kept, new, kept_at
        if kept and new:
            found.append(_joined(new))
            if not kept.write(about, done - len(found[-1]["seconds"]), found[-1]):
                kept = None
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
    if kept:
        kept.clear()
    all_rows = _joined([*found, *new])
    duration = float(stream.seconds[-1]) + frame_seconds
    return Scan(all_rows["seconds"], all_rows["embeddings"], all_rows.get("probabilities"), duration)


def scales(model: Model, video: str | Path, lengths: Sequence[float] = (), step: float = STEP) -> list[Windows]:
    """Sliding windows of several lengths, in seconds; () takes SCALES times what a clip of the model spans in this video, but
    none longer than the video. step: relative to the length of a window."""
    from tubelet.video.decode import probe
    from tubelet.video.guard import run

    if not lengths:
        info = run(str(video), probe, video)
        clip = model.spec.window_frames / max(info.fps, 1e-6)
        lengths = [scale * clip for scale in SCALES if scale * clip <= info.duration_seconds] or [clip]
    for length in lengths:
        if not 0 < length < math.inf or not 0 < step < math.inf:
            raise ConfigError(f"windows of {length:g} s at a step of {length * step:g}: both must be numbers above 0")
    return [Windows(window_seconds=length, step_seconds=length * step) for length in lengths]


def _about(model: Model, video: str | Path, windows: Sequence[Windows], batch_size: int) -> str:
    """All that the rows of a pass depend on. Batches of another size would round another way."""
    try:
        state = list(map(str, storage.stat(str(video))))
    except OSError:  # whoever decodes it says what is wrong
        state = []
    asked = [state, [asdict(one) for one in windows], model.spec.to_dict(), batch_size]
    return json.dumps([FORMAT, fingerprint(model), model.name, model.options, *asked], sort_keys=True, default=str)


def _joined(pieces: Sequence[Rows]) -> Rows:
    return {name: torch.cat([rows[name] for rows in pieces]) for name in pieces[0]}
