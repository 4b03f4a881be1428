"""VideoMAE: masked autoencoders are data-efficient learners for self-supervised video pre-training (Tong et al. 2022).

A clip becomes tubelets; the encoder sees only those that are not masked; a light decoder predicts the pixels of the others.
Fine-tuned, the same encoder sees everything, and its mean token is classified.

Two things can be added to the encoder of pretraining. `teachers` (Masked Video Distillation, Wang et al. 2022, arXiv:2212.04500):
further decoders, which predict features of other models in place of pixels. `vocabulary`: the encoder as a causal Transformer
over discrete tokens, every tubelet replaced by the nearest of a codebook's, and a linear layer that tells the next one.

How ours differs: the tubelet embedding is a Linear over values in (t, y, x, colour) order instead of a Conv3d, so that only
visible tubelets are normalised and embedded; same mathematics, other key (see the maps at the end).

B batch, T frames, C colours, H height, W width, N tokens, V visible, M predicted, P values of a token, D width, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.find import choose
from tubelet.models import _keys
from tubelet.models._codebook import Vocabulary
from tubelet.models._model import Model
from tubelet.models._tokens import (
    Places,
    Triple,
    conv_weight,
    gather,
    grid_of,
    linear_weight,
    patchify,
    places,
    resize_positions,
    separable_positions,
    sine_cosine_positions,
)
from tubelet.models._transformer import Attention, Block, Dropout, LayerNorm, drop_path_rates, init_mimetic
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Tong et al. 2022, arXiv:2203.12602"

# Decoders: 4 blocks for S and B, 12 for L and H in the published recipes. "tiny" is DeiT-Ti's encoder, no published VideoMAE.
# "giant" is VideoMAE V2's (Wang et al. 2023, arXiv:2303.16727), which also hides tokens from the decoder (`decoder_mask`).
VARIANTS: dict[str, dict[str, Any]] = {
    "videomae_tiny": dict(width=192, depth=12, heads=3, decoder_width=96, decoder_depth=4, decoder_heads=3),
    "videomae_small": dict(width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=3),
    "videomae_base": dict(width=768, depth=12, heads=12, decoder_width=384, decoder_depth=4, decoder_heads=6),
    "videomae_large": dict(width=1024, depth=24, heads=16, decoder_width=512, decoder_depth=12, decoder_heads=8),
    "videomae_huge": dict(width=1280, depth=32, heads=16, decoder_width=640, decoder_depth=12, decoder_heads=8),
    "videomae_giant": dict(
        width=1408, depth=40, heads=16, decoder_width=512, decoder_depth=4, decoder_heads=8, patch=14, mlp_ratio=48 / 11
    ),
}


# "1d" is the paper's: over the number of the token. "3d" learns from far fewer clips.
POSITIONS: dict[str, Callable[[Triple, int], Tensor]] = {
    "1d": lambda grid, width: sine_cosine_positions(grid[0] * grid[1] * grid[2], width),
    "3d": separable_positions,
}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "VideoMAE":
    """A freshly initialised model: with `class_names` a classifier, without them an encoder and its decoder.

    options override the variant (width, depth, patch, ... see VideoMAE.__init__); an unknown one raises ConfigError.
    """
    return VideoMAE(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class Decoder(nn.Module):
    """Visible tokens and mask tokens in, pixels of the masked tubelets out (section 3.2)."""

    def __init__(self, encoder_width: int, width: int, depth: int, heads: int, mlp_ratio: float, values: int,
                 eps: float, norm_eps: float) -> None:  # fmt: skip
        super().__init__()
        self.width = width
        self.project = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps) for _ in range(depth))
        self.norm = LayerNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, values)

    def forward(self, tokens: Tensor, positions: Tensor, at: Places) -> Tensor:
        """tokens (B,V,D), positions (N,D') -> (B,M,P) in index order."""
        seen = self.project(tokens) + positions[at.visible]
        asked = self.mask_token + positions[at.predicted]
        x = torch.cat([seen, asked], dim=1)  # (B,V+M,D')
        for block in self.blocks[:-1]:
            x = block(x)
        return self.head(self.norm(self.blocks[-1](x, first=seen.shape[1])))


class VideoMAE(Model):
    """Encoder with either a decoder (pretraining) or a classification head.

    patch and tubelet are the pixels and frames of one token. `position_grid` is the token grid the position table was made
    for; on another grid the table is interpolated. positions is "1d" or "3d" (see POSITIONS) and first_values "xavier" or
    "mimetic" (see _transformer.init_mimetic): the first of each is the paper's, the second learns from fewer clips. The eps of
    LayerNorm differ between the original (1e-6) and transformers' weights, so they are stored with the model. vocabulary is
    the number of discrete tokens (0: none); teachers says how wide the features are that are predicted in place of pixels
    (0: pixels), by the name of each teacher.
    """

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, depth: int, heads: int,
        decoder_width: int, decoder_depth: int, decoder_heads: int, decoder: bool = True, patch: int = 16, tubelet: int = 2,
        mlp_ratio: float = 4.0, drop_path: float = 0.0, dropout: float = 0.0, eps: float = 1e-6, norm_eps: float = 1e-6,
        decoder_norm_eps: float = 1e-6, position_grid: Sequence[int] | None = None, positions: str = "1d",
        first_values: str = "xavier", vocabulary: int = 0, teachers: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.width, self.depth, self.tubelet = width, depth, (tubelet, patch, patch)
        self._check_divisible("width", width, heads, "heads")
        self.grid = self.grid_of(spec.frames, spec.size, spec.size)
        self.position_grid: Triple = self.grid if position_grid is None else (*position_grid,)  # type: ignore[assignment]
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, decoder_width=decoder_width, decoder_depth=decoder_depth,
            decoder_heads=decoder_heads, decoder=decoder, patch=patch, tubelet=tubelet, mlp_ratio=mlp_ratio,
            drop_path=drop_path, dropout=dropout, eps=eps, norm_eps=norm_eps, decoder_norm_eps=decoder_norm_eps,
            position_grid=list(self.position_grid), positions=choose(positions, POSITIONS, "positions"),
            first_values=choose(first_values, ("xavier", "mimetic"), "first_values"), vocabulary=vocabulary,
            teachers=dict(teachers or {}),
        )  # fmt: skip

        values = tubelet * patch * patch * 3
        self.embed = nn.Linear(values, width)
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps, rate) for rate in rates)
        self.decoder: Decoder | None = None
        self.students = nn.ModuleDict()
        self.vocabulary: Vocabulary | None = None
        if class_names:
            self.fc_norm = LayerNorm(width, eps=norm_eps)
            self.dropout = Dropout(dropout)
            self.head = nn.Linear(width, len(class_names))
        else:
            self.norm = LayerNorm(width, eps=norm_eps)
            wanted = {"": values} if decoder else {}
            for teacher, each in {**wanted, **self.options["teachers"]}.items():
                self._check_divisible("decoder_width", decoder_width, decoder_heads, "decoder_heads")
                if decoder_depth < 1:
                    raise ConfigError(
                        f"{name}: decoder_depth is {decoder_depth}, a decoder needs at least 1 block (4 is usual)"
                    )
                made = Decoder(width, decoder_width, decoder_depth, decoder_heads, mlp_ratio, each or values, eps,
                               decoder_norm_eps)  # fmt: skip
                if teacher:
                    self.students[teacher] = made
                else:
                    self.decoder = made
            if vocabulary:
                self.vocabulary = Vocabulary(vocabulary, values, width)
        for each in {width, *(decoder.width for decoder in self.decoders().values())}:
            self.register_buffer(f"positions_{each}", self._table(each, self.grid), persistent=False)
        self._positions: dict[tuple[Any, ...], Tensor] = {}  # of other grids, once made: by (width, grid, device); never saved
        self.init_weights()

    def init_weights(self) -> None:
        """Every first value: Xavier for Linear layers, 1 and 0 for norms, 0.02 for the mask token, a head close to zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                nn.init.zeros_(parameter)
        if self.options["first_values"] == "mimetic":
            for module in self.modules():
                if isinstance(module, Attention):
                    init_mimetic(module.qkv, module.proj, module.heads)
        for decoder in self.decoders().values():
            nn.init.trunc_normal_(decoder.mask_token, std=0.02, a=-0.02, b=0.02)
        if self.vocabulary is not None:
            self.vocabulary.init_weights()
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            with torch.no_grad():
                self.head.weight.mul_(0.001)

    def forward(
        self, frames: Tensor, mask: Tensor | Places | None = None, decoder_mask: Tensor | None = None,
        layers: Sequence[int] = (), attention: bool = False, next_token: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Named tensors for a batch of clips.

        frames        (B,T,C,H,W), uint8 or float, values 0..255
        mask          bool (B,N), True = masked: the encoder sees only the others. Or what `places` makes of both masks, which
                      spares a GPU's step the wait for their counts
        decoder_mask  bool (B,N), True = not even reconstructed (VideoMAE V2); only with `mask`
        layers        1-based numbers of blocks whose output is wanted, as "layer_1", ...
        attention     also "attention" (B,heads,V,V) of the last block
        next_token    the tubelets become discrete tokens of the vocabulary, of which each sees those before it only (in the order
                      t, y, x), and each but the last tells the one after it

        Gives "tokens" (B,V,D) and "embedding" (B,D), their mean; "logits" (B,K) with classes; with mask and decoder also
        "prediction" (B,M,P) and "predicted" int64 (B,M), which tokens it is for; with mask and teachers "prediction_<teacher>"
        (B,M,width of its features); with next_token "token_ids" int64 (B,N) and "token_logits" (B,N-1,vocabulary).
        """
        _, t, c, h, w = frames.shape
        grid = self.grid_of(t, h, w, c)
        patches = patchify(frames, self.tubelet)  # (B,N,P), still 0..255
        ids: Tensor | None = None
        if next_token:
            assert self.vocabulary is not None and mask is None
            ids = self.vocabulary.ids(patches)
            patches = self.vocabulary.pixels(ids)
        positions = self.positions(self.width, grid, frames.device)  # (N,D)
        at = places(mask, decoder_mask) if isinstance(mask, Tensor) else mask
        if at is not None:
            patches, positions = gather(patches, at.visible), positions[at.visible]
        values = normalize(patches, self.spec.mean, self.spec.std)
        x = self.embed(values) + positions  # (B,V,D)

        out: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if attention and number == self.depth:
                assert isinstance(block, Block)
                out["attention"] = block.attn.probabilities(block.norm1(x))
            x = block(x, causal=next_token)
            if number in layers:
                out[f"layer_{number}"] = x

        if self.class_names:
            out["tokens"], out["embedding"] = x, self.fc_norm(x.mean(dim=1))
            out["logits"] = self.head(self.dropout(out["embedding"]))
            return out
        out["tokens"] = self.norm(x)
        out["embedding"] = out["tokens"].mean(dim=1)
        if ids is not None and self.vocabulary is not None:
            out["token_ids"], out["token_logits"] = ids, self.vocabulary.head(out["tokens"][:, :-1])
        if at is not None:
            for key, decoder in self.decoders().items():
                out["predicted"] = at.predicted
                out[key] = decoder(out["tokens"], self.positions(decoder.width, grid, frames.device), at)
        return out

    def decoders(self) -> dict[str, Decoder]:
        """Every decoder by the name of what it gives: "prediction" of pixels, "prediction_<teacher>" of features."""
        pixels = {} if self.decoder is None else {"prediction": self.decoder}
        students: dict[str, Decoder] = dict(self.students.items())  # type: ignore[arg-type]
        return pixels | {f"prediction_{name}": decoder for name, decoder in students.items()}

    def positions(self, width: int, grid: Triple, device: torch.device) -> Tensor:
        """The fixed position table (N, width) of a token grid on a device."""
        if grid == self.grid:
            return self.get_buffer(f"positions_{width}")
        key = (width, grid, device)
        if key not in self._positions:
            self._positions[key] = self._table(width, grid).to(device)
        return self._positions[key]

    def _table(self, width: int, grid: Triple) -> Tensor:
        """float32 (N, width), stretched from the grid that it was made for."""
        return resize_positions(POSITIONS[self.options["positions"]](self.position_grid, width), self.position_grid, grid)

    def grid_of(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """Token grid (T slots, rows, columns) of a clip; ConfigError when it does not divide into tubelets."""
        return grid_of(self.name, (frames, colours, height, width), self.tubelet)

    def depth_of(self, parameter: str) -> int:
        """Where a parameter stands for layer-wise learning rates: 0 embedding, 1..depth blocks, depth+1 what follows."""
        if parameter.startswith("embed."):
            return 0
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("blocks.") else self.depth + 1

    def attended_pairs(self) -> int:
        """Of joint attention: all tokens with all."""
        return (self.grid[0] * self.grid[1] * self.grid[2]) ** 2

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []

    def _check_divisible(self, what: str, value: int, by: int, by_what: str) -> None:
        if value % by:
            raise ConfigError(f"{self.name}: {what} is {value}, which {by_what}={by} does not divide")


# Weight-key maps -----------------------------------------------------------------------------------------------------
# Ours -> original is a change of prefixes; Hugging Face also splits qkv and renames inside a block.

_ORIGINAL_PRETRAINING = {
    "embed.": "encoder.patch_embed.proj.", "blocks.": "encoder.blocks.", "norm.": "encoder.norm.",
    "decoder.project.": "encoder_to_decoder.", "decoder.mask_token": "mask_token", "decoder.": "decoder.",
}  # fmt: skip
_ORIGINAL_CLASSIFIER = {"embed.": "patch_embed.proj.", "blocks.": "blocks.", "fc_norm.": "fc_norm.", "head.": "head."}
_HUGGINGFACE = {
    "embed.": "videomae.embeddings.patch_embeddings.projection.", "blocks.": "videomae.encoder.layer.",
    "norm.": "videomae.layernorm.", "decoder.project.": "encoder_to_decoder.", "decoder.mask_token": "mask_token",
    "decoder.blocks.": "decoder.decoder_layers.", "decoder.": "decoder.", "fc_norm.": "fc_norm.", "head.": "classifier.",
}  # fmt: skip
_HUGGINGFACE_BLOCK = {
    "norm1.": "layernorm_before.", "norm2.": "layernorm_after.", "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias", "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.", "mlp.fc2.": "output.dense.",
}  # fmt: skip


def to_original(state: dict[str, Tensor], tubelet: Triple) -> dict[str, Tensor]:
    """Our state dict in the key layout of the original implementation (pretraining or fine-tuned, as the state is)."""
    prefixes = _ORIGINAL_CLASSIFIER if "head.weight" in state else _ORIGINAL_PRETRAINING
    out = {_swap(key, prefixes): value for key, value in state.items()}
    key = prefixes["embed."] + "weight"
    return {**out, key: conv_weight(out[key], tubelet)}


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the original's key layout, in ours. CheckpointError naming every key that has no place."""
    pretraining = any(key.startswith("encoder.") for key in state)
    prefixes = _ORIGINAL_PRETRAINING if pretraining else _ORIGINAL_CLASSIFIER
    back = {theirs: ours for ours, theirs in prefixes.items()}
    out = {_swap(key, back): value for key, value in state.items()}
    out["embed.weight"] = linear_weight(out["embed.weight"])
    return out


def to_huggingface(state: dict[str, Tensor], tubelet: Triple) -> dict[str, Tensor]:
    """Our state dict in the key layout of transformers' VideoMAE files (`q_bias`/`v_bias` as on disk)."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _swap(key, _HUGGINGFACE)
        stem, block, rest = _block_parts(name, ("videomae.encoder.layer.", "decoder.decoder_layers."))
        if rest == "attn.qkv.weight":
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{stem}{block}.attention.attention.{part}.weight"] = piece.clone()
        elif block:
            out[f"{stem}{block}.{_swap(rest, _HUGGINGFACE_BLOCK)}"] = value
        else:
            out[name] = value
    key = _HUGGINGFACE["embed."] + "weight"
    return {**out, key: conv_weight(out[key], tubelet)}


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' VideoMAE state dict (bias spelled `q_bias` or `query.bias`), in ours. CheckpointError for leftovers."""
    back = {theirs: ours for ours, theirs in _HUGGINGFACE.items()}
    back_block = {theirs: ours for ours, theirs in _HUGGINGFACE_BLOCK.items()}
    back_block |= {"attention.attention.query.bias": "attn.q_bias", "attention.attention.value.bias": "attn.v_bias"}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("position_embeddings"):  # the fixed table, which we compute
            continue
        stem, block, rest = _block_parts(_swap(key, back), ("blocks.", "decoder.blocks."))
        if rest.endswith("attention.key.bias"):  # transformers never trains one
            continue
        if rest.startswith("attention.attention.") and rest.endswith(".weight"):
            if rest.endswith("query.weight"):
                three = [key.replace("query", part) for part in ("query", "key", "value")]
                missing = [name for name in three if name not in state]
                if missing:
                    raise CheckpointError(f"missing {', '.join(missing)}")
                out[f"{stem}{block}.attn.qkv.weight"] = torch.cat([state[name] for name in three])
        elif block:
            out[f"{stem}{block}.{_swap(rest, back_block)}"] = value
        else:
            out[stem] = value
    out["embed.weight"] = linear_weight(out["embed.weight"])
    return out


def _swap(key: str, prefixes: dict[str, str]) -> str:
    """`key` with its longest matching prefix exchanged."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        if key.startswith(prefix):
            return prefixes[prefix] + key[len(prefix) :]
    raise CheckpointError(f"weight {key!r} has no place in VideoMAE (it knows {', '.join(prefixes)})")


def _block_parts(name: str, stems: Sequence[str]) -> tuple[str, str, str]:
    """("blocks.", "3", "norm1.weight") for a weight inside a block, (name, "", "") for any other."""
    for stem in stems:
        if name.startswith(stem):
            number, _, rest = name[len(stem) :].partition(".")
            return stem, number, rest
    return name, "", ""


def from_image(model: VideoMAE, state: Mapping[str, Tensor], how: str = "central") -> dict[str, Tensor]:
    """A state dict for `model` whose encoder begins as an image ViT, given in timm's layout.

    The image's kernel becomes the middle frame of a tubelet's, the others zero (how="central"); or every frame's, divided by
    their number ("inflate"). The bias of keys is left behind and nothing changes by it: it adds q.b to all scores of a query
    alike, which softmax does not see. What else is left behind `left_behind` says; decoder, fc_norm and head keep the model's.
    Raises CheckpointError naming every weight that does not fit.
    """
    choose(how, ("central", "inflate"), "way to begin from an image model")
    found = _keys.from_timm(state, model.depth)
    found["embed.weight"] = _keys.inflated(found["embed.weight"], model.tubelet[0], how)
    del found["cls_token"], found["pos_embed"]
    for i in range(model.depth):
        query, _, value = found.pop(f"blocks.{i}.attn.qkv.bias").chunk(3)
        found |= {f"blocks.{i}.attn.q_bias": query.clone(), f"blocks.{i}.attn.v_bias": value.clone()}
    if model.class_names:
        del found["norm.weight"], found["norm.bias"]
    return _keys.into(model, found)


def left_behind(model: VideoMAE, how: str = "central") -> dict[str, str]:
    """What `from_image` leaves of an image ViT, by pattern of its names in timm's layout, and why."""
    left = {
        "cls_token": "VideoMAE has none, it classifies the mean token",
        "pos_embed": "VideoMAE's positions are fixed sines and cosines",
        "blocks.*.attn.qkv.bias": "only that of keys: softmax does not see what they all add to a query's scores",
    }
    return left | ({"norm.*": "a classifier has fc_norm, of the mean token"} if model.class_names else {})
