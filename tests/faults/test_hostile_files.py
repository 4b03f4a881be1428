"""Files made to do harm, through `inspect`, `predict`, a training epoch and `prepare`: each is answered or named with its reason.

The main process must not crash, hang or grow. Some in every run; the 1,000 take minutes: `pytest -m slow tests/faults`.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tubelet import datasets, models
from tubelet.datasets._files import is_video
from tubelet.datasets.split import content_hash
from tubelet.errors import DataError, VideoError, utf8
from tubelet.prepare import prepare
from tubelet.records import ClipSpec
from tubelet.video.decode import VideoInfo, probe
from tubelet.video.guard import run
from tubelet.weights.save import save

Corpus = Callable[[Path, int, int], dict[Path, str]]
SPEC = ClipSpec(frames=4, stride_frames=2, size=16)
SIZES = {"depth": 1, "patch": 8, "width": 24, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}
SECONDS, GIGABYTES = 5, 1  # of processor time and of memory for a file
HARMLESS = ("whole", "a whole video with a strange name", "a title that is not UTF-8", "absurd rotation")
TRAINING = (
    "--clip.frames 4 --clip.size 16 --clip.stride-frames 2 --optim.epochs 1 --loader.batch-size 8 --loader.workers 2 "
    "--run.report false --model.options.width 24 --model.options.heads 2 --model.options.depth 1 --model.options.patch 8"
)


# The command, and after it the most memory that it and its workers held. Nothing but this may start it: the system counts a
# process's peak from that of the one that started it, and that of a test process is the peak of all tests so far.
MEASURED = """
import resource, subprocess, sys
from pathlib import Path
code = subprocess.run(sys.argv[3:], timeout=float(sys.argv[2])).returncode
Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


def tubelet(*arguments: str | Path, seconds: int, peak: str | Path = os.devnull) -> subprocess.CompletedProcess[str]:
    """The command as a process; names that are not UTF-8 come back as Python writes them. `peak`: a file for the most bytes of
    memory that it or a process of its own held."""
    environment = os.environ | {
        "TUBELET_SECONDS_PER_FILE": str(SECONDS), "TUBELET_GIGABYTES_PER_FILE": str(GIGABYTES), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    measured = [sys.executable, "-c", MEASURED, str(peak), str(seconds)]
    command = [sys.executable, "-W", "error", "-m", "tubelet", *map(str, arguments)]
    return subprocess.run(measured + command, env=environment, capture_output=True, text=True)


def check(corpus: Corpus, tmp_path: Path, count: int, seed: int) -> None:
    folder = tmp_path / "videos"
    kinds = corpus(folder, count, seed)
    ids = {path.relative_to(folder).as_posix(): path for path in kinds}
    patience = 280 + 2 * count
    peaks = [tmp_path / f"peak of {what}" for what in ("inspect", "predict", "pretrain", "prepare")]

    done = tubelet("inspect", folder, "--json", seconds=patience, peak=peaks[0])
    assert done.returncode in (0, 2), done.stderr
    found = json.loads(done.stdout)
    unreadable = dict(found["unreadable"])
    assert found["examples"] == len(kinds) and found["readable"] + len(unreadable) == len(kinds)
    for id, reason in unreadable.items():
        assert reason and "\n" not in reason, (id, reason)
    assert "says its pictures are 15000x15000" in unreadable["bomb.gif"] and "a pipe" in unreadable["pipe.mp4"]
    for path, kind in kinds.items():
        if kind in HARMLESS:
            assert path.relative_to(folder).as_posix() not in unreadable

    torch.manual_seed(0)
    model = save(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), tmp_path / "model")
    done = tubelet("predict", model, *ids.values(), "--clips", "2", "--json", seconds=patience, peak=peaks[1])
    assert done.returncode == 2, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == len(kinds) and all(answer.get("error") or answer["top"] for answer in answers)

    done = tubelet("pretrain", folder, "--out", tmp_path / "run", *TRAINING.split(), seconds=patience, peak=peaks[2])
    assert done.returncode == 0, done.stderr
    named = dict(re.findall(r"^left out: (.*?): (.*)$", done.stderr, re.MULTILINE))
    skipped = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["skipped"]
    assert len(named) == skipped >= len(unreadable)

    done = tubelet("prepare", folder, tmp_path / "small", "--json", seconds=patience, peak=peaks[3])
    assert done.returncode == 2, done.stderr
    (made,) = json.loads(done.stdout)
    left_out = {one["path"]: one["reason"] for one in made["left_out"]}
    assert made["prepared"] + len(left_out) == len(kinds) and made["prepared"] > 0 and all(left_out.values())
    assert "says its pictures are 15000x15000" in left_out["bomb.gif.mp4"] and "a pipe" in left_out["pipe.mp4"]

    most = max(int(peak.read_text()) for peak in peaks) / 1e9
    assert most < GIGABYTES + 1, f"{most:.2f} GB"
    wrong = [answer["error"] for answer in answers if answer.get("error")]
    reasons = Counter(re.sub(r"\d+|\(.*\)|'.*'", "N", text.rpartition(".")[2].partition(": ")[2]) for text in wrong)
    print(
        f"{len(kinds)} files: inspect named {len(unreadable)}, predict {len(wrong)}, training {skipped}, "
        f"prepare {len(left_out)}; {most:.2f} GB at most"
    )
    print(Counter(kinds.values()).most_common(), reasons.most_common(), sep="\n")


