"""The same clips whatever the workers, ranks, cache or restarts; evaluation views; nothing swapped for anything
else."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet._frame_cache import FrameCache, decoded_bytes, estimated_bytes, free_bytes
from tubelet.ahead import AHEAD_BYTES, in_order
from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.loading import SHARED_BYTES, LoaderConfig, TrainLoader, _Room
from tubelet.records import Batch, Clip, ClipSpec, Dataset, Example
from tubelet.seeds import derive, generator_for
from tubelet.video import _index
from tubelet.video.augment import AugmentConfig, cached_short_side, draw_box, vary, view_boxes
from tubelet.video.decode import decode, decode_cuts, frame_times, probe
from tubelet.video.guard import end_idle
from tubelet.video.resize import cut, resize
from tubelet.video.sample import train_indices
from tubelet.video.write import write_video
from tubelet.views import PORTION_BYTES, each_view, load_views, view_batches

SPEC = ClipSpec(frames=4, stride_frames=2, size=16)
EVERYTHING = AugmentConfig(flip=True, color_jitter=0.4, rand_augment="m7-n4-mstd0.5", erase=0.5)
SIZES = ((40, 32, 48), (25, 48, 32), (12, 64, 40), (9, 24, 24), (6, 32, 32))  # frames, height, width


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five videos of other lengths and sizes, the last shorter than the window of 8 frames, and three bad files."""
    folder = tmp_path_factory.mktemp("videos")
    examples = []
    for i, (frames, height, width) in enumerate(SIZES):
        generator = torch.Generator().manual_seed(i)
        coarse = torch.rand(frames, 3, 4, 4, generator=generator) * 255
        pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").to(torch.uint8)
        write_video(folder / f"{i}.mp4", pixels, fps=10)
        examples.append(Example(str(folder / f"{i}.mp4"), f"{i}", label="ab"[i % 2]))
    return Dataset(tuple(examples), ("a", "b"), may_flip=True)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    """A text file with a video's name, an empty file and one that does not exist."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    return tuple(Example(str(folder / f"{name}.mp4"), name, label="a") for name in ("text", "empty", "missing"))


def loader(dataset: Dataset, config: LoaderConfig | None = None, seed: int = 5, **more) -> TrainLoader:
    augment = more.pop("augment", EVERYTHING)
    return TrainLoader(dataset, more.pop("spec", SPEC), augment, config or LoaderConfig(batch_size=4), seed, **more)


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.frames, other.frames) and one.frames.stride() == other.frames.stride()
        assert torch.equal(one.seconds, other.seconds)
        assert (one.ids, one.skipped, one.padded) == (other.ids, other.skipped, other.padded)
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(("cache", "workers"), [("off", 2), ("off", 5), ("ram", 3), ("auto", None)])
def test_workers_change_nothing(videos, bad, repeats, cache, workers):
    dataset = Dataset(videos.examples + bad, videos.classes, may_flip=True)
    plain = loader(dataset, LoaderConfig(4, repeats, workers=0, cache="ram" if cache == "auto" else cache))
    other = loader(dataset, LoaderConfig(4, repeats, workers=workers, cache=cache))
    assert_equal(list(other.batches(0, 5)), list(plain.batches(0, 5)))


def open_files() -> Counter[str]:
    """What is open here, by how often. What earlier tests left is closed first, lest that happen in between."""
    gc.collect()
    places = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return Counter(os.readlink(place) for place in places if os.path.lexists(place))


@pytest.mark.parametrize("repeats", [1, 2])
def test_memory_that_workers_write_into_changes_nothing(videos, bad, repeats, monkeypatch):
    """Frames that workers write into the batch's own memory are those that they send; no file stays open."""
    dataset = Dataset(videos.examples + bad, videos.classes, may_flip=True)
    sent = list(loader(dataset, LoaderConfig(4, repeats, workers=2, cache="off")).batches(0, 5))
    monkeypatch.setattr("tubelet.loading.SHARED_BYTES", 0)
    end_idle()
    before = open_files()
    written = loader(dataset, LoaderConfig(4, repeats, workers=2, cache="off"))
    assert_equal(list(written.batches(0, 5)), sent)
    stopped = written.batches(0, 1000)
    first = next(stopped)
    stopped.close()
    end_idle()
    assert open_files() <= before
    assert_equal([first], sent[:1])


