"""Frames by number with torchcodec, where it is installed: the same frames as PyAV gives, or PyAV's own."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.errors import MissingExtraError
from tubelet.records import Interpolation
from tubelet.video import _pyav
from tubelet.video._index import Index


def read_frames(path: str, index: Index, numbers: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """RGB uint8 (T,3,H,W) of the frames `numbers`; MissingExtraError where torchcodec cannot be imported.

    torchcodec counts frames differently on MPEG-TS, edit lists and broken files. Whenever a time it reports, or the size of its
    frames, is not the one in our index, the frames come from PyAV.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:  # without FFmpeg's libraries its import raises RuntimeError
        raise MissingExtraError("backend 'torchcodec' cannot be imported: pip install 'tubelet[torchcodec]'") from error
    try:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
        found = decoder.get_frames_at(numbers.tolist())
        first = decoder.get_frame_at(0).pts_seconds
    except (RuntimeError, ValueError, IndexError):
        return _pyav.read_frames(path, index, numbers, size, interpolation)
    off = np.abs(found.pts_seconds.numpy() - first - index.seconds[numbers]).max(initial=0)
    if off > 1e-3 or len(decoder) != len(index.seconds) or tuple(found.data.shape[-2:]) != index.shown_size:
        return _pyav.read_frames(path, index, numbers, size, interpolation)
    if size == index.shown_size:
        return found.data
    mode = "area" if interpolation == "area" else interpolation
    smooth = {} if mode == "area" else {"antialias": True}
    scaled = functional.interpolate(found.data.float(), size, mode=mode, **smooth)
    return scaled.round().clamp(0, 255).to(torch.uint8)
