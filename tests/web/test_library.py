"""The page's library answers what the index answers, plays only its own files, and learns from tags without a decoder."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from tubelet import search
from tubelet.records import Example
from tubelet.search import Index
from tubelet.web.desk import Options
from tubelet.web.library import Library
from tubelet.web.uploads import Limits, Uploads
from tubelet.web.work import open_model
from tubelet.weights.load import load_model

NOWHERE = {"key": "0" * 32, "start_seconds": 0, "end_seconds": 1, "label": "a"}


def heard(client: TestClient, address: str, end: str = "done") -> tuple[list[float], dict]:
    """(the parts that were told, what came at the end) of an address of server-sent events."""
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", client.get(address).text)
    assert events[-1][0] == end, events
    return [json.loads(data)["part"] for kind, data in events[:-1]], json.loads(events[-1][1])


@pytest.fixture
def client(indexed, model_folders, tmp_path: Path) -> Iterator[TestClient]:
    from tubelet.web.app import make_app

    served = [open_model(model_folders["classifier"], "classifier", "cpu")]
    library = Library(str(indexed[2]), "cpu")
    app = make_app(served, Uploads(tmp_path / "uploads", Limits()), Options(hosts=("*",)), library)
    with TestClient(app) as made:
        yield made


def test_a_search_by_words_and_by_a_video_is_that_of_the_index(client, indexed):
    videos, model, uri = indexed
    network, index = load_model(model), Index.open(uri)
    about = client.get("/api/library").json()
    assert about == {"windows": len(index), "files": 8, "reads_words": True, "model": "video_text_tiny"}
    found = client.post("/api/search", json={"words": "a thing moves left", "top": 4}).json()["hits"]
    expected = index.search(search.text_vector(network, "a thing moves left"), 4)
    assert [(hit["name"], hit["start_seconds"], hit["label"]) for hit in found] == [
        (os.path.relpath(hit.path, videos), hit.start_seconds, hit.label) for hit in expected
    ]
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)

    asked = sorted(videos.glob("*/*.mp4"))[3]
    id = client.post("/api/videos", content=asked.read_bytes()).json()["id"]
    found = client.post("/api/search", json={"video": id, "top": 1}).json()["hits"]
    assert found[0]["name"] == os.path.relpath(asked, videos) and found[0]["score"] == pytest.approx(1, abs=0.05)

    # The same with its progress; a part of the video is another question.
    parts, told = heard(client, f"/api/videos/{id}/search/events?top=1")
    assert parts[-1] == 1 and told["hits"] == found
    part = {"start_seconds": 0.1, "end_seconds": 0.8, "top": 3}
    expected = client.post("/api/search", json={"video": id} | part).json()["hits"]
    assert heard(client, f"/api/videos/{id}/search/events?{urlencode(part)}")[1]["hits"] == expected
    for query, status, why in [
        ("top=0", 422, "top: Input should be greater than or equal to 1"),
        ("start_seconds=nan", 422, "start_seconds"),
    ]:
        answer = client.get(f"/api/videos/{id}/search/events?{query}")
        assert answer.status_code == status and why in answer.json()["error"]
    assert (
        "no frame lies in the part" in heard(client, f"/api/videos/{id}/search/events?start_seconds=99", "problem")[1]["error"]
    )


def test_found_files_are_played_and_nothing_else(client, indexed, tmp_path):
    videos = indexed[0]
    hit = client.post("/api/search", json={"words": "left", "top": 1}).json()["hits"][0]
    file = videos / hit["name"]
    part = client.get(f"/api/library/{hit['key']}/file", headers={"Range": "bytes=0-99"})
    assert (part.status_code, part.content) == (206, file.read_bytes()[:100])
    strip = client.get(
        f"/api/library/{hit['key']}/strip.png", params={"seconds": f"{hit['start_seconds']},{hit['end_seconds']}"}
    )
    assert strip.status_code == 200 and strip.headers["content-type"] == "image/png"
    for key in ("..%2f..%2fetc%2fpasswd", "0" * 32, str(file)):
        assert client.get(f"/api/library/{key}/file").status_code == 404

    # A link to something outside takes the place of the video: it is not followed.
    secret, kept = tmp_path / "secret.mp4", tmp_path / "kept.mp4"
    secret.write_bytes(b"secret")
    shutil.move(file, kept)
    try:
        file.symlink_to(secret)
        for what in ("file", "strip.png?seconds=0"):
            answer = client.get(f"/api/library/{hit['key']}/{what}")
            assert answer.status_code == 404 and "not in the library's folders" in answer.json()["error"]
        file.unlink()
        answer = client.get(f"/api/library/{hit['key']}/file")
        assert answer.status_code == 404 and "vanished" in answer.json()["error"]
        again = client.post("/api/search", json={"words": "left", "top": 1}).json()["hits"][0]
        assert again["gone"] is True
    finally:
        file.unlink(missing_ok=True)
        shutil.move(kept, file)


def test_tags_become_a_classifier_without_a_decoder(client, indexed, monkeypatch):
    from tubelet.video import _pyav

    hits = client.post("/api/search", json={"words": "left", "top": 8}).json()["hits"]
    monkeypatch.setattr(_pyav, "read_frames", None)  # whoever decodes fails
    tags = [{name: hit[name] for name in ("key", "start_seconds", "end_seconds", "label")} for hit in hits]
    answer = client.post("/api/heads", json={"tags": tags[:6], "top": 6})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["classes"] == sorted({hit["label"] for hit in hits[:6]})
    tagged = {(tag["key"], tag["start_seconds"]) for tag in tags[:6]}
    for kind in ("surest", "uncertain"):
        assert found[kind] and not tagged & {(one["key"], one["start_seconds"]) for one in found[kind]}
        assert all(one["label"] in found["classes"] and 0.5 <= one["score"] <= 1 for one in found[kind])


def test_a_library_that_grows_while_it_is_served_is_played_and_taught(client, indexed, tmp_path):
    videos, model, uri = indexed
    assert client.get("/api/library").json()["files"] == 8
    other = Path(shutil.copy(sorted(videos.glob("*/*.mp4"))[0], tmp_path / "other.mp4"))
    index = Index.open(uri)
    index.add(load_model(model), [Example(str(other), "other", label="translate_left")])
    try:
        hits = client.post("/api/search", json={"words": "left", "top": 20}).json()["hits"]
        mine = next(hit for hit in hits if hit["name"].endswith("other.mp4"))
        assert client.get(f"/api/library/{mine['key']}/file").content == other.read_bytes()
        tags = [{name: hit[name] for name in ("key", "start_seconds", "end_seconds", "label")} for hit in hits[:6]]
        assert client.post("/api/heads", json={"tags": tags}).status_code == 200
        both = client.post("/api/heads", json={"tags": [*tags, tags[0] | {"label": "another"}]})
        assert both.status_code == 422 and "give each one tag" in both.json()["error"]
        found = Library(uri, "cpu")
        hits = index.search(search.text_vector(load_model(model), "left"), 20)
        other.unlink()
        index.remove(index.gone())
        told = found._moments(hits)  # found, and taken out before it is told
        assert [os.path.basename(moment.name) for moment in told] == [os.path.basename(hit.path) for hit in hits]
    finally:
        other.unlink(missing_ok=True)
        index.remove(index.gone())


@pytest.mark.parametrize(
    ("address", "question", "status", "why"),
    [
        ("/api/search", {"words": "  "}, 422, "either words or the id of an upload"),
        ("/api/search", {"words": "a", "video": "0" * 64}, 422, "either words or the id of an upload"),
        ("/api/search", {"video": "0" * 64}, 404, "never uploaded"),
        ("/api/search", {"words": "a", "top": 0}, 422, "top: Input should be greater than or equal to 1"),
        ("/api/heads", {"tags": []}, 422, "0 class"),
        (
            "/api/heads",
            {"tags": [{"key": "0" * 32, "start_seconds": 0, "end_seconds": 1, "label": "a"}]},
            422,
            "1 of 1 tagged moments",
        ),
    ],
)
def test_wrong_questions_get_one_line(client, address, question, status, why):
    answer = client.post(address, json=question)
    assert answer.status_code == status and why in answer.json()["error"], answer.text


def test_without_a_library_it_says_how_to_make_one(model_folders, tmp_path):
    from tubelet.web.app import make_app

    served = [open_model(model_folders["classifier"], "classifier", "cpu")]
    with TestClient(make_app(served, Uploads(tmp_path / "uploads", Limits()), Options(hosts=("*",)))) as client:
        assert client.get("/api/library").json()["windows"] == 0
        answer = client.post("/api/search", json={"words": "a"})
        assert answer.status_code == 404 and "tubelet index" in answer.json()["error"]
