"""A prediction is the average of the views' probabilities, with the times that were looked at."""

import json
from dataclasses import replace

import pytest
import torch

import tubelet
from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError, VideoError
from tubelet.predict import predict
from tubelet.records import ClipSpec
from tubelet.views import load_views
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
CLASSES = tuple("abcdefg")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    made = models.build("videomae_tiny", SPEC, CLASSES, depth=2, patch=8)
    torch.nn.init.normal_(made.head.weight)
    return made.eval()


@pytest.fixture(scope="module")
def video(motion_folder) -> str:
    return str(sorted(motion_folder.glob("val/*/*.mp4"))[0])


def test_the_answer_is_the_mean_of_the_views_in_order_with_their_times(model, video):
    answer = predict(model, video, clips=2, crops=3, top=4)
    frames, seconds = load_views(video, SPEC, 2, 3)
    with torch.no_grad():
        expected = model(frames)["logits"].softmax(dim=1).mean(dim=0)
    values, indices = expected.topk(4)
    assert [name for name, _ in answer.top] == [CLASSES[i] for i in indices]
    assert [p for _, p in answer.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert [list(clip) for clip in answer.seconds] == [pytest.approx(row, abs=1e-3) for row in seconds[::3].tolist()]
    assert answer.seconds_taken > 0 and answer.warnings == ()
    assert json.loads(json.dumps(answer.to_dict()))["top"][0] == {
        "class": answer.top[0][0],
        "probability": answer.top[0][1],
    }


def test_there_are_never_more_answers_than_classes(model, video):
    assert len(predict(model, video, top=50).top) == len(CLASSES)
    assert sum(p for _, p in predict(model, video, top=50).top) == pytest.approx(1)


def test_a_video_shorter_than_the_clip_is_answered_with_a_warning(video):
    torch.manual_seed(0)
    long = models.build("videomae_tiny", ClipSpec(frames=16, stride_frames=4, size=32), CLASSES, depth=1, patch=8).eval()
    assert predict(long, video, clips=1, crops=1).warnings == (
        "the video has 16 frames, the clip spans 64: the last frame was repeated",
    )


def test_the_public_way_gives_the_same_answer(model, video, tmp_path):
    save(model, tmp_path / "model")
    loaded = tubelet.load(tmp_path / "model")
    assert loaded.predict(video, clips=2, crops=1).top == predict(model, video, clips=2, crops=1).top
    assert loaded.embed(video).shape == (192,)


def test_what_cannot_be_answered_is_said(model, video, tmp_path):
    with pytest.raises(CheckpointError, match="never taught classes"):
        predict(models.build("videomae_tiny", SPEC, depth=1, patch=8), video)
    with pytest.raises(ConfigError, match="ask for 1 class or more"):
        predict(model, video, top=0)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        predict(model, tmp_path / "text.mp4")
    broken = models.build("videomae_tiny", SPEC, CLASSES, depth=1, patch=8)
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(CheckpointError, match="answers NaN"):
        predict(broken, video)


def test_one_crop_is_the_default_where_the_whole_frame_is_squeezed(video, tmp_path):
    assert predict(models.build("videomae_tiny", SPEC, CLASSES, depth=1, patch=8), video, clips=1).crops == 3
    squeezed = models.build("videomae_tiny", replace(SPEC, fit="stretch"), CLASSES, depth=1, patch=8)
    assert predict(squeezed, video, clips=1).crops == 1
    assert tubelet.load(save(squeezed, tmp_path / "model")).predict(video, clips=1).crops == 1
    with pytest.raises(ConfigError, match="stretch"):
        predict(squeezed, video, clips=1, crops=3)


def test_a_label_a_frame(video, tmp_path, capsys):
    """The mean over crops of what the model says of each frame, with its time; on the command line and as JSON too."""
    torch.manual_seed(2)
    each = models.build("cnn_lstm_resnet18_per_frame", SPEC, CLASSES, channels=4, hidden=12).eval()
    torch.nn.init.normal_(each.head.weight)
    answer = predict(each, video, clips=2, crops=3, frames=True)
    shown, _ = load_views(video, SPEC, 2, 3)
    with torch.no_grad():
        expected = each(shown)["frame_logits"].softmax(dim=2).unflatten(0, (2, 3)).mean(dim=1)  # (clips,T,K)
    values, indices = expected.max(dim=2)
    assert [[name for _, name, _ in clip] for clip in answer.frames] == [[CLASSES[i] for i in row] for row in indices.tolist()]
    assert [[p for *_, p in clip] for clip in answer.frames] == [pytest.approx(row, abs=1e-5) for row in values.tolist()]
    assert [[second for second, *_ in clip] for clip in answer.frames] == [list(clip) for clip in answer.seconds]
    assert predict(each, video, clips=2).frames == () and "frames" not in predict(each, video, clips=2).to_dict()

    save(each, tmp_path / "each")
    words = ["predict", str(tmp_path / "each"), video, "--clips", "2", "--frames"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)[0]["frames"]
    assert [len(clip) for clip in said] == [4, 4]
    assert said[1][3] == {"second": answer.frames[1][3][0], "class": answer.frames[1][3][1],
                          "probability": pytest.approx(answer.frames[1][3][2], abs=1e-5)}  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"{second:.2f} s  {chance:6.1%}  {name}\n" in printed for clip in answer.frames for second, name, chance in clip)
    assert main([*words, "--engine", "local"]) == 2
    assert "--frames is not kept by --engine" in capsys.readouterr().err


def test_windows_of_frames_have_one_label(video):
    spec = replace(SPEC, frames=8, stride_frames=1)
    windows = models.build("cnn3d_lstm_resnet18", spec, CLASSES, channels=4, hidden=12, window=4, many_to_many=True).eval()
    answer = predict(windows, video, clips=1, crops=1, frames=True)
    assert [second for second, *_ in answer.frames[0]] == [answer.seconds[0][3], answer.seconds[0][7]]


def test_a_model_without_labels_of_frames_says_so(model, video):
    with pytest.raises(ConfigError, match="videomae_tiny gives one label a clip, none a frame: .* cnn_lstm_resnet18_per_frame"):
        predict(model, video, clips=1, frames=True)
