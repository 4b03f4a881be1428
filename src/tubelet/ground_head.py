"""A small decoder that learns where sentences happen, over features that are stored already.

Every video is cut into N equal cells; the features of its windows are interpolated to their middles. A Transformer reads the cells
together with the words of the question. Every span of cells (i, j), i <= j, then has a score, as on the 2D map of 2D-TAN (Zhang et
al. 2020, arXiv:1912.03590): how well i is a beginning, j an end, both fit together, and how much there is in between. Learning
makes the scores a distribution like a power of the IoU with the true span; the answer is the span of the highest expected IoU.

How ours differs from 2D-TAN: the map is scored from its ends and its inside, not convolved; words are read by the same
Transformer, from a vocabulary of the training questions (and, where the model has a text tower, beside its vector).

B questions, N cells, L words, D width of the features, H own width, M = N(N+1)/2 spans.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.evaluate.grounding import evaluate
from tubelet.features import fingerprint
from tubelet.ground import TOP, Span, check_answers, questions, suppress, timed, truths
from tubelet.ground_store import Stored
from tubelet.models._model import Model
from tubelet.models._tokens import sine_cosine_positions
from tubelet.models._transformer import BiasedBlock, Dropout, LayerNorm
from tubelet.records import Example
from tubelet.seeds import generator_for
from tubelet.storage import utf8_name

FORMAT = "tubelet-ground-2"
SHARPNESS = 6  # of the target: a span of IoU 0.8 weighs 17 times one of 0.5, and one that misses nothing
UNKNOWN = 0  # number of a word that training never had
PADDING = -1  # stands behind the last word of a question that is shorter than the longest
LIKELY = 256  # spans among which the expected IoU is computed


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head and how it is trained. cells: N; window and step: of the features, in seconds."""

    window: float
    step: float
    cells: int = 64
    width: int = 96
    depth: int = 2
    heads: int = 4
    dropout: float = 0.1
    steps: int = 1500
    batch_size: int = 32
    lr: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("window", "step", "lr"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value:g}: it must be a number above 0")
        for name in ("cells", "width", "depth", "heads", "steps", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more")


class GroundHead(nn.Module):
    """Scores of all spans of a video for a question."""

    first: Tensor  # (M,) the first cell of every span
    final: Tensor  # (M,) its last cell

    def __init__(self, config: HeadConfig, features: int, words: Sequence[str], text: int = 0) -> None:
        super().__init__()
        self.config, self.words, self.text = config, tuple(words), text
        self.number = {word: place for place, word in enumerate(words, UNKNOWN + 1)}
        self.norm = LayerNorm(features, eps=1e-6)
        self.drop = Dropout(config.dropout)
        self.embed = nn.Linear(features, config.width)
        self.word = nn.Embedding(len(words) + 1, config.width)
        self.sentence = nn.Linear(text, config.width) if text else None
        self.kind = nn.Parameter(torch.empty(2, config.width))
        self.blocks = nn.ModuleList(BiasedBlock(config.width, config.heads, 4.0, 1e-6) for _ in range(config.depth))
        self.last = LayerNorm(config.width, eps=1e-6)
        self.ends = nn.Linear(config.width, 2 * config.width)
        self.scores = nn.Linear(config.width, 3)  # beginning, end, inside
        cells = torch.arange(config.cells)
        first, last = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("first", first[first <= last], persistent=False)  # (M,)
        self.register_buffer("final", last[first <= last], persistent=False)
        self.init_weights(torch.Generator().manual_seed(config.seed))

    def init_weights(self, generator: torch.Generator) -> None:
        """Xavier's uniform values for every linear layer, zeros for every bias, ones for every norm; words have the size of the
        positions that are added to them."""
        for name, parameter in self.named_parameters():
            if name in ("word.weight", "kind"):
                nn.init.normal_(parameter, std=0.7, generator=generator)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.constant_(parameter, float("norm" in name or name.startswith("last.")) * float(name.endswith("weight")))

    def tokens(self, questions: Sequence[str]) -> Tensor:
        """int64 (B,L): the number of every word, PADDING behind the end of a shorter question."""
        rows = [[self.number.get(word, UNKNOWN) for word in split(question)] for question in questions]
        longest = max(map(len, rows))
        return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])

    def forward(self, features: Tensor, words: Tensor, sentences: Tensor | None = None) -> Tensor:
        """features (B,N,D), words int64 (B,L) of `tokens`, sentences (B,text) of the model's text tower -> (B,M)."""
        width = self.config.width
        x = self.embed(self.drop(self.norm(features))) + sine_cosine_positions(features.shape[1], width).to(features.device)
        seen = F.pad(words != PADDING, (features.shape[1], 0), value=True)  # (B,N+L)
        read = self.word(words.clamp(min=UNKNOWN)) + sine_cosine_positions(words.shape[1], width).to(words.device)
        if self.sentence is not None and sentences is not None:
            read = torch.cat([read, self.sentence(sentences)[:, None]], dim=1)
            seen = F.pad(seen, (0, 1), value=True)
        bias = torch.zeros(seen.shape, device=features.device).masked_fill(~seen, -math.inf)[:, None, None]  # (B,A,query,key)
        x = torch.cat([self.drop(x) + self.kind[0], read + self.kind[1]], dim=1)
        for block in self.blocks:
            x = block(x, bias)
        x = self.last(x[:, : features.shape[1]])  # (B,N,H)
        begin, end, inside = self.scores(x).unbind(-1)  # (B,N) each
        u, v = self.ends(x).chunk(2, dim=-1)
        both = (u @ v.transpose(1, 2)) / math.sqrt(width)  # (B,N,N)
        total = F.pad(inside.cumsum(dim=1), (1, 0))
        i, j = self.first, self.final
        return begin[:, i] + end[:, j] + both[:, i, j] + total[:, j + 1] - total[:, i]

    def spans(self, duration: Tensor | float) -> Tensor:
        """float64 (M,2), or (B,M,2) for durations (B,): where every span lies, in seconds."""
        shares = torch.stack([self.first, self.final + 1], dim=-1).double() / self.config.cells
        return shares * (duration[:, None, None].double() if isinstance(duration, Tensor) else duration)