@pytest.mark.parametrize("shared", [True, False])
def test_an_index_is_made_once_for_all_workers(videos, shared, monkeypatch, tmp_path):
    """However many workers read a file in however many epochs, and after they ended."""
    monkeypatch.setattr("tubelet.loading.SHARED_BYTES", 0 if shared else 1 << 40)
    paths = [str(shutil.copy(example.path, tmp_path)) for example in videos.examples]
    examples = tuple(replace(example, path=path) for example, path in zip(videos.examples, paths, strict=True))
    made, make = tmp_path / "made", _index._make_index

    def counted(path: str, certain: bool):
        with made.open("a") as file:  # in whatever process
            file.write(path + "\n")
        return make(path, certain)

    monkeypatch.setattr(_index, "_make_index", counted)
    end_idle()
    data = loader(replace(videos, examples=examples), LoaderConfig(1, workers=3, cache="off"))
    for epoch in range(4):
        list(data.batches(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch))
        if epoch == 2:
            end_idle()
    assert Counter(made.read_text().splitlines()) == Counter(paths)


def test_without_a_file_more_to_open_a_batch_is_memory(videos, monkeypatch):
    """The limit of open files is real, and reached."""
    monkeypatch.setattr("tubelet.loading.SHARED_BYTES", 0)
    maker = loader(videos, LoaderConfig(4, workers=2, cache="off"))._maker
    gc.collect()  # what earlier tests left is closed now, and not when every place is taken
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 5, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        room = _Room(maker, pinned=False)
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert taken and not room.path and room.full().shape == maker.room_shape
    room = _Room(maker, pinned=False)
    room.close()
    assert room.path


def test_pinned_memory_is_filled_with_what_workers_write(videos, bad, monkeypatch):
    """Where there is no GPU, memory that is not pinned stands in for it."""
    dataset = Dataset(videos.examples + bad, videos.classes, may_flip=True)
    sent = list(loader(dataset, LoaderConfig(4, 2, workers=2, cache="off")).batches(0, 5))
    monkeypatch.setattr("tubelet.loading.SHARED_BYTES", 0)
    if not torch.cuda.is_available():
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
    pinned = loader(dataset, LoaderConfig(4, 2, workers=2, cache="off"), pinned=True)
    assert_equal(list(pinned.batches(0, 5)), sent)


def test_a_cache_of_frames_that_need_no_scaling_changes_nothing(videos):
    small = ClipSpec(frames=4, stride_frames=2, size=64)
    off, ram = (loader(videos, LoaderConfig(4, 2, cache=cache), spec=small) for cache in ("off", "ram"))
    assert_equal(list(ram.batches(0, 5)), list(off.batches(0, 5)))


@pytest.mark.parametrize("crop", ["random_resized", "multi_scale", "center"])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_clip_from_the_file_is_the_drawn_box_of_whole_frames(videos, crop, fit):
    """The same augmentation of whole decoded frames, with the loader's own draws, in the order that the loader makes them."""
    config, spec = AugmentConfig(crop=crop, flip=True, color_jitter=0.2), ClipSpec(frames=4, stride_frames=2, size=16, fit=fit)
    one = Dataset(videos.examples[1:2], ("a", "b"), may_flip=True)
    path = one.examples[0].path
    for step, batch in enumerate(loader(one, LoaderConfig(1, cache="off"), augment=config, spec=spec).batches(0, 4)):
        generator = generator_for(5, "clip", step, "1", 0)
        window, _ = train_indices(25, spec, generator)
        whole = decode(path, window).frames
        square = resize(cut(whole, draw_box(*whole.shape[-2:], config, spec, generator)), (16, 16), spec.interpolation)
        assert torch.equal(batch.frames[0], vary(square, config, spec, generator))


def test_a_step_does_not_depend_on_those_before(videos):
    whole = list(loader(videos).batches(0, 6))
    assert_equal(list(loader(videos).batches(4, 6)), whole[4:])
    one = loader(videos)
    list(one.batches(1, 3))
    assert_equal(list(one.batches(0, 6)), whole)
    assert list(one.batches(3, 3)) == []
    assert not torch.equal(whole[0].frames[0], next(loader(videos, seed=6).batches(0, 1)).frames[0])


