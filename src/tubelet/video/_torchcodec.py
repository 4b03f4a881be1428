"""Frames by number with torchcodec, where it is installed: the same frames as PyAV gives, or PyAV's own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubelet import storage
from tubelet.errors import MissingExtraError
from tubelet.records import Interpolation
from tubelet.video import _pyav
from tubelet.video._index import Index
from tubelet.video.resize import cut, resize


def read_frames(
    path: str,
    index: Index,
    cuts: Sequence[_pyav.Cut],
    size: tuple[int, int],
    interpolation: Interpolation,
    approximate: bool = False,
) -> list[Tensor]:
    """RGB uint8 (T,3,H,W) of `size` (H, W) for every cut; MissingExtraError where torchcodec cannot be imported.

    torchcodec counts frames differently on MPEG-TS, edit lists and broken files. Whenever a time it reports, or the size of its
    frames, is not the one in our index, the frames come from PyAV; so do approximate ones, which it does not have, and those
    of a video that is no file of its own.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:  # without FFmpeg's libraries its import raises RuntimeError
        raise MissingExtraError(
            "backend 'torchcodec' cannot be imported: pip install 'tubelet[torchcodec]' and FFmpeg's shared libraries "
            "(Debian: apt install ffmpeg)"
        ) from error
    if approximate or not storage.is_plain(path):
        return _pyav.read_frames(path, index, cuts, size, interpolation, approximate)
    wanted, places = np.unique(np.concatenate([numbers for numbers, _ in cuts]), return_inverse=True)
    try:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
        found = decoder.get_frames_at(wanted.tolist())
        first = decoder.get_frame_at(0).pts_seconds
    except (RuntimeError, ValueError, IndexError):
        return _pyav.read_frames(path, index, cuts, size, interpolation)
    off = np.abs(found.pts_seconds.numpy() - first - index.seconds[wanted]).max(initial=0)
    if off > 1e-3 or len(decoder) != len(index.seconds) or tuple(found.data.shape[-2:]) != index.shown_size:
        return _pyav.read_frames(path, index, cuts, size, interpolation)
    of_cut = torch.from_numpy(places).split([len(numbers) for numbers, _ in cuts])
    parts = zip(cuts, of_cut, strict=True)
    return [resize(cut(found.data, box or (0, 0, *index.shown_size), at), size, interpolation) for (_, box), at in parts]