def split(question: str) -> list[str]:
    """Words and marks of a question, lower case; at least one."""
    return re.findall(r"\w+|[^\w\s]", question.lower()) or [""]


def fit(
    model: Model,
    examples: Sequence[Example],
    stored: dict[str, Stored],
    config: HeadConfig,
    on_step: Callable[[int, float], object] | None = None,
) -> GroundHead:
    """A head taught by the Examples that have a text, start and end, whose videos are in `stored`. DataError where none has."""
    usable = [one for one in timed(examples) if one.path in stored]
    if not usable:
        raise DataError(
            f"none of the videos of {len(examples)} rows to learn from could be read: there is nothing to learn from"
        )
    words = sorted({word for example in usable for word in split(example.text or "")})
    sentences = _sentences(model, [example.text or "" for example in usable])
    head = GroundHead(config, model.width, words, 0 if sentences is None else sentences.shape[1])
    cells = {path: one.cells(config.cells) for path, one in stored.items()}
    tokens = head.tokens([example.text or "" for example in usable])
    features = torch.stack([cells[path] for path in cells])
    row_of = {path: row for row, path in enumerate(cells)}
    video = torch.tensor([row_of[example.path] for example in usable])
    duration = torch.tensor([stored[example.path].duration for example in usable])
    truth = torch.tensor([[example.start_seconds, example.end_seconds] for example in usable], dtype=torch.float64)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup = max(1, config.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / config.steps))
    )
    head.train()
    generator = generator_for(config.seed, "ground")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(config.steps):
            while len(order) < config.batch_size:
                order = torch.cat([order, torch.randperm(len(usable), generator=generator)])
            batch, order = order[: config.batch_size], order[config.batch_size :]
            scores = head(features[video[batch]], tokens[batch], None if sentences is None else sentences[batch])
            near = _overlap(head.spans(duration[batch]), truth[batch][:, None]).float()  # (B,M)
            target = near**SHARPNESS
            target = target / target.sum(dim=1, keepdim=True)
            loss = -(target * scores.log_softmax(dim=1)).sum(dim=1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step + 1, float(loss.detach()))
    return head.eval()


