"""A small model of every family, for the suites that loop over all of them. A new family adds its line."""

import torch
from torch import Tensor

from tubelet import models
from tubelet.models._model import Model
from tubelet.records import ClipSpec

SPEC = ClipSpec(frames=4, size=32)

# By family, or by variant where the variants of a family take other options: (clips it is built for, options).
SMALL: dict[str, tuple[ClipSpec, dict[str, object]]] = {
    "videomae": (SPEC, dict(width=24, depth=2, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=2, patch=8)),
    "timesformer": (SPEC, dict(width=24, depth=2, heads=2, patch=8)),
    "vivit": (SPEC, dict(width=24, depth=2, heads=2, patch=8, temporal_depth=1)),
    "fusion": (SPEC, dict(width=8, stages=2)),
    "slow_fusion_toy": (SPEC, dict(width=8, stages=1)),
    "c3d": (ClipSpec(frames=16, size=32), dict(channels=4, hidden=16)),
    "cnn_lstm": (SPEC, dict(channels=4, hidden=12)),
    "cnn3d_lstm_resnet18": (SPEC, dict(channels=4, hidden=12, window=2)),
    "i3d": (SPEC, dict(width=8)),
    "i3d_inception": (ClipSpec(frames=8, size=48), dict(width=8)),
    "r2plus1d": (SPEC, dict(width=8)),
    "nonlocal_net": (SPEC, dict(net_options=dict(width=8))),
    "raft": (SPEC, dict(updates=2)),
    "two_stream": (ClipSpec(frames=4, size=64), dict(width=8)),  # batch norm of one clip needs more than 1x1 cells
    "mvit": (SPEC, dict(width=16, heads=2, blocks=(1, 2), kv_stride=2)),
    "swin": (SPEC, dict(width=16, heads=2, blocks=(2, 2), window=(2, 3, 3))),
    "vjepa2": (SPEC, dict(width=24, depth=2, heads=2, patch=8, pooler_depth=1)),
    "frame_vit": (SPEC, dict(width=24, depth=2, heads=2, patch=8)),
    "clip_base_32": (
        SPEC,
        dict(video_options=dict(width=24, depth=2, heads=2, patch=8), text=dict(width=16, depth=2, heads=2), width=20),
    ),
    "video_text": (
        SPEC,
        dict(
            video_options=dict(width=24, depth=2, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=2, patch=8),
            text=dict(width=16, depth=2, heads=2),
            width=20,
        ),
    ),
}

# Weights that logits do not depend on. MViT classifies its cls token: what only moves the other queries of the last block.
UNTAUGHT: dict[str, tuple[str, ...]] = {
    "mvit": ("blocks.2.attn.pool_q.conv.weight", *(f"blocks.2.attn.rel_{axis}" for axis in "thw")),
}


def family_of(name: str) -> str:
    return models.variants()[name].__name__.rpartition(".")[2]


def small(name: str, class_names: tuple[str, ...] = (), **options: object) -> Model:
    """A variant so small that it is built and run at once."""
    spec, sizes = SMALL.get(name) or SMALL[family_of(name)]
    return models.build(name, spec, class_names, **{**sizes, **options})


def clips(spec: ClipSpec, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, spec.frames, 3, spec.size, spec.size), dtype=torch.uint8, generator=generator)


def randomise(model: torch.nn.Module, scale: float = 0.1) -> None:
    """Random values everywhere, biases, norms and running statistics too, so that no swapped or forgotten weight can hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * scale + (1 if name.endswith("var") else 0))
