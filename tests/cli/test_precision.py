"""`--precision bf16`: where it goes, what is stored of it, and that answers of both are never mixed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tubelet import feature_store, models
from tubelet.cli import main
from tubelet.records import ClipSpec
from tubelet.search import Index
from tubelet.weights.load import load_model
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = {"depth": 2, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}
CLASSES = ("translate_left", "translate_right")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, its head random, so that answers differ from video to video."""
    torch.manual_seed(0)
    model = models.build("videomae_tiny", SPEC, CLASSES, **SIZES)
    torch.nn.init.normal_(model.head.weight)
    return save(model, tmp_path_factory.mktemp("models") / "taught")


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads text."""
    torch.manual_seed(3)
    text = dict(width=16, depth=1, heads=2, context=16)
    model = models.build("video_text_tiny", SPEC, video_options=SIZES, text=text, width=24)
    return save(model, tmp_path_factory.mktemp("models") / "reads")


def tubelet(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    """What the command prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    return said.out, said.err


def metadata(file: Path) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in pq.read_schema(file).metadata.items()}


def test_predict_in_both(taught, motion_folder, capsys) -> None:
    videos = sorted((motion_folder / "val").rglob("*.mp4"))
    exact, quick = (
        json.loads(tubelet(capsys, "predict", taught, *videos, "--clips", 2, "--json", "--precision", precision)[0])
        for precision in ("fp32", "bf16")
    )
    chances = [[[row["probability"] for row in sorted(one["top"], key=lambda row: row["class"])] for one in all]
               for all in (exact, quick)]  # fmt: skip
    assert 0 < np.abs(np.subtract(*chances)).max() < 0.02


def test_another_word_is_one_line(taught, motion_folder, tmp_path, capsys) -> None:
    video = next(motion_folder.rglob("*.mp4"))
    for command in ("predict", "embed", "evaluate"):
        _, said = tubelet(capsys, command, taught, video, "--precision", "fp16", code=2)
        assert said.count("\n") == 1 and "fp16" in said and "bf16" in said


def test_embed_says_its_precision(taught, motion_folder, tmp_path, capsys) -> None:
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.parquet"
        tubelet(capsys, "embed", taught, motion_folder, "--clips", 2, "--out", out, "--precision", precision)
        assert metadata(out)["tubelet.precision"] == precision
    exact, quick = (feature_store.read(tmp_path / f"{precision}.parquet") for precision in ("fp32", "bf16"))
    assert exact.fingerprint != quick.fingerprint and exact.ids == quick.ids
    assert 0 < float((quick.vectors - exact.vectors).norm() / exact.vectors.norm()) < 0.03


def test_heads_take_features_of_their_precision_only(taught, motion_folder, tmp_path, capsys) -> None:
    stored, head = tmp_path / "features.parquet", tmp_path / "head"
    tubelet(capsys, "embed", taught, motion_folder / "train", "--clips", 2, "--out", stored, "--precision", "bf16")
    table = pq.read_table(stored)
    pairs = zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True)
    labels = "".join(f"{id},{Path(path).parent.name}\n" for id, path in pairs)
    (tmp_path / "labels.csv").write_text("id,label\n" + labels)
    tubelet(capsys, "classify", "fit", stored, "--labels", tmp_path / "labels.csv", "--out", head)
    ask = ("classify", "predict", head, motion_folder / "val", "--model", taught, "--clips", 2)
    assert len(json.loads(tubelet(capsys, *ask, "--precision", "bf16", "--json")[0])["answers"]) == 4
    assert "the same model in the same precision" in tubelet(capsys, *ask, code=2)[1]


def test_partitions_hold_one_precision(taught, motion_folder, tmp_path, capsys) -> None:
    out = tmp_path / "features"
    ask = ("embed", taught, motion_folder, "--clips", 2, "--engine", "local", "--partition-size", 8, "--out", out)
    tubelet(capsys, *ask, "--precision", "bf16")
    assert {metadata(file)["tubelet.precision"] for file in out.glob("results/*.parquet")} == {"bf16"}
    assert "begun with precision bf16, not fp32" in tubelet(capsys, *ask, code=2)[1]
    assert "0 of them made now" in tubelet(capsys, *ask, "--precision", "bf16")[0]


