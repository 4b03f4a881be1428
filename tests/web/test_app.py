"""The API answers what the library answers, refuses with one line, and tells nobody else's page anything."""

import asyncio
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
import torch

import tubelet
from tubelet.timeline import timeline
from tubelet.video.write import write_video
from tubelet.web.client import Client
from tubelet.web.desk import Desk
from tubelet.web.refused import Refused
from tubelet.web.uploads import Limits, Uploads

from .test_gone import children


@pytest.fixture(scope="module")
def video(motion_folder: Path) -> Path:
    return sorted(motion_folder.glob("val/*/*.mp4"))[0]


def send(client, data: bytes) -> dict:
    answer = client.post("/api/videos", content=data)
    assert answer.status_code == 201, answer.text
    return answer.json()


def heard(client, address: str, end: str = "done") -> tuple[list[float], dict]:
    """(the parts that were told, what came at the end) of an address of server-sent events."""
    answer = client.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    kinds, data = zip(
        *((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events), strict=True
    )
    assert kinds == ("progress",) * (len(kinds) - 1) + (end,)
    parts = [told["part"] for told in data[:-1]]
    assert parts == sorted(parts) and all(0 < part <= 1 for part in parts)
    return parts, data[-1]


def test_a_prediction_is_that_of_the_library(client, model_folders, video):
    upload = send(client, video.read_bytes())
    assert upload["id"] == hashlib.sha256(video.read_bytes()).hexdigest() and upload["frames"] == 16
    for name in ("classifier", "frames"):
        answer = client.get(f"/api/videos/{upload['id']}/prediction", params={"model": name, "clips": 3, "top": 2}).json()
        expected = tubelet.load(model_folders[name]).predict(video, clips=3, top=2)
        assert [row["name"] for row in answer["top"]] == [found for found, _ in expected.top]
        assert [row["probability"] for row in answer["top"]] == pytest.approx([p for _, p in expected.top], abs=1e-5)
        assert answer["seconds"] == [list(clip) for clip in expected.seconds] and answer["model"] == name


def test_the_same_question_is_answered_once(client, video):
    id = send(client, video.read_bytes())["id"]
    first = client.get(f"/api/videos/{id}/prediction").json()
    clips = next(
        line for line in client.get("/metrics").text.splitlines() if line.startswith('tubelet_clips{model="classifier"}')
    )
    assert client.get(f"/api/videos/{id}/prediction").json() == first and first["model"] == "classifier"
    assert clips in client.get("/metrics").text and float(clips.split()[1]) == 15  # 5 clips of 3 crops, once


@pytest.mark.parametrize(
    "what", ["strip.png?seconds=0,0.5,1", "reconstruction.png?ratio=0.5&mask=random&seed=3", "attention.png"]
)
def test_pictures_are_pictures(client, video, what):
    id = send(client, video.read_bytes())["id"]
    answer = client.get(f"/api/videos/{id}/{what}")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    with av.open(io.BytesIO(answer.content)) as picture:
        frame = next(picture.decode(video=0))
    assert frame.width > 90 and frame.height >= 32
    if what.startswith("strip"):
        assert (frame.width, frame.height) == (3 * 32, 32)  # small videos are not enlarged


def test_the_mask_and_its_ratio_change_the_reconstruction(client, video):
    id = send(client, video.read_bytes())["id"]
    pictures = {client.get(f"/api/videos/{id}/reconstruction.png?{query}").content
                for query in ("ratio=0.5", "ratio=0.9", "ratio=0.5&mask=random", "ratio=0.5&mask=random&seed=1")}  # fmt: skip
    assert len(pictures) == 4


def test_a_picture_can_be_dropped_too(client, tmp_path):
    write_video(tmp_path / "one.mp4", torch.randint(256, (1, 3, 48, 64), dtype=torch.uint8), fps=1)
    id = send(client, (tmp_path / "one.mp4").read_bytes())["id"]
    answer = client.get(f"/api/videos/{id}/prediction").json()
    assert "the last frame was repeated" in answer["warnings"][0]


def test_bytes_are_served_in_ranges(client, video):
    data = video.read_bytes()
    id = send(client, data)["id"]
    part = client.get(f"/api/videos/{id}/file", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, data[100:200], f"bytes 100-199/{len(data)}")
    assert client.get(f"/api/videos/{id}/file").content == data
    assert client.get(f"/api/videos/{id}/file", headers={"Range": "bytes=99999999-"}).status_code == 416


def test_what_is_refused_says_why_and_leaves_nothing(client, tmp_path):
    write_video(tmp_path / "long.mp4", torch.zeros(24, 3, 32, 32, dtype=torch.uint8), fps=2)
    write_video(tmp_path / "large.mp4", torch.zeros(2, 3, 400, 400, dtype=torch.uint8), fps=2)
    before = set((tmp_path / "uploads").iterdir())
    for data, status, why in [
        (b"", 422, "the file is empty (0 bytes): choose a video, or a picture"),
        (b"hello " * 100, 415, "this cannot be read as a video or a picture"),
        (bytes(1_000_001), 413, "at most 1 MB are taken"),
        (iter([bytes(600_000)] * 2), 413, "more than 1 MB"),  # without a Content-Length
        ((tmp_path / "long.mp4").read_bytes(), 422, "lasts 12 s, at most 10 s are taken"),
        ((tmp_path / "large.mp4").read_bytes(), 422, "its pictures are 400x400, at most 0.1 megapixels"),
    ]:
        answer = client.post("/api/videos", content=data)
        assert answer.status_code == status and why in answer.json()["error"], answer.text
        assert str(tmp_path) not in answer.text
    assert set((tmp_path / "uploads").iterdir()) == before


def test_a_timeline_is_that_of_the_library_and_tells_how_far_it_is(client, model_folders, video):
    id = send(client, video.read_bytes())["id"]
    parts, found = heard(client, f"/api/videos/{id}/timeline/events")
    assert parts
    expected = timeline(tubelet.load(model_folders["classifier"]).network, video, 0.2)
    assert found["classes"] == list(expected.class_names) and found["seconds"] == pytest.approx(expected.seconds.tolist())
    torch.testing.assert_close(torch.tensor(found["probabilities"]), expected.probabilities, rtol=0, atol=2e-5)
    assert client.get(f"/api/videos/{id}/timeline").json() == found


def test_a_prediction_tells_how_far_it_is_and_is_the_same(client, video):
    id = send(client, video.read_bytes())["id"]
    parts, found = heard(client, f"/api/videos/{id}/prediction/events?clips=3&top=2")
    assert len(parts) > 3 and parts[-1] == 1 and {0.5} < set(parts)  # the first half is reading
    assert client.get(f"/api/videos/{id}/prediction?clips=3&top=2").json() == found
    assert heard(client, f"/api/videos/{id}/prediction/events?clips=3&top=2") == ([], found)  # from what is kept


@pytest.mark.parametrize("what", ["timeline", "prediction"])
def test_what_goes_wrong_later_is_an_event_and_before_a_status(client, what, damaged, tmp_path):
    client.app.state.house.uploads.limits = Limits(seconds=20)
    id = send(client, Path(damaged.path).read_bytes())["id"]
    parts, problem = heard(client, f"/api/videos/{id}/{what}/events", "problem")
    assert "damaged" in problem["error"] and str(tmp_path) not in problem["error"] and 1 not in parts
    answer = client.get(f"/api/videos/{id}/{what}/events?model=autoencoder")
    assert answer.status_code == 422 and "never taught classes: ask classifier or frames" in answer.json()["error"]
    assert client.get(f"/api/videos/{'0' * 64}/{what}/events").status_code == 404


@pytest.mark.parametrize(
    ("address", "status", "why"),
    [
        ("/api/videos/..%2f..%2fetc%2fpasswd/file", 404, "Not Found"),
        ("/api/videos/passwd/file", 404, "an id is 64 hexadecimal digits"),
        (f"/api/videos/{'0' * 64}", 404, "never uploaded"),
        (f"/api/videos/{'0' * 64}/prediction?model=clasifier", 422, "did you mean 'classifier'"),
        (f"/api/videos/{'0' * 64}/prediction?clips=0", 422, "clips: Input should be greater than or equal to 1"),
        ("/api/nothing", 404, "Not Found: GET /api/nothing"),
    ],
)
def test_wrong_questions_get_one_line(client, address, status, why):
    answer = client.get(address)
    assert answer.status_code == status and why in answer.json()["error"], answer.text
    assert "\n" not in answer.json()["error"]


def test_a_model_that_cannot_says_which_could(client, video):
    id = send(client, video.read_bytes())["id"]
    for what, model, why in [
        ("reconstruction.png", "classifier", "classifier has no decoder, so it rebuilds nothing: ask autoencoder"),
        ("attention.png", "frames", "frames does not say where it looks: ask classifier or autoencoder"),
        ("prediction", "autoencoder", "autoencoder was never taught classes: ask classifier or frames"),
        ("timeline", "autoencoder", "autoencoder was never taught classes: ask classifier or frames"),
    ]:
        answer = client.get(f"/api/videos/{id}/{what}", params={"model": model})
        assert answer.status_code == 422 and answer.json()["error"] == why
        assert client.get(f"/api/videos/{id}/{what}").status_code == 200  # the first that can
    answer = client.get(f"/api/videos/{id}/strip.png?seconds=99")
    assert answer.status_code == 422 and "99 s was asked for" in answer.json()["error"]


def test_where_no_model_can_it_says_what_to_serve(model_folders, tmp_path, video):
    from starlette.testclient import TestClient

    from tubelet.web.app import make_app
    from tubelet.web.work import open_model

    served = [open_model(model_folders["frames"], "frames", "cpu")]
    with TestClient(make_app(served, Uploads(tmp_path / "uploads", Limits())), base_url="http://localhost") as client:
        id = send(client, video.read_bytes())["id"]
        for what, why in [("reconstruction", "serve that of a pretraining run too"), ("attention", "videomae does")]:
            answer = client.get(f"/api/videos/{id}/{what}.png")
            assert answer.status_code == 422 and answer.json()["error"].endswith(why)


def test_the_model_that_is_named_draws(client, video):
    id = send(client, video.read_bytes())["id"]
    pictures = {client.get(f"/api/videos/{id}/attention.png?model={model}").content for model in ("classifier", "autoencoder")}
    assert len(pictures) == 2


def test_every_answer_forbids_what_the_page_does_not_need(client):
    for address in ("/", "/page.js", "/page.css", "/api/models", "/nothing"):
        headers = client.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


def test_the_page_asks_no_other_host_and_is_small():
    folder = Path(tubelet.__file__).parent / "web" / "page"
    pages = {
        path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in (".html", ".js", ".css")
    }
    assert sum(len(text.encode()) for text in pages.values()) < 150_000
    for name, text in pages.items():
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), name
    assert (
        "<script>" not in pages["index.html"] and "style=" not in pages["index.html"] and "onclick=" not in pages["index.html"]
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8765"}, 200),
    ],
)
def test_pages_of_others_are_refused(client, headers, status):
    assert client.get("/api/models", headers=headers).status_code == status


