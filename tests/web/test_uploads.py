"""Answers about uploads are worked out once, whoever asks and whoever leaves; a full disk is told as any other problem."""

import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tubelet.video.guard import Stopped, ended_by
from tubelet.web.uploads import Limits, Uploads

ID = "a" * 64


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    made = Uploads(tmp_path, Limits())
    (tmp_path / ID).write_bytes(b"video")
    (tmp_path / f"{ID}.json").write_text("{}")
    return made


def test_of_many_who_ask_at_once_one_works_it_out(uploads: Uploads) -> None:
    made: list[int] = []
    together = threading.Barrier(6)

    def make() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return b"answer"

    def ask(number: int) -> bytes:
        together.wait()
        return uploads.cached(ID, ("timeline", number % 2), make)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == [b"answer"] * 6
    assert len(made) == 2  # questions
    assert uploads.cached(ID, ("timeline", 0), make) == b"answer" and len(made) == 2


def test_who_waits_takes_over_from_who_has_gone_and_may_go_too(uploads: Uploads) -> None:
    begun, leave, gone = threading.Event(), threading.Event(), threading.Event()

    def first() -> bytes:
        begun.set()
        leave.wait(30)
        raise Stopped

    def impatient() -> None:
        with ended_by(gone), pytest.raises(Stopped):
            uploads.cached(ID, ("strip",), lambda: b"never")

    with ThreadPoolExecutor(3) as pool:
        asked = pool.submit(uploads.cached, ID, ("strip",), first)
        assert begun.wait(30)
        waiting = pool.submit(uploads.cached, ID, ("strip",), lambda: b"made by the second")
        gone.set()
        pool.submit(impatient).result(30)
        assert not waiting.done()
        leave.set()
        with pytest.raises(Stopped):
            asked.result(30)
        assert waiting.result(30) == b"made by the second"


def test_room_is_made_by_the_oldest_uploads_with_their_answers(uploads: Uploads) -> None:
    for age, id in enumerate(("b" * 64, "c" * 64)):
        for name, size in ((id, 600_000), (f"{id}.0000000000000001.answer", 1000), (f"{id}.json", 10)):
            (uploads.folder / name).write_bytes(bytes(size))
        os.utime(uploads.folder / id, (1000 + age, 1000 + age))
    smaller = Uploads(uploads.folder, Limits(gigabytes_kept=0.001))
    smaller.cached(ID, ("new",), lambda: b"answer")
    assert {file.name[0] for file in uploads.folder.iterdir()} == {"a", "c"}


def test_a_disk_that_is_full_is_a_problem_of_the_stream_too(client, motion_folder, monkeypatch) -> None:
    from tubelet.web import work

    def full(*args: object) -> bytes:
        raise OSError(28, "No space left on device")

    id = client.post("/api/videos", content=sorted(motion_folder.glob("val/*/*.mp4"))[0].read_bytes()).json()["id"]
    monkeypatch.setattr(work, "over_time", full)
    plain = client.get(f"/api/videos/{id}/timeline")
    told = re.findall(r"event: (\w+)\ndata: (.*)\n\n", client.get(f"/api/videos/{id}/timeline/events").text)
    assert plain.status_code == 507 and "No space left on device" in plain.json()["error"]
    assert [(kind, json.loads(data)) for kind, data in told] == [("problem", plain.json())]
