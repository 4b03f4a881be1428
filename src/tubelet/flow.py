"""Optical flow of a whole video file, forward and backward, written as numbers (.npz) and as a video of colours.

Memory stays flat: frames are decoded in pieces, flows wait on the disk. T frames, H height, W width.
"""

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import CheckpointError, ConfigError, VideoError
from tubelet.find import choose
from tubelet.models import raft
from tubelet.show import flow as show
from tubelet.video import flow as classical
from tubelet.video.decode import decode, frame_times, probe
from tubelet.video.guard import run
from tubelet.video.write import write_video
from tubelet.weights import flow as weights_of_raft

PIECE_BYTES = 16_000_000  # of decoded frames that are held at a time
BINS, BIN_PIXELS = 16_384, 1 / 16  # to find the length that 99 % of all pixels stay below

Estimate = Callable[[Tensor, bool], Tensor]  # frames uint8 (T,3,H,W), backward -> flow float32 (T-1,2,H,W)


@dataclass(frozen=True)
class FlowOfVideo:
    """What was estimated and where it is.

    frames, start_seconds, end_seconds   the frames between which there is flow: one field fewer
    height, width                        of the frames flow was estimated on; a pixel of flow is one of those
    source_height, source_width          of the video as shown
    brightness_error_...                 mean |frame - the other frame warped| in steps of 0..255, still: without any flow
    mean_pixels, full_pixels             mean length of the forward flow; the length that has a full colour in the video
    """

    path: str
    out: str
    model: str
    frames: int
    start_seconds: float
    end_seconds: float
    height: int
    width: int
    source_height: int
    source_width: int
    brightness_error_forward: float
    brightness_error_backward: float
    brightness_error_still: float
    mean_pixels: float
    full_pixels: float
    seconds_taken: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the same fields."""
        return asdict(self)


def estimator(model: str = "dis", weights: str = "", device: torch.device | str = "cpu") -> Estimate:
    """What estimates flow: "dis" or "farneback", which need no weights, or "raft_small" or "raft_large" with torchvision's
    weights (a .pth or .safetensors file). ConfigError where weights are missing or not wanted, CheckpointError for others."""
    choose(model, [*classical.ESTIMATORS, *raft.VARIANTS], "flow model")
    if model in classical.ESTIMATORS:
        if weights:
            raise ConfigError(
                f"--weights {weights} was given, but {model} has no weights: choose --model raft_small or raft_large"
            )
        return lambda frames, backward: classical.estimate(frames, model, backward)
    if not weights:
        raise ConfigError(f"{model} is a trained network: give --weights FILE (torchvision's {model}), or choose --model dis")
    network = raft.build(model, raft.CLIPS[model])
    network.load_state_dict(weights_of_raft.read(weights, network))
    network.to(device).eval()

    @torch.no_grad()
    def flow(frames: Tensor, backward: bool) -> Tensor:
        # Pair by pair: a pair's correlations take (HW/64)^2 * 5.3 bytes.
        pairs = [(b, a) if backward else (a, b) for a, b in pairwise(frames)]
        return torch.cat([network(torch.stack(pair)[None].to(device))["flow"][0].cpu() for pair in pairs])

    return flow


def flow_of_video(
    path: str | Path,
    out: str | Path,
    estimate: Estimate,
    model: str,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size: int = 256,
    full_pixels: float | None = None,
) -> FlowOfVideo:
    """Write flow.npz, flow.mp4 and legend.png into the folder `out`, all of them or none.

    flow.npz holds flow_forward (T-1,2,H,W), float16 in pixels, of each frame to the next, x then y; flow_backward, of the next
    frame to it; seconds (T,) of the frames; and the fields of FlowOfVideo by their names. Frames shown from start_seconds to
    end_seconds are taken, scaled down to a short side of `size`. full_pixels None: the length that 99 % of the pixels stay below.

    Errors: VideoError for a video that cannot be read or has less than two frames there, ConfigError for impossible settings,
    CheckpointError where `out` cannot be written.
    """
    started, path, out = time.perf_counter(), os.fspath(path), Path(out)
    if size < classical.LEAST_PIXELS or (full_pixels is not None and not full_pixels > 0):
        raise ConfigError(
            f"size is {size}, full_pixels {full_pixels}: they must be {classical.LEAST_PIXELS} or more, and above 0"
        )
    first, last = start_seconds or 0.0, float("inf") if end_seconds is None else end_seconds
    if not 0 <= first < last:
        raise ConfigError(f"asked for seconds {first:g} to {last:g}: the start must be 0 or more, and before the end")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder to write to")
    info, times = run(path, probe, path), run(path, frame_times, path)
    numbers = ((times >= first) & (times <= last)).nonzero()[:, 0].tolist()
    if len(numbers) < 2:
        raise VideoError(
            f"{path}: {len(numbers)} frame{'s' * (len(numbers) != 1)} between {first:g} and {last:g} s, flow needs two; the video "
            f"has {info.frame_count} in {info.duration_seconds:g} s"
        )
    seconds = times[numbers]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}; choose a folder that you may write to") from error
    try:
        totals, shape = _estimate(path, numbers, size, estimate, draft)
        height, width = shape[2:]
        full = full_pixels if full_pixels is not None else totals.quantile(0.99)
        fps = (len(numbers) - 1) / max(float(seconds[-1] - seconds[0]), 1e-3)
        write_video(draft / "flow.mp4", _pictures(path, numbers, size, shape, full, draft), min(fps, 240.0))
        (draft / "legend.png").write_bytes(show.legend(full))
        found = FlowOfVideo(
            path, str(out), model, len(numbers), float(seconds[0]), float(seconds[-1]), height, width, info.height, info.width,
            *totals.errors(), totals.mean(), full, time.perf_counter() - started,
        )  # fmt: skip
        with zipfile.ZipFile(draft / "flow.npz", "w") as archive:
            for name in ("flow_forward", "flow_backward"):
                archive.write(draft / f"{name}.npy", f"{name}.npy")
            for name, value in {"seconds": seconds.numpy(), **found.to_dict()}.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        out.mkdir(exist_ok=True)
        for name in ("flow.npz", "flow.mp4", "legend.png"):
            os.replace(draft / name, out / name)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}; choose a folder with room, that you may write to") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return found


class _Totals:
    """Sums over all pairs of frames."""

    def __init__(self) -> None:
        self.error = torch.zeros(3, dtype=torch.float64)
        self.pairs = torch.zeros(3, dtype=torch.float64)
        self.lengths = torch.zeros(BINS, dtype=torch.float64)
        self.length = 0.0

    def add(self, frames: Tensor, forward: Tensor, backward: Tensor) -> None:
        before, after = frames[:-1], frames[1:]
        looks = ((before, after, forward), (after, before, backward), (before, after, torch.zeros_like(forward)))
        for row, look in enumerate(looks):
            error = classical.brightness_error(*look).double()
            self.error[row] += error.nansum()
            self.pairs[row] += error.isfinite().sum()
        lengths = forward.norm(dim=1)
        self.length += float(lengths.double().sum())
        self.lengths += torch.histc(lengths, BINS, 0, BINS * BIN_PIXELS).double()

    def errors(self) -> tuple[float, float, float]:
        """Forward, backward, still."""
        forward, backward, still = (self.error / self.pairs.clamp(min=1)).tolist()
        return forward, backward, still

    def mean(self) -> float:
        return self.length / max(float(self.lengths.sum()), 1.0)

    def quantile(self, share: float) -> float:
        """The length that this share of pixels stays below, at least one bin, so that a still video stays white."""
        reached = self.lengths.cumsum(dim=0) >= share * self.lengths.sum()
        return max(1.0, (int(reached.int().argmax()) + 1) * BIN_PIXELS)


def _pieces(path: str, numbers: list[int], size: int) -> Iterator[Tensor]:
    """The frames uint8 (t,3,H,W) in pieces of two or more, of which each begins with the last frame of the one before."""
    sample = run(path, decode, path, numbers[:1], short_side=size).frames
    step = max(1, PIECE_BYTES // sample[0].numel())
    for first in range(0, len(numbers) - 1, step):
        wanted = numbers[first : first + step + 1]
        yield run(path, decode, path, wanted, short_side=size, more_bytes=len(wanted) * sample[0].numel()).frames


def _estimate(path: str, numbers: list[int], size: int, estimate: Estimate, draft: Path) -> tuple[_Totals, tuple[int, ...]]:
    """Flows of all pairs into draft/flow_forward.npy and flow_backward.npy; sums over them, and their shape (T-1,2,H,W)."""
    totals, shape = _Totals(), (0, 0, 0, 0)
    with open(draft / "flow_forward.npy", "wb") as forward_file, open(draft / "flow_backward.npy", "wb") as backward_file:
        for frames in _pieces(path, numbers, size):
            if not shape[0]:
                shape = (len(numbers) - 1, 2, *frames.shape[2:])
                for file in (forward_file, backward_file):
                    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
            forward, backward = estimate(frames, False), estimate(frames, True)
            totals.add(frames, forward, backward)
            _append(forward_file, forward)
            _append(backward_file, backward)
    return totals, shape


def _append(file: BinaryIO, flow: Tensor) -> None:
    file.write(flow.half().contiguous().numpy().astype("<f2").data)


def _pictures(
    path: str, numbers: list[int], size: int, shape: tuple[int, ...], full_pixels: float, draft: Path
) -> Iterator[Tensor]:
    """Pieces of the video of colours, from the flows in the draft."""
    with open(draft / "flow_forward.npy", "rb") as forward_file, open(draft / "flow_backward.npy", "rb") as backward_file:
        for file in (forward_file, backward_file):
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
        for frames in _pieces(path, numbers, size):
            count = (len(frames) - 1, *shape[1:])
            forward, backward = (
                torch.from_numpy(np.fromfile(file, "<f2", int(np.prod(count))).reshape(count))
                for file in (forward_file, backward_file)
            )
            yield show.panels(frames[:-1], forward, backward, full_pixels)
