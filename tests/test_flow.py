"""Flow of a video file: what is written, in pieces or at once, and what happens to mistakes and damage."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tubelet import flow, models
from tubelet.cli import main
from tubelet.errors import CheckpointError, VideoError
from tubelet.models import raft
from tubelet.records import Example
from tubelet.video.decode import decode, probe
from tubelet.video.write import write_video
from tubelet.weights.load import load_model


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 64x48 at 10 a second; everything moves 2 pixels to the right and 1 down a frame."""
    generator = torch.Generator().manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 16, 20, generator=generator), size=(96, 120), mode="bicubic")[0]
    frames = torch.stack([picture[:, 24 - t :, 48 - 2 * t :][:, :48, :64] for t in range(12)])
    path = tmp_path_factory.mktemp("video") / "moving.mp4"
    write_video(path, (frames * 255).clamp(0, 255).byte(), fps=10, crf=4, pixel_format="yuv444p")
    return path


@pytest.fixture
def dis() -> flow.Estimate:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'tubelet[flow]'")
    return flow.estimator()


def still(frames: torch.Tensor, backward: bool) -> torch.Tensor:
    return torch.zeros(len(frames) - 1, 2, *frames.shape[2:])


def test_what_is_written(video: Path, dis: flow.Estimate, tmp_path: Path) -> None:
    found = flow.flow_of_video(video, tmp_path / "a" / "out", dis, "dis")
    out = tmp_path / "a" / "out"
    assert (
        sorted(p.name for p in out.iterdir()) == ["flow.mp4", "flow.npz", "legend.png"]
        and len(list((tmp_path / "a").iterdir())) == 1
    )
    with np.load(out / "flow.npz") as stored:
        assert set(stored) == {"flow_forward", "flow_backward", "seconds", *(field.name for field in fields(found))}
        forward, backward = stored["flow_forward"], stored["flow_backward"]
        assert forward.shape == backward.shape == (11, 2, 48, 64) and forward.dtype == np.float16
        for field, truth in ((forward, (2, 1)), (backward, (-2, -1))):
            error = np.linalg.norm(field[:, :, 8:-8, 8:-8].astype(float) - np.array(truth)[None, :, None, None], axis=1)
            assert error.mean() < 0.2  # the video is compressed
        np.testing.assert_allclose(stored["seconds"], np.arange(12) / 10, atol=1e-6)
        assert str(stored["model"]) == "dis" and int(stored["width"]) == 64
    assert found.mean_pixels == pytest.approx(5**0.5, abs=0.3)
    assert found.brightness_error_forward < 0.4 * found.brightness_error_still
    info = probe(out / "flow.mp4")
    assert (info.frame_count, info.width, info.height, round(info.fps)) == (11, 192, 48, 10)