def test_stopping_early_is_fine(videos):
    for config in (LoaderConfig(2, workers=2, cache="ram"), LoaderConfig(2, workers=5, cache="off")):
        batches = loader(videos, config).batches(0, 1000)
        next(batches)
        batches.close()


@pytest.mark.parametrize(("batch_size", "repeats", "world"), [(4, 1, 2), (5, 1, 2), (4, 1, 4), (6, 2, 2)])
def test_ranks_share_the_batch_of_one(videos, batch_size, repeats, world):
    config = LoaderConfig(batch_size=batch_size, repeats=repeats)
    whole = list(loader(videos, config).batches(0, 3))
    parts = [list(loader(videos, config, rank=rank, world=world).batches(0, 3)) for rank in range(world)]
    for step in range(3):
        assert torch.equal(whole[step].frames, torch.cat([part[step].frames for part in parts]))
        assert whole[step].ids == [id for part in parts for id in part[step].ids]
        assert max(len(part[step].ids) for part in parts) - min(len(part[step].ids) for part in parts) <= repeats


def test_a_batch_has_a_video_for_every_rank(videos):
    with pytest.raises(ConfigError, match="batch_size is 4, with 2 clips a video .* fewer than one video for each of 3"):
        loader(videos, LoaderConfig(batch_size=4, repeats=2), world=3)


def test_an_epoch_has_so_many_steps(videos):
    assert loader(videos, LoaderConfig(batch_size=4)).steps_per_epoch == 2
    assert loader(videos, LoaderConfig(batch_size=4), world=2).steps_per_epoch == 2
    assert loader(videos, LoaderConfig(batch_size=4, repeats=4)).steps_per_epoch == 5


def test_every_epoch_shows_every_video_once_in_another_order(videos):
    order = [id for batch in loader(videos, LoaderConfig(batch_size=3)).batches(0, 5) for id in batch.ids]
    epochs = [order[i : i + 5] for i in range(0, 15, 5)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs) and len(set(map(tuple, epochs))) > 1


def test_repeats_are_different_clips_of_one_video(videos):
    batch = next(loader(videos, LoaderConfig(batch_size=8, repeats=4)).batches(0, 1))
    assert [batch.ids[i] for i in (0, 4)] == [batch.ids[i + 3] for i in (0, 4)] and batch.ids[0] != batch.ids[4]
    assert len({tuple(clip.flatten().tolist()) for clip in batch.frames}) == 8


def test_repeats_lie_within_two_windows(videos):
    long = Dataset(videos.examples[:1], ("a", "b"), may_flip=True)
    spans = set()
    for batch in loader(long, LoaderConfig(batch_size=6, repeats=6)).batches(0, 20):
        assert float(batch.seconds.max() - batch.seconds.min()) < 2 * SPEC.window_frames / 10
        spans.add(round(float(batch.seconds.min()), 1))
    assert len(spans) > 5, "the neighbourhood never moves"


def squares(frames, crops):
    """What evaluation sees of decoded frames."""
    boxes = view_boxes(*frames.shape[-2:], SPEC, crops)
    return [resize(cut(frames, box), (SPEC.size, SPEC.size), SPEC.interpolation) for box in boxes]


def test_pixels_are_those_of_the_times_that_travel_with_them(videos):
    augment = AugmentConfig(crop="center")
    for cache in ("off", "ram"):
        for batch in loader(videos, LoaderConfig(2, cache=cache), augment=augment).batches(0, 5):
            for frames, seconds, id in zip(batch.frames, batch.seconds, batch.ids, strict=True):
                path = videos.examples[int(id)].path
                places = [int((frame_times(path) - second).abs().argmin()) for second in seconds]
                whole = decode(path, places, short_side=SPEC.size if cache == "ram" else None).frames
                assert torch.equal(frames, squares(whole, 1)[0])
                assert sorted(places) == places and places[-1] - places[0] < SPEC.window_frames


def test_labels_follow_the_order_of_the_classes(videos):
    dataset = Dataset(videos.examples, ("b", "a"), may_flip=True)
    for batch in loader(dataset).batches(0, 3):
        assert batch.labels.tolist() == [1 - int(id) % 2 for id in batch.ids]
    unlabelled = Dataset((*videos.examples[:4], Example(videos.examples[4].path, "4")), ("a", "b"), may_flip=True)
    assert next(loader(unlabelled).batches(0, 1)).labels is None


