"""Every layout of every family: written, recognised, read again bit for bit, and against transformers' own folders."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet.cli import main
from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.video.normalize import normalize
from tubelet.weights import files, foreign, layouts
from tubelet.weights.convert import convert
from tubelet.weights.inspect import inspect
from tubelet.weights.load import load_model

from ..models.small import SMALL, SPEC, clips, family_of, randomise, small

NAMES = ("b", "a", "c")


@dataclass(frozen=True)
class Case:
    """A small model written in a layout; `tell` are options that its one file does not tell, as heads of 12 channels."""

    variant: str
    layout: str
    classes: tuple[str, ...] = NAMES
    tell: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.variant}-{self.layout}-{'classifier' if self.classes else 'bare'}"

    def model(self) -> Model:
        torch.manual_seed(0)
        # transformers' VideoMAE has these eps whatever config.json says
        eps = {"norm_eps": 1e-5 if self.classes else 1e-6, "decoder_norm_eps": 1e-5}
        theirs = self.layout == "huggingface" and self.variant == "videomae_base"
        made = small(self.variant, self.classes, **(eps if theirs else {}))
        randomise(made, 0.2 if theirs else 0.3)
        return made.eval()

    def write(self, folder: Path) -> Path:
        out = folder / ("there" if self.layout == "huggingface" else "there.pth")
        convert(self.model(), out, self.layout)
        return out

    @property
    def given(self) -> foreign.Given:
        """What a single file does not tell of these models, which are smaller than any that is published."""
        spec, _ = SMALL.get(self.variant) or SMALL[family_of(self.variant)]
        told = self.layout == "huggingface"
        clip = {} if told else {"frames": spec.frames, "size": spec.size, "mean": spec.mean, "std": spec.std}
        return foreign.Given(clip=clip, options=self.tell)


HEADS: dict[str, object] = {"heads": 2}
CASES = [
    *(Case("videomae_base", layout, classes, tell) for classes in ((), NAMES)
      for layout, tell in (("original", HEADS | ({} if classes else {"decoder_heads": 2})), ("huggingface", {}))),
    *(Case(name, layout, classes, tell) for classes in ((), NAMES)
      for layout, tell in (("original", HEADS), ("huggingface", {}))
      for name in ("timesformer_base", "timesformer_base_joint")),
    *(Case("timesformer_base_space", layout, classes, tell) for classes in ((), NAMES)
      for layout, tell in (("original", HEADS | {"attention": "space"}), ("huggingface", {}))),
    *(Case("vivit_base", "huggingface", classes) for classes in ((), NAMES)),
    *(Case("vjepa2_large", "huggingface", classes) for classes in ((), NAMES)),
    Case("vjepa2_large", "original", (), HEADS),
    *(Case(name, "torchvision", classes, tell) for classes in ((), NAMES)
      for name, tell in (("r2plus1d_18", {}), ("r2plus1d_34", {}), ("mvitv2_small", {"kv_stride": 2}), ("swin_tiny", {}))),
    *(Case(name, "torchvision", (), {"updates": 2}) for name in ("raft_small", "raft_large")),
]  # fmt: skip
every = pytest.mark.parametrize("case", CASES, ids=str)
folders = pytest.mark.parametrize("case", [case for case in CASES if case.layout == "huggingface"], ids=str)


def answer(model: Model, frames: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(frames)
    return out["logits" if model.class_names else "tokens"]


def test_no_layout_is_left_out() -> None:
    assert {(family_of(case.variant), case.layout) for case in CASES} == set(layouts.known())
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| `(\w+)` \|.*\d+ of \d+", page, re.MULTILINE)) == set(layouts.known())


@every
def test_there_and_back_through_files(case: Case, tmp_path: Path) -> None:
    made, path = case.model(), case.write(tmp_path)
    source = files.read(path)
    assert layouts.recognise(source.tensors, path, source.config | case.tell) == (family_of(case.variant), case.layout)
    row = inspect(path, case.given)
    assert row["loads"], row["problem"]
    assert (row["name"], row["family"], row["layout"]) == (case.variant, family_of(case.variant), case.layout)
    assert (row["clip"]["frames"], row["clip"]["size"], row["classes"]) == (made.spec.frames, made.spec.size, len(case.classes))
    assert row["params"] == sum(parameter.numel() for parameter in made.parameters())

    back = load_model(path) if case.layout == "huggingface" else foreign.read(path, case.given)[0]
    wanted, state = made.state_dict(), back.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)
    if case.layout == "huggingface":
        assert replace(back.spec, stride_frames=made.spec.stride_frames) == made.spec and back.class_names == made.class_names
    assert torch.equal(answer(back, clips(made.spec)), answer(made, clips(made.spec)))


@every
def test_what_is_missing_or_left_over_is_named_in_one_line(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    state = files.read(path).tensors
    weights = sorted(key for key in state if key.endswith("weight"))
    dropped = weights[len(weights) // 2]
    without = {key: value for key, value in state.items() if key != dropped}
    for broken, words in ((without, "missing "), (state | {"extra.weight": torch.ones(1)}, "extra.weight")):
        if path.is_dir():
            save_file(broken, path / "model.safetensors")
        else:
            torch.save(broken, path)
        with pytest.raises(CheckpointError, match=words) as error:
            foreign.read(path, case.given)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


@folders
def test_transformers_reads_what_is_written(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
    proof = convert(case.model(), tmp_path / "out", "huggingface")
    assert proof.difference is not None and proof.difference < 1e-5


def folder_of_transformers(kind: str, folder: Path) -> Any:
    """A randomly initialised model of transformers as it saves itself, with its classes' names."""
    transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
    sizes = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, id2label=dict(enumerate(NAMES)))
    clip = dict(image_size=32, num_frames=4, intermediate_size=96)
    family = kind.split()[0]
    if family.startswith("Timesformer"):
        attention = {"joint": "joint_space_time", "space": "space_only"}.get(kind.split()[-1], "divided_space_time")
        config = transformers.TimesformerConfig(**sizes, **clip, patch_size=8, attention_type=attention)
    elif family.startswith("Vivit"):
        config = transformers.VivitConfig(**sizes, **clip, tubelet_size=[2, 8, 8])
    elif family.startswith("VideoMAE"):
        mean = family == "VideoMAEForVideoClassification"
        config = transformers.VideoMAEConfig(
            **sizes, **clip, patch_size=8, use_mean_pooling=mean, decoder_hidden_size=24, decoder_intermediate_size=48,
            decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        )  # fmt: skip
    else:
        config = transformers.VJEPA2Config(
            **sizes, patch_size=8, crop_size=32, frames_per_clip=4, mlp_ratio=2.0, num_pooler_layers=1, pred_hidden_size=24,
            pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )  # fmt: skip
    theirs = getattr(transformers, family)(config).eval()
    randomise(theirs, 0.3)
    if kind.endswith("memory"):
        theirs.config.save_pretrained(folder)
        save_file(theirs.state_dict(), folder / "model.safetensors", {"format": "pt"})
    else:
        theirs.save_pretrained(folder)
    return theirs


