"""What a user would run instead: clips of a folder through PyTorch's DataLoader, cut by the research recipe or by transformers.

The recipe stands in for the original implementation, whose decoder and licence keep it out of here, and does the same work:
every frame up to the window's end is decoded, each wanted one becomes a PIL image and is cropped and resized by itself, and
the worker makes float32 of it and normalises. Pillow and transformers are imported where they are used.
"""

import math
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tubelet.records import ClipSpec

Cut = Callable[[list[av.VideoFrame], ClipSpec], Tensor]


class Clips(Dataset[Tensor]):
    """One random clip of a video, float32 (T,C,H,W)."""

    def __init__(self, paths: Sequence[str], spec: ClipSpec, cut: Cut) -> None:
        self.paths, self.spec, self.cut = paths, spec, cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        spec = self.spec
        with av.open(self.paths[place]) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            spare = max(0, stream.frames - spec.window_frames)
            start = int(torch.randint(spare + 1, ()))
            wanted, frames = set(range(start, start + spec.window_frames, spec.stride_frames)), []
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    frames.append(frame)
                if len(frames) == spec.frames:
                    break
        frames += frames[-1:] * (spec.frames - len(frames))
        return self.cut(frames, spec)


def recipe_cut(frames: list[av.VideoFrame], spec: ClipSpec) -> Tensor:
    """A random resized crop of each frame with PIL, then float32, normalised."""
    from PIL import Image

    images = [frame.to_image() for frame in frames]
    width, height = images[0].size
    area = width * height * float(torch.empty(()).uniform_(0.5, 1))
    ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
    wide, high = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = float(torch.rand(())) * (width - wide), float(torch.rand(())) * (height - high)
    box, size = (left, top, left + wide, top + high), (spec.size, spec.size)
    cut = [np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box)) for image in images]
    clip = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return clip.sub_(mean).div_(std)


def processor_cut(spec: ClipSpec) -> Cut:
    """transformers' image processor of VideoMAE: resize the short side, cut the centre, normalise."""
    from transformers import VideoMAEImageProcessorPil  # the other one wants torchvision

    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": spec.size}, crop_size={"height": spec.size, "width": spec.size}
    )

    def cut(frames: list[av.VideoFrame], spec: ClipSpec) -> Tensor:
        images = [frame.to_ndarray(format="rgb24") for frame in frames]
        return processor(images, return_tensors="pt")["pixel_values"][0]

    return cut


def loader(paths: Sequence[str], spec: ClipSpec, cut: Cut, batch: int, batches: int, workers: int) -> DataLoader[Tensor]:
    """`batches` batches of random videos."""
    data = Clips(paths, spec, cut)
    order = RandomSampler(data, num_samples=batch * batches)  # permutation after permutation
    return DataLoader(data, batch_size=batch, sampler=order, num_workers=workers)