def test_a_full_house_says_when_to_come_again(model_folders, tmp_path, video):
    from starlette.testclient import TestClient

    from tubelet.web.app import make_app
    from tubelet.web.desk import Options
    from tubelet.web.uploads import Limits, Uploads
    from tubelet.web.work import open_model

    served = [open_model(model_folders["classifier"], "classifier", "cpu")]
    app = make_app(served, Uploads(tmp_path / "uploads", Limits()), Options(places=0))
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/api/videos", content=video.read_bytes())
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200


def test_room_is_made_by_the_oldest(tmp_path):
    async def once(data: bytes):
        yield data

    videos = []
    for _ in range(3):
        write_video(tmp_path / "a.mp4", torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8), fps=4)
        videos.append((tmp_path / "a.mp4").read_bytes())
    folder = tmp_path / "uploads"
    uploads, ids = Uploads(folder, Limits(gigabytes_kept=(sum(map(len, videos)) + 20_000) / 1e9)), []
    for place, data in enumerate(videos):
        ids.append(uploads.keep(asyncio.run(uploads.receive(once(data), None))).id)
        assert uploads.cached(ids[-1], ("a",), lambda: b"answer") == uploads.cached(ids[-1], ("a",), lambda: b"another")
        os.utime(uploads.path(ids[-1]), (place, place))
    uploads.cached(ids[2], ("b",), lambda: bytes(20_000))  # answers count too
    with pytest.raises(Refused, match="gone to make room for newer ones"):
        uploads.path(ids[0])
    assert not list(folder.glob(f"{ids[0]}*"))
    assert uploads.path(ids[1]).exists() and uploads.path(ids[2]).exists()
    uploads.cached(ids[0], ("c",), lambda: b"late")  # an answer about what has gone is not kept
    assert not list(folder.glob(f"{ids[0]}*")) and not list(folder.glob("*.part"))


