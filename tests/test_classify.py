"""Heads over stored features against scikit-learn, and that no video is needed to add a class."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tubelet import classify, datasets, feature_store, features, models
from tubelet.classify import fit, hardest, load, predict, read_labels, save, uncertain
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.evaluate.linear_probe import L2_CHOICES
from tubelet.feature_store import Stored
from tubelet.records import ClipSpec
from tubelet.weights.save import save as save_model

KINDS = tuple(classify.KINDS)
CLASSES = ("a", "b", "c")


def cloud(videos: int = 90, seed: int = 0, clips: int = 1) -> tuple[Stored, dict[str, str]]:
    """Features of three classes that overlap a little, along two of 12 values, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(videos) % 3
    centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    vectors = torch.randn(videos, clips, 12, generator=generator)
    vectors[:, :, :2] += centres[numbers][:, None]
    vectors = vectors * 5 + 100  # as features are: far from zero
    ids = [f"{number}.mp4" for number in range(videos)]
    rows = [id for id in ids for _ in range(clips)]
    stored = Stored(tuple(rows), tuple(f"/videos/{id}" for id in rows), vectors.flatten(0, 1), "f00d", "some_model")
    return stored, {id: CLASSES[number] for id, number in zip(ids, numbers.tolist(), strict=True)}


def standardised(stored: Stored, by: Stored) -> np.ndarray:
    return ((stored.vectors.double() - by.vectors.double().mean(0)) / by.vectors.double().std(0, unbiased=False)).numpy()


def test_linear_is_scikit_learns_logistic_regression() -> None:
    (stored, labels), (asked, _) = cloud(), cloud(40, seed=1)
    head = fit(stored, labels, "linear", l2=0.05)
    theirs = LogisticRegression(C=1 / (90 * 0.05), tol=1e-9, max_iter=1000).fit(
        standardised(stored, stored), list(labels.values())
    )
    np.testing.assert_allclose(head.probabilities(asked.vectors), theirs.predict_proba(standardised(asked, stored)), atol=1e-5)
    few, some = cloud(20)
    assert fit(few, some).settings["l2"] in (1e-3, 1e-2, 1e-1, 1.0)  # chosen by cross-validation


def test_windows_of_a_file_are_not_cross_validated_by_one_another() -> None:
    """Files of noise, of eight windows that look alike: who keeps a file together finds nothing to learn, so the strongest penalty,
    as scikit-learn does by GroupKFold; who does not finds that all is known."""
    generator = torch.Generator().manual_seed(0)
    files = 30
    vectors = (torch.randn(files, 1, 12, generator=generator) + 0.01 * torch.randn(files, 8, 12, generator=generator)).flatten(
        0, 1
    )
    paths = tuple(f"/videos/{file}.mp4" for file in range(files) for _ in range(8))
    stored = Stored(tuple(f"{path}@{row}" for row, path in enumerate(paths)), paths, vectors, "f00d", "some_model")
    labels = {id: CLASSES[file % 3] for file in range(files) for id in stored.ids[8 * file : 8 * file + 8]}
    chosen = fit(stored, labels).settings["l2"]

    def losses(folds: Any, groups: Any = None) -> list[float]:
        return [
            -cross_val_score(
                make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.8 * len(paths) * l2), max_iter=2000)),
                vectors.numpy(), list(labels.values()), groups=groups, cv=folds, scoring="neg_log_loss",
            ).mean()
            for l2 in L2_CHOICES
        ]  # fmt: skip

    together, apart = losses(GroupKFold(5), paths), losses(KFold(5, shuffle=True, random_state=0))
    assert chosen == L2_CHOICES[np.argmin(together)] != L2_CHOICES[np.argmin(apart)]


