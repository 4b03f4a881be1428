"""Text encoders of others become the text tower of ours: a CLIP text tower, or a sentence-embedding model of BERT's kind, from a
local folder in transformers' or sentence-transformers' layout; and a whole CLIP becomes both towers.

The folder has config.json, weights and tokenizer.json. All of it that is needed is in our model afterwards: the tokenizer in its
options, the weights in its state dict.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError
from tubelet.models import _keys, frame_vit
from tubelet.models._keys import Table
from tubelet.models._model import Model
from tubelet.models._text import make_tokenizer
from tubelet.models.video_text import VideoText
from tubelet.records import ClipSpec
from tubelet.weights import files, image

BERTS = ("bert", "roberta", "xlm-roberta")  # `roberta` begins to count positions behind that of the padding
CLIPS = ("clip", "clip_text_model")
POOLING = {"cls_token": "first", "cls": "first", "mean_tokens": "mean", "mean": "mean"}  # as sentence-transformers calls them


@dataclass
class Text:
    """A text tower as it was read: options of TextEncoder, its state dict, and the (E,D) projection that a CLIP has behind it."""

    options: dict[str, Any]
    state: dict[str, Tensor]
    projection: Tensor | None
    files: list[Path]


def read(folder: str | Path) -> Text:
    """The text tower in a folder; CheckpointError for what is none, for kinds that are not known, and naming weights that are
    missing or left over."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"no text model at {folder}: name a folder with config.json, model.safetensors and tokenizer.json"
        )
    source = files.read(folder)
    kind = source.config.get("model_type")
    if kind not in (*CLIPS, *BERTS):
        raise CheckpointError(
            f"{folder} holds a model of the kind {kind!r}: a text tower can begin as one of {', '.join((*CLIPS, *BERTS))}"
        )
    tokenizer = _tokenizer(folder)
    if kind in CLIPS:
        config = source.config.get("text_config", source.config)
        options, state, projection = _clip(source.tensors, config, folder)
    else:
        config = source.config
        options, state = _bert(source.tensors, config, folder)
        projection = None
    act = config.get("hidden_act", "quick_gelu" if kind in CLIPS else "gelu")
    if act not in image.GELUS:
        raise CheckpointError(f"{folder}: its MLPs have {act}, which the text tower has not ({', '.join(image.GELUS)})")
    sizes = dict(
        width=state["embed.weight"].shape[1], depth=_keys.count(state, "blocks."), heads=config["num_attention_heads"],
        mlp_ratio=len(state["blocks.0.mlp.fc1.bias"]) / state["embed.weight"].shape[1], tokenizer=tokenizer,
        vocabulary=len(state["embed.weight"]), context=len(state["pos_embed"]), gelu=image.GELUS[act],
        eps=config.get("layer_norm_eps", 1e-5 if kind in CLIPS else 1e-12),
    )  # fmt: skip
    return Text({**sizes, **options}, state, projection, source.files)


def begin(model: Model, folder: str | Path) -> None:
    """Give `model` the text tower in a folder, and its projection where the shared space is as wide; CheckpointError where it does
    not fit."""
    if not isinstance(model, VideoText) or not model.reads_text:
        raise CheckpointError(f"{model.name} has no text tower that could begin as that in {folder}: use a video_text model")
    found = read(folder)
    model.text.load_state_dict(_keys.into(model.text, found.state))
    if found.projection is not None and found.projection.shape == model.project_text.weight.shape:
        model.project_text.load_state_dict({"weight": found.projection})


def begin_clip(
    folder: str | Path, variant: str, clip: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Model, dict[str, Any]]:
    """(a model with both towers of the CLIP in a folder, in evaluation mode; the account of it).

    Of a video of equal frames its vector is CLIP's of that frame, and a text's is CLIP's, too. clip: fields of the ClipSpec.
    """
    picture, text, source = image.read(folder), read(folder), files.read(folder)
    projection, scale = source.tensors.get("visual_projection.weight"), source.tensors.get("logit_scale")
    if text.projection is None or projection is None or scale is None:
        raise CheckpointError(f"{folder} is no whole CLIP: visual_projection, text_projection or logit_scale is not there")
    vision = source.config["vision_config"]
    video = {
        **picture.sizes, "gelu": picture.gelu, "norm_pre": True, "eps": vision.get("layer_norm_eps", 1e-5),
    }  # fmt: skip
    colours = {"mean": tuple(picture.colours[0]), "std": tuple(picture.colours[1])} if picture.colours else {}
    sizes = {"size": vision["image_size"]} if "image_size" in vision else {}
    spec = ClipSpec.from_dict({**frame_vit.CLIP.to_dict(), **colours, **sizes, **(clip or {})})
    towers = {"video": "frame_vit_base_32", "video_options": video, "text": text.options, "width": len(projection)}
    model = models.build(variant, spec, **{**towers, **(options or {})})
    assert isinstance(model, VideoText) and isinstance(model.video, frame_vit.FrameViT)
    found = {f"video.{key}": value for key, value in frame_vit.from_image(model.video, picture.state).items()}
    found |= {f"text.{key}": value for key, value in text.state.items()}
    found |= {"project.weight": projection, "project_text.weight": text.projection, "log_scale": scale.reshape(1)}
    made = _keys.into(model, found)
    new = [key for key in made if key not in found]
    model.load_state_dict(made)
    left = {key: why for key, why in picture.left.items() if key.endswith("position_ids")}
    what = f"{picture.what()}, and its text tower of width {text.options['width']}"
    return model.eval(), {"begun_from": Path(folder).name, "sha256": files.sha256(source.files), "layout": "clip", "image": what,
                          "how": "copy", "left_behind": left, "new": new, "notes": picture.notes}  # fmt: skip