def test_a_strip_of_a_tall_picture_is_small(client, tmp_path):
    """A file of some KB whose picture is large: the server itself never holds it."""
    write_video(tmp_path / "tall.mp4", torch.zeros(1, 3, 8000, 8, dtype=torch.uint8), fps=1)
    id = send(client, (tmp_path / "tall.mp4").read_bytes())["id"]
    answer = client.get(f"/api/videos/{id}/strip.png?seconds={','.join(['0'] * 64)}")
    with av.open(io.BytesIO(answer.content)) as picture:
        frame = next(picture.decode(video=0))
    assert (frame.width, frame.height) == (64, 96)


def test_a_question_is_not_a_file(client):
    for body in (bytes(5_000_000), iter([bytes(1_000_000)] * 5)):
        answer = client.post("/api/search", content=body)
        assert answer.status_code == 413 and answer.json() == {"error": "a question has at most 4 MB"}
        assert answer.headers["x-frame-options"] == "DENY"


def test_strange_methods_and_origins_make_no_rows_and_no_tracebacks(client):
    for method in ("AAA1", "AAA2", "DELETE"):
        assert client.request(method, "/api/models").status_code == 405
    assert "AAA" not in client.get("/metrics").text
    for origin in ("http://[abc", "http://localhost:8765.evil.example", "null"):
        answer = client.get("/api/models", headers={"origin": origin})
        assert answer.status_code == 403 and answer.headers["x-frame-options"] == "DENY"


