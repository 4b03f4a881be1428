"""What is written can be read by others, and a file appears whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.errors import VideoError
from tubelet.video.decode import decode, probe
from tubelet.video.write import write_gif, write_video


def clip(frames: int = 12, height: int = 48, width: int = 64) -> torch.Tensor:
    """uint8 (T,3,H,W): a smooth gradient that moves, with a bright square."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = torch.stack([torch.stack([(x + 4 * t) % 200, (y * 2 + t) % 200, (x + y) // 2]) for t in range(frames)])
    out[:, :, 10:20, 10:20] = 250
    return out.to(torch.uint8)


def test_a_video_comes_back_as_it_went_in(tmp_path: Path) -> None:
    frames = clip()
    write_video(tmp_path / "v.mp4", frames, fps=29.97)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, str(stream.average_rate)) == (
            "h264",
            "yuv420p",
            "30000/1001",
        )
    assert read.shape == (12, 48, 64, 3)
    assert np.abs(read.transpose(0, 3, 1, 2).astype(int) - frames.numpy()).mean() < 4
    assert probe(tmp_path / "v.mp4").fps == pytest.approx(30000 / 1001)


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip())
    write_video(tmp_path / "b.mp4", clip().numpy())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_memory_that_nobody_has_written_changes_no_file(tmp_path: Path) -> None:
    """glibc fills new memory with what the variable says."""
    torch.save(clip(), tmp_path / "clip.pt")
    code = "import sys, torch; from tubelet.video.write import write_video; write_video(sys.argv[2], torch.load(sys.argv[1]))"
    for value in ("17", "85"):
        command = [sys.executable, "-c", code, str(tmp_path / "clip.pt"), str(tmp_path / f"{value}.mp4")]
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": value})
    assert (tmp_path / "17.mp4").read_bytes() == (tmp_path / "85.mp4").read_bytes()


def test_key_frames_codecs_and_containers(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mkv", clip(30), gop_frames=1)
    with av.open(str(tmp_path / "v.mkv")) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    write_video(tmp_path / "v.webm", clip(5), codec="libvpx-vp9")
    assert probe(tmp_path / "v.webm").codec == "vp9"
    write_video(tmp_path / "odd.mp4", clip(5, 37, 51), pixel_format="yuv444p", crf=0)
    assert (decode(tmp_path / "odd.mp4").frames.int() - clip(5, 37, 51).int()).abs().max() <= 3


def test_a_gif_is_read_by_pillow_with_the_right_times(tmp_path: Path) -> None:
    frames = clip(7)
    write_gif(tmp_path / "v.gif", frames, fps=12)
    with Image.open(tmp_path / "v.gif") as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"], image.size) == (7, 0, 80, (64, 48))
        for number in range(7):
            image.seek(number)
            shown = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)
            assert np.abs(shown - frames[number].numpy()).mean() < 8, number
    write_gif(tmp_path / "one.gif", frames[:1])
    with Image.open(tmp_path / "one.gif") as image:
        assert image.n_frames == 1


@pytest.mark.parametrize("write", [write_video, write_gif])
def test_wrong_frames_are_named(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for wrong in (clip().float(), clip()[0], clip()[:, :1], clip()[:0]):
        with pytest.raises(VideoError, match=r"got frames .* wanted uint8 \(T, 3, H, W\)"):
            write(tmp_path / "v.mp4", wrong)
    with pytest.raises(VideoError, match="fps is 0: it must be above 0"):
        write(tmp_path / "v.mp4", clip(), fps=0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="even height and width, got 37x51"):
        write_video(tmp_path / "v.mp4", clip(3, 37, 51))
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "no" / "v.mp4", clip(3))
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "v.unknown", clip(3))
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "v.mp4", clip(3), codec="no_such_codec")
    assert list(tmp_path.iterdir()) == []
    write_video(tmp_path / "v.mp4", clip(3))
    before = (tmp_path / "v.mp4").read_bytes()
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "v.mp4", clip(3), pixel_format="no_such_format")
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    import os

    (tmp_path / f".v.{os.getpid()}.tmp.mp4").symlink_to("/dev/full")
    with pytest.raises(VideoError, match=r"v\.mp4: cannot be written \(No space left on device\)"):
        write_video(tmp_path / "v.mp4", clip(40, 256, 256), crf=0)
    assert list(tmp_path.iterdir()) == []
