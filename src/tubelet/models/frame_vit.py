"""An image Transformer that sees every frame alone: ViT (Dosovitskiy et al. 2021), with the sizes of CLIP's image towers (Radford
et al. 2021). What it knows of time is what is made of its frames: a mean, or the pool of a `video_text` model.

Each frame is cut into patches, a cls token is put before them, and what becomes of it stands for the frame.

How ours differs: the patch embedding is a Linear with a bias, which CLIP's has not (zero then). norm_pre, a LayerNorm before the
first block, and gelu "quick" are CLIP's; without them and with eps 1e-6 it is timm's ViT.

B batch, T frames, P patches of a frame, D width, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.find import choose
from tubelet.models import _keys
from tubelet.models._model import Model
from tubelet.models._tokens import Triple, grid_of, linear_weight, patchify, resize_positions
from tubelet.models._transformer import BiasedBlock, Dropout, LayerNorm
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Dosovitskiy et al. 2021, arXiv:2010.11929; Radford et al. 2021, arXiv:2103.00020"

VARIANTS: dict[str, dict[str, Any]] = {
    "frame_vit_base_32": dict(width=768, depth=12, heads=12, patch=32),
    "frame_vit_base_16": dict(width=768, depth=12, heads=12, patch=16),
    "frame_vit_large_14": dict(width=1024, depth=24, heads=16, patch=14),
}
# Twelve frames spread over the video (CLIP4Clip, arXiv:2104.08860); mean and std of openai/CLIP's preprocessing.
CLIP = ClipSpec(
    frames=12,
    sampling="segments",
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
CLIPS = dict.fromkeys(VARIANTS, CLIP)


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "FrameViT":
    """A freshly initialised model; with `class_names` the mean of the frames' vectors is classified."""
    return FrameViT(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class FrameViT(Model):
    """patch is in pixels. `position_grid` is the grid (1, rows, columns) that the positions were made for; on another one they are
    interpolated."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, depth: int, heads: int,
        patch: int = 16, mlp_ratio: float = 4.0, gelu: str = "quick", norm_pre: bool = True, eps: float = 1e-5,
        dropout: float = 0.0, position_grid: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.width, self.depth, self.tubelet = width, depth, (1, patch, patch)
        grid = (1, *grid_of(name, (spec.frames, 3, spec.size, spec.size), self.tubelet)[1:])
        self.position_grid: Triple = grid if position_grid is None else (*position_grid,)  # type: ignore[assignment]
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, patch=patch, mlp_ratio=mlp_ratio,
            gelu=choose(gelu, ("tanh", "none", "quick"), "gelu"), norm_pre=norm_pre, eps=eps, dropout=dropout,
            position_grid=list(self.position_grid),
        )  # fmt: skip
        self.embed = nn.Linear(patch * patch * 3, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.position_grid[1] * self.position_grid[2], width))
        self.norm_pre = LayerNorm(width, eps=eps) if norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(BiasedBlock(width, heads, mlp_ratio, eps, gelu) for _ in range(depth))
        self.norm = LayerNorm(width, eps=eps)
        if class_names:
            self.dropout = Dropout(dropout)
            self.head = nn.Linear(width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for Linear layers, normal of 0.02 for cls token and positions, 0 for biases, 1 and 0 for norms."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name in ("cls_token", "pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,T,D), one a frame, "embedding" (B,D), their mean, "logits" (B,K) of classes."""
        slots, rows, columns = grid_of(self.name, frames.shape, self.tubelet)
        patches = patchify(frames, self.tubelet)
        patches = patches.reshape(-1, rows * columns, patches.shape[2])  # (B*T,P,values)
        x = self.embed(normalize(patches, self.spec.mean, self.spec.std))
        x = x + resize_positions(self.pos_embed[0, 1:], self.position_grid, (1, rows, columns))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = self.norm_pre(torch.cat([first, x], dim=1))  # (B*T,1+P,D)
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(x[:, 0]).view(-1, slots, self.width)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            out["logits"] = self.head(self.dropout(out["embedding"]))
        return out

    def depth_of(self, parameter: str) -> int:
        """0 embedding, cls token and positions, 1..depth blocks, depth+1 the norm and the head."""
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        return self.depth + 1 if parameter.startswith(("norm.", "head.")) else 0

    def attended_pairs(self) -> int:
        """Of the patches within each frame."""
        slots, rows, columns = grid_of(self.name, (self.spec.frames, 3, self.spec.size, self.spec.size), self.tubelet)
        return slots * (rows * columns) ** 2

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


# Weight-key map ------------------------------------------------------------------------------------------------------


def from_image(model: FrameViT, state: Mapping[str, Tensor], how: str = "copy") -> dict[str, Tensor]:
    """A state dict for `model` that is an image ViT, given in timm's layout, on every frame; a head keeps the model's values.

    Raises CheckpointError naming every weight that does not fit."""
    choose(how, ("copy",), "way to begin from an image model")
    found = _keys.from_timm(state, model.depth)
    found["embed.weight"] = linear_weight(found["embed.weight"][:, :, None])
    positions = found["pos_embed"][0]
    patches = _keys.image_positions(positions[1:], model.position_grid)
    found["pos_embed"] = torch.cat([positions[:1], patches])[None]
    return _keys.into(model, found)
