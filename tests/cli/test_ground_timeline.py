"""`tubelet ground` and `tubelet timeline` as people call them, on a model with first values: what is printed and refused."""

import json

import pytest
import torch

from tubelet import models
from tubelet.cli import main
from tubelet.records import ClipSpec
from tubelet.video.write import write_video
from tubelet.weights.save import save


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a classifier, three videos of 3 s, a table of moments, and answers about annotations."""
    folder = tmp_path_factory.mktemp("ground")
    spec = ClipSpec(frames=4, stride_frames=1, size=16)
    save(models.build("slow_fusion_toy", spec, ("wave", "clap")), folder / "model")
    rows = ["path,text,start,end,split"]
    for number in range(3):
        pixels = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{number}.mp4", pixels, fps=8)
        rows += [f"{number}.mp4,wave now,0,1,{'val' if number == 2 else 'train'}", f"{number}.mp4,clap,1.5,3,train"]
    (folder / "moments.csv").write_text("\n".join(rows) + "\n")
    (folder / "charades_sta_test.txt").write_text("A 1 5##opens a door\nB 0 4##sits\n")
    (folder / "charades_sta.txt").write_text("A 1 5##opens a door\nB 0 4##sits\n")
    (folder / "answers.jsonl").write_text('{"qid": "1", "pred_relevant_windows": [[1, 5, 0.9]]}\n')
    return folder


def test_ground_answers_by_class_and_by_clip(place, capsys):
    asked = [f"{place}/0.mp4", "when do they clap", "--model", f"{place}/model", "--windows", "1", "--json"]
    assert main(["ground", *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == "when do they clap" and 1 <= len(found["spans"]) <= 5
    assert all(0 <= one["start_seconds"] < one["end_seconds"] <= 3.001 for one in found["spans"])
    assert main(["ground", f"{place}/0.mp4", "--query-video", f"{place}/1.mp4", "--model", f"{place}/model"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["start", "end", "score"]


def test_a_head_is_fitted_judged_and_asked(place, capsys):
    fit = ["ground", "fit", f"{place}/moments.csv", "--model", f"{place}/model", "--out", f"{place}/head"]
    assert main([*fit, "--steps", "3", "--cells", "8", "--windows", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == 5 and set(found["held_out"]) == {"head", "prior"}
    assert sorted(path.name for path in (place / "head").iterdir()) == ["features.parquet", "head.safetensors"]
    assert main([*fit, "--steps", "2", "--windows", "0.5"]) == 0
    assert "R1@0.5" in capsys.readouterr().out
    assert main(["ground", f"{place}/0.mp4", "wave", "--model", f"{place}/model", "--head", f"{place}/head", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spans"]


def test_training_videos_that_are_not_there_are_said_and_judged_ones_counted(place, capsys):
    rows = (place / "moments.csv").read_text().splitlines()
    table, out = place / "gone.csv", place / "head-of-gone"
    asked = ["ground", "fit", str(table), "--model", f"{place}/model", "--out", str(out), "--windows", "0.5", "--steps", "2"]
    table.write_text("\n".join(line.replace("0.mp4", "a.mp4").replace("1.mp4", "b.mp4") for line in rows if "clap" not in line))
    assert main(asked) == 2
    assert "none of the videos of 2 rows to learn from could be read" in capsys.readouterr().err
    table.write_text("\n".join([*rows, "gone.mp4,wave,0,1,val", "gone.mp4,clap,0,1,train"]))
    assert main([*asked, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["questions"], found["videos"], found["missing"]) == (5, 3, 1)
    assert main(asked) == 2
    assert "on 1 questions of the split 'val'" in capsys.readouterr().out
    table.unlink()


def test_a_model_is_judged_on_a_table(place, capsys):
    asked = ["ground", "evaluate", f"{place}/moments.csv", "--model", f"{place}/model", "--windows", "1"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["questions"] == 1 == found["videos"] and 0 <= found["chance"]["R1@0.5"] <= 1  # the one row of "val"
    assert main([*asked, "--val-split", "train"]) == 0
    assert capsys.readouterr().out.startswith("5 questions about 3 videos")


def test_answers_are_scored(place, capsys):
    assert main(["ground", "score", f"{place}/answers.jsonl", f"{place}/charades_sta_test.txt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["R1@0.7"], found["questions"], found["answered"]) == (0.5, 2, 1)
    (folder := place / "ego").mkdir()
    (folder / "subset_answers.json").write_text('{"u1": 3, "u2": 0}')
    (folder / "mine.json").write_text('{"u1": 3}')
    assert main(["ground", "score", f"{folder}/mine.json", str(folder)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:4]] == [
        ["accuracy", "50.00%"],
        ["chance", "20.00%"],
    ]
    (folder / "dense.json").write_text('{"results": {"A": [{"timestamp": [1, 5]}]}}')
    assert main(["ground", "score", f"{folder}/dense.json", f"{place}/charades_sta_test.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall@0.9"] == 0.5


def test_timeline_prints_and_writes(place, capsys):
    files = [f"{place}/t.csv", f"{place}/t.srt"]
    asked = ["timeline", f"{place}/0.mp4", "--model", f"{place}/model", "--every", "0.5", "--out", files[0], "--out", files[1]]
    assert main(asked) == 0
    assert f"{place}/0.mp4: 3.00 s" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["probabilities"]) == 6 and found["written"] == files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ground", "0.mp4", "wave"], "no model named: tubelet ground VIDEO QUESTION --model M"),
        (["ground", "0.mp4", "--model", "model"], "ask one question"),
        (["ground", "0.mp4", " ", "--model", "model"], "ask one question"),
        (["ground", "0.mp4", "sleeping", "--model", "model"], "'sleeping' names no class of this model"),
        (["ground", "nowhere.mp4", "wave", "--model", "model"], "nowhere.mp4"),
        (["ground", "0.mp4", "wave", "--model", "model", "--head", "model"], "no head at model/head.safetensors"),
        (["ground", "0.mp4", "wave", "--model", "model", "--windows", "-1"], "windows of -1 s"),
        (["ground", "0.mp4", "wave", "--model", "model", "--windows", "inf"], "windows of inf s"),
        (["ground", "0.mp4", "wave", "--model", "model", "--overlap", "7"], "overlap is 7: an intersection over union"),
        (["ground", "fit", "moments.csv", "--model", "model", "--steps", "0"], "steps is 0: it must be 1 or more"),
        (["ground", "fit", "moments.csv", "--model", "model", "--cells", "0"], "cells is 0: it must be 1 or more"),
        (
            ["ground", "fit", "moments.csv", "--model", "model", "--windows", "inf"],
            "window is inf: it must be a number above 0",
        ),
        (["ground", "fit", "moments.csv", "--model", "model", "--step", "0"], "step is 0: it must be a number above 0"),
        (["timeline", "0.mp4", "--model", "model", "--windows", "inf"], "windows of inf s"),
        (["timeline", "0.mp4", "--model", "model", "--every", "inf"], "every_seconds is inf: it must be a number above 0"),
        (["ground", "fit", "--model", "model"], "no data named: tubelet ground fit TABLE --model M"),
        (["ground", "fit", "charades_sta_test.txt", "--model", "model"], "every row is of the split 'val', val or test"),
        (["ground", "fit", "charades_sta.txt", "--model", "model"], "none of 2 videos could be read"),
        (
            ["ground", "fit", "moments.csv", "--model", "model", "--val-split", "train", "--windows", "1"],
            "nothing to learn from",
        ),
        (["ground", "evaluate", "moments.csv"], "no model named"),
        (["ground", "evaluate", "--model", "model"], "give both: tubelet ground evaluate TABLE --model M"),
        (["ground", "evaluate", "moments.csv", "--model", "model", "--head", "head"], "`tubelet ground fit` judges a head"),
        (["ground", "score", "answers.jsonl"], "give both: tubelet ground score ANSWERS.jsonl ANNOTATIONS"),
        (["ground", "score", "answers.jsonl", "moments.csv"], "moments.csv holds no moments of a known format"),
        (["timeline", "0.mp4", "--model", "model", "--out", "t.avi"], "a timeline is written as .png"),
        (["timeline", "nowhere.mp4", "--model", "model"], "nowhere.mp4"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, monkeypatch, words, message):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err.splitlines()[-1], printed.err
    assert sorted(place.iterdir()) == before
