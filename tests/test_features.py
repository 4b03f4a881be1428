"""Features: one vector per video or clip, streamed into a Parquet file that says where they come from."""

import gc
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelet import datasets, features, models
from tubelet.errors import ConfigError, VideoError
from tubelet.evaluate.multiview import View
from tubelet.features import Embedded
from tubelet.loading import view_bytes
from tubelet.records import ClipSpec, Example
from tubelet.video._index import read_index
from tubelet.video.stream import Stream, Windows
from tubelet.video.write import write_video
from tubelet.views import load_views

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return models.build("videomae_tiny", SPEC, depth=2, patch=8).eval()


@pytest.fixture(scope="module")
def examples(motion_folder) -> tuple[Example, ...]:
    return tuple(e for e in datasets.read(motion_folder).examples if e.split == "val")


def test_a_feature_is_the_mean_over_tokens_and_a_videos_the_mean_over_clips(model, examples):
    per_clip = list(features.embed(model, examples, "clip", clips=3))
    per_video = list(features.embed(model, examples, "video", clips=3))
    assert len(per_clip) == 3 * len(examples) and [f.id for f in per_video] == [e.id for e in examples]
    for index, example in enumerate(examples):
        frames, seconds = load_views(example, SPEC, 3)
        with torch.no_grad():
            expected = model(frames)["tokens"].mean(dim=1)  # (3,D)
        for clip, row in enumerate(per_clip[3 * index : 3 * index + 3]):
            torch.testing.assert_close(row.vector, expected[clip])
            assert (row.start_seconds, row.end_seconds) == (float(seconds[clip, 0]), float(seconds[clip, -1]))
            assert row.vector.dtype == torch.float32 and row.vector.shape == (192,)
        torch.testing.assert_close(per_video[index].vector, expected.mean(dim=0))
        assert per_video[index].end_seconds == float(seconds.max())
        torch.testing.assert_close(features.embed_video(model, example.path, clips=3), expected.mean(dim=0))


def test_a_fingerprint_changes_with_any_weight():
    torch.manual_seed(0)
    model = models.build("videomae_tiny", SPEC, depth=1, patch=8)
    before = features.fingerprint(model)
    assert features.fingerprint(model) == before
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1e-6
    assert features.fingerprint(model) != before