def test_knn_is_scikit_learns() -> None:
    (stored, labels), (asked, _) = cloud(), cloud(40, seed=1)
    head = fit(stored, labels, "knn", k=7)
    theirs = KNeighborsClassifier(7, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    theirs.fit(standardised(stored, stored), list(labels.values()))
    np.testing.assert_allclose(head.probabilities(asked.vectors), theirs.predict_proba(standardised(asked, stored)), atol=1e-9)


def test_triplets_are_the_hardest_of_the_batch() -> None:
    points, labels = torch.randn(20, 4), torch.tensor([0] * 9 + [1] * 10 + [2])
    anchors, positives, negatives = hardest(points, labels)
    assert anchors.tolist() == list(range(19))  # the last has no other of its class
    for anchor, positive, negative in zip(anchors, positives, negatives, strict=True):
        far = (points - points[anchor]).norm(dim=1)
        own = labels == labels[anchor]
        assert own[positive] and positive != anchor and far[positive] == far[own].max()
        assert not own[negative] and far[negative] == far[~own].min()


def test_triplet_learning_separates_what_the_features_do_not() -> None:
    (stored, labels), (asked, truth) = cloud(150), cloud(60, seed=1)
    head = fit(stored, labels, "triplet")
    right = np.mean([answer.top[0][0] == truth[answer.id] for answer in predict(head, asked)])
    means = torch.stack([stored.vectors[[labels[id] == name for id in stored.ids]].mean(0) for name in CLASSES])
    nearest = torch.cdist(asked.vectors, means).argmin(1).tolist()
    plain = np.mean([CLASSES[i] == truth[id] for i, id in zip(nearest, asked.ids, strict=True)])
    assert right > 0.85 and right >= plain - 0.05, (right, plain)
    again = fit(stored, labels, "triplet")
    assert all(torch.equal(head.tensors[name], again.tensors[name]) for name in head.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_read_back_and_answers_the_same(kind: classify.KindName, tmp_path: Path) -> None:
    stored, labels = cloud(30)
    head = fit(stored, labels, kind)
    again = load(save(head, tmp_path / "new" / "head"))
    assert (again.classes, again.settings, again.fingerprint, again.labelled) == (CLASSES, head.settings, "f00d", tuple(labels))
    assert predict(again, stored) == predict(head, stored)
    save(replace(head, classes=("x", "y", "z")), tmp_path / "new" / "head")  # an older one is replaced
    assert load(tmp_path / "new" / "head").classes == ("x", "y", "z")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["head"], "nothing temporary is left"


def test_an_older_head_stays_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, labels = cloud(30)
    head = fit(stored, labels, "knn")
    save(head, tmp_path / "head")
    rename, calls = os.rename, []

    def full(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no room")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointError, match="no room; nothing was changed"):
        save(replace(head, classes=("x", "y", "z")), tmp_path / "head")
    assert load(tmp_path / "head").classes == CLASSES and [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_a_video_are_averaged(kind: classify.KindName) -> None:
    stored, labels = cloud(30, clips=3)
    head = fit(stored, labels, kind)
    answers = predict(head, stored, top=3)
    assert [answer.id for answer in answers] == list(labels)
    mean = head.probabilities(stored.vectors).view(30, 3, 3).mean(dim=1)
    for answer, chances in zip(answers, mean, strict=True):
        assert dict(answer.top) == pytest.approx(dict(zip(CLASSES, chances.tolist(), strict=True)))
        assert sum(dict(answer.top).values()) == pytest.approx(1)
        assert answer.margin == pytest.approx(float(chances.topk(2).values.diff().abs()))


def test_the_most_doubtful_come_first_and_none_that_is_labelled() -> None:
    stored, labels = cloud()
    some = {id: labels[id] for id in stored.ids[:15]}
    head = fit(stored, some)
    asked = uncertain(head, stored, top=10)
    margins = {answer.id: answer.margin for answer in predict(head, stored) if answer.id not in some}
    assert [answer.margin for answer in asked] == sorted(margins.values())[:10]
    assert not {answer.id for answer in asked} & set(some)


def test_labels_come_from_tables_of_ids_or_paths(tmp_path: Path) -> None:
    stored, _ = cloud(6)
    (tmp_path / "ids.csv").write_text("id,label,guess\n0.mp4,wave,x\n1.mp4,,x\n9.mp4,wave,x\n")
    (tmp_path / "paths.csv").write_text("path,label,split\n/videos/2.mp4,clap,train\n/videos/3.mp4,wave,val\n")
    assert read_labels([tmp_path / "ids.csv"], stored) == ({"0.mp4": "wave"}, ["9.mp4"])
    both = read_labels([tmp_path / "ids.csv", tmp_path / "paths.csv"], stored)
    assert both == ({"0.mp4": "wave", "2.mp4": "clap", "3.mp4": "wave"}, ["9.mp4"])
    assert read_labels([tmp_path / "paths.csv"], stored, "val") == ({"3.mp4": "wave"}, [])
    (tmp_path / "other.csv").write_text("id,label\n0.mp4,clap\n")
    with pytest.raises(DataError, match=r"other.csv calls 0.mp4 'clap', but it was 'wave' before: correct one of them"):
        read_labels([tmp_path / "ids.csv", tmp_path / "other.csv"], stored)
    with pytest.raises(DataError, match=r"no split 'test' in .*paths.csv \(known: train, val\)"):
        read_labels([tmp_path / "paths.csv"], stored, "test")
    (tmp_path / "empty.csv").write_text("id,label\n0.mp4,\n")
    with pytest.raises(DataError, match=r"no label in .*empty.csv"):
        read_labels([tmp_path / "empty.csv"], stored)


def test_what_cannot_be_fitted_or_asked_is_said(tmp_path: Path) -> None:
    stored, labels = cloud(9)
    with pytest.raises(
        DataError, match=r"the labels name 1 class of the videos with features \(a\): label videos of two or more"
    ):
        fit(stored, {"0.mp4": "a", "3.mp4": "a", "elsewhere.mp4": "b"})
    with pytest.raises(DataError, match="two labelled videos of a class at least"):
        fit(stored, {"0.mp4": "a", "1.mp4": "b"}, "triplet")
    with pytest.raises(ConfigError, match="unknown kind of head 'svm'"):
        fit(stored, labels, "svm")  # type: ignore[arg-type]
    for wrong in (dict(l2=float("nan")), dict(l2=float("inf")), dict(margin=float("nan"))):
        with pytest.raises(ConfigError, match="k must be 1 or more, the others above 0 and finite"):
            fit(stored, labels, **wrong)
    head = fit(stored, labels)
    for top in (0, -1):
        with pytest.raises(ConfigError, match=f"top is {top}: ask for 1 video or more"):
            uncertain(head, stored, top)
    with pytest.raises(CheckpointError, match="fingerprint f00d, these are of some_model with beef: embed the videos"):
        predict(head, replace(stored, fingerprint="beef"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is no head"):
        save(head, tmp_path / "folder")
    with pytest.raises(CheckpointError, match="is no head"):
        load(tmp_path / "folder")
    (save(head, tmp_path / "head") / "head.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"head is damaged \(.*fit it again"):
        load(tmp_path / "head")


@pytest.fixture
def embedded(motion_folder: Path, tmp_path: Path) -> Path:
    """model/, and features.parquet of videos/, a copy of the motion folder whose videos are then gone."""
    torch.manual_seed(1)
    model = models.build("videomae_tiny", ClipSpec(frames=4, stride_frames=2, size=32), depth=1, patch=8).eval()
    save_model(model, tmp_path / "model")
    shutil.copytree(motion_folder / "val", tmp_path / "videos")
    examples = datasets.read(tmp_path / "videos").examples
    feature_store.write_parquet(tmp_path / "features.parquet", features.embed(model, examples, clips=1), model)
    shutil.rmtree(tmp_path / "videos")
    return tmp_path


def test_a_class_is_added_without_the_videos(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = feature_store.read(embedded / "features.parquet")
    labels, head = embedded / "labels.csv", str(embedded / "head")
    labels.write_text("id,label\n" + "".join(f"{id},{id.split('/')[0]}\n" for id in stored.ids))
    words = ["classify", "fit", str(embedded / "features.parquet"), "--labels", str(labels), "--out", head]
    assert main([*words, "--kind", "knn"]) == 0
    assert "knn head (k 5) of 2 classes" in capsys.readouterr().out
    labels.write_text(labels.read_text().replace(f"{stored.ids[0]},{stored.ids[0].split('/')[0]}", f"{stored.ids[0]},a third"))
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == ["a third", "translate_left", "translate_right"] and said["labelled"] == len(stored.ids)
    assert main(["classify", "predict", head, str(embedded / "features.parquet"), "--labels", str(labels)]) == 0
    assert "of 4 labelled videos right" in capsys.readouterr().out


def test_the_loop_of_the_command(embedded: Path, motion_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = feature_store.read(embedded / "features.parquet")
    path, head, labels = str(embedded / "features.parquet"), str(embedded / "head"), embedded / "labels.csv"
    labels.write_text(f"id,label\n{stored.ids[0]},left\n{stored.ids[-1]},right\nnobody.mp4,left\n")
    assert main(["classify", "fit", path, "--labels", str(labels), "--out", head]) == 2  # done, but one is not there
    assert "no feature of nobody.mp4: left out" in capsys.readouterr().err
    assert main(["classify", "uncertain", head, path, "--top", "1", "--out", str(embedded / "next.csv")]) == 0
    rows = list(csv.DictReader((embedded / "next.csv").read_text().splitlines()))
    assert len(rows) == 1 and rows[0]["label"] == "" and rows[0]["id"] in stored.ids[1:-1]
    (embedded / "next.csv").write_text((embedded / "next.csv").read_text().replace(",,", ",left,"))
    assert main(["classify", "fit", path, "--labels", str(labels), "--labels", str(embedded / "next.csv"), "--out", head]) == 2
    assert load(head).labelled == tuple(id for id in stored.ids if id in (stored.ids[0], stored.ids[-1], rows[0]["id"]))
    capsys.readouterr()
    video = str(next(iter(sorted(motion_folder.glob("val/*/*.mp4")))))
    assert main(["classify", "predict", head, video, "--model", str(embedded / "model"), "--clips", "1", "--json"]) == 0
    fresh = json.loads(capsys.readouterr().out)["answers"]
    assert main(["classify", "predict", head, path, "--out", str(embedded / "said.csv"), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["answers"]
    assert fresh[0]["top"][0]["probability"] == pytest.approx(known[0]["top"][0]["probability"], rel=1e-3)
    assert read_labels([embedded / "said.csv"], stored)[0].keys() == set(stored.ids)


@pytest.mark.parametrize(("words", "message"), [
    (["fit", "f.parquet"], "tubelet classify fit FEATURES --labels CSV --out HEAD"),
    (["predict", "head"], "got 1 path: tubelet classify predict HEAD FEATURES|VIDEO..."),
    (["uncertain", "a", "b", "c"], "got 3 paths: tubelet classify uncertain HEAD FEATURES"),
    (["predict", "nothing", "b"], "nothing is no head"),
    (["fit", "nothing.parquet", "--labels", "x.csv", "--out", "h"], "nothing.parquet does not exist"),
])  # fmt: skip
def test_bad_words_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_videos_need_the_model_of_the_features(embedded: Path, motion_folder: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    stored = feature_store.read(embedded / "features.parquet")
    head = fit(stored, {stored.ids[0]: "a", stored.ids[-1]: "b"}, "knn")
    save(head, tmp_path / "head")
    words = ["classify", "predict", str(tmp_path / "head"), str(motion_folder / "val")]
    assert main(words) == 2
    assert "for videos name the model that made those of the head: --model RUN" in capsys.readouterr().err
    other = models.build("videomae_tiny", ClipSpec(frames=4, stride_frames=2, size=32), depth=1, patch=8)
    assert main([*words, "--model", str(save_model(other, tmp_path / "other"))]) == 2
    assert "embed the videos with the same model" in capsys.readouterr().err