def check_engine_and_pack(corpus: Corpus, tmp_path: Path, count: int, seed: int) -> None:
    """The ways of very many videos: partitions, which name what cannot be read in a table, and tars, which take it as it is."""
    folder = tmp_path / "videos"
    kinds = {utf8(path.relative_to(folder).as_posix()): kind for path, kind in corpus(folder, count, seed).items()}
    paths = {utf8(path.relative_to(folder).as_posix()): str(path) for path in folder.iterdir()}
    harmless = {id for id, kind in kinds.items() if kind in HARMLESS}
    patience = 280 + 2 * count

    torch.manual_seed(0)
    model = save(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), tmp_path / "model")
    many = ("--engine", "local", "--clips", "1", "--partition-size", "64", "--json")
    for what in ("embed", "predict"):
        done = tubelet(what, model, folder, *many, "--out", tmp_path / what, seconds=patience)
        assert done.returncode == 0, done.stderr
        rows, lost = (pq.read_table(tmp_path / what / kind).to_pylist() for kind in ("results", "errors"))
        assert sorted(row["id"] for row in rows + lost) == sorted(kinds)
        assert harmless <= {row["id"] for row in rows} and all(row["reason"] and "\n" not in row["reason"] for row in lost)
        print(f"{len(kinds)} files: {what} --engine local answered {len(rows)} and named {len(lost)}")

    done = tubelet("prepare", folder, tmp_path / "packed", "--pack", "--shard-megabytes", "1", "--json", seconds=patience)
    assert done.returncode == 2, done.stderr
    (packed,) = json.loads(done.stdout)
    left_out = {utf8(os.path.relpath(one["path"], folder)) for one in packed["left_out"]}
    assert left_out == {id for id, kind in kinds.items() if kind in ("a link to nothing", "a pipe")}
    examples = datasets.read(tmp_path / "packed").examples
    assert {example.id for example in examples} == kinds.keys() - left_out and packed["examples"] == len(examples)
    assert all(content_hash(example.path) == content_hash(paths[example.id]) for example in examples)
    done = tubelet("inspect", tmp_path / "packed", "--json", seconds=patience)
    found = json.loads(done.stdout)
    unreadable = dict(found["unreadable"])
    assert found["examples"] == len(examples) and not harmless & unreadable.keys() and all(unreadable.values())
    assert not [reason for reason in unreadable.values() if "not those that were packed" in reason]
    print(f"packed {len(examples)}, left out {len(left_out)}; inspect of the shards named {len(unreadable)}")


@pytest.mark.timeout(900)
def test_hostile_files_are_answered_or_named(corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tmp_path, 60, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_hostile_files(corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tmp_path, 1000, seed=2)


@pytest.mark.timeout(900)
def test_hostile_files_in_partitions_and_shards(corpus: Corpus, tmp_path: Path) -> None:
    check_engine_and_pack(corpus, tmp_path, 10, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_hostile_files_in_partitions_and_shards(corpus: Corpus, tmp_path: Path) -> None:
    check_engine_and_pack(corpus, tmp_path, 1000, seed=2)


def test_names_that_are_not_utf8_are_prepared_trained_on_and_reported(motion_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number, path in enumerate(sorted(motion_folder.rglob("*.mp4"))[:4]):
        (tmp_path / "videos" / os.fsdecode(b"%d\xff.mp4" % number)).write_bytes(path.read_bytes())
    made = [prepare(tmp_path / "videos", tmp_path / "copies").new for _ in range(2)]
    assert made == [4, 0], "what was recorded is not found again"
    settings = TRAINING.replace("--run.report false", "")
    done = tubelet("pretrain", tmp_path / "copies", "--out", tmp_path / "run", *settings.split(), seconds=280)
    assert done.returncode == 0 and (tmp_path / "run" / "report.html").is_file(), done.stderr
    model = tmp_path / "run" / "model"
    done = tubelet("embed", model, tmp_path / "copies", "--out", tmp_path / "f.parquet", "--json", seconds=280)
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 4, done.stderr
    assert pq.read_table(tmp_path / "f.parquet")["id"].to_pylist()[0] == "0\\udcff.mp4"


def test_a_class_whose_name_is_not_utf8_is_refused_before_training(corpus: Corpus, tmp_path: Path) -> None:
    corpus(tmp_path / "videos", 0, 0)
    os.mkdir(os.fsencode(tmp_path / "videos") + b"/cl\xff")
    (tmp_path / "videos" / "whole.mp4").rename(tmp_path / "videos" / os.fsdecode(b"cl\xff") / "a.mp4")
    with pytest.raises(DataError, match="is a class whose name is not UTF-8"):
        datasets.read(tmp_path / "videos")


def outcome(read: Callable[[], VideoInfo]) -> VideoInfo | str:
    try:
        return read()
    except VideoError as error:
        return str(error)


def test_odd_files_are_answered_by_a_guarded_process_as_without(shared: Path) -> None:
    """84 real files, old, broken or hostile. That their frames are FFmpeg's: tests/video/test_decode.py."""
    paths = [str(path) for path in sorted((shared / "data" / "odd_files").rglob("*")) if is_video(path)]
    assert len(paths) >= 80
    guarded = {path: outcome(lambda path=path: run(path, probe, path)) for path in paths}  # type: ignore[misc]
    assert guarded == {path: outcome(lambda path=path: probe(path)) for path in paths}  # type: ignore[misc]
    lines = {path: text for path, text in guarded.items() if isinstance(text, str)}
    assert all(text.startswith(f"{path}: ") and "\n" not in text for path, text in lines.items())
    assert not [text for text in lines.values() if "reading it" in text or "not read within" in text]
    print(f"{len(paths)} files: {len(paths) - len(lines)} indexed, {len(lines)} refused with a line")
