"""Files made to do harm, dropped on the page: each is taken or refused with one line, and the server lives and does not grow.

Some in every run; the 300 take minutes: `pytest -m slow tests/faults`.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the page needs the extra [serve]")

from tubelet import models
from tubelet.records import ClipSpec
from tubelet.web.client import Client
from tubelet.web.refused import Refused
from tubelet.weights.save import save

GROWTH = 150e6  # bytes by which the server's memory may differ between the middle and the end


def drop_all(corpus, tmp_path: Path, count: int) -> None:
    files = [path for path, kind in corpus(tmp_path / "files", count, 7).items() if path.is_file()]
    model = models.build("videomae_tiny", ClipSpec(frames=4, stride_frames=2, size=16), ("a", "b"), depth=1, patch=8)
    words = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tubelet",
        "serve",
        str(save(model, tmp_path / "model")),
        "--port",
        "0",
        "--workers",
        "2",
    ]
    limits = {"TUBELET_SECONDS_PER_FILE": "5", "TUBELET_GIGABYTES_PER_FILE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | limits
    ) as server:
        try:
            assert server.stdout is not None
            client = Client(server.stdout.readline().strip(), timeout=280)
            statuses: Counter[int] = Counter()
            middle = 0
            for number, path in enumerate(files):
                try:
                    id = client.upload(path)["id"]
                    statuses[200] += bool(client.predict(id, clips=2)["top"])
                    client.get(f"/api/videos/{id}/strip.png", seconds=",".join(["0"] * 64))
                    client.timeline(id)
                except Refused as refused:
                    assert refused.status in (413, 415, 422) and "\n" not in refused.message, (
                        path,
                        refused.status,
                        refused.message,
                    )
                    assert str(tmp_path) not in refused.message
                    statuses[refused.status] += 1
                if number == len(files) // 2:
                    middle = held(server.pid)
            assert server.poll() is None and client.get("/healthz") == b'{"status":"alive"}'
            assert sum(statuses.values()) == len(files) and statuses[200] and statuses[415], statuses
            assert held(server.pid) - middle < GROWTH
            print(dict(statuses), f"{middle / 1e6:.0f} MB in the middle, {held(server.pid) / 1e6:.0f} MB at the end")
        finally:
            server.terminate()
            assert server.wait(timeout=280) == 0


def held(process: int) -> int:
    """Bytes of memory that a process holds."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_some_hostile_uploads(corpus, tmp_path: Path):
    torch.manual_seed(0)
    drop_all(corpus, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_hundred_hostile_uploads(corpus, tmp_path: Path):
    torch.manual_seed(0)
    drop_all(corpus, tmp_path, 300)
