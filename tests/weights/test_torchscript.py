"""TorchScript archives as OpenAI's CLIP files are: their tensors are read, and nothing in them is run."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tubelet.cli import main
from tubelet.errors import CheckpointError
from tubelet.weights import files, image, torchscript
from tubelet.weights.load import load_model

OPTIONS = dict(width=48, depth=2, heads=3, patch=8, tubelet=1)


class Attention(nn.Module):
    """As nn.MultiheadAttention names its weights, and scriptable without it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = (
            nn.Parameter(torch.empty(3 * width, width)),
            nn.Parameter(torch.empty(3 * width)),
        )
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = Attention(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_2(self.attn(self.ln_1(x))))


class Stack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(Block(width), Block(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embedding, self.positional_embedding = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(17, width))
        self.conv1, self.proj = nn.Conv2d(3, width, 8, 8, bias=False), nn.Parameter(torch.empty(width, 20))
        self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(width), nn.LayerNorm(width), Stack(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(self.ln_pre(x))


class Clip(nn.Module):
    """The names of OpenAI's archives; what it computes does not matter, as it is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer, self.ln_final = Visual(48), Stack(16), nn.LayerNorm(16)
        self.token_embedding, self.positional_embedding = nn.Embedding(11, 16), nn.Parameter(torch.empty(7, 16))
        self.text_projection, self.logit_scale = nn.Parameter(torch.empty(16, 20)), nn.Parameter(torch.empty(()))
        self.sizes = [1, 2]  # a list of numbers, which is no weight
        for name, value in {"input_resolution": 32, "context_length": 7, "vocab_size": 11}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) * self.sizes[0]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """(the archive, its state dict): half precision, as OpenAI's, some weights views of others' storage."""
    torch.manual_seed(0)
    clip = Clip()
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.3)
    clip.half()
    clip.visual.proj.data = clip.visual.proj.data.T.contiguous().T  # not in order in memory
    file = tmp_path_factory.mktemp("clip") / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        torch.jit.save(torch.jit.script(clip), file)
    return file, {key: value.detach() for key, value in clip.state_dict().items()}


def test_the_tensors_are_those_of_the_module(archive: tuple[Path, dict[str, Tensor]]) -> None:
    file, state = archive
    found = torchscript.read(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in state.items())
    assert files.read(file).tensors.keys() == state.keys()
    torch.save(state, file.with_name("state.pt"))
    assert torchscript.is_archive(file) and not torchscript.is_archive(file.with_name("state.pt"))


def test_a_video_model_begins_from_the_archive_as_from_the_state_dict(
    archive: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, state = archive
    torch.save(state, tmp_path / "state.pt")
    made = [image.begin(path, "vivit_base", dict(frames=1, size=32), options=OPTIONS) for path in (file, tmp_path / "state.pt")]
    (ours, account), (wanted, _) = made
    assert account["layout"] == "openai" and {"vocab_size", "text_projection", "visual.proj"} <= account["left_behind"].keys()
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in ours.state_dict().items() if "head" not in key)
    words = [word for name, value in OPTIONS.items() for word in ("--options", f"{name}={value}")]
    words += ["--model", "vivit_base", "--clip", "frames=1", "--clip", "size=32"]
    assert main(["weights", "begin", str(file), str(tmp_path / "begun"), *words]) == 0
    assert "CLIP vision tower" in capsys.readouterr().out and load_model(tmp_path / "begun").name == "vivit_base"
    assert main(["weights", "inspect", str(file)]) == 2
    assert "is an image model (ViT, openai layout), no video model: begin one" in capsys.readouterr().err


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trap}",)


def rewritten(file: Path, out: Path, change: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    """The archive with some of its records exchanged."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", compress) as new:
        for name in old.namelist():
            new.writestr(name, change.get(name.partition("/")[2], old.read(name)))
    return out


def test_what_is_hostile_or_damaged_is_one_line_and_nothing_is_run(
    archive: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trap = archive[0], tmp_path / "trap"
    whole = file.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    middle = whole.index(archive[1]["visual.conv1.weight"].numpy().tobytes()) + 100
    (tmp_path / "bits.pt").write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :])
    huge = (  # a tensor of 10^18 values that all are one
        b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
        b"K\x00J\x00\xca\x9a;J\x00\xca\x9a;\x86K\x00K\x00\x86\x89Ntsb."
    ).replace(b"tsb.", b"tRsb.")
    cases = {
        "code": (rewritten(file, tmp_path / "code.pt", {"data.pkl": pickle.dumps(Hostile(trap))}), r"it asks for posix.system"),
        "module": (
            rewritten(file, tmp_path / "m.pt", {"data.pkl": b"cbuiltins\neval\n(X\x01\x00\x00\x001tR."}),
            "builtins.eval",
        ),
        "getattr": (
            rewritten(file, tmp_path / "g.pt", {"data.pkl": b"ctorch.serialization\nload\n."}),
            "torch.serialization.load",
        ),
        "huge": (rewritten(file, tmp_path / "h.pt", {"data.pkl": huge, "data/0": bytes(4)}), "a tensor of .* from 1 values"),
        "short": (rewritten(file, tmp_path / "s.pt", {"data/0": b"12"}), "data/0 is not of"),
        "packed": (rewritten(file, tmp_path / "p.pt", {}, zipfile.ZIP_DEFLATED), "is not of"),
        "number": (rewritten(file, tmp_path / "n.pt", {"data.pkl": b"\x80\x02K\x01."}), "holds no weights"),
        "cut": (tmp_path / "cut.pt", "may be truncated"),
        "bits": (tmp_path / "bits.pt", "Bad CRC"),
    }
    for path, words in cases.values():
        with pytest.raises(CheckpointError, match=words) as error:
            files.read(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
        assert main(["weights", "begin", str(path), str(tmp_path / "out"), "--model", "vivit_base"]) == 2
        said = capsys.readouterr().err
        assert said.count("error: ") == 1 and "Traceback" not in said
    assert not trap.exists() and not (tmp_path / "out").exists()


def test_an_archive_cannot_change_how_the_next_is_read(archive: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """BUILD with a second dict sets attributes, on whatever lies on the stack: the class that stands for modules, too."""
    spoil = b"\x80\x02c__torch__\nM\n(N}X\x0c\x00\x00\x00__setstate__ccollections\nOrderedDict\nstb."
    with pytest.raises(CheckpointError, match="holds no weights"):
        files.read(rewritten(archive[0], tmp_path / "spoil.pt", {"data.pkl": spoil}))
    assert torchscript.read(archive[0]).keys() == archive[1].keys()
