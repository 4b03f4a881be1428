"""How much of a clip a classifier uses: the order of its frames, and that there is more than one.

A clip is shown as it is, backwards, with its frames shuffled, and with one of them repeated. Whoever averages over frames
answers all orders alike; whoever needs one frame only answers all four alike.

Two of the scores are exact by construction for such a model. Sums taken in another order differ in their last digits, so answers
to a clip and to its reversal whose log-odds differ by at most TIE count as the same answer, and the same answer to both is worth
one half: a model that does not know the order scores exactly 50 %, whatever its weights.

M videos, K classes, B clips, T frames.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.evaluate.metrics import check, confusion_matrix, ranks, wilson_interval
from tubelet.find import choose
from tubelet.seeds import derive, generator_for

# In log-odds: it moves a probability by 0.00025 at most. Rounding alone moved the answers of averaging models by less than 1e-5.
TIE = 1e-3
ORDERS = ("as given", "reversed", "shuffled", "one frame")
RESAMPLES = 2000
Pair = tuple[str, str]


@dataclass(frozen=True)
class Share:
    """A share of `videos`, with its 95 % Wilson interval. Where ties count one half the interval is too wide rather than too
    narrow: a score of one half varies less than one of 0 or 1."""

    share: float
    low: float
    high: float
    videos: int


@dataclass(frozen=True)
class Gap:
    """The mean of a difference between two results on the same videos, with its 95 % interval (percentiles of a bootstrap over
    videos)."""

    gap: float
    low: float
    high: float
    videos: int


def frame_order(order: str, frames: int, id: str, seed: int = 0) -> Tensor:
    """int64 (T,): which frame is shown when. A shuffle follows from the video's id and the seed; "one frame" is the middle one."""
    choose(order, ORDERS, "order of frames")
    if order == "shuffled":
        return torch.randperm(frames, generator=generator_for(seed, "shuffle", id))
    if order == "one frame":
        return torch.full((frames,), frames // 2)
    return torch.arange(frames).flip(0) if order == "reversed" else torch.arange(frames)


def arrange(frames: Tensor, ids: Sequence[str], order: str, seed: int = 0) -> Tensor:
    """The clips (B,T,C,H,W) of the videos `ids` with their frames in another order."""
    return take(frames, torch.stack([frame_order(order, frames.shape[1], id, seed) for id in ids]))


def fill(frames: Tensor, count: int) -> Tensor:
    """(B,count,C,H,W): every frame of clips (B,T,C,H,W) held for about count/T frames. ConfigError where T is more than count."""
    if frames.shape[1] > count:
        raise ConfigError(f"{frames.shape[1]} frames do not fit into a clip of {count}")
    return take(frames, (torch.arange(count) * frames.shape[1] // count).expand(len(frames), -1))


def take(frames: Tensor, order: Tensor) -> Tensor:
    """Frames `order` int64 (B,S) of clips (B,T,C,H,W). Their layout in memory stays: the order of sums in a model follows it."""
    return frames[torch.arange(len(frames))[:, None], order]


def log_odds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """float64 (M,): log of the true class's probability over that of all others."""
    probabilities, labels = check(probabilities, labels)
    true = torch.nn.functional.one_hot(labels, probabilities.shape[1]).bool()
    others = probabilities.masked_fill(true, 0).sum(dim=1)  # 1 - p would lose the digits of a sure answer
    return _log(probabilities[true]) - _log(others)


def largest_change(before: Tensor, after: Tensor) -> float:
    """By how much any log-probability of any video differs between two answers (M,K)."""
    return float((_log(before) - _log(after)).abs().max())


def forward_over_reversed(forward: Tensor, backward: Tensor, labels: Tensor) -> Tensor:
    """float64 (M,) of 0, 1/2, 1: is the true class more probable (M,K) for the clip than for its reversal? Ties count one half."""
    gain = log_odds(forward, labels) - log_odds(backward, labels)
    return torch.where(gain.abs() <= TIE, 0.5, (gain > 0).double())


def two_way(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Of videos of one class of a pair: (is the clip taken for it, is the reversal taken for the other), each (M,) of 0, 1/2, 1.

    forward and backward (M,2): the probabilities of the own class and of the other. The same answer to both is right once.
    """
    ahead, behind = _log(forward[:, 0]) - _log(forward[:, 1]), _log(backward[:, 0]) - _log(backward[:, 1])
    behind = torch.where((ahead - behind).abs() <= TIE, ahead, behind)
    return (ahead.sign() + 1) / 2, (1 - behind.sign()) / 2


def pair_rows(
    forward: Tensor, backward: Tensor, labels: Tensor, class_names: Sequence[str], pairs: Sequence[Pair]
) -> list[dict[str, Any]]:
    """One row a pair of classes that are each other's reversal, and where there are several a last one of them all.

    forward: how many clips are taken for their class, of the two; reversed: how many reversals are taken for the other; and
    share, low, high, videos of both together (see Share). A pair without videos has None.
    """
    (forward, labels), (backward, _) = check(forward, labels), check(backward, labels)
    place = {name: index for index, name in enumerate(class_names)}
    rows, every = [], []
    for pair in pairs:
        scores = []
        for own, other in (pair, pair[::-1]):
            of, columns = labels == place[own], [place[own], place[other]]
            scores.append(torch.stack(two_way(forward[of][:, columns], backward[of][:, columns])))  # (2,M)
        every.append(torch.cat(scores, dim=1))
        rows.append({"pair": list(pair)} | _two(every[-1]))
    return rows + ([{"pair": None} | _two(torch.cat(every, dim=1))] if len(pairs) > 1 else [])


def parse_pairs(texts: Sequence[str], class_names: Sequence[str]) -> list[Pair]:
    """Pairs of classes from "A:B" or "A:B,C:D"; ConfigError for anything else, for unknown classes and for a class in two pairs."""
    pairs: list[Pair] = []
    for text in texts:
        whole = _halves(text, class_names)  # a class may have a comma in its name
        for part in [text] if whole else text.split(","):
            found = whole or _halves(part, class_names)
            if found is None:
                names = [name.strip() for name in part.split(":")]
                if len(names) == 2:
                    for name in names:
                        choose(name, class_names, "class in a pair")
                raise ConfigError(f"{part.strip()!r} is no pair of classes: wanted two of them as A:B, more pairs after commas")
            pairs.append(found)
    for name in (names := [name for pair in pairs for name in pair]):
        if names.count(name) > 1:
            raise ConfigError(f"class {name!r} is named twice in the pairs: every class has one reversal, and not itself")
    return pairs


def find_pairs(backward: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[Pair]:
    """The classes that the model takes for each other when their clips (M,K) are played backwards, most of them each way.

    The model's own opinion: it finds no pair that it cannot tell apart, so scores on such pairs are its best ones.
    """
    said = confusion_matrix(backward, labels)
    most = {a: int(row.argmax()) for a, row in enumerate(said) if row.sum() > 0 and 2 * row.max() > row.sum()}
    return [(class_names[a], class_names[b]) for a, b in most.items() if a < b and most.get(b) == a]


def right(probabilities: Tensor, labels: Tensor) -> Tensor:
    """float64 (M,) of 0 and 1: is the true class the first guess?"""
    return (ranks(probabilities, labels) == 0).double()


def share_of(scores: Tensor) -> Share:
    """The mean of scores (M,) between 0 and 1 with its interval."""
    share = float(scores.double().mean())
    return Share(share, *wilson_interval(share, len(scores)), len(scores))


def gap_of(more: Tensor, less: Tensor, seed: int = 0) -> Gap:
    """The mean of more - less, results (M,) of the same videos."""
    difference = (more - less).double()
    values, counts = difference.unique(return_counts=True)  # few: a resample is how often each of them is drawn
    drawn = np.random.default_rng(derive(seed, "bootstrap")).multinomial(
        len(difference), counts.numpy() / len(difference), RESAMPLES
    )
    low, high = np.quantile(drawn @ values.numpy() / len(difference), (0.025, 0.975)).tolist()
    return Gap(float(difference.mean()), low, high, len(difference))


def verdict(invariant: bool, gap: Gap, drop: Gap, direction: Share) -> str:
    """Is it really video? One sentence from the gap to a repeated frame, what shuffling costs, and forward over reversed."""
    worth = f"the clip is worth {100 * gap.gap:.1f} points more than one frame of it"
    if invariant:
        return "No: no answer depends on the order of the frames. To this model a clip is a bag of pictures."
    ordered = drop.low > 0 or direction.low > 0.5
    if gap.low > 0 and ordered:
        return f"Yes: {worth}, and the order of its frames counts."
    if gap.low > 0:
        return f"In part: {worth}, but that their order helps does not show on {gap.videos} videos."
    if ordered:
        return f"Hardly: the order counts, but that a clip is worth more than one frame of it does not show on {gap.videos} videos."
    return f"No sign of it: that several frames or their order help does not show on {gap.videos} videos."


def _two(scores: Tensor) -> dict[str, Any]:
    """forward, reversed and the Share of both, from scores (2,M)."""
    if scores.shape[1] == 0:
        return dict.fromkeys(("forward", "reversed", "share", "low", "high")) | {"videos": 0}
    forward, backward = scores.mean(dim=1).tolist()
    return {"forward": forward, "reversed": backward} | asdict(share_of(scores.mean(dim=0)))


def _halves(text: str, class_names: Sequence[str]) -> Pair | None:
    """The two classes that a colon of `text` stands between, if there is such a colon."""
    for index in (place for place, letter in enumerate(text) if letter == ":"):
        pair = text[:index].strip(), text[index + 1 :].strip()
        if pair[0] in class_names and pair[1] in class_names:
            return pair
    return None


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.double().clamp(min=1e-300).log()