def test_pieces_change_nothing(video: Path, dis: flow.Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.flow_of_video(video, tmp_path / "whole", dis, "dis")
    monkeypatch.setattr(flow, "PIECE_BYTES", 3 * 64 * 48 * 3)
    flow.flow_of_video(video, tmp_path / "pieces", dis, "dis")
    whole, pieces = (np.load(tmp_path / name / "flow.npz") for name in ("whole", "pieces"))
    for key in ("flow_forward", "flow_backward", "seconds"):
        np.testing.assert_array_equal(whole[key], pieces[key])
    assert torch.equal(*(decode(tmp_path / name / "flow.mp4").frames for name in ("whole", "pieces")))


def test_a_part_scaled_down(video: Path, tmp_path: Path) -> None:
    found = flow.flow_of_video(video, tmp_path / "out", still, "still", 0.25, 0.75, size=24)
    assert (found.frames, found.height, found.width, found.source_width) == (5, 24, 32, 64)
    assert (found.start_seconds, found.end_seconds) == pytest.approx((0.3, 0.7))
    assert found.brightness_error_forward == found.brightness_error_still and found.full_pixels == 1


def test_a_damaged_video_leaves_nothing(damaged: Example, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="damaged.mp4"):
        flow.flow_of_video(damaged.path, tmp_path / "out", still, "still")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.mp4"]


def test_raft_with_weights_of_torchs_or_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = models.build("raft_small", raft.CLIPS["raft_small"]).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    frames = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        wanted = network(frames[None])["flow"][0]
        back = network(frames.flip(0)[None])["flow"][0].flip(0)
    for name in ("weights.pth", "weights.safetensors"):
        estimate = flow.estimator("raft_small", str(tmp_path / name))
        torch.testing.assert_close(estimate(frames, False), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(estimate(frames, True), back, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="another RAFT than raft_large"):
        flow.estimator("raft_large", str(tmp_path / "weights.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="text.pth is not a readable file of weights"):
        flow.estimator("raft_small", str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        flow.estimator("raft_small", str(tmp_path / "list.pth"))


def test_a_raft_within_a_model_never_learns_from_nothing(motion_folder: Path, tmp_path: Path, capsys) -> None:
    network = models.build("raft_small", raft.CLIPS["raft_small"]).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    words = ["finetune", "none", str(motion_folder), "--model", "two_stream_resnet18", "--clip.frames", "3", "--clip.size", "64",
             "--model.options.width", "8", "--optim.steps", "1", "--loader.batch-size", "2", "--loader.repeats", "1",
             "--loader.workers", "0", "--run.report", "false", "--run.device", "cpu", "--run.threads", "1"]  # fmt: skip
    small = ["--model.options.estimator", "raft_small"]
    assert main([*words, *small, "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "the raft_small in two_stream_resnet18 has random weights" in said and "--init-flow FILE" in said
    assert main([*words, "--init-flow", str(tmp_path / "raft.pth"), "--out", str(tmp_path / "a")]) == 2
    assert "two_stream_resnet18 has no RAFT in it" in capsys.readouterr().err
    large = ["--model.options.estimator", "raft_large", "--init-flow", str(tmp_path / "raft.pth")]
    assert main([*words, *large, "--out", str(tmp_path / "a")]) == 2
    assert "another RAFT than raft_large" in capsys.readouterr().err
    assert not (tmp_path / "a" / "config.yaml").exists()

    assert main([*words, *small, "--init-flow", str(tmp_path / "raft.pth"), "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "raft.pth").unlink()  # the model holds the weights itself
    taught = load_model(tmp_path / "a")
    for key, value in network.state_dict().items():
        assert torch.equal(taught.state_dict()[f"raft.{key}"], value), key
    again = ["finetune", str(tmp_path / "a"), *words[2:3], *words[11:], "--out", str(tmp_path / "b")]
    assert main(again) == 0
    assert torch.equal(load_model(tmp_path / "b").raft.feature_encoder.conv.weight, network.feature_encoder.conv.weight)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.mp4"], "nowhere.mp4"),
        (["{video}", "--model", "raft_small"], "give --weights FILE"),
        (["{video}", "--weights", "a.pth"], "dis has no weights"),
        (["{video}", "--model", "raft"], "unknown flow model 'raft': did you mean 'raft_"),
        (["{video}", "--start-seconds", "0.5", "--end-seconds", "0.2"], "asked for seconds 0.5 to 0.2"),
        (["{video}", "--start-seconds", "1.05"], "1 frame between 1.05 and inf s, flow needs two; the video has 12"),
        (["{video}", "--size", "4"], "size is 4"),
        (["{video}", "--full-pixels", "0"], "full_pixels 0"),
        (["{video}", "--out", "{video}"], "is a file: give a folder"),
    ],
)
def test_a_mistake_is_one_line(
    video: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["flow", *(argument.format(video=video) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1 and said in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_it_found(
    video: Path, dis: flow.Estimate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flow", str(video), "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 12 and said["model"] == "dis" and said["brightness_error_forward"] < said["brightness_error_still"]
    assert main(["flow", str(video), "--out", str(tmp_path / "out"), "--end-seconds", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "6 frames of 64x48" in printed and "without flow" in printed and "flow.npz" in printed