def test_messages_do_not_tell_where_files_lie(client, video, tmp_path):
    id = send(client, video.read_bytes())["id"]
    for what in ("strip.png?seconds=9999", "strip.png?seconds=nan", "attention.png?model=frames"):
        answer = client.get(f"/api/videos/{id}/{what}")
        assert answer.status_code == 422 and str(tmp_path) not in answer.text, answer.text
    assert client.get(f"/api/videos/{id}/strip.png?seconds=9999").json()["error"].startswith("9999 s was asked for")


def test_an_error_of_ours_is_a_line_too(client, monkeypatch, capsys):
    monkeypatch.setattr(Desk, "ready", property(lambda self: 1 / 0), raising=False)
    answer = client.get("/readyz")
    assert answer.status_code == 500 and answer.json() == {"error": "a mistake in the server; its log has the details"}
    assert answer.headers["x-content-type-options"] == "nosniff" and "ZeroDivisionError" in capsys.readouterr().err


@contextmanager
def begun_upload(address: str) -> Iterator[socket.socket]:
    """Three bytes of a thousand; no more come."""
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))), timeout=280) as line:
        line.sendall(b"POST /api/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        yield line


def test_uploads_that_do_not_come_keep_nobody_from_asking(serve, video, tmp_path):
    address, _ = serve("--places", "2", "--folder", str(tmp_path))
    client = Client(address)
    id = client.upload(video)["id"]
    with begun_upload(address), begun_upload(address):
        while len(list(tmp_path.glob("*.part"))) < 2:  # they have their places
            time.sleep(0.01)
        assert client.predict(id, clips=1, model="frames")["top"]
        with pytest.raises(Refused, match="try again in a moment"):
            client.upload(video)
    while list(tmp_path.glob("*.part")):
        time.sleep(0.01)
    assert client.upload(video)["id"] == id


def test_an_upload_that_does_not_come_in_time_gives_its_place_back(serve, video):
    address, _ = serve("--places", "1", "--timeout", "4")
    with begun_upload(address) as line:
        assert b" 408 " in line.recv(1000).partition(b"\r\n")[0]
        assert Client(address).upload(video)["id"]


def get(address: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=280) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_another_address_than_its_own_wants_a_token(serve):
    address, process = serve("--host", "0.0.0.0")
    base, _, query = address.replace("0.0.0.0", "127.0.0.1").partition("?")
    token = query.removeprefix("token=")
    assert len(token) >= 32
    assert get(f"{base}api/models")[0] == 401 and get(base)[0] == 401 and get(f"{base}api/models?token=wrong")[0] == 401
    assert get(f"{base}healthz")[0] == 200
    assert get(f"{base}api/models?{query}")[0] == 401  # in the address only of the page
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(f"{base}?{query}", timeout=280) as answer:
        assert answer.status == 200 and answer.url == base and b"<title>Tubelet</title>" in answer.read()
    assert Client(address.replace("0.0.0.0", "127.0.0.1")).models()[0]["name"] == "classifier"
    assert get(f"{base}api/models", Authorization=f"Bearer {token}")[0] == 200
    assert get(f"{base}api/models", Cookie=f"tubelet_token={token}")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=280) == 0


