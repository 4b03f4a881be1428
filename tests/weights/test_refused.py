"""What a file of weights may hold or say that must not become a model: one clear line each, and nothing is written."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError
from tubelet.weights import foreign
from tubelet.weights.convert import convert
from tubelet.weights.export import export
from tubelet.weights.exported import open_folder
from tubelet.weights.load import load_model
from tubelet.weights.save import save

from ..models.small import clips
from .test_foreign import Hostile
from .test_layouts import Case, answer

GIVEN = foreign.Given(clip={"frames": 4, "size": 32}, options={"heads": 2})
HEAD = "classifier.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small VideoMAE: a folder of ours, one of transformers, and a file of the original's names."""
    folder = tmp_path_factory.mktemp("written")
    case = Case("videomae_base", "huggingface")
    save(case.model(), folder / "ours")
    case.write(folder)
    convert(case.model(), folder / "file.pth", "original")
    return folder


def test_a_model_that_is_not_finite_is_neither_loaded_nor_exported(written: Path, tmp_path: Path) -> None:
    made = load_model(written / "ours")
    with torch.no_grad():
        next(made.parameters())[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"gives no finite numbers \(NaN or infinity\): nothing was written"):
        export(made, tmp_path / "graph", "torch")
    assert not (tmp_path / "graph").exists()
    with pytest.raises(CheckpointError, match=r"embed.weight is not finite \(NaN or infinity\)"):
        load_model(save(made, tmp_path / "nan"))


def holding_itself() -> dict[str, Any]:
    held: dict[str, Any] = {"w": torch.zeros(1)}
    held["model"] = held
    return held


def test_containers_that_never_end(tmp_path: Path) -> None:
    torch.save(holding_itself(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="has more than 8 containers around its weights"):
        foreign.read(tmp_path / "file.pth")


def test_a_pickle_that_pytorch_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"a": Hostile(tmp_path / "trap")}))
    with pytest.raises(CheckpointError, match="is a pickle that PyTorch did not write; it may hold code and is not opened"):
        foreign.read(tmp_path / "file.pth")
    assert not (tmp_path / "trap").exists()


