"""Libraries of videos: what is nearest is found, changes are taken up, and a writer may be killed at any time."""

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tubelet import datasets, feature_store, features, models, search
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError, DataError, VideoError
from tubelet.records import ClipSpec, Example
from tubelet.search import Filter, Index, contact_sheet, picture_vector, question, video_vector
from tubelet.show._sheet import to_png
from tubelet.video.decode import decode
from tubelet.video.guard import forking
from tubelet.video.stream import Stream, Windows
from tubelet.video.write import write_video
from tubelet.weights.save import save

pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'tubelet[search]'")

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = {"depth": 1, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}
SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads text, with weights that tell videos apart."""
    torch.manual_seed(3)
    text = dict(width=16, depth=1, heads=2, context=16)
    model = models.build("video_text_tiny", SPEC, video_options=SIZES, text=text, width=24)
    return save(model, tmp_path_factory.mktemp("model") / "words")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> models._model.Model:
    from tubelet.weights.load import load_model

    return load_model(model_folder)


@pytest.fixture
def folder(motion_folder: Path, tmp_path: Path) -> Path:
    """Four videos of 16 frames in two classes, and one of 60."""
    for name in ("translate_left", "translate_right"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for path in sorted((motion_folder / "val" / name).glob("*.mp4")):
            shutil.copy2(path, tmp_path / "videos" / name)
    frames = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    write_video(tmp_path / "videos" / "translate_left" / "long.mp4", frames, fps=10)
    return tmp_path / "videos"


@pytest.fixture
def index(model: models._model.Model, model_folder: Path, folder: Path, tmp_path: Path) -> Index:
    index = Index.create(tmp_path / "library", model, model_folder)
    added = index.add(model, datasets.read(folder).examples, workers=2)
    assert (added.new, added.changed, added.unchanged, added.missing) == (5, 0, 0, [])
    assert added.windows == len(index) == 4 * 3 + 14
    return index


def table(index: Index) -> pa.Table:
    return index._rows().to_arrow()


def assert_sound(index: Index, folder: Path) -> None:
    """Every window of every video is there exactly once, with its own vector; minutes and videos are their means."""
    rows = table(index).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    for example in datasets.read(folder).examples:
        own = [row for row in rows if row["path"] == str(Path(example.path).resolve())]
        stream = Stream(example.path, index.about.clip, index.about.windows)
        windows = sorted((row for row in own if row["per"] == "window"), key=lambda row: row["start_seconds"])
        spans = [(window.start_seconds, window.end_seconds) for window in stream.windows]
        assert [(row["start_seconds"], row["end_seconds"]) for row in windows] == spans
        vectors = np.array([row["vector"] for row in windows])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        [whole] = [row for row in own if row["per"] == "video"]
        mean = vectors.mean(axis=0)
        np.testing.assert_allclose(whole["vector"], mean / np.linalg.norm(mean), atol=1e-5)


def test_vectors_are_those_of_the_model_and_the_nearest_is_found(index, model, folder):
    assert_sound(index, folder)
    rows = [row for row in table(index).to_pylist() if row["per"] == "window"]
    path = folder / "translate_left" / "long.mp4"
    for window, clip in Stream(path, SPEC):
        with torch.no_grad():
            vector = model(clip.frames[None])["embedding"][0]
        [row] = [row for row in rows if row["path"] == str(path) and row["start_seconds"] == window.start_seconds]
        np.testing.assert_allclose(row["vector"], features.unit(vector), atol=1e-5)
        best = index.search(vector, 3)
        assert (best[0].path, best[0].start_seconds, best[0].end_seconds) == (
            str(path),
            row["start_seconds"],
            row["end_seconds"],
        )
        assert best[0].score == pytest.approx(1, abs=1e-5) and best[0].label == "translate_left"
    assert all(len(row["vector"]) == index.about.width == 24 for row in rows)


def test_overlapping_windows_of_a_file_count_once(index, model):
    vector = torch.randn(24)
    rows = [row for row in table(index).to_pylist() if row["per"] == "window"]
    scores = [float(np.dot(row["vector"], features.unit(vector).numpy())) for row in rows]
    expected: list[dict] = []
    for _, row in sorted(zip(scores, rows, strict=True), key=lambda pair: -pair[0]):
        before = [one for one in expected if one["path"] == row["path"]]
        if all(row["start_seconds"] >= one["end_seconds"] or row["end_seconds"] <= one["start_seconds"] for one in before):
            expected.append(row)
    hits = index.search(vector, 30)
    assert [(hit.path, hit.start_seconds) for hit in hits] == [(row["path"], row["start_seconds"]) for row in expected]
    assert [hit.score for hit in hits] == pytest.approx(sorted((hit.score for hit in hits), reverse=True))
    assert sum(hit.windows for hit in hits) == len(rows)
    assert [hit.path for hit in index.search(vector, 2)] == [hit.path for hit in hits[:2]]


def test_minutes_and_videos(index, model, folder):
    hits = index.search(video_vector(model, folder / "translate_left" / "long.mp4"), 5, "video")
    assert Path(hits[0].path).name == "long.mp4" and hits[0].score == pytest.approx(1, abs=1e-5)
    assert (hits[0].start_seconds, hits[0].end_seconds) == (0, pytest.approx(5.9)) and len({hit.path for hit in hits}) == 5
    assert len(index.search(torch.randn(24), 50, "minute")) == 5


def test_filters(index, folder, tmp_path):
    vector = torch.randn(24)
    assert {hit.label for hit in index.search(vector, 50, only=Filter(label="translate_right"))} == {"translate_right"}
    only = Filter(path=str(folder / "translate_right"))
    assert {Path(hit.path).parent.name for hit in index.search(vector, 50, only=only)} == {"translate_right"}
    assert {Path(hit.path).name for hit in index.search(vector, 50, only=Filter(path="*/lon?.mp4"))} == {"long.mp4"}
    written = (folder / "translate_left" / "long.mp4").stat().st_mtime
    today = datetime.date.fromtimestamp(written).isoformat()  # the newest file's day, also where another has begun since
    assert len(index.search(vector, 50, "video", Filter(since=today, path=f"{folder}/*/long.mp4"))) == 1
    assert len(index.search(vector, 50, "video", Filter(until=today))) == 5
    with pytest.raises(DataError, match="nothing in .* is of the kind asked for: leave out --path, --label"):
        index.search(vector, only=Filter(until="1999-12-31"))
    with pytest.raises(DataError, match="nothing in"):
        index.search(vector, only=Filter(label="it's not"))
    with pytest.raises(ConfigError, match="since is 'yesterday': a date such as 2026-11-21"):
        Filter(since="yesterday")


def test_only_what_is_new_or_changed_is_embedded(index, model, folder):
    examples = datasets.read(folder).examples
    before = {row["id"]: row["vector"] for row in table(index).to_pylist()}
    again = index.add(model, examples)
    assert (again.new, again.changed, again.unchanged, again.windows) == (0, 0, 5, 0)
    path = Path(next(example.path for example in examples if not example.path.endswith("long.mp4")))
    shutil.copy(folder / "translate_left" / "long.mp4", path)
    shutil.copy(path, folder / "translate_right" / "added.mp4")
    (folder / "translate_left" / "broken.mp4").write_bytes(b"not a video")
    later = index.add(model, datasets.read(folder).examples)
    assert (later.new, later.changed, later.unchanged, later.windows) == (1, 1, 4, 28)
    [(name, reason)] = later.missing
    assert name == "translate_left/broken.mp4" and "broken.mp4" in reason
    (folder / "translate_left" / "broken.mp4").unlink()
    assert_sound(index, folder)
    after = {row["id"]: row["vector"] for row in table(index).to_pylist()}
    same = [id for id in before if not id.startswith(str(path))]
    assert all(before[id] == after[id] for id in same), "what did not change was not touched"
    os.utime(path, ns=(1, 1))
    assert index.add(model, datasets.read(folder).examples).changed == 1


def test_parts_and_captions_of_a_table(model, model_folder, folder, tmp_path):
    file = folder / "translate_left" / "long.mp4"
    (tmp_path / "parts.csv").write_text(f"path,label,text,start,end\n{file},a,first,0,2\n{file},b,then,2,5.95\n")
    index = Index.create(tmp_path / "parts", model, model_folder)
    assert index.add(model, datasets.read(tmp_path / "parts.csv").examples).new == 2
    [hit] = index.search(torch.randn(24), 50, "video", Filter(label="b"))
    assert (hit.text, hit.start_seconds, hit.end_seconds) == ("then", 2, pytest.approx(5.9))
    (tmp_path / "parts.csv").write_text(f"path,label,text,start,end\n{file},a,first,0,2\n{file},c,then,2,5.95\n")
    assert index.add(model, datasets.read(tmp_path / "parts.csv").examples).changed == 1
    assert len(index.search(torch.randn(24), 50, "video")) == 2
    with pytest.raises(DataError, match="is there twice"):
        index.add(model, [Example(str(file), "a"), Example(str(file), "b")])


def test_what_is_gone_is_marked_and_taken_out_when_asked(index, model, folder):
    path = folder / "translate_left" / "long.mp4"
    vector = video_vector(model, path)
    path.unlink()
    hit = index.search(vector, 1, "video")[0]
    assert hit.path == str(path) and hit.gone
    assert contact_sheet([hit]).startswith(b"\x89PNG")
    assert index.gone([folder]) == index.gone() == [str(path)] and index.gone([folder / "translate_right"]) == []
    index.remove(index.gone())
    assert len(index) == 12 and index.gone() == []
    assert index.search(vector, 1, "video")[0].path != str(path)


def test_questions(index, model, folder, tmp_path):
    path = folder / "translate_left" / "long.mp4"
    windows = [clip for _, clip in Stream(path, SPEC, part=(1.0, 3.0))]
    with torch.no_grad():
        mean = features.unit(model(torch.stack([clip.frames for clip in windows]))["embedding"]).mean(dim=0)
        torch.testing.assert_close(question(model, str(path), 1.0, 3.0), features.unit(mean))
        still = decode(path, [7]).frames[0]
        (tmp_path / "p.png").write_bytes(to_png(still))
        spread = still[None].expand(4, -1, -1, -1)  # 32x32 is the model's size
        expected = features.unit(model(spread[None])["embedding"][0])
        loss = (question(model, str(tmp_path / "p.png")) - expected).abs().max()
        assert loss < 1e-5 and torch.equal(picture_vector(model, tmp_path / "p.png"), question(model, str(tmp_path / "p.png")))
    words = question(model, "moves to the left")
    torch.testing.assert_close(words, model.embed_text(["moves to the left"])[0])
    assert len(index.search(words, 3)) == 3
    write_video(tmp_path / "short.mp4", decode(path, [0, 1]).frames, fps=10)
    assert question(model, str(tmp_path / "short.mp4")).shape == (24,)
    for query, start, error, message in [
        ("", None, ConfigError, "the question is empty"),
        ("  ", None, ConfigError, "the question is empty"),
        ("gone.mp4", None, DataError, "gone.mp4 does not exist: give words, or a video or picture that is there"),
        ("a wave", 1.0, ConfigError, "--start and --end are for a video as the question, and this is none"),
        (str(tmp_path / "p.png"), 1.0, ConfigError, "and this is a picture"),
        (str(path), 99.0, VideoError, "no frame lies in the part 99 s to the end"),
    ]:
        with pytest.raises(error, match=message):
            question(model, query, start)
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(VideoError, match="bad.jpg"):
        question(model, str(tmp_path / "bad.jpg"))
    with pytest.raises(ConfigError, match="videomae_tiny reads no text"):
        question(models.build("videomae_tiny", SPEC, **SIZES), "words")


def test_another_space_or_size_is_refused(index, model, model_folder, tmp_path):
    torch.manual_seed(4)
    text = dict(width=16, depth=1, heads=2, context=16)
    other = models.build("video_text_tiny", SPEC, video_options=SIZES, text=text, width=24)
    with pytest.raises(
        ConfigError, match="holds vectors of video_text_tiny [0-9a-f]{16}, and this is video_text_tiny [0-9a-f]{16}"
    ):
        index.check(other)
    with pytest.raises(
        ConfigError, match="holds vectors of 24 values from video_text_tiny, and videomae_tiny gives 48: ask with"
    ):
        Index.create(index.uri, models.build("videomae_tiny", SPEC, **SIZES), model_folder)
    with pytest.raises(ConfigError, match=r"the question is a vector of \(48,\), the library holds vectors of 24"):
        index.search(torch.randn(48))
    with pytest.raises(ConfigError, match=r"was made with --windows sliding, not --windows shots: ask for the same, or choose"):
        Index.create(index.uri, model, model_folder, Windows("shots"))


def test_empty_and_missing_libraries(model, model_folder, tmp_path):
    index = Index.create(tmp_path / "library", model, model_folder)
    with pytest.raises(DataError, match="library is empty: no video has been indexed yet"):
        index.search(torch.randn(24))
    with pytest.raises(DataError, match="no library at .*nowhere: make one with `tubelet index DIR --model MODEL"):
        Index.open(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="other holds no library"):
        Index.open(tmp_path / "other")


def test_one_writes_and_others_read(index, model, folder, tmp_path, monkeypatch):
    """Readers in another process get whole answers while videos are added; a second writer is turned away."""
    code = (
        "import sys, torch; from tubelet.search import Index\n"
        "index = Index.open(sys.argv[1]); counts = []; torch.manual_seed(0); over = False\n"
        "while not over:\n"
        "    over = __import__('os').path.exists(sys.argv[2])  # then it asks once more\n"
        "    hits = index.search(torch.randn(24), 500, 'video'); counts.append(len(hits))\n"
        "    assert len({hit.path for hit in hits}) == len(hits)\n"
        "    if len(counts) == 1: print('has asked', flush=True)\n"
        "print(counts[0], counts[-1], all(a <= b for a, b in zip(counts, counts[1:])))\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, index.uri, str(tmp_path / "end")], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "has asked\n"
    monkeypatch.setattr(search.library, "COMMIT_ROWS", 1)
    for number in range(8):
        shutil.copy(folder / "translate_left" / "long.mp4", folder / f"copy{number}.mp4")
    refused: list[str] = []

    def second_writer(*_: object) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match="another process is writing to") as caught:
                Index.open(index.uri).add(model, [])
            refused.append(str(caught.value))

    index.add(model, datasets.read(folder).examples, on_video=second_writer)
    (tmp_path / "end").touch()
    first, last, rising = reader.communicate(timeout=280)[0].split()
    assert reader.returncode == 0 and refused
    assert (first, last, rising) == ("5", "13", "True")


def test_a_killed_writer_leaves_a_sound_library(model, model_folder, folder, tmp_path):
    """kill -9 at several moments, then the same command again: complete, nothing twice, and long videos go on."""
    for number in range(6):
        shutil.copy(folder / "translate_left" / "long.mp4", folder / "translate_right" / f"copy{number}.mp4")
    library = tmp_path / "killed"
    code = (
        "import sys; from tubelet import search, datasets; from tubelet.weights.load import load_model\n"
        "search.library.COMMIT_ROWS, search.library.STAGED_ROWS = 1, 5\n"
        "model = load_model(sys.argv[1]); index = search.Index.create(sys.argv[3], model, sys.argv[1])\n"
        "index.add(model, datasets.read(sys.argv[2]).examples, 2, 1, on_window=lambda one: print(one.place, flush=True))\n"
    )
    for lines in (8, 37):
        words = [sys.executable, "-c", code, str(model_folder), str(folder), str(library)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None and all(writer.stdout.readline() for _ in range(lines))
            os.kill(writer.pid, signal.SIGKILL)
    index = Index.open(library)
    left = search.lance.counts(index._database.open_table("pending"))
    places = []
    done = index.add(model, datasets.read(folder).examples, on_window=lambda one: places.append((one.example.id, one.place)))
    assert done.unchanged >= 1 and done.windows == len(places) < 7 * 14 + 12
    for name, (_, count) in left.items():  # what waited was not embedded again
        assert min(place for id, place in places if name.endswith(id)) == 0 and count
    assert_sound(index, folder)
    assert index._database.open_table("pending").count_rows() == 0


def test_windows_of_an_interrupted_video_go_with_its_file(model, model_folder, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search.library, "STAGED_ROWS", 4)
    index = Index.create(tmp_path / "library", model, model_folder)
    pending = index._database.open_table("pending")

    def stop(one):
        if one.place >= 8:
            raise KeyboardInterrupt

    def interrupted():
        path = shutil.copy(folder / "translate_left" / "long.mp4", tmp_path / "gone.mp4")
        with pytest.raises(KeyboardInterrupt):
            index.add(model, [Example(str(path), "gone")], on_window=stop, workers=1)
        pending.checkout_latest()
        assert pending.count_rows() > 0 and index.gone() == []
        path.unlink()
        return str(path)

    path = interrupted()
    assert index.gone() == index.gone([tmp_path]) == [path] and index.gone([folder]) == []
    index.remove(index.gone())
    pending.checkout_latest()
    assert pending.count_rows() == 0 and index.gone() == []
    interrupted()
    index.add(model, [])
    pending.checkout_latest()
    assert pending.count_rows() == 0


def test_no_worker_is_made_while_a_library_is_read(index, model, folder):
    """Whoever makes one waits for the reader: each call takes the lock that a copy is made under."""
    vector = video_vector(model, folder / "translate_left" / "long.mp4")
    for read in (index.version, index.files, index.windows, index.gone, index.__len__, lambda: index.search(vector)):
        done = threading.Event()
        with forking:
            thread = threading.Thread(target=lambda read=read, done=done: (read(), done.set()))
            thread.start()
            assert not done.wait(0.3)
        thread.join(60)
        assert done.is_set()


def test_many_vectors_get_an_approximate_index(index, model, folder, monkeypatch):
    monkeypatch.setattr(search.lance, "EXACT_ROWS", 300)
    monkeypatch.setattr(search.lance, "CELL_ROWS", 100)
    generator = torch.Generator().manual_seed(0)
    rows = table(index).to_pylist()
    [one] = [row for row in rows if row["per"] == "video" and row["path"].endswith("long.mp4")]
    vectors = features.unit(torch.randn(2000, 24, generator=generator)).numpy()
    made = [
        {**one, "id": f"x{i}", "item": f"x{i}", "path": f"/x/{i}", "per": "window", "vector": vectors[i]}
        for i in range(len(vectors))
    ]
    index._rows().add(search.rows.as_table(made, index.about))
    index.add(model, datasets.read(folder).examples)
    found = index._rows()
    assert {one.name for one in found.list_indices()} == {"vector_idx", "per_idx"}
    assert found.index_stats("vector_idx").num_unindexed_rows == 0
    queries = torch.randn(20, 24, generator=generator)
    same = sum(
        len({hit.path for hit in index.search(query, 10)} & {hit.path for hit in index.search(query, 10, exact=True)})
        for query in queries
    )
    assert same >= 0.95 * 200
    shutil.copy(folder / "translate_left" / "long.mp4", folder / "new.mp4")
    index.add(model, datasets.read(folder).examples)
    assert index._rows().index_stats("vector_idx").num_unindexed_rows == 16, "few new rows are looked at one by one"
    assert index.search(video_vector(model, folder / "new.mp4"), 9, "video")[0].score == pytest.approx(1, abs=1e-5)
    [(_, clip)] = Stream(folder / "new.mp4", SPEC, part=(0, 0.75))
    with torch.no_grad():
        found = {hit.path for hit in index.search(model(clip.frames[None])["embedding"][0], 2) if hit.score > 0.9999}
    assert found == {str(folder / "new.mp4"), str(folder / "translate_left" / "long.mp4")}
    more = [{**row, "id": f"y{row['id']}", "item": f"y{row['item']}", "path": f"/y{row['path']}"} for row in made[:300]]
    index._rows().add(search.rows.as_table(more, index.about))
    index.add(model, datasets.read(folder).examples)
    assert index._rows().index_stats("vector_idx").num_unindexed_rows == 0, "of many the index is made anew"


def test_command_line(model_folder, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tubelet(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    code, out, err = tubelet("index", folder)
    assert code == 2 and err.startswith("error: --model is missing: no library at library: make one with")
    code, out, _ = tubelet("index", folder, "--model", model_folder)
    assert code == 0 and out == "library: 5 new, 0 changed, 0 unchanged; 26 windows of 24 values in all\n"
    path = folder / "translate_left" / "long.mp4"
    code, out, err = tubelet("search", path, "--end", 2, "--top", 2, "--sheet", "s.png")
    assert code == 0 and "long.mp4" in out.splitlines()[2] and err == "s.png: 2 rows\n"
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = tubelet("search", "something moves", "--top", 3, "--json", "--per", "video")
    hits = json.loads(out)
    assert code == 0 and len(hits) == 3
    assert set(hits[0]) == {
        *["path", "start_seconds", "end_seconds", "score", "label", "text", "date", "shot", "windows", "gone"]
    }
    (folder / "translate_left" / "bad.mp4").write_bytes(b"no")
    path.rename(folder / "moved.mp4")
    code, out, err = tubelet("index", folder)
    assert code == 2 and "1 new, 0 changed, 4 unchanged, 1 not readable" in out
    assert "left out: translate_left/bad.mp4" in err and "long.mp4: --prune takes them out" in err
    code, out, _ = tubelet("index", folder, "--prune", "--json")
    assert json.loads(out)["gone"] == [str(path)] and json.loads(out)["windows"] == 26
    shutil.move(model_folder, tmp_path / "elsewhere")
    try:
        code, _, err = tubelet("search", "words")
        assert code == 2 and f"no model at {model_folder}" in err and "if it has moved, name it with --model" in err
        assert tubelet("index", folder)[2] == err
        assert tubelet("search", "words", "--model", tmp_path / "elsewhere")[0] == 0
    finally:
        shutil.move(tmp_path / "elsewhere", model_folder)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """An S3 server on this machine, in a process of its own."""
    pytest.importorskip("moto", reason="moto, an S3 server for tests, is not installed: pip install 'moto[server]'")
    pytest.importorskip("flask", reason="moto's server is not installed: pip install 'moto[server]'")
    with pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        try:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{int(process.stdout.readline())}")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            yield
        finally:
            process.communicate("stop\n")


def test_a_library_on_object_storage(server, index, model, model_folder, folder):
    import urllib.request

    address = os.environ["AWS_ENDPOINT_URL"]
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    remote = Index.create("s3://bucket/library", model, model_folder)
    assert remote.add(model, datasets.read(folder).examples).new == 5
    assert_sound(remote, folder)
    again = Index.open("s3://bucket/library")
    assert again.about == index.about and again.add(model, datasets.read(folder).examples).unchanged == 5
    vector = torch.randn(24)
    ours, theirs = index.search(vector, 5), again.search(vector, 5)
    assert [hit.path for hit in ours] == [hit.path for hit in theirs]
    assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
    with pytest.raises((DataError, CheckpointError), match="s3://bucket/nowhere"):
        Index.open("s3://bucket/nowhere")


@pytest.fixture
def remote(server: None, tmp_path: Path) -> str:
    """The address of a library that is not there yet."""
    import urllib.request

    bucket = f"b{abs(hash(tmp_path)):x}"
    urllib.request.urlopen(urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}/library"


WRITER = """
import sys
from tubelet import datasets
from tubelet.search import Index, lease, library
from tubelet.weights.load import load_model