def test_unreadable_videos_are_left_out_and_named(model, examples, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
    bad, missing = Example(str(tmp_path / "bad.mp4"), "bad"), []
    rows = list(features.embed(model, [bad, examples[0]], on_missing=lambda *pair: missing.append(pair)))
    assert [row.id for row in rows] == [examples[0].id] and [id for id, _ in missing] == ["bad"]


@pytest.mark.parametrize("per", ["video", "clip"])
def test_a_long_video_that_is_damaged_in_the_middle_gives_nothing(model, examples, damaged, monkeypatch, per):
    """Not even the views whose portions were whole: a mean over them would pass for that of the video."""
    monkeypatch.setattr("tubelet.views.PORTION_BYTES", 1)
    missing: list[tuple[str, str]] = []
    several = [examples[0], damaged, examples[1]]
    rows = list(features.embed(model, several, per, 12, 2, on_missing=lambda *pair: missing.append(pair)))
    plain = list(features.embed(model, examples[:2], per, 12, 2))
    assert [row.id for row in rows] == [row.id for row in plain] and [id for id, _ in missing] == ["damaged"]
    for ours, theirs in zip(rows, plain, strict=True):
        torch.testing.assert_close(ours.vector, theirs.vector)
    with pytest.raises(VideoError, match="damaged"):
        features.embed_video(model, damaged.path, 12)


def test_what_cannot_be_done_is_said(model, examples):
    with pytest.raises(ConfigError, match="must be 'video', 'clip' or 'minute'"):
        list(features.embed(model, examples, "frame"))  # type: ignore[arg-type]


def test_minutes_are_pooled_from_unit_vectors_of_windows(model, tmp_path):
    """Two and a half minutes at one frame a second: windows of 8 frames every 4, the mean of those whose middle is in a minute."""
    path = tmp_path / "v.mp4"
    write_video(path, torch.randint(256, (150, 3, 32, 32), dtype=torch.uint8), fps=1)
    windows = list(Stream(path, SPEC))
    with torch.no_grad():
        vectors = torch.cat([model(clip.frames[None])["embedding"] for _, clip in windows]).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    middles = np.array([(window.start_seconds + window.end_seconds) / 2 for window, _ in windows])
    found = list(features.embed(model, [Example(str(path), "v")], "minute"))
    assert [(row.start_seconds, row.end_seconds) for row in found] == [(0, 63), (60, 123), (120, 149)]
    for minute, row in enumerate(found):
        mean = vectors[(middles >= 60 * minute) & (middles < 60 * minute + 60)].mean(axis=0)
        np.testing.assert_allclose(row.vector, mean / np.linalg.norm(mean), atol=1e-5)
    [(start, end, whole)] = features.pool([0, 4], [8, 12], torch.eye(2))
    assert (start, end) == (0, 12) and whole.tolist() == pytest.approx([0.5**0.5, 0.5**0.5])


def test_windows_of_several_videos_keep_their_order_and_name_what_is_broken(model, examples, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = Example(str(tmp_path / "broken.mp4"), "broken")
    by_workers = {}
    for workers in (1, 3):
        seen: dict[str, list[int]] = {}
        ended = {}
        for event in features.embed_windows(model, [*examples, broken], Windows(step_seconds=0.1), 3, workers):
            if isinstance(event, features.Finished):
                ended[event.example.id] = event.problem
            else:
                assert event.example.id not in ended and float(event.vector.norm()) == pytest.approx(1, abs=1e-5)
                seen.setdefault(event.example.id, []).append(event.place)
                by_workers.setdefault((event.example.id, event.place), []).append(event.vector)
        assert "broken.mp4" in ended.pop("broken") and set(ended.values()) == {""}
        assert all(places == list(range(len(places))) for places in seen.values()) and set(seen) == {e.id for e in examples}
    for ours, theirs in by_workers.values():
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    rest = [
        event for event in features.embed_windows(model, examples[:1], skip=lambda _: 1) if isinstance(event, features.Embedded)
    ]
    assert len(rest) == rest[0].count == len(Stream(examples[0].path, SPEC)) - 1


def test_a_reader_of_windows_may_leave(model, examples):
    events = features.embed_windows(model, list(examples) * 5, Windows(step_seconds=0.05), batch_size=1, workers=2)
    next(events)
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tubelet-windows"]


def test_an_hour_is_held_as_little_as_a_minute(tmp_path, monkeypatch):
    """While windows pass through the model: how many tensors, and of windows and views, there are at the end more than early on.

    What may grow is the index, by its bytes a frame. Portions are made small, for they hold up to a bound.
    """
    write_video(tmp_path / "minute.mp4", torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8), fps=1, gop_frames=60)
    path = repeated(tmp_path / "minute.mp4", tmp_path / "hour.mp4", 60)
    peaks = []
    for video, count in ((tmp_path / "minute.mp4", 60), (path, 3600)):
        tracemalloc.start()
        assert len(read_index(str(video)).seconds) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    each = (peaks[1] - peaks[0]) / 3540
    assert each < 200, f"{each:.0f} bytes a frame while the index is made"

    network = models.build("videomae_tiny", SPEC, depth=1, width=24, heads=1, patch=16).eval()
    live: list[int] = []

    def look(*_: object) -> None:
        live.append(sum(type(one) in (torch.Tensor, View, Embedded) for one in gc.get_objects()))

    network.register_forward_hook(look)
    monkeypatch.setattr("tubelet.views.PORTION_BYTES", 32 * view_bytes(SPEC))
    monkeypatch.setattr("tubelet.features.AHEAD_BYTES", 0)
    for per, expected in (("clip", 600), ("minute", 60)):
        live.clear()
        count = sum(1 for _ in features.embed(network, [Example(str(path), "hour")], per, 600, 32, workers=0))
        early, late = max(live[: len(live) // 4]), max(live[-len(live) // 4 :])
        assert count == expected and len(live) >= 600 // 32
        assert late < early + 60 + 2 * count * (per == "minute"), f"per {per}: {early} things held early, {late} late"


def repeated(path: Path, long: Path, times: int) -> Path:
    """The packets of a video so many times one after another."""
    with av.open(str(long), "w") as made:
        for turn in range(times):
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                if not turn:
                    copy = made.add_stream_from_template(stream)
                for packet in (packet for packet in container.demux(stream) if packet.size):
                    shift = turn * round(stream.duration)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    made.mux(packet)
    return long