def test_it_finishes_what_it_began_and_forgets_whoever_left(serve, tmp_path):
    address, process = serve("--workers", "1")
    write_video(tmp_path / "long.mp4", torch.randint(256, (900, 3, 96, 96), dtype=torch.uint8), fps=30)
    request = urllib.request.Request(f"{address}api/videos", data=(tmp_path / "long.mp4").read_bytes(), method="POST")
    with urllib.request.urlopen(request, timeout=280) as answer:
        id = json.load(answer)["id"]

    # Somebody asks for much and leaves: the work ends, and the next is answered.
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))), timeout=280) as gone:
        gone.sendall(f"GET /api/videos/{id}/prediction?clips=32&model=classifier HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.3)
    status, _ = get(f"{address}api/videos/{id}/prediction?clips=2&model=frames")
    assert status == 200
    until = time.monotonic() + 280
    while b"tubelet_requests_in_progress 0.0" not in get(f"{address}metrics")[1]:
        assert time.monotonic() < until
        time.sleep(0.1)

    # A signal in the middle of a request, whose readers stand still meanwhile: it is answered all the same, and the process ends
    # with 0.
    readers = children(process.pid)
    assert readers
    for reader in readers:
        os.kill(reader, signal.SIGSTOP)
    words = [sys.executable, "-c", "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"]
    asking = subprocess.Popen(
        [*words, f"{address}api/videos/{id}/prediction?clips=30&model=classifier"], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 280
    while b"tubelet_requests_in_progress 1.0" not in get(f"{address}metrics")[1]:
        assert time.monotonic() < until and asking.poll() is None
    process.send_signal(signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))), timeout=280) as probe:
        process.send_signal(signal.SIGTERM)
        probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        process.send_signal(signal.SIGCONT)  # it finds both, and says it before it ends, however busy the machine is
        told = b"".join(iter(lambda: probe.recv(1000), b""))
    assert told.startswith(b"HTTP/1.1 503 ") and b"about to end" in told
    for reader in readers:
        os.kill(reader, signal.SIGCONT)
    assert asking.communicate(timeout=280)[0].strip() == "200"
    assert process.wait(timeout=280) == 0


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "no model given"),
        (["nowhere"], "no model at nowhere"),
        (["MODEL", "MODEL"], "two models are called 'classifier'"),
        (["MODEL", "--port", "99999"], "port is 99999"),
        (["MODEL", "--batch", "0"], "batch is 0"),
        (["MODEL", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["MODEL", "--host", ""], "host is empty"),
        (["MODEL", "--token", "a&b €"], "the token has letters that do not travel"),
    ],
)
def test_what_cannot_be_served_is_one_line(flags, why, model_folders, capsys):
    from tubelet.cli import main

    assert main(["serve", *(str(model_folders["classifier"]) if flag == "MODEL" else flag for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1, error