def test_a_folder_of_before_precision_was_kept_goes_on(taught, motion_folder, tmp_path, capsys) -> None:
    out = tmp_path / "features"
    ask = ("predict", taught, motion_folder, "--clips", 1, "--crops", 1, "--engine", "local", "--out", out)
    tubelet(capsys, *ask)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest.pop("precision") == "fp32"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "0 of them made now" in tubelet(capsys, *ask)[0]


def test_a_library_keeps_its_precision(reads, motion_folder, tmp_path, capsys) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'tubelet[search]'")
    uri, video = tmp_path / "library", next((motion_folder / "val").rglob("*.mp4"))
    make = ("index", motion_folder / "val", "--out", uri)
    tubelet(capsys, *make, "--model", reads, "--precision", "bf16")
    library = Index.open(uri)
    assert library.about.precision == library.model().precision == "bf16"
    for model in ((), ("--model", reads)):
        assert "4 unchanged" in tubelet(capsys, *make, *model)[0]
        _, said = tubelet(capsys, *make, *model, "--precision", "fp32", code=2)
        assert "was made in bf16" in said and "--precision bf16" in said and said.count("\n") == 1
        [first, *_] = json.loads(tubelet(capsys, "search", video, "--index", uri, "--per", "video", *model, "--json")[0])
        assert first["path"] == str(video) and first["score"] == pytest.approx(1, abs=1e-4)
    assert json.loads(tubelet(capsys, "search", "a thing moves left", "--index", uri, "--json")[0])


def test_a_library_of_before_precision_was_kept_is_of_float32(reads, motion_folder, tmp_path) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'tubelet[search]'")
    from tubelet.search.lance import About

    about = json.loads(Index.create(tmp_path / "library", load_model(reads), reads).about.to_json())
    assert about.pop("precision") == "fp32"
    assert About.from_json(json.dumps(about)).precision == "fp32"


def test_evaluation_says_its_precision(taught, motion_folder, tmp_path, capsys) -> None:
    ask = ("evaluate", taught, motion_folder, "--clips", 2, "--crops", 1, "--out", tmp_path / "report")
    out, _ = tubelet(capsys, *ask, "--precision", "bf16")
    assert "2x1 bf16" in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    made = [row for row in report["results"] if "clips" in row]
    assert len(made) >= 3 and {row["precision"] for row in made} == {"bf16"} and report["data"]["precision"] == "bf16"
    assert "computed in bf16" in (tmp_path / "report" / "report.html").read_text()
    assert "bf16" not in tubelet(capsys, *ask)[0]


def test_timeline_and_ground_take_it(taught, reads, motion_folder, capsys) -> None:
    video = next(motion_folder.rglob("*.mp4"))
    for words in (
        ("timeline", video, "--model", taught), ("ground", video, CLASSES[0], "--model", taught),
        ("ground", video, "a thing moves", "--model", reads),
    ):  # fmt: skip
        exact, quick = (tubelet(capsys, *words, "--json", "--precision", one)[0] for one in ("fp32", "bf16"))
        assert json.loads(exact).keys() == json.loads(quick).keys() and exact != quick


def test_serving_in_bf16(taught, reads, motion_folder, tmp_path) -> None:
    pytest.importorskip("fastapi", reason="the page is not installed: pip install 'tubelet[serve]'")
    from tubelet.web.library import Library
    from tubelet.web.work import open_model

    served = open_model(taught, "taught", "cpu", precision="bf16")
    assert served.network.precision == "bf16" and served.fingerprint != open_model(taught, "taught", "cpu").fingerprint
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'tubelet[search]'")
    Index.create(tmp_path / "library", load_model(reads, precision="bf16"), reads)
    exact, quick = load_model(reads), load_model(reads, precision="bf16")
    library = Library(str(tmp_path / "library"), "cpu", [exact])
    assert library.network is not exact and library.network.precision == "bf16"
    assert Library(str(tmp_path / "library"), "cpu", [exact, quick]).network is quick