def test_unreadable_videos_are_named_never_replaced(videos, bad):
    dataset = Dataset(videos.examples + bad, videos.classes, may_flip=True)
    batches = list(loader(dataset, LoaderConfig(batch_size=8)).batches(0, 2))
    for batch in batches:
        assert sorted(batch.ids) == list("01234") and len(batch.frames) == len(batch.labels) == 5
        assert sorted(id for id, _ in batch.skipped) == ["empty", "missing", "text"]
        assert all(reason and "\n" not in reason for _, reason in batch.skipped)
    nothing = next(loader(Dataset(bad, ("a", "b"), may_flip=True), LoaderConfig(batch_size=3)).batches(0, 1))
    assert nothing.frames.shape == (0, 4, 3, 16, 16) and nothing.labels.shape == (0,) and len(nothing.skipped) == 3


def test_short_videos_are_counted_or_refused(videos):
    short = Dataset(videos.examples[4:], ("a", "b"), may_flip=True)
    batch = next(loader(short, LoaderConfig(batch_size=2)).batches(0, 1))
    assert batch.padded == 2 and len(batch.frames) == 2
    strict = ClipSpec(frames=4, stride_frames=2, size=16, short="error")
    batch = next(loader(short, LoaderConfig(batch_size=1), spec=strict).batches(0, 1))
    assert batch.ids == [] and batch.skipped[0][0] == "4"


@pytest.mark.parametrize("sampling", ["videomae", "stride", "segments"])
@pytest.mark.parametrize("cache", ["off", "ram"])
def test_a_part_of_a_file_stays_within_its_seconds(videos, sampling, cache):
    part = Example(videos.examples[0].path, "0@1-2", start_seconds=1.0, end_seconds=2.0)
    spec = ClipSpec(frames=4, stride_frames=2, size=16, sampling=sampling)
    for batch in loader(Dataset((part,), may_flip=True), LoaderConfig(6, 3, cache=cache), spec=spec).batches(0, 5):
        assert batch.seconds.min() >= 1 - 1e-6 and batch.seconds.max() < 2 - 1e-6
    _, seconds = load_views(part, spec, clips=3)
    assert seconds.min() >= 1 - 1e-6 and seconds.max() < 2 - 1e-6


def test_a_part_that_holds_no_frame_is_an_error(videos):
    with pytest.raises(VideoError, match=r"no frame lies in the part 50 s to the end; the video lasts 3\.9 s"):
        load_views(Example(videos.examples[0].path, "x", start_seconds=50.0), SPEC)


def test_too_few_frames_name_the_file(videos):
    strict = ClipSpec(frames=4, stride_frames=2, size=16, short="error")
    path = videos.examples[4].path
    with pytest.raises(VideoError, match=r"6 frames and a clip spans 8") as caught:
        load_views(path, strict)
    assert str(caught.value).startswith(f"{path}: ")
    batch = next(loader(Dataset(videos.examples[4:], ("a", "b"), True), LoaderConfig(1), spec=strict).batches(0, 1))
    assert batch.skipped[0][1].startswith(f"{path}: ")


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"clips": 0}, {"crops": 0}, {"workers": -1}])
def test_impossible_views_are_named(videos, settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value}: it must be"):
        list(view_batches(videos.examples, ("a", "b"), SPEC, **settings))
    if name in ("clips", "crops"):
        with pytest.raises(ConfigError, match=f"{name} is 0: it must be 1 or more"):
            load_views(videos.examples[0], SPEC, **settings)


