"""Processes that read files: what they give is what the function gives, and what ends one of them costs one file."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tubelet.allocator import keep_freed
from tubelet.errors import ConfigError, VideoError
from tubelet.video import _index, guard
from tubelet.video._index import read_index
from tubelet.video.decode import decode, probe
from tubelet.video.guard import run
from tubelet.video.write import write_video

LONG = {"TUBELET_SECONDS_PER_FILE": "3600"}


@pytest.fixture
def video(tmp_path: Path) -> str:
    write_video(tmp_path / "v.mp4", torch.randint(256, (12, 3, 32, 48), dtype=torch.uint8), fps=10)
    return str(tmp_path / "v.mp4")


def worker() -> int:
    return os.getpid()


def hang() -> None:
    while True:
        pass


def begin_and_hang(mark: str) -> None:
    Path(mark + ".draft").write_text(str(os.getpid()))
    os.replace(mark + ".draft", mark)
    hang()


def told_by(stop: threading.Event, function, *args):
    with guard.ended_by(stop):
        return function(*args)


def endless(done: int) -> Iterator[int]:
    while True:
        yield os.getpid()


def crash() -> None:
    ctypes.string_at(0)


def crash_once(mark: str) -> int:
    if not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def fill_memory() -> torch.Tensor:
    return torch.ones(10**9, dtype=torch.float64)


def pieces(megabytes: int) -> int:
    """Of 20 MB, all held together."""
    return len([bytearray(20_000_000) for _ in range(megabytes // 20)])


def held() -> tuple[int, int]:
    """Process and bytes of memory, what it shares with others not counted."""
    pages = Path("/proc/self/statm").read_text().split()
    return os.getpid(), (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def read_anew(path: str) -> None:
    _index._cache.clear()
    decode(path)


def spoil() -> None:
    raise ZeroDivisionError("by nought")


def open_files() -> list[str]:
    numbers = [number for number in os.listdir("/proc/self/fd") if int(number) > 2]
    return [os.path.realpath(f"/proc/self/fd/{number}") for number in numbers]


def strides(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor.permute(2, 0, 1), tensor[::2, :0]


def test_a_worker_gives_what_the_function_gives(video: str) -> None:
    ours, theirs = decode(video), run(video, decode, video)
    assert torch.equal(ours.frames, theirs.frames) and ours.frames.stride() == theirs.frames.stride()
    assert torch.equal(ours.seconds, theirs.seconds) and theirs.seconds.dtype == torch.float64
    assert run(video, probe, video) == probe(video)
    tensor = torch.arange(24).reshape(2, 3, 4)
    for one, other in zip(strides(tensor), run(video, strides, tensor), strict=True):
        assert torch.equal(one, other) and one.shape == other.shape
    theirs.frames[:] = 0  # memory that may be written


def test_files_are_read_in_another_process_that_is_used_again(video: str) -> None:
    first = run(video, worker)
    assert first != os.getpid() and run(video, worker) == first
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: run(video, worker), range(40)))) <= 4


def test_errors_come_back(video: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.mp4")
    with pytest.raises(VideoError, match=f"^{missing}: no such file"):
        run(missing, probe, missing)
    with pytest.raises(VideoError, match="embedded null byte"):
        run("a\0b.mp4", probe, "a\0b.mp4")
    with pytest.raises(ZeroDivisionError, match="by nought") as caught:
        run(video, spoil)
    assert "in spoil" in caught.value.__notes__[0]


def test_what_crashes_the_reader_costs_this_file(video: str, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(Path(video).read_bytes())
    with pytest.raises(VideoError, match=f"^{video}: reading it ended 2 processes \\(SIGSEGV\\)"):
        run(video, crash)
    with pytest.raises(VideoError, match="SIGSEGV"):
        run(video, probe, video)  # it is remembered
    assert run(str(other), probe, str(other)).frame_count == 12
    Path(video).write_bytes(other.read_bytes() + b"a new file")
    assert run(video, worker)


def test_a_worker_that_somebody_killed_costs_nothing(video: str, tmp_path: Path) -> None:
    os.kill(run(video, worker), signal.SIGKILL)
    assert run(video, probe, video).frame_count == 12
    assert run(video, crash_once, str(tmp_path / "mark")) == 7


def test_a_worker_is_ended_when_told_to_stop(video: str, tmp_path: Path) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(told_by, stop, run, video, begin_and_hang, str(tmp_path / "pid"))
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        stop.set()
        with pytest.raises(guard.Stopped):
            job.result(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert run(video, probe, video).frame_count == 12


def test_what_is_read_piece_by_piece_ends_too_and_is_asked_for_no_more(video: str) -> None:
    stop = threading.Event()
    with guard.ended_by(stop):
        pieces = guard.each(video, endless)
        worker = next(pieces)
        stop.set()
        with pytest.raises(guard.Stopped):
            next(pieces)
        with pytest.raises(guard.Stopped):
            run(video, probe, video)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert run(video, probe, video).frame_count == 12


def test_threads_that_read_windows_end_with_whoever_began_them(tmp_path: Path) -> None:
    from tubelet import ClipSpec, models
    from tubelet.search import video_vector

    write_video(tmp_path / "v.mp4", torch.zeros(200, 3, 32, 32, dtype=torch.uint8), fps=10)
    model = models.build("videomae_tiny", ClipSpec(frames=4, stride_frames=1, size=16), depth=1, width=24, heads=2, patch=8)
    stop, seen = threading.Event(), []

    def on_window(done: int, of: int) -> None:
        seen.append((done, of))
        stop.set()
        guard.check_stop()

    before = set(threading.enumerate())
    with guard.ended_by(stop), pytest.raises(guard.Stopped):
        video_vector(model, tmp_path / "v.mp4", on_window=on_window)
    assert seen == [(1, 99)] and set(threading.enumerate()) <= before  # those of earlier tests may end meanwhile
    with guard.ended_by(stop), pytest.raises(guard.Stopped):  # in its thread, before the first window
        video_vector(model, tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("name", "value", "job", "words"),
    [
        ("TUBELET_SECONDS_PER_FILE", "0.2", hang, "not read within 0.2 s of processor time; .* set TUBELET_SECONDS_PER_FILE"),
        (
            "TUBELET_GIGABYTES_PER_FILE",
            "0.5",
            fill_memory,
            "takes more than 0.5 GB of memory; .* set TUBELET_GIGABYTES_PER_FILE",
        ),
    ],
)
def test_limits(video: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, job: object, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(VideoError, match=f"^{video}: .*{words}"):
        run(video, job)  # type: ignore[arg-type]
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match=f"^{name} is 'many': it must be a number above 0"):
        run(video, worker)


def test_the_limit_of_memory_counts_from_what_a_worker_needs(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from what it, or this process before it, has freed and kept: at the heap's end, or between things in use."""
    keep_freed()
    freed = [(bytearray(20_000_000), bytearray(100_000)) for _ in range(40)]
    between = [small for _, small in freed]
    del freed
    guard.end_idle()
    monkeypatch.setenv("TUBELET_GIGABYTES_PER_FILE", "0.5")
    assert run(video, pieces, 400) == 20
    with pytest.raises(VideoError, match=r"takes more than 0.5 GB of memory"):
        run(video, pieces, 700)
    assert len(between) == 40


