"""A video and a sentence about it in one space: two towers, taught to agree (CLIP, Radford et al. 2021; for video CLIP4Clip, Luo
et al. 2021).

The video tower is any model of this package: its tokens are pooled, the pooled vector is projected and brought to length 1. The
text tower (`_text.py`) does the same with a sentence. The inner product of two vectors says how well they fit; learning scales
it by a learned temperature. Either tower may be frozen (LiT, Zhai et al. 2022, arXiv:2111.07991).

How ours differs from CLIP4Clip: the tower need not be CLIP's and may see motion itself; the temporal transformer's branch begins
at zero, so that it begins as mean pooling; its positions are fixed sines and cosines.

With classes there is no text tower: the projected video vector is classified.

B batch, T frames, C colours, H height, W width, N tokens, S slots (moments), D width of the video tower, E shared width, L tokens
of a text, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models import frame_vit
from tubelet.models._model import Model
from tubelet.models._text import TextEncoder
from tubelet.models._tokens import Places, Triple, sine_cosine_positions
from tubelet.models._transformer import Block, LayerNorm, attend
from tubelet.records import ClipSpec

PAPER = "Radford et al. 2021, arXiv:2103.00020; Luo et al. 2021, arXiv:2104.08860"

VARIANTS: dict[str, dict[str, Any]] = {
    "video_text_tiny": dict(video="videomae_tiny", text=dict(width=192, depth=4, heads=3), width=192),
    "video_text_small": dict(video="videomae_small", text=dict(width=384, depth=6, heads=6), width=256),
    "video_text_base": dict(video="videomae_base", text=dict(width=512, depth=12, heads=8), width=512),
    # CLIP ViT-B/32, frame by frame; `tubelet weights begin CLIP OUT --model clip_base_32` fills it.
    "clip_base_32": dict(
        video="frame_vit_base_32", text=dict(width=512, depth=12, heads=8, vocabulary=49408, gelu="quick"), width=512
    ),
}
CLIPS = {"clip_base_32": frame_vit.CLIP}
POOLS = ("mean", "temporal", "attention")
FREEZE = ("none", "video", "text", "both")
LARGEST_SCALE = 100.0  # of the logits, as in CLIP: beyond it training is not stable
TEXTS = 256  # encoded together


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "VideoText":
    """Freshly initialised towers; with `class_names` a video tower with a head."""
    merged = {**VARIANTS[name], **options}
    merged["text"] = {**VARIANTS[name]["text"], **merged["text"]}
    return VideoText(name, spec, tuple(class_names), **merged)


class TemporalPool(nn.Module):
    """Each slot's mean token goes through a Transformer over time; what it finds is added to the slots before their mean.

    Its last layer begins at zero, so that it begins as mean pooling.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, 4.0, 1e-6) for _ in range(depth))
        self.norm = LayerNorm(width, eps=1e-6)
        self.add = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, slots: int) -> Tensor:
        """(B,N,D), N a multiple of `slots` in the order of time -> (B,D)."""
        moments = tokens.unflatten(1, (slots, -1)).mean(dim=2)  # (B,S,D)
        x = moments + sine_cosine_positions(slots, tokens.shape[2]).to(tokens.device)
        for block in self.blocks:
            x = block(x)
        return (moments + self.add(self.norm(x))).mean(dim=1)


class AttentionPool(nn.Module):
    """One learned query looks at all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(width, eps=1e-6)
        self.query = nn.Parameter(torch.empty(width))
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, slots: int) -> Tensor:
        """(B,N,D) -> (B,D)."""
        k, v = self.kv(self.norm(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B,A,N,D/A)
        q = self.query.to(k.dtype).view(self.heads, 1, -1).expand(tokens.shape[0], -1, -1, -1)
        return self.proj(attend(q, k, v)[:, :, 0].flatten(1))


class Matcher(nn.Module):
    """Does a text belong to a video? Both vectors and their product through two layers (the head of objectives/contrastive.py)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3 * width, width)
        self.fc2 = nn.Linear(width, 1)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        """(...,E) and (...,E) of length 1 -> logits (...)."""
        both = torch.cat([video, text, video * text * video.shape[-1] ** 0.5], dim=-1) * video.shape[-1] ** 0.5
        return self.fc2(F.gelu(self.fc1(both)))[..., 0]