def test_flip_is_refused_where_the_data_says_no(videos):
    dataset = Dataset(videos.examples, videos.classes, may_flip=False)
    with pytest.raises(ConfigError, match=r"augment\.flip is on, but in this data a mirrored clip may show another class"):
        loader(dataset)
    loader(dataset, augment=AugmentConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "repeats": 4}, "repeats must divide batch_size"),
        ({"batch_size": 0}, "repeats must divide"),
        ({"workers": -1}, "workers is -1"),
        ({"cache": "disk"}, "unknown loader.cache 'disk'"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoaderConfig(**settings)


def test_no_video_is_an_error():
    with pytest.raises(DataError, match="no video to train on"):
        loader(Dataset((), may_flip=True))


def test_views_go_clip_by_clip_and_crop_by_crop(videos):
    path = videos.examples[0].path
    frames, seconds = load_views(path, SPEC, clips=2, crops=3)
    assert frames.shape == (6, 4, 3, 16, 16) and frames.dtype == torch.uint8
    assert seconds.shape == (6, 4) and seconds.dtype == torch.float64
    assert torch.equal(seconds[:3], seconds[:1].expand(3, -1)) and seconds[3, 0] > seconds[0, 0]
    for clip in range(2):
        places = [round(float(second) * 10) for second in seconds[3 * clip]]
        wanted = squares(decode(path, places).frames, 3)
        for crop in range(3):
            assert torch.equal(frames[3 * clip + crop], wanted[crop])
    centre, _ = load_views(videos.examples[0], SPEC)
    assert centre.shape == (1, 4, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2, None])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_view_batches_are_the_views_of_all_in_order(videos, bad, workers, batch_size):
    examples = (bad[0], *videos.examples, *bad[1:])
    batches = list(view_batches(examples, ("b",), SPEC, 2, 3, batch_size, workers))
    assert all(len(batch.ids) == batch_size for batch in batches[:-2])
    assert [id for batch in batches for id in batch.ids] == [id for id in "01234" for _ in range(6)]
    wanted = [load_views(example, SPEC, 2, 3) for example in videos.examples]
    assert torch.equal(torch.cat([batch.frames for batch in batches]), torch.cat([frames for frames, _ in wanted]))
    assert torch.equal(torch.cat([batch.seconds for batch in batches]), torch.cat([seconds for _, seconds in wanted]))
    assert [id for batch in batches for id, _ in batch.skipped] == ["text", "empty", "missing"]
    labels = [label for batch in batches for label in batch.labels.tolist()]
    assert labels == [label for example in videos.examples for label in [-1 if example.label == "a" else 0] * 6]
    assert sum(batch.padded for batch in batches) == 6


def test_view_batches_without_classes_or_examples(videos):
    assert next(view_batches(videos.examples, (), SPEC)).labels is None
    assert list(view_batches((), (), SPEC)) == []


@pytest.mark.parametrize("background", ["keep", "subtract"])
@pytest.mark.parametrize("clips_together", [1, 3])
def test_portions_change_nothing(videos, bad, monkeypatch, background, clips_together):
    spec = ClipSpec(frames=4, stride_frames=2, size=16, background=background)
    examples = (*videos.examples, bad[0])
    whole = list(view_batches(examples, ("a",), spec, 10, 2, 7, 0))
    monkeypatch.setattr("tubelet.views.PORTION_BYTES", clips_together * 2 * 4 * 16 * 16 * 3)
    for workers in (0, 3):
        assert_equal(list(view_batches(examples, ("a",), spec, 10, 2, 7, workers)), whole)
    views = [view.frames for example in videos.examples for view in each_view(example, spec, 10, 2)]
    assert torch.equal(torch.stack(views), torch.cat([batch.frames for batch in whole]))


@pytest.mark.parametrize("workers", [0, 3])
def test_damage_that_a_later_portion_meets_is_named_once_after_the_views_before_it(videos, damaged, monkeypatch, workers):
    monkeypatch.setattr("tubelet.views.PORTION_BYTES", 1)
    good = videos.examples[:2]
    for batch_size in (4, 100):
        batches = list(view_batches((good[0], damaged, good[1]), (), SPEC, 12, 1, batch_size, workers))
        assert [id for batch in batches for id, _ in batch.skipped] == ["damaged"]
        (reason,) = (reason for batch in batches for _, reason in batch.skipped)
        assert reason.startswith(f"{damaged.path}: damaged")
        named = next(i for i, batch in enumerate(batches) if batch.skipped)
        given = [i for i, batch in enumerate(batches) if "damaged" in batch.ids]
        assert all(i < named for i in given) and bool(given) == (batch_size == 4)
        ids = [id for batch in batches for id in batch.ids if id != "damaged"]
        assert ids == [good[0].id] * 12 + [good[1].id] * 12


