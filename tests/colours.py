"""A model whose answers can be told by hand: the embedding of a clip is its mean colour, and three words are known."""

import torch
from torch import nn

from tubelet.models._model import Model
from tubelet.records import ClipSpec
from tubelet.video.write import write_video

WORDS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
FPS = 8


class Colours(Model):
    """`embedding` (B,3) in 0..1; with classes `logits` too, which make the leading colour nearly certain."""

    def __init__(self, class_names=(), frames=4, sampling="videomae"):
        super().__init__()
        self.name, self.options, self.width, self.class_names = "colours", {}, 3, tuple(class_names)
        self.spec = ClipSpec(frames=frames, stride_frames=2, size=16, sampling=sampling)
        self.scale = nn.Parameter(torch.tensor(12.0))

    def forward(self, frames):
        mean = frames.float().mean(dim=(1, 3, 4)) / 255
        return {"embedding": mean, **({"logits": mean * self.scale} if self.class_names else {})}

    def embed_text(self, texts):
        if self.class_names:
            return super().embed_text(texts)
        vectors = [sum((torch.tensor(WORDS[w]) for w in text.split() if w in WORDS), torch.full((3,), 0.01)) for text in texts]
        return nn.functional.normalize(torch.stack(vectors), dim=1)


def film(path, parts):
    """A video of (colour, seconds) parts, 16x16 pixels."""
    frames = [
        torch.tensor(WORDS[name]).mul(255).byte()[None, :, None, None].expand(round(s * FPS), 3, 16, 16) for name, s in parts
    ]
    write_video(path, torch.cat(frames), fps=FPS, crf=1, pixel_format="yuv444p")
    return path