KINDS = (
    "VideoMAEForPreTraining", "VideoMAEForVideoClassification", "VideoMAEModel", "TimesformerForVideoClassification",
    "TimesformerForVideoClassification joint", "TimesformerModel", "TimesformerModel space", "VivitForVideoClassification",
    "VivitForVideoClassification memory", "VivitModel", "VivitModel memory", "VJEPA2ForVideoClassification", "VJEPA2Model",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_folders_as_transformers_saves_them(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = folder_of_transformers(kind, tmp_path)
    ours = load_model(tmp_path)
    assert (ours.spec.frames, ours.spec.size) == (4, 32)
    frames = clips(ours.spec)
    with torch.no_grad():
        values = normalize(frames, ours.spec.mean, ours.spec.std, colour_dim=2)
        if "Classification" in kind:
            assert ours.class_names == NAMES
            wanted = theirs(values).logits
        elif kind == "VideoMAEForPreTraining":
            wanted = theirs.videomae(values).last_hidden_state
        elif kind.startswith("Timesformer"):  # the cls token first; a place's moments side by side
            wanted = theirs(values).last_hidden_state[:, 1:]
            space = kind.endswith("space")
            wanted = wanted.reshape(2, 64, 48) if space else wanted.unflatten(1, (16, 4)).transpose(1, 2).flatten(1, 2)
        else:
            wanted = theirs(values, **({"skip_predictor": True} if "VJEPA2" in kind else {})).last_hidden_state
            wanted = wanted[:, 1:] if kind.startswith("Vivit") else wanted
    torch.testing.assert_close(answer(ours, frames), wanted, rtol=1e-5, atol=1e-5)
    if ours.class_names:  # a model that could not tell moments apart would prove nothing
        assert (answer(ours, frames.flip(1)) - answer(ours, frames)).abs().max() > 1e-3
    said = capsys.readouterr().err
    assert ("predictor of pretraining is left behind" in said) == kind.startswith("VJEPA2")
    assert ("pooler behind the cls token is left behind" in said) == kind.startswith("VivitModel")


INTERPOLATED = [
    case
    for case in CASES
    if "position_grid" in case.model().options and (case.layout, case.variant) != ("original", "videomae_base")
]


@pytest.mark.parametrize("case", INTERPOLATED, ids=str)
def test_positions_are_interpolated_for_other_clips_and_it_is_said(case: Case, tmp_path: Path) -> None:
    made, path = case.model(), case.write(tmp_path)
    given = foreign.Given(clip={**case.given.clip, "frames": 8, "size": 64}, options=case.tell)
    model, account = foreign.read(path, given)
    assert model.options["position_grid"] == made.options["position_grid"]
    said = [note for note in account.notes if note.startswith("positions are interpolated: theirs are of ")]
    assert len(said) == 1 and inspect(path, given)["notes"][-1] == said[0]
    frames = clips(model.spec)
    assert frames.shape[1:] == (8, 3, 64, 64) and torch.equal(answer(model, frames), answer(made, frames))
    if case.layout == "huggingface":
        with pytest.raises(CheckpointError, match="positions are interpolated: .* which that layout cannot say"):
            convert(model, tmp_path / "again", "huggingface")


def test_a_processor_that_scales_in_its_own_way(tmp_path: Path) -> None:
    """ViViT's makes values from -1 to 1, and may normalise after that."""
    folder_of_transformers("VivitForVideoClassification", tmp_path)
    written = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 127.5, "offset": True, "crop_size": 32}
    for normalised, mean, std in ((False, 0.5, 0.5), (True, 0.75, 0.125)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | {"do_normalize": normalised}))
        spec = load_model(tmp_path).spec
        assert spec.mean == (mean,) * 3 and spec.std == (std,) * 3