def _clip(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """(options, state, projection) of a CLIP's text side; what is of the image side is left to others."""
    end = "embeddings.token_embedding.weight"
    stem = next((key.removesuffix(end) for key in tensors if key.endswith(end)), "text_model.")
    own = {key.removeprefix(stem): value for key, value in tensors.items() if key.startswith(stem)}
    for key in ("embeddings.position_ids", "text_projection.weight"):
        own.pop(key, None)
    if not stem:  # the tower alone: nothing else is in the file
        own = {key: value for key, value in own.items() if not key.startswith("text_projection")}
    names = {
        "embed.weight": "embeddings.token_embedding.weight", "pos_embed": "embeddings.position_embedding.weight",
        **_keys.weights({"norm": "final_layer_norm"}),
    }  # fmt: skip
    block = {"norm1": "layer_norm1", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    table = _table(names, "encoder.layers", _keys.count(own, "encoder.layers."), block, qkv)
    state = _named(own, table, f"{folder} is no CLIP text tower")
    return dict(causal=True, post=False, pool="end"), state, tensors.get("text_projection.weight")


def _bert(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(options, state) of a sentence-embedding model of BERT's kind."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(f"{folder} has relative positions, which the text tower has not: choose another sentence model")
    end = "embeddings.word_embeddings.weight"
    stem = next((key.removesuffix(end) for key in tensors if key.endswith(end)), "")
    own = {key.removeprefix(stem): value for key, value in tensors.items()}
    own = {key: value for key, value in own.items() if not key.startswith(("pooler.", "embeddings.position_ids"))}
    kind = own.pop("embeddings.token_type_embeddings.weight", None)
    names = {
        "embed.weight": "embeddings.word_embeddings.weight", "pos_embed": "embeddings.position_embeddings.weight",
        **_keys.weights({"norm": "embeddings.LayerNorm"}),
    }  # fmt: skip
    block = {"norm1": "attention.output.LayerNorm", "attn.proj": "attention.output.dense", "norm2": "output.LayerNorm",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    qkv = ("attention.self.query", "attention.self.key", "attention.self.value")
    table = _table(names, "encoder.layer", _keys.count(own, "encoder.layer."), block, qkv)
    state = _named(own, table, f"{folder} is no sentence-embedding model of BERT's kind")
    unused = 0 if config["model_type"] == "bert" else config.get("pad_token_id", 1) + 1
    pool, longest = _pooling(folder)
    positions = state["pos_embed"][unused:][:longest]
    # Every text is of the first of BERT's two kinds of token, so that its vector is added once for all.
    state["pos_embed"] = positions if kind is None else positions + kind[0]
    return dict(causal=False, post=True, pool=pool), state


def _table(names: Mapping[str, str], stem: str, depth: int, block: Mapping[str, str], qkv: tuple[str, ...]) -> Table:
    table: dict[str, str | tuple[str, ...]] = dict(names)
    for i in range(depth):
        for part in ("weight", "bias"):
            table |= {f"blocks.{i}.{ours}.{part}": f"{stem}.{i}.{theirs}.{part}" for ours, theirs in block.items()}
            table[f"blocks.{i}.attn.qkv.{part}"] = tuple(f"{stem}.{i}.{one}.{part}" for one in qkv)
    return table


def _named(state: Mapping[str, Tensor], table: Table, otherwise: str) -> dict[str, Tensor]:
    try:
        return _keys.to_ours(state, table)
    except CheckpointError as error:
        raise CheckpointError(f"{otherwise}: {error}") from error


def _pooling(folder: Path) -> tuple[str, int | None]:
    """How a sentence-transformers folder pools ("mean" where nothing says), and its longest text in tokens."""
    for module in _json(folder / "modules.json") or []:
        name = module["type"].rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise CheckpointError(f"{folder} has a module {name} behind its encoder, which the text tower has not")
    about = _json(folder / "1_Pooling" / "config.json") or {"pooling_mode": "mean"}
    modes = [name.removeprefix("pooling_mode_") for name, value in about.items() if value is True and "pooling_mode_" in name]
    modes += [about["pooling_mode"]] if "pooling_mode" in about else []
    if len(modes) != 1 or modes[0] not in POOLING:
        raise CheckpointError(
            f"{folder} pools by {' and '.join(modes) or 'nothing'}; the text tower can by mean or by cls token"
        )
    return POOLING[modes[0]], (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")


def _tokenizer(folder: Path) -> str:
    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        make_tokenizer(text)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no tokenizer.json: write one with transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