def test_a_worker_does_not_grow_with_the_files_it_reads(video: str, tmp_path: Path) -> None:
    broken, first = str(tmp_path / "broken.mp4"), None
    Path(broken).write_bytes(Path(video).read_bytes()[:-400])
    for number in range(400):
        run(video, read_anew, video)
        with pytest.raises(VideoError):
            run(broken, read_anew, broken)
        if number == 100:
            first = run(video, held)
    assert first is not None and run(video, held)[0] == first[0], "it is the same worker"
    assert run(video, held)[1] - first[1] < 2**23  # 14 KB a file, of which each is 27 as pictures


def test_the_header_is_checked_before_anything_is_decoded(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        VideoError, match="^v: says its pictures are 100000x100000, .* 150 megapixels; .*TUBELET_MEGAPIXELS=10001"
    ):
        guard.check_header("v", 100_000, 100_000, 1)
    with pytest.raises(VideoError, match="^v: has 1000000000 frames, or says so, the limit is 10000000; .*TUBELET_FRAMES="):
        guard.check_header("v", 16, 16, 10**9)
    monkeypatch.setenv("TUBELET_MEGAPIXELS", "0.001")
    with pytest.raises(VideoError, match="says its pictures are 48x32"):
        read_index(video, certain=True)


def test_a_worker_keeps_no_file_of_ours_open(video: str, tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w"):
        guard.end_idle()
        kept = [path for path in run(video, open_files) if "socket:" not in path and "/proc/" not in path]
    assert kept == []


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="is a pipe, a device or a socket"):
        probe(tmp_path / "pipe.mp4")


def test_workers_end_when_told(video: str) -> None:
    pid = run(video, worker)
    guard.end_idle()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("job", ["os.getpid", "hang"])
def test_workers_end_with_their_parent(job: str) -> None:
    """Whether they have nothing to do or are in the middle of a file."""
    program = (
        "import os, signal, threading, time; from tubelet.video.guard import run\n"
        "def hang():\n"
        "    os.write(1, b'%d' % os.getpid())\n"
        "    while True: pass\n"
        f"threading.Thread(target=lambda: print(run('v', {job}), flush=True), daemon=True).start()\n"
        "time.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, bufsize=0, env={**os.environ, **LONG})
    assert process.stdout is not None and process.stdout.read(1).isdigit()
    process.kill()
    assert process.communicate(timeout=280)[0].strip().isdigit()  # their stdout is the worker's too: both are gone
    assert process.returncode == -signal.SIGKILL


def test_a_worker_that_stands_still_is_ended_at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on before a second look: after half as many questions whether to stop again, of which one goes before each
    waiting."""
    monkeypatch.setattr(guard, "STILL_SECONDS", 2)

    class Wakes(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            if self.asked == 3 * guard.STILL_SECONDS * guard.LOOKS // 2:
                os.kill(one.pid, signal.SIGCONT)
            return False

    one = guard._Worker()
    job = (guard._once, (0, worker, (), {}), 60.0, 10**9)
    assert one.answer(guard._packed(job))[2] == one.pid
    assert one.answer(None)[1]  # that was all
    os.kill(one.pid, signal.SIGSTOP)
    os.waitpid(one.pid, os.WUNTRACED)  # it stands
    with guard.ended_by(Wakes()), pytest.raises(guard._DiedError, match="it stood still for 2 s"):
        one.answer(guard._packed(job))
    assert not one.runs()
