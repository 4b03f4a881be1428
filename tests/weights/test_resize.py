"""Kernels for other tubelets than they were learned on: what answers alike, and that it is said."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError
from tubelet.models._tokens import Triple, patchify, resize_kernel, resize_pixels, stretching, unpatchify
from tubelet.records import ClipSpec
from tubelet.weights import foreign, image
from tubelet.weights.convert import convert, prove
from tubelet.weights.inspect import inspect
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save

from ..models.small import SMALL, SPEC, clips, randomise, small

sides = st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 20))


def kernel(tubelet: Triple, width: int = 5) -> Tensor:
    return torch.randn(width, 3 * math.prod(tubelet), generator=torch.Generator().manual_seed(0))


def stretched(frames: Tensor, size: Triple) -> Tensor:
    """(1,T,C,H,W) to other frames, rows and columns, by torch's own interpolation."""
    return F.interpolate(frames.transpose(1, 2), size=size, mode="trilinear", align_corners=False).transpose(1, 2)


@given(sides, sides)
@settings(deadline=None, max_examples=40)
def test_a_constant_clip_is_answered_alike_and_there_and_back_is_nothing(trained: Triple, tubelet: Triple) -> None:
    before = kernel(trained)
    after = resize_kernel(before, trained, tubelet)
    assert after.shape == (5, 3 * math.prod(tubelet))
    torch.testing.assert_close(after.view(5, -1, 3).sum(1), before.view(5, -1, 3).sum(1), rtol=1e-4, atol=1e-3)
    if all(a <= b for a, b in zip(trained, tubelet, strict=True)):
        torch.testing.assert_close(resize_kernel(after, tubelet, trained), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("trained", "tubelet"), [((2, 8, 8), (4, 16, 16)), ((2, 16, 16), (1, 8, 8)), ((1, 14, 14), (3, 16, 16))]
)
def test_the_larger_kernel_answers_a_stretched_clip_as_the_smaller_the_clip(trained: Triple, tubelet: Triple) -> None:
    before = kernel(trained)
    after = resize_kernel(before, trained, tubelet)
    (small_, little), (large, big) = sorted([(trained, before), (tubelet, after)], key=lambda pair: math.prod(pair[0]))
    frames = torch.rand(1, small_[0], 3, *small_[1:])
    torch.testing.assert_close(
        patchify(stretched(frames, large), large) @ big.T, patchify(frames, small_) @ little.T, rtol=1e-4, atol=1e-4
    )


def test_one_frame_made_several_is_what_inflating_an_image_model_gives() -> None:
    one = kernel((1, 4, 4))
    assert torch.equal(resize_kernel(one, (1, 4, 4), (1, 4, 4)), one)
    torch.testing.assert_close(resize_kernel(one, (1, 4, 4), (2, 4, 4)), torch.cat([one, one], 1) / 2)
    two = kernel((2, 4, 4))
    torch.testing.assert_close(resize_kernel(two, (2, 4, 4), (1, 4, 4)), sum(two.chunk(2, 1)))


def test_what_a_decoder_paints_is_stretched() -> None:
    trained, tubelet = (2, 4, 4), (4, 8, 8)
    weight, bias = torch.randn(96, 7), torch.randn(96)
    feature = torch.randn(7)
    picture = unpatchify((weight @ feature + bias)[None, None], (1, 1, 1), trained)
    larger = resize_pixels(weight, trained, tubelet) @ feature + resize_pixels(bias, trained, tubelet)
    torch.testing.assert_close(
        unpatchify(larger[None, None], (1, 1, 1), tubelet), stretched(picture, tubelet), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(resize_pixels(resize_pixels(weight, trained, tubelet), tubelet, trained), weight)
    assert torch.equal(stretching(5, 5), torch.eye(5, dtype=torch.float64))


CASES = {
    "videomae_base": dict(patch=16, tubelet=4), "vivit_base": dict(patch=4, tubelet=1), "vjepa2_large": dict(patch=16, tubelet=1),
    "timesformer_base": dict(patch=16),
}  # fmt: skip


@pytest.mark.parametrize("variant", CASES)
@pytest.mark.parametrize("classes", [(), ("a", "b")], ids=["bare", "classifier"])
def test_files_of_others_load_with_other_tubelets_and_it_is_said(
    variant: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    """With as many more frames and pixels as a tubelet has, the grid stays, and so must the answer."""
    eps = {"norm_eps": 1e-5 if classes else 1e-6, "decoder_norm_eps": 1e-5} if variant == "videomae_base" else {}
    made = small(variant, classes, **eps)
    randomise(made, 0.2)
    made.eval()
    convert(made, tmp_path / "hf", "huggingface")
    t, h, _ = made.tubelet
    size = (CASES[variant].get("tubelet", 1), CASES[variant]["patch"], CASES[variant]["patch"])
    grid = SPEC.frames // t, SPEC.size // h
    given = foreign.Given(clip={"frames": grid[0] * size[0], "size": grid[1] * size[1]}, options=CASES[variant])
    model, account = foreign.read(tmp_path / "hf", given)
    assert model.tubelet == size
    said = (
        f"tubelets are resized: theirs are of {t}x{h}x{h} frames, rows and columns, the model's of {'x'.join(map(str, size))}"
    )
    assert account.interpolated == said and said in inspect(tmp_path / "hf", given)["notes"]
    assert said in prove(model, account, tmp_path / "hf").why
    with torch.no_grad():  # of one colour: stretching any other clip would reach over the borders between tubelets
        ours, theirs = (one(torch.full_like(clips(one.spec), 80)) for one in (model, made))
    key = "logits" if classes else "tokens"
    torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-3)
    convert(model, tmp_path / "ours", "tubelet")
    back = load_model(tmp_path / "ours")
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())


def test_fixed_positions_that_nothing_tells_are_those_of_published_clips(tmp_path: Path) -> None:
    made = small("videomae_base", ("a", "b"))
    convert(made, tmp_path / "file.pth", "original")
    torch.save({"model": torch.load(tmp_path / "file.pth", weights_only=True)["model"]}, tmp_path / "file.pth")  # nothing tells
    options = {"heads": 2, "patch": 16}
    model, account = foreign.read(tmp_path / "file.pth", foreign.Given(clip={"frames": 4, "size": 64}, options=options))
    assert model.options["position_grid"] == [8, 28, 28] and account.found.assumed["position_grid"].startswith("8x28x28 tokens")
    assert account.interpolated.count("; ") == 1 and "positions are interpolated: theirs are of 8x28x28" in account.interpolated
    model, account = foreign.read(tmp_path / "file.pth", foreign.Given(clip={"frames": 4, "size": 32}, options={"heads": 2}))
    assert not account.interpolated and "position_grid" not in account.found.assumed


def test_other_tubelets_in_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small("videomae_base")
    randomise(source)
    sizes = {**source.options, "patch": 16}
    target = models.build("videomae_base", ClipSpec(frames=4, size=64), ("a", "b"), **sizes)
    fresh = transfer(source, target)
    assert all(name.startswith(("fc_norm.", "head.")) for name in fresh)
    wanted = resize_kernel(source.state_dict()["embed.weight"], (2, 8, 8), (2, 16, 16))
    assert torch.equal(target.state_dict()["embed.weight"], wanted)
    assert "tubelets are resized: theirs are of 2x8x8" in capsys.readouterr().err
    other = models.build("videomae_base", ClipSpec(frames=8, size=32), (), **source.options)
    assert transfer(source, other) == []
    said = capsys.readouterr().err
    assert "positions are interpolated: theirs are of 2x4x4 tokens, the clips have 4x4x4" in said and "resized" not in said


def test_image_models_begin_with_other_patches_where_they_are_asked_for(tmp_path: Path) -> None:
    frame_vit = models.build("frame_vit_base_16", ClipSpec(frames=1, size=32), **{**SMALL["frame_vit"][1], "norm_pre": False})
    randomise(frame_vit)
    state = dict(frame_vit.state_dict())
    state["patch_embed.proj.bias"] = state.pop("embed.bias")
    state["patch_embed.proj.weight"] = state.pop("embed.weight").view(24, 8, 8, 3).permute(0, 3, 1, 2).contiguous()
    save_file(state, tmp_path / "vit.safetensors")
    sizes = dict(width=24, depth=2, heads=2)
    with pytest.raises(CheckpointError, match="give --options patch=8"):
        image.begin(tmp_path / "vit.safetensors", "vivit_base", dict(frames=4, size=64), options=sizes)
    options = dict(sizes, patch=16, tubelet=1)
    ours, account = image.begin(tmp_path / "vit.safetensors", "vivit_base", dict(frames=1, size=64), options=options)
    assert "interpolated: patches of 8x8 pixels to 16x16" in account["notes"]
    assert not any("positions" in note for note in account["notes"])
    wanted = resize_kernel(frame_vit.state_dict()["embed.weight"], (1, 8, 8), (1, 16, 16))
    torch.testing.assert_close(ours.state_dict()["embed.weight"], wanted)


def test_the_command_line_resizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = small("vivit_base", ("a", "b"))
    convert(made, tmp_path / "hf", "huggingface")
    words = ["weights", "convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--options", "patch=16", "--clip", "size=64"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "tubelets are resized: theirs are of 2x8x8 frames, rows and columns, the model's of 2x16x16" in printed
    assert load_model(tmp_path / "ours").tubelet == (2, 16, 16)
    assert main(["weights", "inspect", str(tmp_path / "hf"), "--options", "patch=16"]) == 0
    assert "tubelets are resized" in capsys.readouterr().out
    bad = ["weights", "convert", str(tmp_path / "hf"), str(tmp_path / "no"), "--options", "patch=0"]
    assert main(bad) == 2 and not (tmp_path / "no").exists()
    assert "error: " in capsys.readouterr().err
    save(made, tmp_path / "own")
    assert main(["weights", "inspect", str(tmp_path / "own")]) == 0