lease.BEAT_SECONDS, lease.SILENT_SECONDS = float(sys.argv[4]), float(sys.argv[5])
library.COMMIT_ROWS, library.STAGED_ROWS = 1, 5
model = load_model(sys.argv[1])

seen = 0

def on_window(one):
    global seen
    seen += 1
    if seen == int(sys.argv[6]):
        print("waits", flush=True)
        input()

try:
    index = Index.create(sys.argv[3], model, sys.argv[1])
    added = index.add(model, datasets.read(sys.argv[2]).examples, 2, 1, on_window)
    print("done", added.new, added.unchanged, added.windows, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def writer(
    model_folder: Path, folder: Path, uri: str, wait_at: int = 0, beat: float = 0.3, silent: float = 120.0
) -> subprocess.Popen:
    """A process that indexes the folder, and at its window number `wait_at` says so and waits for a line. It takes over from one
    that is silent for so many seconds: where none is to die, longer than a busy machine keeps a living one from its beat."""
    words = [sys.executable, "-c", WRITER, *map(str, (model_folder, folder, uri, beat, silent, wait_at))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and (not wait_at or process.stdout.readline() == "waits\n")
    return process


def last_line(process: subprocess.Popen) -> str:
    return process.communicate("go on\n", timeout=280)[0].splitlines()[-1]


def test_of_two_writers_on_object_storage_one_is_refused(remote, model_folder, folder):
    first = writer(model_folder, folder, remote, wait_at=3)
    refused = last_line(writer(model_folder, folder, remote))
    assert re.fullmatch(
        rf"CheckpointError another process \(.*process {first.pid}, .*\) is writing to s3://.*: wait.*done", refused
    )
    assert last_line(first) == "done 5 0 26"
    assert_sound(Index.open(remote), folder)
    assert last_line(writer(model_folder, folder, remote)) == "done 0 5 0", "who is done leaves it free at once"


def test_writers_that_begin_at_once_leave_a_sound_library(remote, model_folder, folder):
    several = [writer(model_folder, folder, remote) for _ in range(3)]
    ends = [last_line(one) for one in several]
    assert all(end.startswith(("done ", "CheckpointError another process")) for end in ends), ends
    assert sum(int(end.split()[1]) for end in ends if end.startswith("done")) == 5, "no video is new to two of them"
    assert_sound(Index.open(remote), folder)


@pytest.mark.slow
def test_a_killed_writer_on_object_storage_is_followed_and_a_stopped_one_does_no_harm(remote, model_folder, folder):
    """One is killed; the next takes over, stands still (SIGSTOP), is taken over itself, and when it wakes writes no more."""
    killed = writer(model_folder, folder, remote, wait_at=8, silent=3)
    killed.kill()
    killed.communicate()
    stopped = writer(model_folder, folder, remote, wait_at=2, silent=3)
    stopped.send_signal(signal.SIGSTOP)
    assert last_line(writer(model_folder, folder, remote, silent=3)).startswith("done ")
    stopped.send_signal(signal.SIGCONT)
    assert last_line(stopped).startswith("CheckpointError another process has begun to write to s3://")
    index = Index.open(remote)
    assert_sound(index, folder)
    assert index._database.open_table("pending").count_rows() == 0


def test_a_rare_label_is_found_beyond_the_nearest_cells(index, monkeypatch):
    monkeypatch.setattr(search.lance, "EXACT_ROWS", 300)
    monkeypatch.setattr(search.lance, "CELL_ROWS", 20)
    monkeypatch.setattr(search.answers, "PROBES", 1)
    vectors = features.unit(torch.randn(600, 24, generator=torch.Generator().manual_seed(0))).numpy()
    [one] = [row for row in table(index).to_pylist() if row["per"] == "video" and row["path"].endswith("long.mp4")]
    made = [
        {**one, "id": f"x{i}", "item": f"x{i}", "path": f"/x/{i}", "per": "window", "vector": vectors[i]} for i in range(600)
    ]
    index._rows().add(
        search.rows.as_table([{**row, "label": "rare" if i == 7 else "often"} for i, row in enumerate(made)], index.about)
    )
    index._tidy()
    assert index._rows().index_stats("vector_idx").num_unindexed_rows == 0
    assert [hit.path for hit in index.search(torch.from_numpy(-vectors[7]), 3, only=Filter(label="rare"))] == ["/x/7"]
    # Many small pieces are joined although their rows are few, and the cells are made anew.
    monkeypatch.setattr(search.lance, "PIECES", 3)
    for number in range(4):
        row = {**made[number], "id": f"y{number}", "item": f"y{number}"}
        index._rows().add(search.rows.as_table([row], index.about))
    index._tidy()
    assert index._rows().stats()["fragment_stats"]["num_fragments"] <= 3
    assert index._rows().index_stats("vector_idx").num_unindexed_rows == 0


def test_folders_are_no_prefixes_and_tables_prune_their_folders(index, model_folder, folder, tmp_path, capsys):
    more = folder / "translate_left2"
    more.mkdir()
    shutil.copy(folder / "translate_left" / "long.mp4", more / "other.mp4")
    assert main(["index", str(more), "--out", index.uri]) == 0
    only = Filter(path=str(folder / "translate_left"))
    assert {Path(hit.path).parent.name for hit in index.search(torch.randn(24), 50, only=only)} == {"translate_left"}
    assert {Path(hit.path).name for hit in index.search(torch.randn(24), 50, only=Filter(path=f"{more}/other.mp4"))} == {
        "other.mp4"
    }
    (more / "other.mp4").unlink()
    assert index.gone([folder / "translate_left"]) == [] and index.gone([f"{folder}/"]) == [str(more / "other.mp4")]
    stays, goes = sorted((folder / "translate_left").glob("*.mp4"))[:2]
    goes.unlink()
    (tmp_path / "table.csv").write_text(f"path,label\n{stays},translate_left\n")
    capsys.readouterr()
    assert main(["index", str(tmp_path / "table.csv"), "--out", index.uri, "--prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gone"] == [str(goes)]


def test_a_changed_video_that_cannot_be_read_is_taken_out(index, model, folder):
    path = folder / "translate_left" / "long.mp4"
    path.write_bytes(b"not a video")
    done = index.add(model, datasets.read(folder).examples)
    [(name, reason)] = done.missing
    assert name.endswith("long.mp4") and reason.endswith("it has changed, so what was known of it was taken out of the library")
    assert str(path) not in {row["path"] for row in table(index).to_pylist()} and len(index) == 12
    assert index.add(model, datasets.read(folder).examples).missing[0][1].count("taken out") == 0


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ("2026-11-21", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
        ("20261101", "2026-11-01T00:00:00", "2026-11-02T00:00:00"),
        ("2026-W47-6", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
        ("2026W47", "2026-11-16T00:00:00", "2026-11-23T00:00:00"),
        ("2026-11-21 18:30", "2026-11-21T18:30:00", "2026-11-21T18:31:00"),
        ("20261121T18", "2026-11-21T18:00:00", "2026-11-21T19:00:00"),
        ("2026-11-21T18:30:15", "2026-11-21T18:30:15", "2026-11-21T18:30:16"),
        ("2026-11-21T23:30Z", "2026-11-22T05:00:00", "2026-11-22T05:01:00"),
        ("2026-11-21T18:30:00+05:30", "2026-11-21T18:30:00", "2026-11-21T18:30:01"),
        ("9999-12-31", "9999-12-31T00:00:00", "9999-12-31T23:59:59.999999"),
    ],
)
def test_dates_are_compared_as_times(given, start, end, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")  # 5.5 hours before UTC
    time.tzset()
    try:
        assert Filter(since=given, until=given).sql() == [f"date >= '{start}'", f"date < '{end}'"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_other_clips_or_options_are_other_vectors(index, model, model_folder):
    from dataclasses import replace

    from tubelet.weights.load import load_model

    other = load_model(model_folder)
    other.spec = replace(SPEC, stride_frames=1)
    with pytest.raises(ConfigError, match=r"holds vectors of other clips than .* takes here \(clip.stride_frames 1, not 2\)"):
        index.check(other)
    other.spec, other.options = SPEC, {**other.options, "pool": "else"}
    with pytest.raises(
        ConfigError, match="with other options than video_text_tiny has here, although the weights are the same"
    ):
        index.check(other)
    index.about = replace(index.about, settings="")  # as libraries of before have it
    index.check(other)


def test_a_damaged_library_is_one_line(index, model, tmp_path, capsys):
    [*files] = Path(index.uri, "windows.lance", "data").glob("*.lance")
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    for ask in (lambda: index.search(torch.randn(24)), index.files, index.windows, lambda: index.gone()):
        with pytest.raises(CheckpointError, match="library cannot be read: "):
            ask()
    assert main(["search", "words", "--index", index.uri]) == 2
    assert capsys.readouterr().err.startswith(f"error: {index.uri} cannot be read: ")
    for file in Path(index.uri, "windows.lance", "_versions").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="library cannot be read: "):
        Index.open(index.uri)
    with pytest.raises(CheckpointError, match="library cannot be read: "):
        len(index)


def test_settings_are_checked_before_a_library_is_made(index, model_folder, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*words: object) -> str:
        assert main(["index", str(folder), *map(str, words)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        return printed.err

    new = ("--model", model_folder, "--out", "new")
    assert "batch-size is 0: it must be 1 or more" in refused(*new, "--batch-size", 0)
    assert "step_seconds is nan: it must be above 0, and finite" in refused(*new, "--step-seconds", "nan")
    assert "window_seconds is inf" in refused(*new, "--window-seconds", "inf")
    assert "--count 3 is for --windows uniform, these are sliding" in refused(*new, "--count", 3)
    assert not Path("new").exists()
    same = ("--out", index.uri)
    wanted = (
        "was made with --windows sliding, not --windows sliding --step-seconds 1: ask for the same, or choose another --out"
    )
    assert wanted in refused(*same, "--step-seconds", 1)
    assert "not --windows uniform --count 2: ask" in refused(*same, "--windows", "uniform", "--count", 2)
    assert main(["index", str(folder), *same, "--windows", "sliding"]) == 0
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(features.embed_windows(None, [], batch_size=0))


def test_a_word_that_is_a_folder_is_words_and_answers_come_before_the_sheet(index, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("walk").mkdir()
    torch.testing.assert_close(question(model, "walk"), model.embed_text(["walk"])[0])
    Path("file").touch()
    assert main(["search", "walk", "--index", index.uri, "--top", "2", "--json", "--sheet", "file/s.png"]) == 2
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 2 and "cannot write file/s.png" in printed.err


def test_windows_of_a_library_are_taught(index, folder, tmp_path, capsys):
    """Search, tag, head, the most uncertain next, on a library."""
    from tubelet import classify

    stored, seconds = index.windows()
    assert feature_store.read(index.uri).ids == stored.ids
    path = folder / "translate_left" / "long.mp4"
    first, last = (
        index.search(video_vector(index.model(), path, 0, 0.7), 1)[0],
        seconds[[p == str(path) for p in stored.paths]][-1],
    )
    rows = [f"{path},{first.start_seconds},{first.end_seconds},begin", f"{path},{last[0]},{last[1]},end"]
    (tmp_path / "tags.csv").write_text("\n".join(["path,start,end,label", *rows]) + "\n")
    found, unknown = classify.read_labels([tmp_path / "tags.csv"], stored)
    assert sorted(found.values()) == ["begin", "end"] and unknown == [], "of overlapping windows only the one that was tagged"
    head = str(tmp_path / "head")
    fit = ["classify", "fit", index.uri, "--labels", str(tmp_path / "tags.csv"), "--kind", "knn", "--out", head]
    assert main(fit) == 0 and "2 of 26 videos are labelled" in capsys.readouterr().out
    asked = tmp_path / "next.csv"
    assert main(["classify", "uncertain", head, index.uri, "--top", "3", "--out", str(asked)]) == 0
    asked.write_text(asked.read_text().replace(",,", ",end,"))
    assert main([*fit, "--labels", str(asked)]) == 0 and "5 of 26" in capsys.readouterr().out
    assert main(["classify", "predict", head, index.uri, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 26
    (tmp_path / "files.csv").write_text(f"path,label\n{path},all\n")
    assert len(classify.read_labels([tmp_path / "files.csv"], stored)[0]) == 14
    (tmp_path / "old.csv").write_text(f"id,path,label\n{path}@0.100-9.000#1,{path},x\n")
    assert classify.read_labels([tmp_path / "old.csv"], stored) == ({}, [f"{path}@0.100-9.000#1"])


def test_names_that_are_not_utf8_stay_in_a_library(model: models._model.Model, tmp_path: Path) -> None:
    videos, file = tmp_path / "videos", tmp_path / "videos" / os.fsdecode(b"na\xffme.mp4")
    videos.mkdir()
    write_video(tmp_path / "a.mp4", torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8), fps=10)
    (tmp_path / "a.mp4").rename(file)
    index = Index.create(tmp_path / "library", model, "", Windows(kind="uniform", count=1))
    examples = datasets.read_many([str(videos)]).examples
    assert [index.add(model, examples).new, index.add(model, examples).unchanged] == [1, 1]
    assert index.gone([videos]) == [] and len(index.search(video_vector(model, file), top=10**30)) == 1
    asked = video_vector(model, file)
    for pattern in (str(file), str(videos), os.fsdecode(b"*\xffme*")):
        hit = index.search(asked, only=Filter(path=pattern))[0]
        assert not hit.gone and hit.path.endswith("na\\udcffme.mp4")
    assert contact_sheet([hit]) != contact_sheet([replace(hit, path="nowhere.mp4")])
    other = file.rename(videos / r"na\udcffme.mp4")  # what its name looks like is a name too
    assert index.gone([videos]) == [] and not index.search(asked)[0].gone
    other.unlink()
    assert [name.endswith("na\\udcffme.mp4") for name in index.gone([videos])] == [True]
    with pytest.raises(CheckpointError, match="is not UTF-8, and LanceDB takes no other name"):
        Index.create(tmp_path / os.fsdecode(b"li\xff"), model, "")
