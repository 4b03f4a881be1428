"""Masked feature distillation: with pixels for a teacher it is masked autoencoding; otherwise by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.objectives import distill, masked
from tubelet.objectives.distill import DistillConfig
from tubelet.recipes import pretraining
from tubelet.records import Batch, ClipSpec
from tubelet.train.loop import train
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, size=32, stride_frames=2)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)


def batch(clips: int = 3) -> Batch:
    frames = torch.randint(0, 256, (clips, 4, 3, 32, 32), dtype=torch.uint8)
    return Batch(frames, torch.zeros(clips, 4, dtype=torch.float64), [str(i) for i in range(clips)])


def student(config: DistillConfig) -> Model:
    return models.build("videomae_tiny", SPEC, **{**SMALL, **distill.options(config)})


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[..., str]:
    """Makes a model folder with random weights."""

    def make(name: str, spec: ClipSpec = SPEC, classes: tuple[str, ...] = (), **options: object) -> str:
        model = models.build("videomae_tiny", spec, classes, **{**SMALL, "decoder": False, **options})
        return str(save(model, tmp_path / name))

    return make


@pytest.mark.parametrize("decoder_mask", ["", "running_cell"])
def test_with_pixels_for_a_teacher_it_is_masked_autoencoding(decoder_mask: str) -> None:
    settings = dict(mask="random", ratio=0.75, decoder_mask=decoder_mask, loss="smooth_l1")
    config, plain = DistillConfig(video_teacher="pixels", **settings), masked.MaskedConfig(**settings)
    torch.manual_seed(1)
    pupil = student(config)
    torch.manual_seed(1)
    model = models.build("videomae_tiny", SPEC, **SMALL)
    clips = batch()
    losses = [objective.loss(one, clips, asked, torch.Generator().manual_seed(2))[0]
              for objective, one, asked in ((distill, pupil, config), (masked, model, plain))]  # fmt: skip
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert torch.equal(pupil.embed.weight.grad, model.embed.weight.grad)
    assert torch.equal(pupil.students.video.head.weight.grad, model.decoder.head.weight.grad)


def test_the_loss_by_hand(teacher: Callable[..., str]) -> None:
    video, image = teacher("video", width=24, classes=("a", "b")), teacher("image", replace(SPEC, frames=1), tubelet=1)
    config = DistillConfig(video_teacher=video, image_teacher=image, image_weight=0.5, mask="random", ratio=0.75)
    pupil, clips = student(config), batch()
    loss, numbers = distill.loss(pupil, clips, config, torch.Generator().manual_seed(1))
    mask = masked.masking.make("random", pupil.grid, 0.75, 3, torch.Generator().manual_seed(1))
    out = pupil(clips.frames, mask=mask)
    with torch.no_grad():
        seen = {"video": load_model(video)(clips.frames)["tokens"]}
        frames = torch.stack([load_model(image)(clips.frames[:, t : t + 1])["tokens"] for t in range(4)], dim=1)  # (B,4,16,D)
        seen["image"] = frames.unflatten(1, (2, 2)).mean(dim=2).flatten(1, 2)  # two frames to a slot
    for name, tokens in seen.items():
        wanted = tokens.double().numpy()
        wanted = (wanted - wanted.mean(-1, keepdims=True)) / np.sqrt(wanted.var(-1, keepdims=True) + 1e-5)
        error = out[f"prediction_{name}"].detach().double().numpy() - wanted[mask.numpy()].reshape(3, -1, wanted.shape[-1])
        assert numbers[f"{name}_loss"].item() == pytest.approx((error**2).mean(), rel=1e-4)
    assert loss.item() == pytest.approx(numbers["video_loss"].item() + 0.5 * numbers["image_loss"].item(), rel=1e-6)


def test_teachers_get_no_gradient_and_see_what_is_hidden(teacher: Callable[..., str]) -> None:
    config = DistillConfig(video_teacher=teacher("video"), mask="random", ratio=0.75)
    pupil, clips = student(config), batch(1)
    first, _ = distill.loss(pupil, clips, config, torch.Generator().manual_seed(1))
    first.backward()
    assert all(p.grad is None for p in distill._load(config.video_teacher, "cpu").parameters())
    assert all(p.grad is not None for p in pupil.parameters())
    mask = masked.masking.make("random", pupil.grid, 0.75, 1, torch.Generator().manual_seed(1))
    slot, place = divmod(int(mask[0].nonzero()[0]), 16)
    y, x = 8 * (place // 4), 8 * (place % 4)
    clips.frames[:, 2 * slot : 2 * slot + 2, :, y : y + 8, x : x + 8] ^= 255  # hidden from the student
    assert not torch.equal(distill.loss(pupil, clips, config, torch.Generator().manual_seed(1))[0], first)


@pytest.mark.parametrize(("spec", "options"), [
    (replace(SPEC, size=64), {}),  # a finer grid: averaged
    (SPEC, {"patch": 16}),  # a coarser one: repeated
    (replace(SPEC, frames=2), {}),  # in two pieces
])  # fmt: skip
def test_a_teacher_on_another_grid(spec: ClipSpec, options: dict[str, int], teacher: Callable[..., str],
                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path = teacher("other", spec, **options)
    config = DistillConfig(video_teacher=path)
    pupil, clips = student(config), batch()
    found = distill.features(path, clips.frames, pupil)
    assert found.shape == (3, 32, 32)
    distill.prepare(pupil, iter([]), config, torch.Generator())
    said = capsys.readouterr().err
    tokens = load_model(path)(clips.frames[:, :2] if spec.frames == 2 else _resized(clips.frames, spec.size))["tokens"]
    if spec.size == 64:
        assert "its 2x8x8 tokens of a clip are averaged or repeated to the student's 2x4x4" in said
        wanted = tokens.view(3, 2, 4, 2, 4, 2, -1).mean(dim=(3, 5)).flatten(1, 3)
    elif options:
        assert "its 2x2x2 tokens" in said
        wanted = tokens.view(3, 2, 2, 2, -1).repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1, 3)
    else:
        assert said == ""
        found, wanted = found[:, :16], tokens
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _resized(frames: torch.Tensor, size: int) -> torch.Tensor:
    if frames.shape[-1] == size:
        return frames
    return torch.stack([torch.nn.functional.interpolate(clip.float(), (size, size), mode="bilinear") for clip in frames])


def test_a_run_records_its_teacher_drops_it_and_goes_on_with_no_other(
    teacher: Callable[..., str], motion_folder: Path, tmp_path: Path
) -> None:
    path = teacher("video", width=24)
    settings = {
        "objective": "distill", "distill.video_teacher": path, "distill.decoder_mask": "running_cell",
        "model.name": "videomae_tiny", "model.options": SMALL, "clip.size": 32, "clip.frames": 4, "clip.stride_frames": 2,
        "loader.batch_size": 4, "loader.workers": 0, "optim.steps": 3, "run.validations": 0, "run.device": "cpu",
        "run.report": False,
    }  # fmt: skip
    run = train(pretraining([str(motion_folder)], str(tmp_path / "run"), settings))
    known = {path: fingerprint(load_model(path))}
    assert json.loads((run / "environment.json").read_text())["objective"] == {"teachers": known}
    assert json.loads((run / "model" / "config.json").read_text())["trained"]["teachers"] == known
    model = load_model(run)
    pupil = student(DistillConfig(video_teacher=path))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in pupil.state_dict().items()}
    transfer(model, models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL))
    teacher("video", width=24, depth=1)  # another one in its place
    distill._loaded.cache_clear()
    with pytest.raises(ConfigError, match="what this run learns from changed since it began"):
        train(pretraining([str(motion_folder)], str(tmp_path / "run"), settings))


def test_what_cannot_teach_is_said(teacher: Callable[..., str], tmp_path: Path) -> None:
    def refused(config: DistillConfig) -> None:
        distill.loss(student(config), batch(), config, torch.Generator())

    with pytest.raises(ConfigError, match="distill has no teacher: give a model folder as distill.video_teacher"):
        refused(DistillConfig())
    with pytest.raises(ConfigError, match="sees 8 frames, which do not divide the 4 of a clip"):
        refused(DistillConfig(video_teacher=teacher("long", replace(SPEC, frames=8))))
    with pytest.raises(ConfigError, match="clip.background 'subtract', the clips are cut with 'keep'"):
        refused(DistillConfig(image_teacher=teacher("ground", replace(SPEC, background="subtract"))))
    conv = models.build("single_frame", replace(SPEC, frames=1), width=8, stages=2)
    with pytest.raises(ConfigError, match="is a single_frame, whose tokens lie on no grid"):
        refused(DistillConfig(image_teacher=str(save(conv, tmp_path / "conv"))))
    with pytest.raises(ConfigError, match="has no decoder for the features of the video teacher"):
        config = DistillConfig(video_teacher=teacher("some"))
        distill.loss(models.build("videomae_tiny", SPEC, **SMALL), batch(), config, torch.Generator())
    with pytest.raises(ConfigError, match=r"distill.video_weight is 0: it must be above 0"):
        DistillConfig(video_weight=0)
    with pytest.raises(ConfigError, match=r"distill.ratio is 1: it must lie between 0 and 1"):
        DistillConfig(ratio=1)