class VideoText(Model):
    """Two towers, a pool, two projections and a temperature.

    video, video_options  a variant of `tubelet models` and its options: the video tower
    text                  the text tower's options (see TextEncoder); those not given are the variant's
    width                 E, of the shared space
    pool                  "mean": the tower's own vector, the mean over its tokens unless its family has another; a "temporal"
                          transformer over slots; or "attention" of a learned query
    pool_heads, pool_depth  of the pool, where it has them
    freeze                the tower that keeps its weights: "none", "video", "text" or "both"; pool and projections learn
    temperature           the first value; the logits are inner products divided by it
    matching              with the head for `contrastive.matching`
    """

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, video: str, text: dict[str, Any], width: int,
        video_options: dict[str, Any] | None = None, pool: str = "mean", pool_heads: int = 4, pool_depth: int = 2,
        freeze: str = "none", temperature: float = 0.07, matching: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names, self.width = name, spec, class_names, width
        if video in VARIANTS:
            raise ConfigError(f"{name}: the video tower cannot be {video}, which has two towers itself: name a video model")
        if not temperature >= 1 / LARGEST_SCALE:
            raise ConfigError(f"{name}: temperature is {temperature}: it must be {1 / LARGEST_SCALE} or more, 0.07 is usual")
        without_decoder = {"decoder": False} if class_names and "decoder" in models.options_of(video) else {}
        self.video = models.build(video, spec, **{**(video_options or {}), **without_decoder})
        inner = self.video.width
        if choose(pool, POOLS, "pool") != "mean" and inner % pool_heads:
            raise ConfigError(f"{name}: pool_heads is {pool_heads}, which does not divide the video tower's width {inner}")
        self.pool: nn.Module | None = None
        if pool == "temporal":
            self.pool = TemporalPool(inner, pool_heads, pool_depth)
        elif pool == "attention":
            self.pool = AttentionPool(inner, pool_heads)
        self.project = nn.Linear(inner, width, bias=False)
        self.depth, self.reads_text = self.video.depth, not class_names
        if class_names:
            self.head = nn.Linear(width, len(class_names))
        else:
            self.text = TextEncoder(**text)
            text = self.text.options
            self.project_text = nn.Linear(self.text.width, width, bias=False)
            self.log_scale = nn.Parameter(torch.empty(1))  # FSDP2 divides no scalars
            if matching:  # in a list, so that FSDP2 makes it a unit of its own: it is called outside of `forward`
                self.matching = nn.ModuleList([Matcher(width)])
        self.options: dict[str, Any] = dict(
            video=video, text=text, width=width, video_options=self.video.options, pool=pool, pool_heads=pool_heads,
            pool_depth=pool_depth, freeze=choose(freeze, FREEZE, "freeze"), temperature=temperature, matching=matching,
        )  # fmt: skip
        self.frozen: list[nn.Module] = [self.video] if freeze in ("video", "both") else []
        if freeze in ("text", "both") and not class_names:
            self.frozen.append(self.text)
        for tower in self.frozen:
            tower.requires_grad_(False)
        if hasattr(self.video, "grid"):  # it can be masked, and so can this
            self.grid, self.tubelet = self.video.grid, self.video.tubelet
        self.init_weights()

    def init_weights(self) -> None:
        """Each tower's own first values; normal by width for projections; zero for what the temporal transformer adds."""
        self.video.init_weights()
        if not self.class_names:
            self.text.init_weights()
            nn.init.normal_(self.project_text.weight, std=self.text.width**-0.5)
            nn.init.constant_(self.log_scale, -math.log(self.options["temperature"]))
            for layer in self.matching.modules() if self.options["matching"] else ():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        else:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.project.weight, std=self.video.width**-0.5)
        for name, parameter in self.pool.named_parameters() if self.pool else ():
            if name == "query":
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias") or name == "add.weight":
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def train(self, mode: bool = True) -> "VideoText":
        """Training mode, in which frozen towers stay in evaluation mode."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    def forward(
        self,
        frames: Tensor,
        text: Tensor | None = None,
        mask: Tensor | Places | None = None,
        decoder_mask: Tensor | None = None,
        next_token: bool = False,
    ) -> dict[str, Tensor]:
        """Named tensors for frames (B,T,C,H,W), 0..255.

        "tokens" (B,N,D) of the video tower, "embedding" (B,E) of length 1, "logits" (B,K) with classes. With the token ids `text`
        (B,L) of `tokenize` also "text" (B,E) of length 1 and "scale" (), what inner products are multiplied by. With a `mask`, or
        for the `next_token`, only what the video tower gives for it (see videomae).
        """
        if next_token:
            return self.video(frames, next_token=True)
        if mask is not None:
            return self.video(frames, mask=mask, decoder_mask=decoder_mask)
        seen = self.video(frames)
        pooled = seen["embedding"] if self.pool is None else self._pooled(seen["tokens"], frames.shape[1])  # (B,D)
        projected = self.project(pooled).float()  # (B,E)
        out = {"tokens": seen["tokens"], "embedding": F.normalize(projected, dim=1)}
        if self.class_names:
            out["logits"] = self.head(projected)
        if text is not None:
            out["text"] = self._encoded(text)
            out["scale"] = self.log_scale[0].exp().clamp(max=LARGEST_SCALE)
        return out

    @property
    def vocabulary(self) -> nn.Module | None:
        """Of discrete tokens, where the video tower has one."""
        return getattr(self.video, "vocabulary", None)

    def _pooled(self, tokens: Tensor, frames: int) -> Tensor:
        """(B,N,D) -> (B,D). Slots are as many as tubelets follow each other in time, or where that does not divide the tokens (of a
        tower that pools over time), every token is one."""
        assert self.pool is not None
        if tokens.shape[2] != self.video.width:
            raise ConfigError(f"{self.name}: the tokens of {self.video.name} are no vectors of a clip, pool them by 'mean'")
        slots, count = frames // getattr(self.video, "tubelet", (1, 1, 1))[0], tokens.shape[1]
        return self.pool(tokens, slots if count % slots == 0 else count)

    def _encoded(self, ids: Tensor) -> Tensor:
        return F.normalize(self.project_text(self.text(ids)).float(), dim=1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 (B,L) for `forward`; ConfigError for an empty text and for a model that reads none."""
        if self.class_names:
            return super().tokenize(texts)  # says so
        return self.text.tokenize(texts)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 (B,E) of length 1, on the model's device; ConfigError for an empty text and for a model that reads none."""
        device = self.project.weight.device
        pieces = [texts[first : first + TEXTS] for first in range(0, len(texts), TEXTS)]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = [self._encoded(self.tokenize(piece).to(device)) for piece in pieces]
        return torch.cat(found) if found else torch.empty(0, self.width, device=device)

    @property
    def decoder(self) -> nn.Module | None:
        """The video tower's, where it has one."""
        return getattr(self.video, "decoder", None)

    def grid_of(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """The video tower's, where it can be masked."""
        return self.video.grid_of(frames, height, width, colours)

    def depth_of(self, parameter: str) -> int:
        """Of the video tower as there; the text tower's blocks are spread over the same depths."""
        tower, _, name = parameter.partition(".")
        if tower == "video":
            return self.video.depth_of(name)
        if tower == "text" and name.startswith("blocks."):
            return 1 + int(name.split(".")[1]) * self.depth // self.text.depth
        return 0 if tower == "text" and not name.startswith("norm.") else self.depth + 1

    def receptive_field(self) -> Triple | None:
        return self.video.receptive_field()

    def attended_pairs(self) -> int | None:
        return self.video.attended_pairs()

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []
