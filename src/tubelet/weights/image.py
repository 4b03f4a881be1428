"""An image model becomes the beginning of a video model: every weight is used, or it is said that it is left behind and why.

Files are read as all others (nothing in them is run), brought into timm's names (ViTs) or torchvision's (CNNs), and handed to the
family's `from_image`. ViTs: timm's, DeiT's, MAE's, transformers' (ViT, DeiT, ViTMAE). CLIP vision towers: transformers', OpenAI's
and open_clip's. CNNs: torchvision's and timm's ResNet and GoogLeNet.

CLIP towers have a LayerNorm before their first block and mostly another GELU. ViViT and FrameViT have options for both (norm_pre,
gelu), which are set. The other families have not, and refuse them: half a CLIP would look like one and answer like none.
"""

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import _keys
from tubelet.models._model import Model
from tubelet.models._tokens import conv_weight, linear_weight, resize_kernel
from tubelet.records import IMAGENET_MEAN, IMAGENET_STD, ClipSpec
from tubelet.weights import files, layouts
from tubelet.weights.layouts.videomae import HEADS

State = dict[str, Tensor]

FAMILIES = {
    "frame_vit": "ViT", "vivit": "ViT", "timesformer": "ViT", "videomae": "ViT",
    "i3d": "CNN", "cnn_lstm": "CNN", "two_stream": "CNN", "fusion": "CNN",
}  # fmt: skip
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "quick_gelu": "quick"}  # as config.json names them
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # openai/CLIP, of its preprocessing


@dataclass
class Image:
    """An image model as it was read.

    layout    one of LAYOUTS
    kind      "ViT" or "CNN"
    state     what a video model may use, in timm's names or torchvision's; unknown names stay as they are
    left      name in the file -> why it is left behind
    colours   mean and std that it was trained with, None where nothing tells
    notes     what was assumed, and what else must be said
    sizes     of a ViT: width, depth, heads, patch, mlp_ratio; heads may be None
    gelu      of a ViT: "none", "tanh" or "quick", as `vivit` calls them
    """

    layout: str
    kind: str
    state: State
    left: dict[str, str]
    files: list[Path]
    colours: tuple[Sequence[float], Sequence[float]] | None = None
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    gelu: str = "none"

    def what(self) -> str:
        """In a few words."""
        if self.kind == "ViT":
            sizes = ", ".join(f"{name} {_number(value)}" for name, value in self.sizes.items() if value is not None)
            return f"a {'CLIP vision tower' if 'norm_pre.weight' in self.state else 'ViT'} of {sizes} ({self.layout} layout)"
        if self.layout == "googlenet":
            return "a GoogLeNet (Inception-v1)"
        blocks = [_keys.count(self.state, f"layer{i}.") for i in range(1, 5)]
        kind = "bottlenecks" if "layer1.0.conv3.weight" in self.state else "basic blocks"
        return f"a ResNet of {blocks} {kind}"


# Layouts -------------------------------------------------------------------------------------------------------------
# Each: names that every such file has, names that are left behind and why, and how the others become timm's or torchvision's.

HEAD, TEXT, DECODER = "it tells the image model's classes", "it is of CLIP's text side", "it is of MAE's decoder"
POOLER = "it leads to a head"
DISTILLED = "it is of DeiT's distillation"


def _timm(state: State) -> State:
    return state


def _huggingface(state: State) -> State:
    end = "embeddings.patch_embeddings.projection.weight"
    stem = next(key for key in state if key.endswith(end)).removesuffix(end)
    disk = any(key.startswith(f"{stem}encoder.layer.") for key in state)
    blocks, block = (f"{stem}encoder.layer.", _keys.ON_DISK) if disk else (f"{stem}layers.", _keys.IN_MEMORY)
    modules = {f"{stem}embeddings.patch_embeddings.projection": "patch_embed.proj", f"{stem}layernorm": "norm"}
    for i in range(_keys.count(state, blocks)):
        modules |= {f"{blocks}{i}.{a}": f"blocks.{i}.{b}" for a, b in zip(block, _keys.SPLIT_BLOCK, strict=True)}
    tables = {f"{stem}embeddings.cls_token": "cls_token", f"{stem}embeddings.position_embeddings": "pos_embed"}
    return _joined(state, tables | _keys.weights(modules))


_CLIP_BLOCK = (
    "layer_norm1",
    *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)


def _clip(state: State) -> State:
    """Newer transformers write the tower alone without "vision_model."."""
    stem = next(key for key in state if key.endswith("embeddings.class_embedding")).removesuffix("embeddings.class_embedding")
    modules = {f"{stem}pre_layrnorm": "norm_pre", f"{stem}post_layernorm": "norm"}
    blocks = f"{stem}encoder.layers."
    for i in range(_keys.count(state, blocks)):
        modules |= {f"{blocks}{i}.{a}": f"blocks.{i}.{b}" for a, b in zip(_CLIP_BLOCK, _keys.SPLIT_BLOCK, strict=True)}
    names = {
        "class_embedding": "cls_token",
        "patch_embedding.weight": "patch_embed.proj.weight",
        "position_embedding.weight": "pos_embed",
    }
    return _as_tables(_joined(state, {f"{stem}embeddings.{a}": b for a, b in names.items()} | _keys.weights(modules)))


_OPENAI_BLOCK = {
    "ln_1.": "norm1.", "attn.in_proj_": "attn.qkv.", "attn.out_proj.": "attn.proj.", "ln_2.": "norm2.", "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}  # fmt: skip


def _openai(state: State) -> State:
    modules = {"visual.ln_pre": "norm_pre", "visual.ln_post": "norm"}
    names = {"class_embedding": "cls_token", "conv1.weight": "patch_embed.proj.weight", "positional_embedding": "pos_embed"}
    table = {f"visual.{a}": b for a, b in names.items()} | _keys.weights(modules)
    blocks = "visual.transformer.resblocks."
    for i in range(_keys.count(state, blocks)):
        for a, b in _OPENAI_BLOCK.items():
            table |= {f"{blocks}{i}.{a}{part}": f"blocks.{i}.{b}{part}" for part in ("weight", "bias")}
    return _as_tables({table.get(key, key): value for key, value in state.items()})


def _as_tables(state: State) -> State:
    """CLIP's class token (D) and positions (1+S,D) as timm has them, and the bias that its patches lack: zero."""
    width = state["patch_embed.proj.weight"].shape[0]
    shaped = {key: state[key].reshape(1, -1, width) for key in ("cls_token", "pos_embed") if key in state}
    return state | shaped | {"patch_embed.proj.bias": torch.zeros(width)}


def _joined(state: State, names: Mapping[str, str]) -> State:
    """Renamed, and queries, keys and values made one weight where all three are there."""
    theirs = {ours: key for key, ours in names.items()}
    out: State = {}
    for key, value in state.items():
        ours = names.get(key, key)
        part = next((part for part in _keys.QKV if f".{part}." in ours), None)
        three = [theirs.get(ours.replace(part, one)) for one in _keys.QKV] if part else []
        if not part:
            out[ours] = value
        elif not all(one in state for one in three):
            out[key] = value  # of three one is missing: the others keep the file's names, for a message
        elif part == _keys.QKV[0]:
            out[ours.replace(part, "attn.qkv")] = torch.cat([state[one] for one in three if one])
    return out


@dataclass(frozen=True)
class Layout:
    """keys and left are patterns (`*` for anything); colours as Image has them."""

    kind: str
    keys: tuple[str, ...]
    left: Mapping[str, str]
    rename: Callable[[State], State]
    colours: tuple[Sequence[float], Sequence[float]] | None = None


_CNN_LEFT = {"fc.*": HEAD, "head.*": HEAD}
LAYOUTS = {
    "timm": Layout(
        "ViT",
        ("patch_embed.proj.weight", "blocks.*.attn.*"),
        {"head.*": HEAD, "head_dist.*": DISTILLED, "dist_token": DISTILLED, "fc_norm.*": "it is a norm of the mean token",
         "mask_token": DECODER, "decoder_*": DECODER},
        _timm,
    ),
    "huggingface": Layout(
        "ViT",
        ("*embeddings.patch_embeddings.projection.weight", "*.layernorm_before.weight"),
        {"classifier.*": HEAD, "cls_classifier.*": HEAD, "pooler.*": POOLER, "*.pooler.*": POOLER,
         "distillation_classifier.*": DISTILLED,
         "*embeddings.distillation_token": DISTILLED, "*embeddings.mask_token": "it is of masked images", "decoder.*": DECODER},
        _huggingface,
    ),
    "clip": Layout(
        "ViT",
        ("*embeddings.class_embedding", "*embeddings.patch_embedding.weight", "*.self_attn.q_proj.weight"),
        {"text_model.*": TEXT, "text_projection.*": TEXT, "visual_projection.*": "it leads to the space shared with text",
         "logit_*": TEXT, "*.position_ids": "it only counts positions"},
        _clip,
        CLIP,
    ),
    "openai": Layout(
        "ViT",
        ("visual.class_embedding", "visual.conv1.weight", "visual.transformer.resblocks.*"),
        {"transformer.*": TEXT, "token_embedding.*": TEXT, "positional_embedding": TEXT, "ln_final.*": TEXT,
         "text_projection": TEXT,
         "attn_mask": TEXT, "logit_*": TEXT, "visual.proj": "it leads to the space shared with text",
         "input_resolution": TEXT, "context_length": TEXT, "vocab_size": TEXT},
        _openai,
        CLIP,
    ),
    "resnet": Layout("CNN", ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.bn2.weight"), _CNN_LEFT, _timm, IMAGENET),
    "googlenet": Layout(
        "CNN", ("conv1.conv.weight", "inception3a.branch1.conv.weight"),
        {**_CNN_LEFT, "aux1.*": "it only helps to train the image model", "aux2.*": "it only helps to train the image model"},
        _timm, HALF,
    ),
}  # fmt: skip


# Reading and beginning -----------------------------------------------------------------------------------------------


def read(path: str | Path) -> Image:
    """The image model in a file or folder; CheckpointError for what is none, or in no layout that is known."""
    source = files.read(path)
    fitting = _fitting(source)
    if len(fitting) != 1:
        some = ", ".join(sorted(source.tensors)[:4])
        found = f"mixes the layouts {' and '.join(fitting)}" if fitting else f"is in no layout of these: {', '.join(LAYOUTS)}"
        raise CheckpointError(f"{path} is no image model that is known: it {found}; its weights begin {some}")
    layout = LAYOUTS[fitting[0]]
    state = {key: value.float() if value.is_floating_point() else value for key, value in source.tensors.items()}
    video = [key for key, value in state.items() if value.ndim == 5]
    if video:
        raise CheckpointError(
            f"{path} is a video model ({video[0]} is {tuple(state[video[0]].shape)}), no image model: load it"
        )
    left = {key: why for key in state for pattern, why in layout.left.items() if fnmatch.fnmatchcase(key, pattern)}
    kept = layout.rename({key: value for key, value in state.items() if key not in left})
    image = Image(fitting[0], layout.kind, kept, left, source.files, layout.colours, list(source.notes))
    mean, std = (
        layouts.told(source.processor, name, layouts.COLOURS, "preprocessor_config.json")
        for name in ("image_mean", "image_std")
    )
    if mean is not None and std is not None:
        image.colours = tuple(mean), tuple(std)
    elif image.colours is None and (DECODER in left.values() or DISTILLED in left.values()):
        image.colours = IMAGENET
    if layout.kind == "ViT":
        _describe(image, source.config.get("vision_config", source.config), path)
    return image


def _fitting(source: files.Source) -> list[str]:
    """The names of the layouts that weights are in."""
    return [name for name, layout in LAYOUTS.items() if all(fnmatch.filter(source.tensors, key) for key in layout.keys)]


def instead(source: files.Source) -> str:
    """What to say of weights that are of no video model: "" where they are of no image model either."""
    pictures = all(value.ndim < 5 for value in source.tensors.values())
    fitting = _fitting(source) if pictures else []
    if not fitting:
        return ""
    kind = LAYOUTS[fitting[0]].kind
    able = ", ".join(family for family, begins in FAMILIES.items() if begins == kind)
    return (
        f"{source.path} is an image model ({kind}, {fitting[0]} layout), no video model: begin one ({able}) from it with "
        "`tubelet weights begin`"
    )


def _describe(image: Image, config: Mapping[str, Any], path: str | Path) -> None:
    """What a ViT is: from its shapes, and config.json; what these do not tell is noted as assumed."""
    state, depth = image.state, _keys.count(image.state, "blocks.")
    kernel, hidden = state.get("patch_embed.proj.weight"), state.get("blocks.0.mlp.fc1.weight")
    if kernel is None or hidden is None or kernel.ndim != 4:
        raise CheckpointError(f"{path} is no whole ViT: its patch embedding or its first block's MLP is not there")
    width = kernel.shape[0]
    heads = layouts.told(config, "num_attention_heads", layouts.COUNT)
    if heads is None and width in HEADS:
        heads = HEADS[width]
        image.notes.append(f"assumed: {heads} heads, as usual for a width of {width}")
    image.sizes = dict(width=width, depth=depth, heads=heads, patch=kernel.shape[-1], mlp_ratio=len(hidden) / width)
    act, clip = config.get("hidden_act"), "norm_pre.weight" in state
    if act is not None and act not in GELUS:
        raise CheckpointError(f"{path}: its MLPs have {act}, which no video model here has ({', '.join(GELUS)})")
    image.gelu = GELUS[act] if act is not None else "quick" if clip else "none"
    if act is None and clip:
        image.notes.append("assumed: quick GELU, as in OpenAI's CLIP; of others, as LAION's, mostly give --options gelu=none")
    dropped = [key for key in image.left if key.endswith(("dist_token", "distillation_token"))]
    if dropped and "pos_embed" in state:
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 2:]], dim=1)
        image.notes.append(f"left behind with {dropped[0]}: its position, the second one")
    if any(key.startswith("fc_norm.") for key in image.left) and "norm.weight" not in state:
        state |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        image.notes.append("new: norm begins at 1 and 0, the image model has only fc_norm, of the mean token")


def begin(
    path: str | Path, variant: str, clip: Mapping[str, Any] | None = None, how: str = "", class_names: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    """A video model in evaluation mode that begins as the image model in a file or folder, and the account of it.

    variant   a name of `tubelet models`, of the families in FAMILIES
    clip      fields of its ClipSpec; otherwise the variant's own, with the mean and std of the image model where they are known
    how       the way, as the family's `from_image` calls it ("central", "inflate", ...); "" for the family's usual one
    options   of the model; ViViT's gelu and norm_pre are those of the image model unless given

    The account is JSON-able: begun_from (file name), sha256, layout, image (in words), how, left_behind (name -> why), new (names
    of the weights that keep first values) and notes (what was assumed or interpolated). Names are the file's, or where weights
    were brought together timm's. CheckpointError naming every weight that is left over, missing or of another shape.
    """
    family = models.variants().get(variant)
    models.clip_of(variant)  # names the nearest variant of an unknown one
    assert family is not None
    kind = FAMILIES.get(family.__name__.rpartition(".")[2])
    if kind is None:
        raise ConfigError(f"{variant} cannot begin from an image model: only {', '.join(FAMILIES)} can")
    image = read(path)
    if image.kind != kind:
        raise CheckpointError(f"{path} is {image.what()}, {variant} begins from a {kind}")
    options, clip, notes = dict(options or {}), dict(clip or {}), image.notes
    if kind == "ViT":
        _fit_gelu(image, variant, options, path)
    if image.colours is not None:
        clip = {"mean": tuple(image.colours[0]), "std": tuple(image.colours[1])} | clip
    elif "mean" not in clip:
        notes.append(
            f"assumed: {variant}'s mean and std, nothing tells the image model's (--clip mean=[0.5,0.5,0.5] sets them)"
        )
    model = models.build(variant, ClipSpec.from_dict(models.clip_of(variant).to_dict() | clip), class_names, **options)
    if kind == "ViT":
        _check_sizes(image, model, options, path)
        _resize(image, model)
    usual: str = inspect.signature(family.from_image).parameters["how"].default
    try:
        made = family.from_image(model, image.state, how or usual)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is {image.what()}, and {variant} cannot begin from it: {error}") from error
    # What a family keeps of the model's own is the very tensor.
    new = [key for key, own in model.state_dict().items() if made[key].data_ptr() == own.data_ptr()]
    model.load_state_dict(made)
    left = dict(image.left)
    if hasattr(family, "left_behind"):
        for pattern, why in family.left_behind(model, how or usual).items():
            left |= dict.fromkeys(fnmatch.filter(image.state, pattern), why)
    if kind == "ViT" and "pos_embed" not in left:
        notes += _interpolated(image, model)
    account = {"begun_from": Path(path).name, "sha256": files.sha256(image.files), "layout": image.layout, "image": image.what(),
               "how": how or usual, "left_behind": left, "new": new, "notes": notes}  # fmt: skip
    return model.eval(), account


def summary(account: Mapping[str, Any]) -> list[str]:
    """An account in lines: what was left behind by reason, what is new, and the notes."""
    reasons: dict[str, list[str]] = {}
    for key, why in account["left_behind"].items():
        reasons.setdefault(why, []).append(key)
    lines = [f"left behind: {_some(names)} ({why})" for why, names in reasons.items()]
    return lines + ([f"new: {_some(account['new'])}"] if account["new"] else []) + list(account["notes"])


def _fit_gelu(image: Image, variant: str, options: dict[str, Any], path: str | Path) -> None:
    """Options of the model that make its mathematics the image model's; CheckpointError where it has none."""
    asked: dict[str, Any] = {"gelu": image.gelu, "norm_pre": "norm_pre.weight" in image.state}
    if "gelu" in models.options_of(variant):
        for name, value in asked.items():
            if name not in options and value:
                image.notes.append(f"set: {name}={value}, as in the image model")
            options.setdefault(name, value)
    elif asked != {"gelu": "none", "norm_pre": False}:
        has = [f"{image.gelu} GELU"] * (image.gelu != "none") + ["a LayerNorm before its first block"] * asked["norm_pre"]
        raise CheckpointError(
            f"{path} is {image.what()} with {' and '.join(has)}, which {variant} has not: begin a vivit, it takes both"
        )


def _check_sizes(image: Image, model: Model, options: Mapping[str, Any], path: str | Path) -> None:
    """CheckpointError with the options that would fit, where sizes differ."""
    own = model.options
    differing = {
        name: value for name, value in image.sizes.items()
        if value is not None and abs(value - own[name]) > 1e-3 and not (name in ("heads", "patch") and name in options)
    }  # fmt: skip
    if differing:
        flags = " ".join(f"--options {name}={_number(value)}" for name, value in differing.items())
        ours = ", ".join(f"{name} {_number(own[name])}" for name in differing)
        raise CheckpointError(f"{path} is {image.what()}, {model.name} has {ours}: name another model, or give {flags}")
    if image.sizes["heads"] not in (None, own["heads"]):
        image.notes.append(f"heads: {own['heads']} as given, though the image model has {image.sizes['heads']}")
    if image.sizes["heads"] is None and "heads" not in options:
        raise CheckpointError(f"{path}: nothing tells the heads of {image.what()}: give --options heads=...")


def _resize(image: Image, model: Model) -> None:
    """Give the image model's kernel the patches of `model`, where other ones were asked for."""
    theirs, ours = image.sizes["patch"], model.options["patch"]
    if theirs != ours:
        kernel = linear_weight(image.state["patch_embed.proj.weight"][:, :, None])
        kernel = resize_kernel(kernel, (1, theirs, theirs), (1, ours, ours))
        image.state["patch_embed.proj.weight"] = conv_weight(kernel, (1, ours, ours))[:, :, 0]
        image.notes.append(f"interpolated: patches of {theirs}x{theirs} pixels to {ours}x{ours}")


def _interpolated(image: Image, model: Model) -> list[str]:
    side = round((image.state["pos_embed"].shape[1] - 1) ** 0.5)
    rows, columns = model.options["position_grid"][1:]
    same = (rows, columns) == (side, side)
    return [] if same else [f"interpolated: positions of {side}x{side} patches to {rows}x{columns}"]


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