def test_what_config_json_says_and_we_have_not_is_refused(tmp_path: Path) -> None:
    folder_of_transformers("TimesformerForVideoClassification", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act is 'relu' in config.json, which is not supported: only 'gelu'"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["divided", "joint", "space"])
def test_timesformers_of_the_original_are_transformers_too(kind: str, tmp_path: Path) -> None:
    """Three attentions, of one set of names and two smaller ones; how clips were cut stands in the file."""
    pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
    variant = "timesformer_base" + ("" if kind == "divided" else f"_{kind}")
    made = Case(variant, "original").model()
    made.spec = replace(made.spec, stride_frames=16, mean=(0.4, 0.5, 0.6))
    convert(made, tmp_path / "file.pth", "original")
    keys = torch.load(tmp_path / "file.pth", weights_only=True)["model_state"]
    assert ("model.time_embed" in keys, "model.blocks.0.temporal_fc.weight" in keys) == (kind != "space", kind == "divided")
    read, account = foreign.read(tmp_path / "file.pth", foreign.Given(options=HEADS))
    assert (read.name, read.spec, read.options["attention"]) == (variant, made.spec, kind)
    assert account.found.inferred["stride_frames"] == "SAMPLING_RATE in the configuration of its run"
    proof = convert(read, tmp_path / "hf", "huggingface")
    assert proof.difference is not None and proof.difference < 1e-5
    convert(load_model(tmp_path / "hf"), tmp_path / "again.pth", "original")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model_state"]
    assert keys.keys() == again.keys() and all(torch.equal(keys[key], again[key]) for key in keys)


def test_space_only_attention_without_its_run_is_what_the_caller_says(tmp_path: Path) -> None:
    made = Case("timesformer_base_space", "original").model()
    convert(made, tmp_path / "file.pth", "original")
    held = torch.load(tmp_path / "file.pth", weights_only=True)
    for cfg in (None, "MODEL: {ARCH: vit}", "no: [yaml"):
        torch.save({"model_state": held["model_state"]} | ({"cfg": cfg} if cfg else {}), tmp_path / "bare.pth")
        with pytest.raises(CheckpointError, match=r"is an image model \(ViT, timm layout\), .* `tubelet weights begin`"):
            load_model(tmp_path / "bare.pth")
        clip = {"frames": 4, "mean": SPEC.mean, "std": SPEC.std}
        given = foreign.Given(clip=clip, options=HEADS | {"attention": "space"})
        read, _ = foreign.read(tmp_path / "bare.pth", given)
        assert torch.equal(answer(read, clips(SPEC)), answer(made, clips(SPEC)))


def test_an_image_vit_is_not_taken_for_a_video_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
    sizes = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is an image model \(ViT, huggingface layout\), no video model: begin one"):
        load_model(tmp_path)


def test_heads_that_a_layout_has_no_place_for(tmp_path: Path) -> None:
    for variant, layout, words in (
        ("raft_small", "torchvision", "has no head"), ("vjepa2_large", "original", "has a pooler and a head"),
        ("vivit_base_factorised_encoder", "huggingface", "left over temporal_cls_token"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            convert(small(variant, NAMES), tmp_path / ("out" if layout == "huggingface" else "out.pth"), layout)
    assert not list(tmp_path.iterdir())


def test_older_files_of_torchvision_have_no_counters_of_batches(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.variant == "r2plus1d_18")
    path = case.write(tmp_path)
    torch.save({key: value for key, value in files.read(path).tensors.items() if "num_batches" not in key}, path)
    made, back = case.model(), foreign.read(path, case.given)[0]
    assert torch.equal(answer(back, clips(SPEC)), answer(made, clips(SPEC)))


def test_the_command_line_moves_a_model_through_torchvisions_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(case for case in CASES if case.variant == "swin_tiny" and case.classes).write(tmp_path)
    clip = ["--clip", "frames=4", "--clip", "size=32"]
    assert main(["weights", "inspect", str(path), *clip, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["options"]["window"] == [2, 3, 3] and row["classes"] == 3 and row["class_names"] is None
    assert main(["weights", "convert", str(path), str(tmp_path / "ours"), *clip]) == 0
    assert main(["weights", "convert", str(tmp_path / "ours"), str(tmp_path / "again.pth"), "--to", "torchvision"]) == 0
    first, again = (torch.load(one, weights_only=True) for one in (path, tmp_path / "again.pth"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    assert main(["weights", "convert", str(tmp_path / "ours"), str(tmp_path / "folder"), "--to", "torchvision"]) == 2
    assert "the torchvision layout is one file: name it .pth" in capsys.readouterr().err


def test_v_jepa_2_folders_have_a_video_processor(tmp_path: Path) -> None:
    path = next(case for case in CASES if case.variant == "vjepa2_large" and case.layout == "huggingface").write(tmp_path)
    written = json.loads((path / "video_preprocessor_config.json").read_text())
    assert written["video_processor_type"] == "VJEPA2VideoProcessor" and not (path / "preprocessor_config.json").exists()
    assert load_file(path / "model.safetensors").keys() >= {"encoder.layernorm.weight"}
