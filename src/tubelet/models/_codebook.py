"""Tubelets as words: a codebook of W tubelets found by k-means, and the layer that tells which word comes next.

S samples, N tokens, B batch, P values of a token, D width, W words.
"""

import torch
from torch import Generator, Tensor, nn


class Vocabulary(nn.Module):
    """The codebook (W,P), pixels in [0,1] in `patchify`'s order, and a linear layer from an encoder's tokens to its words.

    The codebook is a buffer, zero until `fit`: it is saved with the model and no gradient reaches it.
    """

    codebook: Tensor

    def __init__(self, words: int, values: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(words, values))
        self.head = nn.Linear(width, words)

    def init_weights(self) -> None:
        """Logits near zero, so that the first loss is near ln W, and no codebook."""
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.codebook.zero_()

    def ids(self, patches: Tensor) -> Tensor:
        """int64 (B,N): the nearest word of every tubelet of `patches` (B,N,P), values 0..255."""
        with torch.autocast(patches.device.type, enabled=False):  # the same words in any precision
            return nearest(patches.flatten(0, 1).float() / 255, self.codebook.float())[0].view(patches.shape[:2])

    def pixels(self, ids: Tensor) -> Tensor:
        """float (B,N,P), values 0..255: what words stand for."""
        return self.codebook[ids] * 255

    def fit(self, samples: Tensor, iterations: int, generator: Generator) -> float:
        """Make the codebook from tubelets (S,P), values 0..255; gives the mean squared error of a pixel, of [0,1] squared."""
        samples = samples.to(self.codebook.device).float() / 255
        centres, inertia = kmeans(samples, len(self.codebook), iterations, generator)
        self.codebook.copy_(centres)
        return inertia / samples.numel()


def nearest(samples: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(int64 (S,) the nearest of the centres (W,P) for samples (S,P), float (S,) its squared distance)."""
    distance = torch.addmm(centres.square().sum(dim=1), samples, centres.T, alpha=-2)  # without |sample|^2, which is no choice
    least, index = distance.min(dim=1)
    return index, (least + samples.square().sum(dim=1)).clamp(min=0)


def kmeans(
    samples: Tensor, count: int, iterations: int, generator: Generator, first: Tensor | None = None
) -> tuple[Tensor, float]:
    """(`count` centres (W,P) of samples (S,P), the sum of squared distances to them): Lloyd's algorithm.

    It begins with `first`, or with samples drawn as k-means++ does (Arthur & Vassilvitskii 2007), and ends after `iterations` or
    when nothing moves. A centre that no sample is nearest to goes to the sample that is farthest from its own.
    """
    centres = spread_out(samples, count, generator) if first is None else first.clone()
    ones = torch.ones(len(samples), device=samples.device)
    index, distance = nearest(samples, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, index, samples)
        members = torch.zeros(len(centres), device=samples.device).index_add_(0, index, ones)
        empty = members == 0
        moved = torch.where(empty[:, None], centres, sums / members.clamp(min=1)[:, None])
        lost = distance.topk(min(int(empty.sum()), len(samples))).indices
        moved[empty.nonzero()[: len(lost), 0]] = samples[lost]
        if torch.equal(moved, centres):
            break
        centres = moved
        index, distance = nearest(samples, centres)
    return centres, float(distance.double().sum())


def spread_out(samples: Tensor, count: int, generator: Generator) -> Tensor:
    """(count,P) of the samples (S,P), each drawn with a chance that grows with the squared distance to those before it."""

    def draw(chances: Tensor) -> Tensor:
        chances = chances.cpu().double()
        if not chances.any():  # fewer different samples than centres: the rest repeat one
            chances += 1
        return samples[torch.multinomial(chances, 1, generator=generator).to(samples.device)]

    squares = samples.square().sum(dim=1)

    def away(centre: Tensor) -> Tensor:
        """(S,): squared distances by products, which are quick but leave a rest where there is none."""
        both = squares + centre.square().sum()
        distance = both - 2 * samples @ centre
        return distance.where(distance > 1e-6 * both, 0)

    chosen = [draw(torch.ones(len(samples)))]
    distance = away(chosen[0][0])
    for _ in range(count - 1):
        chosen.append(draw(distance))
        distance = torch.minimum(distance, away(chosen[-1][0]))
    return torch.cat(chosen)