@torch.no_grad()
def answer(head: GroundHead, model: Model, stored: Stored, question: str, top: int = 5, overlap: float = 0.5) -> list[Span]:
    """The `top` spans for a question, best first: the score is the IoU with the true span that the head expects."""
    if not question.strip():
        raise ConfigError("the question is empty: say what to look for")
    check_answers(top, overlap)
    head.eval()
    scores = head(stored.cells(head.config.cells)[None], head.tokens([question]), _sentences(model, [question]))[0]
    chances, likely = scores.double().softmax(dim=0).topk(min(LIKELY, len(scores)))
    spans = head.spans(stored.duration)[likely]
    expected = _overlap(spans[:, None], spans[None]) @ chances
    kept = suppress(spans.numpy(), expected.numpy(), overlap)[:top]
    return [Span(round(float(spans[i, 0]), 3), round(float(spans[i, 1]), 3), float(expected[i])) for i in kept]


def judge(head: GroundHead, model: Model, examples: Sequence[Example], stored: dict[str, Stored]) -> dict[str, float]:
    """The numbers of `evaluate.grounding.evaluate` for the questions about videos that are stored, as `ground.judge` asks them."""
    asked = {key: rows for key, rows in questions(examples).items() if key[0] in stored}
    answers = [answer(head, model, stored[path], text, TOP) for path, text in asked]
    found = [[(span.start_seconds, span.end_seconds) for span in spans] for spans in answers]
    return evaluate(found, [truths(rows) for rows in asked.values()])


def prior(train: Sequence[Example], examples: Sequence[Example], stored: dict[str, Stored]) -> dict[str, float]:
    """What somebody gets who never sees a video: always the mean share of it at which the training spans of that label lie (of
    all spans, where rows have no label)."""
    shares: dict[str | None, list[tuple[float, float]]] = {}
    for one in timed(train):
        if one.path in stored:
            length = stored[one.path].duration
            place = (one.start_seconds or 0) / length, (one.end_seconds or 0) / length
            for label in {one.label, None}:
                shares.setdefault(label, []).append(place)
    means = {label: np.mean(rows, axis=0) for label, rows in shares.items()}
    asked = {key: rows for key, rows in questions(examples).items() if key[0] in stored}
    guesses = [[tuple(means.get(rows[0].label, means[None]) * stored[path].duration)] for (path, _), rows in asked.items()]
    return evaluate(guesses, [truths(rows) for rows in asked.values()])


def save(head: GroundHead, model: Model, folder: str | Path) -> Path:
    """Write the head to FOLDER/head.safetensors, whole or not at all, with what it needs to know and the model's fingerprint."""
    path = Path(folder) / "head.safetensors"
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    about = {
        "format": FORMAT,
        "config": vars(head.config),
        "words": head.words,
        "features": head.embed.in_features,
        "text": head.text,
        "model": model.name,
        "fingerprint": fingerprint(model),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in head.state_dict().items()}, waiting, {"tubelet": json.dumps(about)})
        os.replace(waiting, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; choose a folder with room, that you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink()
    return path


def load(folder: str | Path, model: Model) -> GroundHead:
    """The head in a folder, for the model over whose features it was trained; CheckpointError for any other model."""
    path = Path(folder) / "head.safetensors" if Path(folder).is_dir() else Path(folder)
    try:
        with utf8_name(path) as place, safe_open(place, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("tubelet", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"no head at {path}: {error}; `tubelet ground fit` makes one") from error
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no head for grounding: its format is {about.get('format')!r}, wanted {FORMAT!r}")
    if about["fingerprint"] != fingerprint(model):
        raise CheckpointError(
            f"{path} was trained over features of {about['model']} {about['fingerprint']}, and the model is {model.name} "
            f"{fingerprint(model)}: give that model, or fit the head again"
        )
    head = GroundHead(HeadConfig(**about["config"]), about["features"], about["words"], about["text"])
    head.load_state_dict(state)
    return head.eval()


@torch.no_grad()
def _sentences(model: Model, texts: Sequence[str]) -> Tensor | None:
    """(B,width) of the model's text tower, None where it has none."""
    if model.class_names or type(model).embed_text is Model.embed_text:
        return None
    return model.embed_text(texts).cpu()


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of spans (...,2), as `evaluate.grounding.iou` for tensors that broadcast."""
    shared = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    return shared / (a[..., 1] - a[..., 0] + b[..., 1] - b[..., 0] - shared).clamp(min=1e-9)