STRANGE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "expanded": (lambda value: torch.zeros(1, 1).expand(10**9, 24), "of fewer values, repeated"),
    "sparse": (lambda value: value.to_sparse(), "of the layout torch.sparse_coo"),
    "meta": (lambda value: value.to("meta"), "without values"),
    "quantised": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "of torch.qint8"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    "complex": (lambda value: value.to(torch.complex64), "of torch.complex64"),
    "integer": (lambda value: value.to(torch.int64), "is integer, wanted float"),
    "no dimension": (lambda value: torch.zeros(()), r"head.weight is \(\), wanted 2 dimensions"),
    "no class": (lambda value: value[:0], r"head.weight is \(0, 24\): it holds no value"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of quantised tensors, when this writes one
@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_no_weights(kind: str, written: Path, tmp_path: Path) -> None:
    change, words = STRANGE[kind]
    held = torch.load(written / "file.pth", weights_only=True)
    held["model"]["head.weight"] = change(held["model"]["head.weight"])
    torch.save(held, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=words):
        foreign.read(tmp_path / "file.pth", GIVEN)


@pytest.mark.parametrize("variant", ["videomae_base", "vjepa2_large"])
def test_folders_in_half_precision_are_compared(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
    path = Case(variant, "huggingface").write(tmp_path)
    state = load_file(path / "model.safetensors")
    save_file({key: value.half() for key, value in state.items()}, path / "model.safetensors", {"format": "pt"})
    assert main(["weights", "convert", str(path), str(tmp_path / "out"), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)["proofs"]["source"]
    assert proof["difference"] < 1e-5 and proof["round_trip"] == len(load_model(tmp_path / "out").state_dict())


CONFIG: list[tuple[dict[str, Any], str]] = [
    *(({"num_frames": value}, "num_frames is .* in config.json: it must be a whole number above 0") for value in ("4", [4], 0)),
    *(({"image_size": value}, "image_size is .* it must be a whole number above 0") for value in ("32", [32, 32], {"height": 32})),
    ({"num_attention_heads": -2}, "num_attention_heads is -2 in config.json: it must be a whole number above 0"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x' in config.json: it must be a number above 0"),
    ({"use_mean_pooling": "no"}, "use_mean_pooling is 'no' in config.json: it must be true or false"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu' in config.json, which is not supported: only 'gelu'"),
    ({"hidden_act": ["gelu"]}, "hidden_act is .* which is not supported"),
    ({"qkv_bias": False}, "qkv_bias is False in config.json, which is not supported: only True"),
    ({"model_type": "vivit"}, "model_type is 'vivit' in config.json, which is not supported: only 'videomae'"),
    ({"id2label": ["a", "b", "c"]}, "id2label of config.json must be names by number"),
    ({"id2label": {"0": None, "1": "b", "2": "c"}}, "id2label of config.json must be names by number"),
    ({"id2label": {"5": "a", "6": "b", "9": "c"}}, "id2label of config.json does not number its classes 0 to 2"),
]  # fmt: skip
PROCESSOR: list[tuple[dict[str, Any], str]] = [
    *(({"image_mean": value, "image_std": [1, 1, 1]}, "image_mean is .* in preprocessor_config.json: it must be three numbers")
      for value in (0.5, ["a", "b", "c"], [float("nan")] * 3)),
    ({"image_mean": [0, 0, 0], "image_std": [0, 0, 0]}, r"image_std is \[0, 0, 0\] .* every value must be above 0"),
    *(({"rescale_factor": value}, "rescale_factor is .* it must be a number above 0") for value in (0, "x")),
    ({"resample": [2]}, r"resample is \[2\] in preprocessor_config.json: it must be a whole number"),
    ({"crop_size": "x"}, "size is 'x' in preprocessor_config.json: it must be a whole number above 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "told", "words"),
    [("config.json", *one) for one in CONFIG] + [("preprocessor_config.json", *one) for one in PROCESSOR],
)
def test_what_lies_beside_weights_is_read_by_type(
    file: str, told: dict[str, Any], words: str, written: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(written / "there", tmp_path / "hf")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | told))
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


@pytest.mark.parametrize("text", ["3", "null", '["format"]'])
def test_a_config_that_is_no_object(text: str, written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written / "there", tmp_path / "hf")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json is no JSON object"):
        load_model(folder)


def test_names_without_a_number_and_kernels_without_a_size(written: Path, tmp_path: Path) -> None:
    state = load_file(written / "there" / "model.safetensors")
    kernel = "videomae.embeddings.patch_embeddings.projection.weight"
    for more, words in (
        ({"videomae.encoder.layer.foo.x": torch.zeros(1)}, "videomae.encoder.layer.foo is no block: its name has no number"),
        ({kernel: torch.zeros(24, 3, 2, 0, 0)}, "it holds no value"),
    ):
        folder = shutil.copytree(written / "there", tmp_path / words[-6:])
        save_file(state | more, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            load_model(folder)


@pytest.mark.parametrize("name", [3, None, ".", ""])
def test_an_index_that_names_no_files(name: object, written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written / "there", tmp_path / "hf")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is no index of shards|cannot read .*Is a directory"):
        load_model(folder)


def test_interpolated_positions_are_not_written_where_they_would_be_misread(written: Path, tmp_path: Path) -> None:
    given = foreign.Given(clip={"frames": 8})
    made, _ = foreign.read(written / "there", given)
    with pytest.raises(
        CheckpointError, match=r"cannot be written in the layout 'original': positions are interpolated: .* --to tubelet"
    ):
        convert(made, tmp_path / "file.pth", "original")
    assert not (tmp_path / "file.pth").exists()


def test_what_a_layout_cannot_hold_is_listed_as_what_tells_it(tmp_path: Path) -> None:
    made = Case("videomae_base", "original").model()
    made.spec = replace(made.spec, stride_frames=3, mean=(0.25, 0.5, 0.5))
    lost = convert(made, tmp_path / "file.pth", "original").lost
    assert lost == ("--clip mean=[0.25,0.5,0.5]", "--options heads=2", "--classes FILE")
    back, _ = foreign.read(tmp_path / "file.pth", foreign.Given(clip={"mean": [0.25, 0.5, 0.5]}, options={"heads": 2}))
    assert back.spec == made.spec and torch.equal(answer(back, clips(made.spec)), answer(made, clips(made.spec)))
    theirs = Case("videomae_base", "huggingface").model()
    theirs.spec = made.spec
    assert convert(theirs, tmp_path / "hf", "huggingface").lost == ("--clip stride_frames=3",)


COMMANDS = [
    ("inspect OURS --clip frames=8", "is a model of tubelet's own, which says all of itself: --clip is for files of others"),
    ("convert OURS OUT --classes kinetics400 --options nonsense=1", "--classes and --options is for files of others"),
    ("average OURS OURS OUT --to huggingface", "--to says nothing to `weights average`, which takes --decay"),
    ("convert OURS OUT --decay 0.9", "--decay says nothing to `weights convert`"),
    ("inspect OURS --clip frames=[1", "--clip frames=.* is no value"),
]


@pytest.mark.parametrize(("words", "said"), COMMANDS)
def test_flags_that_would_be_ignored(
    words: str, said: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OURS": str(written / "ours"), "OUT": str(tmp_path / "out")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["weights", *(places.get(word, word) for word in words.split())]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said.split(".*")[0] in error and said.split(".*")[-1] in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [
    {"heads": 0}, {"heads": -2}, {"width": 0}, {"mlp_ratio": float("nan")}, {"eps": -1.0}, {"eps": float("inf")},
    {"position_grid": [0, 2, 2]}, {"position_grid": [2, -2, 2]},
])  # fmt: skip
def test_sizes_that_are_none(option: dict[str, Any]) -> None:
    name, spec = "videomae_base", Case("videomae_base", "original").model().spec
    with pytest.raises(ConfigError, match=f"{next(iter(option))} of videomae_base is .*: it must be .* (above 0|1 or more)"):
        models.build(name, spec, ("a", "b"), **option)


def test_a_graph_whose_description_is_another_s(written: Path, tmp_path: Path) -> None:
    export(load_model(written / "ours"), tmp_path / "graph", "torch")
    file = tmp_path / "graph" / "config.json"
    description = json.loads(file.read_text())
    for change in ({"class_names": ["x"]}, {"class_names": []}, {"clip": description["clip"] | {"size": 64}}, {"options": 3}):
        file.write_text(json.dumps(description | change))
        with pytest.raises(CheckpointError, match="config.json is not of this graph: its classes, width or clips are others"):
            open_folder(tmp_path / "graph")


def test_export_of_no_videos(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(written / "ours"), str(tmp_path / "out"), "--check", str(tmp_path), "--limit", "0"]) == 2
    assert "--limit is 0: it must be 1 or more videos" in capsys.readouterr().err


def test_8_bits_that_change_the_class_are_refused(tmp_path: Path) -> None:
    """Of a model that is undecided between two classes the smallest error decides."""
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")
    made = Case("videomae_base", "original").model()
    frames = clips(made.spec, 8)
    with torch.no_grad():
        made.head.weight[1] = made.head.weight[0]
        made.head.bias[:] = torch.tensor([0.0, 0.0, -9.0])
        made.head.weight[1] += 1e-5 * torch.randn(made.head.weight[0].shape, generator=torch.Generator().manual_seed(0))
        made.head.bias[1] -= (made(frames)["logits"][:, 1] - made(frames)["logits"][:, 0]).median()
    with pytest.raises(
        CheckpointError, match="in 8 bits .* of 8 videos are of the model's class, wanted 99%: nothing was written"
    ):
        export(made, tmp_path / "out", "onnx", int8=True, clips=list(frames))
    assert not (tmp_path / "out").exists()