PEAK = """
import sys
from pathlib import Path
from tubelet.views import each_view, view_batches
from tubelet.records import ClipSpec, Example
spec, windows, count = ClipSpec(frames=16, stride_frames=2, size=112), int(sys.argv[2]), 0
for batch in view_batches([Example(sys.argv[1], "x")], (), spec, windows, workers=0):
    count += len(batch.ids)
for view in each_view(sys.argv[1], spec, windows):
    count += 1
assert count == 2 * windows
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
print(int(peak) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process's memory from /proc")
def test_memory_does_not_grow_with_the_views_of_a_video(tmp_path):
    """800 views are 482 MB of frames, 50 are 30 MB: held are the portion being used up and the next.

    The peak is not getrusage's, which begins with that of the process that started this one: of all tests so far.
    """
    frames = torch.randint(256, (1, 3, 400, 40, 40), dtype=torch.uint8)[0].transpose(0, 1)
    write_video(tmp_path / "long.mp4", frames, fps=30)
    few, many = (
        int(subprocess.run([sys.executable, "-c", PEAK, tmp_path / "long.mp4", str(n)], capture_output=True, check=True).stdout)
        for n in (50, 800)
    )
    assert many - few < 2 * PORTION_BYTES < 0.5 * 750 * 16 * 112 * 112 * 3


def test_a_cache_keeps_to_its_budget_or_says_so(videos):
    paths = [example.path for example in videos.examples]
    sizes = [decoded_bytes(path, 24) for path in paths]
    assert sizes[3] == 9 * 3 * 24 * 24 and sizes[0] == 40 * 3 * 24 * 36
    cache = FrameCache(24, "bilinear", sizes[0] + sizes[1])
    kept = [cache.get(path) for path in paths[:2]]
    assert cache.used_bytes == sizes[0] + sizes[1] == sum(clip.frames.numel() for clip in kept)
    assert cache.get(paths[0]) is kept[0], "decoded twice"
    with pytest.raises(ConfigError, match=r"GB can be had: use --loader\.cache off"):  # not left out: clips would differ
        cache.get(paths[2])
    assert estimated_bytes(videos.examples, 24) == sum(sizes)
    assert 0 < free_bytes() < 2**50


def test_one_video_is_decoded_once_however_many_threads_ask(videos):
    cache = FrameCache(24, "bilinear", 2**30)
    clips = list(in_order(cache.get, [videos.examples[0].path] * 20, 4))
    assert all(clip is clips[0] for clip in clips) and cache.used_bytes == clips[0].frames.numel()


def test_what_was_decoded_in_threads_is_whole(videos):
    assert [probe(example.path).frame_count for example in videos.examples] == [frames for frames, _, _ in SIZES]


@given(st.lists(st.integers()), st.integers(0, 4))
def test_workers_keep_the_order(items, workers):
    assert list(in_order(lambda item: item * 2, items, workers)) == [item * 2 for item in items]


@pytest.mark.parametrize(("item_bytes", "ahead"), [(AHEAD_BYTES // 10, 10), (AHEAD_BYTES, 3), (2 * AHEAD_BYTES, 3)])
def test_workers_go_ahead_by_bytes_but_none_is_idle(item_bytes, ahead):
    items = iter(range(100))
    made = in_order(lambda item: item, items, 3, item_bytes)
    assert next(made) == 0
    made.close()
    assert next(items) == ahead + 1


def test_auto_decides_by_the_videos_and_not_by_the_machine(videos, monkeypatch):
    short_side = cached_short_side(SPEC, EVERYTHING)
    needed = estimated_bytes(videos.examples, short_side)
    assert loader(videos).cache_bytes == needed > 0
    monkeypatch.setattr("tubelet.loading.AUTO_BYTES", needed - 1)
    assert loader(videos).cache_bytes == 0
    assert loader(videos, LoaderConfig(4, cache="ram")).cache_bytes == needed
    assert loader(videos, LoaderConfig(4, cache="off")).cache_bytes == 0


def test_an_unforeseen_error_names_the_file(videos):
    """A spec that nothing can be made of: what fails is torch, which knows no file."""
    impossible = ClipSpec(frames=4, stride_frames=2, size=16, interpolation="nearest-ish")
    with pytest.raises(ValueError, match="Anti-alias") as caught:
        next(loader(videos, LoaderConfig(2, workers=0, cache="off"), spec=impossible).batches(0, 1))
    assert any(example.path in note for note in caught.value.__notes__ for example in videos.examples)


def test_an_error_in_a_worker_is_raised(videos):
    def fail(item: int) -> int:
        raise ValueError(item)

    with pytest.raises(ValueError, match="3"):
        list(in_order(fail, [3, 4], 2))


def test_seeds_are_the_same_everywhere_and_differ():
    assert derive(0, "order", 1) == 2002067703672271585
    seeds = Counter(derive(seed, kind, n) for seed in range(5) for kind in ("order", "clip") for n in range(100))
    assert max(seeds.values()) == 1 and all(0 <= seed < 2**63 for seed in seeds)


def children() -> list[int]:
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(pid)] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, parent in parents.items() if parent == os.getpid()]


@pytest.mark.parametrize("shared_bytes", [0, SHARED_BYTES])
def test_workers_that_are_killed_change_nothing(videos, shared_bytes, monkeypatch):
    monkeypatch.setattr("tubelet.loading.SHARED_BYTES", shared_bytes)
    end_idle()
    others = set(children())  # not ours to kill: what starts the processes of other tests, say
    plain, other = (loader(videos, LoaderConfig(4, workers=workers, cache="off")) for workers in (0, 3))
    expected, batches = list(plain.batches(0, 30)), other.batches(0, 30)
    before = next(batches)
    workers = set(children()) - others
    assert workers
    for pid in workers:
        with suppress(ProcessLookupError):  # it may have ended by itself by now
            os.kill(pid, signal.SIGKILL)
    assert_equal([before, *batches], expected)


def explode(path: str, *args: object) -> Clip:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def test_a_video_that_crashes_the_decoder_costs_itself(videos, tmp_path, monkeypatch):
    """As if the decoder had a fault that one file meets: the copies of this process have it too."""
    copies = [shutil.copy(example.path, tmp_path) for example in videos.examples]
    videos = replace(videos, examples=tuple(replace(e, path=path) for e, path in zip(videos.examples, copies, strict=True)))
    path = copies[1]
    sound = decode_cuts
    monkeypatch.setattr("tubelet.loading.decode_cuts", lambda p, *a, **k: explode(p) if p == path else sound(p, *a, **k))
    end_idle()
    batches = list(loader(videos, LoaderConfig(4, workers=2, cache="off")).batches(0, 6))
    end_idle()
    skipped = {pair for batch in batches for pair in batch.skipped}
    assert [id for id, _ in skipped] == ["1"] and "reading it ended 2 processes (SIGSEGV)" in skipped.pop()[1]
    assert sum(len(batch.ids) for batch in batches) == 24 - sum(len(batch.skipped) for batch in batches)


def test_approximate_decoding_gives_every_frame_with_other_pixels(shared):
    path = str(sorted((shared / "data" / "fights" / "fight").glob("*.mp4"))[4])
    dataset, spec = Dataset((Example(path, "x"),)), ClipSpec(frames=16, size=64)
    exact, fast = (
        list(loader(dataset, LoaderConfig(4, 4, 0, "off", approximate), augment=AugmentConfig(), spec=spec).batches(0, 3))
        for approximate in (False, True)
    )
    for one, other in zip(exact, fast, strict=True):
        assert torch.equal(one.seconds, other.seconds) and one.frames.shape == other.frames.shape
        difference = (one.frames.float() - other.frames.float()).abs()
        assert 0 < difference.mean() < 6
        assert difference.mean(dim=(2, 3, 4)).max() < 15, "a frame that is not there"


def test_real_clips_of_odd_sizes_and_rates(shared):
    folder = shared / "data" / "fights" / "fight"
    examples = tuple(Example(str(path), path.name) for path in sorted(Path(folder).glob("*.mp4"))[:6])
    spec = ClipSpec(frames=8, stride_frames=2, size=32)
    results = []
    for cache, workers in (("off", 0), ("off", 2)):
        results.append(
            list(
                loader(Dataset(examples, may_flip=True), LoaderConfig(6, 2, workers=workers, cache=cache), spec=spec).batches(
                    0, 3
                )
            )
        )
    assert_equal(*results)
    assert all(len(batch.ids) == 6 for batch in results[0])
