"""The page's server: time to the first answer, and what many people at once get of it, beside the batch command.

    python benchmarks/serve.py [--clients 32] [--seconds 300] [--rounds 3] [--quick] [--json FILE]

A server process of `videomae_small` (random weights, 400 classes, 16 frames of 224 pixels) on this machine.

first answer    from the first byte of a 10 s 720p file sent to its five classes, of one clip and crop, and of the page's 5 clips
many            every client sends a video that nobody sent before (the same pictures, other bytes) and asks for its classes, of
                one clip of 3 crops, again and again; 429 is obeyed and counted, any other refusal ends the benchmark. Latencies
                include the waiting for a place. Before and after, `tubelet predict --engine local` answers such videos in a
                process of its own; the ratio is of videos per second, to the mean of these two. Memory is the server's in the
                middle and at the end.
"""

import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import measure
import torch

from tubelet import ClipSpec, models
from tubelet.web.client import Client
from tubelet.web.refused import Refused
from tubelet.weights.save import save


def main() -> None:
    options = parse()
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = {"depth": 2} if options.quick else {}
        spec = ClipSpec(frames=16, size=112 if options.quick else 224)
        torch.manual_seed(0)
        model = save(models.build("videomae_small", spec, [str(i) for i in range(400)], **small), folder / "model")
        page = sum(
            path.stat().st_size for path in (Path(models.__file__).parents[1] / "web" / "page").iterdir() if path.is_file()
        )
        large = measure.make_video(folder / "large.mp4", 250, 720, 1280, fps=25).read_bytes()
        for clips in (1, 5):
            with server(model, 2) as client:
                client.predict(client.upload(folder / "large.mp4")["id"], clips=1)  # so that the next finds a warm server
                seconds = [timed(partial(answer, client, marked(large, n), clips)) for n in range(options.rounds)]
            rows.append({
                "what": "first answer", "video": "10 s of 720p", "clips x crops": f"{clips} x 3", "s": statistics.median(seconds),
                "range": measure.spread(seconds), "page, KB": page / 1000,
            })  # fmt: skip
        short = measure.make_video(folder / "short.mp4", 64, 240, 320, fps=25).read_bytes()
        rows.append(many(model, short, folder, options))
    measure.write(options.json, "serve", rows)


def many(model: Path, video: bytes, folder: Path, options: argparse.Namespace) -> measure.Row:
    """What `clients` clients get in `seconds` seconds."""
    before = batch(model, video, folder / "before", options.batch_videos)
    taken: list[float] = []
    full = [0]
    memory = [0.0, 0.0]
    numbers = iter(range(10**9))
    draw = threading.Lock()
    with server(model, options.clients) as client:
        address, begun = client.address, time.perf_counter()

        def ask() -> None:
            mine = Client(address)
            while time.perf_counter() - begun < options.seconds:
                with draw:
                    number = next(numbers)
                started = time.perf_counter()
                while True:
                    try:
                        answer(mine, marked(video, number), 1)
                        break
                    except Refused as refused:
                        if refused.status != 429:
                            raise
                        full[0] += 1
                        time.sleep(0.2)
                taken.append(time.perf_counter() - started)

        threads = [threading.Thread(target=ask) for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        time.sleep(options.seconds / 2)
        memory[0] = held(client)
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        memory[1] = held(client)
    after = batch(model, video, folder / "after", options.batch_videos)
    taken.sort()
    return {
        "what": "many", "video": "2.6 s of 240p", "clips x crops": "1 x 3", "clients": options.clients, "answers": len(taken),
        "answers/s": len(taken) / seconds, "batch command/s": (before + after) / 2,
        "ratio": 2 * len(taken) / seconds / (before + after), "p50, s": taken[len(taken) // 2],
        "p95, s": taken[int(0.95 * len(taken))], "429": full[0], "middle, MB": memory[0], "end, MB": memory[1],
    }  # fmt: skip


def answer(client: Client, data: bytes, clips: int) -> None:
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        assert client.predict(client.upload(file.name)["id"], clips=clips)["top"]


def marked(video: bytes, number: int) -> bytes:
    """The same mp4 with a box at its end that players skip: other bytes, the same pictures."""
    return video + struct.pack(">I4sQ", 16, b"free", number)


def batch(model: Path, video: bytes, folder: Path, count: int) -> float:
    """Videos a second of the batch command, without its start: the time of `count` videos less that of one."""
    seconds = []
    for videos in (1, count + 1):
        place = folder / str(videos)
        place.mkdir(parents=True)
        for number in range(videos):
            (place / f"{number}.mp4").write_bytes(marked(video, number))
        words = [sys.executable, "-m", "tubelet", "predict", str(model), str(place), "--engine", "local", "--clips", "1",
                 "--out", str(folder / f"out{videos}")]  # fmt: skip
        seconds.append(
            timed(lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        )
    return count / (seconds[1] - seconds[0])


@contextmanager
def server(model: Path, places: int) -> Iterator[Client]:
    words = [sys.executable, "-m", "tubelet", "serve", str(model), "--port", "0", "--places", str(places)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        client = Client(process.stdout.readline().strip())
        client.process = process.pid  # type: ignore[attr-defined]
        try:
            yield client
        finally:
            process.terminate()


def held(client: Client) -> float:
    """MB that the server process holds."""
    pages = int(Path(f"/proc/{client.process}/statm").read_text().split()[1])  # type: ignore[attr-defined]
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed(task: Callable[[], object]) -> float:
    begun = time.perf_counter()
    task()
    return time.perf_counter() - begun


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-videos", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="a shallow model, 4 clients, 10 seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.clients, options.seconds, options.rounds, options.batch_videos = 4, 10, 1, 20
    return options


if __name__ == "__main__":
    main()
