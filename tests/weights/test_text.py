"""Text towers of others: transformers' CLIP and BERT on the same random weights say the same as ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from torch import nn

from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError
from tubelet.models import cost
from tubelet.models._text import TextEncoder
from tubelet.video.normalize import normalize
from tubelet.weights import text
from tubelet.weights.load import load_model

from ..models.small import clips, randomise, small

WORDS = ["<start>", "<stop>", "<unk>", "a", "red", "blue", "square", "moves", "left"]
TEXTS = ["a red square", "A blue square moves left", "red"]
LAYERS = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


def tokenizer(folder: Path) -> Tokenizer:
    made = Tokenizer(kinds.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <stop>", special_tokens=[("<start>", 0), ("<stop>", 1)]
    )
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


def batch(made: Tokenizer, padding: int) -> dict[str, torch.Tensor]:
    made.enable_padding(pad_id=padding)
    found = made.encode_batch(TEXTS)
    mask = torch.tensor([one.attention_mask for one in found])
    return {"input_ids": torch.tensor([one.ids for one in found]), "attention_mask": mask}


def saved(model: nn.Module, folder: Path, **files: Any) -> Tokenizer:
    randomise(model, 0.3)
    model.eval().save_pretrained(folder)  # type: ignore[operator]
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content))
    return tokenizer(folder)


def clip(**sizes: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    words = dict(hidden_size=16, vocab_size=len(WORDS), max_position_embeddings=10, bos_token_id=0, eos_token_id=1)
    return CLIPModel(
        CLIPConfig(
            text_config={**LAYERS, **words}, vision_config=dict(hidden_size=24, image_size=32, patch_size=16, **LAYERS),
            projection_dim=12, **sizes,
        )
    )  # fmt: skip


def test_both_towers_of_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = clip()
    made = saved(theirs, tmp_path / "clip")
    theirs.logit_scale.data.fill_(2.0)
    theirs.save_pretrained(tmp_path / "clip")
    words = ["--model", "clip_base_32", "--clip", "frames=3"]
    assert main(["weights", "begin", str(tmp_path / "clip"), str(tmp_path / "ours"), *words]) == 0
    assert "a CLIP vision tower of width 24, depth 2" in capsys.readouterr().out
    ours = load_model(tmp_path / "ours")
    frames = clips(ours.spec)[:, :1]
    with torch.no_grad():
        values = normalize(frames, ours.spec.mean, ours.spec.std, colour_dim=2)[:, 0]
        wanted = theirs(pixel_values=values, **batch(made, 1))
        out = ours(frames.expand(-1, 3, -1, -1, -1), text=ours.tokenize(TEXTS))
    torch.testing.assert_close(ours.embed_text(TEXTS), wanted.text_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["embedding"], wanted.image_embeds, rtol=1e-5, atol=1e-5)
    scores = out["scale"] * out["embedding"] @ out["text"].T
    torch.testing.assert_close(scores, wanted.logits_per_image, rtol=1e-4, atol=1e-4)


def test_clip_has_its_published_size() -> None:
    with torch.device("meta"):
        model = models.build("clip_base_32", models.clip_of("clip_base_32"))
    bias_that_clip_has_not = 768
    assert sum(p.numel() for p in model.parameters()) == 151_277_313 + bias_that_clip_has_not
    assert cost(small("clip_base_32"))["gmacs"] > 0


def test_a_clip_text_tower_alone(tmp_path: Path) -> None:
    theirs = clip()
    made = saved(theirs, tmp_path / "clip")
    found = text.read(tmp_path / "clip")
    ours = TextEncoder(**found.options)
    ours.load_state_dict(found.state)
    with torch.no_grad():
        wanted = theirs.text_model(**batch(made, 1)).pooler_output
        torch.testing.assert_close(ours(ours.tokenize(TEXTS)), wanted, rtol=1e-5, atol=1e-5)
    model = small("video_text_tiny", text=found.options, width=12)
    text.begin(model, tmp_path / "clip")
    with torch.no_grad():
        projected = theirs.text_projection(wanted)
    torch.testing.assert_close(model.embed_text(TEXTS), nn.functional.normalize(projected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_sentence_models(kind: str, pool: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    sizes = dict(hidden_size=16, vocab_size=len(WORDS), max_position_embeddings=14, layer_norm_eps=1e-12, **LAYERS)
    theirs = BertModel(BertConfig(**sizes)) if kind == "bert" else XLMRobertaModel(XLMRobertaConfig(pad_token_id=1, **sizes))
    modes = {
        "pooling_mode_cls_token": pool == "cls",
        "pooling_mode_mean_tokens": pool == "mean",
        "word_embedding_dimension": 16,
    }
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    files = {"modules": modules, "1_Pooling__config": modes, "sentence_bert_config": {"max_seq_length": 8}}
    made = saved(theirs, tmp_path / "model", **files)
    found = text.read(tmp_path / "model")
    assert found.options["context"] == 8 and found.options["pool"] == {"cls": "first"}.get(pool, pool)
    ours = TextEncoder(**found.options)
    ours.load_state_dict(found.state)
    inputs = batch(made, 2)
    if kind != "bert":
        inputs["position_ids"] = torch.arange(2, 2 + inputs["input_ids"].shape[1])[None].expand(3, -1)
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        wanted = hidden[:, 0] if pool == "cls" else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        torch.testing.assert_close(ours(ours.tokenize(TEXTS)), wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    saved(clip(), folder)
    with pytest.raises(CheckpointError, match="no text model at"):
        text.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="videomae_tiny has no text tower"):
        text.begin(small("videomae_tiny"), folder)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        text.begin(small("video_text_tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        text.read(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json: write one with transformers"):
        text.read(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mpnet"}))
    with pytest.raises(CheckpointError, match="of the kind 'mpnet': a text tower can begin as one of clip, "):
        text.read(folder)


def test_a_missing_and_a_left_over_weight_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    saved(clip(), folder)
    state = load_file(folder / "model.safetensors")
    state["text_model.extra.weight"] = state.pop("text_model.final_layer_norm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"left over extra\.weight; missing final_layer_norm\.bias"):
        text.read(folder)
