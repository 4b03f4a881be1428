"""`tubelet predict`, `embed` and `evaluate` as a person runs them: real processes, real files."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tubelet import models
from tubelet.cli import main
from tubelet.records import ClipSpec
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
CLASSES = ("translate_left", "translate_right")
SIZES = {"depth": 2, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}


def tubelet(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tubelet", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Model folders: one that was taught the two classes of the motion set, one that was not."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    classifier = models.build("videomae_tiny", SPEC, CLASSES, **SIZES)
    torch.nn.init.normal_(classifier.head.weight)
    return save(classifier, place / "taught"), save(models.build("videomae_tiny", SPEC, **SIZES), place / "plain")


@pytest.fixture(scope="module")
def videos(motion_folder) -> list[Path]:
    return sorted(motion_folder.glob("val/*/*.mp4"))


def test_predict_prints_classes_times_and_seconds(folders, videos, tmp_path):
    done = tubelet("predict", folders[0], videos[0], videos[1], "--clips", "2", "--crops", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"%  {name}\n" in done.stdout for name in CLASSES)
    assert done.stdout.count("looked at seconds 0.00-") == 2 and "4 frames each, 1 crop" in done.stdout and " s)" in done.stdout


def test_predict_json_is_a_list_even_when_one_file_is_broken(folders, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    done = tubelet("predict", folders[0], videos[0], "text.mp4", "--json", "--top", "1", cwd=tmp_path)
    good, bad = json.loads(done.stdout)
    assert done.returncode == 2 and "text.mp4" in bad["error"] and "error: " in done.stderr and "Traceback" not in done.stderr
    assert good["path"] == str(videos[0]) and len(good["top"]) == 1 and good["clips"] * good["crops"] == 15
    assert 0 < good["top"][0]["probability"] <= 1 and good["seconds_taken"] > 0
    assert [len(clip) for clip in good["seconds"]] == [4] * 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "{plain}", "{video}"], "never taught classes"),
        (["predict", "{taught}"], "no video given"),
        (["predict", "nowhere", "{video}"], "no model at nowhere"),
        (["embed", "{plain}", "nowhere"], "nowhere does not exist"),
        (["embed", "{plain}", "{data}", "--per", "frame"], "frame"),
        (["evaluate", "{taught}"], "no data given"),
        (["evaluate", "{taught}", "{data}", "--split", "vall"], "vall"),
        (["evaluate", "{plain}", "{data}", "--no-knn", "--no-linear-probe"], "nothing to evaluate"),
        (["evaluate", "{taught}", "{data}", "--clip", "3"], "--clip"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folders, videos, motion_folder, tmp_path, arguments, said, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"taught": folders[0], "plain": folders[1], "video": videos[0], "data": motion_folder}
    assert main([argument.format(**names) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert said in err and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err


def test_embed_writes_a_vector_for_every_video_and_names_the_rest(folders, motion_folder, tmp_path):
    (tmp_path / "data").mkdir()
    for index, path in enumerate(sorted(motion_folder.glob("unlabelled/*.mp4"))[:3]):
        (tmp_path / "data" / f"{index}.mp4").write_bytes(path.read_bytes())
    (tmp_path / "data" / "broken.mp4").write_bytes(b"")
    done = tubelet("embed", folders[1], "data", "--out", "f.parquet", "--per", "clip", "--clips", "2", "--json", cwd=tmp_path)
    assert done.returncode == 2, "something was asked and not answered"
    said = json.loads(done.stdout)
    assert (said["rows"], said["width"], said["videos"]) == (6, 48, 4)
    assert [gone["id"] for gone in said["missing"]] == ["broken.mp4"] and "broken.mp4" in done.stderr
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.num_rows == 6 and len(table["vector"][0]) == 48


def test_evaluate_a_classifier_beside_its_floor(folders, motion_folder, tmp_path):
    done = tubelet("evaluate", folders[0], motion_folder, "--split", "val", "--clips", "2", "--crops", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in ("fine-tuned", "linear probe", "k-NN", "random initialisation", "majority class", "chance"):
        assert expected in done.stdout
    assert "4 of 4 videos evaluated" in done.stdout and "not trained" in done.stdout
    assert "split val: 4 of 12 labelled videos" in done.stdout and "2x1" in done.stdout
    page = tmp_path / "runs" / "evaluate_taught" / "report.html"
    assert page.is_file() and "Confusion matrix" in page.read_text(encoding="utf-8")


def test_evaluate_a_pretrained_model_by_its_frozen_features(folders, motion_folder, tmp_path):
    done = tubelet("evaluate", folders[1], motion_folder, "--json", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    rows = {(row["name"], row["weights"]) for row in said["results"]}
    both = {(name, weights) for name in ("linear probe", "k-NN") for weights in ("pretrained", "random initialisation")}
    assert rows == both | {("majority class", "majority class"), ("chance", "chance")}
    assert said["asked"] == 4 and said["missing"] == [] and said["per_class"] == []
    assert said["part"] == "split val: 4 of 12 labelled videos" and said["missing_in_training"] == []
    assert said["trained_on"] is None, "a model folder does not know what it was trained on"
    sections = json.loads((tmp_path / "here" / "report.json").read_text(encoding="utf-8"))
    assert {row["mask"] for row in sections["reconstructions"]} == {"tube"}
    assert (tmp_path / "here" / "pictures" / "reconstruction.gif").read_bytes().startswith(b"GIF8")


def test_missing_videos_are_named_and_counted(folders, motion_folder, tmp_path):
    for path in motion_folder.glob("val/*/*.mp4"):
        target = tmp_path / "data" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    half = target.read_bytes()
    target.write_bytes(half[: len(half) // 3])
    done = tubelet("evaluate", folders[0], "data", "--no-knn", "--no-linear-probe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 4 videos evaluated, missing:" in done.stdout and target.name in done.stdout
    assert "no splits: all 4 videos are evaluated" in done.stderr
    assert "1 of 4 videos could not be read" in (tmp_path / "runs/evaluate_taught/report.html").read_text(encoding="utf-8")


def test_missing_training_videos_are_named_too(folders, motion_folder, tmp_path):
    shutil.copytree(motion_folder, tmp_path / "data")
    broken = sorted(tmp_path.glob("data/train/*/*.mp4"))[0]
    broken.write_text("not a video")
    done = tubelet("evaluate", folders[1], "data", "--no-linear-probe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = done.stdout.partition("missing among the training videos of k-NN and linear probe:\n")[2].splitlines()[0]
    assert broken.name in named and "7 of 8 labelled training videos" in done.stdout


def test_a_model_of_whole_squeezed_frames_needs_no_flag(videos, motion_folder, tmp_path):
    model = models.build("videomae_tiny", replace(SPEC, fit="stretch"), CLASSES, **SIZES)
    save(model, tmp_path / "model")
    done = tubelet("predict", "model", videos[0], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["crops"] == 1
    done = tubelet("evaluate", "model", motion_folder, "--no-knn", "--no-linear-probe", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["crops"] == 1
